//! `memload`: known loads on memory, and how long their operations took.

mod fill;
mod hist;
mod pace;
mod ring;

pub use hist::{Histogram, Latency};

//! The cgshim engine: a pure [`core`] that decides, and a [`driver`] that acts on the kernel.

pub mod api;
pub mod core;
pub mod daemon;
pub mod driver;
pub mod oci;
pub mod oom;

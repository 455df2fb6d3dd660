//! The cgshim engine: a pure [`core`] that decides, a [`driver`] that acts on the kernel, and a
//! [`journal`] of what it did there, from which a [`guardian`] puts things right.

pub mod api;
pub mod core;
pub mod daemon;
pub mod driver;
pub mod guardian;
pub mod journal;
pub mod oci;
pub mod oom;

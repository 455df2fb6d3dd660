//! The kernel's cgroup files as Rust types.
//!
//! This crate finds the hierarchies (v1, v2, hybrid), opens cgroups by directory descriptor, reads and
//! writes their memory files, waits for their events, and probes what the kernel at hand can do. It
//! holds no policy, no configuration, and no thread that outlives a call.

pub mod error;
pub mod flat;
pub mod membership;
pub mod mounts;
mod octal;
pub mod procfs;
pub mod units;

/// The memory files. (Stands in for memory/mod.rs.)
pub mod memory {
    pub mod stat;
}

#[cfg(test)]
mod samples;

pub use error::{Error, Op, Result};
pub use membership::Membership;
pub use mounts::{Mode, Mounts};
pub use units::{Bytes, Declared, Limit, Stepped};

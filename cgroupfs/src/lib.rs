//! The kernel's cgroup files as Rust types.
//!
//! This crate finds the hierarchies (v1, v2, hybrid), opens cgroups by directory descriptor, reads and
//! writes their memory files, waits for their events, and probes what the kernel at hand can do. It
//! holds no policy, no configuration, and no thread that outlives a call.

pub mod dir;
pub mod error;
pub mod events;
pub mod files;
pub mod flat;
pub mod freezer;
pub mod hierarchy;
pub mod kmsg;
pub mod membership;
pub mod memory;
pub mod mounts;
mod octal;
pub mod probe;
pub mod procfs;
pub mod recording;
#[cfg(test)]
mod samples;
pub mod units;

pub use dir::Cgroup;
pub use error::{Error, Op, Result};
pub use hierarchy::MemoryHierarchy;
pub use membership::Membership;
pub use mounts::{Mode, Mounts};
pub use units::{Bytes, Limit};

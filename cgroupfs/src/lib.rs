//! The kernel's cgroup files as Rust types.

//! The system calls of `cgctl` that need `unsafe`.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Calls `action` in the child between fork and exec.
///
/// `action` must be async-signal-safe: system calls on values that it owns, no allocation, no lock.
/// [`join_group`] is.
pub(crate) fn before_exec(
    command: &mut Command,
    action: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: async-signal-safe by the contract above, which the callers of this private function keep.
    unsafe { command.pre_exec(action) };
}

/// Moves the calling process into the group whose `cgroup.procs` is open for writing at `procs`.
pub(crate) fn join_group(procs: RawFd) -> io::Result<()> {
    // SAFETY: the buffer is a static of the length given; a bad descriptor is EBADF.
    let written = unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) };
    if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

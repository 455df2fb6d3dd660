//! The system calls of `cgctl` that need `unsafe`.

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
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

/// Gives the calling thread this signal mask. For [`before_exec`]: a child inherits the mask of the thread
/// that forks, and std leaves it at that (since Rust 1.66).
pub(crate) fn set_mask(mask: &SigSet) -> io::Result<()> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(mask), None).map_err(io::Error::from)
}

/// Columns and lines of the terminal behind `fd`; `None` where it is none, or does not know.
pub(crate) fn terminal_size(fd: BorrowedFd<'_>) -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0)
        .then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// Starts to swap on a device that holds a swap header, before all others of a priority under `priority`.
pub(crate) fn swapon(device: &CStr, priority: u16) -> io::Result<()> {
    // SWAP_FLAG_PREFER of swapon(2), which libc lacks.
    let flags = 0x8000 | i32::from(priority.min(0x7fff));
    // SAFETY: a string that ends in NUL; the kernel only reads it.
    match unsafe { libc::swapon(device.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends swapping on a device. Reads back what is on it.
pub(crate) fn swapoff(device: &CStr) -> io::Result<()> {
    // SAFETY: a string that ends in NUL; the kernel only reads it.
    match unsafe { libc::swapoff(device.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

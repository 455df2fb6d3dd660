//! The guardian's `unsafe`: becoming a process of its own, and ending without anybody's destructors.

use nix::unistd::{ForkResult, Pid, fork};
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Forks a process that runs `child` and ends with its result. `child` is all that it does: it never
/// returns into its caller's code.
///
/// With other threads about, `child` must keep from what they may hold locked: it must not log. Memory
/// can be had (glibc and musl see to their allocator's locks in a fork).
pub(super) fn forked(child: impl FnOnce() -> i32) -> nix::Result<Pid> {
    // SAFETY: the child runs `child` alone, which keeps to the contract above, and then ends.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: no preconditions; the parent's exit handlers and buffers are not ours to run.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Lets the calling process run as soon as it has something to do, whatever else does: at the lowest
/// real-time priority, or where that is refused, at the highest of the others.
pub(super) fn run_at_once() {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` is ours; pid 0 is the calling process.
    if unsafe { libc::sched_setscheduler(0, policy, &parameters) } != 0 {
        // SAFETY: no preconditions; 0 is the calling process.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    }
}

/// Closes every descriptor but those of `keep`, which is sorted, and standard error.
pub(super) fn close_all_but(keep: &[RawFd]) {
    let mut next = 0;
    for fd in keep.iter().copied().chain([RawFd::MAX]) {
        if fd > next {
            close_range(next, fd - 1);
        }
        next = fd.saturating_add(1);
    }
}

fn close_range(first: RawFd, last: RawFd) {
    let (first, last) = (first.cast_unsigned(), last.cast_unsigned());
    // SAFETY: closes descriptors of a process that has just been forked and uses none of them.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // Before Linux 5.9: one by one, as many as there can reasonably be.
    for fd in first..=last.min(4096) {
        // SAFETY: as above.
        unsafe { libc::close(fd.cast_signed()) };
    }
}

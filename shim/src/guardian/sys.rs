//! The guardian's `unsafe`: becoming a process of its own, ending without anybody's destructors, and reading directories
//! without memory of its own.

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, fork};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
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

/// Has `each` see every directory beneath `dir`, one above before those in it, so deep at most (ELOOP). Those that
/// are gone meanwhile are passed over. Nothing is allocated, which `readdir()` would do.
pub(super) fn walk(
    dir: &OwnedFd,
    deep: usize,
    each: &mut dyn FnMut(&OwnedFd) -> nix::Result<()>,
) -> nix::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY | OFlag::O_NOFOLLOW;
    let passed_over = |result| match result {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        result => result,
    };
    let mut entries = Entries { bytes: [0; 2048] };
    loop {
        let mut left = match entries.read(dir) {
            Ok([]) => return Ok(()),
            Ok(bytes) => bytes,
            // It is gone.
            Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        while let Some((name, rest)) = subdirectory(left) {
            left = rest;
            let Some(name) = name else { continue };
            let deeper = deep.checked_sub(1).ok_or(Errno::ELOOP)?;
            let child = match openat(dir, name, flags, Mode::empty()) {
                Err(Errno::ENOENT | Errno::ENODEV) => continue,
                child => child?,
            };
            passed_over(each(&child))?;
            passed_over(walk(&child, deeper, each))?;
        }
    }
}

/// What `getdents64()` fills.
#[repr(align(8))]
struct Entries {
    bytes: [u8; 2048],
}

impl Entries {
    /// The next ones, none at the end.
    fn read(&mut self, dir: &OwnedFd) -> nix::Result<&[u8]> {
        let (fd, room) = (dir.as_raw_fd(), self.bytes.len());
        // SAFETY: the kernel writes at most `room` bytes to `bytes`, which are ours.
        let read =
            unsafe { libc::syscall(libc::SYS_getdents64, fd, self.bytes.as_mut_ptr(), room) };
        let read = usize::try_from(Errno::result(read)?).unwrap_or(0);
        Ok(self.bytes.get(..read).unwrap_or_default())
    }
}

/// Of `struct linux_dirent64`s the first one's name, if it is a directory's, and the others. `None` at the end.
fn subdirectory(entries: &[u8]) -> Option<(Option<&CStr>, &[u8])> {
    const LENGTH: usize = 16;
    const KIND: usize = 18;
    const NAME: usize = 19;
    let length = u16::from_ne_bytes([*entries.get(LENGTH)?, *entries.get(LENGTH + 1)?]);
    let (entry, rest) = entries.split_at_checked(usize::from(length))?;
    let name = CStr::from_bytes_until_nul(entry.get(NAME..)?).ok()?;
    let wanted = entry.get(KIND) == Some(&libc::DT_DIR) && name != c"." && name != c"..";
    Some((wanted.then_some(name), rest))
}

//! The only unsafe code of `memload`: mappings, fork, and the handler of the stop signals.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::{self, ForkResult, Pid};

use super::fill::PAGE;

/// Set by SIGTERM and SIGINT. Every load looks at it before each operation.
static STOP: AtomicBool = AtomicBool::new(false);

/// The signals that end a load early, with its report printed.
pub(crate) fn stop_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
}

/// Makes the stop signals set a flag, without SA_RESTART so that a blocked call returns EINTR.
pub(crate) fn catch_stop_signals() -> nix::Result<()> {
    extern "C" fn on_stop(_signal: c_int) {
        STOP.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(on_stop), SaFlags::empty(), SigSet::empty());
    for signal in &stop_signals() {
        // SAFETY: the handler stores to an atomic and does nothing else, which is async-signal-safe.
        unsafe { signal::sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Whether a stop signal has come.
pub(crate) fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Forks a child that runs `child`, then ends with the exit code it returned (101 if it panicked),
/// without running the exit handlers or flushing the buffers that it has in common with the parent.
pub(crate) fn fork_child(child: impl FnOnce() -> u8) -> nix::Result<Pid> {
    // SAFETY: `memload` forks from its only thread, or, where an allocator thread runs beside it,
    // with a child that makes nothing but system calls (`fork` load); libc's fork takes malloc's
    // locks, and no other lock is shared with that thread.
    match unsafe { unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: _exit has no preconditions; it does not return.
            unsafe { libc::_exit(c_int::from(code)) }
        }
    }
}

/// Private anonymous memory, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Anon(Region);

impl Anon {
    /// Maps `len` bytes. Errors: ENOMEM (address space, overcommit, or the number of mappings).
    pub(crate) fn map(len: usize) -> nix::Result<Anon> {
        let length = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no other memory.
        let at = unsafe { mman::mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Anon(Region { at, len }))
    }

    /// Maps `len` bytes at a multiple of `align`, a power of two that `len` is a multiple of.
    pub(crate) fn map_aligned(len: usize, align: usize) -> nix::Result<Anon> {
        // Kernels since 6.7 align mappings of huge page size themselves.
        let first = Anon::map(len)?;
        if first.0.address().is_multiple_of(align) {
            return Ok(first);
        }
        drop(first);
        let Anon(whole) = Anon::map(len.checked_add(align).ok_or(Errno::ENOMEM)?)?;
        let head = whole.address().next_multiple_of(align) - whole.address();
        let (head_part, rest) = whole.split(head);
        let (aligned, tail_part) = rest.split(len);
        drop(head_part);
        drop(tail_part);
        Ok(Anon(aligned))
    }

    /// The memory. Reading or writing it is what makes the kernel allocate.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the region is mapped readable and writable for as long as self lives, nothing else
        // refers to it, and anonymous memory is initialized (to zero).
        unsafe { std::slice::from_raw_parts_mut(self.0.at.as_ptr().cast(), self.0.len) }
    }

    /// Writes one byte to every page.
    pub(crate) fn touch(&mut self) {
        for at in (0..self.0.len).step_by(PAGE) {
            self.0.write_byte(at);
        }
    }

    /// Gives the pages back: what is read next is zero, and freshly allocated (MADV_DONTNEED).
    pub(crate) fn drop_pages(&mut self) -> nix::Result<()> {
        self.0.advise(MmapAdvise::MADV_DONTNEED)
    }

    /// Asks for huge pages. Errors: EINVAL where the kernel is built without them.
    pub(crate) fn want_huge_pages(&mut self) -> nix::Result<()> {
        self.0.advise(MmapAdvise::MADV_HUGEPAGE)
    }
}

/// A file mapped shared, unmapped on drop. The file must not shrink meanwhile (SIGBUS), which is why
/// `memload` maps only files that have no name.
#[derive(Debug)]
pub(crate) struct Shared(Region);

impl Shared {
    /// Maps the first `len` bytes of a file, which has them.
    pub(crate) fn map(file: &File, len: usize) -> nix::Result<Shared> {
        let length = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; its bytes are only ever
        // accessed one at a time by volatile reads and writes, never as a slice.
        let at = unsafe { mman::mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Shared(Region { at, len }))
    }

    /// Reads, or writes, one byte of every page in `[from, from + len)`.
    pub(crate) fn touch(&mut self, from: usize, len: usize, write: bool) {
        for at in (from..from + len).step_by(PAGE) {
            if write {
                self.0.write_byte(at);
            } else {
                self.0.read_byte(at);
            }
        }
    }
}

/// Mapped memory, owned.
#[derive(Debug)]
struct Region {
    at: NonNull<c_void>,
    len: usize,
}

// SAFETY: a region is plain memory without thread affinity, with one owner.
unsafe impl Send for Region {}

impl Region {
    fn address(&self) -> usize {
        self.at.as_ptr() as usize
    }

    /// Splits into `[0, at)` and `[at, len)`.
    fn split(self, at: usize) -> (Region, Region) {
        assert!(at <= self.len);
        let whole = std::mem::ManuallyDrop::new(self);
        // SAFETY: `at` is within the mapping or one past its end.
        let second = unsafe { whole.at.byte_add(at) };
        (Region { at: whole.at, len: at }, Region { at: second, len: whole.len - at })
    }

    fn write_byte(&mut self, at: usize) {
        assert!(at < self.len);
        // SAFETY: `at` is within the mapping (asserted).
        let byte = unsafe { self.at.cast::<u8>().add(at) };
        // SAFETY: the mapping is writable while self lives; volatile, so that it is not left out.
        unsafe { byte.write_volatile(1) }
    }

    fn read_byte(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: `at` is within the mapping (asserted).
        let byte = unsafe { self.at.cast::<u8>().add(at) };
        // SAFETY: the mapping is readable while self lives; volatile, so that it is not left out.
        unsafe { byte.read_volatile() }
    }

    fn advise(&mut self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: the range is ours alone, and the advices used here (DONTNEED on anonymous memory
        // that no slice borrows, HUGEPAGE) leave it mapped and initialized.
        unsafe { mman::madvise(self.at, self.len, advice) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range is ours alone, and nothing borrows it any more. An error (there is
            // none for a range that is mapped, but ENOMEM when it splits a mapping) leaks it.
            let _ = unsafe { mman::munmap(self.at, self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};

    #[test]
    fn anonymous_memory_is_zero_writable_and_dropped() {
        let mut memory = Anon::map(4 * PAGE).unwrap();
        assert!(memory.bytes_mut().iter().all(|byte| *byte == 0));
        memory.touch();
        assert_eq!(memory.bytes_mut().iter().filter(|byte| **byte == 1).count(), 4);
        memory.drop_pages().unwrap();
        assert!(memory.bytes_mut().iter().all(|byte| *byte == 0));
        assert_eq!(Anon::map(0).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn aligned_memory_is_aligned() {
        let mapped: Vec<Anon> =
            (0..4).map(|_| Anon::map_aligned(8 << 20, 8 << 20).unwrap()).collect();
        for memory in &mapped {
            assert!(memory.0.address().is_multiple_of(8 << 20));
            assert_eq!(memory.0.len, 8 << 20);
        }
    }

    #[test]
    fn a_child_ends_with_its_code_and_a_panic_never_leaves_it() {
        let child = fork_child(|| 12).unwrap();
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 12));
        let child = fork_child(|| std::panic::resume_unwind(Box::new(()))).unwrap();
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 101));
    }
}

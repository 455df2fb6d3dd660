//! Loads that fill memory or cache at a pace of their own, and never end.

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So much is filled before the pace is looked at.
const PIECE: usize = 256 << 10;

/// Fills fresh memory, so many bytes a second (0: as fast as it can), page by page as a program does that
/// uses what it allocates; rests when it has so much, and keeps it.
pub(super) fn grow(rate: u64, most: u64) {
    let mut held: Vec<Vec<u8>> = Vec::new();
    // Under the mmap threshold it would be the heap: one mapping each, as large programs do.
    by_pieces(rate, most, |_| held.push(vec![7; PIECE]));
}

/// The same in one mapping of nothing but huge pages: where one begins or ends amid of one the kernel fills that with small
/// pages, each of whose charges may be slept for as long as a whole huge page.
pub(super) fn grow_huge(rate: u64, most: u64) {
    const HUGE: usize = 2 << 20;
    let size = NonZeroUsize::new(most as usize + HUGE).unwrap();
    let (access, flags) = (
        ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
    );
    // SAFETY: a new mapping; nothing is there that could be replaced.
    let at = unsafe { mmap_anonymous(None, size, access, flags).unwrap() };
    // As `always` in `transparent_hugepage/enabled` would.
    // SAFETY: the range is all of ours, and what is in it stays as it is.
    let _ = unsafe { madvise(at, size.get(), MmapAdvise::MADV_HUGEPAGE) };
    // SAFETY: nobody else has it, it reads as zeroes, and it is never unmapped.
    let held = unsafe { std::slice::from_raw_parts_mut(at.cast::<u8>().as_ptr(), size.get()) };
    let start = held.as_ptr().align_offset(HUGE);
    by_pieces(rate, most, |done| {
        let at = start + done as usize;
        held[at..at + PIECE].fill(7);
    });
}

/// Does `fill` for each piece up to `most`, told what was done before, and rests.
fn by_pieces(rate: u64, most: u64, mut fill: impl FnMut(u64)) {
    let start = Instant::now();
    for done in (0..most).step_by(PIECE) {
        fill(done);
        if rate > 0 {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    loop {
        std::thread::park();
    }
}

/// Does `page` for a page after the other, `rate` bytes a second, until it says that it was the last.
pub(super) fn page_by_page(done: &AtomicU64, rate: u64, mut page: impl FnMut() -> bool) {
    let start = Instant::now();
    while page() {
        let done = done.fetch_add(4096, Ordering::SeqCst) + 4096;
        if done.is_multiple_of(64 << 10) {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    // What it holds, it holds.
    loop {
        std::thread::park();
    }
}

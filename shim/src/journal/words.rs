//! A slot's words: sections that are whole or not there, and values that stand while a change of ours
//! does.
//!
//! A writer may die between any two stores, and a reader may look between any two. So a check is stored
//! last and taken away first, and who reads compares it before and after.

use super::layout::{self, Check, FlightAt, SectionAt, header};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Most payload words of any section.
const MOST_PAYLOAD: usize = layout::IDENTITY.payload;

/// How often a reader tries again that was overtaken by the writer.
const TRIES: usize = 64;

/// The words of the file, and which slot is meant.
#[derive(Clone, Copy)]
pub(crate) struct SlotWords<'a> {
    file: &'a [AtomicU64],
    slot: &'a [AtomicU64],
    index: usize,
}

/// What a check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read<T> {
    /// Nothing was written.
    Clear,
    /// This was.
    Whole(T),
    /// Something was written that is not what it was when it was checked.
    Damaged,
}

impl<'a> SlotWords<'a> {
    /// Slot `index` of the file; `None` beyond its end.
    pub(crate) fn new(file: &'a [AtomicU64], index: usize) -> Option<SlotWords<'a>> {
        let at = layout::slot_at(index);
        let slot = file.get(at..at + layout::SLOT_WORDS)?;
        Some(SlotWords { file, slot, index })
    }

    /// 0 for a free slot.
    pub(crate) fn generation(&self) -> u64 {
        self.slot[0].load(Ordering::Acquire)
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        self.slot[0].store(generation, Ordering::Release);
    }

    /// The container was released; what of ours may still stand in the kernel is yet to be undone.
    pub(crate) fn set_released(&self, generation: u64) {
        self.slot[1].store(generation, Ordering::SeqCst);
    }

    /// Whether it was.
    pub(crate) fn is_released(&self) -> bool {
        self.slot[1].load(Ordering::Acquire) == self.generation()
    }

    /// Whether the header has this slot's bit.
    pub(crate) fn bit(&self) -> (&'a AtomicU64, u64) {
        (&self.file[header::IN_FLIGHT + self.index / 64], 1 << (self.index % 64))
    }

    /// Records what is about to be changed. One writer at a time for each `kind`; no allocation, no
    /// system call.
    pub(crate) fn begin<const N: usize>(&self, generation: u64, kind: FlightAt, values: [u64; N]) {
        self.begin_quietly(generation, kind, values);
        let (word, bit) = self.bit();
        word.fetch_or(bit, Ordering::SeqCst);
    }

    /// As [`SlotWords::begin`], for what may stand for as long as the container lives: nobody need watch it.
    pub(crate) fn begin_quietly<const N: usize>(
        &self,
        generation: u64,
        kind: FlightAt,
        values: [u64; N],
    ) {
        debug_assert_eq!(N, kind.payload);
        let tag = &self.slot[kind.at];
        // Never a tag over half of other values.
        tag.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        let mut check = Check::new(self.index, generation, kind.at);
        for (word, value) in self.slot[kind.at + 1..].iter().zip(values) {
            word.store(value, Ordering::Relaxed);
            check = check.word(value);
        }
        tag.store(check.done(), Ordering::SeqCst);
    }

    /// The change is undone.
    pub(crate) fn end(&self, kind: FlightAt) {
        self.slot[kind.at].store(0, Ordering::SeqCst);
        if self.any_in_flight() {
            return;
        }
        let (word, bit) = self.bit();
        word.fetch_and(!bit, Ordering::SeqCst);
        // Another thread may have begun something between the two.
        if self.any_in_flight() {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn any_in_flight(&self) -> bool {
        [layout::STEP, layout::SWAPPINESS, layout::FREEZE, layout::HOLD]
            .iter()
            .any(|kind| self.slot[kind.at].load(Ordering::SeqCst) != 0)
    }

    /// What is in flight of a kind.
    pub(crate) fn in_flight<const N: usize>(
        &self,
        generation: u64,
        kind: FlightAt,
    ) -> Read<[u64; N]> {
        debug_assert_eq!(N, kind.payload);
        for _ in 0..TRIES {
            let tag = self.slot[kind.at].load(Ordering::Acquire);
            if tag == 0 {
                return Read::Clear;
            }
            let mut values = [0; N];
            let mut check = Check::new(self.index, generation, kind.at);
            for (value, word) in values.iter_mut().zip(&self.slot[kind.at + 1..]) {
                *value = word.load(Ordering::Relaxed);
                check = check.word(*value);
            }
            fence(Ordering::Acquire);
            if self.slot[kind.at].load(Ordering::Relaxed) != tag {
                continue;
            }
            if check.done() == tag {
                return Read::Whole(values);
            }
            return Read::Damaged;
        }
        Read::Damaged
    }

    /// Writes a section: over the older copy where there are two. One writer at a time.
    pub(crate) fn write(&self, generation: u64, section: SectionAt, payload: &[u64]) {
        debug_assert!(payload.len() <= section.payload);
        let (newest, seq) = self.newest(generation, section);
        let copy = match newest {
            Some(n) => (n + 1) % section.copies,
            None => 0,
        };
        let at = section.copy(copy);
        let check_at = &self.slot[at + section.payload + 1];
        check_at.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        let seq = seq.wrapping_add(1);
        let mut check = Check::new(self.index, generation, section.at).word(seq);
        self.slot[at].store(seq, Ordering::Relaxed);
        for n in 0..section.payload {
            let value = payload.get(n).copied().unwrap_or(0);
            self.slot[at + 1 + n].store(value, Ordering::Relaxed);
            check = check.word(value);
        }
        check_at.store(check.done(), Ordering::Release);
    }

    /// Which copy is whole and newest, and its sequence number.
    fn newest(&self, generation: u64, section: SectionAt) -> (Option<usize>, u64) {
        let mut scratch = [0; MOST_PAYLOAD];
        let mut newest = (None, 0);
        for copy in 0..section.copies {
            if let Some(seq) = self.copy(generation, section, copy, &mut scratch)
                && (newest.0.is_none() || seq > newest.1)
            {
                newest = (Some(copy), seq);
            }
        }
        newest
    }

    /// Reads a copy; its sequence number if it is whole.
    fn copy(
        &self,
        generation: u64,
        section: SectionAt,
        copy: usize,
        payload: &mut [u64; MOST_PAYLOAD],
    ) -> Option<u64> {
        let at = section.copy(copy);
        let check_at = &self.slot[at + section.payload + 1];
        let stored = check_at.load(Ordering::Acquire);
        if stored == 0 {
            return None;
        }
        let seq = self.slot[at].load(Ordering::Relaxed);
        let mut check = Check::new(self.index, generation, section.at).word(seq);
        for (n, value) in payload.iter_mut().enumerate().take(section.payload) {
            *value = self.slot[at + 1 + n].load(Ordering::Relaxed);
            check = check.word(*value);
        }
        fence(Ordering::Acquire);
        (check_at.load(Ordering::Relaxed) == stored && check.done() == stored).then_some(seq)
    }

    /// Reads a section into `payload`. Not whole while a writer of the only copy is at work; with two
    /// copies one is always whole.
    pub(crate) fn read<const N: usize>(
        &self,
        generation: u64,
        section: SectionAt,
    ) -> Option<[u64; N]> {
        debug_assert_eq!(N, section.payload);
        let mut last = None;
        let mut best: Option<u64> = None;
        let mut values = [0; N];
        for _ in 0..TRIES {
            let mut whole = 0;
            let checks = [0, section.copies - 1].map(|copy| {
                let check = section.copy(copy) + section.payload + 1;
                self.slot[check].load(Ordering::Acquire)
            });
            for copy in 0..section.copies {
                let mut scratch = [0; MOST_PAYLOAD];
                if let Some(seq) = self.copy(generation, section, copy, &mut scratch) {
                    whole += 1;
                    if best.is_none_or(|before| seq > before) {
                        best = Some(seq);
                        values.copy_from_slice(&scratch[..N]);
                    }
                }
            }
            // A copy that is not whole may be newer than the one that is: what was read before must not be
            // followed by something older. If no writer is at work it will not get better.
            if whole == section.copies || last.replace(checks) == Some(checks) {
                break;
            }
        }
        best.map(|_| values)
    }

    /// Makes it a free slot with nothing in it.
    pub(crate) fn clear(&self) {
        self.set_generation(0);
        fence(Ordering::Release);
        for word in &self.slot[1..] {
            word.store(0, Ordering::Relaxed);
        }
        let (word, bit) = self.bit();
        word.fetch_and(!bit, Ordering::SeqCst);
    }
}

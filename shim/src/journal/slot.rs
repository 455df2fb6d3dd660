//! One container's place in the journal, for those who change the kernel for it.

use super::layout;
use super::map::Map;
use super::record::{
    Counters, Deadline, Freeze, FreezerKind, HighMark, Identity, InFlight, PathText, Record, Step,
    StepFile, Swappiness, Terms, limit_word, text_to_words, version_word, word_limit, word_version,
};
use super::words::{Read, SlotWords};
use super::{Bell, JournalError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A slot, taken. Changes to the kernel are announced here before they are made:
/// `begin_step` … write, restore … `end_step`. A few atomic stores each; no system call but the one
/// that wakes a sleeping guardian, no allocation.
///
/// One thread at a time for each kind: a container's worker for steps and swappiness, its throttle for
/// freezes, its OOM policy for holds. Terms and counters take a lock.
#[derive(Debug)]
pub struct Slot {
    pub(super) map: Arc<Map>,
    pub(super) bell: Arc<Bell>,
    pub(super) index: usize,
    pub(super) generation: u64,
    pub(super) sections: Mutex<()>,
    pub(super) free: Arc<Mutex<Vec<usize>>>,
    pub(super) removed: AtomicBool,
}

impl Drop for Slot {
    /// A removed slot is free once nobody has it any more: a worker may still be at work for a container
    /// that was forgotten.
    fn drop(&mut self) {
        if self.removed.load(Ordering::SeqCst) {
            self.words().clear();
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
        }
    }
}

impl Slot {
    pub(super) fn set_released(&self) {
        self.words().set_released(self.generation);
    }

    fn words(&self) -> SlotWords<'_> {
        // An index out of the file has no slot made for it.
        SlotWords::new(self.map.words(), self.index)
            .unwrap_or_else(|| unreachable!("slot {} is in the file", self.index))
    }

    /// Which generation of the slot: another one is another container.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// A limit is about to be lowered.
    pub fn begin_step(&self, step: Step) {
        let file = match step.file {
            StepFile::Limit => 0,
            StepFile::High => 1,
        };
        let values = [file, limit_word(step.declared), step.written.0, step.deadline.0];
        self.words().begin(self.generation, layout::STEP, values);
        self.bell.ring(&self.map);
    }

    /// The declared limit stands again, or somebody else's does.
    pub fn end_step(&self) {
        self.words().end(layout::STEP);
    }

    /// Swappiness is about to be set to 0.
    pub fn begin_swappiness(&self, Swappiness { before, deadline }: Swappiness) {
        self.words().begin(self.generation, layout::SWAPPINESS, [before, deadline.0]);
        self.bell.ring(&self.map);
    }

    /// Swappiness is what it was.
    pub fn end_swappiness(&self) {
        self.words().end(layout::SWAPPINESS);
    }

    /// Tasks are about to be frozen. For longer than that: thaw and end this one first.
    pub fn begin_freeze(&self, freeze: Freeze) {
        let kind = match freeze.kind {
            FreezerKind::V1Child => 1,
            FreezerKind::V2 => 2,
            FreezerKind::UnifiedChild => 3,
        };
        self.words().begin(self.generation, layout::FREEZE, [kind, freeze.deadline.0]);
        self.bell.ring(&self.map);
    }

    /// They are thawed.
    pub fn end_freeze(&self) {
        self.words().end(layout::FREEZE);
    }

    /// The OOM killer is about to be held off, until `deadline` at the latest: once more, if it is.
    pub fn begin_hold(&self, deadline: Deadline) {
        self.words().begin(self.generation, layout::HOLD, [deadline.0]);
        self.bell.ring(&self.map);
    }

    /// With a hold, and before it: groups beneath the container with an inode up to this one are seen to, and whatever
    /// `oom_kill_disable` they have is not from us. Those that are made later have ours, which the kernel copies:
    /// inodes of cgroups only rise. `None`: they are too many to be known, and nobody is to touch them.
    pub fn see_to_beneath(&self, inode: Option<u64>) {
        let words = self.words();
        let seen = layout::BENEATH.map(|kind| words.in_flight::<1>(self.generation, kind));
        // Over the lower one: the higher stands until this is whole.
        let over = match seen {
            [Read::Whole([one]), Read::Whole([two])] => usize::from(two < one),
            [Read::Whole(_), _] => 1,
            _ => 0,
        };
        words.begin_quietly(self.generation, layout::BENEATH[over], [inode.unwrap_or(u64::MAX)]);
        // They are known again.
        if inode.is_some() && seen[1 - over] == Read::Whole([u64::MAX]) {
            words.end(layout::BENEATH[1 - over]);
        }
    }

    /// The OOM killer works again.
    pub fn end_hold(&self) {
        end_hold(&self.words());
    }

    /// A `memory.high` is about to be written that is to stay.
    pub fn begin_high(&self, HighMark { before, written, last }: HighMark) {
        let values = [before, written, last].map(limit_word);
        self.words().begin_quietly(self.generation, layout::HIGH, values);
    }

    /// What stood before us stands again, or somebody else's does.
    pub fn end_high(&self) {
        self.words().end(layout::HIGH);
    }

    /// What of ours stands now.
    pub fn in_flight(&self) -> InFlight {
        in_flight(&self.words(), self.generation)
    }

    /// What is there, but for a slot that was damaged from outside.
    pub fn record(&self) -> Option<Record> {
        record(&self.words(), self.generation)
    }

    /// New terms: before anything is done on account of them.
    pub fn update_terms(&self, terms: &Terms) {
        let _one = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        self.words().write(self.generation, layout::TERMS, &terms.to_words());
    }

    /// What was done: before anybody is told.
    pub fn update_counters(&self, counters: &Counters) {
        let _one = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        self.words().write(self.generation, layout::COUNTERS, &counters.to_words());
    }

    /// Changes some of the counters; the others are as they were.
    pub fn change_counters(&self, change: impl FnOnce(&mut Counters)) {
        let _one = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        let words = self.words();
        let mut counters = words
            .read(self.generation, layout::COUNTERS)
            .map_or_else(Counters::default, |words| Counters::from_words(&words));
        change(&mut counters);
        words.write(self.generation, layout::COUNTERS, &counters.to_words());
    }

    /// Where our group is in the freezer hierarchy whose tasks are frozen, relative to the mount point, and
    /// the inode of that directory. Not while anything is frozen.
    pub fn set_freezer_place(&self, path: &str, inode: u64) -> Result<(), JournalError> {
        let path = path.trim_matches('/');
        fits("freezer path", path, layout::MOST_PATH)?;
        let mut words = [0; layout::FREEZER.payload];
        words[0] = path.len() as u64;
        words[1] = inode;
        text_to_words(path, &mut words[2..]);
        let _one = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        self.words().write(self.generation, layout::FREEZER, &words);
        Ok(())
    }
}

/// The groups beneath mean nothing without the hold: it goes first.
pub(super) fn end_hold(words: &SlotWords<'_>) {
    words.end(layout::HOLD);
    for kind in layout::BENEATH {
        words.end(kind);
    }
}

pub(super) fn fits(what: &'static str, text: &str, most: usize) -> Result<(), JournalError> {
    if text.len() > most {
        return Err(JournalError::TooLong { what, len: text.len(), most });
    }
    Ok(())
}

pub(super) fn write_record(
    words: &SlotWords<'_>,
    generation: u64,
    record: &Record,
) -> Result<(), JournalError> {
    let Identity { id, path, version, inode, pid, start_time } = &record.identity;
    let path = path.trim_matches('/');
    fits("id", id, layout::MOST_ID)?;
    fits("path", path, layout::MOST_PATH)?;
    let mut identity = [0; layout::IDENTITY.payload];
    identity[0] = id.len() as u64 | (path.len() as u64) << 16 | version_word(*version) << 32;
    identity[1] = *inode;
    identity[2] = u64::from(pid.cast_unsigned());
    identity[3] = *start_time;
    text_to_words(id, &mut identity[6..22]);
    text_to_words(path, &mut identity[22..]);
    words.write(generation, layout::IDENTITY, &identity);
    words.write(generation, layout::TERMS, &record.terms.to_words());
    words.write(generation, layout::COUNTERS, &record.counters.to_words());
    Ok(())
}

/// Where a container's groups are: what is needed to undo, without allocating.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// In the memory hierarchy, relative to the mount point.
    pub path: PathText,
    /// The inode of that directory.
    pub inode: u64,
    /// Which interface its memory controller has.
    pub version: cgroupfs::memory::Version,
}

pub(super) fn place(words: &SlotWords<'_>, generation: u64) -> Option<Place> {
    let identity = words.read::<{ layout::IDENTITY.payload }>(generation, layout::IDENTITY)?;
    Some(Place {
        path: PathText::from_words(&identity[22..], (identity[0] >> 16 & 0xffff) as usize)?,
        inode: identity[1],
        version: word_version(identity[0] >> 32)?,
    })
}

/// Path and inode of our group in the freezer hierarchy; where nobody said, the path is that of the
/// container in the memory hierarchy, and there is no inode.
pub(super) fn freezer_place(
    words: &SlotWords<'_>,
    generation: u64,
) -> Option<(PathText, Option<u64>)> {
    match words.read::<{ layout::FREEZER.payload }>(generation, layout::FREEZER) {
        Some(place) => {
            let path = PathText::from_words(&place[2..], usize::try_from(place[0]).ok()?)?;
            Some((path, Some(place[1])))
        }
        None => Some((self::place(words, generation)?.path, None)),
    }
}

pub(super) fn record(words: &SlotWords<'_>, generation: u64) -> Option<Record> {
    let identity = words.read::<{ layout::IDENTITY.payload }>(generation, layout::IDENTITY)?;
    let place = place(words, generation)?;
    let id_len = (identity[0] & 0xffff) as usize;
    let id = PathText::from_words(&identity[6..22], id_len)?;
    let terms = words.read(generation, layout::TERMS)?;
    let counters = words.read(generation, layout::COUNTERS)?;
    Some(Record {
        identity: Identity {
            id: id.as_str().to_owned(),
            path: place.path.as_str().to_owned(),
            version: place.version,
            inode: place.inode,
            pid: u32::try_from(identity[2]).ok()?.cast_signed(),
            start_time: identity[3],
        },
        terms: Terms::from_words(&terms),
        counters: Counters::from_words(&counters),
    })
}

pub(super) fn in_flight(words: &SlotWords<'_>, generation: u64) -> InFlight {
    let mut found = InFlight::default();
    match words.in_flight(generation, layout::STEP) {
        Read::Clear => {}
        Read::Whole([file @ (0 | 1), declared, written, deadline]) => {
            found.step = Some(Step {
                file: if file == 0 { StepFile::Limit } else { StepFile::High },
                declared: word_limit(declared),
                written: cgroupfs::Bytes(written),
                deadline: Deadline(deadline),
            });
        }
        _ => found.damaged = true,
    }
    match words.in_flight(generation, layout::SWAPPINESS) {
        Read::Clear => {}
        Read::Whole([before, deadline]) => {
            found.swappiness = Some(Swappiness { before, deadline: Deadline(deadline) });
        }
        Read::Damaged => found.damaged = true,
    }
    match words.in_flight(generation, layout::FREEZE) {
        Read::Clear => {}
        Read::Whole([kind @ 1..=3, deadline]) => {
            found.freeze = Some(Freeze {
                kind: match kind {
                    1 => FreezerKind::V1Child,
                    2 => FreezerKind::V2,
                    _ => FreezerKind::UnifiedChild,
                },
                deadline: Deadline(deadline),
            });
        }
        _ => found.damaged = true,
    }
    match words.in_flight(generation, layout::HOLD) {
        Read::Clear => {}
        Read::Whole([deadline]) => found.hold = Some(Deadline(deadline)),
        Read::Damaged => found.damaged = true,
    }
    for kind in layout::BENEATH {
        // Of a damaged one nothing is known, and nothing done.
        if let Read::Whole([inode]) = words.in_flight(generation, kind) {
            found.beneath = found.beneath.max(Some(inode));
        }
    }
    match words.in_flight(generation, layout::HIGH) {
        Read::Clear => {}
        Read::Whole(values) => {
            let [before, written, last] = values.map(word_limit);
            found.high = Some(HighMark { before, written, last });
        }
        Read::Damaged => found.damaged = true,
    }
    found
}

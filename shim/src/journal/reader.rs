//! Looking at a journal without writing it: `cgctl stat`, exporters, the guardian, whoever restores.

use super::layout::{self, header};
use super::map::Map;
use super::record::{InFlight, PathText, Record};
use super::slot::{self, Place};
use super::words::SlotWords;
use super::{FILE, JournalError, Kind, io_error, kind};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// A journal, mapped read-only. Its writer goes on as if nobody looked.
#[derive(Debug)]
pub struct Reader {
    map: Map,
}

impl Reader {
    /// Maps the journal of a run directory.
    ///
    /// [`JournalError::Io`] where there is none, or none of this layout and boot.
    pub fn open(run_dir: &Path) -> Result<Reader, JournalError> {
        let path = run_dir.join(FILE);
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let (kind, slots) = kind(&file).map_err(io_error("read", &path))?;
        let refused =
            |why: String| io_error("read", &path)(io::Error::new(io::ErrorKind::InvalidData, why));
        match kind {
            Kind::Ours => {}
            Kind::OtherBoot => return Err(refused("it is of another boot".into())),
            Kind::OtherLayout(other) => {
                let ours = layout::LAYOUT;
                return Err(refused(format!("it has layout {other}, and this reads {ours}")));
            }
            Kind::Damaged(what) => return Err(refused(format!("it is damaged: {what}"))),
        }
        let map =
            Map::read_only(&file, layout::file_bytes(slots)).map_err(io_error("map", &path))?;
        Ok(Reader { map })
    }

    /// Every container in it whose record is whole, with what of ours stands for it now.
    pub fn records(&self) -> Vec<(Record, InFlight)> {
        self.view().slots().filter_map(|slot| Some((slot.record()?, slot.in_flight()))).collect()
    }

    /// The process that writes it, or was the last to.
    pub fn writer(&self) -> i32 {
        i32::try_from(self.map.words()[header::WRITER].load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(self.map.words())
    }
}

/// The slots of a mapped journal.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    words: &'a [AtomicU64],
}

impl<'a> View<'a> {
    pub(super) fn new(words: &'a [AtomicU64]) -> View<'a> {
        View { words }
    }

    fn used(&self) -> usize {
        // Whatever the header says, no more than there are.
        let most = (self.words.len() - layout::HEADER_WORDS) / layout::SLOT_WORDS;
        (self.words[header::USED].load(Ordering::Acquire) as usize).min(most)
    }

    /// The slots that are taken. Holes beyond those ever used are not touched.
    pub(crate) fn slots(self) -> impl Iterator<Item = SlotView<'a>> {
        (0..self.used()).filter_map(move |index| self.slot(index))
    }

    fn slot(&self, index: usize) -> Option<SlotView<'a>> {
        let words = SlotWords::new(self.words, index)?;
        let generation = words.generation();
        (generation != 0).then_some(SlotView { words, generation })
    }

    /// The slots with something in flight, by the header's bits.
    pub(crate) fn in_flight(self) -> impl Iterator<Item = SlotView<'a>> {
        self.words[header::IN_FLIGHT..layout::HEADER_WORDS]
            .iter()
            .enumerate()
            .filter_map(|(n, word)| match word.load(Ordering::SeqCst) {
                0 => None,
                bits => Some((n, bits)),
            })
            .flat_map(|(n, bits)| {
                (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| n * 64 + bit)
            })
            .filter_map(move |index| self.slot(index))
    }
}

/// A slot that is taken.
#[derive(Clone, Copy)]
pub(crate) struct SlotView<'a> {
    words: SlotWords<'a>,
    generation: u64,
}

impl SlotView<'_> {
    pub(crate) fn record(&self) -> Option<Record> {
        slot::record(&self.words, self.generation)
    }

    pub(crate) fn place(&self) -> Option<Place> {
        slot::place(&self.words, self.generation)
    }

    pub(crate) fn freezer_place(&self) -> Option<(PathText, Option<u64>)> {
        slot::freezer_place(&self.words, self.generation)
    }

    pub(crate) fn in_flight(&self) -> InFlight {
        slot::in_flight(&self.words, self.generation)
    }

    /// Whether it is still the container that it was.
    pub(crate) fn stands(&self) -> bool {
        self.words.generation() == self.generation
    }

    /// What was in flight is undone, but for a hold. Only for who has the journal after its writer's death.
    pub(crate) fn forget_in_flight(&self) {
        for kind in [layout::STEP, layout::SWAPPINESS, layout::FREEZE] {
            self.words.end(kind);
        }
    }

    /// A hold is undone, in the groups beneath too. Only for who has the journal after its writer's death.
    pub(crate) fn forget_hold(&self) {
        slot::end_hold(&self.words);
    }

    /// A `memory.high` of ours is undone. Only for who has the journal after its writer's death.
    pub(crate) fn forget_high(&self) {
        self.words.end(layout::HIGH);
    }

    /// The declared limit is another one now. Only for who has the journal after its writer's death.
    pub(crate) fn declare(&self, limit: cgroupfs::Limit) {
        if let Some(words) = self.words.read(self.generation, layout::TERMS) {
            let mut terms = super::Terms::from_words(&words);
            terms.declared = limit;
            self.words.write(self.generation, layout::TERMS, &terms.to_words());
        }
    }
}

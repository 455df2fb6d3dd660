//! The file in memory, as atomic words. The only `unsafe` of the journal.

use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

/// A mapped journal file. Holes in it cost nothing until they are touched.
#[derive(Debug)]
pub(crate) struct Map {
    raw: MmapRaw,
    words: usize,
}

impl Map {
    /// Maps `bytes` of `file` for reading and writing. The file must be that long.
    pub(crate) fn writable(file: &File, bytes: u64) -> io::Result<Map> {
        Map::new(bytes, |options| options.map_raw(file))
    }

    /// Maps `bytes` of `file` for reading.
    pub(crate) fn read_only(file: &File, bytes: u64) -> io::Result<Map> {
        Map::new(bytes, |options| options.map_raw_read_only(file))
    }

    fn new(bytes: u64, map: impl FnOnce(&MmapOptions) -> io::Result<MmapRaw>) -> io::Result<Map> {
        let len =
            usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let raw = map(MmapOptions::new().len(len))?;
        Ok(Map { words: len / 8, raw })
    }

    /// Leaves this mapping out of forked children, who make their own: what they lock or populate is then
    /// not the whole of a sparse file.
    pub(crate) fn leave_out_of_children(&self) -> io::Result<()> {
        self.raw.advise(Advice::DontFork)
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping starts at a page, is `words * 8` bytes long and lives as long as `self`. All
        // access to it, in every process, is by atomic words; on a read-only mapping only loads are made
        // (plain loads on every 64-bit machine).
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().cast::<AtomicU64>(), self.words) }
    }
}

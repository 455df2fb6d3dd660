//! Where what is in the file: in 64-bit words, so that every access is one atomic load or store.
//!
//! ```text
//! header (512 words, one page)
//!   0 magic   1 layout   2 words a slot   3 slots   4-5 boot id   6 check of 0-5
//!   8 slots ever used   9 next generation   10 guardian awake   11 pid of the writer
//!   256-511 a bit for each slot with something in flight
//! slot (384 words)
//!   0        generation, 0 for a free slot
//!   1        the generation once more when the container was released: nobody is to go on with it
//!   8-39     in flight: step, swappiness, freeze, hold, beneath, high; each a tag (its check, 0 for none) and values
//!   40-143   identity       144-227  place in the freezer hierarchy
//!   228-279  terms, two copies           280-383  counters, two copies
//! ```

/// "cgshim" and a number that no text has.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"cgshim\x01J");

/// This layout. A file of another one is moved aside, not read.
pub(crate) const LAYOUT: u64 = 1;

pub(crate) const HEADER_WORDS: usize = 512;
pub(crate) const SLOT_WORDS: usize = 384;

/// Most slots a file can have: the header has a bit for each.
pub(crate) const MOST_SLOTS: usize = 256 * 64;

/// Words of the header.
pub(crate) mod header {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const LAYOUT: usize = 1;
    pub(crate) const SLOT_WORDS: usize = 2;
    pub(crate) const SLOTS: usize = 3;
    pub(crate) const BOOT_ID: usize = 4;
    pub(crate) const CHECK: usize = 6;
    pub(crate) const USED: usize = 8;
    pub(crate) const NEXT_GENERATION: usize = 9;
    pub(crate) const AWAKE: usize = 10;
    pub(crate) const WRITER: usize = 11;
    pub(crate) const IN_FLIGHT: usize = 256;
}

/// Values that stand while a change of ours does: a tag and so many payload words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlightAt {
    pub(crate) at: usize,
    pub(crate) payload: usize,
}

pub(crate) const STEP: FlightAt = FlightAt { at: 8, payload: 4 };
pub(crate) const SWAPPINESS: FlightAt = FlightAt { at: 16, payload: 2 };
pub(crate) const FREEZE: FlightAt = FlightAt { at: 20, payload: 2 };
pub(crate) const HOLD: FlightAt = FlightAt { at: 28, payload: 1 };
/// With a hold: the groups beneath up to this inode are seen to. Two, of which the higher counts, so that one is whole
/// whenever the writer dies. Whoever does not know of it (it came after HOLD, which means the same without it) leaves
/// those groups alone.
pub(crate) const BENEATH: [FlightAt; 2] =
    [FlightAt { at: 30, payload: 1 }, FlightAt { at: 32, payload: 1 }];
/// Stands for as long as a container has a `memory.high` of ours: it has no deadline, and no bit in the
/// header, which would keep the guardian awake.
pub(crate) const HIGH: FlightAt = FlightAt { at: 34, payload: 3 };

/// A part of a slot with a sequence number and a check, in one or two copies: the writer overwrites the
/// older, so that the newer is whole whenever it dies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SectionAt {
    pub(crate) at: usize,
    pub(crate) payload: usize,
    pub(crate) copies: usize,
}

impl SectionAt {
    /// The word where copy `n` starts: sequence number, payload, check.
    pub(crate) const fn copy(self, n: usize) -> usize {
        self.at + n * (self.payload + 2)
    }
}

/// Longest container id and cgroup path, in bytes.
pub(crate) const MOST_ID: usize = 128;
pub(crate) const MOST_PATH: usize = 640;

pub(crate) const IDENTITY: SectionAt = SectionAt { at: 40, payload: 102, copies: 1 };
pub(crate) const FREEZER: SectionAt = SectionAt { at: 144, payload: 82, copies: 1 };
pub(crate) const TERMS: SectionAt = SectionAt { at: 228, payload: 24, copies: 2 };
pub(crate) const COUNTERS: SectionAt = SectionAt { at: 280, payload: 50, copies: 2 };

const _: () = assert!(BENEATH[1].at + 1 < HIGH.at && HOLD.at + 1 < BENEATH[0].at);
const _: () = assert!(COUNTERS.copy(2) == SLOT_WORDS);
const _: () = assert!(TERMS.copy(2) == COUNTERS.at);
const _: () = assert!(IDENTITY.copy(1) == FREEZER.at && FREEZER.copy(1) == TERMS.at);
const _: () = assert!(IDENTITY.payload * 8 == 48 + MOST_ID + MOST_PATH);
const _: () = assert!((HEADER_WORDS - header::IN_FLIGHT) * 64 == MOST_SLOTS);

/// The word where slot `index` starts.
pub(crate) const fn slot_at(index: usize) -> usize {
    HEADER_WORDS + index * SLOT_WORDS
}

/// Bytes of a file with so many slots.
pub(crate) const fn file_bytes(slots: usize) -> u64 {
    (slot_at(slots) * 8) as u64
}

/// A check over words. Each round is a bijection of the state (the finalizer of splitmix64), so a change
/// of any one word always changes the result; it is against accidents, not against forgers, who would
/// have to be root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check(u64);

impl Check {
    pub(crate) const fn new(index: usize, generation: u64, at: usize) -> Check {
        Check(MAGIC).word(LAYOUT << 48 | (at as u64) << 32 | index as u64).word(generation)
    }

    #[must_use]
    pub(crate) const fn word(self, word: u64) -> Check {
        let mut x = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Check(x ^ (x >> 31))
    }

    /// Never 0, which stands for nothing.
    pub(crate) const fn done(self) -> u64 {
        if self.0 == 0 { 1 } else { self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_change_of_one_word_changes_the_check(
            words: [u64; 8], at in 0usize..8, bit in 0u32..64, generation: u64,
        ) {
            let check = |words: &[u64]| {
                words.iter().fold(Check::new(3, generation, 8), |check, word| check.word(*word)).done()
            };
            let mut other = words;
            other[at] ^= 1 << bit;
            prop_assert_ne!(check(&words), check(&other));
        }
    }
}

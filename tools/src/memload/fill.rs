//! What is written into memory: pages that compress to about half, and cost little to make.
//!
//! Half of each page is random, half is as it was (zero in fresh memory). With zram or zswap as swap
//! a page therefore takes about 2 KiB, and no two pages are alike, so that neither zram's same-filled
//! test nor KSM makes them free. The random half is copied from a pool that fits into the L2 cache:
//! about 50 ns a page, a small part of the page fault that comes with it.

/// The step that pages are filled and touched in. On machines with larger pages each page is merely
/// filled in several steps.
pub(crate) const PAGE: usize = 4096;

const POOL: usize = 64 << 10;
const RANDOM: usize = PAGE / 2;

/// A seeded generator of page contents and of random positions (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Fill {
    pool: Vec<u8>,
    state: u64,
    stamp: u64,
}

impl Fill {
    /// A generator for this seed; equal seeds give equal contents.
    pub(crate) fn new(seed: u64) -> Fill {
        // Zero would stay zero; an odd multiplier spreads small seeds over all bits.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1);
        let mut fill = Fill { pool: vec![0; POOL], state, stamp: state };
        for at in (0..POOL).step_by(8) {
            let word = fill.random();
            fill.pool[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        fill
    }

    /// Fills whole pages.
    pub(crate) fn fill(&mut self, pages: &mut [u8]) {
        for page in pages.chunks_exact_mut(PAGE) {
            let from = self.below(POOL - RANDOM);
            page[..RANDOM].copy_from_slice(&self.pool[from..from + RANDOM]);
            self.mark(page);
        }
    }

    /// Makes pages that were filled before differ from all others again.
    pub(crate) fn stamp(&mut self, pages: &mut [u8]) {
        for page in pages.chunks_exact_mut(PAGE) {
            self.mark(page);
        }
    }

    fn mark(&mut self, page: &mut [u8]) {
        self.stamp = self.stamp.wrapping_add(1);
        page[..8].copy_from_slice(&self.stamp.to_ne_bytes());
    }

    /// A random number under `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // The high bits by multiplication: unbiased enough for positions, and no division.
        ((u128::from(self.random()) * bound as u128) >> 64) as usize
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn pages_differ_and_half_of_each_is_random() {
        let mut fill = Fill::new(1);
        let mut pages = vec![0; 1000 * PAGE];
        fill.fill(&mut pages);
        let distinct: HashSet<&[u8]> = pages.chunks(PAGE).collect();
        assert_eq!(distinct.len(), 1000);
        for page in pages.chunks(PAGE) {
            assert!(page[RANDOM..].iter().all(|byte| *byte == 0));
            let values: HashSet<u8> = page[..RANDOM].iter().copied().collect();
            assert!(values.len() > 200, "{} byte values in 2 KiB", values.len());
        }
    }

    #[test]
    fn a_seed_decides_everything() {
        let page = |seed| {
            let mut page = vec![0; PAGE];
            Fill::new(seed).fill(&mut page);
            page
        };
        assert_eq!(page(7), page(7));
        assert_ne!(page(7), page(8));
        assert_ne!(page(0), page(u64::MAX));
    }

    #[test]
    fn below_stays_below() {
        let mut fill = Fill::new(3);
        let seen: HashSet<usize> = (0..1000).map(|_| fill.below(10)).collect();
        assert_eq!(seen.len(), 10);
        assert!(seen.iter().all(|n| *n < 10));
    }
}

//! The live set of the loads that grow: never more than a given size.

use std::hint::black_box;

/// Up to `capacity` chunks, the oldest dropped to make room for the next. All of its memory is
/// allocated and touched at the start.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    slots: Vec<Option<T>>,
    oldest: usize,
}

impl<T> Ring<T> {
    /// A ring for as many whole chunks as fit into `size`, one at least.
    pub(crate) fn new(size: u64, chunk: u64) -> Ring<T> {
        let capacity = usize::try_from(size / chunk).unwrap_or(usize::MAX).max(1);
        // The compiler must not know that it writes zeros, or it takes untouched memory for them.
        Ring { slots: (0..capacity).map(|_| black_box(None)).collect(), oldest: 0 }
    }

    /// Drops the oldest chunk if the ring is full. To be called before the next chunk is made, so
    /// that what is live never exceeds the size, not even for an instant.
    pub(crate) fn make_room(&mut self) {
        self.slots[self.oldest] = None;
    }

    /// Adds a chunk, for which [`Ring::make_room`] has made room.
    pub(crate) fn push(&mut self, chunk: T) {
        self.slots[self.oldest] = Some(chunk);
        self.oldest = (self.oldest + 1) % self.slots.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    struct Counted<'a>(&'a Cell<u64>, u64);

    impl<'a> Counted<'a> {
        fn new(live: &'a Cell<u64>, bytes: u64) -> Counted<'a> {
            live.set(live.get() + bytes);
            Counted(live, bytes)
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - self.1);
        }
    }

    proptest! {
        #[test]
        fn what_is_live_never_exceeds_the_size(size in 1u64..500, chunk in 1u64..50, turns in 0..200) {
            prop_assume!(size >= chunk);
            let live = Cell::new(0);
            let mut ring = Ring::new(size, chunk);
            let mut most = 0;
            for turn in 0..turns {
                ring.make_room();
                // Every seventh fails to be made: the ring goes on.
                if turn % 7 != 3 {
                    ring.push(Counted::new(&live, chunk));
                }
                prop_assert!(live.get() <= size);
                most = most.max(live.get());
            }
            if turns > 120 && size < 50 * chunk {
                prop_assert_eq!(most, size / chunk * chunk, "the whole size is used");
            }
        }
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut ring = Ring::new(3, 1);
        for n in 0..5 {
            ring.make_room();
            ring.push(n);
        }
        let mut left: Vec<i32> = ring.slots.iter().flatten().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [2, 3, 4]);
    }
}

//! What a limit must never be lowered under (law 2).

use super::event::Survey;
use cgroupfs::Bytes;

/// Room above what cannot be reclaimed. In the window between a lower and its restore the group meets a
/// hard limit: growth in it means direct reclaim, then an OOM kill. Measured on 6.18 with a fast grower:
/// with 32 MiB 35,000 steps killed nothing and it kept 75 % of its speed (8 MiB: 40 %); held 8 MiB above
/// usage it was killed.
pub const GROWTH_MARGIN: Bytes = Bytes::mib(32);

/// How long a window may last at worst: a worker preempted by CPU hogs at normal priority took up to
/// 20 ms for one lower and restore (measured on 6.18).
pub const WORST_WINDOW_MS: u64 = 20;

/// What the kernel could and could not take from a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Cannot be taken: anonymous and shmem pages without swap room, mlocked pages, kernel memory,
    /// pages waiting for the disk.
    pub unreclaimable: Bytes,
    /// Clean page cache.
    pub clean_file: Bytes,
    /// Dirty page cache, and what is being written.
    pub dirty_file: Bytes,
    /// Anonymous and shmem pages that there is swap for.
    pub swappable: Bytes,
    /// No limit may be written under this: unreclaimable + margin.
    pub floor: Bytes,
}

impl Floor {
    /// From a survey, for a group whose unreclaimable memory grows by `growth` bytes a second.
    ///
    /// `others` is what is charged but on no LRU list: kernel memory, and the per-CPU stock.
    pub fn of(survey: &Survey, growth: u64) -> Floor {
        let stat = &survey.stat;
        let or_zero = |value: Option<Bytes>| value.unwrap_or_default();
        let anon_lru = match (stat.inactive_anon, stat.active_anon) {
            (None, None) => or_zero(stat.anon).saturating_add(or_zero(stat.shmem)),
            (inactive, active) => or_zero(inactive).saturating_add(or_zero(active)),
        };
        let file_lru = or_zero(stat.inactive_file).saturating_add(or_zero(stat.active_file));
        let unevictable = or_zero(stat.unevictable);
        let swap_room = if survey.swap.swaps_at_limit {
            survey.swap.room.bytes().unwrap_or(Bytes(u64::MAX)).min(survey.host_swap_free)
        } else {
            Bytes(0)
        };
        let swappable = anon_lru.min(swap_room);
        let dirty_file = or_zero(stat.dirty).saturating_add(or_zero(stat.writeback)).min(file_lru);
        let clean_file = file_lru.saturating_sub(dirty_file);
        let unreclaimable = survey.usage.saturating_sub(swappable.saturating_add(clean_file)).max(
            // The statistics lag behind usage: what they do show counts in any case.
            unevictable.saturating_add(anon_lru.saturating_sub(swappable)),
        );
        let window = Bytes(growth / 1000 * WORST_WINDOW_MS);
        let floor = unreclaimable.saturating_add(GROWTH_MARGIN.max(window));
        Floor { unreclaimable, clean_file, dirty_file, swappable, floor }
    }

    /// What could be taken at once.
    pub fn reclaimable(&self) -> Bytes {
        self.clean_file.saturating_add(self.swappable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::survey;
    use proptest::prelude::*;

    #[test]
    fn anon_counts_as_reclaimable_only_as_far_as_there_is_swap() {
        let mut look = survey(200, 150, 50);
        look.host_swap_free = Bytes(0);
        let floor = Floor::of(&look, 0);
        assert_eq!(floor.unreclaimable, Bytes::mib(150));
        assert_eq!(floor.floor, Bytes::mib(182));
        look.host_swap_free = Bytes::mib(100);
        assert_eq!(Floor::of(&look, 0).unreclaimable, Bytes::mib(50));
        look.swap.swaps_at_limit = false;
        assert_eq!(Floor::of(&look, 0).unreclaimable, Bytes::mib(150));
    }

    #[test]
    fn dirty_mlocked_and_kernel_memory_cannot_be_taken() {
        let mut look = survey(200, 0, 150);
        look.stat.dirty = Some(Bytes::mib(60));
        look.stat.writeback = Some(Bytes::mib(10));
        let floor = Floor::of(&look, 0);
        // 50 MiB of kernel memory, 70 of dirty pages.
        assert_eq!(floor.unreclaimable, Bytes::mib(120));
        assert_eq!(floor.clean_file, Bytes::mib(80));
        look.usage = Bytes::mib(100);
        look.stat.unevictable = Some(Bytes::mib(90));
        assert!(Floor::of(&look, 0).unreclaimable >= Bytes::mib(90));
    }

    #[test]
    fn the_margin_covers_growth_in_the_longest_window() {
        let look = survey(200, 0, 200);
        assert_eq!(Floor::of(&look, 0).floor, GROWTH_MARGIN);
        let fast = 4 << 30;
        assert_eq!(Floor::of(&look, fast).floor, Bytes(fast / 1000 * WORST_WINDOW_MS));
    }

    proptest! {
        #[test]
        fn a_floor_is_never_under_what_cannot_be_reclaimed(
            usage: u64, anon: u64, file: u64, dirty: u64, unevictable: u64, swap: u64, rate: u64,
        ) {
            let mut look = survey(0, 0, 0);
            look.usage = Bytes(usage);
            look.stat.active_anon = Some(Bytes(anon));
            look.stat.active_file = Some(Bytes(file));
            look.stat.dirty = Some(Bytes(dirty));
            look.stat.unevictable = Some(Bytes(unevictable));
            look.host_swap_free = Bytes(swap);
            let floor = Floor::of(&look, rate);
            prop_assert!(floor.floor >= floor.unreclaimable.saturating_add(GROWTH_MARGIN));
            prop_assert!(floor.unreclaimable >= Bytes(unevictable));
        }
    }
}

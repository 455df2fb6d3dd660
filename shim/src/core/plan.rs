//! What one round does: how much, by which means, down to where; or why it lets the group be.

use super::event::{Capabilities, Strategy, Survey};
use super::floor::Floor;
use cgroupfs::Bytes;

/// A round that would free less is not worth a write.
pub const LEAST: Bytes = Bytes::kib(512);

/// Largest step. A step can be cancelled between 32-page passes, so this bounds how far usage is from
/// what was last looked at rather than the time a write takes.
pub const STEP: Bytes = Bytes::mib(4);

/// Largest step where nearly all is clean page cache (measured on 6.18: 187 MiB in 1.5 ms). Each step opens a
/// window in which charges fail, so there the fewer the better: a stream of 1.5 GB/s saw 4 % of the
/// `failcnt` it has without us with steps of 4 MiB.
pub const CHEAP_STEP: Bytes = Bytes::mib(64);

/// Why reclaim would do harm now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StandAside {
    /// Most of what is cached waits for the disk. Reclaim then waits for writeback, with locks that the
    /// container's own allocations need (measured on 6.18: every strategy tried cut `failcnt` and made
    /// the 99.9th percentile worse, 4 → 11–39 ms).
    Dirty,
    /// What is left cannot be reclaimed.
    NothingToTake,
    /// What would be reclaimed is in use: it was read back as fast as it was taken.
    InUse,
    /// The group grows faster than it can be reclaimed from outside. Two that reclaim at once are then
    /// in each other's way: every page swapped out of an address space that is active on another CPU
    /// costs an interrupt there (measured on 6.18, 2 virtual CPUs, cold anon at memset speed over zram:
    /// 8 µs a page alone, 20 µs beside it, and 0.55 × of the work done).
    Overrun,
}

impl StandAside {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            StandAside::Dirty => "most of the page cache is dirty",
            StandAside::NothingToTake => "what is left cannot be reclaimed",
            StandAside::InUse => "what would be reclaimed is in use",
            StandAside::Overrun => "it grows faster than it can be reclaimed from outside",
        }
    }
}

/// A decision about one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Take memory.
    Reclaim {
        /// By which means.
        strategy: Strategy,
        /// Down to here.
        target: Bytes,
        /// No limit under this.
        floor: Bytes,
        /// So much at a time.
        step: Bytes,
        /// See [`super::Job::cheap`].
        cheap: bool,
        /// With the group's swappiness at 0.
        no_swap: bool,
    },
    /// Let it be.
    Aside(StandAside),
}

/// Plans a round that brings usage from the survey's to `target`. `growth` is how fast what cannot be
/// reclaimed grows, in bytes a second.
pub fn plan(survey: &Survey, target: Bytes, growth: u64, can: Capabilities) -> Plan {
    let floor = Floor::of(survey, growth);
    let file = floor.clean_file.saturating_add(floor.dirty_file);
    let mostly_dirty = floor.dirty_file >= Bytes::mib(4)
        && floor.dirty_file.0 >= file.0 / 2
        && floor.dirty_file.0 >= floor.swappable.0 / 4;
    if mostly_dirty {
        return Plan::Aside(StandAside::Dirty);
    }
    let want = survey.usage.saturating_sub(target).min(floor.reclaimable());
    if want < LEAST {
        return Plan::Aside(StandAside::NothingToTake);
    }
    let target = survey.usage.saturating_sub(want);
    let no_swap = survey.must_not_swap();
    let cheap =
        floor.clean_file.0 >= want.0.saturating_mul(2) && floor.clean_file >= floor.swappable;
    let reclaim = |strategy, target| Plan::Reclaim {
        strategy,
        target,
        floor: floor.floor,
        step: match strategy {
            // Tasks over memory.high sleep: 64 f² s a batch, nothing up to f = 1.25 %.
            Strategy::HighStep => STEP.min(survey.usage.scale(1, 100)),
            _ if cheap => want.clamp(STEP, CHEAP_STEP),
            _ => STEP,
        },
        cheap,
        no_swap,
    };
    if can.memory_reclaim {
        return reclaim(Strategy::MemoryReclaim, target);
    }
    // With a limit in the way, as far as the floor allows; a quarter of what is wanted is worth it.
    let stepped = target.max(floor.floor);
    let worth = survey.usage.saturating_sub(stepped).0 >= (want.0 / 4).max(LEAST.0);
    if worth && can.limit_step {
        return reclaim(Strategy::LimitStep, stepped);
    }
    if worth && can.high_step {
        return reclaim(Strategy::HighStep, stepped);
    }
    if can.force_empty {
        return reclaim(Strategy::ForceEmpty, target);
    }
    Plan::Aside(StandAside::NothingToTake)
}

/// Above a high that is emulated dirty page cache is written back and taken, as the container's own threads would at a
/// limit: a reclaim write has the kernel start writeback, and waits for it. Without a window, and as far as `target`.
pub fn write_back(survey: &Survey, target: Bytes) -> Plan {
    let floor = Floor::of(survey, 0);
    Plan::Reclaim {
        strategy: Strategy::ForceEmpty,
        target,
        floor: floor.floor,
        step: STEP,
        cheap: false,
        no_swap: survey.must_not_swap(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Strategy;
    use crate::core::testing::{V1, V2, survey};
    use proptest::prelude::*;

    fn strategy(plan: Plan) -> Option<Strategy> {
        match plan {
            Plan::Reclaim { strategy, .. } => Some(strategy),
            Plan::Aside(_) => None,
        }
    }

    #[test]
    fn v1_steps_the_limit_and_v2_asks_for_bytes() {
        let look = survey(240, 200, 40);
        let target = Bytes::mib(220);
        assert_eq!(strategy(plan(&look, target, 0, V1)), Some(Strategy::LimitStep));
        assert_eq!(strategy(plan(&look, target, 0, V2)), Some(Strategy::MemoryReclaim));
        let old_v2 = Capabilities { memory_reclaim: false, ..V2 };
        assert_eq!(strategy(plan(&look, target, 0, old_v2)), Some(Strategy::HighStep));
    }

    #[test]
    fn where_a_window_would_be_unsafe_force_empty_takes_the_cache() {
        // 100 MiB of anon that nothing can take, 20 of cache: a limit at 112 MiB would be too close.
        let mut look = survey(120, 100, 20);
        look.host_swap_free = Bytes(0);
        let chosen = plan(&look, Bytes::mib(112), 0, V1);
        assert_eq!(strategy(chosen), Some(Strategy::ForceEmpty));
    }

    #[test]
    fn dirty_cache_is_left_to_the_disk() {
        let mut look = survey(240, 10, 220);
        look.stat.dirty = Some(Bytes::mib(150));
        assert_eq!(plan(&look, Bytes::mib(200), 0, V1), Plan::Aside(StandAside::Dirty));
        // A little dirt does not matter.
        look.stat.dirty = Some(Bytes::mib(50));
        assert_eq!(strategy(plan(&look, Bytes::mib(200), 0, V1)), Some(Strategy::LimitStep));
    }

    #[test]
    fn nothing_to_take_is_let_be() {
        let mut look = survey(240, 240, 0);
        look.host_swap_free = Bytes(0);
        assert_eq!(plan(&look, Bytes::mib(200), 0, V1), Plan::Aside(StandAside::NothingToTake));
    }

    #[test]
    fn a_group_that_the_kernel_would_not_swap_is_not_swapped() {
        let mut look = survey(240, 120, 120);
        look.swap.swaps_at_limit = false;
        let Plan::Reclaim { no_swap, .. } = plan(&look, Bytes::mib(200), 0, V1) else {
            panic!("there is cache to take");
        };
        assert!(no_swap);
        // Swappiness is 0 already: nothing to guard against.
        look.swap.reclaim_may_swap = false;
        let Plan::Reclaim { no_swap, .. } = plan(&look, Bytes::mib(200), 0, V1) else {
            panic!("there is cache to take");
        };
        assert!(!no_swap);
    }

    proptest! {
        #[test]
        fn a_limit_is_never_stepped_under_the_floor(
            usage in 0u64..2000, anon in 0u64..2000, file in 0u64..2000, dirty in 0u64..2000,
            target in 0u64..2000, rate: u64, swap in 0u64..2000, swaps: bool,
        ) {
            let mut look = survey(usage, anon, file);
            look.stat.dirty = Some(Bytes::mib(dirty));
            look.host_swap_free = Bytes::mib(swap);
            look.swap.swaps_at_limit = swaps;
            if let Plan::Reclaim { strategy: Strategy::LimitStep | Strategy::HighStep, target, floor, .. } =
                plan(&look, Bytes::mib(target), rate, V1)
            {
                let least = Floor::of(&look, rate);
                prop_assert!(target >= floor);
                prop_assert_eq!(floor, least.floor);
                prop_assert!(target < look.usage);
            }
        }
    }
}

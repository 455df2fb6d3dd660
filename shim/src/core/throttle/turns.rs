//! How much of a round a window grants, where growers sleep for long.
//!
//! The kernel lets each task sleep on its own account. Their sleeps differ a little, so that tasks which started
//! together soon charge one after the other, each at its own time. A pulse freezes all of them together: granted a
//! charge each between two pulses they would grow in steps of a round, which is 1.6 % of 64 MiB with four of them, and
//! 12.5 % in huge pages. So where a round is a step to be seen and sleeps are long, a window grants a part of it, and the
//! pulse after it is as much shorter.
//!
//! ```text
//! the kernel, 4 tasks       ours, a round at once      ours, one charge at a time
//!               ┌──                      ┌────                     ┌──
//!            ┌──┘                        │                      ┌──┘
//!         ┌──┘                           │                   ┌──┘
//!      ┌──┘                              │                ┌──┘
//!   ───┘                        ─────────┘             ───┘
//! ```
//!
//! While one has its turn, the others have not slept off theirs: between turns a part of a round's debt stands open
//! ([`Turns::open`]). Without it, tasks that start together, and owe for a charge each, would sleep that off to the last
//! before the first of them has its turn again, and stay behind the kernel's curve by half a round.

use super::curve::LONGEST;
use cgroupfs::Bytes;
use cgroupfs::units::page_size;
use std::time::Duration;

/// A round of less than this part of high is granted at once: nobody sees the step.
const SEEN: u64 = 256;

/// No window grants so little that the pulse after it would be shorter than this.
const SHORTEST: Duration = Duration::from_millis(200);

/// Turns of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turns {
    growers: u64,
    granted: u64,
    sleep: Duration,
}

impl Turns {
    /// Of so many growers that charge `unit` pages at once, each of which costs `sleep`, above this high.
    pub(super) fn new(growers: u64, unit: u64, sleep: Duration, high: Bytes) -> Turns {
        let growers = growers.max(1);
        let unseen = high.0 / SEEN / (unit.max(1) * page_size());
        let long = (growers as f64 * SHORTEST.as_secs_f64() / sleep.as_secs_f64().max(1e-9)).ceil();
        let granted = unseen.max(long as u64).clamp(1, growers);
        Turns { growers, granted, sleep: sleep.min(LONGEST) }
    }

    /// Charges that are granted between two pulses.
    pub(super) const fn granted(&self) -> u64 {
        self.granted
    }

    /// What a window of this length takes off the debt: for those whose turn it is not it is sleep.
    pub(super) fn slept(&self, window: Duration) -> Duration {
        window.mul_f64((self.growers - self.granted) as f64 / self.growers as f64)
    }

    /// The debt that those who had their turn before have not slept off when it is the next one's.
    pub(super) fn open(&self) -> Duration {
        self.sleep.mul_f64((self.growers - self.granted) as f64 / (2 * self.growers) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_grower_has_every_turn_and_owes_nothing_in_between() {
        let turns = Turns::new(1, 512, LONGEST, Bytes::mib(64));
        assert_eq!((turns.granted(), turns.open()), (1, Duration::ZERO));
        assert_eq!(turns.slept(MS), Duration::ZERO);
    }

    #[test]
    fn a_round_that_is_a_step_to_be_seen_is_granted_in_parts_as_soon_as_sleeps_are_long() {
        let granted = |high, sleep| Turns::new(4, 64, sleep, Bytes::mib(high)).granted();
        assert_eq!([100, 200, 300, 400, 800].map(|ms| granted(64, MS * ms)), [4, 4, 3, 2, 1]);
        assert_eq!([64, 128, 256, 1024].map(|high| granted(high, LONGEST)), [1, 2, 4, 4]);
        let huge = |high| Turns::new(4, 512, LONGEST, Bytes::mib(high)).granted();
        assert_eq!([64, 256, 1024, 4096].map(huge), [1, 1, 2, 4]);
    }

    #[test]
    fn in_turns_one_by_one_half_of_what_the_others_owe_stands_open() {
        let turns = Turns::new(4, 64, LONGEST, Bytes::mib(64));
        assert_eq!((turns.open(), turns.slept(MS * 4)), (MS * 750, MS * 3));
        assert_eq!(Turns::new(4, 64, LONGEST, Bytes::mib(1024)).open(), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn pulses_are_long_enough_and_what_stands_open_is_less_than_a_charge_costs(
            growers: u64, unit in prop::sample::select(&[32u64, 64, 512]), ms in 0u64..4000, high: u64,
        ) {
            let (growers, sleep) = (growers % 1000, MS * ms as u32);
            let turns = Turns::new(growers, unit, sleep, Bytes(high));
            let growers = growers.max(1);
            prop_assert!(turns.granted() >= 1 && turns.granted() <= growers);
            prop_assert!(turns.open() <= sleep.min(LONGEST) / 2);
            let pulse = sleep.mul_f64(turns.granted() as f64 / growers as f64);
            prop_assert!(pulse + MS / 1000 >= SHORTEST.min(sleep));
        }
    }
}

//! What is still to be slept, by each of the growers.
//!
//! The kernel lets each task sleep on its own account. Where what a charge costs still rises, their sleeps differ, so
//! that tasks which started together soon charge one after the other; once it costs 2 s whatever usage is, they stay as
//! they are: in step, where they came there together (huge pages above a small high; native 6.1: 8 MiB every two
//! seconds). So there is a clock for each of them here. A pulse ends when the first has slept enough, and the window
//! after it grants a charge for each that has:
//!
//! ```text
//! the kernel, and ours, 4 tasks             in step
//!               ┌──                              ┌────
//!            ┌──┘                                │
//!         ┌──┘                                   │
//!      ┌──┘                                      │
//!   ───┘                                 ────────┘
//! ```
//!
//! A clock is no task's own: a pulse freezes them all together, and who charges in a window is up to the scheduler. Where
//! nobody would see the steps, or sleeps are short, a clock is that of several growers; of one only it is all that is owed.

use super::curve::{IGNORED, LONGEST};
use cgroupfs::Bytes;
use cgroupfs::units::page_size;
use std::time::Duration;

/// A round of less than this part of high is granted at once: nobody sees the step.
const SEEN: u64 = 256;

/// Clocks are so few that pulses would be no shorter than this, if they were evenly apart.
const SHORTEST: Duration = Duration::from_millis(200);

/// So many rounds of charges in one window, or more, are everybody's alike.
const ROUNDS: f64 = 16.0;

/// How many clocks there are, and for how many growers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turns {
    growers: u64,
    /// How many growers one clock is for.
    together: u64,
    /// What a charge costs.
    sleep: Duration,
}

impl Turns {
    /// Of so many growers that charge `unit` pages at once, each of which costs `sleep`, above this high.
    pub(super) fn new(growers: u64, unit: u64, sleep: Duration, high: Bytes) -> Turns {
        let growers = growers.max(1);
        let unseen = high.0 / SEEN / (unit.max(1) * page_size());
        let long = (growers as f64 * SHORTEST.as_secs_f64() / sleep.as_secs_f64().max(1e-9)).ceil();
        Turns { growers, together: unseen.max(long as u64).clamp(1, growers), sleep }
    }

    fn clocks(&self) -> usize {
        self.growers.div_ceil(self.together) as usize
    }
}

/// The clocks.
#[derive(Debug, Clone)]
pub(super) struct Sleeps {
    turns: Turns,
    /// Seconds that each has left. Less than 0: it is to have its next charge before it owes more.
    left: Vec<f64>,
}

impl Default for Sleeps {
    fn default() -> Sleeps {
        let turns = Turns { growers: 1, together: 1, sleep: Duration::ZERO };
        Sleeps { turns, left: vec![0.0] }
    }
}

impl Sleeps {
    /// From here on there are so many. Of those that are no more some did not grow, as it turns out, and were to sleep for
    /// `unpaid` in all: the others are, each for its part, and for no longer than the kernel has a call sleep.
    pub(super) fn take_turns(&mut self, turns: Turns, unpaid: Duration) {
        self.turns = turns;
        let clocks = turns.clocks();
        let part = unpaid.div_f64(turns.growers as f64).min(LONGEST);
        let mean = self.mean() + part.as_secs_f64();
        match self.left.len() {
            // Those who had one together have drawn apart by now.
            1 if mean > 0.0 && clocks > 1 => {
                let part = |n: usize| (n as f64 + 0.5) / clocks as f64 - 0.5;
                let sleep = turns.sleep.as_secs_f64();
                self.left = (0..clocks).map(|n| mean + sleep * part(n)).collect();
            }
            _ => {
                while self.left.len() > clocks {
                    // Who did not grow has slept enough.
                    let gone = if part > Duration::ZERO { 0.0 } else { mean };
                    let off = |n: &usize| (self.left[*n] - gone).abs();
                    let usual = (0..self.left.len()).min_by(|a, b| off(a).total_cmp(&off(b)));
                    self.left.swap_remove(usual.unwrap_or(0));
                }
                self.left.resize(clocks, mean);
                let now = self.mean();
                let owes = now > 0.0 && self.left.iter().all(|left| *left >= 0.0);
                match part > Duration::ZERO && owes {
                    // By those that have charged.
                    true => self.left.iter_mut().for_each(|left| *left *= mean / now),
                    false => self.left.iter_mut().for_each(|left| *left += mean - now),
                }
            }
        }
    }

    fn mean(&self) -> f64 {
        self.left.iter().sum::<f64>() / self.left.len().max(1) as f64
    }

    fn first(&self) -> f64 {
        self.left.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// A window is over in which they made so many charges in all. Each is to sleep for so long on the average, more or
    /// less as `costs` have it: of the first charge, and so on, to the last. Who has slept longest has charged first.
    pub(super) fn charged(&mut self, charges: f64, each: Duration, costs: &[Duration]) {
        let (each, clocks) = (each.as_secs_f64(), self.left.len() as f64);
        let charges = charges * clocks / self.turns.growers as f64;
        if charges >= ROUNDS * clocks {
            self.left.iter_mut().for_each(|left| *left += each);
            return;
        }
        // What is owed up to this part of all charges, if the costs are known.
        let sum: f64 = costs.iter().map(Duration::as_secs_f64).sum();
        let up_to = |part: f64| {
            let at = (part * costs.len() as f64).clamp(0.0, costs.len() as f64);
            let (whole, rest) = costs.split_at(at as usize);
            let begun = rest.first().map_or(0.0, |cost| cost.as_secs_f64() * at.fract());
            whole.iter().map(Duration::as_secs_f64).sum::<f64>() + begun
        };
        // The last of them may have been begun only.
        for n in 0..charges.ceil() as usize {
            let (from, to) = (n as f64 / charges, ((n + 1) as f64 / charges).min(1.0));
            let part = if sum > 0.0 { (up_to(to) - up_to(from)) / sum } else { to - from };
            if let Some(left) = self.left.iter_mut().min_by(|a, b| a.total_cmp(b)) {
                *left += each * clocks * part;
            }
        }
    }

    /// They were frozen for so long.
    pub(super) fn frozen(&mut self, time: Duration) {
        self.pass(time, 0.0);
    }

    /// A window was so long: who was not granted a charge in it has slept on.
    pub(super) fn slept_on(&mut self, window: Duration) {
        let granted = IGNORED.as_secs_f64();
        if self.first() <= granted {
            self.pass(window, granted);
        }
    }

    fn pass(&mut self, time: Duration, above: f64) {
        for left in self.left.iter_mut().filter(|left| **left > above) {
            *left = (*left - time.as_secs_f64()).max(0.0);
        }
    }

    /// Nothing is owed any more.
    pub(super) fn clear(&mut self) {
        self.left.fill(0.0);
    }

    /// Until the first of them has slept enough.
    pub(super) fn due(&self) -> Duration {
        Duration::from_secs_f64(self.first().clamp(0.0, 1e6))
    }

    /// Charges to be granted after a pulse of this length.
    pub(super) fn granted(&self, pulse: Duration) -> u64 {
        let awake = (pulse + IGNORED).as_secs_f64();
        let clocks = self.left.iter().filter(|left| **left <= awake).count() as u64;
        (clocks * self.turns.together).min(self.turns.growers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn of(growers: u64) -> Sleeps {
        let mut sleeps = Sleeps::default();
        sleeps.take_turns(Turns::new(growers, 512, LONGEST, Bytes::mib(64)), Duration::ZERO);
        sleeps
    }

    fn close(due: Duration, want: Duration) -> bool {
        due.abs_diff(want) < MS
    }

    /// What is granted in windows of a millisecond at which times, until then, if all of it is used and costs `LONGEST`.
    fn granted(sleeps: &mut Sleeps, until: Duration) -> Vec<(u128, u64)> {
        let (mut now, mut seen) = (Duration::ZERO, Vec::new());
        while now < until {
            let due = sleeps.due();
            sleeps.frozen(due);
            now += due;
            let charges = sleeps.granted(Duration::ZERO);
            seen.push((now.as_millis(), charges));
            sleeps.slept_on(MS);
            now += MS;
            let each = LONGEST.mul_f64(charges as f64 / sleeps.turns.growers as f64);
            sleeps.charged(charges as f64, each, &[LONGEST]);
        }
        seen
    }

    #[test]
    fn steps_that_are_seen_are_taken_one_by_one_as_soon_as_sleeps_are_long() {
        let together = |high, sleep| Turns::new(4, 64, sleep, Bytes::mib(high)).together;
        assert_eq!([100, 200, 300, 400, 800].map(|ms| together(64, MS * ms)), [4, 4, 3, 2, 1]);
        assert_eq!([64, 128, 256, 1024].map(|high| together(high, LONGEST)), [1, 2, 4, 4]);
        let huge = |high| Turns::new(4, 512, LONGEST, Bytes::mib(high)).together;
        assert_eq!([64, 256, 1024, 4096].map(huge), [1, 1, 2, 4]);
    }

    #[test]
    fn who_starts_together_stays_in_step_where_sleeps_are_alike() {
        let mut sleeps = of(4);
        assert_eq!((sleeps.due(), sleeps.granted(Duration::ZERO)), (Duration::ZERO, 4));
        let seen = granted(&mut sleeps, 5 * LONGEST);
        assert!(seen.iter().all(|(_, charges)| *charges == 4), "{seen:?}");
        assert_eq!(seen.len(), 6, "{seen:?}");
    }

    #[test]
    fn who_slept_for_less_has_its_turn_at_its_own_time() {
        let mut sleeps = of(4);
        // Four charges, of which the first came next to high.
        let costs = [60 * MS, 900 * MS, 2000 * MS, 2000 * MS];
        sleeps.charged(4.0, 1240 * MS, &costs);
        let seen = granted(&mut sleeps, 5 * LONGEST / 2);
        let of =
            [(60, 1), (900, 1), (2000, 2), (2061, 1), (2901, 1), (4001, 2), (4062, 1), (4902, 1)];
        assert!(seen.len() >= of.len(), "{seen:?}");
        for ((at, charges), (want, of)) in seen.into_iter().zip(of) {
            assert!(at.abs_diff(want) <= 2 && charges == of, "{at} {charges}");
        }
    }

    #[test]
    fn what_was_begun_only_is_slept_for_in_part() {
        let mut sleeps = of(4);
        sleeps.charged(1.5, LONGEST.mul_f64(1.5 / 4.0), &[LONGEST]);
        // Two have charged, one of them half.
        assert_eq!(sleeps.granted(Duration::ZERO), 2);
        sleeps.charged(2.0, LONGEST.mul_f64(2.0 / 4.0), &[LONGEST]);
        assert!(close(sleeps.due(), LONGEST / 2), "{sleeps:?}");
    }

    #[test]
    fn one_clock_takes_what_several_charges_cost_of_which_the_first_were_free() {
        let mut sleeps = Sleeps::default();
        sleeps.take_turns(Turns::new(8, 64, 14 * MS, Bytes::mib(1024)), Duration::ZERO);
        assert_eq!(sleeps.left.len(), 1);
        let costs = [Duration::ZERO, Duration::ZERO, Duration::ZERO, 14 * MS, 14 * MS];
        sleeps.charged(5.0, 4 * MS, &costs);
        assert!(close(sleeps.due(), 4 * MS), "{sleeps:?}");
    }

    #[test]
    fn those_of_one_clock_draw_apart_evenly_and_owe_what_they_owed() {
        let mut sleeps = Sleeps::default();
        sleeps.charged(1.0, 800 * MS, &[]);
        sleeps.take_turns(Turns::new(4, 64, 800 * MS, Bytes::mib(64)), Duration::ZERO);
        assert!(close(sleeps.due(), 500 * MS) && sleeps.left.len() == 4, "{sleeps:?}");
        assert!(close(Duration::from_secs_f64(sleeps.mean()), 800 * MS), "{sleeps:?}");
        // One that comes owes what they owe on the average, and one that goes takes that along.
        for growers in [5, 3, 4] {
            sleeps.take_turns(Turns::new(growers, 64, 1000 * MS, Bytes::mib(64)), Duration::ZERO);
            assert_eq!(sleeps.left.len() as u64, growers);
            assert!(close(Duration::from_secs_f64(sleeps.mean()), 800 * MS), "{sleeps:?}");
        }
    }

    #[test]
    fn a_carried_debt_is_not_slept_off_by_running() {
        let mut sleeps = of(2);
        sleeps.charged(4.0, 2 * LONGEST, &[LONGEST]);
        sleeps.frozen(LONGEST);
        assert_eq!(sleeps.granted(Duration::ZERO), 0);
        sleeps.slept_on(500 * MS);
        assert!(close(sleeps.due(), LONGEST), "{sleeps:?}");
        sleeps.clear();
        assert_eq!((sleeps.due(), sleeps.granted(Duration::ZERO)), (Duration::ZERO, 2));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_is_charged_and_however_many_come_and_go(
            windows in prop::collection::vec((1u64..40, 0.0f64..1e3, 0u64..4000, 0u64..4000), 1..60),
            unit in prop::sample::select(&[32u64, 64, 512]), high: u64,
        ) {
            let mut sleeps = Sleeps::default();
            for (growers, charges, costs, pulse) in windows {
                sleeps.take_turns(Turns::new(growers, unit, MS * costs as u32, Bytes(high)), Duration::ZERO);
                let before = sleeps.mean();
                let each = Duration::from_secs_f64(charges * costs as f64 / 1e3 / growers as f64);
                // Near high the first charges cost nothing.
                let of = [Duration::ZERO, Duration::ZERO, Duration::ZERO, MS * costs as u32, LONGEST];
                sleeps.charged(charges, each, &of);
                prop_assert!(sleeps.left.iter().all(|left| left.is_finite()), "{sleeps:?}");
                let added = sleeps.mean() - before;
                prop_assert!((added - each.as_secs_f64()).abs() <= 1e-6 * each.as_secs_f64().max(1.0), "{added} {each:?}");
                let due = sleeps.due();
                prop_assert!(sleeps.granted(due) >= 1 && sleeps.granted(due) <= growers);
                sleeps.frozen(MS * pulse as u32);
                prop_assert!(sleeps.due() >= due.saturating_sub(MS * pulse as u32));
            }
        }
    }
}

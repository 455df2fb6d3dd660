//! How fast a group may grow in a window, and so how soon it is looked at again.
//!
//! Growers are taken to be as fast as memory can be filled until they prove slower: a task that was just thawed may
//! not have a CPU yet, and looks slow. And what they proved in one window says nothing of the next: a task that fills
//! 10 MiB/s is 20 MiB behind after two seconds in a pulse, and makes up for it as fast as it can. (Measured on 6.18,
//! taken at the 8 MiB/s of the window before: 16 MiB of huge pages in the first nap of 2 ms.)

use super::curve::HUGE;
use cgroupfs::Bytes;
use std::time::Duration;

/// Between two looks at usage in a window, at the least and at the most.
pub const NAP: Duration = Duration::from_micros(50);
const LONG_NAP: Duration = Duration::from_millis(2);

/// What a task fills in a second, in small pages and in huge ones. (Measured on 6.18: 7.5 GiB/s in huge pages.)
const FASTEST: f64 = (2u64 << 30) as f64;
const FASTEST_HUGE: f64 = (8u64 << 30) as f64;

/// The window time after which half of that is believed.
const DOUBT: Duration = Duration::from_millis(50);

/// Shorter naps are not slept but spun through, for so long in a window at most, where the growers have another
/// CPU: one that sleeps may take milliseconds to wake up (measured on a virtual machine: up to 20).
const SPIN: Duration = Duration::from_micros(150);
const LONGEST_SPIN: Duration = Duration::from_millis(3);

/// How fast a group is taken to grow in this window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Bytes a second.
    fastest: f64,
    /// Whether there is a CPU to spin on.
    may_spin: bool,
}

impl Pace {
    /// That of tasks that were just thawed, and charge `unit` pages at once; `may_spin`: not on the only CPU.
    pub fn thawed(unit: u64, may_spin: bool) -> Pace {
        Pace { fastest: if unit >= HUGE { FASTEST_HUGE } else { FASTEST }, may_spin }
    }

    /// The group grew by so much in a nap.
    pub fn napped(&mut self, nap: Duration, grown: Bytes) {
        let nap = nap.as_secs_f64().max(1e-6);
        let doubted = self.fastest * 0.5f64.powf(nap / DOUBT.as_secs_f64());
        self.fastest = doubted.max(grown.0 as f64 / nap).max(1.0);
    }

    /// How long to look away with so much room left in a window that has been open for `open`: half of what it
    /// takes to fill it. Zero: not at all.
    pub fn nap(&self, room: Bytes, open: Duration) -> Duration {
        let there = room.0 as f64 / self.fastest / 2.0;
        let nap = Duration::from_secs_f64(there.min(1.0)).clamp(NAP, LONG_NAP);
        if nap <= SPIN && self.may_spin && open < LONGEST_SPIN { Duration::ZERO } else { nap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);
    /// How fast huge pages are filled, bytes a millisecond.
    const FILLS: u64 = (7500 << 20) / 1000;

    /// Opens a window of a task that grows by a huge page in every `each`, and by as many as it can while it has to
    /// make up for `behind` bytes; looks every few microseconds even where it does not have to. What it had grown by
    /// when a look saw that it had by a whole charge.
    fn window(mut pace: Pace, behind: u64, each: Duration) -> u64 {
        let charge = HUGE * 4096;
        let (mut open, mut looked, mut next) = (Duration::ZERO, 0, MS / 10);
        while looked < charge {
            let nap = pace.nap(Bytes(charge - looked), open).max(MS / 500);
            let mut grown = looked;
            open += nap;
            while next <= open {
                grown += charge;
                next +=
                    if grown < behind { MS.mul_f64(charge as f64 / FILLS as f64) } else { each };
            }
            pace.napped(nap, Bytes(grown - looked));
            looked = grown;
        }
        looked
    }

    #[test]
    fn a_task_that_makes_up_for_a_pulse_is_frozen_after_one_charge() {
        let slow = MS * 200;
        for behind in [0, 20 << 20, 1 << 30] {
            let grown = window(Pace::thawed(HUGE, true), behind, slow);
            assert!(grown <= 2 * HUGE * 4096, "{behind}: {grown}");
        }
        // What the window before had shown would have let it go.
        let mut learnt = Pace::thawed(HUGE, true);
        (0..100).for_each(|_| learnt.napped(2 * MS, Bytes((8 << 20) / 500)));
        assert!(window(learnt, 20 << 20, slow) > 4 * HUGE * 4096);
    }

    #[test]
    fn one_that_proves_slow_is_looked_at_less_and_less() {
        let mut pace = Pace::thawed(64, true);
        let (mut open, mut looks) = (Duration::ZERO, 0);
        let room = Bytes(64 * 4096);
        while open < Duration::from_secs(1) {
            let nap = pace.nap(room, open).max(MS / 500);
            pace.napped(nap, Bytes((4 << 20) * nap.as_micros() as u64 / 1_000_000));
            open += nap;
            // Spinning apart.
            looks += u32::from(open > LONGEST_SPIN);
        }
        assert!(looks < 6000, "{looks}");
        assert_eq!(pace.nap(room, open), LONG_NAP);
    }

    #[test]
    fn on_the_only_cpu_nobody_spins() {
        assert_eq!(Pace::thawed(64, true).nap(Bytes(1), Duration::ZERO), Duration::ZERO);
        assert_eq!(Pace::thawed(64, false).nap(Bytes(1), Duration::ZERO), NAP);
        assert_eq!(Pace::thawed(64, true).nap(Bytes(1), LONGEST_SPIN), NAP);
    }

    proptest! {
        #[test]
        fn a_nap_is_never_longer_than_the_longest(
            naps in prop::collection::vec((0u64..10_000_000, any::<u64>()), 0..50), room: u64, unit: u64,
        ) {
            let mut pace = Pace::thawed(unit, false);
            for (nap, grown) in naps {
                pace.napped(Duration::from_nanos(nap), Bytes(grown));
                let nap = pace.nap(Bytes(room), Duration::ZERO);
                prop_assert!(nap >= NAP && nap <= LONG_NAP);
            }
        }
    }
}

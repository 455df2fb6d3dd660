//! Another high, or way out, while a container is throttled.
//!
//! What was done and learnt so far goes on: who grows, what they owe, the leak of a freeze, the totals, and what is
//! spent of the budgets. What is in use above a high that was lowered is not paid for, only further growth is; at or
//! below all highs nothing is owed any more.

use super::{Guard, Level, Throttle, WayOut};

/// A level from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Which of the levels until now it is; `None`: a new one.
    pub before: Option<usize>,
    /// How throttling above it ends that achieves nothing.
    pub way_out: WayOut,
    /// Usage now, and the new high.
    pub level: Level,
}

impl Throttle {
    /// Held to these from now on: the container's own first, then those of the groups above it. Whether usage is above
    /// one of them.
    pub fn change(&mut self, levels: &[Changed]) -> bool {
        let guards = levels.iter().map(|changed| {
            let before = changed.before.and_then(|n| self.guards.get(n));
            let mut guard = before.cloned().unwrap_or_else(|| Guard::new(changed.way_out));
            guard.change(changed.way_out);
            if changed.level.usage <= changed.level.high {
                guard.at_high(changed.level.usage);
            }
            guard
        });
        self.guards = guards.collect();
        let decisive = levels.iter().position(|changed| changed.before == Some(self.decisive));
        self.decisive = decisive.unwrap_or(0);
        if let Some(own) = levels.first() {
            self.high = own.level.high;
        }
        let above = levels.iter().any(|changed| changed.level.usage > changed.level.high);
        if !above {
            self.debts.clear();
        }
        above
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::throttle::{Curve, Grown, LONGEST, Then};
    use cgroupfs::{Bytes, Limit};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);
    const USAGE: Bytes = Bytes::mib(110);

    fn way_out(text: &str) -> WayOut {
        text.parse().unwrap()
    }

    /// Throttled for so long in pulses of 2 s without progress, 10 % above 100 MiB, on this way out; it still owes.
    fn throttled(seconds: u32, budget: &str) -> Throttle {
        let curve = Curve::new(64, Duration::from_millis(4));
        let mut throttle = Throttle::new(curve, Bytes::mib(100), way_out(budget));
        let level = [Level { usage: USAGE, high: Bytes::mib(100) }];
        for n in 0..seconds / 2 {
            // A burst, which is more than one pulse pays for.
            let grown = [Grown { task: 1, pages: 64 * 8, unit: 64 }];
            assert_eq!(throttle.window(2 * n * SECOND, &level, Bytes(0), &grown), LONGEST);
            assert_eq!(throttle.pulsed(2 * (n + 1) * SECOND, LONGEST, &level), None);
        }
        throttle
    }

    fn held_to(throttle: &mut Throttle, high: Bytes, way_out_of: &str) -> bool {
        let level = Level { usage: USAGE, high };
        throttle.change(&[Changed { before: Some(0), way_out: way_out(way_out_of), level }])
    }

    /// The second after which throttling on ends it, if one of 40 does.
    fn ends(throttle: &mut Throttle, high: Bytes) -> Option<u32> {
        let level = [Level { usage: USAGE, high }];
        let grown = [Grown { task: 1, pages: 64, unit: 64 }];
        (1..=40).find(|n| {
            let now = (100 + *n) * SECOND;
            throttle.window(now, &level, Bytes(0), &grown);
            throttle.pulsed(now, SECOND, &level).is_some()
        })
    }

    #[test]
    fn a_high_above_what_is_in_use_forgives_what_is_owed_and_spent() {
        let mut throttle = throttled(20, "release=30s");
        assert!(throttle.totals().debt > LONGEST && throttle.stalled() == 20 * SECOND);
        assert!(!held_to(&mut throttle, Bytes::mib(200), "release=30s"));
        let totals = throttle.totals();
        assert_eq!((totals.debt, throttle.stalled()), (Duration::ZERO, Duration::ZERO));
        assert_eq!((totals.pulses, totals.frozen), (10, 20 * SECOND));
        assert_eq!(throttle.high(), Bytes::mib(200));
        assert_eq!(throttle.after(Duration::ZERO).1, Duration::ZERO);
    }

    #[test]
    fn a_high_under_what_is_in_use_keeps_what_is_owed_and_spent_and_adds_nothing() {
        for high in [Bytes::mib(105), Bytes::mib(50)] {
            let mut throttle = throttled(20, "release=30s");
            let before = throttle.totals();
            assert!(held_to(&mut throttle, high, "release=30s"));
            assert_eq!((throttle.totals(), throttle.stalled()), (before, 20 * SECOND));
            // A window without growth has nobody owe more.
            throttle.window(100 * SECOND, &[Level { usage: USAGE, high }], Bytes(0), &[]);
            assert_eq!(throttle.totals().debt, before.debt);
            assert_eq!(ends(&mut throttle, high), Some(10));
        }
    }

    #[test]
    fn growth_costs_what_it_costs_above_the_new_high() {
        for high in [Bytes::mib(104), Bytes::mib(108)] {
            let mut throttle = throttled(2, "never");
            let before = throttle.totals().debt;
            held_to(&mut throttle, high, "never");
            let level = [Level { usage: USAGE, high }];
            let grown = [Grown { task: 1, pages: 64, unit: 64 }];
            throttle.window(10 * SECOND, &level, Bytes(0), &grown);
            let curve = throttle.curve();
            let costs = curve.penalty(Curve::overage(USAGE, high), 64, 64);
            let owed = throttle.totals().debt - before;
            assert!(owed.abs_diff(costs) < Duration::from_millis(1), "{high} {owed:?} {costs:?}");
        }
    }

    #[test]
    fn of_another_way_out_so_much_is_spent_as_of_the_one_before() {
        let high = Bytes::mib(100);
        for (before, after, ends_after) in [
            ("release=30s", "release=60s", Some(40)),
            ("release=30s", "release=30s", Some(10)),
            ("release=30s", "release=10s", Some(1)),
            ("release=30s", "never", None),
            ("never", "oom=25s", Some(5)),
            // Told already; and still throttled.
            ("notify=10s", "notify=30s", Some(10)),
            ("notify=10s", "release=15s", Some(1)),
        ] {
            let mut throttle = match before.strip_prefix("notify") {
                None => throttled(20, before),
                Some(_) => {
                    let mut throttle = throttled(8, before);
                    let level = [Level { usage: USAGE, high }];
                    let told = throttle.pulsed(12 * SECOND, 12 * SECOND, &level);
                    assert_eq!(told, Some(Then::Notify));
                    throttle
                }
            };
            held_to(&mut throttle, high, after);
            assert_eq!(ends(&mut throttle, high), ends_after, "{before} {after}");
        }
    }

    #[test]
    fn a_release_stays_in_force_until_usage_is_at_high_or_there_is_none() {
        let level = |high| Level { usage: USAGE, high };
        for (high, way_out, stays) in [
            (Bytes::mib(100), "release=30s", true),
            (Bytes::mib(100), "release=300s", true),
            (Bytes::mib(100), "oom=30s", true),
            (Bytes::mib(50), "release=10s", true),
            (Bytes::mib(110), "release=10s", false),
            (Bytes::mib(100), "never", false),
            (Bytes::mib(100), "notify=30s", false),
        ] {
            let mut throttle = throttled(8, "release=10s");
            assert_eq!(ends(&mut throttle, Bytes::mib(100)), Some(2));
            assert!(throttle.is_released());
            held_to(&mut throttle, high, way_out);
            assert_eq!(throttle.is_released(), stays, "{high} {way_out}");
            let now = 200 * SECOND;
            let effective = throttle.effective_high(now, 0, level(high));
            assert_eq!(effective == Limit::Bytes(high), !stays, "{high} {way_out}");
        }
    }

    #[test]
    fn levels_above_come_and_go_and_each_keeps_its_own_budget() {
        let own = Level { usage: USAGE, high: Bytes::mib(100) };
        let pod = Level { usage: Bytes::mib(300), high: Bytes::mib(200) };
        let mut throttle = throttled(20, "release=30s");
        let changed = |before, way_out, level| Changed { before, way_out, level };
        let endless = way_out("never");
        // The pod's counts from now on: 50 % above.
        throttle
            .change(&[changed(Some(0), way_out("release=30s"), own), changed(None, endless, pod)]);
        assert_eq!(throttle.stalled(), 20 * SECOND);
        throttle.window(50 * SECOND, &[own, pod], Bytes(0), &[]);
        assert_eq!((throttle.decisive(), throttle.stalled()), (1, Duration::ZERO));
        assert_eq!(throttle.pulsed(60 * SECOND, 60 * SECOND, &[own, pod]), None);
        // And no more: what was spent above the container's own high is known.
        throttle.change(&[changed(Some(0), way_out("release=30s"), own)]);
        assert_eq!((throttle.decisive(), throttle.stalled()), (0, 20 * SECOND));
        assert_eq!(ends(&mut throttle, own.high), Some(10));
    }
}

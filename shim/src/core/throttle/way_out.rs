//! The way out of throttling, which the kernel's own `memory.high` lacks.
//!
//! Native throttling never ends for a task that needs more than high and has nothing that could be
//! reclaimed: it goes on at 128 KiB/s for as long as the container lives. Here a budget of throttled
//! time without progress ends it. Progress is usage that falls, for only then does throttling achieve
//! what it is for.
//!
//! After a release there is no throttling while usage still climbs. Once its peak has stopped climbing
//! for [`APPROACH`], an effective high is set just above it, which follows the peaks down to the declared
//! high, one step in each [`APPROACH`], and never up.

use crate::core::event::Now;
use cgroupfs::{Bytes, Limit};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The budget unless told otherwise.
pub const BUDGET: Duration = Duration::from_secs(30);

/// How often the effective high is set anew after a release.
pub const APPROACH: Duration = Duration::from_secs(10);

/// Room above the last peak that an effective high leaves, as a share of it (percent).
const ROOM: u64 = 2;

/// Usage that fell by this share of high (percent) is progress.
const PROGRESS: u64 = 1;

/// What happens when the budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Then {
    /// Throttling ends; the limit still holds.
    #[default]
    Release,
    /// It ends with the OOM policy: what uses most is killed.
    Oom,
    /// It goes on; people are told.
    Notify,
}

/// How much throttling without progress there may be, and what then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayOut {
    /// Throttled time; `None`: no end, as natively.
    pub budget: Option<Duration>,
    /// What then.
    pub then: Then,
}

impl Default for WayOut {
    fn default() -> WayOut {
        WayOut { budget: Some(BUDGET), then: Then::Release }
    }
}

impl WayOut {
    /// Whether a container on these terms is throttled for as long as on `other`, at the least, and killed
    /// where that would have it killed.
    pub fn is_as_tight_as(self, other: WayOut) -> bool {
        let lasts = |way_out: WayOut| match way_out.then {
            // It only tells.
            Then::Notify => Duration::MAX,
            Then::Release | Then::Oom => way_out.budget.unwrap_or(Duration::MAX),
        };
        let kills = |way_out: WayOut| way_out.then == Then::Oom && way_out.budget.is_some();
        lasts(self) >= lasts(other) && (kills(self) || !kills(other))
    }
}

/// A way out that does not parse. Complete for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadWayOut(String);

impl FromStr for WayOut {
    type Err = BadWayOut;

    /// `release`, `oom` or `notify`, with the budget as in `release=30s` ([`BUDGET`] without), or `never`.
    fn from_str(text: &str) -> Result<WayOut, BadWayOut> {
        if text == "never" {
            return Ok(WayOut { budget: None, then: Then::Release });
        }
        let shown = |text: &str| text.escape_default().take(64).collect::<String>();
        let (then, time) = text.split_once('=').unwrap_or((text, "30s"));
        let then = match then {
            "release" => Then::Release,
            "oom" => Then::Oom,
            "notify" => Then::Notify,
            _ => {
                let text = shown(text);
                return Err(BadWayOut(format!("'{text}' is not release, oom, notify or never")));
            }
        };
        let (number, unit) =
            time.split_at(time.find(|c: char| !c.is_ascii_digit()).unwrap_or(time.len()));
        let scale = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" | "min" => 60_000,
            _ => return Err(BadWayOut(format!("'{}' is not a time, as in 30s", shown(time)))),
        };
        match number.parse::<u32>() {
            Ok(n) if n > 0 => {
                Ok(WayOut { budget: Some(Duration::from_millis(u64::from(n) * scale)), then })
            }
            _ => Err(BadWayOut(format!("'{}' is not a time above zero, as in 30s", shown(time)))),
        }
    }
}

impl fmt::Display for WayOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(budget) = self.budget else { return f.write_str("never") };
        let then = match self.then {
            Then::Release => "release",
            Then::Oom => "oom",
            Then::Notify => "notify",
        };
        match budget.subsec_millis() {
            0 => write!(f, "{then}={}s", budget.as_secs()),
            _ => write!(f, "{then}={}ms", budget.as_millis()),
        }
    }
}

/// Why there was no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// What is left above high cannot be reclaimed: there is no swap, or none for this group.
    Unreclaimable,
    /// It could be swapped, but swap is full.
    SwapFull,
    /// There is something to reclaim, but usage does not fall.
    NoProgress,
}

impl Cause {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Unreclaimable => "what is left cannot be reclaimed",
            Cause::SwapFull => "swap is full",
            Cause::NoProgress => "what is reclaimed is in use again at once",
        }
    }
}

/// Counts throttled time without progress.
#[derive(Debug, Clone)]
pub struct Guard {
    way_out: WayOut,
    spent: Duration,
    /// Highest usage since the last progress.
    peak: Bytes,
    told: bool,
    released: Option<Released>,
}

#[derive(Debug, Clone, Copy)]
struct Released {
    since: Now,
    /// Highest usage in this stretch of [`APPROACH`], and in the one before.
    peak: Bytes,
    before: Bytes,
    high: Limit,
}

impl Guard {
    /// A guard with its budget unspent.
    pub const fn new(way_out: WayOut) -> Guard {
        Guard { way_out, spent: Duration::ZERO, peak: Bytes(0), told: false, released: None }
    }

    /// So much throttling has passed, and usage is this now. `Some` when the budget is spent: once,
    /// until there is progress.
    pub fn throttled(
        &mut self,
        now: Now,
        time: Duration,
        usage: Bytes,
        high: Bytes,
    ) -> Option<Then> {
        let progress = Bytes(high.0 / 100 * PROGRESS).max(Bytes::kib(256));
        if usage <= high || usage.saturating_add(progress) <= self.peak {
            self.progress(usage);
            return None;
        }
        self.peak = self.peak.max(usage);
        self.spent += time;
        if self.told || self.way_out.budget.is_none_or(|budget| self.spent < budget) {
            return None;
        }
        self.told = true;
        if self.way_out.then != Then::Notify {
            self.released =
                Some(Released { since: now, peak: usage, before: usage, high: Limit::Max });
        }
        Some(self.way_out.then)
    }

    /// Another way out from now on. What was spent so far counts for this one too, and a release stays in
    /// force, but where the new one knows of none.
    pub fn change(&mut self, way_out: WayOut) {
        if way_out == self.way_out {
            return;
        }
        self.way_out = way_out;
        if way_out.budget.is_none() || way_out.then == Then::Notify {
            self.released = None;
        }
        self.told = self.released.is_some();
    }

    /// Usage is at or below high, which may be another one than until now: there is nothing to be released from.
    pub fn at_high(&mut self, usage: Bytes) {
        self.released = None;
        self.progress(usage);
    }

    fn progress(&mut self, usage: Bytes) {
        self.spent = Duration::ZERO;
        self.peak = usage;
        self.told = false;
    }

    /// Throttled time without progress so far.
    pub const fn spent(&self) -> Duration {
        self.spent
    }

    /// The high to throttle above now: the declared one, a higher one after a release, or none.
    pub fn effective(&mut self, now: Now, usage: Bytes, high: Bytes) -> Limit {
        let Some(state) = &mut self.released else { return Limit::Bytes(high) };
        state.peak = state.peak.max(usage);
        if now.saturating_sub(state.since) >= APPROACH {
            // It has stopped climbing: from here on downwards only.
            if state.peak <= state.before {
                let above = Bytes(state.peak.0.saturating_add(state.peak.0 / 100 * ROOM));
                if state.high == Limit::Max {
                    // Throttling above that may stall as well, and has a budget of its own.
                    (self.spent, self.told) = (Duration::ZERO, false);
                }
                state.high = Limit::Bytes(above).min(state.high);
            }
            state.before = state.peak;
            state.peak = usage;
            state.since = now;
        }
        if state.high <= Limit::Bytes(high) {
            self.released = None;
            self.progress(usage);
            return Limit::Bytes(high);
        }
        state.high
    }

    /// Whether a release is in force.
    pub const fn is_released(&self) -> bool {
        self.released.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HIGH: Bytes = Bytes::mib(100);
    const SECOND: Duration = Duration::from_secs(1);

    fn second(n: u64) -> Now {
        Duration::from_secs(n)
    }

    #[test]
    fn a_way_out_has_a_policy_and_a_time() {
        let budget = |seconds| Some(Duration::from_secs(seconds));
        for (text, budget, then, shown) in [
            ("release", budget(30), Then::Release, "release=30s"),
            ("oom=5s", budget(5), Then::Oom, "oom=5s"),
            ("notify=2m", budget(120), Then::Notify, "notify=120s"),
            ("release=1500ms", Some(Duration::from_millis(1500)), Then::Release, "release=1500ms"),
            ("never", None, Then::Release, "never"),
        ] {
            let way_out: WayOut = text.parse().unwrap();
            assert_eq!(way_out, WayOut { budget, then }, "{text}");
            assert_eq!(way_out.to_string(), shown);
            assert_eq!(shown.parse(), Ok(way_out));
        }
        for bad in
            ["", "release=", "release=0", "kill=1s", "oom=1h2", "never=3", "oom=99999999999s"]
        {
            assert!(bad.parse::<WayOut>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_way_out_is_as_tight_as_another_if_it_throttles_as_long_and_kills_as_well() {
        for (tight, loose) in [
            ("release=60s", "release=30s"),
            ("never", "release=30s"),
            ("notify=5s", "release=30s"),
            ("oom=30s", "release=30s"),
            ("never", "notify=5s"),
            ("notify=5s", "never"),
        ] {
            let [tight, loose]: [WayOut; 2] = [tight, loose].map(|text| text.parse().unwrap());
            assert!(tight.is_as_tight_as(loose), "{tight} {loose}");
            assert!(tight.is_as_tight_as(tight));
        }
        for (asked, ours) in [
            ("release=5s", "release=30s"),
            ("oom=5s", "release=30s"),
            ("release", "never"),
            ("never", "oom=5s"),
            ("notify", "oom=5s"),
            ("release", "oom"),
        ] {
            let [asked, ours]: [WayOut; 2] = [asked, ours].map(|text| text.parse().unwrap());
            assert!(!asked.is_as_tight_as(ours), "{asked} {ours}");
        }
    }

    #[test]
    fn the_budget_spent_without_progress_releases_once() {
        let mut guard = Guard::new(WayOut::default());
        let ends: Vec<u64> = (0..120)
            .filter(|n| {
                guard.throttled(second(*n), SECOND, Bytes(Bytes::mib(110).0 + n), HIGH).is_some()
            })
            .collect();
        assert_eq!(ends, [29]);
        assert!(guard.is_released());
    }

    #[test]
    fn usage_that_falls_keeps_the_budget() {
        let mut guard = Guard::new(WayOut::default());
        for n in 0..600 {
            // Reclaim takes a little every 20 s.
            let usage = Bytes::mib(200 - 2 * (n / 20));
            assert_eq!(guard.throttled(second(n), SECOND, usage, HIGH), None, "{n}");
        }
    }

    #[test]
    fn without_a_budget_there_is_no_end_as_natively() {
        let mut guard = Guard::new(WayOut { budget: None, then: Then::Release });
        assert!(
            (0..6000).all(|n| guard.throttled(second(n), SECOND, Bytes::mib(150), HIGH).is_none())
        );
    }

    #[test]
    fn notify_tells_and_goes_on_throttling() {
        let mut guard = Guard::new(WayOut { budget: Some(SECOND), then: Then::Notify });
        assert_eq!(guard.throttled(second(1), SECOND, Bytes::mib(150), HIGH), Some(Then::Notify));
        assert_eq!(guard.effective(second(2), Bytes::mib(150), HIGH), Limit::Bytes(HIGH));
    }

    #[test]
    fn after_a_release_a_climb_is_not_throttled() {
        let mut guard = Guard::new(WayOut { budget: Some(SECOND), then: Then::Release });
        guard.throttled(second(0), SECOND, Bytes::mib(150), HIGH);
        for n in 0..100 {
            let usage = Bytes::mib(150 + n);
            assert_eq!(guard.effective(second(n), usage, HIGH), Limit::Max, "{n}");
        }
    }

    #[test]
    fn after_a_release_high_is_approached_from_above_in_steps() {
        let mut guard = Guard::new(WayOut { budget: Some(SECOND), then: Then::Release });
        guard.throttled(second(0), SECOND, Bytes::mib(150), HIGH);
        // It rests at 150, then frees what it had.
        let mut seen = Vec::new();
        for n in 0..80 {
            let usage = if n < 25 { Bytes::mib(150) } else { Bytes::mib(90) };
            let high = guard.effective(second(n), usage, HIGH);
            if seen.last() != Some(&high) {
                seen.push(high);
            }
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[0], Limit::Max);
        assert!(seen[1] > Limit::Bytes(Bytes::mib(150)) && seen[1] < Limit::Bytes(Bytes::mib(154)));
        assert_eq!(seen[2], Limit::Bytes(HIGH));
        assert!(!guard.is_released());
    }

    #[test]
    fn a_second_climb_after_a_release_has_a_budget_of_its_own() {
        let mut guard = Guard::new(WayOut { budget: Some(3 * SECOND), then: Then::Release });
        let mut ends = Vec::new();
        for n in 0..100 {
            let usage = Bytes::mib(if n < 50 { 150 } else { 100 + n });
            let high = guard.effective(second(n), usage, HIGH);
            let throttled = high < Limit::Bytes(usage);
            if throttled && guard.throttled(second(n), SECOND, usage, HIGH).is_some() {
                ends.push(n);
            }
        }
        assert_eq!(ends.len(), 2, "{ends:?}");
    }

    proptest! {
        #[test]
        fn the_effective_high_is_never_under_the_declared_one_and_never_rises(
            usages in prop::collection::vec(0u64..400, 1..300),
        ) {
            let mut guard = Guard::new(WayOut { budget: Some(SECOND), then: Then::Release });
            guard.throttled(second(0), SECOND, Bytes::mib(150), HIGH);
            let mut last = Limit::Max;
            for (n, usage) in usages.iter().enumerate() {
                let high = guard.effective(second(n as u64), Bytes::mib(*usage), HIGH);
                prop_assert!(high >= Limit::Bytes(HIGH) && high <= last);
                last = high;
            }
        }
    }
}

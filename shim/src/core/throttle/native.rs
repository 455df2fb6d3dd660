//! The way out of the kernel's own throttling: the same [`Guard`] over a `memory.high` that the kernel
//! holds to.
//!
//! The kernel lets who grows above high sleep for as long as there is nothing to reclaim, and for ever.
//! What is seen of that from outside is pressure (`memory.pressure`: somebody waits for memory) while
//! `high` events rise and usage stays above high. Such time is what the budget is spent on. Then high is
//! relaxed: raised above usage by a step, and by twice as much each time that is used up. Once usage has
//! stopped climbing, high follows its peaks down to the declared one, one step in each
//! [`APPROACH`](super::APPROACH).
//!
//! Two values are kept apart: what stood before us, which is what is put back, and what we wrote. Anything
//! else in the file is somebody else's: it is adopted, and let be for a while.

use super::way_out::{Guard, Then, WayOut};
use super::{Curve, ThrottleTotals};
use crate::core::container::FOREIGN_PAUSE;
use crate::core::event::Now;
use cgroupfs::{Bytes, Limit};
use std::time::Duration;

/// How often a group is looked at while it is throttled, or released. Less often than the tenth part of
/// the budget never.
pub const LOOK: Duration = Duration::from_secs(1);

/// The kernel's sleeps are 2 s at most, each followed by an event: with none for so long nobody is
/// throttled.
const QUIET: Duration = Duration::from_secs(5);

/// The first step above usage by which high is relaxed: this share of high (percent), and at least this.
const FIRST_STEP: u64 = 12;
const LEAST_STEP: Bytes = Bytes::mib(32);

/// What was seen of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Usage.
    pub usage: Bytes,
    /// `memory.high`.
    pub standing: Limit,
    /// `memory.max`.
    pub limit: Limit,
    /// `high` of `memory.events`.
    pub events: u64,
    /// Time in which some task waited for memory, since the group was made (`memory.pressure`); `None`
    /// without PSI.
    pub stalled: Option<Duration>,
}

/// What is to be done about a `memory.high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Write this: in the journal first.
    Write(Limit),
    /// The budget is spent, after so much throttled time: tell, and with [`Then::Oom`] kill.
    Spent(Then, Duration),
    /// The declared high stands again.
    Resumed,
    /// Somebody else wrote it, from, to: theirs stays.
    Adopted(Limit, Limit),
}

/// The guard of one group.
#[derive(Debug, Clone)]
pub struct Native {
    curve: Curve,
    way_out: WayOut,
    guard: Guard,
    /// What we are to hold it to, if anything.
    wanted: Limit,
    /// What stands when we do nothing.
    before: Limit,
    /// What we wrote, if it stands.
    ours: Option<Limit>,
    last: Option<(Now, Seen)>,
    /// When `high` events were last seen to rise.
    rose: Option<Now>,
    step: Bytes,
    /// After somebody else's write nothing is written until then.
    let_be_until: Now,
    told_again: bool,
    totals: ThrottleTotals,
}

impl Native {
    /// A guard over a high of ours (`wanted`, [`Limit::Max`] for none), where `standing` was found. The
    /// lower of the two is the declared one.
    pub fn new(curve: Curve, wanted: Limit, standing: Limit, way_out: WayOut) -> Native {
        Native {
            curve,
            way_out,
            guard: Guard::new(way_out),
            wanted: wanted.page_floor(),
            before: standing,
            ours: None,
            last: None,
            rose: None,
            step: Bytes(0),
            let_be_until: Now::ZERO,
            told_again: false,
            totals: ThrottleTotals::default(),
        }
    }

    /// Held to another high from now on.
    pub fn want(&mut self, wanted: Limit, way_out: WayOut) {
        if (self.wanted, self.way_out) != (wanted.page_floor(), way_out) {
            self.wanted = wanted.page_floor();
            self.way_out = way_out;
            self.guard = Guard::new(way_out);
        }
    }

    /// The high that is declared: ours, or what was there if that is lower.
    pub fn declared(&self) -> Limit {
        self.wanted.min(self.before)
    }

    /// What stands when we do nothing.
    pub const fn before(&self) -> Limit {
        self.before
    }

    /// What is to be put back, and our value that it replaces; `None` where nothing of ours stands.
    pub fn to_undo(&self) -> Option<(Limit, Limit)> {
        Some((self.before, self.ours?))
    }

    /// Whether high is relaxed at the moment.
    pub const fn is_released(&self) -> bool {
        self.guard.is_released()
    }

    /// Times it was released, and throttled time: in place of frozen time, what the kernel had somebody wait for.
    pub const fn totals(&self) -> ThrottleTotals {
        self.totals
    }

    /// [`Deed::Write`] was done.
    pub fn wrote(&mut self, high: Limit) {
        self.ours = (high != self.before).then_some(high);
    }

    /// Looks at the group; when to look again (`None`: when `high` events rise, or somebody writes).
    pub fn look(&mut self, now: Now, seen: Seen, deeds: &mut Vec<Deed>) -> Option<Now> {
        let expected = self.ours.unwrap_or(self.before);
        if seen.standing != expected {
            self.adopt(now, seen.standing, expected, deeds);
        }
        let last = self.last.replace((now, seen));
        if now < self.let_be_until {
            return Some(self.let_be_until);
        }
        let declared = self.declared();
        let released = self.guard.is_released();
        let stalled = self.stalled(now, &seen, last);
        self.totals.frozen += stalled;
        if let Limit::Bytes(high) = declared
            && (!stalled.is_zero() || seen.usage <= high)
            && let Some(then) = self.guard.throttled(now, stalled, seen.usage, high)
        {
            deeds.push(Deed::Spent(then, self.guard.spent()));
            if then != Then::Notify {
                self.totals.released += 1;
                self.step = Bytes(0);
            }
        }
        let effective = match declared {
            Limit::Bytes(high) => self.guard.effective(now, seen.usage, high),
            Limit::Max => Limit::Max,
        };
        let high = match effective {
            Limit::Max if declared != Limit::Max => self.relaxed(&seen),
            effective => effective.page_floor(),
        };
        if high != seen.standing {
            deeds.push(Deed::Write(high));
        }
        if released && !self.guard.is_released() {
            deeds.push(Deed::Resumed);
        }
        let active = self.rose.is_some_and(|rose| now.saturating_sub(rose) < QUIET);
        (active || self.guard.is_released()).then(|| now + self.period())
    }

    /// How often to look.
    fn period(&self) -> Duration {
        let budget = self.way_out.budget.unwrap_or(LOOK * 10);
        LOOK.min(budget / 10).max(Duration::from_millis(20))
    }

    fn adopt(&mut self, now: Now, standing: Limit, expected: Limit, deeds: &mut Vec<Deed>) {
        // What was there before us, written again (by a daemon-reload of systemd, say): ours goes there
        // once more, after a pause. Anything else counts from now on, higher or lower.
        let again = standing == self.before;
        if self.ours.is_some() || self.wanted != Limit::Max {
            self.let_be_until = now + FOREIGN_PAUSE;
            if !again || !std::mem::replace(&mut self.told_again, true) {
                deeds.push(Deed::Adopted(expected, standing));
            }
        }
        if !again {
            self.wanted = Limit::Max;
        }
        self.before = standing;
        self.ours = None;
        self.guard = Guard::new(self.way_out);
    }

    /// Throttled time since the last look: time in which somebody waited for memory while high was what
    /// they waited at.
    fn stalled(&mut self, now: Now, seen: &Seen, last: Option<(Now, Seen)>) -> Duration {
        let Some((then, before)) = last else { return Duration::ZERO };
        let looked_after = self.rose.is_some_and(|rose| then.saturating_sub(rose) < QUIET);
        if seen.events > before.events {
            self.rose = Some(now);
        }
        // The first rise after a quiet time woke us. What somebody waited for in all that time was not high.
        let throttled =
            looked_after && self.rose.is_some_and(|rose| now.saturating_sub(rose) < QUIET);
        let Limit::Bytes(high) = seen.standing else { return Duration::ZERO };
        let free = self.curve.free_until(self.curve.batch());
        if !throttled || Curve::overage(seen.usage, high) < free {
            return Duration::ZERO;
        }
        let passed = now.saturating_sub(then);
        match (seen.stalled, before.stalled) {
            (Some(after), Some(before)) => after.saturating_sub(before).min(passed),
            _ => passed,
        }
    }

    /// The high of a group that was released and still climbs: a step above it, raised once half of it is
    /// used up, to twice as much.
    fn relaxed(&mut self, seen: &Seen) -> Limit {
        let Limit::Bytes(standing) = seen.standing else { return Limit::Max };
        let room = standing.saturating_sub(seen.usage);
        if self.step.0 > 0 && room.0 >= self.step.0 / 2 {
            return seen.standing;
        }
        self.step = match self.step.0 {
            0 => {
                let declared = self.declared().bytes().unwrap_or_default();
                LEAST_STEP.max(Bytes(declared.0 / 100 * FIRST_STEP))
            }
            step => Bytes(step.saturating_mul(2)),
        };
        let high = Limit::Bytes(seen.usage.saturating_add(self.step)).page_floor();
        // At the limit high means nothing.
        if high >= seen.limit { Limit::Max } else { high.max(seen.standing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CURVE: Curve = Curve::new(64, Duration::from_millis(4));
    const HIGH: Bytes = Bytes::mib(100);
    const WAY_OUT: WayOut = WayOut { budget: Some(Duration::from_secs(30)), then: Then::Release };

    /// A group with a native memory.high, in steps of a second: it wants to grow to `demand`, sleeps on the
    /// kernel's curve, and has nothing to reclaim.
    struct Group {
        high: Limit,
        usage: f64,
        demand: Bytes,
        events: u64,
        stalled: Duration,
        now: Now,
        /// Sleep that is left.
        asleep: f64,
    }

    impl Group {
        fn new(high: Limit, demand: Bytes) -> Group {
            let (events, stalled) = (0, Duration::ZERO);
            Group { high, usage: 0.0, demand, events, stalled, now: Now::ZERO, asleep: 0.0 }
        }

        fn second(&mut self) {
            self.now += Duration::from_secs(1);
            let mut left = 1.0;
            loop {
                let slept = self.asleep.min(left);
                self.stalled += Duration::from_secs_f64(slept);
                self.asleep -= slept;
                left -= slept;
                if left <= 0.0 || self.usage >= self.demand.0 as f64 {
                    return;
                }
                self.usage += f64::from(256 << 10);
                left -= 0.0001;
                let Limit::Bytes(high) = self.high else { continue };
                if self.usage > high.0 as f64 {
                    self.events += 1;
                    let f = Curve::overage(Bytes(self.usage as u64), high);
                    self.asleep = CURVE.sleep(f, 64).as_secs_f64();
                }
            }
        }

        fn seen(&self) -> Seen {
            Seen {
                usage: Bytes(self.usage as u64),
                standing: self.high,
                limit: Limit::Bytes(Bytes::mib(1024)),
                events: self.events,
                stalled: Some(self.stalled),
            }
        }

        /// So many seconds under guard: what was told.
        fn run(&mut self, native: &mut Native, seconds: u64) -> Vec<(u64, Deed)> {
            let mut told = Vec::new();
            for _ in 0..seconds {
                self.second();
                let mut deeds = Vec::new();
                native.look(self.now, self.seen(), &mut deeds);
                for deed in deeds {
                    match deed {
                        Deed::Write(high) => {
                            self.high = high;
                            native.wrote(high);
                        }
                        deed => told.push((self.now.as_secs(), deed)),
                    }
                }
            }
            told
        }
    }

    /// With a high of ours, that stands, and is far away.
    fn ours(high: Bytes) -> (Native, Group) {
        let mut native = Native::new(CURVE, Limit::Bytes(high), Limit::Max, WAY_OUT);
        let mut group = Group::new(Limit::Max, Bytes::mib(10));
        assert_eq!(group.run(&mut native, 2), []);
        group.demand = Bytes::mib(198);
        (native, group)
    }

    #[test]
    fn a_wide_gap_is_throttled_natively_for_ten_minutes_and_released_by_us_within_the_budget() {
        // 1.18 × high + 80 MiB.
        let demand = Bytes::mib(198);
        let mut alone = Group::new(Limit::Bytes(HIGH), demand);
        for _ in 0..600 {
            alone.second();
        }
        assert!(alone.usage < demand.0 as f64 * 0.98, "{}", alone.usage);

        let mut native = Native::new(CURVE, Limit::Bytes(HIGH), Limit::Bytes(HIGH), WAY_OUT);
        let mut group = Group::new(Limit::Bytes(HIGH), demand);
        let told = group.run(&mut native, 45);
        assert!(group.usage >= demand.0 as f64, "{}", group.usage);
        assert!(matches!(told[..], [(30..=33, Deed::Spent(Then::Release, _))]), "{told:?}");
        assert_eq!(native.totals().released, 1);
    }

    #[test]
    fn ours_is_written_and_what_stood_before_is_what_is_put_back() {
        let (mut native, mut group) = ours(HIGH);
        group.demand = Bytes(0);
        assert_eq!(group.run(&mut native, 2), []);
        assert_eq!(group.high, Limit::Bytes(HIGH));
        assert_eq!(native.to_undo(), Some((Limit::Max, Limit::Bytes(HIGH))));
    }

    #[test]
    fn a_lower_high_of_somebody_elses_is_not_raised() {
        let mut native =
            Native::new(CURVE, Limit::Bytes(HIGH), Limit::Bytes(Bytes::mib(50)), WAY_OUT);
        let mut group = Group::new(Limit::Bytes(Bytes::mib(50)), Bytes(0));
        assert_eq!(group.run(&mut native, 2), []);
        assert_eq!((group.high, native.to_undo()), (Limit::Bytes(Bytes::mib(50)), None));
    }

    #[test]
    fn somebody_elses_high_is_guarded_too_and_put_back_when_it_is_calm() {
        let mut native = Native::new(CURVE, Limit::Max, Limit::Bytes(HIGH), WAY_OUT);
        let mut group = Group::new(Limit::Bytes(HIGH), Bytes::mib(198));
        group.run(&mut native, 40);
        assert!(group.high > Limit::Bytes(Bytes::mib(198)), "{}", group.high);
        assert_eq!(native.to_undo().unwrap().0, Limit::Bytes(HIGH));
        // It frees what it had: high comes down by and by, and is theirs again.
        (group.usage, group.demand) = (f64::from(60 << 20), Bytes::mib(60));
        let told = group.run(&mut native, 60);
        assert!(matches!(told[..], [(_, Deed::Resumed)]), "{told:?}");
        assert_eq!((group.high, native.to_undo()), (Limit::Bytes(HIGH), None));
    }

    #[test]
    fn after_a_release_high_comes_down_slowly() {
        let (mut native, mut group) = ours(HIGH);
        group.run(&mut native, 45);
        let mut seen = vec![group.high];
        for n in 0..200 {
            group.usage = f64::from(190 << 20) - f64::from(1 << 20) * f64::from(n);
            group.demand = Bytes(0);
            group.run(&mut native, 1);
            if seen.last() != Some(&group.high) {
                seen.push(group.high);
            }
        }
        assert!(seen.windows(2).all(|two| two[1] < two[0]), "{seen:?}");
        assert!(seen.len() > 5, "{seen:?}");
        assert_eq!(seen.last(), Some(&Limit::Bytes(HIGH)));
    }

    #[test]
    fn a_second_climb_has_a_way_out_too() {
        let (mut native, mut group) = ours(HIGH);
        group.run(&mut native, 80);
        group.demand = Bytes::mib(400);
        let told = group.run(&mut native, 60);
        assert!(group.usage >= Bytes::mib(400).0 as f64, "{}", group.usage);
        assert!(matches!(told[..], [(_, Deed::Spent(Then::Release, _))]), "{told:?}");
    }

    #[test]
    fn a_foreign_write_stands_is_said_once_and_nothing_is_written_for_half_a_minute() {
        let (mut native, mut group) = ours(HIGH);
        group.demand = Bytes(0);
        group.run(&mut native, 2);
        let mut told = Vec::new();
        let mut writes = 0;
        for n in 0..60 {
            group.high = Limit::Bytes(Bytes::mib(70 + n % 2));
            told.extend(group.run(&mut native, 1));
            writes += u32::from(group.high != Limit::Bytes(Bytes::mib(70 + n % 2)));
        }
        assert_eq!((told.len(), writes), (1, 0), "{told:?}");
        assert_eq!(native.to_undo(), None);
    }

    #[test]
    fn what_was_there_before_written_again_is_let_be_for_half_a_minute_and_ours_follows() {
        let (mut native, mut group) = ours(HIGH);
        group.demand = Bytes(0);
        group.run(&mut native, 2);
        group.high = Limit::Max;
        let told = group.run(&mut native, 29);
        assert!(matches!(told[..], [(_, Deed::Adopted(_, Limit::Max))]), "{told:?}");
        assert_eq!(group.high, Limit::Max);
        assert_eq!(group.run(&mut native, 3), []);
        assert_eq!(group.high, Limit::Bytes(HIGH));
    }

    #[test]
    fn without_events_nothing_is_counted_and_nobody_is_woken() {
        let mut native = Native::new(CURVE, Limit::Max, Limit::Bytes(HIGH), WAY_OUT);
        let seen = Seen {
            usage: Bytes::mib(130),
            standing: Limit::Bytes(HIGH),
            limit: Limit::Max,
            events: 7,
            stalled: Some(Duration::ZERO),
        };
        for n in 0..100 {
            let mut deeds = Vec::new();
            let stalled = Some(Duration::from_secs(n));
            let next = native.look(Duration::from_secs(n), Seen { stalled, ..seen }, &mut deeds);
            assert_eq!((next, deeds), (None, vec![]));
        }
    }

    #[test]
    fn throttled_time_is_what_was_waited_for_while_events_rise_and_none_of_what_was_before() {
        let mut native = Native::new(CURVE, Limit::Max, Limit::Bytes(HIGH), WAY_OUT);
        let seen = |events, stalled| Seen {
            usage: Bytes::mib(130),
            standing: Limit::Bytes(HIGH),
            limit: Limit::Max,
            events,
            stalled: Some(Duration::from_millis(stalled)),
        };
        let mut look = |second, seen| {
            let mut deeds = Vec::new();
            native.look(Duration::from_secs(second), seen, &mut deeds);
            assert_eq!(deeds, []);
            native.totals().frozen
        };
        look(0, seen(7, 0));
        // For an hour it waited for a disk now and then, more than the budget of the way out; then it grows.
        assert_eq!(look(3600, seen(8, 90_000)), Duration::ZERO);
        assert_eq!(look(3601, seen(9, 90_800)), Duration::from_millis(800));
        assert_eq!(look(3602, seen(10, 91_500)), Duration::from_millis(1500));
        // Calm again, and again a disk.
        look(3610, seen(10, 91_500));
        assert_eq!(look(7200, seen(11, 95_000)), Duration::from_millis(1500));
    }

    #[test]
    fn notify_tells_once_and_high_stays() {
        let way_out = WayOut { then: Then::Notify, ..WAY_OUT };
        let mut native = Native::new(CURVE, Limit::Bytes(HIGH), Limit::Max, way_out);
        let mut group = Group::new(Limit::Max, Bytes::mib(198));
        group.usage = f64::from(90 << 20);
        group.demand = Bytes::mib(90);
        group.run(&mut native, 1);
        group.demand = Bytes::mib(198);
        let told = group.run(&mut native, 100);
        assert!(matches!(told[..], [(_, Deed::Spent(Then::Notify, _))]), "{told:?}");
        assert_eq!(group.high, Limit::Bytes(HIGH));
    }

    #[test]
    fn without_psi_time_above_high_counts_as_long_as_events_rise() {
        let mut native = Native::new(CURVE, Limit::Bytes(HIGH), Limit::Bytes(HIGH), WAY_OUT);
        let mut told = Vec::new();
        for n in 0..40 {
            let usage = Bytes::mib(120);
            let standing = native.ours.unwrap_or(Limit::Bytes(HIGH));
            let seen = Seen { usage, standing, limit: Limit::Max, events: n, stalled: None };
            let mut deeds = Vec::new();
            native.look(Duration::from_secs(n), seen, &mut deeds);
            for deed in deeds {
                match deed {
                    Deed::Write(high) => native.wrote(high),
                    deed => told.push((n, deed)),
                }
            }
        }
        assert!(matches!(told[..], [(30..=31, Deed::Spent(..))]), "{told:?}");
    }

    proptest! {
        #[test]
        fn nothing_is_ever_written_under_the_declared_high(
            usages in prop::collection::vec(0u64..400, 1..300), wanted in 10u64..300,
        ) {
            let way_out = WayOut { budget: Some(Duration::from_secs(3)), then: Then::Release };
            let wanted = Limit::Bytes(Bytes::mib(wanted));
            let mut native = Native::new(CURVE, wanted, Limit::Max, way_out);
            let mut standing = Limit::Max;
            for (n, usage) in usages.iter().enumerate() {
                let seen = Seen {
                    usage: Bytes::mib(*usage), standing, limit: Limit::Bytes(Bytes::mib(400)),
                    events: n as u64, stalled: Some(Duration::from_secs(n as u64)),
                };
                let mut deeds = Vec::new();
                native.look(Duration::from_secs(n as u64), seen, &mut deeds);
                for deed in deeds {
                    if let Deed::Write(high) = deed {
                        prop_assert!(high >= wanted);
                        native.wrote(high);
                        standing = high;
                    }
                }
            }
        }
    }
}

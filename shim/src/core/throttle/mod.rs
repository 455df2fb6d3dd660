//! `memory.high` where the kernel has none: who is to be frozen for how long.
//!
//! Tasks that grow while usage is above high owe time on the kernel's own [`Curve`]. They are frozen
//! together, in pulses as long as the largest debt and of 2 s at most; what is left of a debt is
//! carried. Between two pulses is a window in which who has slept enough may grow by one charge: that is what the
//! kernel grants between two sleeps (`sleeps.rs`).
//!
//! ```text
//!          │◀── window ──▶│◀────── pulse ──────▶│◀─ window ─▶│
//!  thawed  ┌──────────────┐                     ┌────────────┐
//!  frozen ─┘   +1 charge  └─────────────────────┘  +1 charge └───
//!                         ▲ look: who grew, what it costs at this overage
//! ```
//!
//! Everything here is a pure function of what was seen and when. [`WayOut`] ends throttling that
//! achieves nothing.

mod account;
mod change;
mod curve;
mod debt;
mod early;
mod freezing;
mod growth;
mod kin;
mod looks;
pub mod native;
mod pace;
mod sleeps;
mod strange;
mod trial;
mod way_out;
mod who;

pub use change::Changed;
pub use curve::{Curve, HUGE, IGNORED, LONGEST};
pub use early::{Moves, Turn, is_early, next_look};
pub use freezing::may_hold_yet;
pub use growth::{Attribution, Change, Grown, Shares};
pub use kin::{Kin, Process, starter};
pub use looks::Looks;
pub use pace::{NAP, Pace};
pub use strange::{Seen, Strange};
pub use trial::Trial;
pub use way_out::{APPROACH, BUDGET, BadWayOut, Cause, Guard, Then, WayOut};
pub use who::{
    Found, STARTING, Sought, Standing, Step, TRIED, chance, found, is_bystander, who_faulted_alone,
    who_grows, writes,
};

use crate::core::event::Now;
use cgroupfs::units::page_size;
use cgroupfs::{Bytes, Limit};
use debt::Debts;
use sleeps::Turns;
use std::collections::BTreeSet;
use std::time::Duration;

/// A window is over after so long even if nobody grew by a whole charge.
pub const WINDOW: Duration = Duration::from_millis(20);

/// The leak of a freeze is averaged over about so many.
const LEAKS: f64 = 8.0;

/// Of so many charges in a window, at most, each is looked at: of more of them, some.
const CHARGES: u64 = 32;

/// More than this is not charged from one look to the next but by a call that reserves it.
const AT_ONCE: Bytes = Bytes::mib(8);

/// So many highs count for one container at most: its own, and those nearest above it (a pod's, say).
pub const MOST_LEVELS: usize = 4;

/// So much page cache above high is not slept on, or 1 % of high: half of what a high is to be exceeded by at most.
const AHEAD: Bytes = Bytes::mib(8);

/// How much of this clean page cache is not slept on: somebody reclaims it, and who fills it waits only where it is
/// further ahead than that.
pub fn not_slept_on(clean_file: Bytes, high: Bytes) -> Bytes {
    clean_file.min(AHEAD.max(high.scale(1, 100)))
}

/// A group that has a high, with what it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Usage now; of a group above the container's, less what is reclaimed there, not slept on.
    pub usage: Bytes,
    /// `memory.high`, emulated.
    pub high: Bytes,
}

impl Level {
    /// Of a group that is never above its high.
    pub const NONE: Level = Level { usage: Bytes(0), high: Bytes(u64::MAX) };

    /// The share by which usage is above high ([`Curve::overage`]).
    pub fn overage(&self) -> f64 {
        Curve::overage(self.usage, self.high)
    }
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThrottleTotals {
    /// Pulses that froze.
    pub pulses: u64,
    /// Time tasks were held frozen; by the kernel's own throttling, waited ([`native::Native::totals`]).
    pub frozen: Duration,
    /// Time that they are still to be, for growth that was not paid for yet.
    pub debt: Duration,
    /// Longest pulse.
    pub longest: Duration,
    /// Times the way out ended throttling.
    pub released: u64,
    /// Pulses that did not reach FROZEN in time (a task waits for a disk, say): thawed again.
    pub unfrozen: u64,
    /// Pulses cut short because a task had been killed.
    pub killed: u64,
}

impl ThrottleTotals {
    /// Together with what others did before, as far as it adds up.
    #[must_use]
    pub fn after(self, before: ThrottleTotals) -> ThrottleTotals {
        ThrottleTotals {
            pulses: before.pulses + self.pulses,
            frozen: before.frozen + self.frozen,
            released: before.released + self.released,
            ..self
        }
    }
}

/// The throttle of one container.
#[derive(Debug, Clone)]
pub struct Throttle {
    curve: Curve,
    high: Bytes,
    debts: Debts,
    /// Each level's way out: the container's own first.
    guards: Vec<Guard>,
    /// The level whose overage was largest.
    decisive: usize,
    /// The last overage seen, and what a charge costs there.
    overage: f64,
    sleep: Duration,
    growers: u64,
    unit: u64,
    /// Turns since all had one.
    had: u64,
    /// What usage still grows by, about, once a freeze has been decided on.
    leak: f64,
    totals: ThrottleTotals,
}

impl Throttle {
    /// A throttle above `high`.
    pub fn new(curve: Curve, high: Bytes, way_out: WayOut) -> Throttle {
        Throttle {
            curve,
            high,
            debts: Debts::default(),
            guards: vec![Guard::new(way_out)],
            decisive: 0,
            overage: 0.0,
            sleep: Duration::ZERO,
            growers: 1,
            unit: curve.batch(),
            had: 0,
            leak: 0.0,
            totals: ThrottleTotals::default(),
        }
    }

    /// The same beneath another group with an emulated high, and the way out of throttling above that: the
    /// nearest first.
    #[must_use]
    pub fn beneath(mut self, way_out: WayOut) -> Throttle {
        self.guards.push(Guard::new(way_out));
        self
    }

    /// The declared high.
    pub const fn high(&self) -> Bytes {
        self.high
    }

    /// The curve.
    pub const fn curve(&self) -> Curve {
        self.curve
    }

    /// What was done so far.
    pub fn totals(&self) -> ThrottleTotals {
        ThrottleTotals { debt: self.debts.sleeps().due(), ..self.totals }
    }

    /// The high of the nth level to throttle above now ([`Guard::effective`]).
    pub fn effective_high(&mut self, now: Now, n: usize, level: Level) -> Limit {
        match self.guards.get_mut(n) {
            Some(guard) => guard.effective(now, level.usage, level.high),
            None => Limit::Bytes(level.high),
        }
    }

    /// Whether throttling is suspended, or eased, after a release: above any of the levels.
    pub fn is_released(&self) -> bool {
        self.guards.iter().any(Guard::is_released)
    }

    /// The usage up to which nothing is owed, whoever grows: no look is needed below.
    pub fn free_until(&self, high: Bytes) -> Bytes {
        high.saturating_add(Bytes((high.0 as f64 * self.curve.free_until(HUGE)) as u64))
    }

    /// The overage that counts: the largest among the container's own and its emulated ancestors', as in
    /// the kernel (`mem_find_max_overage()`). What could be reclaimed at once counts for none: page cache is
    /// reclaimed, not slept on.
    pub fn overage(&mut self, now: Now, levels: &[Level], reclaimable: Bytes) -> f64 {
        self.largest_overage(now, levels, reclaimable, Bytes(0))
    }

    /// The same before so much of the growth, which is part of each level's usage.
    fn largest_overage(
        &mut self,
        now: Now,
        levels: &[Level],
        reclaimable: Bytes,
        later: Bytes,
    ) -> f64 {
        let (mut largest, mut decisive) = (0.0, 0);
        for (n, level) in levels.iter().enumerate() {
            let Limit::Bytes(high) = self.effective_high(now, n, *level) else { continue };
            let reclaimable = if n == 0 { reclaimable } else { Bytes(0) };
            let usage = level.usage.saturating_sub(reclaimable).saturating_sub(later);
            let overage = Curve::overage(usage, high);
            if overage > largest {
                (largest, decisive) = (overage, n);
            }
        }
        self.decisive = decisive;
        largest
    }

    /// A window is over: these tasks grew by so much in it. How long they are to be frozen for now;
    /// zero: not at all.
    pub fn window(
        &mut self,
        now: Now,
        levels: &[Level],
        reclaimable: Bytes,
        grown: &[Grown],
    ) -> Duration {
        let f = self.overage(now, levels, reclaimable);
        if f <= 0.0 {
            self.debts.clear();
            (self.overage, self.sleep) = (0.0, Duration::ZERO);
            return Duration::ZERO;
        }
        // Each charge is slept for at the usage it led to, not at that which all of them led to.
        let unit = grown.iter().map(|grown| grown.unit).max().unwrap_or(0);
        let pages: u64 = grown.iter().map(|grown| grown.pages).fold(0, u64::saturating_add);
        if unit > 0 {
            self.unit = unit;
        }
        let high = levels.get(self.decisive).map_or(self.high, |level| level.high);
        let (unit, costs_now) = (self.unit, self.curve.sleep(f, self.unit));
        let turns = |growers| Turns::new(growers, unit, costs_now, high);
        let (f, costs) = self.charged(now, levels, reclaimable, pages);
        let sleep = costs.iter().sum::<Duration>() / costs.len().max(1) as u32;
        (self.overage, self.sleep) = (f, sleep);
        let owed = grown.iter().map(|grown| {
            let charges = grown.pages as f64 / grown.unit.max(1) as f64;
            let penalty = match grown.unit {
                same if same == self.unit => sleep.mul_f64(charges),
                _ => self.curve.penalty(f, grown.pages, grown.unit),
            };
            (grown.task, charges, penalty)
        });
        self.debts.window(owed, &costs, turns);
        self.growers = self.debts.growers().max(1) as u64;
        self.overage(now, levels, reclaimable);
        self.due()
    }

    /// A window was so long: whose turn it was not slept meanwhile, by the kernel's way.
    pub fn slept_on(&mut self, window: Duration) {
        self.debts.sleeps_mut().slept_on(window);
    }

    /// Whether with the window that is over all who grow have had a turn since this was so last.
    pub fn all_had_turns(&mut self) -> bool {
        self.had += self.debts.sleeps().granted(Duration::ZERO);
        let all = self.had >= self.growers;
        if all {
            self.had = 0;
        }
        all
    }

    /// What the charges that these pages came in cost, the first of them and so on, and at which overage on the average.
    fn charged(
        &mut self,
        now: Now,
        levels: &[Level],
        reclaimable: Bytes,
        pages: u64,
    ) -> (f64, Vec<Duration>) {
        let steps = pages.div_ceil(self.unit).clamp(1, CHARGES);
        let before_the_last = pages.saturating_sub(self.unit);
        let (mut overages, mut costs) = (0.0, Vec::with_capacity(steps as usize));
        for step in (0..steps).rev() {
            let later =
                u128::from(before_the_last) * u128::from(step) / u128::from(steps.max(2) - 1);
            let later = Bytes((later as u64).saturating_mul(page_size()));
            let f = self.largest_overage(now, levels, reclaimable, later);
            overages += f;
            costs.push(self.curve.sleep(f, self.unit));
        }
        (overages / steps as f64, costs)
    }

    fn due(&self) -> Duration {
        let due = self.debts.sleeps().due().min(LONGEST);
        // Too short to be slept: carried.
        if due <= IGNORED { Duration::ZERO } else { due }
    }

    /// A pulse is over that held tasks frozen for `time`, with the levels at this now. `Some` when the budget
    /// of the way out is spent: that of the level which decided ([`Throttle::decisive`]).
    pub fn pulsed(&mut self, now: Now, time: Duration, levels: &[Level]) -> Option<Then> {
        self.totals.pulses += 1;
        self.totals.frozen += time;
        self.totals.longest = self.totals.longest.max(time);
        self.debts.sleeps_mut().frozen(time);
        for (guard, level) in self.guards.iter_mut().zip(levels) {
            if level.usage <= level.high {
                guard.throttled(now, Duration::ZERO, level.usage, level.high);
            }
        }
        let level = levels.get(self.decisive)?;
        let guard = self.guards.get_mut(self.decisive)?;
        let then = guard.throttled(now, time, level.usage, level.high)?;
        if then != Then::Notify {
            self.totals.released += 1;
            self.debts.clear();
        }
        Some(then)
    }

    /// A pulse never reached FROZEN.
    pub fn not_frozen(&mut self) {
        self.totals.unfrozen += 1;
    }

    /// A pulse was cut short for a task that had been killed.
    pub fn cut_short(&mut self) {
        self.totals.killed += 1;
    }

    /// These tasks are known to grow; others are gone, or grow no more.
    pub fn growing(&mut self, tasks: &BTreeSet<u32>) {
        for task in tasks {
            self.debts.enroll(*task);
        }
        self.debts.keep(|task| tasks.contains(&task));
    }

    /// These tasks had no turn in the window that is over: nothing is learnt of them from it.
    pub fn waiting(&mut self, tasks: BTreeSet<u32>) {
        self.debts.waiting(tasks);
    }

    /// The terms of the window after a pulse of this length: what the group's usage may grow by before it
    /// is frozen again, and the debt that is left. One charge for each task that grew in the last window, or for
    /// those whose turn it is, less what leaks until a freeze holds; nothing while debt is left: tasks are
    /// thawed then only because a pulse has to end.
    pub fn after(&self, pulse: Duration) -> (Bytes, Duration) {
        let carried = self.debts.sleeps().due().saturating_sub(pulse);
        if carried > IGNORED {
            return (Bytes(0), carried);
        }
        let granted = Bytes(self.debts.sleeps().granted(pulse) * self.unit * page_size());
        let quota = granted.saturating_sub(Bytes(self.leak as u64)).max(Bytes(page_size()));
        (quota, Duration::ZERO)
    }

    /// A freeze that was decided on held only after usage had grown by so much more.
    pub fn leaked(&mut self, bytes: Bytes) {
        self.leak += (bytes.0 as f64 - self.leak) / LEAKS;
    }

    /// What freezing would be due if all growers had grown alike, for whoever cannot wait for a look at
    /// each of them: a group of so many growers, that charge `unit` pages at once, grew by `grown` to an
    /// overage of `f`.
    pub fn estimate(curve: Curve, f: f64, grown: Bytes, growers: u64, unit: u64) -> Duration {
        let pages = grown.0 / page_size() / growers.max(1);
        let due = curve.penalty(f, pages, unit).min(LONGEST);
        if due <= IGNORED { Duration::ZERO } else { due }
    }

    /// How much such a group may have charged at once, so that each of its tasks owes no more than the kernel lets it sleep
    /// for a call, however much that charged.
    pub fn at_once(curve: Curve, f: f64, growers: u64, unit: u64) -> Bytes {
        let each = LONGEST.as_secs_f64() / curve.sleep(f, unit).as_secs_f64().max(1e-9);
        let charge = Bytes(unit.saturating_mul(page_size()));
        AT_ONCE.min(Bytes(charge.0.saturating_mul(growers.max(1)).saturating_mul(each as u64)))
    }

    /// The level for which tasks are frozen, by the last look: 0 is the container's own.
    pub const fn decisive(&self) -> usize {
        self.decisive
    }

    /// Throttled time without progress so far, above the level that decides.
    pub fn stalled(&self) -> Duration {
        self.guards.get(self.decisive).map(Guard::spent).unwrap_or_default()
    }

    /// What a charge costs now.
    pub const fn charge_costs(&self) -> Duration {
        self.sleep
    }

    /// What this growth of one task costs it, at the last overage seen.
    pub fn costs(&self, pages: u64, unit: u64) -> Duration {
        self.curve.penalty(self.overage, pages, unit)
    }

    /// Who grew last: how many, and by how many pages at once.
    pub const fn growers(&self) -> (u64, u64) {
        (self.growers, self.unit)
    }
}

#[cfg(test)]
mod tests;

//! A window: tasks run until they have grown by what is granted.

use super::thawer;
use super::thread::{Due, Next, Pulse};
use super::{Order, Report, Terms};
use crate::core::throttle::{HUGE, LONGEST, Level, MOST_LEVELS, Pace, Throttle, WINDOW};
use cgroupfs::Bytes;
use cgroupfs::units::page_size;
use std::time::{Duration, Instant};

/// A window in which nothing is granted, as there is debt left, is over after so long: the kernel, too, lets
/// tasks run between two sleeps of 2 s.
const CHANCE: Duration = Duration::from_millis(2);

/// A group that has not grown by [`GROWS`] for so long is quiet: its windows are no longer timed.
const QUIET: Duration = Duration::from_millis(300);
const GROWS: Bytes = Bytes::kib(64);

impl Pulse {
    /// A window. `Ok` when a pulse is due, with its length as far as it can be told from here.
    pub(super) fn window(&mut self, terms: &mut Terms) -> Result<Due, Next> {
        let slept_over = self.thawed_with.take();
        let usage = match slept_over {
            Some(usage) => usage,
            None => self.usage()?,
        };
        let (mut base, mut huge) = (self.base(usage, terms), Bytes(0));
        // Tasks ran on until this thread did. (Measured on 6.18 with four growers in huge pages: 4 MiB.)
        if let Some(crossing) = self.crossed.take() {
            let f = largest(&self.levels(usage, terms));
            let from = |unit| {
                let most = Throttle::at_once(self.curve, f, crossing.tasks, unit);
                base.min(crossing.mark.max(usage.saturating_sub(most)))
            };
            let small = from(terms.unit);
            base = from(terms.unit.max(HUGE));
            huge = small.saturating_sub(base);
        }
        let mut start = Instant::now();
        let mut moved = (start, usage);
        let mut last = (start, usage);
        // With debt left, or after a pulse that was cut short: they get a chance to run all the same.
        let (length, least) = match self.short || terms.carried > Duration::ZERO {
            true => (CHANCE, GROWS),
            false => (WINDOW, Bytes(0)),
        };
        terms.quota = terms.quota.max(least);
        let opened = start;
        let mut pace = Pace::thawed(terms.unit, self.may_spin);
        let mut nap = match slept_over {
            Some(_) => Duration::ZERO,
            None => pace.nap(Bytes(0), Duration::ZERO),
        };
        loop {
            match self.next_order(Some(nap), None) {
                Some(Order::Open(new)) => *terms = new,
                Some(Order::Change(bars, free)) => terms.change(bars, free),
                Some(Order::Park) => return Err(Next::Park),
                Some(Order::Stop) => return Err(Next::Stop),
                Some(Order::ThawAt(..) | Order::OpenLate(..) | Order::Await(..)) | None => {}
            }
            let (now, usage) = (Instant::now(), self.usage()?);
            let levels = self.levels(usage, terms);
            let f = largest(&levels);
            let costs = self.curve.sleep(f, terms.unit);
            if costs == Duration::ZERO && terms.carried == Duration::ZERO {
                // Free growth is no debt later on.
                (base, huge) = (usage, Bytes(0));
                start = now;
            }
            let grown = usage.saturating_sub(base);
            if grown >= terms.quota || now - start >= length {
                let due = Throttle::estimate(self.curve, f, grown, terms.growers, terms.unit)
                    + terms.carried;
                if due > Duration::ZERO {
                    let length = due.min(LONGEST);
                    // Unless somebody who knows better tells in time.
                    terms.carried = due - length;
                    return Ok(Due { length, usage, grown, huge });
                }
                start = now;
            }
            if usage.0.abs_diff(moved.1.0) >= GROWS.0 {
                moved = (now, usage);
            } else if now - moved.0 >= QUIET && terms.carried == Duration::ZERO {
                self.say(Report::Quiet);
                return Err(Next::Park);
            }
            let room = match costs {
                Duration::ZERO => self.free_room(&levels, terms),
                _ => terms.quota.saturating_sub(grown),
            };
            pace.napped(now - last.0, usage.saturating_sub(last.1));
            last = (now, usage);
            nap = pace.nap(room, now - opened);
            if self.thawer.is_some() {
                nap = nap.max(thawer::NAP);
            }
        }
    }

    /// From where growth counts in a window that begins with this usage. What a CPU has charged ahead goes back while
    /// its tasks are frozen, as soon as it charges for another group: filling that up again is no growth. (Measured
    /// on a busy machine: two windows of three were over after 2 pages.)
    fn base(&self, usage: Bytes, terms: &Terms) -> Bytes {
        let given_back = self.frozen_at.saturating_sub(usage);
        let most = self.cpus.min(terms.growers) * self.curve.batch() * page_size();
        // More than that was reclaimed.
        if given_back.0 <= most { usage.saturating_add(given_back) } else { usage }
    }

    /// The container's own and those above it, with this in use by the container.
    fn levels(&self, usage: Bytes, terms: &Terms) -> [Level; MOST_LEVELS] {
        let mut levels = [Level::NONE; MOST_LEVELS];
        levels[0] = terms.bars[0].level(usage);
        let above = self.above.iter().zip(terms.bars.iter().skip(1));
        for (level, (memory, bar)) in levels.iter_mut().skip(1).zip(above) {
            // One that is gone takes us with it soon enough.
            if let Ok(usage) = memory.usage() {
                *level = bar.level(usage);
            }
        }
        levels
    }

    /// How far it is to where growth costs something.
    fn free_room(&self, levels: &[Level], terms: &Terms) -> Bytes {
        let free_until = self.curve.free_until(terms.unit);
        let room = |level: &Level| {
            let free = (level.high.0 as f64 * free_until) as u64;
            level.high.saturating_add(Bytes(free)).saturating_sub(level.usage)
        };
        levels.iter().map(room).min().unwrap_or_default()
    }
}

/// The overage that counts.
fn largest(levels: &[Level]) -> f64 {
    levels.iter().map(Level::overage).fold(0.0, f64::max)
}

//! What the thread does: it waits for orders, and for a threshold; then windows and pulses by turns.

use super::killed::{KILLED, Killed};
use super::thawer::Thawer;
use super::{Crossing, Order, Report, Terms};
use crate::core::throttle::{Curve, IGNORED, LONGEST};
use crate::driver::cpus::Allowed;
use crate::driver::throttle::FreezeJournal;
use cgroupfs::Bytes;
use cgroupfs::events::Notification;
use cgroupfs::freezer::Switch;
use cgroupfs::memory::Memory;
use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the thread works with.
pub(super) struct Pulse {
    pub(super) switch: Arc<Switch>,
    pub(super) memory: Arc<dyn Memory>,
    /// Of the groups above that have a high, too.
    pub(super) above: Vec<Arc<dyn Memory>>,
    pub(super) curve: Curve,
    pub(super) journal: Arc<dyn FreezeJournal>,
    pub(super) orders: Receiver<Order>,
    pub(super) reports: Sender<Report>,
    pub(super) kick: Arc<EventFd>,
    pub(super) wake: Arc<EventFd>,
    pub(super) killed: Killed,
    pub(super) pulse: u64,
    /// The last pulse was shorter than any that is due.
    pub(super) short: bool,
    /// Usage when the last pulse held.
    pub(super) frozen_at: Bytes,
    /// It was crossed, and no window was timed since.
    pub(super) crossed: Option<Crossing>,
    /// Who thaws where real time is refused, and usage just before the last thaw then: they run before this thread does.
    pub(super) thawer: Option<Thawer>,
    pub(super) thawed_with: Option<Bytes>,
    pub(super) cpus: u64,
    pub(super) allowed: Allowed,
    /// The growers have another CPU while this thread has one, and it keeps it.
    pub(super) may_spin: bool,
}

/// A pulse that is due.
pub(super) struct Due {
    pub(super) length: Duration,
    pub(super) usage: Bytes,
    pub(super) grown: Bytes,
    /// Of it, what is owed only by who fills huge pages.
    pub(super) huge: Bytes,
}

/// Thaws when dropped: on every way out of the thread, a panic included.
struct Thawed<'a> {
    switch: &'a Switch,
    journal: &'a dyn FreezeJournal,
    already: bool,
}

impl Thawed<'_> {
    /// By now, or by somebody else since then.
    fn thaw(mut self, thawer: Option<&mut Thawer>) -> Instant {
        let since = thawer.map(Thawer::thaw);
        self.already = since.is_some();
        drop(self);
        since.unwrap_or_else(Instant::now)
    }
}

impl Drop for Thawed<'_> {
    fn drop(&mut self) {
        if !self.already {
            let _ = self.switch.thaw();
        }
        self.journal.end();
    }
}

/// What ends a stretch of work.
pub(super) enum Next {
    Park,
    Stop,
}

impl Pulse {
    pub(super) fn run(mut self) {
        let mut awaited: Option<(Arc<Notification>, Terms, Crossing)> = None;
        loop {
            let order = self.next_order(None, awaited.as_ref().map(|(threshold, ..)| &**threshold));
            self.crossed = None;
            let terms = match order {
                Some(Order::Open(terms)) => terms,
                Some(Order::OpenLate(terms, crossing)) => {
                    self.crossed = Some(crossing);
                    terms
                }
                Some(Order::Await(threshold, terms, crossing)) => {
                    awaited = Some((threshold, terms, crossing));
                    continue;
                }
                Some(Order::Stop) => return,
                Some(Order::Park) => {
                    awaited = None;
                    self.say(Report::Parked);
                    continue;
                }
                Some(Order::Change(bars, free)) => {
                    if let Some((_, terms, _)) = &mut awaited {
                        terms.change(bars, free);
                    }
                    continue;
                }
                Some(Order::ThawAt(..)) => continue,
                None => match &awaited {
                    Some((threshold, terms, crossing)) if threshold.take() => {
                        self.say(Report::Crossed);
                        self.crossed = Some(*crossing);
                        *terms
                    }
                    _ => continue,
                },
            };
            awaited = None;
            match self.work(terms) {
                Next::Stop => return,
                Next::Park => self.say(Report::Parked),
            }
        }
    }

    /// Windows and pulses by turns, until told otherwise or the group is quiet.
    fn work(&mut self, mut terms: Terms) -> Next {
        self.thawed_with = None;
        loop {
            let frozen = match self.window(&mut terms) {
                Ok(frozen) => frozen,
                Err(next) => return next,
            };
            if let Err(next) = self.pulse(frozen, &mut terms) {
                return next;
            }
        }
    }

    /// Freezes, waits, thaws. `terms` are those of the next window.
    fn pulse(&mut self, due: Due, terms: &mut Terms) -> Result<(), Next> {
        self.pulse += 1;
        let pulse = self.pulse;
        let journal = self.journal.clone();
        // Journalled before it is done, with the time by which it must be over.
        journal.begin(due.length);
        let switch = self.switch.clone();
        let thawed = Thawed { switch: &switch, journal: &*journal, already: false };
        let froze = switch.freeze();
        let at = Instant::now();
        if let Err(errno) = froze {
            drop(thawed);
            self.say(Report::Refused(errno));
            return Err(Next::Park);
        }
        self.say(Report::Frozen { pulse, at, usage: due.usage, grown: due.grown, huge: due.huge });
        // The next window is timed from another CPU, on which nobody else gets to run in it. (Measured on 6.18, four growers
        // on two CPUs: whom a thaw wakes first has the other one, and of 36 charges had 30. By turns it has 20, and each of
        // the others 3 to 7.)
        if self.may_spin && self.allowed.are_few() {
            self.allowed.go_to(pulse);
        }
        let mut until = at + due.length;
        self.frozen_at = due.usage;
        let mut killed = false;
        let next = loop {
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break None;
            }
            match self.next_order(Some(left.min(KILLED)), None) {
                None if self.killed.somebody_is() => {
                    killed = true;
                    break None;
                }
                Some(Order::ThawAt(number, when, new)) if number == pulse => {
                    // In the journal too if it is shorter: whoever undoes it is not to wait for longer.
                    // One that turns out not to be due is over now.
                    let over = Instant::now().min(until);
                    let before = std::mem::replace(&mut until, when.min(at + LONGEST).max(over));
                    if before != until {
                        self.journal.begin(until.saturating_duration_since(Instant::now()));
                    }
                    *terms = new;
                    // What leaked until it held is paid for already.
                    self.frozen_at = self.usage().unwrap_or(due.usage).max(due.usage);
                }
                Some(Order::Change(bars, free)) => {
                    terms.change(bars, free);
                    if free {
                        until = until.min(Instant::now());
                    }
                }
                Some(Order::Park) => break Some(Next::Park),
                Some(Order::Stop) => break Some(Next::Stop),
                Some(
                    Order::ThawAt(..) | Order::Open(_) | Order::OpenLate(..) | Order::Await(..),
                )
                | None => {}
            }
        };
        self.thawed_with = self.thawer.as_ref().and_then(|_| self.usage().ok());
        let now = thawed.thaw(self.thawer.as_mut());
        if killed {
            self.killed.let_die(now);
        }
        self.short = now - at < IGNORED / 2;
        let late = now.saturating_duration_since(until);
        self.say(Report::Thawed { at: now, frozen: now - at, late, killed });
        next.map_or(Ok(()), Err)
    }

    /// Waits for an order, or that a threshold is crossed, `patience` at most.
    pub(super) fn next_order(
        &self,
        patience: Option<Duration>,
        threshold: Option<&Notification>,
    ) -> Option<Order> {
        if let Ok(order) = self.orders.try_recv() {
            return Some(order);
        }
        if patience == Some(Duration::ZERO) {
            // Other containers' threads like this one would wait for as long as this one spins.
            if self.may_spin {
                std::thread::yield_now();
            }
            return None;
        }
        let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // Without a threshold the same one twice.
        let second = threshold.map_or(self.kick.as_fd(), AsFd::as_fd);
        let mut fds = [watched(self.kick.as_fd()), watched(second)];
        let ready = ppoll(&mut fds, patience.map(TimeSpec::from_duration), None);
        if ready.is_ok_and(|n| n > 0) {
            let _ = self.kick.read();
        }
        self.orders.try_recv().ok()
    }

    pub(super) fn usage(&self) -> Result<Bytes, Next> {
        self.memory.usage().map_err(|error| {
            self.say(Report::Refused(error.errno().unwrap_or(Errno::ENODEV)));
            Next::Park
        })
    }

    pub(super) fn say(&self, report: Report) {
        let _ = self.reports.try_send(report);
        let _ = self.wake.write(1);
    }
}

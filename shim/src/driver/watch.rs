//! What the kernel's events mean: usage, counters and limits are read, and the core is told.

use super::engine::Engine;
use super::flight::{Flight, INTERRUPT_AGAIN, stepped_file};
use super::{Happened, Key, reclaim};
use crate::core::Event;
use cgroupfs::memory::{ReclaimFile, Version};
use cgroupfs::{Bytes, Limit};
use std::time::Duration;

/// After an OOM event the counters are read again so often, for so long: `oom_kill` rises after the
/// event (measured on 6.18: up to 10 ms later in 4 of 200), and on a loaded host later still.
pub(super) const RECOUNT_EVERY: Duration = Duration::from_millis(5);
const RECOUNT_FOR: Duration = Duration::from_millis(100);

impl Engine {
    pub(super) fn oom(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        if enforced.deeds.is_none() {
            enforced.recount = Some((now + RECOUNT_EVERY, now + RECOUNT_FOR));
        }
        if let Some(oom) = &enforced.oom {
            oom.take();
        }
        self.look_at_hold(key);
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        // An OOM while our step has the limit down may be of our making: raise before all else.
        if let Some(flight) = &mut enforced.flight
            && let Some(job) = flight.job
            && let Some(ours) = flight.ticket.stop.lowered()
        {
            flight.ticket.stop.cancel();
            flight.ticket.interrupt();
            flight.interrupt_at = Some(now + INTERRUPT_AGAIN);
            let file = stepped_file(job.strategy);
            if file == ReclaimFile::Limit {
                let _ = reclaim::rescue(&*enforced.memory, file, ours, job.declared);
                self.deliver(key, Event::OomInWindow);
            }
        }
        self.count(key);
    }

    /// Files that are watched were written: of all containers but `except`, which is looked at anyway.
    pub(super) fn modifications(&mut self, except: Option<u64>) {
        for key in self.modified.take() {
            if Some(key) != except {
                self.modified(key);
            }
        }
    }

    fn modified(&mut self, key: u64) {
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let flying = enforced.flight.as_ref().is_some_and(|flight| flight.job.is_some());
        match enforced.memory.version() {
            // A step of ours wakes this too.
            Version::V1 if flying => self.foreign_in_flight(key),
            Version::V1 => self.look_at_limit(Key(key)),
            Version::V2 => {
                let before = enforced.counters;
                self.count(key);
                self.native_stirred(key);
                let Some(enforced) = self.containers.get(&key) else { return };
                if enforced.counters.max != before.max {
                    match enforced.memory.usage() {
                        Ok(usage) => self.deliver(key, Event::LimitHit(usage)),
                        Err(error) => self.failed(key, &error),
                    }
                }
            }
        }
    }

    /// Looks for somebody else's limit while a job may have it lowered. The worker itself looks before
    /// and after each write; this is for what comes during one, which may take long.
    pub(super) fn foreign_in_flight(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(Flight { ticket, job: Some(job), interrupt_at, .. }) = &mut enforced.flight else {
            return;
        };
        if stepped_file(job.strategy) != ReclaimFile::Limit {
            return;
        }
        // What stands is the declared limit, or the value of the step if that did not change while we
        // looked, or somebody else's.
        let before = ticket.stop.lowered();
        let Ok(standing) = enforced.memory.limit() else { return };
        let ours = before.map(Limit::Bytes);
        if before == ticket.stop.lowered()
            && standing != job.declared.page_floor()
            && Some(standing) != ours
        {
            ticket.stop.found_foreign(standing);
            ticket.interrupt();
            *interrupt_at = Some(now + INTERRUPT_AGAIN);
        }
    }

    /// Reads the counters and reports kills. Called by events, and by the caller at the end.
    pub(super) fn count(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        match enforced.memory.counters() {
            Ok(counters) => {
                let kills = counters
                    .oom_kill
                    .unwrap_or(0)
                    .saturating_sub(enforced.counters.oom_kill.unwrap_or(0));
                enforced.counters = counters;
                // The OOM watch tells of its own.
                if kills > 0 && enforced.deeds.is_none() {
                    if let Some(journaled) = &enforced.journaled {
                        journaled.killed(counters.oom_kill, kills);
                    }
                    let usage = enforced.memory.usage().unwrap_or_default();
                    self.happened.push(Happened::OomKill(Key(key), now, kills, usage));
                }
            }
            Err(error) => self.failed(key, &error),
        }
    }

    /// Looks at the limit of a container now: what somebody else set is adopted. Not while a job may
    /// have it lowered; the job looks itself.
    pub fn look_at_limit(&mut self, key: Key) {
        let Some(enforced) = self.containers.get(&key.0) else { return };
        let flying = enforced.flight.as_ref().is_some_and(|flight| flight.job.is_some());
        if flying || enforced.unrestored.is_some() {
            return;
        }
        let limit = enforced.memory.limit();
        // Looked at before and after: it may be emptied as its init has exited.
        if enforced.deeds.as_ref().is_some_and(|deeds| deeds.is_emptying()) {
            return;
        }
        match limit {
            // Of nobody's making but the emptier's.
            Ok(Limit::Bytes(Bytes(0))) if enforced.deeds.is_some() => {}
            Ok(limit) if limit != enforced.core.declared() => {
                self.deliver(key.0, Event::LimitChanged(limit));
            }
            Ok(_) => {}
            Err(error) => self.failed(key.0, &error),
        }
    }

    /// Looks at the counters of a container now: kills that no event told of are reported.
    pub fn recount(&mut self, key: Key) {
        self.count(key.0);
    }

    pub(super) fn look(&mut self, key: u64, event: fn(Bytes) -> Event) {
        let Some(enforced) = self.containers.get(&key) else { return };
        match enforced.memory.usage() {
            Ok(usage) => self.deliver(key, event(usage)),
            Err(error) => self.failed(key, &error),
        }
    }
}

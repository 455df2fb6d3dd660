//! Tasks in flight: started, answered, cancelled, and undone where their worker could not.

use super::engine::{Engine, Unrestored};
use super::journaled::Journaled;
use super::reclaim;
use super::worker::{Answer, Ticket, Work};
use super::{Happened, Key};
use crate::core::{Event, Job, Now, Outcome, Strategy};
use cgroupfs::memory::{ReclaimFile, Version};
use nix::errno::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a worker that was told to stop is interrupted again: a signal may come before the write.
pub(super) const INTERRUPT_AGAIN: Duration = Duration::from_millis(1);

/// Past its deadline for so long a worker waits for a disk that does not answer: it is made up for.
const OVERDUE_AFTER: Duration = Duration::from_millis(100);

/// How often that one is interrupted: the signal is pending by then.
pub(super) const INTERRUPT_OVERDUE: Duration = Duration::from_millis(100);

/// How long workers are interrupted for when the engine ends; for longer than that they are waited for, as their limits
/// are to be restored. One that is overdue has nothing lowered: its write was never done, and is interrupted.
const QUIESCE_AT_END: Duration = Duration::from_secs(2);

/// How soon a restore that failed is tried again.
const RESTORE_AGAIN: Duration = Duration::from_millis(100);

/// A task in flight.
pub(super) struct Flight {
    pub(super) ticket: Arc<Ticket>,
    pub(super) job: Option<Job>,
    /// When it is to be interrupted (again).
    pub(super) interrupt_at: Option<Now>,
    /// When nothing got it out, if it still is.
    pub(super) overdue_at: Option<Now>,
    /// Of [`Engine::reclaim`], not of the core.
    pub(super) asked: bool,
}

impl Engine {
    /// Stops what is in flight for a container and waits until it is out, `patience` at most: for a
    /// process that is about to be stopped and must not leave a lowered limit behind. Enforcement goes
    /// on with the next event.
    pub fn quiesce(&mut self, key: Key, patience: Duration) {
        self.hold_throttle(key.0, patience);
        let start = Instant::now();
        let mut later = Vec::new();
        while start.elapsed() < patience {
            let now = self.now();
            let Some(enforced) = self.containers.get_mut(&key.0) else { break };
            let Some(flight) = &mut enforced.flight else { break };
            flight.ticket.stop.cancel();
            flight.ticket.interrupt();
            flight.interrupt_at = Some(now + INTERRUPT_AGAIN);
            std::thread::sleep(Duration::from_micros(200));
            while let Some((key, answer)) = self.workers.answer() {
                let enforced = self.containers.get_mut(&key);
                let flight = enforced.and_then(|enforced| enforced.flight.take());
                let asked = flight.as_ref().is_some_and(|flight| flight.asked);
                if let Some(Flight { ticket, job: Some(job), .. }) = flight
                    && let Some(lowered) = unrestored(&ticket, &job, Now::ZERO)
                    && let Some(enforced) = self.containers.get_mut(&key)
                {
                    enforced.unrestored = Some(lowered);
                    self.restore(key);
                }
                later.push((key, answer, asked));
            }
        }
        // What they answered is handled after the stop: handling it might start the next job.
        self.later.append(&mut later);
        self.workers.wake();
    }

    pub(super) fn answers(&mut self) {
        self.workers.rearm();
        let mut later = std::mem::take(&mut self.later).into_iter();
        let fresh = |(key, answer)| (key, answer, false);
        while let Some((key, answer, was_asked)) =
            later.next().or_else(|| self.workers.answer().map(fresh))
        {
            let now = self.now();
            let Some(enforced) = self.containers.get_mut(&key) else { continue };
            let flight = enforced.flight.take();
            if let Some(deeds) = &enforced.deeds {
                deeds.ended(match &answer {
                    Answer::Done(report) => Some(report),
                    Answer::Surveyed(_) => None,
                });
            }
            let asked = was_asked || flight.as_ref().is_some_and(|flight| flight.asked);
            if let Some(Flight { ticket, job: Some(job), .. }) = flight
                && let Some(lowered) = unrestored(&ticket, &job, now)
            {
                enforced.unrestored = Some(lowered);
                self.restore(key);
            }
            let Some(enforced) = self.containers.get_mut(&key) else { continue };
            // Events during a job were its own writes, or another's after its last look: the file tells,
            // unless it may hold what could not be restored.
            if enforced.memory.version() == Version::V1
                && let Answer::Done(report) = &answer
                && !matches!(report.outcome, Outcome::Failed(_) | Outcome::Vanished)
            {
                self.modifications(Some(key));
                self.look_at_limit(Key(key));
            }
            match answer {
                answer if asked => self.answered_asked(key, answer),
                Answer::Surveyed(Ok(survey)) => self.deliver(key, Event::Surveyed(survey)),
                Answer::Surveyed(Err(error)) => {
                    self.failed(key, &error);
                    let errno = error.errno().unwrap_or(Errno::EIO) as i32;
                    self.deliver(key, Event::Failed(errno));
                }
                Answer::Done(report) => {
                    self.happened.push(Happened::Round(Key(key), now, report));
                    self.deliver(key, Event::Done(report));
                }
            }
            self.go_on_asked(key);
        }
    }

    pub(super) fn start(&mut self, key: u64, work: Work, job: Option<Job>) {
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        if let (Some(asked), Work::Survey) = (&mut enforced.asked, &work) {
            // A person comes first; and a survey would take the person's step for a new limit.
            asked.survey_wanted = true;
            return self.go_on_asked(key);
        }
        if enforced.unrestored.is_some() {
            // What stands is ours: it must not be taken for somebody else's limit.
            return self.deliver(key, Event::Failed(Errno::EBUSY as i32));
        }
        if let Err(errno) = self.take_off(key, work, job, false) {
            self.deliver(key, Event::Failed(errno as i32));
        }
    }

    /// Hands a task to a worker. EBUSY while the container is being emptied: its limit is somebody else's to
    /// lower. EAGAIN where no worker can be had.
    pub(super) fn take_off(
        &mut self,
        key: u64,
        work: Work,
        job: Option<Job>,
        asked: bool,
    ) -> Result<(), Errno> {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return Ok(()) };
        if enforced.deeds.as_ref().is_some_and(|deeds| !deeds.begin_flight()) {
            return Err(Errno::EBUSY);
        }
        let slot = enforced.journaled.as_ref().map(Journaled::slot);
        let Some(ticket) = self.workers.start(key, enforced.memory.clone(), work, slot) else {
            if let Some(deeds) = &enforced.deeds {
                deeds.ended(None);
            }
            return Err(Errno::EAGAIN);
        };
        if let (Some(deeds), Some(_)) = (&enforced.deeds, &job) {
            deeds.started(ticket.clone());
        }
        let interrupt_at = job.map(|job| now + job.deadline);
        let overdue_at = job.map(|job| now + job.deadline + OVERDUE_AFTER);
        enforced.flight = Some(Flight { ticket, job, interrupt_at, overdue_at, asked });
        Ok(())
    }

    /// Undoes a step that its worker could not undo. The declared limit stands already in every other
    /// case. Tried until it works, or the file holds a value that is not ours.
    pub(super) fn restore(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(Unrestored { file, ours, declared, .. }) = enforced.unrestored else { return };
        let declared = match file {
            ReclaimFile::Limit => enforced.core.declared(),
            _ => declared,
        };
        match reclaim::rescue(&*enforced.memory, file, ours, declared) {
            Ok(_) => {
                enforced.unrestored = None;
                if let Some(journaled) = &enforced.journaled {
                    journaled.slot().end_step();
                }
            }
            Err(error) => {
                log::error!("{error}; trying again");
                enforced.unrestored =
                    Some(Unrestored { file, ours, declared, at: now + RESTORE_AGAIN });
            }
        }
    }
}

/// What the worker left lowered, if anything.
fn unrestored(ticket: &Ticket, job: &Job, at: Now) -> Option<Unrestored> {
    let (ours, declared) = ticket.stop.left()?;
    Some(Unrestored { file: stepped_file(job.strategy), ours, declared, at })
}

impl Drop for Engine {
    /// Leaves no write in flight: the workers are joined next, and would wait for it.
    fn drop(&mut self) {
        // It may interrupt workers, and must not once they are joined.
        self.oom_watch = None;
        let keys: Vec<u64> = self.containers.keys().copied().collect();
        for key in keys {
            self.end_hold(key);
            self.end_native(key);
            let flight = self.containers.get(&key).and_then(|enforced| enforced.flight.as_ref());
            match flight {
                // It is interrupted already, and waits for what may never come.
                Some(flight) if flight.ticket.is_overdue() => flight.ticket.stop.cancel(),
                _ => self.quiesce(Key(key), QUIESCE_AT_END),
            }
        }
    }
}

pub(super) fn stepped_file(strategy: Strategy) -> ReclaimFile {
    match strategy {
        Strategy::HighStep => ReclaimFile::High,
        _ => ReclaimFile::Limit,
    }
}

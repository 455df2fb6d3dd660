//! Reclaim that a person asked for, on a container that the engine holds: between the engine's own jobs,
//! never beside one, as each would take the other's step for somebody else's limit.

use super::engine::Engine;
use super::once::{Once, Slices};
use super::worker::{Answer, Work};
use super::{Happened, Key};
use crate::core::{Event, Now};
use cgroupfs::{Bytes, Cgroup};
use std::sync::Arc;
use std::time::Duration;

/// One that is under way.
pub(super) struct Asked {
    slices: Slices,
    since: Now,
    /// The core wanted a survey meanwhile.
    pub(super) survey_wanted: bool,
    /// The container is to be released once this has ended.
    pub(super) release_after: bool,
}

impl Engine {
    /// Takes `size` bytes from a container within `patience`, and never lowers its limit under the floor.
    /// [`Happened::Asked`] says what came of it. False if one is under way for it already.
    pub fn reclaim(&mut self, key: Key, size: Bytes, patience: Duration) -> bool {
        let since = self.now();
        let Some(enforced) = self.containers.get_mut(&key.0) else { return false };
        if enforced.asked.is_some() {
            return false;
        }
        enforced.asked = Some(Asked {
            slices: Slices::new(size, patience),
            since,
            survey_wanted: false,
            release_after: false,
        });
        self.go_on_asked(key.0);
        true
    }

    /// Starts the next survey of what was asked for, once nothing else is in flight.
    pub(super) fn go_on_asked(&mut self, key: u64) {
        let Some(enforced) = self.containers.get(&key) else { return };
        let Some(asked) = &enforced.asked else { return };
        if enforced.flight.is_some() {
            return;
        }
        if asked.release_after || enforced.unrestored.is_some() {
            return self.end_asked(key);
        }
        self.start_asked(key, Work::Survey, None);
    }

    /// An answer to what [`Engine::start_asked`] started.
    pub(super) fn answered_asked(&mut self, key: u64, answer: Answer) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(asked) = &mut enforced.asked else { return };
        let elapsed = now.saturating_sub(asked.since);
        match answer {
            Answer::Surveyed(Ok(look)) => {
                let ended = has_ended(&enforced.group);
                match asked.slices.next_job(elapsed, &*enforced.memory, &look, ended) {
                    Ok(Some(job)) if !asked.release_after => {
                        self.start_asked(key, Work::Reclaim(job), Some(job));
                    }
                    Ok(_) => self.end_asked(key),
                    Err(error) => {
                        self.end_asked(key);
                        self.failed(key, &error);
                    }
                }
            }
            Answer::Surveyed(Err(error)) => {
                self.end_asked(key);
                self.failed(key, &error);
            }
            Answer::Done(report) => match asked.slices.done(elapsed, report) {
                true => self.go_on_asked(key),
                false => self.end_asked(key),
            },
        }
    }

    fn start_asked(&mut self, key: u64, work: Work, job: Option<crate::core::Job>) {
        if self.take_off(key, work, job, true).is_err() {
            self.end_asked(key);
        }
    }

    fn end_asked(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(asked) = enforced.asked.take() else { return };
        self.happened.push(Happened::Asked(Key(key), now, asked.slices.end()));
        if asked.release_after {
            self.deliver(key, Event::Release);
        } else if asked.survey_wanted {
            self.start(key, Work::Survey, None);
        }
    }

    /// The container is forgotten with this under way.
    pub(super) fn asked_of_the_gone(&mut self, key: u64, asked: Option<Asked>) {
        if let Some(asked) = asked {
            let Once { report, .. } = asked.slices.end();
            let once = Once { report, why: Some("the container is gone") };
            self.happened.push(Happened::Asked(Key(key), self.now(), once));
        }
    }
}

/// Whether nothing can grow in it.
fn has_ended(group: &Arc<Cgroup>) -> bool {
    group.procs().is_ok_and(|procs| procs.is_empty())
        && group.children().is_ok_and(|children| children.is_empty())
}

//! Who registers a container is answered once the OOM watch has its files open: the container may be killed and its
//! group removed as soon as its runtime goes on, and where the kernel log cannot be read nothing else would tell.
//!
//! The watch is a thread of its own, at real-time priority, and takes a fraction of a millisecond. Nobody waits for it
//! longer than [`PATIENCE`], and the loop not at all.

use super::Daemon;
use crate::api::message::{Registered, done};
use crate::api::server::ClientId;
use crate::driver::Key;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long an answer waits for the watch. A hook, and the runtime behind it, wait for the answer.
const PATIENCE: Duration = Duration::from_millis(5);

/// A registration that is done, but for the watch.
struct Unanswered {
    key: Key,
    client: ClientId,
    generation: u64,
    until: Instant,
}

/// Registrations, and containers that were given to the watch.
#[derive(Default)]
pub(super) struct Registering {
    /// Oldest first; not more than there are clients.
    unanswered: Vec<Unanswered>,
    /// With the watch, and not open yet.
    unopened: HashSet<Key>,
    /// Answers that did not wait until the end.
    impatient: u64,
}

impl Registering {
    /// The watch has got the order to open it.
    pub(super) fn opens(&mut self, key: Key) {
        self.unopened.insert(key);
    }

    /// A client is there no more.
    pub(super) fn hung_up(&mut self, client: ClientId) {
        self.unanswered.retain(|waiting| waiting.client != client);
    }

    /// When somebody is to be answered, whatever the watch is at.
    pub(super) fn at(&self) -> Option<Instant> {
        self.unanswered.first().map(|waiting| waiting.until)
    }
}

impl Daemon {
    /// A container is registered: its client is answered now, or as soon as the watch has it.
    pub(super) fn registered(&mut self, client: ClientId, id: &str, generation: u64) {
        self.witness_the_new();
        let key = self.registry.get(id).map(|container| container.key);
        match key.filter(|key| self.registering.unopened.contains(key)) {
            None => self.answer_registered(client, generation),
            Some(key) => {
                let until = Instant::now() + PATIENCE;
                self.registering.unanswered.push(Unanswered { key, client, generation, until });
            }
        }
    }

    /// The watch has it open, or never will.
    pub(super) fn is_watched(&mut self, key: Key) {
        self.registering.unopened.remove(&key);
        self.answer(|waiting| waiting.key == key);
    }

    /// Who has waited for long enough is answered all the same.
    pub(super) fn answer_the_patient(&mut self) {
        let now = Instant::now();
        let answered = self.answer(|waiting| waiting.until <= now);
        if answered > 0 {
            let all = &mut self.registering.impatient;
            *all += answered;
            log::debug!(
                "{answered} answered before the OOM watch had them open ({all} since the start): it took longer \
                 than {PATIENCE:?}"
            );
        }
    }

    /// Nobody is left waiting for a daemon that ends.
    pub(super) fn answer_all(&mut self) {
        self.answer(|_| true);
    }

    fn answer(&mut self, mut which: impl FnMut(&Unanswered) -> bool) -> u64 {
        let (due, rest) = std::mem::take(&mut self.registering.unanswered)
            .into_iter()
            .partition(|waiting| which(waiting));
        self.registering.unanswered = rest;
        let due: Vec<Unanswered> = due;
        for waiting in &due {
            self.answer_registered(waiting.client, waiting.generation);
        }
        due.len() as u64
    }

    fn answer_registered(&mut self, client: ClientId, generation: u64) {
        let line = done(Registered { generation });
        self.server.answer(client, &line, &mut self.incoming);
    }
}

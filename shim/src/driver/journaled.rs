//! A container's part of the journal, kept up to date with the core: law 1's half of the event loop.

use super::Policy;
use super::opened::Standing;
use crate::core::{Capabilities, Container, Totals};
use crate::journal::{Counters, Found, Identity, Journal, Record, Slot, Terms};
use cgroupfs::Limit;
use cgroupfs::memory::{Memory, Version};
use std::sync::Arc;

/// A container's slot, and what it holds.
pub(super) struct Journaled {
    slot: Arc<Slot>,
    terms: Terms,
    /// What was done for it before us.
    before: Totals,
    totals: Totals,
    resumed_at: Option<u64>,
}

impl Journaled {
    /// Takes a slot. Without one, which is said, the container is not stepped.
    pub(super) fn insert(journal: &Journal, record: Record) -> Option<Journaled> {
        match journal.insert(&record) {
            Ok(slot) => Some(Journaled {
                slot,
                terms: record.terms,
                before: record.counters.totals,
                totals: Totals::default(),
                resumed_at: None,
            }),
            Err(error) => {
                log::error!("{}: {error}", record.identity.id.escape_debug());
                None
            }
        }
    }

    /// Goes on with one that was there.
    pub(super) fn found(found: Found) -> Journaled {
        Journaled {
            slot: found.slot,
            terms: found.record.terms,
            before: found.record.counters.totals,
            totals: Totals::default(),
            resumed_at: Some(found.record.counters.oom_kill_seen),
        }
    }

    /// The kernel's `oom_kill` that was seen by who was before us.
    pub(super) fn oom_kill_seen(&self) -> Option<u64> {
        self.resumed_at
    }

    pub(super) fn slot(&self) -> Arc<Slot> {
        self.slot.clone()
    }

    /// Writes what changed.
    pub(super) fn keep(&mut self, core: &Container) {
        if self.terms.declared != core.declared() {
            self.terms.declared = core.declared();
            self.slot.update_terms(&self.terms);
        }
        let totals = core.totals();
        if self.totals != totals {
            self.totals = totals;
            let all = sum(self.before, totals);
            self.slot.change_counters(|counters| counters.totals = all);
        }
    }

    /// New terms; the declared limit stays what the core has.
    pub(super) fn note_terms(&mut self, change: impl FnOnce(&mut Terms)) {
        let (before, declared) = (self.terms, self.terms.declared);
        change(&mut self.terms);
        self.terms.declared = declared;
        if self.terms != before {
            self.slot.update_terms(&self.terms);
        }
    }

    /// So many kills more, of which somebody is about to be told.
    /// `seen` is the kernel's `oom_kill` with them, where they are in it.
    pub(super) fn killed(&self, seen: Option<u64>, kills: u64) {
        self.slot.change_counters(|counters| {
            counters.oom_kill_seen = seen.unwrap_or(0).max(counters.oom_kill_seen);
            counters.oom_kills += kills;
        });
    }

    pub(super) fn remove(self, journal: &Journal) {
        journal.remove(self.slot);
    }
}

fn sum(a: Totals, b: Totals) -> Totals {
    Totals {
        rounds: a.rounds + b.rounds,
        asked: a.asked.saturating_add(b.asked),
        freed: a.freed.saturating_add(b.freed),
        cpu: a.cpu + b.cpu,
        futile: a.futile + b.futile,
        aside: a.aside + b.aside,
        steps: a.steps + b.steps,
    }
}

/// What the journal holds of a group that nobody says more about. `path` is relative to the mount point.
pub(super) fn record_of(path: &str, inode: u64, memory: &dyn Memory, policy: Policy) -> Record {
    let standing = Standing {
        limit: memory.limit().unwrap_or(Limit::Max),
        counters: memory.counters().unwrap_or_default(),
        usage: memory.usage().unwrap_or_default(),
    };
    record_as(path, inode, memory.version(), &standing, policy)
}

/// The same of what was read.
pub(super) fn record_as(
    path: &str,
    inode: u64,
    version: Version,
    standing: &Standing,
    policy: Policy,
) -> Record {
    let name = path.rsplit('/').next().unwrap_or_default();
    Record {
        identity: Identity {
            id: name.to_owned(),
            path: path.to_owned(),
            version,
            inode,
            pid: 0,
            start_time: 0,
        },
        terms: Terms {
            high: policy.high,
            watermarks: policy.watermarks,
            ..Terms::of(standing.limit)
        },
        counters: Counters {
            oom_kill_seen: standing.counters.oom_kill.unwrap_or(0),
            usage: standing.usage,
            ..Counters::default()
        },
    }
}

/// What can be done without leaving anything to undo.
pub(super) fn without_undo(can: Capabilities) -> Capabilities {
    Capabilities {
        limit_step: false,
        high_step: false,
        // Both may have to set swappiness aside.
        force_empty: false,
        memory_reclaim: can.memory_reclaim && !can.threshold_event,
        ..can
    }
}

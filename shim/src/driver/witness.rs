//! The engine and the OOM watch: containers are given to the watch, and what it tells comes out of
//! [`Engine::turn`].

use super::engine::{Engine, Source};
use super::oom::{Deeds, Identity, OomWatch, Told};
use super::{Happened, Key};
use cgroupfs::{Cgroup, Result};
use std::sync::Arc;

impl Engine {
    /// From now on containers can be given to `watch`.
    pub fn attach_oom_watch(&mut self, watch: OomWatch) -> Result<()> {
        self.listen(watch.fd(), Source::OomWatch, 0)?;
        self.oom_watch = Some(watch);
        Ok(())
    }

    /// Has the OOMs of a container recorded, as [`Happened::Oom`]. Without a watch, or for one that is
    /// not given to it, kills are only counted ([`Happened::OomKill`]).
    pub fn record_ooms(&mut self, key: Key, mut identity: Identity) {
        let (Some(watch), Some(enforced)) = (&self.oom_watch, self.containers.get_mut(&key.0))
        else {
            return;
        };
        let deeds = Arc::new(Deeds::default());
        deeds.declare(enforced.core.declared());
        deeds.set_slot(enforced.journaled.as_ref().map(super::journaled::Journaled::slot));
        if let Some(flight) = &enforced.flight
            && deeds.begin_flight()
            && flight.job.is_some()
        {
            deeds.started(flight.ticket.clone());
        }
        enforced.deeds = Some(deeds.clone());
        // As they were when the container came, or was told of last: not when the watch gets to it.
        identity.counters = Some(enforced.counters);
        if identity.oom_kill.is_none() {
            identity.oom_kill = enforced.counters.oom_kill;
        }
        self.witnessed.insert(key.0);
        let (group, memory) = (enforced.group.clone(), enforced.memory.clone());
        watch.watch(key.0, group, Some(memory), identity, deeds);
    }

    /// Has the OOMs of a group recorded that is not enforced. `None` without a watch.
    pub fn witness(&mut self, group: Arc<Cgroup>, identity: Identity) -> Option<Key> {
        let watch = self.oom_watch.as_ref()?;
        let key = self.next_key;
        self.next_key += 1;
        self.witnessed.insert(key);
        watch.watch(key, group, None, identity, Arc::new(Deeds::default()));
        Some(Key(key))
    }

    /// The init of a container is this process: whether it survives an OOM is then recorded.
    pub fn oom_init(&self, key: Key, pid: i32) {
        if let Some(watch) = &self.oom_watch {
            watch.init(key.0, pid);
        }
    }

    /// Ends the recording of a container, after a last look: [`Happened::OomsRecorded`] says when all
    /// that there is to say has been said.
    pub fn finish_ooms(&mut self, key: Key) {
        if let (Some(watch), true) = (&self.oom_watch, self.witnessed.remove(&key.0)) {
            watch.unwatch(key.0);
        }
    }

    /// What the watch can know here; `None` if there is none.
    pub fn oom_sources(&self) -> Option<&super::oom::Sources> {
        self.oom_watch.as_ref().map(OomWatch::sources)
    }

    pub(super) fn told_of_ooms(&mut self) {
        let now = self.now();
        let Some(watch) = &self.oom_watch else { return };
        let told: Vec<Told> = watch.told().collect();
        for told in told {
            if let Told::Killed(key, kills, _, counter) = told {
                self.count(key);
                // In the journal before anybody hears of it.
                let enforced = self.containers.get(&key);
                if let Some(journaled) = enforced.and_then(|enforced| enforced.journaled.as_ref()) {
                    journaled.killed(counter, kills);
                }
            }
            self.happened.push(match told {
                Told::Killed(key, kills, usage, _) => {
                    Happened::OomKill(Key(key), now, kills, usage)
                }
                Told::Watching(key) => Happened::OomsWatched(Key(key)),
                Told::Record(key, record) => Happened::Oom(Key(key), record),
                Told::Forgotten(key) => Happened::OomsRecorded(Key(key)),
            });
        }
    }
}

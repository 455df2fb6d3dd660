//! Throttles of an engine's containers: started, told of, held while the process is stopped, ended.

use super::engine::{Engine, Source};
use super::native::is_native;
use super::throttle::{
    Ancestor, FreezeJournal, Moves, Taken, ThrottleConfig, ThrottleEvent, ThrottleTerms, Throttler,
    near,
};
use super::{Happened, Key};
use crate::core::Now;
use crate::core::throttle::{MOST_LEVELS, ThrottleTotals, WayOut};
use crate::journal::{Counters, Deadline, Freeze, FreezerKind, Slot};
use cgroupfs::files::ControlDir;
use cgroupfs::freezer::{Freezer, Kind};
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Error, Limit, Result};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// What a pulse may be late by before the guardian thaws: more than the real-time thread ever needs, and
/// little enough that tasks go on within 100 ms of when they were to.
const LATE: Duration = Duration::from_millis(40);

/// A throttle is a thread that waits for a usage threshold, and registering that one has the group's rmdir wait for
/// a grace period ([`Engine::arm_after`]). So one that is young is looked at this often instead: as soon as a
/// threshold would be registered (7 to 20 ms measured), and with less in the way of its end.
const LOOK_AT_YOUNG: Duration = Duration::from_millis(20);

/// A container's throttle, and on which terms.
struct Throttling {
    throttler: Throttler,
    on: On,
    held: bool,
    /// What others before it did to the container, by the journal.
    before: ThrottleTotals,
    journal: Arc<Slot>,
}

/// The highs that count, and how throttling above them ends: the container's own, and those above it by their
/// keys, with whether somebody reclaims.
#[derive(Debug, Clone, PartialEq, Eq)]
struct On {
    own: (Limit, WayOut, bool),
    above: Vec<(u64, Bytes, WayOut, bool)>,
}

impl Throttling {
    fn in_all(&self) -> ThrottleTotals {
        self.throttler.totals().after(self.before)
    }
}

/// Those of all containers.
#[derive(Default)]
pub(super) struct Throttles {
    of: HashMap<u64, Throttling>,
    /// Containers that are to be throttled: above their own highs, or those of groups above them.
    wanted: HashMap<u64, WayOut>,
    /// Whose tasks are whose.
    taken: Arc<Taken>,
    /// Whose turn it is to move tasks far from high.
    moves: Arc<Moves>,
    /// Containers whose throttle is started once they come near high, or are young no more.
    young: HashMap<u64, WayOut>,
    /// When those are looked at.
    look_at: Option<Now>,
    /// The hierarchy with the freezer, once it was found.
    freezer: Option<Freezer>,
    /// Those that are being ended, of these containers: everybody is moved back, which may take 100 ms.
    ending: Vec<(Option<u64>, JoinHandle<()>)>,
}

impl Throttles {
    /// When some container is to be looked at.
    pub(super) fn next_look(&self) -> Option<Now> {
        self.look_at
    }

    pub(super) fn end(&mut self, key: u64) -> Option<ThrottleTotals> {
        self.young.remove(&key);
        let throttling = self.of.remove(&key)?;
        let totals = throttling.throttler.totals();
        let thread = std::thread::Builder::new()
            .name("cgshim-untie".into())
            .stack_size(64 << 10)
            .spawn(move || drop(throttling));
        self.keep_ending(Some(key), thread.ok());
        Some(totals)
    }

    /// A thread that thaws, and gives everybody back: waited for at the end.
    pub(super) fn ending(&mut self, thread: Option<JoinHandle<()>>) {
        self.keep_ending(None, thread);
    }

    fn keep_ending(&mut self, key: Option<u64>, thread: Option<JoinHandle<()>>) {
        self.ending.retain(|(_, thread)| !thread.is_finished());
        self.ending.extend(thread.map(|thread| (key, thread)));
    }

    /// The thread that ends the last throttle of a container.
    fn ended(&mut self, key: u64) -> Option<JoinHandle<()>> {
        let at = self.ending.iter().rposition(|(of, _)| *of == Some(key))?;
        Some(self.ending.remove(at).1)
    }
}

impl Drop for Throttles {
    /// Nobody is frozen when the engine is gone.
    fn drop(&mut self) {
        self.of.clear();
        for (_, thread) in self.ending.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Throttles a container above its high from now on, or no more (`None`): by freezing where the kernel
    /// does not, else by the kernel's `memory.high`, which gets a way out, whoever wrote it. To be called again
    /// after [`Engine::set_policy`].
    ///
    /// # Errors
    /// [`Error::NoController`] where there is no freezer, or no journal to undo a freeze by.
    pub fn throttle(&mut self, key: Key, way_out: Option<WayOut>) -> Result<()> {
        self.want(key.0, way_out);
        let started = self.start_throttle(key, way_out, false);
        self.throttle_beneath(key.0);
        started
    }

    fn want(&mut self, key: u64, way_out: Option<WayOut>) {
        match way_out {
            Some(way_out) => self.throttles.wanted.insert(key, way_out),
            None => self.throttles.wanted.remove(&key),
        };
    }

    /// A container's high has changed: it counts for those beneath it as well.
    fn throttle_beneath(&mut self, key: u64) {
        let Some(above) = self.containers.get(&key) else { return };
        let path = above.group.path();
        let beneath = self.throttles.wanted.iter().filter(|(other, _)| {
            let other = self.containers.get(other).map(|other| other.group.path());
            other.is_some_and(|other| is_beneath(other, path))
        });
        let beneath: Vec<(u64, WayOut)> = beneath.map(|(key, wanted)| (*key, *wanted)).collect();
        for (key, way_out) in beneath {
            self.start_later(key, way_out);
        }
    }

    /// The groups above a container whose high is emulated, the nearest first.
    fn emulated_above(&self, key: u64) -> Vec<(u64, Ancestor)> {
        let Some(enforced) = self.containers.get(&key) else { return Vec::new() };
        let path = enforced.group.path();
        let mut above: Vec<(u64, Ancestor)> = (self.throttles.wanted.iter())
            .filter_map(|(other, way_out)| {
                let above = self.containers.get(other)?;
                if !is_beneath(path, above.group.path()) || self.freezes_at_oom(*other) {
                    return None;
                }
                let Limit::Bytes(high) = above.core.high() else { return None };
                let native = is_native(&*above.memory) || above.group.has("memory.high");
                (!native).then(|| {
                    let (group, memory) = (above.group.clone(), above.memory.clone());
                    let reclaims = above.core.watermarks().is_some();
                    (*other, Ancestor { group, memory, high, way_out: *way_out, reclaims })
                })
            })
            .collect();
        above.sort_by_key(|(_, above)| std::cmp::Reverse(above.group.path().components().count()));
        above.truncate(MOST_LEVELS - 1);
        above
    }

    /// As [`Engine::throttle`], for a container in which nobody is yet and whose tasks this process starts:
    /// everything is ready when they come. Where they are to move themselves to, if anywhere
    /// ([`Throttler::door`]).
    ///
    /// # Errors
    /// As [`Engine::throttle`].
    pub fn throttle_ahead(&mut self, key: Key, way_out: WayOut) -> Result<Option<OwnedFd>> {
        self.want(key.0, Some(way_out));
        self.start_throttle(key, Some(way_out), true)?;
        let door = self.throttles.of.get(&key.0).and_then(|present| present.throttler.door());
        // Without it they are moved as anybody else is.
        Ok(door.and_then(|door| door.try_clone_to_owned().ok()))
    }

    fn start_throttle(&mut self, key: Key, way_out: Option<WayOut>, ahead: bool) -> Result<()> {
        // What one before it has told until now is not lost.
        self.throttle_told(key.0);
        let Some(enforced) = self.containers.get(&key.0) else { return Ok(()) };
        let high = enforced.core.high();
        if is_native(&*enforced.memory) {
            return self.guard_native(key, high, way_out);
        }
        let way_out = way_out.filter(|_| !self.freezes_at_oom(key.0));
        // A vendor's v1.
        let native = enforced.group.has("memory.high");
        let above = self.emulated_above(key.0);
        let some = high != Limit::Max || !above.is_empty();
        let (Some(way_out), true, false) = (way_out, some, native) else {
            self.throttles.end(key.0);
            return Ok(());
        };
        let reclaims = enforced.core.watermarks().is_some();
        let on = On {
            own: (high, way_out, reclaims),
            above: (above.iter())
                .map(|(key, above)| (*key, above.high, above.way_out, above.reclaims))
                .collect(),
        };
        if let Some(present) = self.throttles.of.get_mut(&key.0)
            && !present.throttler.is_over()
        {
            if present.on != on {
                present.on = on;
                let ancestors = above.into_iter().map(|(_, above)| above).collect();
                present.throttler.change(ThrottleTerms { high, way_out, ancestors, reclaims });
            }
            return Ok(());
        }
        let now = self.now();
        let far = is_far(&*enforced.memory, high)
            && above.iter().all(|(_, above)| is_far(&*above.memory, Limit::Bytes(above.high)));
        if !ahead && enforced.threshold.is_young(now) && far {
            self.throttles.end(key.0);
            self.throttles.young.insert(key.0, way_out);
            self.throttles.look_at.get_or_insert(now + LOOK_AT_YOUNG);
            return Ok(());
        }
        let slot = enforced.journaled.as_ref().ok_or_else(|| Error::NoController {
            controller: "freezer",
            why: "without a place in the journal nobody would thaw what a kill -9 of ours leaves"
                .into(),
        })?;
        let slot = slot.slot();
        let before = before(&slot.record().map(|record| record.counters).unwrap_or_default());
        let freezer = match &self.throttles.freezer {
            Some(found) => found.clone(),
            None => self.throttles.freezer.insert(Freezer::find()?).clone(),
        };
        let journal = freeze_journal(slot.clone(), &freezer);
        let config = ThrottleConfig {
            high,
            way_out,
            ancestors: above.into_iter().map(|(_, above)| above).collect(),
            taken: self.throttles.taken.clone(),
            moves: self.throttles.moves.clone(),
            reclaims,
            journal,
            ahead,
            freezer: Some(freezer),
            ..ThrottleConfig::new(enforced.group.clone(), Bytes(0))
        };
        self.throttles.young.remove(&key.0);
        if let Some(over) = self.throttles.of.remove(&key.0) {
            let _ = self.epoll.delete(over.throttler.wake_fd());
        }
        let throttler = Throttler::start_after(self.throttles.ended(key.0), config)?;
        self.listen(throttler.wake_fd(), Source::Throttle, key.0)?;
        let throttling = Throttling { throttler, on, held: false, before, journal: slot };
        self.throttles.of.insert(key.0, throttling);
        Ok(())
    }

    /// Starts the throttles of containers that have come near high, or are young no more.
    pub(super) fn look_at_the_young(&mut self) {
        let now = self.now();
        if self.throttles.look_at.is_none_or(|at| at > now) {
            return;
        }
        let young: Vec<(u64, WayOut)> = self.throttles.young.drain().collect();
        self.throttles.look_at = None;
        for (key, way_out) in young {
            // Those that are still young and far from it wait on.
            self.start_later(key, way_out);
        }
    }

    /// Starts a throttle when nobody waits for an answer.
    fn start_later(&mut self, key: u64, way_out: WayOut) {
        match self.start_throttle(Key(key), Some(way_out), false) {
            Ok(()) => {}
            // That is seen where it is told.
            Err(error) if error.is_vanished() => {}
            Err(error) => {
                let failed = ThrottleEvent::Failed(error);
                self.happened.push(Happened::Throttle(Key(key), self.now(), failed));
            }
        }
    }

    /// What throttling did for a container, as far as it has a throttle.
    pub fn throttled(&self, key: Key) -> Option<ThrottleTotals> {
        let emulated =
            self.throttles.of.get(&key.0).map(|throttling| throttling.throttler.totals());
        emulated.or_else(|| self.native_totals(key.0))
    }

    /// The same with what was done before this process was there, by the journal.
    pub fn throttled_in_all(&self, key: Key) -> Option<ThrottleTotals> {
        if let Some(throttling) = self.throttles.of.get(&key.0) {
            return Some(throttling.in_all());
        }
        if let Some(native) = self.native_totals_in_all(key.0) {
            return Some(native);
        }
        // It has no throttle yet.
        self.throttles.young.get(&key.0)?;
        let record = self.slot(key)?.record()?;
        Some(before(&record.counters))
    }

    /// A throttle has something to tell.
    pub(super) fn throttle_told(&mut self, key: u64) {
        let now = self.now();
        let Some(throttling) = self.throttles.of.get(&key) else { return };
        let events = throttling.throttler.events();
        if !events.is_empty() {
            write_down(&throttling.journal, throttling.in_all());
        }
        for event in events {
            // Its clock is not ours.
            let at = match event {
                ThrottleEvent::Pulse { since, .. } => since.saturating_duration_since(self.start),
                _ => now,
            };
            self.happened.push(Happened::Throttle(Key(key), at, event));
        }
    }

    /// Thaws a container for the time in which this process is stopped.
    pub(super) fn hold_throttle(&mut self, key: u64, patience: Duration) {
        if let Some(throttling) = self.throttles.of.get_mut(&key) {
            throttling.held = true;
            if !throttling.throttler.hold(patience) {
                log::warn!("a throttle does not let go: the guardian thaws what it holds");
            }
        }
    }

    /// Goes on after [`Engine::hold_throttle`].
    pub(super) fn go_on_throttling(&mut self) {
        for throttling in self.throttles.of.values_mut().filter(|throttling| throttling.held) {
            throttling.held = false;
            throttling.throttler.resume();
        }
    }

    /// A container is let go: its tasks are thawed and moved back.
    pub(super) fn end_throttle(&mut self, key: u64) {
        // What it has told until now is not lost.
        self.throttle_told(key);
        self.throttles.end(key);
        self.end_native(key);
        self.throttles.wanted.remove(&key);
        // All are about to end where a successor goes on with them.
        if !self.keep_records {
            self.throttle_beneath(key);
        }
    }
}

/// Whether a group's directory is beneath another's. Of all young ones this is asked about all others, every few
/// milliseconds: whole components, as `Path::starts_with` goes by, took 11 ms for 200.
fn is_beneath(path: &Path, above: &Path) -> bool {
    let (path, above) = (path.as_os_str().as_bytes(), above.as_os_str().as_bytes());
    path.get(above.len()) == Some(&b'/') && path.starts_with(above)
}

/// Has the journal know what throttling did.
pub(super) fn write_down(slot: &Slot, all: ThrottleTotals) {
    slot.change_counters(|counters| {
        counters.throttle_pulses = all.pulses;
        counters.throttle_frozen = all.frozen;
        counters.throttle_released = all.released;
    });
}

/// What throttling did by the journal.
pub(super) fn before(counters: &Counters) -> ThrottleTotals {
    ThrottleTotals {
        pulses: counters.throttle_pulses,
        frozen: counters.throttle_frozen,
        released: counters.throttle_released,
        ..ThrottleTotals::default()
    }
}

/// Whether usage is so far below high that a throttle would do nothing but sleep.
fn is_far(memory: &dyn Memory, high: Limit) -> bool {
    let Limit::Bytes(high) = high else { return true };
    memory.usage().is_ok_and(|usage| usage < near(high))
}

/// Writes freezes down in this slot.
pub(super) fn freeze_journal(slot: Arc<Slot>, freezer: &Freezer) -> Arc<dyn FreezeJournal> {
    Arc::new(Journaled { slot, freezer: freezer.mount_point.clone(), kind: freezer.kind })
}

/// Freezes in the journal: the guardian thaws when they are overdue, or we are gone.
struct Journaled {
    slot: Arc<Slot>,
    freezer: PathBuf,
    kind: Kind,
}

impl FreezeJournal for Journaled {
    fn begin(&self, longest: Duration) {
        let kind = match self.kind {
            Kind::V1 => FreezerKind::V1Child,
            Kind::Unified => FreezerKind::UnifiedChild,
        };
        self.slot.begin_freeze(Freeze { kind, deadline: Deadline::after(longest + LATE) });
    }

    fn end(&self) {
        self.slot.end_freeze();
    }

    fn place(&self, path: &Path, inode: u64) -> Result<()> {
        let no = |why: String| Error::NoController { controller: "freezer", why };
        let relative = path.strip_prefix(&self.freezer).unwrap_or(path);
        let text = relative.to_str().ok_or_else(|| no("its path is not UTF-8".into()))?;
        self.slot.set_freezer_place(text, inode).map_err(|error| no(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_are_beneath() {
        let beneath = |path, above| is_beneath(Path::new(path), Path::new(above));
        assert!(beneath("/m/pod/a", "/m/pod") && beneath("/m/pod/a/b", "/m/pod"));
        for (path, above) in
            [("/m/pod", "/m/pod"), ("/m/pod2", "/m/pod"), ("/m", "/m/pod"), ("/n/pod/a", "/m/pod")]
        {
            assert!(!beneath(path, above), "{path} {above}");
        }
    }
}

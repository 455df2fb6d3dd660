//! The OOM hold of a container (v1): [`crate::core::oom::hold`] decides, this writes
//! `memory.oom_control`, in the event loop, which never reclaims: neither value makes the kernel reclaim. Tasks
//! are stopped for a freeze by a thread of its own ([`Look`]).

use super::engine::Engine;
use super::throttle::Look;
use super::throttling::freeze_journal;
use super::{Happened, Key};
use crate::core::Now;
use crate::core::oom::hold::{Hold, HoldAction, HoldEvent, OomControl};
use crate::journal::Deadline;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::freezer::Freezer;
use cgroupfs::memory::{ReclaimFile, Version};
use cgroupfs::procfs::Meminfo;
use cgroupfs::{Bytes, Cgroup, Error, Limit, Result, flat};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A limit is raised by this share of itself at a time.
const SHARE: u64 = 4;

/// The host keeps so much available beyond what a limit is raised by.
const KEPT: Bytes = Bytes::mib(64);

/// Groups beneath a container that are looked at.
const MOST_BENEATH: usize = 1024;

/// A container that is held at its OOMs.
pub(super) struct Held {
    pub(super) hold: Hold,
    file: Knob,
    /// Up to where its limit may be raised.
    most: Option<Bytes>,
    /// Everybody in it is stopped.
    look: Option<Look>,
    /// What it was raised to: ours, though declared.
    pub(super) raised: Option<Bytes>,
    /// Groups beneath it, by inode, whose `oom_kill_disable` is not from us: those that had it when we set it, and
    /// those from which it was taken once.
    theirs: BTreeSet<u64>,
    /// It was told that there are too many of them.
    crowded: bool,
}

/// What is done for a container that runs out of memory, instead of killing one of its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomHold {
    /// The killer is held off for so long at most, and the limit raised up to this, where that is given and the
    /// host has room.
    Raise(Duration, Option<Bytes>),
    /// The killer is held off for so long at most, and everybody stopped meanwhile. Growth above high is not
    /// throttled: that would thaw them.
    Freeze(Duration),
}

impl OomHold {
    fn hold(self) -> Hold {
        match self {
            OomHold::Raise(longest, _) => Hold::new(longest),
            OomHold::Freeze(longest) => Hold::freezing(longest),
        }
    }

    const fn most(self) -> Option<Bytes> {
        match self {
            OomHold::Raise(_, most) => most,
            OomHold::Freeze(_) => None,
        }
    }
}

impl Engine {
    /// Holds the kernel's OOM killer off a container each time it runs out of memory, or ends that (`None`).
    /// Needs a place in the journal.
    ///
    /// # Errors
    /// [`Error::Absent`] on v2, which has nothing of the kind.
    pub fn hold(&mut self, key: Key, wanted: Option<OomHold>) -> Result<()> {
        let Some(enforced) = self.containers.get_mut(&key.0) else { return Ok(()) };
        let Some(wanted) = wanted else {
            self.end_hold(key.0);
            return Ok(());
        };
        let (hold, most) = (wanted.hold(), wanted.most());
        if let Some(held) = &mut enforced.held
            && (held.hold.longest(), held.hold.freezes()) == (hold.longest(), hold.freezes())
        {
            held.most = most;
            return Ok(());
        }
        let absent = |why| Error::Absent { path: "memory.oom_control".into(), why };
        if enforced.memory.version() == Version::V2 {
            return Err(absent("cgroup v2 has nothing that holds the OOM killer off"));
        }
        if enforced.journaled.is_none() {
            return Err(absent("without a place in the journal nobody would let the killer loose"));
        }
        let dir: Arc<dyn ControlDir> = enforced.group.clone();
        let file = Knob::open(&dir, "memory.oom_control", Access::ReadWrite)?;
        self.end_hold(key.0);
        if hold.freezes() {
            self.throttles.end(key.0);
        }
        if let Some(enforced) = self.containers.get_mut(&key.0) {
            let theirs = BTreeSet::new();
            let (look, raised, crowded) = (None, None, false);
            enforced.held = Some(Held { hold, file, most, look, raised, theirs, crowded });
        }
        self.look_at_hold(key.0);
        Ok(())
    }

    /// What a hold raised the container's limit to, if it did.
    pub(super) fn raised(&self, key: u64) -> Option<Bytes> {
        self.containers.get(&key)?.held.as_ref()?.raised
    }

    /// Lets the killer loose, for good.
    pub(super) fn end_hold(&mut self, key: u64) {
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(held) = enforced.held.take() else { return };
        let Held { hold, file, look, mut theirs, .. } = held;
        self.throttles.ending(look.map(Look::end));
        if hold.end().is_some() {
            enable(&enforced.group, &file, &mut theirs);
            if let Some(journaled) = &enforced.journaled {
                journaled.slot().end_hold();
            }
        }
    }

    /// Whether everybody in a container is to be stopped when memory runs out.
    pub(super) fn freezes_at_oom(&self, key: u64) -> bool {
        let held = self.containers.get(&key).and_then(|enforced| enforced.held.as_ref());
        held.is_some_and(|held| held.hold.freezes())
    }

    /// When the next look at some container is due.
    pub(super) fn next_hold(&self) -> Option<Now> {
        let held = self.containers.values().filter_map(|enforced| enforced.held.as_ref());
        held.map(|held| held.hold.deadline()).filter(|at| *at < Now::MAX).min()
    }

    /// Looks at those that are due.
    pub(super) fn go_on_holding(&mut self) {
        let now = self.now();
        let due = self.containers.iter().filter(|(_, enforced)| {
            enforced.held.as_ref().is_some_and(|held| held.hold.deadline() <= now)
        });
        let due: Vec<u64> = due.map(|(key, _)| *key).collect();
        for key in due {
            self.look_at_hold(key);
        }
    }

    /// Reads the file, and does what follows.
    pub(super) fn look_at_hold(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(held) = &mut enforced.held else { return };
        let Ok(content) = held.file.read() else { return held.hold.refused() };
        let is = |name| flat::get(&content, name).is_some_and(|value| value > 0);
        let file = OomControl { disabled: is("oom_kill_disable"), under_oom: is("under_oom") };
        let mut actions = Vec::new();
        held.hold.looked(now, file, &mut actions);
        for action in actions {
            self.do_hold(key, action);
        }
    }

    fn do_hold(&mut self, key: u64, action: HoldAction) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let (Some(held), Some(journaled)) = (&mut enforced.held, &enforced.journaled) else {
            return;
        };
        let slot = journaled.slot();
        match action {
            // Law 1: it is in the journal before it is done.
            HoldAction::Disable(lease) => {
                // What of it an earlier one left behind means nothing any more.
                slot.end_hold();
                let newest = newest_beneath(&enforced.group);
                held.theirs = disabled_beneath(&enforced.group).into_keys().collect();
                slot.see_to_beneath(newest);
                slot.begin_hold(Deadline::after(lease.saturating_sub(now)));
                if let Err(errno) = write(&held.file, b"1") {
                    slot.end_hold();
                    held.hold.refused();
                    log::warn!(
                        "{}: not held at its OOMs: {errno}",
                        enforced.group.path().display()
                    );
                } else if newest.is_none() {
                    self.crowded(key);
                }
            }
            HoldAction::Renew(lease) => {
                slot.begin_hold(Deadline::after(lease.saturating_sub(now)));
                let newest = newest_beneath(&enforced.group);
                enable_beneath(&enforced.group, &mut held.theirs);
                slot.see_to_beneath(newest);
                if newest.is_none() {
                    self.crowded(key);
                }
            }
            HoldAction::Enable => {
                enable(&enforced.group, &held.file, &mut held.theirs);
                slot.end_hold();
                if let Some(deeds) = &enforced.deeds {
                    deeds.note("oom_hold_ended", None, false);
                }
            }
            HoldAction::Raise => self.raise(key),
            HoldAction::Freeze(longest) => {
                let looking = Freezer::find().and_then(|freezer| {
                    let journal = freeze_journal(journaled.slot(), &freezer);
                    Look::start(enforced.group.clone(), journal, longest)
                });
                match looking {
                    Ok(look) => held.look = Some(look),
                    Err(error) => log::warn!("held, but not stopped for a look: {error}"),
                }
            }
            HoldAction::Thaw => {
                let look = held.look.take();
                self.throttles.ending(look.map(Look::end));
            }
            HoldAction::Tell(event) => {
                let noted = matches!(event, HoldEvent::Held(_) | HoldEvent::Frozen(_));
                if let (true, Some(deeds)) = (noted, &enforced.deeds) {
                    deeds.note(event.as_str(), None, false);
                }
                self.happened.push(Happened::Hold(Key(key), now, event));
            }
        }
    }

    /// There are more groups beneath a container than are looked at: told once.
    fn crowded(&mut self, key: u64) {
        let now = self.now();
        let held = self.containers.get_mut(&key).and_then(|enforced| enforced.held.as_mut());
        if let Some(held) = held
            && !std::mem::replace(&mut held.crowded, true)
        {
            self.happened.push(Happened::Hold(Key(key), now, HoldEvent::Crowded(MOST_BENEATH)));
        }
    }

    /// Raises the limit, which wakes who waits for memory. It is the declared limit from then on: the core
    /// adopts it as it adopts any other that is not its own step.
    fn raise(&mut self, key: u64) {
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(most) = enforced.held.as_ref().and_then(|held| held.most) else { return };
        // What stands is a step's, and not the declared one: its restore is a raise, and the next look is soon.
        if enforced.flight.is_some() || enforced.unrestored.is_some() {
            return;
        }
        let deeds = enforced.deeds.clone();
        if deeds.as_ref().is_some_and(|deeds| !deeds.begin_flight()) {
            return;
        }
        self.raise_to(key, most);
        if let Some(deeds) = &deeds {
            deeds.ended(None);
        }
        self.look_at_limit(Key(key));
    }

    fn raise_to(&mut self, key: u64, most: Bytes) {
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let (Ok(Limit::Bytes(limit)), Ok(bound)) =
            (enforced.memory.limit(), enforced.memory.limit_bound())
        else {
            return;
        };
        let most = bound.bytes().map_or(most, |bound| most.min(bound));
        let raised = Bytes(limit.0.saturating_add(limit.0 / SHARE)).min(most);
        let more = raised.saturating_sub(limit);
        let available = Meminfo::read().ok().and_then(|info| info.available).unwrap_or_default();
        if more == Bytes(0) || available < more.saturating_add(KEPT) {
            return;
        }
        let Ok(knob) = enforced.memory.reclaim_file(ReclaimFile::Limit) else { return };
        let raised = Bytes(raised.0 / cgroupfs::units::page_size() * cgroupfs::units::page_size());
        match write(&knob, raised.0.to_string().as_bytes()) {
            Ok(()) => {
                if let Some(deeds) = &enforced.deeds {
                    deeds.note("limit_raised", Some(raised.0), false);
                }
                if let Some(held) = &mut enforced.held {
                    held.raised = Some(raised);
                }
                let now = self.now();
                self.happened.push(Happened::Hold(Key(key), now, HoldEvent::Raised(raised)));
            }
            Err(errno) => {
                log::warn!("{}: limit not raised: {errno}", enforced.group.path().display());
            }
        }
    }
}

/// The killer works again, in the groups beneath too.
fn enable(group: &Arc<Cgroup>, file: &Knob, theirs: &mut BTreeSet<u64>) {
    set_free(group, file);
    enable_beneath(group, theirs);
}

/// The killer works again in this group. One that is gone needs none.
fn set_free(group: &Cgroup, file: &Knob) {
    if let Err(errno) = write(file, b"0")
        && !matches!(errno, Errno::ENODEV | Errno::ENOENT)
    {
        log::error!("{}: the OOM killer stays off: {errno}", group.path().display());
    }
}

/// Groups that were made while it is off have that from their parent (`mem_cgroup_css_alloc()`). It is taken
/// from each once: nobody would see them run out of memory at a limit of their own, and nobody but us knows
/// whose it is. What somebody sets there later stands.
fn enable_beneath(group: &Arc<Cgroup>, theirs: &mut BTreeSet<u64>) {
    for (inode, (beneath, file)) in disabled_beneath(group) {
        if theirs.insert(inode) {
            set_free(&beneath, &file);
        }
    }
}

/// Groups beneath one that have `oom_kill_disable` set, by inode, with the file that says so.
fn disabled_beneath(group: &Arc<Cgroup>) -> BTreeMap<u64, (Arc<Cgroup>, Knob)> {
    let mut found = BTreeMap::new();
    each_beneath(group, |child| {
        let dir: Arc<dyn ControlDir> = child.clone();
        if let Ok(file) = Knob::open(&dir, "memory.oom_control", Access::ReadWrite)
            && let Ok(content) = file.read()
            && flat::get(&content, "oom_kill_disable") == Some(1)
        {
            found.insert(child.inode(), (child.clone(), file));
        }
    });
    found
}

/// The highest inode beneath a group, and its own: those that are made from now on have higher ones. `None` where
/// there are more groups than are looked at.
fn newest_beneath(group: &Arc<Cgroup>) -> Option<u64> {
    let mut newest = group.inode();
    each_beneath(group, |child| newest = newest.max(child.inode())).then_some(newest)
}

/// Has `each` see the groups beneath one, [`MOST_BENEATH`] at most; whether that was all of them.
fn each_beneath(group: &Arc<Cgroup>, mut each: impl FnMut(&Arc<Cgroup>)) -> bool {
    let (mut queue, mut seen) = (vec![group.clone()], 0);
    while let Some(above) = queue.pop() {
        for name in above.children().unwrap_or_default() {
            let Ok(child) = above.child(&name).map(Arc::new) else { continue };
            seen += 1;
            if seen > MOST_BENEATH {
                return false;
            }
            each(&child);
            queue.push(child);
        }
    }
    true
}

/// Goes on after EINTR.
fn write(knob: &Knob, value: &[u8]) -> std::result::Result<(), Errno> {
    loop {
        match knob.raw().write(value) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

//! One watched container: its files, held open, and looks at them.

use super::empty::Files;
use super::{Deeds, Identity, names::Host};
use crate::core::Now;
use crate::core::oom::{Breakdown, Detail, LevelLook, Look, Subject};
use crate::driver::open_memory;
use cgroupfs::events::Notification;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Counters, Memory, Version};
use cgroupfs::{Bytes, Cgroup, Limit, Result, flat};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Groups beneath a container that are watched, and members of it that are remembered: beyond that, the
/// kernel log alone tells.
const MOST_BENEATH: usize = 64;
const MOST_MEMBERS: usize = 8192;

/// Who was seen in it is taken for the victim of a kill this long: its line may be read late in a flood,
/// and its pid is not somebody else's by then.
const MEMBER_FOR: Duration = Duration::from_secs(1);

/// A reading of the members is followed by this many times as long without one.
const MEMBERS_SHARE: u32 = 8;

/// A group's files at one level.
pub(super) struct Level {
    pub(super) memory: Arc<dyn Memory>,
    events_local: Option<Knob>,
    /// v1: a second limit, whose hits `failcnt` does not count.
    memsw: Option<Knob>,
}

impl Level {
    fn open(group: &Arc<Cgroup>, memory: Option<Arc<dyn Memory>>) -> Result<Level> {
        let memory = memory.map_or_else(|| open_memory(group), Ok)?;
        let dir: Arc<dyn ControlDir> = group.clone();
        let open = |file| Knob::open(&dir, file, Access::Read).ok();
        let (events_local, memsw) = match memory.version() {
            Version::V1 => (None, open("memory.memsw.limit_in_bytes")),
            // 5.4+.
            Version::V2 => (open("memory.events.local"), None),
        };
        Ok(Level { memory, events_local, memsw })
    }

    /// What can be read of it now.
    pub(super) fn look(&self) -> LevelLook {
        let counters = self.memory.counters().unwrap_or_default();
        LevelLook {
            usage: self.memory.usage().ok(),
            limit: self.memory.limit().ok(),
            failcnt: counters.failcnt.or(counters.max),
            failcnt_is_all: self.memory.version() == Version::V1 && !self.has_memsw_limit(),
            oom_local: self
                .events_local
                .as_ref()
                .and_then(|knob| flat::get(&knob.read().ok()?, "oom")),
            oom: counters.oom,
        }
    }
}

impl Level {
    fn has_memsw_limit(&self) -> bool {
        let limited = |knob: &Knob| knob.read_u64().map(Limit::from_v1) != Ok(Limit::Max);
        self.memsw.as_ref().is_some_and(limited)
    }
}

/// A container.
pub(super) struct Group {
    pub(super) group: Arc<Cgroup>,
    pub(super) path: Arc<str>,
    version: Version,
    /// Until it is gone.
    level: Option<Arc<Level>>,
    /// From the parent upwards.
    pub(super) above: Vec<Arc<Level>>,
    pub(super) above_paths: Vec<PathBuf>,
    peak: Option<Knob>,
    /// v1: `memory.stat` has nothing of the kernel's own.
    kmem: Option<Knob>,
    pub(super) oom: Option<Notification>,
    pub(super) pidfd: Option<OwnedFd>,
    /// For emptying it when init exits.
    pub(super) files: Option<Files>,
    beneath: HashMap<String, Child>,
    /// Kills of groups beneath that were removed since.
    counted_by_gone: u64,
    /// Pids in it while memory was running out, their groups, and when they were last seen there.
    members: HashMap<i32, (Arc<str>, Instant)>,
    /// When the members may be read again.
    members_again: Option<Instant>,
    /// Its init, and until when a kill of that pid is this one's: once it has exited, not for long.
    init: Option<(i32, Option<Instant>)>,
    deeds: Arc<Deeds>,
    /// `oom_kill` and the sum beneath, as read last.
    counted: (Option<u64>, u64),
}

/// A group beneath it.
struct Child {
    group: Arc<Cgroup>,
    oom_control: Knob,
    /// `oom_kill` when watching began.
    before: u64,
    last: u64,
}

impl Group {
    /// Opens everything.
    pub(super) fn open(
        group: Arc<Cgroup>,
        memory: Option<Arc<dyn Memory>>,
        above: Vec<(PathBuf, Arc<Level>)>,
        path: String,
        deeds: Arc<Deeds>,
    ) -> Result<Group> {
        let level = Arc::new(Level::open(&group, memory)?);
        let version = level.memory.version();
        let dir: Arc<dyn ControlDir> = group.clone();
        let (peak, oom) = match version {
            Version::V1 => ("memory.max_usage_in_bytes", Notification::oom(&group).ok()),
            Version::V2 => ("memory.peak", None),
        };
        let (above_paths, above) = above.into_iter().unzip();
        let mut opened = Group {
            peak: Knob::open(&dir, peak, Access::Read).ok(),
            kmem: Knob::open(&dir, "memory.kmem.usage_in_bytes", Access::Read).ok(),
            group,
            path: path.into(),
            version,
            level: Some(level),
            above,
            above_paths,
            oom,
            pidfd: None,
            files: None,
            beneath: HashMap::new(),
            counted_by_gone: 0,
            members: HashMap::new(),
            members_again: None,
            init: None,
            deeds,
            counted: (None, 0),
        };
        opened.find_beneath(true);
        Ok(opened)
    }

    /// Its books' first page.
    pub(super) fn subject(
        &mut self,
        identity: &Identity,
        since: Option<Now>,
        host: &Host,
        quiet_since: Vec<Now>,
        above: Vec<LevelLook>,
    ) -> Result<Subject> {
        let counters = match self.memory()?.counters() {
            // It may have been killed and removed since it was registered: the log tells.
            Err(error) if error.is_vanished() && since.is_some() => {
                Counters { oom_kill: identity.oom_kill, ..Counters::default() }
            }
            counters => counters?,
        };
        // What somebody announced already, or what is there now.
        let announced =
            counters.oom_kill.map(|now| identity.oom_kill.map_or(now, |seen| seen.min(now)));
        self.counted = (announced, 0);
        let directory = self.group.path();
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned());
        let named = |given: &str| match given {
            "" => name.clone().unwrap_or_default(),
            given => given.to_owned(),
        };
        Ok(Subject {
            name: named(&identity.name),
            container: named(&identity.container),
            cgroup: directory.display().to_string(),
            generation: self.group.inode(),
            path: self.path.to_string(),
            ancestors: self.above_paths.iter().map(|path| host.path(path)).collect(),
            all_ancestors: host.has_the_root()
                && self.above_paths.len() == host.ancestors(directory).len(),
            init: identity.init,
            oom_kill: announced,
            since,
            levels: std::iter::once(self.registered_with(identity)).chain(above).collect(),
            quiet_since,
            v1: self.version == Version::V1,
        })
    }

    /// What it had counted when it was registered. It may have been killed in since.
    fn registered_with(&self, identity: &Identity) -> LevelLook {
        let look = self.own_level();
        let Some(then) = identity.counters else { return look };
        LevelLook {
            failcnt: then.failcnt.or(then.max).or(look.failcnt),
            oom: then.oom.or(look.oom),
            // What its whole subtree never was it never was itself.
            oom_local: then.oom.filter(|oom| *oom == 0).or(look.oom_local),
            ..look
        }
    }

    /// [`cgroupfs::Error::Vanished`] once it is known that the group is gone.
    fn memory(&self) -> Result<&Arc<dyn Memory>> {
        let gone = || cgroupfs::Error::Vanished { path: self.group.path().into() };
        Ok(&self.level.as_ref().ok_or_else(gone)?.memory)
    }

    /// It is out of memory at this moment, or a group above is (v1).
    pub(super) fn is_under_oom(&self) -> bool {
        let dir: Arc<dyn ControlDir> = self.group.clone();
        self.oom.is_some()
            && Knob::open(&dir, "memory.oom_control", Access::Read)
                .and_then(|knob| knob.read())
                .is_ok_and(|text| flat::get(&text, "under_oom").is_some_and(|under| under > 0))
    }

    /// What can be read of the group itself now.
    pub(super) fn own_level(&self) -> LevelLook {
        self.level.as_ref().map(|level| level.look()).unwrap_or_default()
    }

    fn levels(&self) -> Vec<LevelLook> {
        std::iter::once(self.own_level())
            .chain(self.above.iter().map(|level| level.look()))
            .collect()
    }

    /// What can be read of the groups above now, from the parent upwards.
    pub(super) fn above_levels(&self) -> Vec<LevelLook> {
        self.above.iter().map(|level| level.look()).collect()
    }

    /// Looks at the counter, and at everything if told so or if it rose.
    ///
    /// [`cgroupfs::Error::Vanished`] once the group is gone.
    pub(super) fn look(&mut self, all: bool) -> Result<Look> {
        // First what vanishes first.
        let counters = self.memory()?.counters()?;
        let counted = (counters.oom_kill, self.count_beneath());
        let rose = counted != self.counted;
        self.counted = counted;
        let mut detail = (all || rose).then(|| Box::new(self.detail()));
        // It may be gone since.
        if let Some(own) = detail.as_mut().and_then(|detail| detail.levels.first_mut()) {
            own.oom = own.oom.or(counters.oom);
            own.failcnt = own.failcnt.or(counters.failcnt).or(counters.max);
        }
        // What was read after a kill is not to be taken for what was there before it.
        if all
            && !rose
            && let Ok(now) = self.memory()?.counters()
        {
            self.counted.0 = now.oom_kill;
        }
        let counted = self.counted;
        if all {
            self.find_beneath(false);
            self.members_again = None;
            self.remember_members();
        }
        Ok(Look { oom_kill: counted.0, beneath: counted.1, detail })
    }

    /// Opens what emptying it takes.
    pub(super) fn prepare_to_empty(&mut self) {
        self.files =
            self.memory().ok().and_then(|memory| Files::open(&self.group, memory, &self.deeds));
    }

    /// Nothing of ours is in the way of its end.
    pub(super) fn cancel(&self) {
        self.deeds.cancel();
    }

    /// It is gone. Who was in it, and its signals, are still asked for: the rest is let go, before it is forgotten.
    pub(super) fn is_removed(&mut self) {
        (self.level, self.peak, self.kmem, self.files) = (None, None, None, None);
        (self.above, self.above_paths, self.beneath) = (Vec::new(), Vec::new(), HashMap::new());
        // With it, its place in the journal.
        self.deeds = Arc::default();
    }

    /// Usage, for whoever is told at once.
    pub(super) fn usage(&self) -> Bytes {
        self.memory().and_then(|memory| memory.usage()).unwrap_or_default()
    }

    fn detail(&self) -> Detail {
        let levels = self.levels();
        let stat = self.memory().and_then(|memory| memory.stat()).unwrap_or_default();
        let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
        let (declared, deeds, lowered) = self.deeds.look();
        let swap = match self.version {
            Version::V1 => stat.swap,
            Version::V2 => self.memory().ok().and_then(|memory| memory.swap_usage().ok().flatten()),
        };
        Detail {
            levels,
            breakdown: Breakdown {
                anon_bytes: bytes(stat.anon),
                file_bytes: bytes(stat.file),
                shmem_bytes: bytes(stat.shmem),
                kernel_bytes: match &self.kmem {
                    Some(knob) => knob.read_u64().ok(),
                    None => bytes(stat.kernel_or_parts()),
                },
                dirty_bytes: bytes(stat.dirty),
                swap_bytes: bytes(swap),
            },
            peak: self.peak.as_ref().and_then(|knob| knob.read_u64().ok()).map(Bytes),
            declared,
            deeds,
            lowered,
        }
    }

    /// Its init is this one.
    pub(super) fn has_init(&mut self, pid: i32) {
        self.init = Some((pid, None));
    }

    /// Its init is gone.
    pub(super) fn init_is_gone(&mut self) {
        if let Some((_, until)) = &mut self.init {
            until.get_or_insert_with(|| Instant::now() + MEMBER_FOR);
        }
    }

    /// The group of this pid, if it was seen here lately.
    pub(super) fn group_of(&self, pid: i32) -> Option<&str> {
        let now = Instant::now();
        if let Some((path, seen)) = self.members.get(&pid)
            && now < *seen + MEMBER_FOR
        {
            return Some(path);
        }
        let (init, until) = self.init?;
        (init == pid && until.is_none_or(|until| now < until)).then_some(&*self.path)
    }

    /// The pids in it and beneath, while they are there: the log may name one of them and no group. Others
    /// come while an OOM goes on, so they are added at every signal and look, as far as that is cheap.
    pub(super) fn remember_members(&mut self) {
        let now = Instant::now();
        if self.members_again.is_some_and(|at| now < at) {
            return;
        }
        self.members.retain(|_, (_, seen)| now < *seen + MEMBER_FOR);
        self.add_members(now);
        let took = now.elapsed();
        self.members_again = Some(now + took + took * MEMBERS_SHARE);
    }

    fn add_members(&mut self, now: Instant) {
        let groups =
            std::iter::once((&self.path, &self.group))
                .map(|(path, group)| (path.clone(), group.clone()))
                .chain(self.beneath.iter().map(|(name, child)| {
                    (format!("{}/{name}", self.path).into(), child.group.clone())
                }))
                .collect::<Vec<_>>();
        for (path, group) in groups {
            for pid in group.procs().unwrap_or_default() {
                if self.members.len() >= MOST_MEMBERS && !self.members.contains_key(&pid) {
                    return;
                }
                self.members.insert(pid, (path.clone(), now));
            }
        }
    }

    /// Finds the groups beneath (v1): `oom_kill` rises in the victim's own. One that was made after the
    /// watch began has counted from 0.
    fn find_beneath(&mut self, at_start: bool) {
        if self.version == Version::V2 {
            return;
        }
        let mut queue = vec![(String::new(), self.group.clone())];
        while let Some((name, group)) = queue.pop() {
            for child in group.children().unwrap_or_default() {
                let path = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
                let known = self.beneath.get(&path).map(|known| known.group.clone());
                let opened = match known.filter(|known| !known.is_gone()) {
                    Some(known) => known,
                    None if self.beneath.len() >= MOST_BENEATH => return,
                    None => {
                        let Ok(opened) = group.child(&child).map(Arc::new) else { continue };
                        let dir: Arc<dyn ControlDir> = opened.clone();
                        let Ok(oom_control) = Knob::open(&dir, "memory.oom_control", Access::Read)
                        else {
                            continue;
                        };
                        let now = oom_kill(&oom_control).unwrap_or(0);
                        let before = if at_start { now } else { 0 };
                        // What one of that name before it had counted stays counted.
                        self.counted_by_gone +=
                            self.beneath.remove(&path).map_or(0, |old| old.last - old.before);
                        let last = before;
                        self.beneath.insert(
                            path.clone(),
                            Child { group: opened.clone(), oom_control, before, last },
                        );
                        opened
                    }
                };
                queue.push((path, opened));
            }
        }
    }

    fn count_beneath(&mut self) -> u64 {
        let mut sum = self.counted_by_gone;
        for child in self.beneath.values_mut() {
            if let Some(now) = oom_kill(&child.oom_control) {
                child.last = child.last.max(now);
            }
            sum += child.last - child.before;
        }
        sum
    }
}

fn oom_kill(oom_control: &Knob) -> Option<u64> {
    flat::get(&oom_control.read().ok()?, "oom_kill")
}

/// Opens the group at `directory`.
pub(super) fn open_level(host: &Host, directory: &std::path::Path) -> Result<(Arc<Cgroup>, Level)> {
    let group = Arc::new(host.hierarchy.open(directory)?);
    let level = Level::open(&group, None)?;
    Ok((group, level))
}

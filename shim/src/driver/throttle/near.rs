//! Making ready: the group that is frozen, the real-time thread, and in the group whoever may grow.
//!
//! Moving a task waits for a grace period of RCU (measured on 6.18: 13 to 90 ms on a busy host), in which
//! memory is filled at gigabytes a second. So it is done well below high, where that is not enough as soon as tasks are
//! there (`early.rs`), and for a command that is yet to be started at once: it enters the group by itself, which costs
//! nothing ([`super::Throttler::door`]).

use super::early::Early;
use super::growers::{Growers, Known};
use super::manager::FEW;
use super::pulser::{Crossing, Order, Pulser, Terms};
use super::{ThrottleConfig, ThrottleEvent};
use crate::core::throttle::{Attribution, Curve, MOST_LEVELS, Strange, Trial, chance};
use crate::driver::sys::Urgent;
use crate::guardian::FREEZER_CHILD;
use cgroupfs::files::ControlDir as _;
use cgroupfs::freezer::{self, Freezer, FreezerGroup, Kind, Parked};
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Error, Limit, Result};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far below high it is made ready, and not below an eighth of it.
const APPROACH: Bytes = Bytes::mib(128);

/// What is there while throttling is near: dropped from top to bottom.
pub(super) struct Near {
    pub(super) pulser: Pulser,
    pub(super) growers: Growers,
    pub(super) attribution: Attribution,
    pub(super) trial: Trial,
    /// Of the pulse that holds.
    pub(super) strange: Strange,
    /// In it those were let go that only wait.
    pub(super) let_go: bool,
    /// When the last pulse ended.
    pub(super) thawed_at: Instant,
    /// Usage when the last pulse held, and since then as far as somebody else was looked for.
    pub(super) held_at: Bytes,
    pub(super) frozen_at: Bytes,
    /// The accounts of those who were found in it.
    pub(super) found: Vec<u32>,
    /// The tasks were moved to another freezer group since: a runtime was not done with them.
    pub(super) elsewhere: bool,
    /// How often throttles beneath this one had come, or ended, before it was made ready.
    pub(super) beneath: u64,
    /// Which groups above it the real-time thread looks after, and up to which change of terms it was told.
    pub(super) above: Vec<u64>,
    pub(super) told: u64,
    pub(super) group: FreezerGroup,
    _parked: Option<Parked>,
}

/// The usage from which on it is made ready.
pub(in super::super) fn near(high: Bytes) -> Bytes {
    high.saturating_sub(APPROACH.max(Bytes(high.0 / 8))).max(Bytes(high.0 / 8))
}

/// What making ready takes.
pub(super) struct Ground<'a> {
    pub(super) config: &'a ThrottleConfig,
    pub(super) memory: &'a Arc<dyn Memory>,
    pub(super) freezer: &'a Freezer,
    pub(super) curve: Curve,
    pub(super) beneath: u64,
    pub(super) changes: u64,
}

impl Ground<'_> {
    fn pulser(&self, group: &FreezerGroup) -> Result<Pulser> {
        let config = self.config;
        Pulser::start(
            group.switch()?,
            self.memory.clone(),
            config.ancestors.iter().map(|ancestor| ancestor.memory.clone()).collect(),
            self.curve,
            config.journal.clone(),
        )
        .map_err(|errno| Error::refused(cgroupfs::Op::Watch, group.path(), errno))
    }

    /// Which groups above it looks after.
    fn above(&self) -> Vec<u64> {
        let above = self.config.ancestors.iter().take(MOST_LEVELS - 1);
        above.map(|ancestor| ancestor.group.inode()).collect()
    }
}

impl Near {
    /// For those who are in the container now; `None` where nobody is. Where it was made ready long before, the real-time
    /// thread is at work on these `terms` at once: until then this one is `urgent`, and what is charged above `mark` is growth.
    pub(super) fn approach(
        ground: &Ground<'_>,
        early: Option<Early>,
        urgent: Option<Urgent>,
        terms: Terms,
        mark: Bytes,
    ) -> Result<Option<Near>> {
        let config = ground.config;
        let mut near = match early.filter(|early| early.is_of_use(ground)) {
            Some(mut early) => {
                let known = std::mem::take(&mut early.known);
                let crossing = Crossing { mark, tasks: known.len() as u64 };
                let late = Order::OpenLate(terms, crossing);
                let mut near = Near::make(ground, early, Some(late))?;
                // From here on the real-time thread is at work.
                drop(urgent);
                near.growers.adopt_known(&near.group, &known)?;
                near
            }
            None => {
                drop(urgent);
                let Some((home, lent)) = home(ground)? else { return Ok(None) };
                Near::make(ground, Early::make(ground, home, lent)?, None)?
            }
        };
        let Near { growers, group, .. } = &mut near;
        // Below high nothing is owed.
        let (batch, free) = (ground.curve.batch(), |_| Duration::ZERO);
        // On the way to high who does not grow has time to show it.
        let room = |usage| config.high.bytes().map_or(usage, |high| high.saturating_sub(usage));
        let way = chance(room(ground.memory.usage()?)).is_some();
        if !way || growers.scan(group, false, FEW, batch, free)? == 0 && growers.len() == 0 {
            // None, or too many: who grows has to be found out. Those that have no CPU right now show only after a
            // while.
            growers.scan(group, false, 0, batch, free)?;
            for pause in [1, 4, 10] {
                std::thread::sleep(Duration::from_millis(pause));
                growers.scan(group, false, 0, batch, free)?;
                if Limit::Bytes(ground.memory.usage()?) >= config.high && growers.len() > 0 {
                    break;
                }
            }
            growers.scan(group, false, FEW, batch, free)?;
        }
        log::trace!("{} may grow, with {:?} in use", growers.len(), ground.memory.usage());
        Ok(Some(near))
    }

    /// For tasks that are yet to come, and whom this process starts.
    pub(super) fn ahead(ground: &Ground<'_>) -> Result<Near> {
        let home = ground.freezer.path_of(std::process::id())?;
        Near::make(ground, Early::make(ground, home, false)?, None)
    }

    fn make(ground: &Ground<'_>, early: Early, order: Option<Order>) -> Result<Near> {
        let Ground { config, freezer, .. } = *ground;
        let Early { group, home, .. } = early;
        let pulser = ground.pulser(&group)?;
        if let Some(order) = order {
            pulser.order(order);
        }
        let parked = Parked::new(freezer).unwrap_or_else(|error| {
            log::debug!("{error}: freezes take a little longer");
            None
        });
        Ok(Near {
            pulser,
            growers: Growers::new(
                config.group.clone(),
                config.taken.clone(),
                ground.memory.clone(),
                home,
                freezer.clone(),
            ),
            attribution: Attribution::default(),
            trial: Trial::default(),
            strange: Strange::default(),
            let_go: false,
            thawed_at: Instant::now(),
            held_at: Bytes(0),
            frozen_at: Bytes(0),
            found: Vec::new(),
            elsewhere: false,
            beneath: ground.beneath,
            above: ground.above(),
            told: ground.changes,
            group,
            _parked: parked,
        })
    }

    /// Another real-time thread, for the groups above that count now. The one until now is at rest.
    pub(super) fn renew_pulser(&mut self, ground: &Ground<'_>) -> Result<()> {
        self.pulser = ground.pulser(&self.group)?;
        self.pulser.watch(self.growers.processes());
        self.above = ground.above();
        Ok(())
    }

    /// What is to be told of it: real-time priority is refused.
    pub(super) fn trouble(&self) -> Option<ThrottleEvent> {
        self.pulser.real_time.err().map(ThrottleEvent::NotRealTime)
    }

    /// Thaws, and goes away; who is in the group stays there.
    pub(super) fn withdraw(self) -> Early {
        let Near { pulser, growers, group, beneath, _parked, .. } = self;
        drop(pulser);
        Early { home: growers.into_home(), group, beneath, known: Known::default() }
    }

    /// Thaws, moves everybody back, and removes the group, in this order.
    pub(super) fn dissolve(self) -> Result<()> {
        let Near { pulser, growers, group, _parked, .. } = self;
        drop(pulser);
        drop(growers);
        group.remove()
    }
}

/// `cgshim` beneath a container's own group. Where others may be in the same freezer group (the root, our own, or
/// one that is `lent` by a group beneath) our pid and the memory group's inode tell ours from theirs.
pub(super) fn name(freezer: &Freezer, container: &Cgroup, home: &Path, lent: bool) -> String {
    match lent || is_shared(freezer, home) {
        true => format!("cgshim-{}-{}", std::process::id(), container.inode()),
        false => FREEZER_CHILD.into(),
    }
}

/// Whether tasks of several containers may be in a freezer group: the root, or our own.
fn is_shared(freezer: &Freezer, home: &Path) -> bool {
    home == freezer.mount_point || freezer.path_of(std::process::id()).is_ok_and(|own| own == home)
}

/// Whose tasks go back to `home` if a throttle that was killed left them beneath it: in a container's own group
/// those of a throttle above it as well.
pub(super) fn whose(freezer: &Freezer, container: &Cgroup, home: &Path) -> Whose {
    match is_shared(freezer, home) {
        true => Whose::Container(container.inode()),
        false => Whose::All,
    }
}

/// What [`sweep`] empties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Groups made for any container.
    All,
    /// Those made for the one with this inode.
    Container(u64),
    /// None.
    Nobodys,
}

/// The freezer group that a container's tasks are in, and whether that is one of a group beneath the container's: a
/// pod's containers have their own. `None` where nobody is, or all are in groups with throttles of their own.
pub(super) fn home(ground: &Ground<'_>) -> Result<Option<(PathBuf, bool)>> {
    let group = &ground.config.group;
    let of = |tids: Vec<u32>| tids.iter().find_map(|tid| ground.freezer.path_of(*tid).ok());
    if let Some(home) = of(freezer::tasks(group, "cgroup.procs")?) {
        return Ok(Some((outside(home, group), false)));
    }
    for name in group.children()? {
        let Ok(child) = group.child(&name) else { continue };
        if ground.config.taken.has(&child) {
            continue;
        }
        if let Some(home) = of(freezer::tasks(&Arc::new(child), "cgroup.procs").unwrap_or_default())
        {
            let home = outside(home, group);
            let lent = home.file_name().is_some_and(|home| home == OsStr::new(&name));
            return Ok(Some((home, lent)));
        }
    }
    Ok(None)
}

/// The group that a container was started in, from where its tasks are: an enforcer that was killed leaves
/// them in its group, and one within the other, restart for restart, is no place for them. Nor is one of another
/// throttle, above or beneath, which takes its group with it when it ends.
pub(super) fn outside(home: PathBuf, container: &Cgroup) -> PathBuf {
    let name = |path: &Path| path.file_name().and_then(OsStr::to_str).map(str::to_owned);
    let ours = match name(&home) {
        // Unless that is what the container itself is called.
        Some(name_of) if name_of == FREEZER_CHILD => name(container.path()) != Some(name_of),
        Some(name_of) => left_by(&name_of).is_some(),
        None => false,
    };
    match home.parent() {
        Some(parent) if ours => parent.to_owned(),
        _ => home,
    }
}

/// The process that made a group of this name, and the memory group that it is for.
fn left_by(name: &str) -> Option<(i32, Option<u64>)> {
    let rest = name.strip_prefix("cgshim-parked-").or_else(|| name.strip_prefix("cgshim-"))?;
    let (pid, inode) = rest.split_once('-').map_or((rest, None), |(pid, inode)| (pid, Some(inode)));
    Some((pid.parse().ok()?, inode.and_then(|inode| inode.parse().ok())))
}

/// Removes the groups that throttles of processes that are no more left in the hierarchy's root and in our own
/// group, where nobody is in them.
pub fn remove_left() {
    let Ok(freezer) = Freezer::find() else { return };
    let own = freezer.path_of(std::process::id()).ok();
    let mut homes = vec![freezer.mount_point.clone()];
    homes.extend(own.filter(|own| *own != freezer.mount_point));
    for home in homes {
        if let Ok(parent) = freezer.open(&home) {
            sweep(freezer.kind, &Arc::new(parent), Whose::Nobodys);
        }
    }
}

/// Removes what is left of throttles whose process was killed: of these the tasks go back where they were; others'
/// if their tasks have ended since.
pub(super) fn sweep(kind: Kind, parent: &Arc<Cgroup>, whose: Whose) {
    for name in parent.children().unwrap_or_default() {
        let Some((pid, inode)) = left_by(&name) else { continue };
        if kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) {
            continue;
        }
        let is_theirs = match whose {
            Whose::All => true,
            Whose::Container(container) => inode == Some(container),
            Whose::Nobodys => false,
        };
        if is_theirs {
            let emptied =
                FreezerGroup::create(kind, parent.clone(), &name).and_then(|group| group.remove());
            if let Err(error) = emptied {
                log::debug!("{error}: left behind");
            }
        } else {
            // Not while somebody is in it.
            let _ = parent.remove_child(&name, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_ours_are_told_by_their_names() {
        assert_eq!(left_by("cgshim-12-345"), Some((12, Some(345))));
        assert_eq!(left_by("cgshim-parked-12"), Some((12, None)));
        for name in ["cgshim", "cgshim-x", "cgshim-", "docker-12-345", "cgshim-parked-"] {
            assert_eq!(left_by(name), None, "{name}");
        }
    }
}

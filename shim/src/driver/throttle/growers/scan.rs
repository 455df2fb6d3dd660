//! All tasks of a container, and those who are to be moved into the group that is frozen.

use super::{Grower, Growers};
use crate::core::throttle::{
    Found, STARTING, Sought, Standing, found, is_bystander, starter, writes,
};
use cgroupfs::files::ControlDir;
use cgroupfs::freezer::{self, FreezerGroup};
use cgroupfs::procfs::{Task, ran_and_slept, starttime};
use cgroupfs::{Cgroup, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tasks that are looked at in one scan, at most.
const MOST: usize = 8192;

/// Groups beneath the container's that are looked into, at most so deep.
const DEEPEST: usize = 16;

impl Growers {
    /// Whether enough time has passed since the last scan: never more than 1/20 of it is spent on them.
    pub(in super::super) fn may_scan(&self, pause: Duration) -> bool {
        self.last_scan.is_none_or(|at| at.elapsed() >= pause.max(self.scan_took * 20))
    }

    /// Looks at all tasks of the container, and moves those into `group` that grew since the last scan;
    /// with `unexplained`, those too that were in the kernel for long; all of them, if there are no more than
    /// `few`, but those who were only there while others grew. Pages are charged in units of `batch`. They come owing what this growth `costs`. How many were moved.
    pub(in super::super) fn scan(
        &mut self,
        group: &FreezerGroup,
        unexplained: bool,
        few: usize,
        batch: u64,
        costs: impl Fn(u64) -> Duration,
    ) -> Result<usize> {
        let start = Instant::now();
        let tids = all(&self.memory, &|group| self.taken.has(group))?;
        let all = tids.len() <= few;
        let young = ticks_since_boot().map(|now| now.saturating_sub(ticks(STARTING)));
        let (mut others, mut processes) = (Vec::new(), BTreeMap::new());
        for tid in tids.into_iter().filter(|tid| !self.moved.contains_key(tid)) {
            let Ok(task) = Task::open(tid) else { continue };
            let Some(stat) = task.stat_beside(&mut processes) else { continue };
            let before = self.seen.get(&tid).filter(|seen| seen.starttime == stat.starttime);
            others.push((tid, task, stat, before.copied()));
        }
        let kernel_time = others.iter().filter_map(|(_, _, stat, before)| {
            before.map(|before| stat.stime.saturating_sub(before.stime))
        });
        let sought = Sought {
            others: (!self.moved.is_empty()).then_some(batch),
            writes: unexplained.then(|| writes(kernel_time)),
        };
        // Where nobody is known for it: those who start others, which end before they have shown anything.
        let looked = !self.seen.is_empty() && (unexplained || self.moved.is_empty());
        let new = others.iter().filter(|(_, _, stat, before)| {
            looked && before.is_none() && young.is_some_and(|young| stat.starttime >= young)
        });
        let starters: BTreeSet<u32> =
            new.map(|(_, task, stat, _)| starter(task.tid(), task.pid(), stat.ppid)).collect();
        let processes: BTreeSet<u32> = others.iter().map(|(_, task, ..)| task.pid()).collect();
        let mut seen = BTreeMap::new();
        let mut growing = Vec::new();
        for (tid, task, stat, before) in others {
            let starter = starter(tid, task.pid(), stat.ppid);
            let is_new = before.is_none() && processes.contains(&starter);
            if starters.contains(&task.pid()) || is_new && starters.contains(&starter) {
                growing.push((task, stat, Found::Starts, Duration::ZERO));
                continue;
            }
            if let Some(before) = before {
                // A thread of a process that is not is at work, and does not start.
                let young = young.is_some_and(|young| {
                    stat.starttime >= young
                        && (task.pid() == tid
                            || starttime(task.pid()).is_some_and(|at| at >= young))
                });
                if let Some(found) = found(&before, &stat, young, sought) {
                    let debt = costs(stat.faults().saturating_sub(before.faults()));
                    growing.push((task, stat, found, debt));
                    continue;
                }
            }
            let beside = sought.others.is_some()
                && before.is_some_and(|before| is_bystander(&before, &stat));
            if all && !beside {
                growing.push((task, stat, Found::Suspect, Duration::ZERO));
                continue;
            }
            seen.insert(tid, stat);
        }
        self.seen = seen;
        // Without the moves, which wait for grace periods: whoever is left must be found soon.
        self.scan_took = start.elapsed();
        let mut moved = 0;
        self.strangers = 0;
        self.found.clear();
        let usage = self.usage();
        for (task, stat, found, debt) in growing {
            let tid = task.tid();
            let path = self.freezer.path_of(tid);
            if path.as_deref().is_ok_and(|path| path == group.path()) {
                // Born there: taken note of below.
                continue;
            }
            if !path.is_ok_and(|path| path == self.home) {
                self.strangers += 1;
                continue;
            }
            if group.take(tid)? {
                moved += 1;
                log::trace!("task {tid} is taken in: {found:?}, {} faults so far", stat.faults());
                let mut standing = match found {
                    Found::Grows => Standing::grower(stat, debt),
                    Found::Huge => Standing::suspect(stat, usage, ran_and_slept(tid)).beside_huge(),
                    _ => Standing::suspect(stat, usage, ran_and_slept(tid)),
                };
                if found == Found::Starts {
                    standing.started_outside();
                }
                let account = self.kin.came(tid, task.pid(), stat.ppid, false);
                self.found.push(account);
                self.moved.insert(tid, Grower::new(task, account, standing));
            }
        }
        // Children and threads of those that were moved are in the group from their birth.
        self.adopt(group)?;
        self.last_scan = Some(Instant::now());
        Ok(moved)
    }
}
/// Clock ticks, in which starts of tasks are counted.
fn ticks(time: Duration) -> u64 {
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    (time.as_secs_f64() * a_second as f64) as u64
}

fn ticks_since_boot() -> Option<u64> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(|now| ticks(now.into()))
}

/// The tasks (v2: processes) of a group and of those beneath it, without those that are left out.
pub(in super::super) fn all(
    group: &Arc<Cgroup>,
    left_out: &dyn Fn(&Cgroup) -> bool,
) -> Result<Vec<u32>> {
    let mut tids = Vec::new();
    list(group, left_out, 0, &mut tids)?;
    Ok(tids)
}

fn list(
    group: &Arc<Cgroup>,
    left_out: &dyn Fn(&Cgroup) -> bool,
    depth: usize,
    tids: &mut Vec<u32>,
) -> Result<()> {
    let file = if group.has("tasks") { "tasks" } else { "cgroup.procs" };
    tids.extend(freezer::tasks(group, file)?);
    tids.truncate(MOST);
    if depth < DEEPEST && tids.len() < MOST {
        for name in group.children()? {
            // Gone meanwhile is fine.
            if let Ok(child) = group.child(&name)
                && !left_out(&child)
            {
                let _ = list(&Arc::new(child), left_out, depth + 1, tids);
            }
        }
    }
    Ok(())
}

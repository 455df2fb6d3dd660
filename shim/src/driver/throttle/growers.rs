//! Which tasks grow: all of a container's are looked at now and then, those that grow are moved into the
//! group that is frozen, and looked at in every pulse.

use crate::core::throttle::{Account, Chance, Change, Grown, HUGE};
use cgroupfs::files::ControlDir;
use cgroupfs::freezer::{self, Freezer, FreezerGroup, Kind};
use cgroupfs::memory::Memory;
use cgroupfs::procfs::{Task, TaskStat, ran_and_slept};
use cgroupfs::units::page_size;
use cgroupfs::{Bytes, Cgroup, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A task that faulted in so many pages between two scans grows.
const GROWS: u64 = 16;

/// Unless it has just started and not faulted in so many yet, nor has so many times eight resident: a probe
/// that somebody runs in the container, a `runc init`. In windows of less than a millisecond it would take
/// seconds to start.
const START: u64 = 2048;
const STARTING: Duration = Duration::from_secs(1);

/// One that nobody has seen growing does not grow if it faulted in no more than this part of what the group has
/// grown by since: programs fault now and then.
const PART: u64 = 64;

/// Where growth is not explained by faults, a task that was in the kernel for so many clock ticks
/// between two scans is taken for who writes.
const WRITES: u64 = 1;

/// A task that was thawed so often without growing is given back. With more growers than CPUs one of them
/// gets none in many a window; given back it would run free until it is found again (measured with fewer
/// windows: 30 MiB).
const IDLE_WINDOWS: u32 = 50;

/// After so many it rests: nobody shares a debt with it until it grows again. (Measured with huge pages, and so few
/// windows: shared with a thread that had filled memory once, growth cost half.)
const RESTS: u32 = 4;

/// A task that has run for so many clock ticks without growing had its turn. A thaw wakes tasks in one order, and
/// windows are short: the same may take all of each of them (measured on 6.18, four growers on two CPUs: 30 windows on
/// end). Those who wait behind it are no idlers.
const TURN: u64 = 2;

/// One that nobody has seen growing is given back when the group has grown by so much since it came.
const CHANCE: Bytes = Bytes::mib(16);

/// Tasks that are looked at in one scan, at most.
const MOST: usize = 8192;

/// Groups beneath the container's that are looked into, at most so deep.
const DEEPEST: usize = 16;

/// A task that was moved.
struct Grower {
    task: Arc<Task>,
    last: TaskStat,
    idle: u32,
    account: Account,
    /// CPU time and sleeps, when it was last looked at in a window without growth.
    ran: Option<(Duration, u64)>,
    /// When it was last seen at work in the kernel.
    worked: TaskStat,
    /// It has not run since, or hardly, but would: others had the CPUs.
    waits: bool,
    /// Nobody has seen it grow: how it was when it came, and what the group used then.
    suspect: Option<(TaskStat, Bytes)>,
}

impl Grower {
    fn new(
        task: Task,
        last: TaskStat,
        suspect: Option<(TaskStat, Bytes)>,
        debt: Duration,
    ) -> Grower {
        Grower {
            task: Arc::new(task),
            last,
            idle: 0,
            account: Account::owing(debt),
            ran: None,
            worked: last,
            waits: false,
            suspect,
        }
    }

    /// Whether it had no turn since it was seen at work, by what was read now.
    fn had_no_turn(&self) -> bool {
        let ran = |stat: &TaskStat| stat.utime + stat.stime;
        ran(&self.last).saturating_sub(ran(&self.worked)) < TURN && self.task.was_interrupted()
    }

    /// Whether it has grown since it came, or was last seen to.
    fn grew(&self) -> bool {
        self.suspect.is_none_or(|(then, _)| grew(&then, &self.last, GROWS))
    }

    /// The same, and it had its part in what the group has grown by to `usage`.
    fn had_its_part(&self, usage: Bytes) -> bool {
        self.suspect.is_none_or(|(then, used)| {
            let part = usage.saturating_sub(used).0 / page_size() / PART;
            grew(&then, &self.last, part.max(GROWS))
        })
    }
}

/// Whether a task grew by so many pages from one look to the next. A huge page is one fault: its process's resident
/// set tells.
fn grew(before: &TaskStat, after: &TaskStat, pages: u64) -> bool {
    let faults = after.faults().saturating_sub(before.faults());
    faults >= pages || faults > 0 && after.rss.saturating_sub(before.rss) >= HUGE
}

/// The growers of one container.
pub(super) struct Growers {
    memory: Arc<Cgroup>,
    counter: Arc<dyn Memory>,
    home: PathBuf,
    freezer: Freezer,
    moved: BTreeMap<u32, Grower>,
    /// What the others had faulted in at the last scan, and when they started.
    seen: BTreeMap<u32, TaskStat>,
    last_scan: Option<Instant>,
    scan_took: Duration,
    /// Tasks of other freezer groups: not ours to move.
    strangers: usize,
}

impl Growers {
    /// Of the container with this memory group, whose freezer group is at `home`.
    pub(super) fn new(
        memory: Arc<Cgroup>,
        counter: Arc<dyn Memory>,
        home: PathBuf,
        freezer: Freezer,
    ) -> Growers {
        Growers {
            memory,
            counter,
            home,
            freezer,
            moved: BTreeMap::new(),
            seen: BTreeMap::new(),
            last_scan: None,
            scan_took: Duration::ZERO,
            strangers: 0,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.moved.len()
    }

    /// Tasks that grow but are in a freezer group of their own.
    pub(super) fn strangers(&self) -> usize {
        self.strangers
    }

    /// Which of them grow, those included that had no turn yet, and without those that rest: all, as long as
    /// none was seen to.
    pub(super) fn tids(&self) -> BTreeSet<u32> {
        let seen = |grower: &Grower| grower.suspect.is_none() && grower.idle < RESTS;
        let any = self.moved.values().any(seen);
        let grows = |grower: &Grower| !any || seen(grower) || grower.waits;
        self.moved.iter().filter(|(_, grower)| grows(grower)).map(|(tid, _)| *tid).collect()
    }

    /// Who had no turn in the last window.
    pub(super) fn waiting(&self) -> BTreeSet<u32> {
        self.moved.iter().filter(|(_, grower)| grower.waits).map(|(tid, _)| *tid).collect()
    }

    /// Whether enough time has passed since the last scan: never more than 1/20 of it is spent on them.
    pub(super) fn may_scan(&self, pause: Duration) -> bool {
        self.last_scan.is_none_or(|at| at.elapsed() >= pause.max(self.scan_took * 20))
    }

    /// Looks at all tasks of the container, and moves those into `group` that grew since the last scan;
    /// with `unexplained`, those too that were in the kernel for long; all of them, if there are no more than
    /// `few`. They come owing what this growth `costs`. How many were moved.
    pub(super) fn scan(
        &mut self,
        group: &FreezerGroup,
        unexplained: bool,
        few: usize,
        costs: impl Fn(u64) -> Duration,
    ) -> Result<usize> {
        let start = Instant::now();
        let mut tids = Vec::new();
        list(&self.memory, 0, &mut tids)?;
        let all = tids.len() <= few;
        let young = ticks_since_boot().map(|now| now.saturating_sub(ticks(STARTING)));
        let mut seen = BTreeMap::new();
        let mut growing = Vec::new();
        for tid in tids {
            if self.moved.contains_key(&tid) {
                continue;
            }
            let Ok(task) = Task::open(tid) else { continue };
            let Some(stat) = task.stat() else { continue };
            if let Some(before) = self.seen.get(&tid)
                && before.starttime == stat.starttime
            {
                // Where nobody is known to grow, whoever does is looked for.
                let new = !self.moved.is_empty()
                    && young.is_some_and(|young| stat.starttime >= young)
                    && stat.faults() < START
                    && stat.rss < START * 8;
                let faulted = !new && grew(before, &stat, GROWS);
                let writes = unexplained && stat.stime.saturating_sub(before.stime) >= WRITES;
                if (faulted || writes) && stat.state != b'Z' {
                    let debt = costs(stat.faults().saturating_sub(before.faults()));
                    growing.push((task, stat, false, debt));
                    continue;
                }
            }
            if all {
                growing.push((task, stat, true, Duration::ZERO));
                continue;
            }
            seen.insert(tid, stat);
        }
        self.seen = seen;
        let mut moved = 0;
        self.strangers = 0;
        let usage = self.usage();
        for (task, stat, suspect, debt) in growing {
            let tid = task.tid();
            if !self.freezer.path_of(tid).is_ok_and(|path| path == self.home) {
                self.strangers += 1;
                continue;
            }
            if group.take(tid)? {
                moved += 1;
                let suspect = suspect.then_some((stat, usage));
                self.moved.insert(tid, Grower::new(task, stat, suspect, debt));
            }
        }
        // Children and threads of those that were moved are in the group from their birth.
        self.adopt(group)?;
        self.scan_took = start.elapsed();
        self.last_scan = Some(Instant::now());
        Ok(moved)
    }

    /// Takes note of tasks in the group that nobody moved there. The first of them are suspects; who comes
    /// later is a child or a thread of one that grows.
    pub(super) fn adopt(&mut self, group: &FreezerGroup) -> Result<()> {
        self.born(group).map(drop)
    }

    /// The same; what each of them has done so far.
    pub(super) fn born(&mut self, group: &FreezerGroup) -> Result<Vec<Change>> {
        let suspects = self.moved.is_empty().then(|| self.usage());
        let mut born = Vec::new();
        for tid in group.tasks()? {
            if !self.moved.contains_key(&tid)
                && let Ok(task) = Task::open(tid)
                && let Some(last) = task.stat()
            {
                self.seen.remove(&tid);
                // Of its process' resident set, part was there before it.
                let (process, faults, kernel_time) = (task.pid(), last.faults(), last.stime);
                born.push(Change { task: tid, process, faults, resident: 0, kernel_time });
                let suspect = suspects.map(|usage| (last, usage));
                self.moved.insert(tid, Grower::new(task, last, suspect, Duration::ZERO));
            }
        }
        Ok(born)
    }

    /// As if they had all just come: who grows from here on, grows.
    pub(super) fn suspect_all(&mut self, group: &FreezerGroup) -> Result<()> {
        self.moved.clear();
        self.adopt(group)
    }

    /// The same for those that have grown: who has not since it came is as suspect as it was.
    pub(super) fn suspect_again(&mut self) {
        self.look();
        let usage = self.usage();
        for grower in self.moved.values_mut() {
            if grower.grew() {
                grower.suspect = Some((grower.last, usage));
                grower.idle = 0;
            }
        }
    }

    fn usage(&self) -> Bytes {
        self.counter.usage().unwrap_or_default()
    }

    /// Convicts those whom the last look saw growing: what is owed is theirs alone from then on.
    pub(super) fn convict(&mut self) {
        let usage = self.usage();
        for grower in self.moved.values_mut() {
            if grower.had_its_part(usage) {
                grower.suspect = None;
            }
        }
    }

    /// Clears of suspicion who does not grow: they are given back, and may run again at once.
    pub(super) fn sift(&mut self, group: &FreezerGroup) -> Result<()> {
        if self.moved.values().all(|grower| grower.suspect.is_none()) {
            return Ok(());
        }
        let usage = self.usage();
        let mut cleared = Vec::new();
        for (tid, grower) in &self.moved {
            if let Some((_, then)) = grower.suspect
                && !grower.waits
                && usage.saturating_sub(then) >= CHANCE
            {
                cleared.push(*tid);
            }
        }
        // Moving a task of the unified freezer takes the whole process: the others may grow.
        let grows = self.moved.values().any(|grower| grower.suspect.is_none());
        if grows && group.kind() == Kind::V1 {
            self.return_to_home(group, &cleared)?;
        }
        Ok(())
    }

    fn return_to_home(&mut self, group: &FreezerGroup, tids: &[u32]) -> Result<()> {
        for tid in tids {
            // Each move waits for a grace period, and somebody may be waiting for us to let it die.
            if self.killed() {
                break;
            }
            group.give_back(*tid)?;
            if let Some(grower) = self.moved.remove(tid) {
                self.seen.insert(*tid, grower.last);
            }
        }
        Ok(())
    }

    /// What each of them did since the last look. Those that are gone are forgotten.
    pub(super) fn look(&mut self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.moved.len());
        self.moved.retain(|tid, grower| {
            let Some(stat) = grower.task.stat() else { return false };
            let before = std::mem::replace(&mut grower.last, stat);
            let faults = stat.faults().saturating_sub(before.faults());
            let kernel_time = stat.stime.saturating_sub(before.stime);
            let resident = i64::try_from(stat.rss).unwrap_or(i64::MAX)
                - i64::try_from(before.rss).unwrap_or(i64::MAX);
            let works = faults > 0 || kernel_time > 0;
            if works {
                (grower.worked, grower.idle) = (stat, 0);
            }
            grower.waits = !works && grower.had_no_turn();
            if !works && !grower.waits {
                grower.idle += 1;
            }
            changes.push(Change {
                task: *tid,
                process: grower.task.pid(),
                faults,
                resident,
                kernel_time,
            });
            true
        });
        changes
    }

    /// A window is over, that was so long and in which they grew by this: what each of them owes for it by
    /// `costs`.
    pub(super) fn account(
        &mut self,
        window: Duration,
        grown: &[Grown],
        costs: impl Fn(&Grown) -> Duration,
    ) {
        for (tid, grower) in &mut self.moved {
            let own = grown.iter().find(|grown| grown.task == *tid);
            let pages = own.map_or(0, |grown| grown.pages);
            let before = std::mem::take(&mut grower.ran);
            // Of those that grow nobody asks why they do not.
            grower.ran = if pages < GROWS { ran_and_slept(*tid) } else { None };
            let chance = match (before, grower.ran) {
                (Some(before), Some(now)) => Chance {
                    window,
                    ran: now.0.saturating_sub(before.0),
                    slept: now.1.saturating_sub(before.1),
                },
                _ => Chance::default(),
            };
            grower.account.window(pages, own.map_or(Duration::ZERO, &costs), chance);
        }
    }

    /// They were frozen for so long.
    pub(super) fn paid(&mut self, time: Duration) {
        self.moved.values_mut().for_each(|grower| grower.account.frozen(time));
    }

    /// Gives those back that grow no more and have paid for what they grew by, and those that have done nothing
    /// for long; they may run again. How many.
    pub(super) fn give_back_idle(&mut self, group: &FreezerGroup) -> Result<usize> {
        // With the unified freezer a move takes the whole process: the others may still grow.
        if group.kind() == Kind::Unified {
            return Ok(0);
        }
        let idle: Vec<u32> = self
            .moved
            .iter()
            .filter(|(_, grower)| grower.idle >= IDLE_WINDOWS || grower.account.is_settled())
            .map(|(tid, _)| *tid)
            .collect();
        self.return_to_home(group, &idle)?;
        Ok(idle.len())
    }

    /// A task of each process.
    pub(super) fn processes(&self) -> impl Iterator<Item = Arc<Task>> {
        let mut pids = BTreeSet::new();
        let tasks = self.moved.values().map(|grower| grower.task.clone());
        tasks.filter(move |task| pids.insert(task.pid()))
    }

    /// Whether one of them has been killed, and cannot die because it is frozen.
    pub(super) fn killed(&self) -> bool {
        self.moved.values().any(|grower| grower.task.stat().is_some_and(|stat| stat.killed()))
    }

    /// The process among them that has most memory, as the kernel would choose.
    pub(super) fn largest(&self) -> Option<u32> {
        let alive = self.moved.values().filter(|grower| grower.task.stat().is_some());
        alive.max_by_key(|grower| grower.last.rss).map(|grower| grower.task.pid())
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

/// The tasks (v2: processes) of a group and of those beneath it.
pub(super) fn all(group: &Arc<Cgroup>) -> Result<Vec<u32>> {
    let mut tids = Vec::new();
    list(group, 0, &mut tids)?;
    Ok(tids)
}

/// The tasks of a group and of those beneath it.
fn list(group: &Arc<Cgroup>, depth: usize, tids: &mut Vec<u32>) -> Result<()> {
    let file = if group.has("tasks") { "tasks" } else { "cgroup.procs" };
    tids.extend(freezer::tasks(group, file)?);
    tids.truncate(MOST);
    if depth < DEEPEST && tids.len() < MOST {
        for name in group.children()? {
            // Gone meanwhile is fine.
            if let Ok(child) = group.child(&name) {
                let _ = list(&Arc::new(child), depth + 1, tids);
            }
        }
    }
    Ok(())
}

//! All tasks of a container are looked at now and then, those that grow are moved into the group that is frozen, and
//! looked at in every pulse. Who grows is decided in [`crate::core::throttle`].

use super::taken::Taken;
use crate::core::throttle::{
    Attribution, Change, Found, Grown, HUGE, STARTING, Shares, Sought, Standing, found,
    is_bystander, who_faulted_alone, who_grows, writes,
};
use cgroupfs::files::ControlDir;
use cgroupfs::freezer::{self, Freezer, FreezerGroup, Kind};
use cgroupfs::memory::Memory;
use cgroupfs::procfs::{Stopped, Task, TaskStat, ran, ran_and_slept, starttime, transferred};
use cgroupfs::units::page_size;
use cgroupfs::{Bytes, Cgroup, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tasks that are looked at in one scan, at most.
const MOST: usize = 8192;

/// Groups beneath the container's that are looked into, at most so deep.
const DEEPEST: usize = 16;

/// For so long at least a task has a chance to grow with the others, however fast they are.
const SHOWN: Duration = Duration::from_millis(50);

/// What tasks read and write is looked at for so many windows after one whose growth faults did not explain.
const WRITING: u32 = 64;

/// A task that was moved.
struct Grower {
    task: Arc<Task>,
    standing: Standing,
    since: Instant,
    /// What it had read and written at the last look, if that was asked for.
    transferred: Option<u64>,
    /// How long it had run, likewise.
    ran: Option<Duration>,
}

impl Grower {
    fn new(task: Task, standing: Standing) -> Grower {
        let (since, tid) = (Instant::now(), task.tid());
        let (transferred, ran) = (transferred(tid), ran(tid));
        Grower { task: Arc::new(task), standing, since, transferred, ran }
    }
}

/// The growers of one container.
pub(super) struct Growers {
    memory: Arc<Cgroup>,
    /// Whoever is in a group beneath that has a throttle of its own is left to that.
    taken: Arc<Taken>,
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
    /// For so many more windows it is looked at what they read and write.
    writing: u32,
    /// Those that grew last filled huge pages.
    huge: bool,
}

impl Growers {
    /// Of the container with this memory group, whose freezer group is at `home`.
    pub(super) fn new(
        memory: Arc<Cgroup>,
        taken: Arc<Taken>,
        counter: Arc<dyn Memory>,
        home: PathBuf,
        freezer: Freezer,
    ) -> Growers {
        Growers {
            memory,
            taken,
            counter,
            home,
            freezer,
            moved: BTreeMap::new(),
            seen: BTreeMap::new(),
            last_scan: None,
            scan_took: Duration::ZERO,
            strangers: 0,
            writing: WRITING,
            huge: false,
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

    /// Which of them grow ([`who_grows`]).
    pub(super) fn tids(&self) -> BTreeSet<u32> {
        who_grows(self.moved.iter().map(|(tid, grower)| (*tid, &grower.standing)))
    }

    /// Who had no turn in the last window.
    pub(super) fn waiting(&self) -> BTreeSet<u32> {
        self.that(Standing::had_no_turn)
    }

    fn that(&self, is: impl Fn(&Standing) -> bool) -> BTreeSet<u32> {
        let those = self.moved.iter().filter(|(_, grower)| is(&grower.standing));
        those.map(|(tid, _)| *tid).collect()
    }

    /// Whether enough time has passed since the last scan: never more than 1/20 of it is spent on them.
    pub(super) fn may_scan(&self, pause: Duration) -> bool {
        self.last_scan.is_none_or(|at| at.elapsed() >= pause.max(self.scan_took * 20))
    }

    /// Looks at all tasks of the container, and moves those into `group` that grew since the last scan;
    /// with `unexplained`, those too that were in the kernel for long; all of them, if there are no more than
    /// `few`, but those who were only there while others grew. Pages are charged in units of `batch`. They come owing what this growth `costs`. How many were moved.
    pub(super) fn scan(
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
        let mut seen = BTreeMap::new();
        let mut growing = Vec::new();
        for (tid, task, stat, before) in others {
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
                growing.push((task, stat, Found::Process, Duration::ZERO));
                continue;
            }
            seen.insert(tid, stat);
        }
        self.seen = seen;
        // Without the moves, which wait for grace periods: whoever is left must be found soon.
        self.scan_took = start.elapsed();
        let mut moved = 0;
        self.strangers = 0;
        let usage = self.usage();
        for (task, stat, found, debt) in growing {
            let tid = task.tid();
            if !self.freezer.path_of(tid).is_ok_and(|path| path == self.home) {
                self.strangers += 1;
                continue;
            }
            if group.take(tid)? {
                moved += 1;
                log::trace!("task {tid} is taken in: {found:?}, {} faults so far", stat.faults());
                let standing = match found {
                    Found::Grows => Standing::grower(stat, debt),
                    Found::Process => Standing::suspect(stat, usage, ran_and_slept(tid)),
                };
                self.moved.insert(tid, Grower::new(task, standing));
            }
        }
        // Children and threads of those that were moved are in the group from their birth.
        self.adopt(group)?;
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
        let (mut born, mut processes) = (Vec::new(), BTreeMap::new());
        for tid in group.tasks()? {
            if !self.moved.contains_key(&tid)
                && let Ok(task) = Task::open(tid)
                && let Some(last) = task.stat_beside(&mut processes)
            {
                self.seen.remove(&tid);
                // Of its process' resident set, part was there before it.
                let (process, faults, kernel_time) = (task.pid(), last.faults(), last.stime);
                let change =
                    Change { task: tid, process, faults, kernel_time, ..Change::default() };
                born.push(change);
                let so_far = ran_and_slept(tid);
                let standing = match suspects {
                    Some(usage) => Standing::suspect(last, usage, so_far),
                    None => Standing::born(last, so_far),
                };
                self.moved.insert(tid, Grower::new(task, standing));
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
        self.look(true);
        let usage = self.usage();
        self.moved.values_mut().for_each(|grower| grower.standing.suspect_again(usage));
    }

    fn usage(&self) -> Bytes {
        self.counter.usage().unwrap_or_default()
    }

    /// Convicts those whom the last look saw growing: what is owed is theirs alone from then on.
    pub(super) fn convict(&mut self, changes: &[Change], shares: &Shares) {
        let (usage, alone) = (self.usage(), who_faulted_alone(changes));
        self.writing = match shares.unexplained > 0 || !shares.written.is_empty() {
            true => WRITING,
            false => self.writing.saturating_sub(1),
        };
        for (task, pages) in &shares.written {
            if let Some(grower) = self.moved.get_mut(task) {
                grower.standing.wrote(*pages);
            }
        }
        for (tid, grower) in &mut self.moved {
            grower.standing.convict(usage, alone.contains(tid));
        }
    }

    /// Whether some of them have not shown yet if they grow.
    pub(super) fn has_untried(&self) -> bool {
        self.moved.values().any(|grower| grower.standing.is_untried())
    }

    /// What the kernel has put into the resident sets of processes since they were looked at last.
    pub(super) fn filled(&self) -> Bytes {
        let mut processes = BTreeMap::new();
        for grower in self.moved.values() {
            processes.entry(grower.task.pid()).or_insert_with(|| {
                let now = grower.task.stat().map_or(0, |stat| stat.rss);
                now.saturating_sub(grower.standing.last().rss)
            });
        }
        Bytes(processes.into_values().fold(0, u64::saturating_add).saturating_mul(page_size()))
    }

    /// The group has grown by `chance` below high: who has not grown with it is given back before anybody is frozen.
    pub(super) fn sift_below(
        &mut self,
        group: &FreezerGroup,
        chance: Bytes,
        batch: u64,
    ) -> Result<()> {
        let changes = self.look(true);
        let pages = chance.0 / page_size();
        let shares = Attribution::default().share(&changes, pages, batch);
        self.convict(&changes, &shares);
        let usage = self.usage();
        // Others may have been told a moment sooner to grow.
        let those = self.moved.iter().filter(|(_, grower)| {
            grower.since.elapsed() >= SHOWN && grower.standing.is_cleared_below(usage, chance)
        });
        let those = those.filter(|(tid, grower)| grower.standing.has_run(ran_and_slept(**tid)));
        let cleared: BTreeSet<u32> = those.map(|(tid, _)| *tid).collect();
        log::trace!("{} of {} do not grow, with {usage} in use", cleared.len(), self.len());
        self.return_cleared(group, cleared)
    }

    /// Clears of suspicion who does not grow: they are given back, and may run again at once.
    pub(super) fn sift(&mut self, group: &FreezerGroup) -> Result<()> {
        if !self.moved.values().any(|grower| grower.standing.is_suspect()) {
            return Ok(());
        }
        let usage = self.usage();
        let cleared = self.that(|standing| standing.is_cleared(usage));
        self.return_cleared(group, cleared)
    }

    fn return_cleared(&mut self, group: &FreezerGroup, cleared: BTreeSet<u32>) -> Result<()> {
        // Moving a task of the unified freezer takes the whole process: the others may grow.
        let grows = self.moved.values().any(|grower| !grower.standing.is_suspect());
        if grows && group.kind() == Kind::V1 {
            self.return_to_home(group, cleared)?;
        }
        Ok(())
    }

    fn return_to_home(&mut self, group: &FreezerGroup, tids: BTreeSet<u32>) -> Result<()> {
        for tid in tids {
            // Each move waits for a grace period, and somebody may be waiting for us to let it die.
            if self.killed() {
                break;
            }
            group.give_back(tid)?;
            if let Some(grower) = self.moved.remove(&tid) {
                log::trace!("task {tid} is given back: {:?}", grower.standing);
                self.seen.insert(tid, *grower.standing.last());
            }
        }
        Ok(())
    }

    /// What each of them did since the last look; `turn`: all of them have had one since this was so last. Those
    /// that are gone are forgotten.
    pub(super) fn look(&mut self, turn: bool) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.moved.len());
        let writing = self.writing > 0;
        let mut processes = BTreeMap::new();
        self.moved.retain(|tid, grower| {
            let Some(stat) = grower.task.stat_beside(&mut processes) else { return false };
            let step = grower.standing.look(stat, turn, || grower.task.stopped());
            let stopped = || step.stopped.unwrap_or_else(|| grower.task.stopped());
            let charging = writing && stopped() == Stopped::Charging;
            let now = if writing { (transferred(*tid), ran(*tid)) } else { (None, None) };
            let before = std::mem::replace(&mut grower.transferred, now.0);
            let ran_before = std::mem::replace(&mut grower.ran, now.1);
            let (now, ran) = (now.0, now.1.zip(ran_before).filter(|_| charging));
            changes.push(Change {
                task: *tid,
                process: grower.task.pid(),
                faults: step.faults,
                resident: step.resident,
                kernel_time: step.kernel_time,
                transferred: now.zip(before).map_or(0, |(now, before)| now.saturating_sub(before)),
                rests: step.rests,
                charging: ran.map_or(Duration::ZERO, |(now, before)| now.saturating_sub(before)),
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
        if !grown.is_empty() {
            self.huge = grown.iter().any(|grown| grown.unit >= HUGE);
        }
        for (tid, grower) in &mut self.moved {
            let own = grown.iter().find(|grown| grown.task == *tid);
            let pages = own.map_or(0, |grown| grown.pages);
            let owes = own.map_or(Duration::ZERO, &costs);
            grower.standing.window(window, self.huge, pages, owes, || ran_and_slept(*tid));
        }
    }

    /// They were frozen for so long.
    pub(super) fn paid(&mut self, time: Duration) {
        self.moved.values_mut().for_each(|grower| grower.standing.frozen(time));
    }

    /// Gives those back that grow no more and have paid for what they grew by, and those that have done nothing
    /// for long; they may run again. How many.
    pub(super) fn give_back_idle(&mut self, group: &FreezerGroup) -> Result<usize> {
        // With the unified freezer a move takes the whole process: the others may still grow.
        if group.kind() == Kind::Unified {
            return Ok(0);
        }
        let done = self.that(Standing::is_done);
        let n = done.len();
        self.return_to_home(group, done)?;
        Ok(n)
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

    /// Whether one of them has a CPU, or waits for one.
    pub(super) fn somebody_runs(&self) -> bool {
        let runs = |grower: &Grower| grower.task.stat().is_some_and(|stat| stat.state == b'R');
        self.moved.values().any(runs)
    }

    /// The process among them that has most memory, as the kernel would choose.
    pub(super) fn largest(&self) -> Option<u32> {
        let alive = self.moved.values().filter(|grower| grower.task.stat().is_some());
        alive.max_by_key(|grower| grower.standing.last().rss).map(|grower| grower.task.pid())
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
pub(super) fn all(group: &Arc<Cgroup>, left_out: &dyn Fn(&Cgroup) -> bool) -> Result<Vec<u32>> {
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

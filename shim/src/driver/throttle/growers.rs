//! All tasks of a container are looked at now and then, those that grow are moved into the group that is frozen, and
//! looked at in every pulse. Who grows is decided in [`crate::core::throttle`].

mod scan;

pub(super) use scan::all;

use super::manager::FEW;
use super::taken::Taken;
use crate::core::throttle::{
    Attribution, Change, Grown, HUGE, Kin, Process, Shares, Standing, who_faulted_alone, who_grows,
};
use cgroupfs::freezer::{Freezer, FreezerGroup, Kind};
use cgroupfs::memory::Memory;
use cgroupfs::procfs::{
    Stopped, Task, TaskStat, faults_of_process, ran, ran_and_slept, transferred,
};
use cgroupfs::units::page_size;
use cgroupfs::{Bytes, Cgroup, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For so long at least a task has a chance to grow with the others, however fast they are.
const SHOWN: Duration = Duration::from_millis(50);

/// For so long tasks are given back after a window.
const GIVING_BACK: Duration = Duration::from_millis(50);

/// What tasks read and write is looked at for so many windows after one whose growth faults did not explain.
const WRITING: u32 = 64;

/// Of more tasks than these, who sleeps on is looked at in one of so many windows.
const MANY: usize = 128;
const SELDOM: u32 = 8;

/// A task that was moved.
struct Grower {
    task: Arc<Task>,
    /// What its growth is put down to ([`Kin`]).
    account: u32,
    /// The last look passed it over.
    passed: bool,
    standing: Standing,
    since: Instant,
    /// What it had read and written at the last look, if that was asked for.
    transferred: Option<u64>,
    /// How long it had run, likewise.
    ran: Option<Duration>,
}

impl Grower {
    fn new(task: Task, account: u32, standing: Standing) -> Grower {
        let (since, tid) = (Instant::now(), task.tid());
        let (transferred, ran) = (transferred(tid), ran(tid));
        Grower { task: Arc::new(task), account, passed: false, standing, since, transferred, ran }
    }

    /// Whether it is to stay with those whom it has started; `starters`: processes that some of them are of.
    fn stays(&self, starters: &BTreeSet<u32>) -> bool {
        self.standing.stays(starters.contains(&self.task.pid()))
    }
}

/// What tasks had done when they were taken in, far from high, and what the container used then.
#[derive(Default)]
pub(super) struct Known {
    usage: Bytes,
    tasks: BTreeMap<u32, (TaskStat, Option<(Duration, u64)>)>,
}

impl Known {
    /// As of now.
    pub(super) fn note(group: &FreezerGroup, usage: Bytes) -> Result<Known> {
        let task = |tid| Some((tid, (Task::open(tid).ok()?.stat()?, ran_and_slept(tid))));
        Ok(Known { usage, tasks: group.tasks()?.into_iter().filter_map(task).collect() })
    }

    /// How many tasks there were.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
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
    /// Who of them started whom, and the accounts of those that grew last.
    kin: Kin,
    grew: BTreeSet<u32>,
    /// What the others had faulted in at the last scan, and when they started.
    seen: BTreeMap<u32, TaskStat>,
    last_scan: Option<Instant>,
    scan_took: Duration,
    /// Tasks of other freezer groups: not ours to move.
    strangers: usize,
    /// For so many more windows it is looked at what they read and write.
    writing: u32,
    /// So many looks were taken.
    looks: u32,
    /// Those that grew last filled huge pages.
    huge: bool,
    /// The accounts of those that the last scan took in.
    found: Vec<u32>,
    /// What they had done when they became suspects, since the look before.
    before: Vec<Change>,
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
            kin: Kin::default(),
            grew: BTreeSet::new(),
            seen: BTreeMap::new(),
            last_scan: None,
            scan_took: Duration::ZERO,
            strangers: 0,
            writing: WRITING,
            looks: 0,
            huge: false,
            found: Vec::new(),
            before: Vec::new(),
        }
    }

    /// Where they were.
    pub(super) fn into_home(self) -> PathBuf {
        self.home
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.moved.len()
    }

    /// Tasks that grow but are in a freezer group of their own.
    pub(super) fn strangers(&self) -> usize {
        self.strangers
    }

    /// The accounts of those that grow ([`who_grows`]), and of those that did, have ended, and may be followed by others.
    pub(super) fn growing(&mut self) -> BTreeSet<u32> {
        let all = self.moved.values().map(|grower| (grower.account, &grower.standing));
        let mut growing = who_grows(all);
        growing.extend(self.kin.vacant().filter(|account| self.grew.contains(account)));
        self.grew.clone_from(&growing);
        growing
    }

    /// The accounts of those that had no turn in the last window.
    pub(super) fn waiting(&self) -> BTreeSet<u32> {
        let those = self.moved.values().filter(|grower| grower.standing.had_no_turn());
        those.map(|grower| grower.account).chain(self.kin.vacant()).collect()
    }

    fn that(&self, is: impl Fn(&Standing) -> bool) -> BTreeSet<u32> {
        let those = self.moved.iter().filter(|(_, grower)| is(&grower.standing));
        those.map(|(tid, _)| *tid).collect()
    }

    /// Takes note of tasks in the group that nobody moved there. The first of them are suspects; who comes
    /// later is a child or a thread of one that grows.
    pub(super) fn adopt(&mut self, group: &FreezerGroup) -> Result<()> {
        self.born(group).map(drop)
    }

    /// The same, all of them suspects, of whom some are `known` from far below high: who has not grown since they came has had
    /// all of that time to.
    pub(super) fn adopt_known(&mut self, group: &FreezerGroup, known: &Known) -> Result<()> {
        self.enlist(group, Some(self.usage()))?;
        for (tid, grower) in &mut self.moved {
            if let Some((then, so_far)) = known.tasks.get(tid)
                && then.starttime == grower.standing.last().starttime
            {
                grower.standing = Standing::suspect(*then, known.usage, *so_far);
            }
        }
        self.suspect_again(group);
        Ok(())
    }

    /// The same; what each of them has done so far.
    pub(super) fn born(&mut self, group: &FreezerGroup) -> Result<Vec<Change>> {
        self.enlist(group, self.moved.is_empty().then(|| self.usage()))
    }

    fn enlist(&mut self, group: &FreezerGroup, suspects: Option<Bytes>) -> Result<Vec<Change>> {
        let (mut born, mut processes) = (Vec::new(), BTreeMap::new());
        for tid in group.tasks()? {
            if !self.moved.contains_key(&tid)
                && let Ok(task) = Task::open(tid)
                && let Some(last) = task.stat_beside(&mut processes)
            {
                self.seen.remove(&tid);
                // Of its process' resident set, part was there before it.
                let (process, faults, kernel_time) = (task.pid(), last.faults(), last.stime);
                let account = self.kin.came(tid, process, last.ppid, suspects.is_none());
                let change =
                    Change { task: account, process, faults, kernel_time, ..Change::default() };
                born.push(change);
                let so_far = ran_and_slept(tid);
                let standing = match suspects {
                    Some(usage) => Standing::suspect(last, usage, so_far),
                    None => Standing::born(last, so_far),
                };
                self.moved.insert(tid, Grower::new(task, account, standing));
            }
        }
        Ok(born)
    }

    /// As if they had all just come: who grows from here on, grows.
    pub(super) fn suspect_all(&mut self, group: &FreezerGroup) -> Result<()> {
        self.moved.clear();
        self.kin.clear();
        self.adopt(group)
    }

    /// The same for those that have grown: who has not since it came is as suspect as it was.
    pub(super) fn suspect_again(&mut self, group: &FreezerGroup) {
        self.kin.begin();
        self.before = self.look(group, true);
        let (usage, tasks) = (self.usage(), self.len());
        self.moved.values_mut().for_each(|grower| grower.standing.suspect_again(usage, tasks));
    }

    /// The accounts of those that the last scan took in.
    pub(super) fn found(&self) -> &[u32] {
        &self.found
    }

    /// Whether those that grew last filled huge pages.
    pub(super) const fn fill_huge(&self) -> bool {
        self.huge
    }

    /// What they did before they became suspects; nothing once there was a window since.
    pub(super) fn before(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.before)
    }

    fn usage(&self) -> Bytes {
        self.counter.usage().unwrap_or_default()
    }

    /// Convicts those whom the last look saw growing: what is owed is theirs alone from then on.
    pub(super) fn convict(&mut self, changes: &[Change], shares: &Shares) {
        let (usage, tasks, alone) = (self.usage(), self.len(), who_faulted_alone(changes));
        self.writing = match shares.unexplained > 0 || !shares.written.is_empty() {
            true => WRITING,
            false => self.writing.saturating_sub(1),
        };
        for grower in self.moved.values_mut() {
            let wrote = shares.written.iter().filter(|(account, _)| *account == grower.account);
            for (_, pages) in wrote {
                grower.standing.wrote(*pages);
            }
            grower.standing.convict(usage, tasks, alone.contains(&grower.account));
        }
    }

    /// Whether some of them have not shown yet if they grow.
    pub(super) fn has_untried(&self) -> bool {
        self.moved.values().any(|grower| grower.standing.is_untried())
    }

    /// What the kernel has put into the resident sets of processes since they were looked at last: all of it, where none of
    /// their threads has faulted. (Measured on 6.18: a thread outside that filled 100 MiB/s beside a frozen one of its
    /// process was taken for the kernel in a pulse, and came to 79 MiB.)
    pub(super) fn filled(&self) -> Bytes {
        let (mut processes, mut faults) = (BTreeMap::new(), BTreeMap::new());
        for grower in self.moved.values() {
            processes.entry(grower.task.pid()).or_insert_with(|| {
                let last = grower.standing.last();
                let now = grower.task.stat_beside(&mut faults);
                let now = now.filter(|now| now.process_faults <= last.process_faults);
                now.map_or(0, |now| now.rss.saturating_sub(last.rss))
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
        let changes = self.look(group, true);
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
        let (start, starters) = (Instant::now(), self.kin.starters());
        for tid in tids {
            if self.moved.get(&tid).is_some_and(|grower| grower.stays(&starters)) {
                continue;
            }
            // Each move waits for a grace period, and somebody may be waiting for us to let it die. Whoever is left goes
            // back after the next window.
            if self.killed() || start.elapsed() > GIVING_BACK {
                break;
            }
            group.give_back(tid)?;
            self.kin.went(tid, false);
            if let Some(grower) = self.moved.remove(&tid) {
                log::trace!("task {tid} is given back: {:?}", grower.standing);
                self.seen.insert(tid, *grower.standing.last());
            }
        }
        Ok(())
    }

    /// What each of them did since the last look; `turn`: all of them have had one since this was so last. Those
    /// that are gone are forgotten.
    pub(super) fn look(&mut self, group: &FreezerGroup, turn: bool) -> Vec<Change> {
        let mut changes = self.changes(turn);
        if self.kin.is_watched() {
            changes.extend(self.born(group).unwrap_or_default());
        }
        for (starter, births) in self.kin.births() {
            let those = changes.iter_mut().filter(|change| change.process == starter);
            if let Some(change) = those.min_by_key(|change| (change.task != starter, change.task)) {
                change.births = births;
            }
        }
        let starters = self.kin.window(&self.faults(), &mut changes);
        for grower in self.moved.values_mut() {
            if starters.contains(&grower.task.pid()) {
                grower.standing.started();
            }
        }
        changes
    }

    /// What each process has faulted in so far.
    fn faults(&self) -> Vec<Process> {
        let mut processes = BTreeMap::new();
        for grower in self.moved.values() {
            let (pid, last) = (grower.task.pid(), grower.standing.last());
            processes.entry(pid).or_insert_with(|| Process {
                pid,
                faults: match self.kin.has_threads(pid) {
                    true if last.num_threads > 1 => last.process_faults,
                    true => faults_of_process(pid).unwrap_or(0),
                    false => last.faults(),
                },
                of_children: last.faults_of_children(),
            });
        }
        processes.into_values().collect()
    }

    fn changes(&mut self, turn: bool) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.moved.len());
        let writing = self.writing > 0;
        let many = self.moved.len() > MANY;
        self.looks = self.looks.wrapping_add(1);
        let looks = self.looks;
        let turns = |tid: u32| tid.wrapping_add(looks).is_multiple_of(SELDOM);
        let (kin, mut processes) = (&mut self.kin, BTreeMap::new());
        self.moved.retain(|tid, grower| {
            let Some(stat) = grower.task.stat_beside(&mut processes) else {
                kin.went(*tid, true);
                return false;
            };
            grower.passed = many && !turns(*tid) && grower.standing.sleeps_on(&stat);
            if grower.passed {
                return true;
            }
            let step = grower.standing.look(stat, turn, || grower.task.stopped());
            let stopped = || step.stopped.unwrap_or_else(|| grower.task.stopped());
            let charging = writing && stopped() == Stopped::Charging;
            let now = if writing { (transferred(*tid), ran(*tid)) } else { (None, None) };
            let before = std::mem::replace(&mut grower.transferred, now.0);
            let ran_before = std::mem::replace(&mut grower.ran, now.1);
            let (now, ran) = (now.0, now.1.zip(ran_before).filter(|_| charging));
            changes.push(Change {
                task: grower.account,
                process: grower.task.pid(),
                faults: step.faults,
                resident: step.resident,
                kernel_time: step.kernel_time,
                transferred: now.zip(before).map_or(0, |(now, before)| now.saturating_sub(before)),
                rests: step.rests,
                births: 0,
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
        for (tid, grower) in self.moved.iter_mut().filter(|(_, grower)| !grower.passed) {
            let own = grown.iter().find(|grown| grown.task == grower.account);
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
        // Each that is in it is woken in every window. (Measured on 6.18 with 9,000 threads that wait: their process' other
        // threads hardly had a CPU.)
        let crowded = self.len() > FEW;
        let done = self.that(|of| of.is_done() || crowded && of.is_onlooker());
        let n = done.len();
        self.return_to_home(group, done)?;
        Ok(n)
    }

    /// The same with those that only wait, in a pulse that has lasted for a while: those that were not tried in a short one.
    pub(super) fn give_back_waiting(&mut self, group: &FreezerGroup) -> Result<()> {
        let waiting = self.that(Standing::only_waits);
        self.return_cleared(group, waiting)
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

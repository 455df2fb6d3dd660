//! The host: state behind a lock, and time.

use crate::config::Config;
use crate::faults::{Actor, PassHook, PassVerdict, Verdict, Write, WriteHook};
use crate::files::ModelDir;
use crate::group::{Group, GroupId, Hierarchy};
use crate::mutation::Mutation;
use crate::task::{Load, Task, TaskId, TaskState, TaskView};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time is advanced in steps of this.
const TICK: Duration = Duration::from_millis(1);

/// A model host. Clones share it.
#[derive(Clone)]
pub struct Host(Arc<Mutex<State>>);

/// What a host is at one instant: for [`Host::lock`] and for hooks.
pub struct State {
    pub(crate) config: Config,
    pub(crate) groups: Vec<Group>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) now: Duration,
    pub(crate) swap_used: u64,
    pub(crate) cursor: usize,
    pub(crate) passes: u64,
    pub(crate) waited_pages: u64,
    pub(crate) oom_kills: u64,
    pub(crate) direct_reclaims: u64,
    pub(crate) throttled: Duration,
    pub(crate) beside: bool,
    pub(crate) signal_after: Option<u64>,
    pub(crate) on_write: Option<WriteHook>,
    pub(crate) on_pass: Option<PassHook>,
    pub(crate) signals: Vec<u64>,
    pub(crate) control_fds: Vec<(GroupId, &'static str)>,
    pub(crate) killed: BTreeSet<Actor>,
    disk_carry: u128,
    chance: u64,
}

impl Host {
    /// A host with empty trees.
    pub fn new(config: Config) -> Host {
        let chance = config.seed;
        let mut state = State {
            config,
            groups: Vec::new(),
            tasks: Vec::new(),
            now: Duration::ZERO,
            swap_used: 0,
            cursor: 0,
            passes: 0,
            waited_pages: 0,
            oom_kills: 0,
            direct_reclaims: 0,
            throttled: Duration::ZERO,
            beside: false,
            signal_after: None,
            on_write: None,
            on_pass: None,
            signals: Vec::new(),
            control_fds: Vec::new(),
            killed: BTreeSet::new(),
            disk_carry: 0,
            chance,
        };
        state.new_group(Hierarchy::Memory, None, "");
        state.new_group(Hierarchy::Freezer, None, "");
        Host(Arc::new(Mutex::new(state)))
    }

    /// The state, for looking and for changing it.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The root of a tree.
    pub fn root(&self, hierarchy: Hierarchy) -> GroupId {
        match hierarchy {
            Hierarchy::Memory => GroupId(0),
            Hierarchy::Freezer => GroupId(1),
        }
    }

    /// A group's directory, opened by the daemon (actor 0).
    pub fn dir(&self, group: GroupId) -> Arc<ModelDir> {
        self.dir_as(group, Actor(0))
    }

    /// A group's directory, opened by `actor`.
    pub fn dir_as(&self, group: GroupId, actor: Actor) -> Arc<ModelDir> {
        let path = self.lock().group(group).path.clone();
        Arc::new(ModelDir::new(self.clone(), group, actor, path))
    }

    /// Lets time pass: tasks run, the disk writes, sleepers wake.
    pub fn advance(&self, time: Duration) {
        self.lock().advance(time);
    }

    /// Sets the hook that is asked at each write.
    pub fn on_write(&self, hook: impl FnMut(&mut State, Write<'_>) -> Verdict + Send + 'static) {
        self.lock().on_write = Some(Box::new(hook));
    }

    /// Sets the hook that is asked before each pass of a write that reclaims.
    pub fn on_pass(
        &self,
        hook: impl FnMut(&mut State, GroupId, u64) -> PassVerdict + Send + 'static,
    ) {
        self.lock().on_pass = Some(Box::new(hook));
    }
}

impl State {
    /// The host's configuration; what may be changed at run time takes effect at once.
    pub fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Swap in use, in pages.
    pub fn swap_used(&self) -> u64 {
        self.swap_used
    }

    /// OOM kills so far.
    pub fn oom_kills(&self) -> u64 {
        self.oom_kills
    }

    /// Charges that had to reclaim so far.
    pub fn direct_reclaims(&self) -> u64 {
        self.direct_reclaims
    }

    /// Passes made by writes so far.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Pages whose writeback reclaim waited for so far.
    pub fn waited_pages(&self) -> u64 {
        self.waited_pages
    }

    /// Time that tasks were made to sleep by `memory.high` so far.
    pub fn throttled(&self) -> Duration {
        self.throttled
    }

    /// A signal comes for the next write that reclaims or raises, after so many passes (0: pending
    /// before it).
    pub fn signal_after(&mut self, passes: u64) {
        self.signal_after = Some(passes);
    }

    /// What is charged to a group and those below, in pages: counted from the pages, and as the counter
    /// has it. They differ by the stocks.
    pub fn charged(&self, group: GroupId) -> (u64, u64) {
        let pages = self
            .subtree(group)
            .into_iter()
            .filter(|id| self.chain(*id).contains(&group))
            .map(|id| self.group(id).charged())
            .sum();
        (pages, self.group(group).memory.usage)
    }

    /// Starts a task in a memory group; its freezer group is the root.
    pub fn spawn(&mut self, group: GroupId, load: Load) -> TaskId {
        self.tasks.push(Task {
            memory: group,
            freezer: GroupId(1),
            load,
            state: TaskState::Running,
            owned: BTreeMap::new(),
            cpu: self.tasks.len(),
            carry: 0,
            over_high: 0,
            pending_kill: false,
            oom_killed: false,
            done: 0,
            errors: 0,
        });
        TaskId(u32::try_from(self.tasks.len()).unwrap_or(u32::MAX))
    }

    /// SIGKILL. A task frozen by the v1 freezer does not die of it until it is thawed.
    pub fn kill(&mut self, task: TaskId) {
        let Some(index) = self.index(task) else { return };
        if self.tasks[index].dead() {
            return;
        }
        let waits = match self.config.v1() {
            true => !self.broken(Mutation::FrozenTaskDies),
            false => self.broken(Mutation::FrozenV2TaskLives),
        };
        if waits && self.frozen(index) {
            self.tasks[index].pending_kill = true;
        } else {
            self.exit_task(index);
        }
    }

    /// Gives a task another load.
    pub fn set_load(&mut self, task: TaskId, load: Load) {
        if let Some(index) = self.index(task) {
            self.tasks[index].load = load;
        }
    }

    /// How a task fares.
    pub fn task(&self, task: TaskId) -> Option<TaskView> {
        let index = self.index(task)?;
        let frozen = self.stands_still(index);
        let task = self.tasks.get(index)?;
        Some(TaskView {
            frozen,
            state: task.state,
            oom_killed: task.oom_killed,
            pending_kill: task.pending_kill,
            done: task.done,
            errors: task.errors,
            size: task.size(),
        })
    }

    /// See [`Host::advance`].
    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let step = TICK.min(end - self.now);
            self.now += step;
            self.disk(step);
            for task in 0..self.tasks.len() {
                self.tick_task(task, step);
            }
        }
    }

    fn tick_task(&mut self, task: usize, step: Duration) {
        if let TaskState::Sleeping(until) = self.tasks[task].state
            && until <= self.now
        {
            self.tasks[task].state = TaskState::Running;
        }
        // Now and then a task moves to another CPU.
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let draw = usize::try_from(self.chance >> 40).unwrap_or(0);
        let this = &mut self.tasks[task];
        if draw.is_multiple_of(16) {
            this.cpu = draw / 16;
        }
        if this.state != TaskState::Running {
            return;
        }
        this.carry += u128::from(this.load.rate) * step.as_nanos();
        let pages = u64::try_from(this.carry / 1_000_000_000).unwrap_or(0);
        this.carry %= 1_000_000_000;
        self.run_task(task, pages);
    }

    /// Writeback at the disk's speed; 50 ms of it in flight at most.
    fn disk(&mut self, step: Duration) {
        self.disk_carry += u128::from(self.config.disk_rate) * step.as_nanos();
        let mut pages = u64::try_from(self.disk_carry / 1_000_000_000).unwrap_or(0);
        self.disk_carry %= 1_000_000_000;
        let mut queue = self.config.disk_rate / 20;
        for group in &mut self.groups {
            pages -= group.lru.end_writeback(pages);
            queue = queue.saturating_sub(group.lru.writeback);
        }
        for group in &mut self.groups {
            queue -= group.lru.start_writeback(queue);
        }
    }
}

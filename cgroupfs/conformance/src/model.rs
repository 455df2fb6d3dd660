//! The world of the model kernel: virtual time, tasks that charge when they are waited for.

use crate::{Crossing, Filled, Group, Kind, Overlap, Stop, Task, Watch, Watched, World};
use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, Version};
use cgroupfs::{Bytes, Error, Op};
use cgroupfs_model::{
    Actor, Config, Denied, EventFd, GroupId, Hierarchy, Host, Load, PassVerdict, TaskId, TaskState,
    Via,
};
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Pages that a task fills in a millisecond: memory speed.
const SPEED: u64 = 2560;
const TICK: Duration = Duration::from_millis(1);

/// The presets that the suite runs over, by the name of their column in the table.
pub fn presets() -> Vec<(&'static str, Config)> {
    vec![
        ("model-v1-6.18", Config::v1_6_18()),
        ("model-v1-6.1", Config::v1_6_1()),
        ("model-v1-5.10", Config::v1_5_10()),
        ("model-v2-6.12", Config::v2_6_12()),
        ("model-v2-6.1", Config::v2_6_1()),
        ("model-v2-5.10", Config::v2_5_10()),
    ]
}

/// One claim's host.
pub struct ModelWorld {
    host: Host,
    config: Config,
    ground: Group,
    groups: Vec<GroupId>,
    freezers: Vec<(std::path::PathBuf, GroupId)>,
    tasks: Vec<Worker>,
    watches: Vec<EventFd>,
}

struct Worker {
    id: TaskId,
    job: Option<Job>,
    came: Option<Filled>,
}

#[derive(Clone, Copy)]
struct Job {
    kind: cgroupfs_model::Kind,
    via: Via,
    done: u64,
    left: u64,
}

impl ModelWorld {
    /// A fresh host of that configuration. Errors: it has not even the files of a group.
    pub fn new(config: &Config) -> Result<ModelWorld, Error> {
        let host = Host::new(config.clone());
        let root = host.root(Hierarchy::Memory);
        let first = mkdir(&host, root, "ground")?;
        Ok(ModelWorld {
            ground: open(&host, config.version, first, 0)?,
            host,
            config: config.clone(),
            groups: vec![first],
            freezers: Vec::new(),
            tasks: Vec::new(),
            watches: Vec::new(),
        })
    }

    /// Every task goes on with its job, for a millisecond's worth.
    fn run_jobs(&mut self) {
        let page = self.config.page_size;
        for worker in &mut self.tasks {
            let Some(job) = &mut worker.job else { continue };
            let mut state = self.host.lock();
            let mut came = None;
            for _ in 0..SPEED {
                let Some(view) = state.task(worker.id) else { break };
                if view.state == TaskState::Dead {
                    came = Some(Filled::Died);
                    break;
                }
                if view.state != TaskState::Running || view.frozen || job.left == 0 {
                    break;
                }
                match state.allocate(worker.id, job.kind, job.via, 1) {
                    (1, _) => (job.done, job.left) = (job.done + 1, job.left - 1),
                    (_, Some(Denied::Errno(errno))) => {
                        came = Some(Filled::Refused(Bytes(job.done * page), errno));
                        break;
                    }
                    // It waits for memory, or for the disk.
                    (_, _) => {}
                }
            }
            let rests = state.task(worker.id).is_some_and(|view| view.state == TaskState::Running);
            if job.left == 0 && rests {
                came = came.or(Some(Filled::All));
            }
            if came.is_some() {
                (worker.job, worker.came) = (None, came);
            }
        }
    }

    fn end(&self, patience: Duration) -> Duration {
        self.now() + patience
    }
}

fn open(host: &Host, version: Version, id: GroupId, key: usize) -> Result<Group, Error> {
    let dir: Arc<dyn ControlDir> = host.dir(id);
    let memory: Arc<dyn Memory> = match version {
        Version::V1 => Arc::new(MemoryV1::open(dir.clone())?),
        Version::V2 => Arc::new(MemoryV2::open(dir.clone())?),
    };
    Ok(Group { dir, memory, key })
}

fn mkdir(host: &Host, parent: GroupId, name: &str) -> Result<GroupId, Error> {
    let made = host.lock().mkdir(parent, name);
    made.map_err(|errno| Error::refused(Op::Create, name, errno))
}

fn errno_of(error: Error) -> Errno {
    match error {
        Error::Vanished { .. } => Errno::ENODEV,
        error => error.errno().unwrap_or(Errno::ENOENT),
    }
}

impl World for ModelWorld {
    fn cpus(&self) -> u64 {
        self.config.cpus as u64
    }

    fn swap_is_on(&self) -> bool {
        self.config.swap > 0
    }

    fn has_freezer(&self) -> bool {
        self.config.version == Version::V1
    }

    fn ground(&self) -> Group {
        self.ground.clone()
    }

    fn make(&mut self, parent: &Group, name: &str) -> Result<Group, Error> {
        let above = self.groups[parent.key];
        if self.config.version == Version::V2 {
            let answer =
                self.host.lock().write(Actor(0), above, "cgroup.subtree_control", b"+memory");
            answer.map_err(|errno| Error::refused(Op::Write, "cgroup.subtree_control", errno))?;
        }
        let made = mkdir(&self.host, above, name)?;
        self.groups.push(made);
        open(&self.host, self.config.version, made, self.groups.len() - 1)
    }

    fn remove(&mut self, group: &Group) -> Result<(), Errno> {
        self.host.lock().rmdir(self.groups[group.key])
    }

    fn make_freezer(
        &mut self,
        parent: Option<&Arc<dyn ControlDir>>,
        name: &str,
    ) -> Result<Arc<dyn ControlDir>, Error> {
        let above = parent.and_then(|parent| {
            self.freezers.iter().find(|(path, _)| path == parent.path()).map(|(_, id)| *id)
        });
        let made =
            mkdir(&self.host, above.unwrap_or_else(|| self.host.root(Hierarchy::Freezer)), name)?;
        let dir = self.host.dir(made);
        self.freezers.push((dir.path().to_path_buf(), made));
        Ok(dir)
    }

    fn spawn(&mut self, group: &Group) -> Result<Task, Stop> {
        let id = self.host.lock().spawn(self.groups[group.key], Load::hold());
        self.tasks.push(Worker { id, job: None, came: None });
        Ok(Task(self.tasks.len() - 1))
    }

    fn pid(&self, task: Task) -> u32 {
        self.tasks[task.0].id.0
    }

    fn start(&mut self, task: Task, kind: Kind, size: Bytes) -> Result<(), Stop> {
        use cgroupfs_model::Kind as Of;
        let (kind, via) = match kind {
            Kind::Anon => (Of::Anon, Via::Fault),
            Kind::Mlocked => (Of::Mlocked, Via::Fault),
            Kind::Copied => (Of::Anon, Via::Copy),
            Kind::File => (Of::File, Via::Syscall),
            Kind::Dirty => (Of::Dirty, Via::Syscall),
            Kind::Shmem => (Of::Shmem, Via::Syscall),
            Kind::Kernel => (Of::Kernel, Via::Syscall),
        };
        let left = size.0.div_ceil(self.config.page_size);
        let worker = &mut self.tasks[task.0];
        worker.job = Some(Job { kind, via, done: 0, left });
        worker.came = None;
        Ok(())
    }

    fn finish(&mut self, task: Task, patience: Duration) -> Filled {
        let end = self.end(patience);
        loop {
            if let Some(came) = self.tasks[task.0].came.take() {
                return came;
            }
            if self.now() >= end {
                return Filled::NotYet;
            }
            self.pass(TICK);
        }
    }

    fn free(&mut self, task: Task) -> Result<(), Stop> {
        self.host.lock().free(self.tasks[task.0].id);
        Ok(())
    }

    fn kill(&mut self, task: Task) {
        self.host.lock().kill(self.tasks[task.0].id);
    }

    fn alive(&mut self, task: Task) -> bool {
        let view = self.host.lock().task(self.tasks[task.0].id);
        view.is_some_and(|view| view.state != TaskState::Dead)
    }

    fn kill_is_pending(&self, task: Task) -> bool {
        let view = self.host.lock().task(self.tasks[task.0].id);
        view.is_some_and(|view| view.pending_kill)
    }

    fn pass(&mut self, time: Duration) {
        let end = self.end(time);
        while self.now() < end {
            self.host.advance(TICK.min(end - self.now()));
            self.run_jobs();
        }
    }

    fn now(&self) -> Duration {
        self.host.lock().now()
    }

    fn watch(&mut self, group: &Group, watched: Watched) -> Result<Watch, Error> {
        let id = self.groups[group.key];
        let mut state = self.host.lock();
        let eventfd = state.eventfd();
        let registered = match watched {
            Watched::Modified(file) => {
                state.watch_file(id, file, eventfd);
                Ok(())
            }
            Watched::Threshold(at) => {
                let fd = state.control_fd(id, "memory.usage_in_bytes");
                let line = format!("{} {fd} {}", eventfd.0, at.0);
                state.write(Actor(0), id, "cgroup.event_control", line.as_bytes())
            }
            Watched::Oom => {
                let fd = state.control_fd(id, "memory.oom_control");
                let line = format!("{} {fd}", eventfd.0);
                state.write(Actor(0), id, "cgroup.event_control", line.as_bytes())
            }
        };
        drop(state);
        registered.map_err(|errno| Error::refused(Op::Watch, group.dir.path(), errno))?;
        self.watches.push(eventfd);
        Ok(Watch(self.watches.len() - 1))
    }

    fn told(&mut self, watch: Watch, patience: Duration) -> bool {
        let end = self.end(patience);
        loop {
            if self.host.lock().take_signals(self.watches[watch.0]) > 0 {
                return true;
            }
            if self.now() >= end {
                return false;
            }
            self.pass(TICK);
        }
    }

    fn write_until(
        &mut self,
        group: &Group,
        file: &'static str,
        value: &str,
        below: Bytes,
    ) -> Result<(), Errno> {
        let pages = below.0 / self.config.page_size;
        let watched = self.groups[group.key];
        self.host.on_pass(move |state, _, _| match state.charged(watched).1 <= pages {
            true => PassVerdict::Signal,
            false => PassVerdict::GoOn,
        });
        let answer = group.write(file, value);
        self.host.on_pass(|_, _, _| PassVerdict::GoOn);
        answer
    }

    fn write_signalled(
        &mut self,
        group: &Group,
        file: &'static str,
        from: &str,
        to: &str,
    ) -> Result<(), Errno> {
        group.write(file, from)?;
        self.host.lock().signal_after(0);
        group.write(file, to)
    }

    fn write_during(
        &mut self,
        group: &Group,
        file: &'static str,
        first: &str,
        below: Bytes,
        second: &str,
    ) -> Crossing {
        let pages = below.0 / self.config.page_size;
        let (id, value) = (self.groups[group.key], second.to_owned());
        let came = Arc::new(std::sync::Mutex::new(None));
        let answer = came.clone();
        self.host.on_pass(move |state, _, _| {
            let mut answer = answer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if answer.is_none() && state.charged(id).1 <= pages {
                *answer = Some(state.write(Actor(1), id, file, value.as_bytes()));
            }
            PassVerdict::GoOn
        });
        let first = group.write(file, first);
        self.host.on_pass(|_, _, _| PassVerdict::GoOn);
        let came = *came.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Crossing { overlapped: came.is_some(), first, second: came.unwrap_or(Ok(())) }
    }

    fn remove_during(
        &mut self,
        group: &Group,
        file: &'static str,
        value: &str,
        below: Bytes,
    ) -> Result<Overlap, Stop> {
        let pages = below.0 / self.config.page_size;
        let id = self.groups[group.key];
        let (asked, through) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (ask, pass) = (asked.clone(), through.clone());
        let above = group.dir.path().parent().map(std::path::Path::to_path_buf);
        let parent =
            self.groups.iter().find(|id| Some(self.host.dir(**id).path().to_path_buf()) == above);
        let parent = parent.copied().unwrap_or(self.groups[0]);
        let left = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let seen = left.clone();
        self.host.on_pass(move |state, _, _| {
            if !ask.load(Ordering::SeqCst) && state.charged(id).1 <= pages {
                ask.store(true, Ordering::SeqCst);
                // The model's EBUSY of a group with a write in flight stands for the kernel's waiting.
                pass.store(state.rmdir(id).is_ok(), Ordering::SeqCst);
                seen.store(state.charged(parent).1, Ordering::SeqCst);
            }
            PassVerdict::GoOn
        });
        let opened = group.dir.open(file, cgroupfs::files::Access::Write).map_err(errno_of)?;
        let _ = opened.write(value.as_bytes());
        self.host.on_pass(|_, _, _| PassVerdict::GoOn);
        if !through.load(Ordering::SeqCst) {
            self.host.lock().rmdir(id)?;
            left.store(self.host.lock().charged(parent).1, Ordering::SeqCst);
        }
        let left = Bytes(left.load(Ordering::SeqCst) * self.config.page_size);
        Ok(Overlap { overlapped: asked.load(Ordering::SeqCst), left })
    }
}

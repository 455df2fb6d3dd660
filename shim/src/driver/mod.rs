//! Turns the core's actions into kernel calls, and the kernel's events into events of the core.
//!
//! One event loop ([`Engine::turn`]) and a few workers. The loop never makes a write that reclaims: it
//! waits, reads usage, raises, cancels. Workers do what may block.

mod once;
mod reclaim;
mod sys;
mod worker;

pub use once::{Once, empty, reclaim_once};
pub use reclaim::Stop;

use crate::core::{
    Action, Capabilities, Container, Event, Job, Notice, Now, Outcome, Report, Strategy, Totals,
    WatermarkSpec, Watermarks,
};
use cgroupfs::events::{Modified, Notification};
use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Counters, Memory, MemoryV1, MemoryV2, ReclaimFile, Version};
use cgroupfs::{Bytes, Cgroup, Error, Limit, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use worker::{Answer, Ticket, Work, Workers};

/// How often a worker that was told to stop is interrupted again: a signal may come before the write.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(1);

/// How long workers are interrupted for when the engine ends. One that waits for the disk cannot be;
/// it is then waited for all the same, as its limit is to be restored.
const QUIESCE_AT_END: Duration = Duration::from_secs(2);

/// How soon a restore that failed is tried again.
const RESTORE_AGAIN: Duration = Duration::from_millis(100);

/// After an OOM event the counters are read again so often, for so long: `oom_kill` rises after the
/// event (measured on 6.18: up to 10 ms later in 4 of 200), and on a loaded host later still.
const RECOUNT_EVERY: Duration = Duration::from_millis(5);
const RECOUNT_FOR: Duration = Duration::from_millis(100);

/// What a container is to be held to.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Background reclaim between these.
    pub watermarks: WatermarkSpec,
    /// `memory.high`, [`Limit::Max`] for none.
    pub high: Limit,
}

/// Names a container of this engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

/// What a turn of the loop brought.
#[derive(Debug)]
pub enum Happened {
    /// A descriptor that the caller added is readable.
    Fd(u64),
    /// Usage was read: for whoever draws.
    Usage(Key, Now, Bytes),
    /// A round of reclaim ended.
    Round(Key, Now, Report),
    /// To be told to people.
    Notice(Key, Now, Notice),
    /// So many tasks were killed since the last time, seen at this usage.
    OomKill(Key, Now, u64, Bytes),
    /// The group is gone, or its release is complete: the container is forgotten.
    Forgotten(Key, Totals),
}

struct Enforced {
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    core: Container,
    threshold: Option<(Bytes, Notification)>,
    oom: Option<Notification>,
    modified: Option<Modified>,
    timer: Option<Now>,
    /// After an OOM event: when to count again, and until when.
    recount: Option<(Now, Now)>,
    flight: Option<Flight>,
    /// A step that could not be undone: the file, our value in it, and when to try again.
    unrestored: Option<(ReclaimFile, Bytes, Now)>,
    counters: Counters,
}

/// A task in flight.
struct Flight {
    ticket: Arc<Ticket>,
    job: Option<Job>,
    /// When it is to be interrupted (again).
    interrupt_at: Option<Now>,
}

/// The event loop.
pub struct Engine {
    epoll: Epoll,
    start: Instant,
    workers: Workers,
    containers: HashMap<u64, Enforced>,
    next_key: u64,
    happened: Vec<Happened>,
    /// Answers taken by [`Engine::quiesce`], to be handled by the next turn.
    later: Vec<(u64, Answer)>,
}

/// What an epoll token stands for; in its upper byte, the key or the caller's number in the rest.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Workers = 1,
    Caller = 2,
    Threshold = 3,
    Oom = 4,
    Modified = 5,
}

const SOURCE_SHIFT: u32 = 56;

fn token(source: Source, number: u64) -> u64 {
    (source as u64) << SOURCE_SHIFT | (number & ((1 << SOURCE_SHIFT) - 1))
}

fn kernel(errno: Errno) -> Error {
    Error::refused(cgroupfs::Op::Watch, "the event loop", errno)
}

/// What the control files of a memory cgroup offer.
pub fn capabilities(memory: &dyn Memory) -> Capabilities {
    let dir = memory.dir();
    let v1 = memory.version() == Version::V1;
    Capabilities {
        threshold_event: v1 && dir.has("cgroup.event_control"),
        threshold_slack: if v1 { threshold_slack() } else { Bytes(0) },
        limit_step: v1,
        force_empty: v1 && dir.has("memory.force_empty"),
        memory_reclaim: dir.has("memory.reclaim"),
        high_step: !v1 && dir.has("memory.high"),
    }
}

/// 128 page events (`THRESHOLDS_EVENTS_TARGET`) and 64 pages of stock a CPU; few CPUs charge one group
/// at once.
fn threshold_slack() -> Bytes {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(8);
    Bytes((128 + 64) * cgroupfs::units::page_size() * cpus)
}

/// Opens the memory controller of `group`, whichever version it is.
pub fn open_memory(group: &Arc<Cgroup>) -> Result<Arc<dyn Memory>> {
    let dir: Arc<dyn ControlDir> = group.clone();
    if group.has("memory.limit_in_bytes") {
        Ok(Arc::new(MemoryV1::open(dir)?))
    } else {
        Ok(Arc::new(MemoryV2::open(dir)?))
    }
}

impl Engine {
    /// An engine with at most `workers` reclaim threads. None is started before there is work.
    pub fn new(workers: usize) -> Result<Engine> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(kernel)?;
        let workers = Workers::new(workers, 4096).map_err(kernel)?;
        epoll
            .add(workers.wake_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token(Source::Workers, 0)))
            .map_err(kernel)?;
        Ok(Engine {
            epoll,
            start: Instant::now(),
            workers,
            containers: HashMap::new(),
            next_key: 0,
            happened: Vec::new(),
            later: Vec::new(),
        })
    }

    /// The time that events carry.
    pub fn now(&self) -> Now {
        self.start.elapsed()
    }

    /// Wakes the loop when `fd` is readable, as [`Happened::Fd`] with `number`.
    pub fn watch(&self, fd: BorrowedFd<'_>, number: u64) -> Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token(Source::Caller, number)))
            .map_err(kernel)
    }

    /// Starts to enforce `policy` on `group`. What its limit is now is the declared limit.
    pub fn register(&mut self, group: Arc<Cgroup>, policy: Policy) -> Result<Key> {
        let memory = open_memory(&group)?;
        let key = self.next_key;
        self.next_key += 1;
        let core = Container::new(
            policy.watermarks,
            memory.limit()?,
            policy.high,
            capabilities(&*memory),
            group.inode() ^ key << 32,
        );
        let counters = memory.counters()?;
        // Without these events counters are still read at every round and at the end.
        let (oom, modified) = match memory.version() {
            Version::V1 => (
                Notification::oom(&group).ok(),
                Modified::watch(&group, "memory.limit_in_bytes").ok(),
            ),
            Version::V2 => (None, Modified::watch(&group, "memory.events").ok()),
        };
        if let Some(oom) = &oom {
            self.listen(oom.as_fd(), Source::Oom, key)?;
        }
        if let Some(modified) = &modified {
            self.listen(modified.as_fd(), Source::Modified, key)?;
        }
        let usage = memory.usage()?;
        self.containers.insert(
            key,
            Enforced {
                group,
                memory,
                core,
                threshold: None,
                oom,
                modified,
                timer: None,
                recount: None,
                flight: None,
                unrestored: None,
                counters,
            },
        );
        self.deliver(key, Event::Usage(usage));
        Ok(Key(key))
    }

    /// Ends enforcement: cancels what is in flight, sees that the declared limit stands.
    /// [`Happened::Forgotten`] says when it is done, which may be at once.
    pub fn release(&mut self, key: Key) {
        self.deliver(key.0, Event::Release);
    }

    /// Stops what is in flight for a container and waits until it is out, `patience` at most: for a
    /// process that is about to be stopped and must not leave a lowered limit behind. Enforcement goes
    /// on with the next event.
    pub fn quiesce(&mut self, key: Key, patience: Duration) {
        let start = Instant::now();
        let mut later = Vec::new();
        while start.elapsed() < patience {
            let now = self.now();
            let Some(enforced) = self.containers.get_mut(&key.0) else { break };
            let Some(flight) = &mut enforced.flight else { break };
            flight.ticket.stop.cancel();
            flight.ticket.interrupt();
            flight.interrupt_at = Some(now + INTERRUPT_AGAIN);
            std::thread::sleep(Duration::from_micros(200));
            while let Some((key, answer)) = self.workers.answer() {
                if let Some(enforced) = self.containers.get_mut(&key)
                    && let Some(Flight { ticket, job: Some(job), .. }) = enforced.flight.take()
                    && let Some(ours) = ticket.stop.lowered()
                {
                    enforced.unrestored = Some((stepped_file(job.strategy), ours, Now::ZERO));
                    self.restore(key);
                }
                later.push((key, answer));
            }
        }
        // What they answered is handled after the stop: handling it might start the next job.
        self.later.append(&mut later);
        self.workers.wake();
    }

    /// The watermarks in force for a container.
    pub fn watermarks(&self, key: Key) -> Option<Watermarks> {
        self.containers.get(&key.0)?.core.watermarks()
    }

    /// What was done for a container.
    pub fn totals(&self, key: Key) -> Option<Totals> {
        Some(self.containers.get(&key.0)?.core.totals())
    }

    /// The declared limit of a container, as adopted last.
    pub fn declared(&self, key: Key) -> Option<Limit> {
        Some(self.containers.get(&key.0)?.core.declared())
    }

    /// Waits for events, `patience` at most (`None`: as long as it takes), and handles them. What is of
    /// interest to the caller is appended to `happened`.
    pub fn turn(&mut self, patience: Option<Duration>, happened: &mut Vec<Happened>) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = match self.epoll.wait(&mut events, self.timeout(patience)) {
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(kernel(errno)),
        };
        for event in &events[..ready] {
            let number = event.data() & ((1 << SOURCE_SHIFT) - 1);
            match event.data() >> SOURCE_SHIFT {
                n if n == Source::Caller as u64 => self.happened.push(Happened::Fd(number)),
                n if n == Source::Workers as u64 => self.answers(),
                n if n == Source::Threshold as u64 => self.crossed(number),
                n if n == Source::Oom as u64 => self.oom(number),
                _ => self.modified(number),
            }
        }
        self.timers();
        happened.append(&mut self.happened);
        Ok(())
    }

    fn listen(&self, fd: BorrowedFd<'_>, source: Source, key: u64) -> Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token(source, key))).map_err(kernel)
    }

    fn timeout(&self, patience: Option<Duration>) -> EpollTimeout {
        let now = self.now();
        let next = self
            .containers
            .values()
            .flat_map(|enforced| {
                [
                    enforced.timer,
                    enforced.recount.map(|(at, _)| at),
                    enforced.unrestored.map(|(_, _, at)| at),
                    enforced.flight.as_ref().and_then(|flight| flight.interrupt_at),
                ]
            })
            .flatten()
            .min()
            .map(|at| at.saturating_sub(now));
        match next.into_iter().chain(patience).min() {
            None => EpollTimeout::NONE,
            // Rounded up: epoll counts in milliseconds, and waking early would spin.
            Some(wait) => u32::try_from(wait.as_micros().div_ceil(1000))
                .ok()
                .and_then(|ms| EpollTimeout::try_from(ms).ok())
                .unwrap_or(EpollTimeout::MAX),
        }
    }

    fn timers(&mut self) {
        let now = self.now();
        let due: Vec<u64> = self
            .containers
            .iter()
            .filter(|(_, enforced)| enforced.timer.is_some_and(|at| at <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            if let Some(enforced) = self.containers.get_mut(&key) {
                enforced.timer = None;
                // No event tells of a new limit where only memory.events is watched.
                if enforced.memory.version() == Version::V2
                    && let Ok(limit) = enforced.memory.limit()
                    && limit != enforced.core.declared()
                {
                    self.deliver(key, Event::LimitChanged(limit));
                }
            }
            self.look(key, Event::Usage);
        }
        let mut recount = Vec::new();
        for (key, enforced) in &mut self.containers {
            if let Some((at, until)) = enforced.recount
                && at <= now
            {
                recount.push(*key);
                enforced.recount = (now < until).then_some((now + RECOUNT_EVERY, until));
            }
            if let Some(flight) = &mut enforced.flight
                && flight.interrupt_at.is_some_and(|at| at <= now)
            {
                flight.ticket.stop.expire();
                flight.ticket.interrupt();
                flight.interrupt_at = Some(now + INTERRUPT_AGAIN);
            }
        }
        for key in recount {
            self.count(key);
        }
        let unrestored: Vec<u64> = self
            .containers
            .iter()
            .filter(|(_, enforced)| enforced.unrestored.is_some_and(|(_, _, at)| at <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in unrestored {
            self.restore(key);
        }
    }

    fn crossed(&mut self, key: u64) {
        if let Some(Enforced { threshold: Some((_, notification)), .. }) = self.containers.get(&key)
        {
            notification.take();
            self.look(key, Event::Crossed);
        }
    }

    fn oom(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        enforced.recount = Some((now + RECOUNT_EVERY, now + RECOUNT_FOR));
        if let Some(oom) = &enforced.oom {
            oom.take();
        }
        // An OOM while our step has the limit down may be of our making: raise before all else.
        if let Some(flight) = &mut enforced.flight
            && let Some(job) = flight.job
            && let Some(ours) = flight.ticket.stop.lowered()
        {
            flight.ticket.stop.cancel();
            flight.ticket.interrupt();
            flight.interrupt_at = Some(now + INTERRUPT_AGAIN);
            let file = stepped_file(job.strategy);
            if file == ReclaimFile::Limit {
                let _ = reclaim::rescue(&*enforced.memory, file, ours, job.declared);
                self.deliver(key, Event::OomInWindow);
            }
        }
        self.count(key);
    }

    fn modified(&mut self, key: u64) {
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let flying = enforced.flight.as_ref().is_some_and(|flight| flight.job.is_some());
        if let Some(modified) = &mut enforced.modified {
            modified.take();
        }
        match enforced.memory.version() {
            // A step of ours wakes this too.
            Version::V1 if flying => self.foreign_in_flight(key),
            Version::V1 => self.look_at_limit(Key(key)),
            Version::V2 => {
                let before = enforced.counters;
                self.count(key);
                let Some(enforced) = self.containers.get(&key) else { return };
                if enforced.counters.max != before.max {
                    match enforced.memory.usage() {
                        Ok(usage) => self.deliver(key, Event::LimitHit(usage)),
                        Err(error) => self.failed(key, &error),
                    }
                }
            }
        }
    }

    /// Looks for somebody else's limit while a job may have it lowered. The worker itself looks before
    /// and after each write; this is for what comes during one, which may take long.
    fn foreign_in_flight(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some(Flight { ticket, job: Some(job), interrupt_at }) = &mut enforced.flight else {
            return;
        };
        if stepped_file(job.strategy) != ReclaimFile::Limit {
            return;
        }
        // What stands is the declared limit, or the value of the step if that did not change while we
        // looked, or somebody else's.
        let before = ticket.stop.lowered();
        let Ok(standing) = enforced.memory.limit() else { return };
        let ours = before.map(Limit::Bytes);
        if before == ticket.stop.lowered()
            && standing != job.declared.page_floor()
            && Some(standing) != ours
        {
            ticket.stop.found_foreign(standing);
            ticket.interrupt();
            *interrupt_at = Some(now + INTERRUPT_AGAIN);
        }
    }

    /// Reads the counters and reports kills. Called by events, and by the caller at the end.
    fn count(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        match enforced.memory.counters() {
            Ok(counters) => {
                let kills = counters
                    .oom_kill
                    .unwrap_or(0)
                    .saturating_sub(enforced.counters.oom_kill.unwrap_or(0));
                enforced.counters = counters;
                if kills > 0 {
                    let usage = enforced.memory.usage().unwrap_or_default();
                    self.happened.push(Happened::OomKill(Key(key), now, kills, usage));
                }
            }
            Err(error) => self.failed(key, &error),
        }
    }

    /// Looks at the limit of a container now: what somebody else set is adopted. Not while a job may
    /// have it lowered; the job looks itself.
    pub fn look_at_limit(&mut self, key: Key) {
        let Some(enforced) = self.containers.get(&key.0) else { return };
        let flying = enforced.flight.as_ref().is_some_and(|flight| flight.job.is_some());
        if flying || enforced.unrestored.is_some() {
            return;
        }
        match enforced.memory.limit() {
            Ok(limit) if limit != enforced.core.declared() => {
                self.deliver(key.0, Event::LimitChanged(limit));
            }
            Ok(_) => {}
            Err(error) => self.failed(key.0, &error),
        }
    }

    /// Looks at the counters of a container now: kills that no event told of are reported.
    pub fn recount(&mut self, key: Key) {
        self.count(key.0);
    }

    fn look(&mut self, key: u64, event: fn(Bytes) -> Event) {
        let Some(enforced) = self.containers.get(&key) else { return };
        match enforced.memory.usage() {
            Ok(usage) => self.deliver(key, event(usage)),
            Err(error) => self.failed(key, &error),
        }
    }

    fn answers(&mut self) {
        self.workers.rearm();
        let mut later = std::mem::take(&mut self.later).into_iter();
        while let Some((key, answer)) = later.next().or_else(|| self.workers.answer()) {
            let now = self.now();
            let Some(enforced) = self.containers.get_mut(&key) else { continue };
            if let Some(Flight { ticket, job: Some(job), .. }) = enforced.flight.take()
                && let Some(ours) = ticket.stop.lowered()
            {
                enforced.unrestored = Some((stepped_file(job.strategy), ours, now));
                self.restore(key);
            }
            let Some(enforced) = self.containers.get_mut(&key) else { continue };
            // Events during a job were its own writes, or another's after its last look: the file tells,
            // unless it may hold what could not be restored.
            if enforced.memory.version() == Version::V1
                && let Answer::Done(report) = &answer
                && !matches!(report.outcome, Outcome::Failed(_) | Outcome::Vanished)
            {
                if let Some(modified) = &mut enforced.modified {
                    modified.take();
                }
                self.look_at_limit(Key(key));
            }
            match answer {
                Answer::Surveyed(Ok(survey)) => self.deliver(key, Event::Surveyed(survey)),
                Answer::Surveyed(Err(error)) => {
                    self.failed(key, &error);
                    let errno = error.errno().unwrap_or(Errno::EIO) as i32;
                    self.deliver(key, Event::Failed(errno));
                }
                Answer::Done(report) => {
                    self.happened.push(Happened::Round(Key(key), now, report));
                    self.deliver(key, Event::Done(report));
                }
            }
        }
    }

    fn failed(&mut self, key: u64, error: &Error) {
        if error.is_vanished() {
            self.deliver(key, Event::Vanished);
        } else {
            log::warn!("{error}");
        }
    }

    fn deliver(&mut self, key: u64, event: Event) {
        let now = self.now();
        if let Event::Usage(usage) | Event::Crossed(usage) | Event::LimitHit(usage) = event {
            self.happened.push(Happened::Usage(Key(key), now, usage));
        }
        let mut actions = Vec::new();
        if let Some(enforced) = self.containers.get_mut(&key) {
            log::trace!("{now:?} {event:?}");
            enforced.core.handle(now, event, &mut actions);
            log::trace!("{actions:?}");
        }
        for action in actions {
            self.perform(key, action);
        }
    }

    fn perform(&mut self, key: u64, action: Action) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        match action {
            Action::Arm(threshold) => self.arm(key, threshold),
            Action::Timer(at) => enforced.timer = at,
            Action::Survey => self.start(key, Work::Survey, None),
            Action::Reclaim(job) => self.start(key, Work::Reclaim(job), Some(job)),
            Action::Cancel => {
                if let Some(flight) = &mut enforced.flight {
                    flight.ticket.stop.cancel();
                    flight.ticket.interrupt();
                    flight.interrupt_at = Some(now + INTERRUPT_AGAIN);
                }
            }
            Action::Restore(_) => self.restore(key),
            Action::Tell(notice) => self.happened.push(Happened::Notice(Key(key), now, notice)),
            Action::Forget => {
                if let Some(gone) = self.containers.remove(&key) {
                    self.happened.push(Happened::Forgotten(Key(key), gone.core.totals()));
                }
            }
        }
    }

    fn start(&mut self, key: u64, work: Work, job: Option<Job>) {
        let now = self.now();
        let Some(enforced) = self.containers.get(&key) else { return };
        if enforced.unrestored.is_some() {
            // What stands is ours: it must not be taken for somebody else's limit.
            return self.deliver(key, Event::Failed(Errno::EBUSY as i32));
        }
        let started = self.workers.start(key, enforced.memory.clone(), work);
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        match started {
            Some(ticket) => {
                let interrupt_at = job.map(|job| now + job.deadline);
                enforced.flight = Some(Flight { ticket, job, interrupt_at });
            }
            None => self.deliver(key, Event::Failed(Errno::EAGAIN as i32)),
        }
    }

    fn arm(&mut self, key: u64, threshold: Option<Bytes>) {
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        if enforced.threshold.as_ref().map(|(at, _)| *at) == threshold {
            return;
        }
        if let Some((_, old)) = enforced.threshold.take() {
            let _ = self.epoll.delete(old.as_fd());
        }
        let Some(at) = threshold else { return };
        match Notification::usage_threshold(&enforced.group, at) {
            Ok(notification) => {
                let listening = self.epoll.add(
                    notification.as_fd(),
                    EpollEvent::new(EpollFlags::EPOLLIN, token(Source::Threshold, key)),
                );
                if let Err(errno) = listening {
                    log::warn!("{}: {errno}", enforced.group.path().display());
                }
                enforced.threshold = Some((at, notification));
                // Nothing is signalled for what is above already.
                if enforced.memory.usage().is_ok_and(|usage| usage >= at) {
                    enforced.timer = Some(self.start.elapsed());
                }
            }
            Err(error) => self.failed(key, &error),
        }
    }

    /// Undoes a step that its worker could not undo. The declared limit stands already in every other
    /// case. Tried until it works, or the file holds a value that is not ours.
    fn restore(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let Some((file, ours, _)) = enforced.unrestored else { return };
        let declared = match file {
            ReclaimFile::Limit => enforced.core.declared(),
            // What it was before is not known for sure; none is what it is by default.
            _ => Limit::Max,
        };
        match reclaim::rescue(&*enforced.memory, file, ours, declared) {
            Ok(_) => enforced.unrestored = None,
            Err(error) => {
                log::error!("{error}; trying again");
                enforced.unrestored = Some((file, ours, now + RESTORE_AGAIN));
            }
        }
    }
}

impl Drop for Engine {
    /// Leaves no write in flight: the workers are joined next, and would wait for it.
    fn drop(&mut self) {
        let keys: Vec<u64> = self.containers.keys().copied().collect();
        for key in keys {
            self.quiesce(Key(key), QUIESCE_AT_END);
        }
    }
}

fn stepped_file(strategy: Strategy) -> ReclaimFile {
    match strategy {
        Strategy::HighStep => ReclaimFile::High,
        _ => ReclaimFile::Limit,
    }
}

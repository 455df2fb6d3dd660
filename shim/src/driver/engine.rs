//! The event loop: waiting, timers, and the core's actions handed to who performs them.

use super::arm::{Armer, Threshold};
use super::asked::Asked;
use super::flight::{Flight, INTERRUPT_AGAIN, INTERRUPT_OVERDUE};
use super::hold::Held;
use super::journaled::{self, Journaled};
use super::native::Natives;
use super::oom::{Deeds, OomWatch};
use super::throttling::Throttles;
use super::watch::RECOUNT_EVERY;
use super::worker::{Answer, Work, Workers};
use super::{Happened, Key, Opened, Policy, capabilities};
use crate::core::{Action, Container, Event, Notice, Now, State, Totals, Watermarks};
use crate::journal::{Found, Journal, Record, Slot};
use cgroupfs::events::{ModifiedSet, Notification, Watch};
use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Counters, Memory, ReclaimFile, Version};
use cgroupfs::{Bytes, Cgroup, Error, Limit, MemoryHierarchy, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A step that could not be undone yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unrestored {
    pub(super) file: ReclaimFile,
    /// Our value in it.
    pub(super) ours: Bytes,
    /// What is to stand there.
    pub(super) declared: Limit,
    /// When to try again.
    pub(super) at: Now,
}

/// A container, and what is held open for it.
pub(super) struct Enforced {
    pub(super) group: Arc<Cgroup>,
    pub(super) memory: Arc<dyn Memory>,
    pub(super) core: Container,
    pub(super) threshold: Threshold,
    pub(super) oom: Option<Notification>,
    pub(super) modified: Option<Watch>,
    pub(super) timer: Option<Now>,
    /// After an OOM event: when to count again, and until when.
    pub(super) recount: Option<(Now, Now)>,
    pub(super) flight: Option<Flight>,
    /// Reclaim that a person asked for.
    pub(super) asked: Option<Asked>,
    pub(super) unrestored: Option<Unrestored>,
    pub(super) counters: Counters,
    /// Its place in the journal; without one nothing is changed that would have to be undone.
    pub(super) journaled: Option<Journaled>,
    /// What was done to it, for records of its OOMs; `Some` if the OOM watch has it.
    pub(super) deeds: Option<Arc<Deeds>>,
    /// It is held at its OOMs.
    pub(super) held: Option<Held>,
    /// `memory.oom.group` is ours.
    pub(super) oom_group: bool,
}

/// Tasks that wait for a worker. A container that finds no room tries again after its backoff; room is
/// memory, of which an idle daemon with a thousand containers is to have little.
const MOST_WAITING: usize = 1024;

/// The event loop.
pub struct Engine {
    pub(super) epoll: Epoll,
    pub(super) start: Instant,
    pub(super) workers: Workers,
    pub(super) armer: Armer,
    /// The control files that are watched for writes, by container.
    pub(super) modified: ModifiedSet,
    pub(super) containers: HashMap<u64, Box<Enforced>>,
    pub(super) next_key: u64,
    pub(super) happened: Vec<Happened>,
    pub(super) oom_watch: Option<OomWatch>,
    /// Containers that it has.
    pub(super) witnessed: HashSet<u64>,
    /// Answers taken by [`Engine::quiesce`], to be handled by the next turn; whether of
    /// [`Engine::reclaim`].
    pub(super) later: Vec<(u64, Answer, bool)>,
    pub(super) throttles: Throttles,
    pub(super) natives: Natives,
    pub(super) journal: Arc<Journal>,
    pub(super) arm_after: Duration,
    pub(super) keep_records: bool,
    /// What paths in the journal are relative to.
    mount_point: PathBuf,
}

/// What an epoll token stands for; in its upper byte, the key or the caller's number in the rest.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Source {
    Workers = 1,
    Caller = 2,
    Threshold = 3,
    Oom = 4,
    Modified = 5,
    OomWatch = 6,
    Armed = 7,
    Throttle = 8,
}

const SOURCE_SHIFT: u32 = 56;

pub(super) fn token(source: Source, number: u64) -> u64 {
    (source as u64) << SOURCE_SHIFT | (number & ((1 << SOURCE_SHIFT) - 1))
}

pub(super) fn kernel(errno: Errno) -> Error {
    Error::refused(cgroupfs::Op::Watch, "the event loop", errno)
}

impl Engine {
    /// An engine with at most `workers` reclaim threads, which writes down what it does in `journal`. No
    /// thread is started before there is work.
    pub fn new(workers: usize, journal: Arc<Journal>) -> Result<Engine> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(kernel)?;
        let workers = Workers::new(workers, MOST_WAITING).map_err(kernel)?;
        epoll
            .add(workers.wake_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token(Source::Workers, 0)))
            .map_err(kernel)?;
        let armer = Armer::new().map_err(kernel)?;
        epoll
            .add(armer.wake_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token(Source::Armed, 0)))
            .map_err(kernel)?;
        let modified = ModifiedSet::new()?;
        epoll
            .add(modified.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token(Source::Modified, 0)))
            .map_err(kernel)?;
        Ok(Engine {
            epoll,
            start: Instant::now(),
            workers,
            armer,
            modified,
            containers: HashMap::new(),
            next_key: 0,
            happened: Vec::new(),
            oom_watch: None,
            witnessed: HashSet::new(),
            later: Vec::new(),
            throttles: Throttles::default(),
            natives: Natives::default(),
            journal,
            arm_after: Duration::ZERO,
            keep_records: false,
            mount_point: MemoryHierarchy::find()?.mount_point,
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
        let opened = Opened::open(group)?;
        let record = self.record_of(&opened, policy);
        self.register_as(opened, policy, record)
    }

    /// What the journal would hold of a group: for callers who know more, such as its id and its init.
    pub fn record_of(&self, opened: &Opened, policy: Policy) -> Record {
        let Opened { group, memory, standing } = opened;
        let path = group.path().strip_prefix(&self.mount_point).unwrap_or(group.path());
        let (path, version) = (path.to_string_lossy(), memory.version());
        journaled::record_as(&path, group.inode(), version, standing, policy)
    }

    /// As [`Engine::register`], with what the caller made of [`Engine::record_of`]'s record.
    pub fn register_as(&mut self, opened: Opened, policy: Policy, record: Record) -> Result<Key> {
        let journaled = Journaled::insert(&self.journal, record);
        self.enlist(opened, policy, journaled)
    }

    /// Goes on with a container that was in the journal: its counters go on, and kills that nobody was
    /// told of are told. What stood in the kernel must have been undone
    /// ([`crate::guardian::restore_all`]).
    pub fn resume(&mut self, opened: Opened, policy: Policy, found: Found) -> Result<Key> {
        self.enlist(opened, policy, Some(Journaled::found(found)))
    }

    fn enlist(
        &mut self,
        opened: Opened,
        policy: Policy,
        journaled: Option<Journaled>,
    ) -> Result<Key> {
        let Opened { group, memory, standing } = opened;
        let key = self.next_key;
        self.next_key += 1;
        let mut can = capabilities(&*memory);
        if journaled.is_none() {
            can = journaled::without_undo(can);
        }
        let core = Container::new(
            policy.watermarks,
            standing.limit,
            policy.high,
            can,
            group.inode() ^ key << 32,
        );
        let mut counters = standing.counters;
        if let Some(journaled) = &journaled {
            counters.oom_kill = journaled.oom_kill_seen().or(counters.oom_kill);
        }
        // Without these events counters are still read at every round and at the end.
        let (oom, file) = match memory.version() {
            Version::V1 => (Notification::oom(&group).ok(), "memory.limit_in_bytes"),
            Version::V2 => (None, "memory.events"),
        };
        if let Some(oom) = &oom {
            self.listen(oom.as_fd(), Source::Oom, key)?;
        }
        let modified = match self.modified.watch(&group, file, key) {
            Ok(watch) => Some(watch),
            Err(error) if error.is_vanished() => return Err(error),
            Err(error) => {
                log::warn!("{error}; changes by others are seen at the next round only");
                None
            }
        };
        self.containers.insert(
            key,
            Box::new(Enforced {
                group,
                memory,
                core,
                threshold: Threshold::not_before(self.start.elapsed() + self.arm_after),
                oom,
                modified,
                timer: None,
                recount: None,
                flight: None,
                asked: None,
                unrestored: None,
                counters,
                journaled,
                deeds: None,
                held: None,
                oom_group: false,
            }),
        );
        // Kills between the last look of whoever was before us and ours; the OOM watch tells of its own.
        if self.oom_watch.is_none() {
            self.count(key);
        }
        self.deliver(key, Event::Usage(standing.usage));
        Ok(Key(key))
    }

    /// Writes a container's terms down.
    pub fn note_terms(&mut self, key: Key, change: impl FnOnce(&mut crate::journal::Terms)) {
        if let Some(enforced) = self.containers.get_mut(&key.0)
            && let Some(journaled) = &mut enforced.journaled
        {
            journaled.note_terms(change);
        }
    }

    /// From now on, containers that are released stay in the journal: for a daemon that ends, and whose
    /// successor goes on with them.
    pub fn keep_records(&mut self) {
        self.keep_records = true;
    }

    /// A container that was in the journal is not gone on with.
    pub fn forget_found(&self, found: Found) {
        self.journal.remove(found.slot);
    }

    /// A container's place in the journal, for what else changes the kernel for it.
    pub fn slot(&self, key: Key) -> Option<Arc<Slot>> {
        Some(self.containers.get(&key.0)?.journaled.as_ref()?.slot())
    }

    /// Ends enforcement: cancels what is in flight, sees that the declared limit stands.
    /// [`Happened::Forgotten`] says when it is done, which may be at once.
    pub fn release(&mut self, key: Key) {
        self.end_throttle(key.0);
        self.end_hold(key.0);
        // A successor goes on with it.
        if !self.keep_records {
            self.end_kill_together(key.0);
        }
        let now = self.now();
        if let Some(enforced) = self.containers.get_mut(&key.0)
            && let Some(asked) = &mut enforced.asked
        {
            asked.release_after = true;
            if let Some(flight) = &mut enforced.flight {
                flight.ticket.stop.cancel();
                flight.ticket.interrupt();
                flight.interrupt_at = Some(now + INTERRUPT_AGAIN);
            }
            return self.go_on_asked(key.0);
        }
        self.deliver(key.0, Event::Release);
    }

    /// Holds a container to other terms from now on.
    pub fn set_policy(&mut self, key: Key, policy: Policy) {
        self.deliver(key.0, Event::Terms(policy.watermarks, policy.high));
    }

    /// Whether nothing is enforced any more.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// What is going on with a container.
    pub fn state(&self, key: Key) -> State {
        self.containers.get(&key.0).map_or(State::Ended, |enforced| enforced.core.state())
    }

    /// A container's memory controller.
    pub fn memory(&self, key: Key) -> Option<&Arc<dyn Memory>> {
        Some(&self.containers.get(&key.0)?.memory)
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
        self.go_on_throttling();
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
                n if n == Source::Armed as u64 => self.armed(),
                n if n == Source::Threshold as u64 => self.crossed(number),
                n if n == Source::Oom as u64 => self.oom(number),
                n if n == Source::OomWatch as u64 => self.told_of_ooms(),
                n if n == Source::Throttle as u64 => self.throttle_told(number),
                _ => self.modifications(None),
            }
        }
        self.timers();
        happened.append(&mut self.happened);
        Ok(())
    }

    pub(super) fn listen(&self, fd: BorrowedFd<'_>, source: Source, key: u64) -> Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token(source, key))).map_err(kernel)
    }

    pub(super) fn timeout(&self, patience: Option<Duration>) -> EpollTimeout {
        let now = self.now();
        let next = self
            .containers
            .values()
            .flat_map(|enforced| {
                [
                    enforced.timer,
                    enforced.recount.map(|(at, _)| at),
                    enforced.unrestored.map(|unrestored| unrestored.at),
                    enforced.flight.as_ref().and_then(|flight| flight.interrupt_at),
                ]
            })
            .flatten()
            .chain(self.next_hold())
            .chain(self.throttles.next_look())
            .chain(self.natives.values().filter_map(super::native::Guarded::at))
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

    pub(super) fn timers(&mut self) {
        let now = self.now();
        self.go_on_holding();
        self.look_at_the_young();
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
                if flight.overdue_at.is_some_and(|at| at <= now) {
                    self.workers.make_up_for(&flight.ticket);
                }
                let overdue = flight.ticket.is_overdue();
                let again = if overdue { INTERRUPT_OVERDUE } else { INTERRUPT_AGAIN };
                flight.interrupt_at = Some(now + again);
            }
        }
        for key in recount {
            self.count(key);
        }
        let unrestored: Vec<u64> = self
            .containers
            .iter()
            .filter(|(_, enforced)| {
                enforced.unrestored.is_some_and(|unrestored| unrestored.at <= now)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in unrestored {
            self.restore(key);
        }
        self.natives_due();
    }

    pub(super) fn failed(&mut self, key: u64, error: &Error) {
        if error.is_vanished() {
            self.deliver(key, Event::Vanished);
        } else {
            log::warn!("{error}");
        }
    }

    pub(super) fn deliver(&mut self, key: u64, event: Event) {
        let now = self.now();
        if let Event::Usage(usage) | Event::Crossed(usage) | Event::LimitHit(usage) = event {
            self.happened.push(Happened::Usage(Key(key), now, usage));
        }
        let mut actions = Vec::new();
        if let Some(enforced) = self.containers.get_mut(&key) {
            log::trace!("{now:?} {event:?}");
            if let (Some(deeds), Event::LimitChanged(limit)) = (&enforced.deeds, &event) {
                deeds.declare(*limit);
                deeds.note("limit_adopted", limit.bytes().map(|bytes| bytes.0), false);
            }
            enforced.core.handle(now, event, &mut actions);
            log::trace!("{actions:?}");
            // In the journal before anything is done about it, or anybody told.
            if let Some(journaled) = &mut enforced.journaled {
                journaled.keep(&enforced.core);
            }
        }
        for action in actions {
            self.perform(key, action);
        }
    }

    pub(super) fn perform(&mut self, key: u64, action: Action) {
        let now = self.now();
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        match action {
            Action::Arm(threshold) => self.arm(key, threshold),
            Action::Timer(at) => enforced.timer = at.map(|at| on_the_grid(now, at)),
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
            // Nobody else set it, and it has been told.
            Action::Tell(Notice::Adopted(_, Limit::Bytes(to))) if self.raised(key) == Some(to) => {}
            Action::Tell(notice) => self.happened.push(Happened::Notice(Key(key), now, notice)),
            Action::Forget => {
                self.finish_ooms(Key(key));
                self.end_throttle(key);
                self.end_hold(key);
                if let Some(mut gone) = self.containers.remove(&key) {
                    self.asked_of_the_gone(key, gone.asked.take());
                    if let Some(watch) = &gone.modified {
                        self.modified.forget(watch);
                    }
                    if let Some(journaled) = gone.journaled.take()
                        && (!self.keep_records || gone.group.is_gone())
                    {
                        journaled.remove(&self.journal);
                    }
                    self.happened.push(Happened::Forgotten(Key(key), gone.core.totals()));
                }
            }
        }
    }
}

/// Looks that are a second apart, as those at idle groups are, happen at whole seconds: thousands of them
/// are one wake-up. Earlier than asked for, never later.
fn on_the_grid(now: Now, at: Now) -> Now {
    let whole = Duration::from_secs(at.as_secs());
    let idle = at.saturating_sub(now) >= crate::core::pace::LONGEST * 3 / 4;
    if idle && whole > now { whole } else { at }
}

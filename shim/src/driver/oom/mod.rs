//! The OOM watch: a thread of its own that sees every OOM of the containers given to it, and writes the
//! records ([`crate::core::oom`] keeps the books).
//!
//! It runs at the lowest real-time priority where that is allowed, as a killed container's group may be
//! removed within a millisecond, and waits for eventfds and inotify, the kernel log, and the pidfds of
//! the containers' inits. Nothing is polled but in the 100 ms after a signal; where neither the log nor a
//! tracepoint can be had on v1, once a second, as nothing else tells of a kill for want of host memory.

mod batches;
mod empty;
mod group;
mod log;
mod names;
mod stopper;
mod sweep;
mod thread;

pub use names::kernel_path;

use super::worker::Ticket;
use crate::core::oom::emptying::Turn;
use crate::core::oom::{Deed, Record};
use crate::core::{Now, Report};
use crate::journal::Slot;
use cgroupfs::memory::{Counters, Memory};
use cgroupfs::{Bytes, Cgroup, Error, Limit, Op, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a watch is started with.
#[derive(Debug, Clone)]
pub struct OomOptions {
    /// Records go to a store under this run directory; nowhere if `None`.
    pub run_dir: Option<PathBuf>,
    /// The kernel log, [`LOG`] but in tests.
    pub log: PathBuf,
    /// Where tracefs may be, for hosts whose log cannot be read.
    pub tracefs: Vec<PathBuf>,
    /// Ask for real-time priority.
    pub real_time: bool,
    /// Every line of the log wakes the watch: on v1 nothing else tells at once of a kill for want of host
    /// memory. Without it the log is read when something else says that there is a reason to, and an idle
    /// watch sleeps whatever is logged.
    pub log_wakes: bool,
    /// As a container's init exits, cancel what is in flight for it and empty its cache; later sweep what
    /// is left of it.
    pub empty_at_exit: bool,
}

/// The kernel log.
pub const LOG: &str = "/dev/kmsg";

impl Default for OomOptions {
    fn default() -> OomOptions {
        OomOptions {
            run_dir: None,
            log: LOG.into(),
            tracefs: vec!["/sys/kernel/tracing".into(), "/sys/kernel/debug/tracing".into()],
            real_time: true,
            log_wakes: true,
            empty_at_exit: false,
        }
    }
}

/// Whose OOMs these are.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// A name for people.
    pub name: String,
    /// The container's id.
    pub container: String,
    /// Its init, as this process's pid namespace numbers it.
    pub init: Option<i32>,
    /// `oom_kill` when it was last announced, where somebody remembers: kills since then are new.
    pub oom_kill: Option<u64>,
    /// All counters when it was registered: what was counted since then counts. `None`: as they are when the watch
    /// gets it.
    pub counters: Option<Counters>,
    /// When it was registered: kills since then are its own, also those from before the watch got to it. `None`:
    /// since the watch began.
    pub since: Option<Instant>,
}

/// What the watch tells.
#[derive(Debug)]
pub enum Told {
    /// Its files are open, and its signals are heard: from now on no kill in it is missed for want of those.
    Watching(u64),
    /// So many tasks were killed just now, seen at this usage; `oom_kill` with them, if they are in it.
    Killed(u64, u64, Bytes, Option<u64>),
    /// A record is complete; it was written before.
    Record(u64, Box<Record>),
    /// Nothing more will be told of it.
    Forgotten(u64),
}

/// What can be known on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The kernel log can be read; else why not.
    pub log: std::result::Result<(), String>,
    /// The tracepoint is used instead.
    pub tracepoint: bool,
    /// The watch runs at real-time priority; else why not.
    pub real_time: std::result::Result<(), String>,
    /// Records are written; else why not.
    pub store: std::result::Result<(), String>,
}

/// A group to be watched.
struct ToWatch {
    group: Arc<Cgroup>,
    memory: Option<Arc<dyn Memory>>,
    identity: Identity,
    deeds: Arc<Deeds>,
}

enum Command {
    Watch(u64, ToWatch),
    Init(u64, i32),
    Unwatch(u64),
}

/// A watch that runs. Dropping it ends it; what is open then is written as it is.
#[derive(Debug)]
pub struct OomWatch {
    commands: Option<Sender<Command>>,
    wake: Arc<EventFd>,
    told: Receiver<Told>,
    news: Arc<EventFd>,
    sources: Sources,
    thread: Option<JoinHandle<()>>,
}

impl OomWatch {
    /// Starts the thread. Only what it cannot do without fails: an epoll, a timer, the hierarchy. What
    /// else is missing is in [`OomWatch::sources`], and logged once.
    pub fn start(options: OomOptions) -> Result<OomWatch> {
        let failed = |errno| Error::refused(Op::Watch, "the OOM watch", errno);
        let eventfd =
            || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed);
        let (wake, news) = (Arc::new(eventfd()?), Arc::new(eventfd()?));
        let (commands, orders) = bounded(1024);
        let (tell, told) = bounded(4096);
        let (ready, started) = bounded(1);
        let (orders_fd, news_fd) = (wake.clone(), news.clone());
        let thread = std::thread::Builder::new()
            .name("cgshim-oom".into())
            .stack_size(256 << 10)
            .spawn(move || match thread::Watcher::new(&options, orders_fd) {
                Ok((mut watcher, sources)) => {
                    let _ = ready.send(Ok(sources));
                    watcher.run(&orders, &tell, &news_fd);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|error| failed(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        let sources = started.recv().unwrap_or(Err(failed(Errno::ECHILD)))?;
        Ok(OomWatch { commands: Some(commands), wake, told, news, sources, thread: Some(thread) })
    }

    /// What can be known here.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Watches a group from now on, as `key`. `memory` is its controller, where that is open already: a
    /// host has thousands of groups, and each has a dozen files.
    ///
    /// Kills are counted from now on, not from when the watch gets to it.
    pub fn watch(
        &self,
        key: u64,
        group: Arc<Cgroup>,
        memory: Option<Arc<dyn Memory>>,
        mut identity: Identity,
        deeds: Arc<Deeds>,
    ) {
        // What cannot be opened the watch opens again, and says why not.
        let memory = memory.or_else(|| super::open_memory(&group).ok());
        if let (None, Some(memory)) = (identity.counters, &memory) {
            identity.counters = memory.counters().ok();
        }
        if identity.oom_kill.is_none() {
            identity.oom_kill = identity.counters.and_then(|counters| counters.oom_kill);
        }
        self.command(Command::Watch(key, ToWatch { group, memory, identity, deeds }));
    }

    /// The init of a container is this process.
    pub fn init(&self, key: u64, pid: i32) {
        self.command(Command::Init(key, pid));
    }

    /// Ends the watch of a container: [`Told::Forgotten`] comes after the last record.
    pub fn unwatch(&self, key: u64) {
        self.command(Command::Unwatch(key));
    }

    /// Readable when there is something to be told.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// What there is to be told, without waiting.
    pub fn told(&self) -> impl Iterator<Item = Told> {
        let _ = self.news.read();
        self.told.try_iter()
    }

    /// The next thing to be told, `patience` at most.
    pub fn next(&self, patience: Duration) -> Option<Told> {
        self.told.recv_timeout(patience).ok()
    }

    fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What cgshim did to a container lately: written by the event loop, read by the watch.
#[derive(Debug, Default)]
pub struct Deeds {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    declared: Option<Limit>,
    done: VecDeque<Done>,
    flight: Option<Arc<Ticket>>,
    /// Who may lower its limit now.
    turn: Turn,
    slot: Option<Arc<Slot>>,
}

#[derive(Debug)]
struct Done {
    at: Instant,
    what: &'static str,
    bytes: Option<u64>,
    lowered: bool,
}

/// Deeds kept for a record, and for how long.
const MOST_DEEDS: usize = 8;
const DEEDS_FOR: Duration = Duration::from_secs(10);

impl Deeds {
    /// The declared limit is this.
    pub fn declare(&self, limit: Limit) {
        self.locked().declared = Some(limit);
    }

    /// Something was done that has no report: a freeze, a limit adopted. `lowered`: a limit of ours stood
    /// below the declared one meanwhile.
    pub fn note(&self, what: &'static str, bytes: Option<u64>, lowered: bool) {
        let mut inner = self.locked();
        if inner.done.len() >= MOST_DEEDS {
            inner.done.pop_front();
        }
        inner.done.push_back(Done { at: Instant::now(), what, bytes, lowered });
    }

    /// Stops what is under way: its group is about to be removed.
    fn cancel(&self) {
        if let Some(ticket) = &self.locked().flight {
            ticket.stop.cancel();
            ticket.interrupt();
        }
    }

    /// Where is written down what is changed of it.
    pub(super) fn set_slot(&self, slot: Option<Arc<Slot>>) {
        self.locked().slot = slot;
    }

    fn slot(&self) -> Option<Arc<Slot>> {
        self.locked().slot.clone()
    }

    /// The limit is to be emptied's to lower, if it is nobody's now.
    fn begin_emptying(&self) -> bool {
        self.locked().turn.take(Turn::Emptying)
    }

    fn end_emptying(&self) {
        self.locked().turn.give_back(Turn::Emptying);
    }

    /// What stands as its limit is not to be taken for anybody's: it is at 0 for an instant, with nobody in it.
    pub(super) fn is_emptying(&self) -> bool {
        self.locked().turn == Turn::Emptying
    }

    /// A task of the engine's is about to be started: false while the container is being emptied, and then it
    /// is not to be.
    pub(super) fn begin_flight(&self) -> bool {
        self.locked().turn.take(Turn::Engine)
    }

    /// A job is under way.
    pub(super) fn started(&self, ticket: Arc<Ticket>) {
        self.locked().flight = Some(ticket);
    }

    /// The task has ended, or was not started.
    pub(super) fn ended(&self, report: Option<&Report>) {
        {
            let mut inner = self.locked();
            inner.flight = None;
            inner.turn.give_back(Turn::Engine);
        }
        if let Some(report) = report {
            let lowers = matches!(
                report.strategy,
                crate::core::Strategy::LimitStep | crate::core::Strategy::HighStep
            );
            self.note(report.strategy.as_str(), Some(report.freed.0), lowers && report.steps > 0);
        }
    }

    /// The declared limit, what was done lately (newest first), and whether a limit is lowered now.
    fn look(&self) -> (Option<Limit>, Vec<Deed>, bool) {
        let inner = self.locked();
        let deeds = inner
            .done
            .iter()
            .rev()
            .filter(|done| done.at.elapsed() <= DEEDS_FOR)
            .map(|done| Deed {
                before_ms: u64::try_from(done.at.elapsed().as_millis()).unwrap_or(u64::MAX),
                what: done.what.to_owned(),
                bytes: done.bytes,
                lowered: done.lowered,
            })
            .collect();
        let lowered = inner.flight.as_ref().is_some_and(|ticket| ticket.stop.lowered().is_some());
        (inner.declared, deeds, lowered)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All clocks at once.
fn stamp(start: Instant) -> crate::core::oom::Stamp {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now: Now = start.elapsed();
    crate::core::oom::Stamp {
        now,
        wall_ms: wall.map_or(0, |wall| u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
        boot_ms: crate::oom::boot_ms(),
    }
}

//! The watch's loop: what happens goes into the books, what they ask for is done. Who is watched is in `members`, what
//! comes of the log in `lines`.

mod lines;
mod members;

use super::empty::Emptier;
use super::group::{Group, Level};
use super::log::Log;
use super::names::Host;
use super::sweep::Sweeper;
use super::{Command, OomOptions, Sources, Told, stamp};
use crate::core::Now;
use crate::core::oom::{Action, Event, Ledger, LevelLook};
use crate::driver::sys;
use crate::oom::Store;
use cgroupfs::events::{ModifiedSet, Notification, Watch};
use cgroupfs::files::ControlDir;
use cgroupfs::memory::Version;
use cgroupfs::{Cgroup, Error, Op, Result};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often counters are read where nothing tells of a kill for want of host memory.
const SLOW_POLL: Duration = Duration::from_secs(1);

/// Somebody is out of memory, or will be, and it is not known who: no level has this number.
const UNKNOWN_LEVEL: usize = usize::MAX;

/// What an epoll token stands for.
const WAKE: u64 = 1;
const TIMER: u64 = 2;
const LOG: u64 = 3;
const MODIFIED: u64 = 4;
const OWN: u64 = 5;
const ABOVE: u64 = 6;
const INIT: u64 = 7;
const SHIFT: u32 = 56;

/// A group that containers are in: watched once for all of them.
struct Above {
    directory: Arc<Path>,
    group: Arc<Cgroup>,
    level: Arc<Level>,
    oom: Option<Notification>,
    watch: Option<Watch>,
    /// `oom` of `memory.events.local` when it was last read.
    oom_local: u64,
    users: BTreeSet<(u64, usize)>,
    /// What stood there when a container came last, and since when its hits have stood so.
    looked: LevelLook,
    quiet_since: Now,
}

struct Watched {
    group: Group,
    above: Vec<u64>,
    /// The directory that it is in, where what it leaves is swept: one of the groups above.
    parent: Option<Arc<Path>>,
    watch: Option<Watch>,
    /// v2: `oom` of the group itself and of its subtree, as read last.
    ooms: (u64, u64),
    /// v2: it is at its limit.
    full: AtLimit,
    gone: bool,
    /// How often it was signalled that nobody had heard when it was found gone; removal is one of those.
    unheard: u64,
    /// Its init has exited; what it leaves is somebody's to sweep.
    ended: bool,
}

/// v2 tells of events at most once in 10 ms (`CGROUP_FILE_NOTIFY_MIN_INTV`), and who is killed has met the limit just
/// before: the kill is told of when a runtime may have removed the group. So from the time that one meets its limit its
/// counter is looked at, as after a signal; not all the time for one that lives at its limit.
struct AtLimit {
    /// `max` of `memory.events` as read last.
    max: u64,
    /// Not before this, and then this much later.
    again: Now,
    pause: Duration,
}

/// The least and the most between two such looks at a container.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(60);

impl AtLimit {
    fn new(max: u64) -> AtLimit {
        AtLimit { max, again: Now::ZERO, pause: LEAST_PAUSE }
    }

    /// Whether it is to be looked at, now that `max` has been read.
    fn met(&mut self, now: Now, max: u64) -> bool {
        let rose = max > std::mem::replace(&mut self.max, max);
        if !rose || now < self.again {
            return false;
        }
        let rested = now >= self.again + MOST_PAUSE;
        self.pause = if rested { LEAST_PAUSE } else { (self.pause * 2).min(MOST_PAUSE) };
        self.again = now + self.pause;
        true
    }
}

/// The loop's state.
pub(super) struct Watcher {
    epoll: Epoll,
    timer: TimerFd,
    /// Signalled when there are orders.
    wake: Arc<EventFd>,
    start: Instant,
    host: Host,
    ledger: Ledger,
    store: Option<Store>,
    /// What earlier processes have on record.
    recorded: HashMap<(String, u64), u64>,
    log: Option<Log>,
    /// The log is in flood: read on at this time.
    log_again: Option<Now>,
    log_wakes: bool,
    /// The log's descriptor is listened to now.
    log_heard: bool,
    modified: Option<ModifiedSet>,
    groups: HashMap<u64, Box<Watched>>,
    above: HashMap<u64, Above>,
    next_above: u64,
    slow: Option<Now>,
    all_looked: Option<Now>,
    /// pids in the log are ours.
    pids_are_ours: bool,
    store_failed: bool,
    /// Empties containers that end, if that is asked for.
    emptier: Option<Emptier>,
    /// Then sweeps what is left of them.
    sweeper: Option<Sweeper>,
    queue: VecDeque<Event>,
}

impl Watcher {
    pub(super) fn new(options: &OomOptions, orders: Arc<EventFd>) -> Result<(Watcher, Sources)> {
        let failed = |errno| Error::refused(Op::Watch, "the OOM watch", errno);
        sys::block_signals();
        let real_time = match options.real_time {
            true => sys::may_be_real_time().map_err(|errno| errno.to_string()),
            false => Err("not asked for".into()),
        };
        let host = Host::find()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )
        .map_err(failed)?;
        let store = match &options.run_dir {
            None => Err("not asked for".to_owned()),
            Some(run_dir) => Store::open(run_dir).map_err(|error| {
                let dir = crate::oom::directory(run_dir);
                format!("{}: {error}", dir.display())
            }),
        };
        let kmsg = Log::kmsg(&options.log);
        let readable = kmsg.as_ref().map(drop).map_err(ToString::to_string);
        let log = match kmsg {
            Ok(log) => Some(log),
            Err(_) => Log::trace(&options.tracefs).ok(),
        };
        let sources = Sources {
            tracepoint: matches!(log, Some(Log::Trace(_))),
            log: readable,
            real_time,
            store: store.as_ref().map(drop).map_err(String::clone),
        };
        let modified = match host.hierarchy.version {
            Version::V1 => None,
            Version::V2 => Some(ModifiedSet::new()?),
        };
        let mut watcher = Watcher {
            epoll,
            timer,
            wake: orders,
            start: Instant::now(),
            ledger: Ledger::new(std::process::id()),
            recorded: store.as_ref().map(Store::recorded).unwrap_or_default(),
            store: store.ok(),
            log,
            log_again: None,
            log_wakes: options.log_wakes,
            log_heard: true,
            modified,
            groups: HashMap::new(),
            above: HashMap::new(),
            next_above: 0,
            slow: None,
            all_looked: None,
            pids_are_ours: in_initial_pid_namespace(),
            store_failed: false,
            emptier: options.empty_at_exit.then(|| Emptier::new(options.real_time)),
            sweeper: options.empty_at_exit.then(|| Sweeper::start(host.hierarchy.clone())),
            queue: VecDeque::new(),
            host,
        };
        watcher.listen(watcher.wake.as_fd(), WAKE, 0)?;
        watcher.listen(watcher.timer.as_fd(), TIMER, 0)?;
        if let Some(log) = &watcher.log {
            watcher.listen(log.fd(), LOG, 0)?;
        }
        if let Some(modified) = &watcher.modified {
            watcher.listen(modified.as_fd(), MODIFIED, 0)?;
        }
        let readable = matches!(watcher.log, Some(Log::Kmsg(..)));
        watcher.ledger.handle(stamp(watcher.start), Event::LogReadable(readable), &mut Vec::new());
        Ok((watcher, sources))
    }

    /// Until nobody gives orders any more.
    pub(super) fn run(&mut self, orders: &Receiver<Command>, tell: &Sender<Told>, news: &EventFd) {
        let mut tell = |told: Told| {
            if tell.try_send(told).is_err() {
                // The records are in the store; whoever does not listen reads them there.
                log::debug!("an OOM event was told to nobody");
            }
            let _ = news.write(1);
        };
        loop {
            self.hear_the_log();
            self.set_timer();
            let mut events = [EpollEvent::empty(); 64];
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    log::error!("the OOM watch ends: {errno}");
                    return;
                }
            };
            let mut ended = false;
            let (mut ordered, mut log_ready) = (false, false);
            for event in events.iter().take(ready) {
                let number = event.data() & ((1 << SHIFT) - 1);
                match event.data() >> SHIFT {
                    WAKE => ordered = true,
                    TIMER => {
                        let _ = self.timer.wait();
                    }
                    LOG => log_ready = true,
                    MODIFIED => self.modified(),
                    OWN => self.own(number),
                    ABOVE => self.signalled_above(number),
                    _ => self.init_exited(number, ready > 1),
                }
            }
            self.work(&mut tell);
            // After those whose groups may be gone in a moment.
            if ordered {
                let _ = self.wake.read();
                // What the log says by now is about those who are still there.
                self.read_log(&mut tell);
                ended = self.obey(orders, &mut tell);
            }
            let now = self.start.elapsed();
            // While somebody may have been killed it is looked into without being told: its readers are woken at the
            // next tick of the clock only, 4 ms later at 250 Hz.
            let read = match self.log_again {
                Some(at) => now >= at,
                None => log_ready || self.ledger.deadline().is_some(),
            };
            if read {
                self.read_log(&mut tell);
            }
            if self.slow.is_some_and(|at| now >= at) {
                self.slow = Some(now + SLOW_POLL);
                self.look_at_all();
            }
            self.queue.push_back(Event::Tick);
            self.work(&mut tell);
            if ended {
                return self.end(&mut tell);
            }
        }
    }

    fn listen(&self, fd: BorrowedFd<'_>, kind: u64, number: u64) -> Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, kind << SHIFT | number))
            .map_err(|errno| Error::refused(Op::Watch, "the OOM watch", errno))
    }

    fn set_timer(&self) {
        let now = self.start.elapsed();
        let next = [self.ledger.deadline(), self.slow, self.log_again];
        let next = next.into_iter().flatten().min();
        let _ = match next {
            None => self.timer.unset(),
            Some(at) => {
                // 0 would disarm it.
                let wait = at.saturating_sub(now).max(Duration::from_micros(1));
                self.timer.set(
                    Expiration::OneShot(TimeSpec::from_duration(wait)),
                    TimerSetTimeFlags::empty(),
                )
            }
        };
    }

    /// Takes orders, a new container at most, which takes a while; true when there will be no more.
    fn obey(&mut self, orders: &Receiver<Command>, tell: &mut impl FnMut(Told)) -> bool {
        loop {
            match orders.try_recv() {
                Ok(Command::Watch(key, watched)) => {
                    match self.watch(key, watched, tell) {
                        Ok(()) => tell(Told::Watching(key)),
                        Err(error) => {
                            if !error.is_vanished() {
                                log::warn!("{error}; OOMs of it are not recorded");
                            }
                            self.drop_group(key);
                            tell(Told::Forgotten(key));
                        }
                    }
                    let _ = self.wake.write(1);
                    return false;
                }
                Ok(Command::Init(key, pid)) => self.init(key, pid),
                Ok(Command::Unwatch(key)) => {
                    if self.groups.contains_key(&key) {
                        self.look(key, true);
                        self.work(tell);
                        self.queue.push_back(Event::Unwatch(key));
                        self.work(tell);
                    }
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// What is open is written as it is.
    fn end(&mut self, tell: &mut impl FnMut(Told)) {
        let keys: Vec<u64> = self.groups.keys().copied().collect();
        for key in keys {
            self.look(key, true);
            self.queue.push_back(Event::Unwatch(key));
        }
        self.read_log(tell);
        self.queue.push_back(Event::LogReadable(false));
        self.queue.push_back(Event::Tick);
        self.work(tell);
    }

    fn own(&mut self, key: u64) {
        let Some(watched) = self.groups.get_mut(&key) else { return };
        let signals = watched.group.oom.as_ref().map_or(0, Notification::signals);
        // The signal comes at removal too, once; then there is nothing to read any more.
        if watched.gone || watched.group.group.is_gone() {
            let before = watched.unheard;
            watched.unheard += signals;
            let ran_out = before < 2 && watched.unheard >= 2;
            self.vanished(key);
            if ran_out {
                self.queue.push_back(Event::RanOut(key));
            }
            return;
        }
        // The kill follows the signal.
        watched.group.remember_members();
        self.queue.push_back(Event::Signal(key, 0));
    }

    fn signalled_above(&mut self, id: u64) {
        let Some(above) = self.above.get_mut(&id) else { return };
        if let Some(oom) = &above.oom {
            oom.take();
        }
        if above.group.is_gone() {
            return self.above_gone(id);
        }
        self.queue.extend(above.users.iter().map(|(key, level)| Event::Signal(*key, *level)));
    }

    fn above_gone(&mut self, id: u64) {
        if let Some(above) = self.above.get_mut(&id)
            && let Some(oom) = above.oom.take()
        {
            let _ = self.epoll.delete(oom.as_fd());
        }
    }

    /// v2: `memory.events` of a container, or `memory.events.local` of a group above.
    fn modified(&mut self) {
        let changed = self.modified.as_mut().map(ModifiedSet::take).unwrap_or_default();
        for number in changed {
            let id = number >> 1;
            if number & 1 == 1 {
                let Some(above) = self.above.get_mut(&id) else { continue };
                let now = above.level.look().oom_local.unwrap_or(0);
                if now > above.oom_local {
                    above.oom_local = now;
                    self.queue
                        .extend(above.users.iter().map(|(key, level)| Event::Signal(*key, *level)));
                }
                continue;
            }
            let Some(watched) = self.groups.get_mut(&id) else { continue };
            let own = watched.group.own_level();
            let ooms = (own.oom_local.unwrap_or(0), own.oom.unwrap_or(0));
            let full = watched.full.met(self.start.elapsed(), own.failcnt.unwrap_or(0));
            if ooms.0 > watched.ooms.0 || ooms.1 > watched.ooms.1 {
                watched.ooms = ooms;
                self.queue.push_back(Event::Signal(id, 0));
            } else if full {
                self.queue.push_back(Event::Signal(id, UNKNOWN_LEVEL));
            }
            self.look(id, false);
        }
    }

    /// `busy`: there are others to be seen to.
    fn init_exited(&mut self, key: u64, busy: bool) {
        let Some(watched) = self.groups.get_mut(&key) else { return };
        let pidfd = watched.group.pidfd.take();
        watched.group.init_is_gone();
        if self.emptier.is_some() {
            watched.group.cancel();
        }
        // Emptying changes no counter, but the runtime may remove the group right after it.
        self.look(key, false);
        self.queue.push_back(Event::InitExited(key));
        if let (Some(emptier), Some(sweeper), Some(watched)) =
            (&mut self.emptier, &self.sweeper, self.groups.get_mut(&key))
            && let (Some(files), Some(exits)) = (watched.group.files.take(), sweeper.exits())
        {
            watched.ended = true;
            emptier.empty(files, watched.parent.clone(), exits.clone(), busy);
        }
        // What nobody waits for comes last.
        if let Some(pidfd) = pidfd {
            let _ = self.epoll.delete(pidfd.as_fd());
        }
    }

    fn look_at_all(&mut self) {
        let keys: Vec<u64> =
            self.groups.iter().filter(|(_, group)| !group.gone).map(|(key, _)| *key).collect();
        for key in keys {
            self.look(key, false);
        }
    }

    fn look(&mut self, key: u64, all: bool) {
        let Some(watched) = self.groups.get_mut(&key).filter(|watched| !watched.gone) else {
            return;
        };
        match watched.group.look(all) {
            Ok(look) => self.queue.push_back(Event::Looked(key, Box::new(look))),
            Err(error) if error.is_vanished() => self.vanished(key),
            Err(error) => log::debug!("{error}"),
        }
    }

    fn vanished(&mut self, key: u64) {
        let Some(watched) = self.groups.get_mut(&key) else { return };
        if std::mem::replace(&mut watched.gone, true) {
            return;
        }
        // Its eventfd is heard until it is forgotten: what was signalled before it was removed may be yet to be read.
        self.queue.push_back(Event::Above(key, watched.group.above_levels()));
        watched.group.is_removed();
        self.queue.push_back(Event::Vanished(key));
        self.ended(key);
    }

    /// What one that nobody emptied left behind is swept in a while.
    fn ended(&mut self, key: u64) {
        if let (Some(sweeper), Some(watched)) = (&self.sweeper, self.groups.get_mut(&key))
            && let Some(exits) = sweeper.exits()
            && !std::mem::replace(&mut watched.ended, true)
        {
            exits.ended(watched.parent.clone(), false);
        }
    }

    /// Works off what has happened, and what the books ask for because of it.
    fn work(&mut self, tell: &mut impl FnMut(Told)) {
        let mut actions = Vec::new();
        while let Some(event) = self.queue.pop_front() {
            self.ledger.handle(stamp(self.start), event, &mut actions);
            for action in actions.drain(..) {
                match action {
                    Action::Look(key, all) => {
                        self.look(key, all);
                        // Memory is running out: who is in it may be the next.
                        if let Some(watched) = self.groups.get_mut(&key).filter(|it| !it.gone) {
                            watched.group.remember_members();
                        }
                    }
                    Action::Write { key, record, new } => {
                        self.write(&record);
                        if new && record.kills > 0 {
                            let usage = self.groups.get(&key).map(|watched| watched.group.usage());
                            let usage = usage.unwrap_or_default();
                            let counter = record.oom_kill_counter;
                            tell(Told::Killed(key, record.kills, usage, counter));
                        }
                    }
                    Action::Announce(key, record) => tell(Told::Record(key, record)),
                    Action::Forget(key) => {
                        self.drop_group(key);
                        tell(Told::Forgotten(key));
                    }
                }
            }
        }
    }

    fn write(&mut self, record: &crate::core::oom::Record) {
        let Some(store) = &mut self.store else { return };
        match store.write(record) {
            Ok(()) => self.store_failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.store_failed, true) {
                    log::warn!(
                        "an OOM record cannot be written: {}: {error}",
                        store.dir().display()
                    );
                }
            }
        }
    }
}

/// Whether this process sees the pids that the kernel logs (`PROC_PID_INIT_INO`).
fn in_initial_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

//! The real-time thread: it thaws, times the window, and freezes. Nothing else.
//!
//! What decides how near to the kernel's curve an emulation comes is the leak of a thaw: what tasks
//! charge between the thaw and the next freeze. Measured on 6.18 with tasks that fill memory as fast as
//! they can: 6 MiB in the 90th percentile and 14 at worst from a thread at normal priority, 0.25 MiB
//! at worst from one at SCHED_FIFO. So this thread runs at real-time priority, with its memory locked,
//! and every round of its loop is a few system calls on open files: no allocation, no lock, no log.
//!
//! It never freezes for longer than [`LONGEST`], whatever it is told, and thaws on its own: whoever looks
//! at each task's growth and decides how long a pulse is to last does so while the tasks are frozen, and
//! may be late.

use super::FreezeJournal;
use crate::core::throttle::{
    Curve, IGNORED, LONGEST, Level, MOST_LEVELS, NAP, Pace, Throttle, WINDOW,
};
use crate::driver::sys;
use cgroupfs::Bytes;
use cgroupfs::events::Notification;
use cgroupfs::freezer::Switch;
use cgroupfs::memory::Memory;
use cgroupfs::procfs::{Task, TaskStat};
use cgroupfs::units::page_size;
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A window in which nothing is granted, as there is debt left, is over after so long: the kernel, too, lets
/// tasks run between two sleeps of 2 s.
const CHANCE: Duration = Duration::from_millis(2);

/// A group that has not grown by [`GROWS`] for so long is quiet: its windows are no longer timed.
const QUIET: Duration = Duration::from_millis(300);
const GROWS: Bytes = Bytes::kib(64);

/// How often somebody who has been killed is looked for in a pulse: nobody can die frozen. One look is at so great
/// a part of the processes, in turn: who ends a container kills all of them.
const KILLED: Duration = Duration::from_millis(6);
const PARTS: usize = 2;

/// How long they are given to die, and where they have not had a CPU yet. The first process of a container, once it
/// dies, kills the others: that is waited for as well.
const DYING: Duration = Duration::from_millis(20);
const DYING_WITHOUT_CPU: Duration = Duration::from_millis(200);
const OTHERS: Duration = Duration::from_millis(2);

/// For how long nobody is waited for any more when that was not enough (they wait for a disk, say): at first, and
/// at most.
const PATIENCE: Duration = Duration::from_millis(50);
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// No more processes are looked at.
const WATCHED: usize = 128;

/// What a window is timed by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Throttling above these: the container's own first, then those of the groups above it.
    pub(super) bars: [Bar; MOST_LEVELS],
    /// Frozen again after so much growth.
    pub(super) quota: Bytes,
    /// So many grow, by so many pages at once.
    pub(super) growers: u64,
    pub(super) unit: u64,
    /// Debt carried over from before the window.
    pub(super) carried: Duration,
}

impl Terms {
    fn change(&mut self, bars: [Bar; MOST_LEVELS], free: bool) {
        self.bars = bars;
        if free {
            self.carried = Duration::ZERO;
        }
    }
}

/// One group's part in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bar {
    /// Throttling above this.
    pub(super) high: Bytes,
    /// The part of usage that is not slept on.
    pub(super) reclaimable: Bytes,
}

impl Bar {
    /// Nobody is throttled.
    pub(super) const NONE: Bar = Bar { high: Bytes(u64::MAX), reclaimable: Bytes(0) };

    fn level(self, usage: Bytes) -> Level {
        Level { usage: usage.saturating_sub(self.reclaimable), high: self.high }
    }
}

/// To the thread.
#[derive(Clone)]
pub(super) enum Order {
    /// Time windows, on these terms, once this threshold is crossed. Whoever orders this keeps the
    /// threshold too: closing it is not for this thread.
    Await(Arc<Notification>, Terms),
    /// Time windows, on these terms.
    Open(Terms),
    /// Other highs, whatever goes on; if usage is above none of them (`true`), nothing is owed, and a pulse is over.
    Change([Bar; MOST_LEVELS], bool),
    /// End pulse number so-and-so then, and go on with these terms.
    ThawAt(u64, Instant, Terms),
    /// Thaw, and wait for the next order.
    Park,
    /// Thaw, and end.
    Stop,
}

/// From the thread.
#[derive(Debug, Clone, Copy)]
pub(super) enum Report {
    /// The threshold was crossed: windows are timed.
    Crossed,
    /// Frozen, as pulse number so-and-so, with usage at this then; the group had grown by so much since
    /// it was thawed last.
    Frozen { pulse: u64, at: Instant, usage: Bytes, grown: Bytes },
    /// Thawed again, after so long; how much later than was due. Or sooner, as somebody was killed.
    Thawed { at: Instant, frozen: Duration, late: Duration, killed: bool },
    /// It does not grow any more, or is back at high: the thread waits for an order.
    Quiet,
    /// Nothing is frozen, as ordered.
    Parked,
    /// The kernel refused: the group is gone, most likely. The thread waits for an order.
    Refused(Errno),
}

/// The thread's handle.
pub(super) struct Pulser {
    orders: Sender<Order>,
    reports: Receiver<Report>,
    kick: Arc<EventFd>,
    wake: Arc<EventFd>,
    watched: Arc<Mutex<Vec<Arc<Task>>>>,
    thread: Option<JoinHandle<()>>,
    /// Whether it runs at real-time priority; the errno if that was refused.
    pub(super) real_time: Result<(), Errno>,
}

/// What the thread works with.
struct Pulse {
    switch: Switch,
    memory: Arc<dyn Memory>,
    /// Of the groups above that have a high, too.
    above: Vec<Arc<dyn Memory>>,
    curve: Curve,
    journal: Arc<dyn FreezeJournal>,
    orders: Receiver<Order>,
    reports: Sender<Report>,
    kick: Arc<EventFd>,
    wake: Arc<EventFd>,
    /// A task of each process that is frozen.
    watched: Arc<Mutex<Vec<Arc<Task>>>>,
    /// Nobody who has been killed is waited for until then, and for how long the next time.
    impatient: Option<Instant>,
    patience: Duration,
    /// Who of them is looked at next.
    next_watched: Cell<usize>,
    pulse: u64,
    /// The last pulse was shorter than any that is due.
    short: bool,
    /// Usage when the last pulse held.
    frozen_at: Bytes,
    real_time: bool,
    /// Where real time is refused, usage just before the last thaw: who is thawed may have this thread's CPU to the next
    /// tick, before it has returned from that. (Measured on 6.18, real time refused, four growers on two CPUs: 10 to 60
    /// MiB a pulse, which nobody paid for.)
    thawed_with: Option<Bytes>,
    cpus: u64,
    /// The growers have another CPU while this thread has one, and it keeps it.
    may_spin: bool,
}

impl Pulser {
    /// Starts the thread.
    pub(super) fn start(
        switch: Switch,
        memory: Arc<dyn Memory>,
        above: Vec<Arc<dyn Memory>>,
        curve: Curve,
        journal: Arc<dyn FreezeJournal>,
    ) -> nix::Result<Pulser> {
        // Bounded channels of small values never allocate once made.
        let (order, orders) = bounded(64);
        let (report, reports) = bounded(64);
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let (kick, wake) = (Arc::new(event()?), Arc::new(event()?));
        let watched = Arc::new(Mutex::new(Vec::new()));
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let mut pulse = Pulse {
            switch,
            memory,
            above,
            curve,
            journal,
            orders,
            reports: report,
            kick: kick.clone(),
            wake: wake.clone(),
            watched: watched.clone(),
            impatient: None,
            patience: PATIENCE,
            next_watched: Cell::new(0),
            pulse: 0,
            short: false,
            frozen_at: Bytes(0),
            real_time: true,
            thawed_with: None,
            cpus,
            may_spin: cpus > 1,
        };
        let (said, real_time) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("cgshim-pulse".into())
            .stack_size(128 << 10)
            .spawn(move || {
                sys::block_signals();
                let real_time = sys::become_real_time();
                pulse.real_time = real_time.is_ok();
                if real_time.is_err() {
                    // Who spins uses its slice up, and who yields gives a CPU away to the next tick (measured on 6.18:
                    // windows of 3.9 ms); who has slept, with a short one, has a CPU at once.
                    pulse.may_spin = false;
                    sys::ask_for_short_slices(true);
                }
                let _ = said.send(real_time);
                pulse.run();
            })
            .map_err(|_| Errno::EAGAIN)?;
        let real_time = real_time.recv().unwrap_or(Err(Errno::ESRCH));
        let thread = Some(thread);
        Ok(Pulser { orders: order, reports, kick, wake, watched, thread, real_time })
    }

    /// Has it look at these, a task of each process, whether they have been killed.
    pub(super) fn watch(&self, tasks: impl Iterator<Item = Arc<Task>>) {
        let tasks: Vec<_> = tasks.take(WATCHED).collect();
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *watched, tasks);
        drop(watched);
        // Files are closed while nobody waits for us.
        drop(before);
    }

    /// Readable when there is a report.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn order(&self, order: Order) {
        // A full queue is one of a thread that gets no time; it thaws on its own.
        let _ = self.orders.try_send(order);
        let _ = self.kick.write(1);
    }

    /// The next report, if there is one.
    pub(super) fn report(&self) -> Option<Report> {
        if let Ok(report) = self.reports.try_recv() {
            return Some(report);
        }
        // What comes between the two is not missed: the event is taken first, then looked again.
        let _ = self.wake.read();
        self.reports.try_recv().ok()
    }

    /// Whether there is one.
    pub(super) fn has_report(&self) -> bool {
        !self.reports.is_empty()
    }

    /// Whether it is still there: false once it has panicked.
    pub(super) fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Pulser {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                self.order(Order::Stop);
                // It is at most a nap away.
                std::thread::sleep(NAP);
                while self.reports.try_recv().is_ok() {}
            }
            let _ = thread.join();
        }
    }
}

/// Thaws when dropped: on every way out of the thread, a panic included.
struct Thawed<'a>(&'a Switch, &'a dyn FreezeJournal);

impl Drop for Thawed<'_> {
    fn drop(&mut self) {
        let _ = self.0.thaw();
        self.1.end();
    }
}

/// What ends a stretch of work.
enum Next {
    Park,
    Stop,
}

impl Pulse {
    fn run(mut self) {
        let mut awaited: Option<(Arc<Notification>, Terms)> = None;
        loop {
            let order = self.next_order(None, awaited.as_ref().map(|(threshold, _)| &**threshold));
            let terms = match order {
                Some(Order::Open(terms)) => terms,
                Some(Order::Await(threshold, terms)) => {
                    awaited = Some((threshold, terms));
                    continue;
                }
                Some(Order::Stop) => return,
                Some(Order::Park) => {
                    awaited = None;
                    self.say(Report::Parked);
                    continue;
                }
                Some(Order::Change(bars, free)) => {
                    if let Some((_, terms)) = &mut awaited {
                        terms.change(bars, free);
                    }
                    continue;
                }
                Some(Order::ThawAt(..)) => continue,
                None => match &awaited {
                    Some((threshold, terms)) if threshold.take() => {
                        self.say(Report::Crossed);
                        *terms
                    }
                    _ => continue,
                },
            };
            awaited = None;
            match self.work(terms) {
                Next::Stop => return,
                Next::Park => self.say(Report::Parked),
            }
        }
    }

    /// Windows and pulses by turns, until told otherwise or the group is quiet.
    fn work(&mut self, mut terms: Terms) -> Next {
        self.thawed_with = None;
        loop {
            let frozen = match self.window(&mut terms) {
                Ok(frozen) => frozen,
                Err(next) => return next,
            };
            if let Err(next) = self.pulse(frozen, &mut terms) {
                return next;
            }
        }
    }

    /// A window. `Ok` when a pulse is due, with its length as far as it can be told from here.
    fn window(&mut self, terms: &mut Terms) -> Result<Due, Next> {
        let usage = match self.thawed_with.take() {
            Some(usage) => usage,
            None => self.usage()?,
        };
        let mut base = self.base(usage, terms);
        let mut start = Instant::now();
        let mut moved = (start, usage);
        let mut last = (start, usage);
        // With debt left, or after a pulse that was cut short: they get a chance to run all the same.
        let (length, least) = match self.short || terms.carried > Duration::ZERO {
            true => (CHANCE, GROWS),
            false => (WINDOW, Bytes(0)),
        };
        terms.quota = terms.quota.max(least);
        let opened = start;
        let mut pace = Pace::thawed(terms.unit, self.may_spin);
        let mut nap = pace.nap(Bytes(0), Duration::ZERO);
        loop {
            match self.next_order(Some(nap), None) {
                Some(Order::Open(new)) => *terms = new,
                Some(Order::Change(bars, free)) => terms.change(bars, free),
                Some(Order::Park) => return Err(Next::Park),
                Some(Order::Stop) => return Err(Next::Stop),
                Some(Order::ThawAt(..) | Order::Await(..)) | None => {}
            }
            let (now, usage) = (Instant::now(), self.usage()?);
            let levels = self.levels(usage, terms);
            let f = levels.iter().map(Level::overage).fold(0.0, f64::max);
            let costs = self.curve.sleep(f, terms.unit);
            if costs == Duration::ZERO && terms.carried == Duration::ZERO {
                // Free growth is no debt later on.
                base = usage;
                start = now;
            }
            let grown = usage.saturating_sub(base);
            if grown >= terms.quota || now - start >= length {
                let due = Throttle::estimate(self.curve, f, grown, terms.growers, terms.unit)
                    + terms.carried;
                if due > Duration::ZERO {
                    let length = due.min(LONGEST);
                    // Unless somebody who knows better tells in time.
                    terms.carried = due - length;
                    return Ok(Due { length, usage, grown });
                }
                start = now;
            }
            if usage.0.abs_diff(moved.1.0) >= GROWS.0 {
                moved = (now, usage);
            } else if now - moved.0 >= QUIET && terms.carried == Duration::ZERO {
                self.say(Report::Quiet);
                return Err(Next::Park);
            }
            let room = match costs {
                Duration::ZERO => self.free_room(&levels, terms),
                _ => terms.quota.saturating_sub(grown),
            };
            pace.napped(now - last.0, usage.saturating_sub(last.1));
            last = (now, usage);
            nap = pace.nap(room, now - opened);
        }
    }

    /// From where growth counts in a window that begins with this usage. What a CPU has charged ahead goes back while
    /// its tasks are frozen, as soon as it charges for another group: filling that up again is no growth. (Measured
    /// on a busy machine: two windows of three were over after 2 pages.)
    fn base(&self, usage: Bytes, terms: &Terms) -> Bytes {
        let given_back = self.frozen_at.saturating_sub(usage);
        let most = self.cpus.min(terms.growers) * self.curve.batch() * page_size();
        // More than that was reclaimed.
        if given_back.0 <= most { usage.saturating_add(given_back) } else { usage }
    }

    /// The container's own and those above it, with this in use by the container.
    fn levels(&self, usage: Bytes, terms: &Terms) -> [Level; MOST_LEVELS] {
        let mut levels = [Level::NONE; MOST_LEVELS];
        levels[0] = terms.bars[0].level(usage);
        let above = self.above.iter().zip(terms.bars.iter().skip(1));
        for (level, (memory, bar)) in levels.iter_mut().skip(1).zip(above) {
            // One that is gone takes us with it soon enough.
            if let Ok(usage) = memory.usage() {
                *level = bar.level(usage);
            }
        }
        levels
    }

    /// How far it is to where growth costs something.
    fn free_room(&self, levels: &[Level], terms: &Terms) -> Bytes {
        let free_until = self.curve.free_until(terms.unit);
        let room = |level: &Level| {
            let free = (level.high.0 as f64 * free_until) as u64;
            level.high.saturating_add(Bytes(free)).saturating_sub(level.usage)
        };
        levels.iter().map(room).min().unwrap_or_default()
    }

    /// Freezes, waits, thaws. `terms` are those of the next window.
    fn pulse(&mut self, due: Due, terms: &mut Terms) -> Result<(), Next> {
        self.pulse += 1;
        let pulse = self.pulse;
        let journal = self.journal.clone();
        // Journalled before it is done, with the time by which it must be over.
        journal.begin(due.length);
        let thawed = Thawed(&self.switch, &*journal);
        let froze = self.switch.freeze();
        let at = Instant::now();
        if let Err(errno) = froze {
            drop(thawed);
            self.say(Report::Refused(errno));
            return Err(Next::Park);
        }
        self.say(Report::Frozen { pulse, at, usage: due.usage, grown: due.grown });
        let mut until = at + due.length;
        self.frozen_at = due.usage;
        let mut killed = false;
        let next = loop {
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break None;
            }
            match self.next_order(Some(left.min(KILLED)), None) {
                None if self.somebody_is_killed() => {
                    killed = true;
                    break None;
                }
                Some(Order::ThawAt(number, when, new)) if number == pulse => {
                    // In the journal too if it is shorter: whoever undoes it is not to wait for longer.
                    let before = std::mem::replace(&mut until, when.min(at + LONGEST));
                    if before != until {
                        self.journal.begin(until.saturating_duration_since(Instant::now()));
                    }
                    *terms = new;
                    // What leaked until it held is paid for already.
                    self.frozen_at = self.usage().unwrap_or(due.usage).max(due.usage);
                }
                Some(Order::Change(bars, free)) => {
                    terms.change(bars, free);
                    if free {
                        until = until.min(Instant::now());
                    }
                }
                Some(Order::Park) => break Some(Next::Park),
                Some(Order::Stop) => break Some(Next::Stop),
                Some(Order::ThawAt(..) | Order::Open(_) | Order::Await(..)) | None => {}
            }
        };
        self.thawed_with = if self.real_time { None } else { self.usage().ok() };
        drop(thawed);
        let now = Instant::now();
        if killed {
            self.let_die(now);
        }
        self.short = now - at < IGNORED / 2;
        let late = now.saturating_duration_since(until);
        self.say(Report::Thawed { at: now, frozen: now - at, late, killed });
        next.map_or(Ok(()), Err)
    }

    /// Looks at some of those who are frozen.
    fn somebody_is_killed(&self) -> bool {
        if self.impatient.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        // Whoever holds the lock may not have a CPU.
        let Ok(watched) = self.watched.try_lock() else { return false };
        let part = watched.len().div_ceil(PARTS);
        let next = self.next_watched.get();
        let first = if next < watched.len() { next } else { 0 };
        self.next_watched.set(first + part);
        let mut some = watched.iter().skip(first).take(part);
        some.any(|task| task.stat().is_some_and(|stat| stat.killed()))
    }

    /// Of those who have been killed, and are not dying yet: the state of one, of one that only waits for a CPU if
    /// there is one.
    fn about_to_die(&self) -> Option<u8> {
        let watched = self.watched.try_lock().ok()?;
        let stats = watched.iter().filter_map(|task| task.stat());
        let states = stats.filter(TaskStat::killed).map(|stat| stat.state);
        states.max_by_key(|state| *state == b'R')
    }

    /// Lets those run who have been killed, as a window may be too short to die in.
    fn let_die(&mut self, start: Instant) {
        let mut seen = start;
        loop {
            std::thread::sleep(Duration::from_millis(1));
            let (now, state) = (Instant::now(), self.about_to_die());
            let longest = if state == Some(b'R') { DYING_WITHOUT_CPU } else { DYING };
            match state {
                None if now - seen >= OTHERS || now - start >= longest => {
                    self.patience = PATIENCE;
                    return;
                }
                Some(_) if now - start >= longest => {
                    self.impatient = Some(now + self.patience);
                    self.patience = (self.patience * 2).min(LEAST_PATIENCE);
                    return;
                }
                None => {}
                Some(_) => seen = now,
            }
        }
    }

    /// Waits for an order, or that a threshold is crossed, `patience` at most.
    fn next_order(
        &self,
        patience: Option<Duration>,
        threshold: Option<&Notification>,
    ) -> Option<Order> {
        if let Ok(order) = self.orders.try_recv() {
            return Some(order);
        }
        if patience == Some(Duration::ZERO) {
            // Other containers' threads like this one would wait for as long as this one spins.
            std::thread::yield_now();
            return None;
        }
        let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // Without a threshold the same one twice.
        let second = threshold.map_or(self.kick.as_fd(), AsFd::as_fd);
        let mut fds = [watched(self.kick.as_fd()), watched(second)];
        let ready = ppoll(&mut fds, patience.map(TimeSpec::from_duration), None);
        if ready.is_ok_and(|n| n > 0) {
            let _ = self.kick.read();
        }
        self.orders.try_recv().ok()
    }

    fn usage(&self) -> Result<Bytes, Next> {
        self.memory.usage().map_err(|error| {
            self.say(Report::Refused(error.errno().unwrap_or(Errno::ENODEV)));
            Next::Park
        })
    }

    fn say(&self, report: Report) {
        let _ = self.reports.try_send(report);
        let _ = self.wake.write(1);
    }
}

/// A pulse that is due.
struct Due {
    length: Duration,
    usage: Bytes,
    grown: Bytes,
}

//! Emptying a container's cache as its init exits, so that no dying group is left behind: cached pages pin
//! a removed group (4.19 through 6.18).
//!
//! The runtime's rmdir waits for a write in flight, with `cgroup_mutex` held (law 9). So on v1 it is not
//! `memory.force_empty` that is written: that first waits for kernel threads on every CPU
//! (`lru_add_drain_all()`; measured on a loaded host: 11 ms in the median, 211 at worst), and through 5.15 up
//! to 100 ms more where nothing can be had (`congestion_wait()`). A limit of 0 makes the kernel reclaim the
//! same pages in this thread, and nothing but this thread is needed: it runs at real-time priority, and an
//! alarm ends the write after [`BOUND`]. The step is journaled, and undone at once, as every other (law 1).
//! On v2 `memory.reclaim` is written, and before 5.19, where there is none, a `memory.high` of 0 in the same way.
//! What it does not get is left to the sweep. The files were opened at registration: the directory may be
//! gone by now.

use super::Deeds;
use super::batches::{Cpus, Visitor};
use super::sweep::Exits;
use crate::core::oom::emptying::{
    Emptying, InFlight, Leave, Next, Seen, With, decide, may_lower, next,
};
use crate::driver::sys;
use crate::journal::{Deadline, Slot, Step, StepFile, Swappiness};
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, Version};
use cgroupfs::{Bytes, Cgroup, Limit, flat};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a write may take. Measured on 6.18: 4 MiB that was read take 0.2 ms.
const BOUND: Duration = Duration::from_millis(5);

/// So little is emptied by whoever sees the exit: being handed over takes 30 us, and 250 where another CPU sleeps deeply,
/// and a runtime may be at the `rmdir` 200 us after the exit (runc 1.1 on 6.18). 4 MiB take 150 us.
const LITTLE: Bytes = Bytes::mib(8);

/// How long that may take: there may be other containers' OOMs to be seen.
const LITTLE_BOUND: Duration = Duration::from_millis(1);

/// One that has waited for so long finds its group removed.
const TOO_LATE: Duration = Duration::from_millis(20);

/// Containers that wait to be emptied: the last of more would come too late, as each takes a fraction of a millisecond.
const MOST_JOBS: usize = 64;

/// How long a worker's write, which was told to end, is waited for.
const FLIGHT_PATIENCE: Duration = Duration::from_millis(2);

/// The guardian undoes what has stood for so long.
const LEASE: Duration = Duration::from_millis(100);

/// Why a group was not emptied. All of it is fine.
#[derive(Debug)]
enum NotEmpty {
    /// It was better left.
    Left(Leave),
    /// EINTR: its time was up. EBUSY: pages stay. EAGAIN: v2 got less. ENODEV: the group is gone.
    Refused(Errno),
}

impl From<Leave> for NotEmpty {
    fn from(leave: Leave) -> NotEmpty {
        NotEmpty::Left(leave)
    }
}

impl From<Errno> for NotEmpty {
    fn from(errno: Errno) -> NotEmpty {
        NotEmpty::Refused(errno)
    }
}

/// What emptying takes.
pub(super) struct Files {
    file: Knob,
    with: With,
    memory: Arc<dyn Memory>,
    stat: Knob,
    procs: Knob,
    /// v1: nothing is to be swapped for this.
    swappiness: Option<Knob>,
    kmem: Option<Knob>,
    deeds: Arc<Deeds>,
    v1: bool,
}

impl Files {
    /// Opens them; `None` where this kernel has nothing for it, or it is not ours to write.
    pub(super) fn open(
        group: &Arc<Cgroup>,
        memory: &Arc<dyn Memory>,
        deeds: &Arc<Deeds>,
    ) -> Option<Files> {
        let dir: Arc<dyn ControlDir> = group.clone();
        let v1 = memory.version() == Version::V1;
        let (with, file, access) = match (v1, dir.has("memory.reclaim")) {
            (true, _) => (With::Limit, "memory.limit_in_bytes", Access::ReadWrite),
            (false, true) => (With::Reclaim, "memory.reclaim", Access::Write),
            (false, false) => (With::High, "memory.high", Access::ReadWrite),
        };
        Some(Files {
            file: Knob::open(&dir, file, access).ok()?,
            with,
            memory: memory.clone(),
            stat: Knob::open(&dir, "memory.stat", Access::Read).ok()?,
            procs: Knob::open(&dir, "cgroup.procs", Access::Read).ok()?,
            swappiness: match v1 {
                true => Knob::open(&dir, "memory.swappiness", Access::ReadWrite).ok(),
                false => None,
            },
            kmem: Knob::open(&dir, "memory.kmem.usage_in_bytes", Access::Read).ok(),
            deeds: deeds.clone(),
            v1,
        })
    }

    /// Empties it, unless [`decide`] has something against it: what came of that, for the log.
    ///
    /// The engine's task has so much `patience` to end; on `cpus` pages on their way to a list are looked for.
    fn write(&self, patience: Duration, cpus: Option<&Cpus>) -> Result<(), NotEmpty> {
        match decide(self.with, &self.look()?)? {
            Emptying::Nothing => Ok(()),
            Emptying::Reclaim(usage) => {
                Ok(self.file.raw().write(usage.0.to_string().as_bytes())?)
            }
            Emptying::Lower { without_swap } => {
                self.take_the_turn(patience)?;
                let emptied = self.lower(without_swap, cpus);
                self.deeds.end_emptying();
                emptied
            }
        }
    }

    fn look(&self) -> Result<Seen, Errno> {
        let gone = |error: cgroupfs::Error| error.errno().unwrap_or(Errno::ENODEV);
        let peopled = !self.procs.read().map_err(gone)?.is_empty();
        // In one pass: the runtime is on its way to the rmdir.
        let (mut to_write, mut anon) = (0, 0);
        for (key, value) in flat::entries(&self.stat.read().unwrap_or_default()) {
            match (self.v1, key) {
                (true, "total_dirty" | "total_writeback")
                | (false, "file_dirty" | "file_writeback") => to_write += value,
                (true, "total_inactive_anon" | "total_active_anon")
                | (false, "inactive_anon" | "active_anon") => anon += value,
                _ => {}
            }
        }
        let usage = self.memory.usage().unwrap_or_default();
        Ok(Seen { peopled, to_write: Bytes(to_write), anon: Bytes(anon), usage })
    }

    /// A task of the engine's was told to end, and has a moment for it.
    fn take_the_turn(&self, patience: Duration) -> Result<(), Leave> {
        let since = Instant::now();
        while !self.deeds.begin_emptying() {
            if since.elapsed() >= patience {
                return Err(Leave::NotOurTurn);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// A limit, or `memory.high`, of 0, once or twice. No other task lowers it meanwhile.
    fn lower(&self, without_swap: bool, cpus: Option<&Cpus>) -> Result<(), NotEmpty> {
        let slot = self.deeds.slot();
        may_lower(slot.as_ref().map(|slot| {
            let found = slot.in_flight();
            InFlight {
                step: found.step.is_some(),
                swappiness: found.swappiness.is_some(),
                damaged: found.damaged,
            }
        }))?;
        let slot = slot.ok_or(Leave::NoJournal)?;
        let swappiness = if without_swap { self.without_swap(&slot) } else { None };
        // At once: from here on the runtime's rmdir waits, and before it would win.
        let mut tries = 0;
        let emptied = loop {
            tries += 1;
            let busy = match self.step(&slot) {
                Ok(()) => false,
                Err(Errno::EBUSY) => true,
                Err(errno) => break Err(errno.into()),
            };
            match (next(busy, self.pages(), tries), cpus) {
                (Next::Empty, _) => break Ok(()),
                (Next::DrainAndAgain, Some(cpus)) => cpus.drain(|| None),
                (Next::DrainAndAgain, None) | (Next::Left, _) => break Err(Errno::EBUSY.into()),
            }
        };
        // A group that is used again, as systemd does, is as it was.
        if let (Some(value), Some(knob)) = (swappiness, &self.swappiness) {
            let _ = knob.raw().write(value.to_string().as_bytes());
            slot.end_swappiness();
        }
        emptied
    }

    /// What is charged to it without the kernel's own.
    fn pages(&self) -> Bytes {
        let kmem = self.kmem.as_ref().and_then(|knob| knob.read_u64().ok()).unwrap_or(0);
        self.memory.usage().unwrap_or_default().saturating_sub(Bytes(kmem))
    }

    fn without_swap(&self, slot: &Slot) -> Option<u64> {
        let knob = self.swappiness.as_ref()?;
        let before = knob.read_u64().ok().filter(|value| *value > 0)?;
        slot.begin_swappiness(Swappiness { before, deadline: Deadline::after(LEASE) });
        let _ = knob.raw().write(b"0");
        Some(before)
    }

    /// What stands in the file that is lowered.
    fn standing(&self) -> cgroupfs::Result<Limit> {
        match self.v1 {
            true => self.file.read_u64().map(Limit::from_v1),
            false => self.file.read_limit_v2(),
        }
    }

    /// A limit of 0, which takes all there is, and the declared one at once.
    fn step(&self, slot: &Slot) -> Result<(), Errno> {
        let standing = self.standing().map_err(|_| Errno::ENODEV)?;
        let written = Bytes(0);
        slot.begin_step(Step {
            file: if self.v1 { StepFile::Limit } else { StepFile::High },
            declared: standing,
            written,
            deadline: Deadline::after(LEASE),
        });
        let lowered = self.file.raw().write(b"0");
        if lowered.is_ok() {
            let text = if self.v1 { standing.to_v1() } else { standing.to_v2() };
            loop {
                // Foreign writes win.
                if self.standing().is_ok_and(|now| now != Limit::Bytes(written)) {
                    break;
                }
                match self.file.raw().write(text.as_bytes()) {
                    // A raise that a signal interrupted did nothing.
                    Err(Errno::EINTR) => {}
                    Ok(()) | Err(Errno::ENODEV) => break,
                    Err(errno) => {
                        // It stays in the journal: the guardian is at it as soon as its time is up.
                        log::error!("limit {text} not restored after emptying: {errno}");
                        return Err(errno);
                    }
                }
            }
        }
        slot.end_step();
        lowered
    }
}

/// Who ends a write that takes too long.
enum EndedBy<'a> {
    /// An alarm, after so long.
    Alarm(&'a sys::Alarm, Duration),
    /// [`Visitor::looks_after`].
    Visitor,
}

struct Job {
    files: Files,
    since: Instant,
    parent: Option<Arc<Path>>,
    exits: Exits,
}

impl Job {
    /// Does it, ended by `ended`.
    fn write(
        &self,
        ended: EndedBy<'_>,
        patience: Duration,
        cpus: Option<&Cpus>,
    ) -> Result<(), NotEmpty> {
        let began = Instant::now();
        let write = || self.files.write(patience, cpus);
        let wrote = match ended {
            EndedBy::Alarm(alarm, bound) => alarm.within(bound, write),
            EndedBy::Visitor => sys::until_interrupted(write),
        };
        log::debug!(
            "emptied in {:.1?}, begun after {:.1?}: {wrote:?}",
            began.elapsed(),
            began - self.since
        );
        wrote
    }

    /// Tells the sweeper what came of it.
    fn done(self, emptied: bool) {
        self.exits.ended(self.parent, emptied);
    }
}

/// Empties what ends: what holds little at once, in the calling thread, all else in one of its own.
pub(super) struct Emptier {
    /// The calling thread's; `None` if no timer was to be had.
    alarm: Option<sys::Alarm>,
    cpus: Option<Cpus>,
    visitor: Option<Visitor>,
    jobs: Option<Sender<Job>>,
    /// Started with the first that has something to do.
    thread: Option<JoinHandle<()>>,
    real_time: bool,
}

impl Emptier {
    /// One for the calling thread.
    pub(super) fn new(real_time: bool) -> Emptier {
        let writer = sys::become_interruptible();
        let cpus = Some(Cpus::find()).filter(Cpus::are_few);
        let visitor = real_time.then(|| Visitor::start(writer, LITTLE_BOUND)).flatten();
        Emptier {
            alarm: sys::Alarm::new().ok(),
            cpus,
            visitor,
            jobs: None,
            thread: None,
            real_time,
        }
    }

    /// One whose init `pidfd` is may have to be emptied.
    pub(super) fn expect(&self, pidfd: BorrowedFd<'_>) {
        if let Some(visitor) = &self.visitor {
            visitor.hears_of(pidfd);
        }
    }

    /// Empties a group in `parent` as soon as can be, and tells the sweeper what came of it.
    ///
    /// `busy`: the caller has something else to do.
    pub(super) fn empty(
        &mut self,
        files: Files,
        parent: Option<Arc<Path>>,
        exits: Exits,
        busy: bool,
    ) {
        let job = Job { files, since: Instant::now(), parent, exits };
        let little = || job.files.memory.usage().is_ok_and(|usage| usage <= LITTLE);
        if let Some(alarm) = self.alarm.as_ref().filter(|_| !busy && little()) {
            let write = |looked_after| {
                let ended = match looked_after {
                    true => EndedBy::Visitor,
                    false => EndedBy::Alarm(alarm, LITTLE_BOUND),
                };
                job.write(ended, Duration::ZERO, self.cpus.as_ref())
            };
            let wrote = match &self.visitor {
                Some(visitor) => visitor.looks_after(write),
                None => write(false),
            };
            match wrote {
                // The rest is for who has time for it.
                Err(NotEmpty::Refused(Errno::EINTR | Errno::EBUSY | Errno::EAGAIN))
                | Err(NotEmpty::Left(Leave::NotOurTurn)) => {}
                wrote => return job.done(wrote.is_ok()),
            }
        }
        if self.jobs.is_none() {
            self.spawn();
        }
        if let Some(jobs) = &self.jobs
            // Full: it would come too late anyway.
            && let Err(TrySendError::Full(job)) = jobs.try_send(job)
        {
            job.done(false);
        }
    }

    fn spawn(&mut self) {
        let (jobs, queue) = bounded(MOST_JOBS);
        let real_time = self.real_time;
        let thread = std::thread::Builder::new()
            .name("cgshim-empty".into())
            .stack_size(128 << 10)
            .spawn(move || work(&queue, real_time));
        match thread {
            Ok(thread) => (self.thread, self.jobs) = (Some(thread), Some(jobs)),
            Err(error) => log::warn!("ended containers are not emptied: {error}"),
        }
    }
}

fn work(queue: &Receiver<Job>, real_time: bool) {
    sys::become_interruptible();
    let alarm = match sys::Alarm::new() {
        Ok(alarm) => alarm,
        Err(errno) => return log::warn!("ended containers are not emptied: no timer: {errno}"),
    };
    if real_time && let Err(errno) = sys::may_be_real_time() {
        log::debug!("emptying at normal priority: {errno}");
    }
    let cpus = Cpus::find();
    while let Ok(job) = queue.recv() {
        let in_time = job.since.elapsed() < TOO_LATE;
        let emptied = in_time
            && job.write(EndedBy::Alarm(&alarm, BOUND), FLIGHT_PATIENCE, Some(&cpus)).is_ok();
        job.done(emptied);
    }
}

impl Drop for Emptier {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! Emptying a container's cache as its init exits, so that no dying group is left behind: cached pages pin
//! a removed group (4.19 through 6.18).
//!
//! The runtime's rmdir waits for a write in flight, with `cgroup_mutex` held (law 9): so a write is ended by
//! a signal after [`BOUND`], and is not begun where it would come late. What it does not get is left to the
//! kernel. The files were opened at registration: the directory may be gone by now.

use crate::driver::sys;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, Version};
use cgroupfs::{Cgroup, flat};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a write may take. Measured on 6.18: emptying 4 MiB that was read takes 2 to 6 ms at most, and
/// rmdir waits as long.
const BOUND: Duration = Duration::from_millis(6);

/// One that has waited for so long finds its group removed.
const TOO_LATE: Duration = Duration::from_millis(20);

/// One that slept so much longer than it was allowed waited in the kernel.
const STALLED: Duration = Duration::from_millis(20);

/// With more than this to be written to disk, a group is left to the sweep: a pass of the kernel's (32
/// pages) must not find nothing else.
const MOST_DIRTY: u64 = 64 << 10;
const V1_DIRTY: (&str, &str) = ("total_dirty", "total_writeback");
const V2_DIRTY: (&str, &str) = ("file_dirty", "file_writeback");

/// After one that waited none is emptied for so long, and twice as long each time, up to the longest.
const ASIDE: Duration = Duration::from_secs(1);
const LONGEST_ASIDE: Duration = Duration::from_secs(600);

/// What emptying takes.
pub(super) struct Files {
    empty: Knob,
    memory: Arc<dyn Memory>,
    stat: Knob,
    procs: Knob,
    /// v1: nothing is to be swapped for this.
    swappiness: Option<Knob>,
    v1: bool,
}

impl Files {
    /// Opens them; `None` where this kernel has nothing for it, or it is not ours to write.
    pub(super) fn open(group: &Arc<Cgroup>, memory: &Arc<dyn Memory>) -> Option<Files> {
        let dir: Arc<dyn ControlDir> = group.clone();
        let v1 = memory.version() == Version::V1;
        let empty = if v1 { "memory.force_empty" } else { "memory.reclaim" };
        Some(Files {
            empty: Knob::open(&dir, empty, Access::Write).ok()?,
            memory: memory.clone(),
            stat: Knob::open(&dir, "memory.stat", Access::Read).ok()?,
            procs: Knob::open(&dir, "cgroup.procs", Access::Read).ok()?,
            swappiness: match v1 {
                true => Knob::open(&dir, "memory.swappiness", Access::ReadWrite).ok(),
                false => None,
            },
            v1,
        })
    }

    /// Empties it, unless somebody lives on in it: its memory is in use then. EINTR: its time was up.
    /// EAGAIN: it has dirty pages, or v2 got less. ENODEV: the group is gone. All of them are fine.
    fn write(&self) -> Result<(), Errno> {
        let procs = self.procs.read().map_err(|error| error.errno().unwrap_or(Errno::ENODEV))?;
        if !procs.is_empty() {
            return Err(Errno::EBUSY);
        }
        // Reclaim that meets them waits for the disk, up to 100 ms where nothing can end it.
        let stat = self.stat.read().unwrap_or_default();
        let (dirty, writeback) = if self.v1 { V1_DIRTY } else { V2_DIRTY };
        let waits = flat::get(&stat, dirty).unwrap_or(0) + flat::get(&stat, writeback).unwrap_or(0);
        if waits >= MOST_DIRTY {
            return Err(Errno::EAGAIN);
        }
        let before = self.swappiness.as_ref().and_then(|knob| knob.read_u64().ok());
        let set = |value: u64| {
            if let Some(knob) = &self.swappiness {
                let _ = knob.raw().write(value.to_string().as_bytes());
            }
        };
        if before.is_some_and(|value| value > 0) {
            set(0);
        }
        let amount = match self.v1 {
            true => "0".into(),
            false => self.memory.usage().unwrap_or_default().0.to_string(),
        };
        let wrote = match amount.as_str() {
            "0" if !self.v1 => Ok(()),
            amount => self.empty.raw().write(amount.as_bytes()),
        };
        // A group that is used again, as systemd does, is as it was.
        if let Some(value) = before.filter(|value| *value > 0) {
            set(value);
        }
        wrote
    }
}

/// Whether this kernel's `memory.force_empty` may wait where no signal ends it: up to 100 ms after each
/// pass that frees nothing (`congestion_wait()`, through 5.15). Then the runtime's rmdir would wait too.
///
/// The same change that took the wait out brought a tracepoint, so tracefs tells; without tracefs nobody
/// does, and a write that slept too long keeps the next ones from being made, for longer each time.
fn waits(tracefs: &[PathBuf]) -> bool {
    let events = tracefs.iter().map(|place| place.join("events/vmscan"));
    events
        .filter(|events| events.is_dir())
        .any(|events| !events.join("mm_vmscan_throttled").exists())
}

/// What is said where containers are not emptied.
pub(super) const STANDS_ASIDE: &str = "this kernel's memory.force_empty waits up to 100 ms where nothing can end it, and \
     rmdir with it: ended containers are not emptied at their exit, only swept later";

struct Job {
    files: Files,
    since: Instant,
}

/// The thread that writes. Started with the first container that ends.
pub(super) struct Emptier {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    real_time: bool,
    /// It would cost others more than it may on this kernel.
    stands_aside: bool,
}

impl Emptier {
    pub(super) fn new(real_time: bool, tracefs: &[PathBuf]) -> Emptier {
        Emptier { jobs: None, thread: None, real_time, stands_aside: waits(tracefs) }
    }

    /// Whether it empties nothing, as that would cost others more than it may.
    pub(super) fn stands_aside(&self) -> bool {
        self.stands_aside
    }

    /// Empties a group as soon as can be.
    pub(super) fn empty(&mut self, files: Files) {
        if self.stands_aside() {
            return;
        }
        if self.jobs.is_none() {
            self.spawn();
        }
        if let Some(jobs) = &self.jobs {
            // Full: it would come too late anyway.
            let _ = jobs.try_send(Job { files, since: Instant::now() });
        }
    }

    fn spawn(&mut self) {
        let (jobs, queue) = bounded(256);
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
    let (mut until, mut aside) = (Instant::now(), ASIDE);
    while let Ok(Job { files, since }) = queue.recv() {
        if since.elapsed() >= TOO_LATE || Instant::now() < until {
            continue;
        }
        let (began, on_cpu) = (Instant::now(), sys::thread_cpu());
        let wrote = alarm.within(BOUND, || files.write());
        let took = began.elapsed();
        log::debug!("emptied in {took:.1?}, begun after {:.1?}: {wrote:?}", began - since);
        // Asleep where no signal reached it; one that had no CPU is not to blame.
        let asleep = took.saturating_sub(sys::thread_cpu().saturating_sub(on_cpu));
        if asleep > BOUND + STALLED {
            log::debug!("not emptied for {aside:?}: one slept {asleep:.1?}");
            until = Instant::now() + aside;
            aside = (aside * 2).min(LONGEST_ASIDE);
        } else if wrote.is_ok() {
            aside = ASIDE;
        }
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

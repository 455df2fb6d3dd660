//! Emptying a container's cache as its init exits, so that no dying group is left behind: cached pages pin
//! a removed group (4.19 through 6.18).
//!
//! The runtime's rmdir waits for a write in flight, with `cgroup_mutex` held (law 9): so a write is ended by
//! a signal after [`BOUND`], and is not begun where it would come late. What it does not get is left to the
//! kernel. The files were opened at registration: the directory may be gone by now.

use crate::driver::sys;
use cgroupfs::Cgroup;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, Version};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a write may take. Measured on 6.18: emptying 4 MiB that was read takes 2 to 6 ms at most, and
/// rmdir waits as long.
const BOUND: Duration = Duration::from_millis(6);

/// One that has waited for so long finds its group removed.
const TOO_LATE: Duration = Duration::from_millis(20);

/// A write that was told to end is told again so often.
pub(super) const AGAIN: Duration = Duration::from_millis(1);

/// What emptying takes.
pub(super) struct Files {
    empty: Knob,
    memory: Arc<dyn Memory>,
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
            procs: Knob::open(&dir, "cgroup.procs", Access::Read).ok()?,
            swappiness: match v1 {
                true => Knob::open(&dir, "memory.swappiness", Access::ReadWrite).ok(),
                false => None,
            },
            v1,
        })
    }

    /// Empties it, unless somebody lives on in it: its memory is in use then.
    fn write(&self) {
        if !self.procs.read().is_ok_and(|procs| procs.is_empty()) {
            return;
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
        if amount != "0" || self.v1 {
            // EINTR: told to end. EAGAIN: v2 got less. ENODEV: gone. All are fine.
            let _ = sys::interruptible(|| self.empty.raw().write(amount.as_bytes()));
        }
        // A group that is used again, as systemd does, is as it was.
        if let Some(value) = before.filter(|value| *value > 0) {
            set(value);
        }
    }
}

struct Job {
    files: Files,
    since: Instant,
}

/// The thread that writes. Started with the first container that ends.
pub(super) struct Emptier {
    start: Instant,
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    real_time: bool,
}

#[derive(Default)]
struct Shared {
    /// When the write in flight began, in µs since `start`; 0 for none.
    began: AtomicU64,
    waiting: AtomicU64,
    thread: OnceLock<sys::Thread>,
}

impl Emptier {
    pub(super) fn new(real_time: bool) -> Emptier {
        let shared = Arc::default();
        Emptier { start: Instant::now(), jobs: None, shared, thread: None, real_time }
    }

    /// Empties a group as soon as can be.
    pub(super) fn empty(&mut self, files: Files) {
        if self.jobs.is_none() {
            self.spawn();
        }
        let job = Job { files, since: Instant::now() };
        let Some(jobs) = &self.jobs else { return };
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        if jobs.try_send(job).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Ends a write that takes too long; when to call again.
    pub(super) fn watch(&self) -> Option<Duration> {
        let began = self.shared.began.load(Ordering::SeqCst);
        if began > 0 {
            let took = self.start.elapsed().saturating_sub(Duration::from_micros(began));
            if took < BOUND {
                return Some(BOUND - took);
            }
            if let Some(thread) = self.shared.thread.get() {
                sys::interrupt(*thread);
            }
        }
        (began > 0 || self.shared.waiting.load(Ordering::SeqCst) > 0).then_some(AGAIN)
    }

    fn spawn(&mut self) {
        let (jobs, queue) = bounded(256);
        let (shared, start, real_time) = (self.shared.clone(), self.start, self.real_time);
        let thread = std::thread::Builder::new()
            .name("cgshim-empty".into())
            .stack_size(128 << 10)
            .spawn(move || work(&queue, &shared, start, real_time));
        match thread {
            Ok(thread) => {
                self.thread = Some(thread);
                self.jobs = Some(jobs);
            }
            Err(error) => log::warn!("ended containers are not emptied: {error}"),
        }
    }
}

fn work(queue: &Receiver<Job>, shared: &Shared, start: Instant, real_time: bool) {
    let me = sys::become_interruptible();
    let _ = shared.thread.set(me);
    if real_time && let Err(errno) = sys::may_be_real_time() {
        log::debug!("emptying at normal priority: {errno}");
    }
    while let Ok(Job { files, since }) = queue.recv() {
        if since.elapsed() < TOO_LATE {
            let now = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            shared.began.store(now.max(1), Ordering::SeqCst);
            files.write();
            shared.began.store(0, Ordering::SeqCst);
        }
        shared.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Emptier {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                self.watch();
                std::thread::sleep(AGAIN);
            }
            let _ = thread.join();
        }
    }
}

//! Where real time is refused, another thread thaws, and the one that times the window sleeps over that.
//!
//! Who thaws runs when those it thaws get their turns, which are owed to them since they were frozen: it loses its CPU to
//! them, and has it again with the next tick, or the one after, before it has even returned from the write. (Measured on
//! 6.18, four growers on two CPUs: 4 to 20 ms, 20 MiB a window.) Who sleeps meanwhile, for longer than a thaw takes, owes
//! nobody anything: a timer wakes it, and with a short slice it preempts whoever runs then (EEVDF, 6.12 and later). Two
//! threads of one group count as one there, so they must not share a CPU.

use crate::driver::sys;
use cgroupfs::freezer::Switch;
use crossbeam_channel::bounded;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long it is slept over a thaw, and between two looks at usage: a thaw takes some 60 µs until they run, and who has
/// looked must have slept for some times as long before it is owed a CPU again. (Measured on 6.18, four growers on two
/// CPUs: 1.4 MiB a window; with naps of 50 µs, 16.)
pub(super) const NAP: Duration = Duration::from_micros(200);

/// A thread that has no CPU by then has its work done for it.
const OVERDUE: Duration = Duration::from_millis(2);

/// What the two threads tell each other. Who asks may take that back until it is taken.
const NOTHING: u8 = 0;
const ASKED: u8 = 1;
const TAKEN: u8 = 2;
const DONE: u8 = 3;
const STOP: u8 = 4;

struct Shared {
    switch: Arc<Switch>,
    step: AtomicU8,
    start: Instant,
    /// When it thawed last, in nanoseconds from `start`.
    thawed_at: AtomicU64,
}

impl Shared {
    fn step(&self, from: u8, to: u8) -> bool {
        self.step.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn thaw(&self) {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.thawed_at.store(now, Ordering::SeqCst);
        let _ = self.switch.thaw();
    }

    /// The thread.
    fn run(&self) {
        while self.step.load(Ordering::SeqCst) != STOP {
            if self.step(ASKED, TAKEN) {
                self.thaw();
                // Unless it was seen to be, and asked for again.
                self.step(TAKEN, DONE);
            } else {
                std::thread::park();
            }
        }
    }
}

/// The thread's handle.
pub(super) struct Thawer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tid: Pid,
    /// The CPU it is kept off.
    off: Option<usize>,
}

impl Thawer {
    /// Starts the thread. `None`: there can be none, and who asks thaws by itself.
    pub(super) fn start(switch: Arc<Switch>) -> Option<Thawer> {
        let (step, thawed_at) = (AtomicU8::new(NOTHING), AtomicU64::new(0));
        let shared = Arc::new(Shared { switch, step, start: Instant::now(), thawed_at });
        let at_work = shared.clone();
        let (said, tid) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("cgshim-thaw".into())
            .stack_size(64 << 10)
            .spawn(move || {
                sys::block_signals();
                sys::ask_for_short_slices(true);
                let _ = said.send(gettid());
                at_work.run();
            })
            .ok()?;
        let tid = tid.recv().ok()?;
        Some(Thawer { shared, thread: Some(thread), tid, off: None })
    }

    /// Has it thaw, and sleeps over that; since when they run.
    pub(super) fn thaw(&mut self) -> Instant {
        self.keep_off_this_cpu();
        let asked = Instant::now();
        self.shared.step.store(ASKED, Ordering::SeqCst);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        loop {
            std::thread::sleep(NAP);
            match self.shared.step.load(Ordering::SeqCst) {
                ASKED if asked.elapsed() >= OVERDUE && self.shared.step(ASKED, NOTHING) => {
                    self.shared.thaw();
                    break;
                }
                // It may have lost its CPU before it could return.
                TAKEN if self.shared.switch.freezes() == Ok(true) => {}
                TAKEN | DONE => break,
                _ => {}
            }
        }
        self.shared.start + Duration::from_nanos(self.shared.thawed_at.load(Ordering::SeqCst))
    }

    /// It is on any other CPU that this thread may be on, if there is one.
    fn keep_off_this_cpu(&mut self) {
        let Ok(cpu) = sched_getcpu() else { return };
        if self.off == Some(cpu) {
            return;
        }
        self.off = Some(cpu);
        let Ok(mut cpus) = sched_getaffinity(Pid::from_raw(0)) else { return };
        let others = (0..CpuSet::count()).any(|n| n != cpu && cpus.is_set(n) == Ok(true));
        if others && cpus.unset(cpu).is_ok() {
            let _ = sched_setaffinity(self.tid, &cpus);
        }
    }
}

impl Drop for Thawer {
    fn drop(&mut self) {
        self.shared.step.store(STOP, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

//! The real-time thread: it thaws, times the window, and freezes. Nothing else.
//!
//! What decides how near to the kernel's curve an emulation comes is the leak of a thaw: what tasks
//! charge between the thaw and the next freeze. Measured on 6.18 with tasks that fill memory as fast as
//! they can: 6 MiB in the 90th percentile and 14 at worst from a thread at normal priority, 0.25 MiB
//! at worst from one at SCHED_FIFO. So this thread runs at real-time priority, with its memory locked,
//! and every round of its loop is a few system calls on open files: no allocation, no lock, no log.
//!
//! It never freezes for longer than [`LONGEST`](crate::core::throttle::LONGEST), whatever it is told, and thaws on its own: whoever looks
//! at each task's growth and decides how long a pulse is to last does so while the tasks are frozen, and
//! may be late.

mod killed;
mod thawer;
mod thread;
mod window;

use super::FreezeJournal;
use crate::core::throttle::{Curve, Level, MOST_LEVELS, NAP};
use crate::driver::cpus::Allowed;
use crate::driver::sys;
use cgroupfs::Bytes;
use cgroupfs::events::Notification;
use cgroupfs::freezer::Switch;
use cgroupfs::memory::Memory;
use cgroupfs::procfs::Task;
use crossbeam_channel::{Receiver, Sender, bounded};
use killed::{Killed, Watched};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thawer::Thawer;
use thread::Pulse;

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

/// A threshold that tells of growth.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crossing {
    /// Of the container's own usage.
    pub(super) mark: Bytes,
    /// So many tasks may be growing when it is crossed.
    pub(super) tasks: u64,
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
    /// threshold too: closing it is not for this thread. What has been charged above it by then is growth.
    Await(Arc<Notification>, Terms, Crossing),
    /// Time windows, on these terms.
    Open(Terms),
    /// The same, before anything else: it may have been crossed by now.
    OpenLate(Terms, Crossing),
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
    /// it was thawed last, of which so much is owed only by who fills huge pages.
    Frozen { pulse: u64, at: Instant, usage: Bytes, grown: Bytes, huge: Bytes },
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
    watched: Watched,
    thread: Option<JoinHandle<()>>,
    /// Whether it runs at real-time priority; the errno if that was refused.
    pub(super) real_time: Result<(), Errno>,
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
        let watched = Watched::default();
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let mut pulse = Pulse {
            switch: Arc::new(switch),
            memory,
            above,
            curve,
            journal,
            orders,
            reports: report,
            kick: kick.clone(),
            wake: wake.clone(),
            killed: Killed::among(watched.clone()),
            pulse: 0,
            short: false,
            frozen_at: Bytes(0),
            crossed: None,
            thawer: None,
            thawed_with: None,
            cpus,
            allowed: Allowed::find(),
            may_spin: cpus > 1,
        };
        let (said, real_time) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("cgshim-pulse".into())
            .stack_size(128 << 10)
            .spawn(move || {
                sys::block_signals();
                let real_time = sys::become_real_time();
                if real_time.is_err() {
                    // Who spins uses up what it is owed; who has slept, with a short slice, has a CPU at once.
                    pulse.may_spin = false;
                    sys::ask_for_short_slices(true);
                    sys::wake_on_time();
                    pulse.thawer = Thawer::start(pulse.switch.clone());
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
        self.watched.replace(tasks);
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

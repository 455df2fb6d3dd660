//! `memory.high` on cgroup v1: growth above it costs frozen time, on the kernel's own curve.
//!
//! A [`Throttler`] is a thread that sleeps on usage thresholds of one container. Near high it looks who
//! grows and moves those tasks into a child freezer group of ours; above high it has them frozen by turns:
//!
//! | who | what | priority |
//! |---|---|---|
//! | `pulser.rs` | thaws, times the window, freezes | real-time |
//! | `manager.rs` | waits on thresholds, until growth costs something | normal |
//! | `early.rs` | has tasks in the group long before high, where memory is filled faster than they are moved | there, too |
//! | `near.rs` | has the group ready by then, with the tasks in it that may grow | in the manager's thread |
//! | `pulses.rs` | who grew, what is owed ([`crate::core::throttle`]), killed tasks, the way out | there, too |
//! | `growers.rs` | which tasks those are | there, too |
//! | `levels.rs` | which highs count: the container's own, and those of groups above it | there, too |
//! | `change.rs` | other highs and ways out, while it goes on | there, too |
//! | `taken.rs` | whose throttle a task is, where one group with a throttle is beneath another | |
//! | `look.rs` | stops all of a container by the same means, for a look before an OOM kill | normal |
//!
//! The container's own freezer state is never written, and while its runtime has it paused nothing is
//! done. On every way out, a panic included, the growers are thawed and moved back, and the group is
//! removed.

mod change;
mod early;
mod growers;
mod levels;
mod look;
mod manager;
mod near;
mod pulser;
mod pulses;
mod taken;

use crate::core::throttle::{Cause, Curve, Then, ThrottleTotals, WayOut};
use crate::driver::sys;
use cgroupfs::files::ControlDir;
use cgroupfs::freezer::Freezer;
use cgroupfs::procfs::Task;
use cgroupfs::{Bytes, Cgroup, Error, Limit, Op, Result};
pub use change::ThrottleTerms;
use crossbeam_channel::{Receiver, unbounded};
pub use early::Moves;
pub use levels::Ancestor;
pub(super) use look::Look;
use manager::Manager;
pub(super) use near::near;
pub use near::remove_left;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_getres};
pub(super) use pulses::cause;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
pub use taken::Taken;
use taken::Taking;

/// Where a freeze is recorded before it is done, so that a guardian can undo it.
pub trait FreezeJournal: Send + Sync {
    /// Tasks are about to be frozen, or go on being so, for so long at most. From the real-time thread: no
    /// allocation, no lock.
    fn begin(&self, longest: Duration);
    /// They are thawed.
    fn end(&self);
    /// Where the group is that will be frozen: its directory, and the inode.
    ///
    /// # Errors
    /// Where that cannot be recorded; nothing is frozen then.
    fn place(&self, path: &Path, inode: u64) -> Result<()>;
}

/// No record is kept.
#[derive(Debug, Clone, Copy)]
pub struct Unrecorded;

impl FreezeJournal for Unrecorded {
    fn begin(&self, _longest: Duration) {}
    fn end(&self) {}
    fn place(&self, _path: &Path, _inode: u64) -> Result<()> {
        Ok(())
    }
}

/// What a container is to be throttled by.
#[derive(Clone)]
pub struct ThrottleConfig {
    /// Its memory group.
    pub group: Arc<Cgroup>,
    /// Growth above this is throttled; `Max`: above its ancestors' highs only.
    pub high: Limit,
    /// How throttling ends that achieves nothing.
    pub way_out: WayOut,
    /// Ancestors with an emulated high of their own, the nearest first: the largest overage counts.
    pub ancestors: Vec<Ancestor>,
    /// Other throttles of this process.
    pub taken: Arc<Taken>,
    /// Those of them that move tasks far from high, one at a time.
    pub moves: Arc<Moves>,
    /// Somebody reclaims page cache above high: it is not slept on.
    pub reclaims: bool,
    /// Where freezes are recorded.
    pub journal: Arc<dyn FreezeJournal>,
    /// Nobody is in the group yet, and this process starts who comes: made ready at once ([`Throttler::door`]).
    pub ahead: bool,
    /// The hierarchy with the freezer; looked for if `None`.
    pub freezer: Option<Freezer>,
}

impl ThrottleConfig {
    /// With the default way out, and no record.
    pub fn new(group: Arc<Cgroup>, high: Bytes) -> ThrottleConfig {
        ThrottleConfig {
            group,
            high: Limit::Bytes(high),
            way_out: WayOut::default(),
            ancestors: Vec::new(),
            taken: Arc::default(),
            moves: Arc::default(),
            reclaims: false,
            journal: Arc::new(Unrecorded),
            ahead: false,
            freezer: None,
        }
    }
}

/// What a throttle tells.
#[derive(Debug, Clone)]
pub enum ThrottleEvent {
    /// A pulse is over.
    Pulse {
        /// Tasks were frozen from then on.
        since: Instant,
        /// For so long.
        frozen: Duration,
        /// So much longer than was due.
        late: Duration,
    },
    /// Throttling lifted, or more: so much frozen time brought nothing, for this cause.
    WayOut(Then, Cause, Duration),
    /// Throttling at the declared high again, after a release.
    Resumed,
    /// Somebody else wrote `memory.high`, from, to: theirs stays.
    Adopted(Limit, Limit),
    /// Real-time priority is refused: growth above high leaks (see the documentation).
    NotRealTime(Errno),
    /// Somebody in the container grows who is in a freezer group of its own: not ours to freeze.
    Strangers(usize),
    /// It does not work here, for now: tried again later.
    Failed(Error),
}

impl ThrottleEvent {
    /// Its name, for programs.
    pub const fn name(&self) -> &'static str {
        match self {
            ThrottleEvent::Pulse { .. } => "pulse",
            ThrottleEvent::WayOut(..) => "throttle_way_out",
            ThrottleEvent::Resumed => "throttle_resumed",
            ThrottleEvent::Adopted(..) => "high_adopted",
            ThrottleEvent::NotRealTime(_) => "throttle_not_real_time",
            ThrottleEvent::Strangers(_) => "throttle_strangers",
            ThrottleEvent::Failed(_) => "throttle_failed",
        }
    }

    /// For people; a pulse is nothing to be told of.
    pub fn message(&self) -> Option<String> {
        Some(match self {
            ThrottleEvent::Pulse { .. } => return None,
            ThrottleEvent::WayOut(then, cause, stalled) => {
                let what = match then {
                    Then::Release => "throttling is lifted",
                    Then::Oom => "its largest process is killed, and throttling lifted",
                    Then::Notify => "throttling goes on",
                };
                format!(
                    "throttled for {:.0?} without progress, as {}: {what}",
                    stalled,
                    cause.as_str()
                )
            }
            ThrottleEvent::Resumed => "throttled above its high again".into(),
            ThrottleEvent::Adopted(from, to) => {
                format!("somebody set memory.high from {from} to {to}: adopted")
            }
            ThrottleEvent::NotRealTime(errno) => format!(
                "real-time priority is refused ({}): growth above high leaks while tasks are thawed and \
                 frozen",
                errno.desc()
            ),
            ThrottleEvent::Strangers(n) => format!(
                "{n} tasks that grow are in a freezer group of their own: they are not throttled"
            ),
            ThrottleEvent::Failed(error) => format!("not throttled for now: {error}"),
        })
    }
}

/// What the manager's thread is told.
struct Control {
    stop: AtomicBool,
    /// Nothing is to be frozen for now; and whether that holds.
    hold: AtomicBool,
    held: AtomicBool,
    kick: EventFd,
    /// What it is held to from now on, until that is taken note of.
    terms: Mutex<Option<ThrottleTerms>>,
    totals: Mutex<ThrottleTotals>,
    /// How often throttles of groups beneath this one came, or ended.
    beneath: AtomicU64,
}

impl Control {
    /// It ends, or nothing is to be done for now.
    fn is_wanted_elsewhere(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || self.hold.load(Ordering::SeqCst)
    }
}

/// The throttle of one container.
pub struct Throttler {
    door: Option<OwnedFd>,
    /// After the thread has ended: others may take who was in it.
    taking: Option<Taking>,
    control: Arc<Control>,
    events: Receiver<ThrottleEvent>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Events that nobody takes are dropped beyond this.
const EVENTS: usize = 4096;

impl Throttler {
    /// Starts to throttle. Until usage comes near high this is a thread that sleeps.
    ///
    /// # Errors
    /// [`Error::NoController`] where there is no freezer; [`Error::Refused`] without threads or
    /// descriptors; what opening the memory group gives.
    pub fn start(config: ThrottleConfig) -> Result<Throttler> {
        Throttler::start_after(None, config)
    }

    /// The same once another throttle of this group has ended, by this thread: both have the same freezer group.
    ///
    /// # Errors
    /// As [`Throttler::start`].
    pub fn start_after(
        before: Option<JoinHandle<()>>,
        mut config: ThrottleConfig,
    ) -> Result<Throttler> {
        let freezer = config.freezer.take().map_or_else(Freezer::find, Ok)?;
        let memory = super::open_memory(&config.group)?;
        let at = config.group.path().to_path_buf();
        let no = |errno| Error::refused(Op::Watch, &at, errno);
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            hold: AtomicBool::new(false),
            held: AtomicBool::new(false),
            kick: event().map_err(no)?,
            terms: Mutex::default(),
            totals: Mutex::default(),
            beneath: AtomicU64::new(0),
        });
        let wake = Arc::new(event().map_err(no)?);
        // Bounded by who tells: a channel that is made with its bound has memory for all of it.
        let (tell, events) = unbounded();
        let ahead = config.ahead;
        let taking = config.taken.clone().take(&config.group, control.clone());
        let manager =
            Manager::new(config, memory, freezer, curve(), control.clone(), tell, wake.clone());
        let ahead = ahead.then(|| manager.ahead()).transpose()?;
        let door = ahead.as_ref().map(|near| near.group.door()).transpose()?;
        let thread = std::thread::Builder::new()
            .name("cgshim-throttle".into())
            .stack_size(256 << 10)
            .spawn(move || {
                sys::block_signals();
                // Everybody is moved back, which may take 100 ms.
                let _ = before.map(JoinHandle::join);
                manager.run(ahead);
            })
            .map_err(|_| no(Errno::EAGAIN))?;
        let (thread, taking) = (Some(thread), Some(taking));
        Ok(Throttler { door, taking, control, events, wake, thread })
    }

    /// Holds the container to other terms from now on. It goes on with what was done and learnt so far: who grows stays
    /// in the group that is frozen, and what is owed is owed; who is frozen is thawed at once if usage is above none of
    /// the highs any more. Of usage above one that was lowered only further growth is paid for.
    pub fn change(&self, terms: ThrottleTerms) {
        *self.control.terms.lock().unwrap_or_else(PoisonError::into_inner) = Some(terms);
        let _ = self.control.kick.write(1);
    }

    /// Whether it is over: the container's group is gone.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Made ready ahead: a thread that writes `0` here, before it has others beside it, is in the group that
    /// is frozen, and so are its descendants. It costs no grace period, as moving a task from outside does.
    pub fn door(&self) -> Option<BorrowedFd<'_>> {
        self.door.as_ref().map(AsFd::as_fd)
    }

    /// Readable when there are events.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The events since the last call.
    pub fn events(&self) -> Vec<ThrottleEvent> {
        let _ = self.wake.read();
        self.events.try_iter().collect()
    }

    /// What was done so far.
    pub fn totals(&self) -> ThrottleTotals {
        *self.control.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Thaws, and freezes nothing until [`Throttler::resume`]: for a process that is about to be stopped.
    /// Waits until that holds, `patience` at most; whether it does.
    pub fn hold(&self, patience: Duration) -> bool {
        let start = Instant::now();
        self.control.hold.store(true, Ordering::SeqCst);
        let _ = self.control.kick.write(1);
        loop {
            if self.is_over() || self.control.held.load(Ordering::SeqCst) {
                return true;
            }
            if start.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Goes on after [`Throttler::hold`].
    pub fn resume(&self) {
        self.control.hold.store(false, Ordering::SeqCst);
        let _ = self.control.kick.write(1);
    }

    /// Ends: everybody is thawed and back in the container's own group when it returns.
    pub fn stop(mut self) -> ThrottleTotals {
        self.end();
        self.totals()
    }

    fn end(&mut self) {
        self.control.stop.store(true, Ordering::SeqCst);
        let _ = self.control.kick.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.taking = None;
    }
}

impl Drop for Throttler {
    fn drop(&mut self) {
        self.end();
    }
}

/// The curve of the kernel in use.
pub fn curve() -> Curve {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    // The coarse clock ticks in jiffies.
    let jiffy = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_or(Duration::from_millis(4), Duration::from);
    Curve::new(Curve::batch_of(&release), jiffy)
}

/// The process of a group that has most in memory.
pub(super) fn largest(group: &Arc<Cgroup>) -> Option<i32> {
    let tids = growers::all(group, &|_| false).unwrap_or_default();
    let rss = |tid: u32| Some((Task::open(tid).ok()?.stat()?.rss, tid));
    let (_, pid) = tids.into_iter().filter_map(rss).max()?;
    i32::try_from(pid).ok()
}

/// Whether a thread of ours may have real-time priority here.
///
/// # Errors
/// The errno of the refusal.
pub fn real_time() -> std::result::Result<(), Errno> {
    std::thread::spawn(sys::may_be_real_time).join().unwrap_or(Err(Errno::EAGAIN))
}

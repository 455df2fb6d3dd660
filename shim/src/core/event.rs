//! What goes into the core and what comes out of it.

use cgroupfs::memory::{MemoryStat, SwapRules};
use cgroupfs::{Bytes, Limit};
use std::time::Duration;

/// A point in time: monotonic, since some start that the driver chose.
pub type Now = Duration;

/// How memory is taken from a group. Chosen by probing the files, never by kernel version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// v1: write a lower `memory.limit_in_bytes`, which reclaims in our thread, then the declared one
    /// at once. Exact, swaps as the kernel would; opens a window in which the limit is low.
    LimitStep,
    /// v1: write `memory.force_empty` and stop it with a signal at the target. Opens no window; may
    /// overshoot.
    ForceEmpty,
    /// `memory.reclaim` with a number of bytes (v2 from 5.19, some vendors' v1).
    MemoryReclaim,
    /// v2 without `memory.reclaim`: write a lower `memory.high`, which reclaims in our thread, then the
    /// declared one. In the window tasks that allocate reclaim and may sleep; nothing is killed.
    HighStep,
}

impl Strategy {
    /// Its name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Strategy::LimitStep => "limit_step",
            Strategy::ForceEmpty => "force_empty",
            Strategy::MemoryReclaim => "memory_reclaim",
            Strategy::HighStep => "high_step",
        }
    }
}

/// What the group's kernel files offer, from the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A usage threshold can wake us (v1 eventfd). Without it usage is polled.
    pub threshold_event: bool,
    /// Usage may be this much under a threshold when its event is handled, and still the kernel counts
    /// it as above: 128 page events and a stock of 64 pages on each CPU that charges.
    pub threshold_slack: Bytes,
    /// [`Strategy::LimitStep`] is possible.
    pub limit_step: bool,
    /// [`Strategy::ForceEmpty`] is possible.
    pub force_empty: bool,
    /// [`Strategy::MemoryReclaim`] is possible.
    pub memory_reclaim: bool,
    /// [`Strategy::HighStep`] is possible.
    pub high_step: bool,
}

/// A look at a group: what a round is decided on. Read once a round, not once a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survey {
    /// Usage when it was taken.
    pub usage: Bytes,
    /// The limit in force: the declared one, as no step of ours is in flight.
    pub limit: Limit,
    /// `memory.stat`.
    pub stat: MemoryStat,
    /// What may be swapped.
    pub swap: SwapRules,
    /// Free swap on the host.
    pub host_swap_free: Bytes,
    /// Direct reclaim events so far (`failcnt`, or `high` + `max`).
    pub direct_reclaim: u64,
}

impl Survey {
    /// Whether reclaim must keep from swapping: the group's own limits keep the kernel from it (memsw ==
    /// limit, say), but a v1 reclaim write would all the same (law 2).
    pub fn must_not_swap(&self) -> bool {
        self.swap.reclaim_may_swap && !self.swap.swaps_at_limit && self.host_swap_free > Bytes(0)
    }
}

/// One piece of work for a worker: bring usage down to `target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Which job: a report of another is stale.
    pub id: u64,
    /// How.
    pub strategy: Strategy,
    /// Stop when usage is here.
    pub target: Bytes,
    /// Never write a limit under this.
    pub floor: Bytes,
    /// At most this much between two looks at usage, limit and cancellation.
    pub step: Bytes,
    /// The declared limit: what is written back, and what must stand before each write.
    pub declared: Limit,
    /// Give up (and report) after this long.
    pub deadline: Duration,
    /// Nearly all of it is clean page cache: over in well under a millisecond, best in one go. Anything
    /// else takes so long that the group's own threads must be able to preempt it at any time.
    pub cheap: bool,
    /// Keep the group from swapping meanwhile (its swappiness at 0): its own limits forbid what a
    /// reclaim write would do.
    pub no_swap: bool,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Usage is at the target.
    Reached,
    /// The deadline came first.
    Deadline,
    /// It was cancelled.
    Cancelled,
    /// The kernel found nothing (more) to take (EBUSY, EAGAIN), or the floor is reached.
    Exhausted,
    /// Somebody else wrote the limit: it is now this.
    Foreign(Limit),
    /// Somebody else wrote `memory.high`; it is now this.
    ForeignHigh(Limit),
    /// The group is gone.
    Vanished,
    /// The kernel refused, with this errno.
    Failed(i32),
}

/// What a job did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Which job.
    pub id: u64,
    /// By which means.
    pub strategy: Strategy,
    /// How it ended.
    pub outcome: Outcome,
    /// Usage before.
    pub before: Bytes,
    /// Usage after.
    pub after: Bytes,
    /// Bytes seen to go, step by step. A lower bound: what the group charged meanwhile hides as much.
    pub freed: Bytes,
    /// Direct reclaim events of the group when it ended.
    pub direct_reclaim: u64,
    /// Writes that reclaimed.
    pub steps: u32,
    /// CPU time it cost.
    pub cpu: Duration,
    /// Wall time it took.
    pub wall: Duration,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was time to look: usage is this.
    Usage(Bytes),
    /// The kernel says that usage crossed the threshold; now it is this.
    Crossed(Bytes),
    /// The survey that was asked for.
    Surveyed(Box<Survey>),
    /// A job ended.
    Done(Report),
    /// The survey or the job that was asked for could not be started or read, with this errno.
    Failed(i32),
    /// Somebody wrote the limit; it is now this. (Our own writes are not reported.)
    LimitChanged(Limit),
    /// The operator's terms are now these.
    Terms(super::WatermarkSpec, Limit),
    /// Charges failed at the limit just now (v2: `memory.events`).
    LimitHit(Bytes),
    /// The group was out of memory while a step of ours stood: no limit is stepped for a while.
    OomInWindow,
    /// The group's processes are gone, or enforcement of it ends.
    Release,
    /// The group is gone.
    Vanished,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Wake us when usage crosses this, until told otherwise (`None`: no more).
    Arm(Option<Bytes>),
    /// Wake us at this time with a look at usage (`None`: no timer).
    Timer(Option<Now>),
    /// Take a survey and give it back as [`Event::Surveyed`].
    Survey,
    /// Start a job.
    Reclaim(Job),
    /// Stop the job in flight; its report still comes.
    Cancel,
    /// See that the declared limit stands, unless somebody else's does.
    Restore(Limit),
    /// Tell people.
    Tell(Notice),
    /// No more events: forget the container.
    Forget,
}

/// What people are told: one a cause, not one a time it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The limit was changed by somebody else, from, to: adopted.
    Adopted(Limit, Limit),
    /// Standing aside: reclaim would do harm now.
    StandingAside(super::StandAside),
    /// Back at work after standing aside.
    Resumed,
    /// Reclaim frees next to nothing; the next try is this far off.
    Futile(Duration),
    /// The kernel refused, with this errno; the next try is this far off.
    Refused(i32, Duration),
}

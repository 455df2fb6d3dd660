//! One job outside of the event loop: `cgctl reclaim`, and emptying a group that has ended.

use super::flight::INTERRUPT_AGAIN;
use super::journaled::record_of;
use super::worker::{Answer, Work, Workers, survey};
use super::{Policy, capabilities, open_memory};
use crate::core::{
    Capabilities, Floor, Job, Outcome, Plan, Report, Strategy, Survey, WatermarkSpec, plan::plan,
};
use crate::journal::{Journal, Slot};
use cgroupfs::files::ControlDir;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Error, Limit, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One write to `memory.reclaim`. It overshoots by up to as much again, as the scan doubles from pass to
/// pass (measured on 6.1: asked for 100 MiB at once, 153 went); in batches only the last one does.
const RECLAIM_BATCH: Bytes = Bytes::mib(1);

/// What a byte-targeted reclaim did.
#[derive(Debug)]
pub struct Once {
    /// By which means, and how it went; `None` if nothing was tried.
    pub report: Option<(Strategy, Report)>,
    /// Why less than was asked for was tried.
    pub why: Option<&'static str>,
}

/// Largest step while the group has processes: what the limit is lowered by for an instant.
const LARGEST_STEP: Bytes = Bytes::mib(32);

/// A job on a group with processes acts on one survey for no longer than this.
const SLICE: Duration = Duration::from_millis(100);

/// A byte-targeted reclaim under way: slice after slice, each decided on a survey of its own.
#[derive(Debug)]
pub(super) struct Slices {
    size: Bytes,
    patience: Duration,
    all: Option<(Strategy, Report)>,
    stuck: Option<(Duration, Bytes)>,
    why: Option<&'static str>,
}

impl Slices {
    pub(super) const fn new(size: Bytes, patience: Duration) -> Slices {
        Slices { size, patience, all: None, stuck: None, why: None }
    }

    /// The next job; `None` if there is nothing to be done. `elapsed` is since the start.
    pub(super) fn next_job(
        &mut self,
        elapsed: Duration,
        memory: &dyn Memory,
        look: &Survey,
        ended: bool,
    ) -> Result<Option<Job>> {
        let freed = self.all.map_or(Bytes(0), |(_, report)| report.freed);
        let left = self.size.saturating_sub(freed);
        let now_stuck = Floor::of(look, 0).unreclaimable;
        let growth = self.stuck.replace((elapsed, now_stuck)).map_or(0, |(then, before)| {
            let grown = now_stuck.saturating_sub(before).0 as f64;
            (grown / elapsed.saturating_sub(then).as_secs_f64().max(0.001)) as u64
        });
        let (job, why) = slice(memory, look, left, growth, ended)?;
        self.why = why;
        let deadline = SLICE.min(self.patience.saturating_sub(elapsed));
        Ok(job.map(|job| Job { deadline, ..job }))
    }

    /// A job ended; whether there is to be another.
    pub(super) fn done(&mut self, elapsed: Duration, report: Report) -> bool {
        let mut sum = match self.all {
            None => report,
            Some((_, before)) => Report {
                before: before.before,
                freed: before.freed.saturating_add(report.freed),
                steps: before.steps + report.steps,
                cpu: before.cpu + report.cpu,
                wall: elapsed,
                ..report
            },
        };
        // A slice's deadline is nobody's who asked: what came with the last of it is all there.
        if sum.outcome == Outcome::Deadline && sum.freed >= self.size {
            sum.outcome = Outcome::Reached;
        }
        self.all = Some((report.strategy, sum));
        match sum.outcome {
            Outcome::Reached => self.why.is_none() && sum.freed < self.size,
            Outcome::Deadline => elapsed < self.patience,
            _ => false,
        }
    }

    /// What it came to.
    pub(super) fn end(&self) -> Once {
        let enough = self.all.is_some_and(|(_, report)| report.freed >= self.size);
        Once { report: self.all, why: if enough { None } else { self.why } }
    }
}

/// Takes `size` bytes from the group, waiting for it, `patience` at most, or until `interrupted` is
/// readable. `ended` says whether the group has no processes: then nothing can grow in the window of a
/// step, and no margin is needed. What it changes is written down in `slot` first ([`enter`]).
///
/// Never lowers a limit under the floor. Errors are those of looking at the group; what happens during
/// reclaim is in the report.
pub fn reclaim_once(
    memory: &Arc<dyn Memory>,
    size: Bytes,
    ended: &dyn Fn() -> bool,
    patience: Duration,
    interrupted: Option<BorrowedFd<'_>>,
    slot: Option<Arc<Slot>>,
) -> Result<Once> {
    let start = Instant::now();
    let mut slices = Slices::new(size, patience);
    loop {
        let look = survey(&**memory)?;
        let job = slices.next_job(start.elapsed(), &**memory, &look, ended())?;
        let done = job.and_then(|job| run(memory, job, interrupted, slot.clone()));
        let Some(report) = done else { return Ok(slices.end()) };
        if !slices.done(start.elapsed(), report) {
            return Ok(slices.end());
        }
    }
}

/// One slice of a byte-targeted reclaim, and why it goes for less than `left`.
fn slice(
    memory: &dyn Memory,
    look: &Survey,
    left: Bytes,
    growth: u64,
    ended: bool,
) -> Result<(Option<Job>, Option<&'static str>)> {
    let wanted = look.usage.saturating_sub(left);
    let floor = Floor::of(look, growth);
    let can = Capabilities { force_empty: false, ..capabilities(memory) };
    // Asked for by a person: dirty pages too are worth a try, so the plan's own reasons to stand aside
    // do not count here, but its floor does.
    let strategy = match (plan(look, wanted, growth, can), can) {
        (Plan::Reclaim { strategy, .. }, _) => strategy,
        (Plan::Aside(_), Capabilities { memory_reclaim: true, .. }) => Strategy::MemoryReclaim,
        (Plan::Aside(_), Capabilities { limit_step: true, .. }) => Strategy::LimitStep,
        (Plan::Aside(_), _) => Strategy::HighStep,
    };
    let least = if ended { floor.unreclaimable } else { floor.floor };
    let stepped = matches!(strategy, Strategy::LimitStep | Strategy::HighStep);
    let reachable = wanted.max(if stepped { least } else { floor.unreclaimable });
    let why = match reachable > wanted {
        _ if look.usage < left => Some("no more than that is in use"),
        false => None,
        true if floor.unreclaimable > wanted => Some(
            "the rest cannot be reclaimed: anonymous memory without swap, locked or kernel memory, or \
             pages waiting for the disk",
        ),
        true => Some(
            "the rest is the margin that its processes may need while the limit is stepped; with none \
             in the group there is no margin",
        ),
    };
    if reachable >= look.usage {
        return Ok((None, why));
    }
    let job = Job {
        id: 0,
        strategy,
        target: reachable,
        floor: if stepped { least } else { Bytes(0) },
        step: match strategy {
            Strategy::MemoryReclaim => RECLAIM_BATCH,
            _ if ended => look.usage,
            _ => LARGEST_STEP,
        },
        declared: look.limit,
        deadline: SLICE,
        cheap: false,
        no_swap: look.must_not_swap(),
    };
    Ok((Some(job), why))
}

/// Empties a group that has ended, so that it does not stay behind as a dying one: cached pages pin it
/// (4.19 through 6.18). Nothing is swapped. Takes `patience` at most.
pub fn empty(memory: &Arc<dyn Memory>, patience: Duration) {
    let can = capabilities(&**memory);
    let strategy = match can {
        Capabilities { force_empty: true, .. } => Strategy::ForceEmpty,
        Capabilities { memory_reclaim: true, .. } => Strategy::MemoryReclaim,
        _ => return,
    };
    let _ = run(
        memory,
        Job {
            id: 0,
            strategy,
            target: Bytes(0),
            floor: Bytes(0),
            step: Bytes::mib(64),
            declared: Limit::Max,
            deadline: patience,
            cheap: false,
            no_swap: true,
        },
        None,
        // The group is about to be removed, and its swappiness with it.
        None,
    );
}

/// Takes a slot in `journal` for a group that is no container of an engine.
pub fn enter(journal: &Journal, group: &Arc<Cgroup>, mount_point: &Path) -> Result<Arc<Slot>> {
    let memory = open_memory(group)?;
    let path = group.path().strip_prefix(mount_point).unwrap_or(group.path());
    let policy = Policy { watermarks: WatermarkSpec::Off, high: Limit::Max };
    let record = record_of(&path.to_string_lossy(), group.inode(), &*memory, policy);
    journal.insert(&record).map_err(|error| Error::BadName {
        name: path.display().to_string(),
        what: "path",
        why: error.to_string(),
    })
}

fn run(
    memory: &Arc<dyn Memory>,
    job: Job,
    interrupted: Option<BorrowedFd<'_>>,
    slot: Option<Arc<Slot>>,
) -> Option<Report> {
    let mut workers = Workers::new(1, 1).ok()?;
    let start = Instant::now();
    let mut cancelled = false;
    let ticket = workers.start(0, memory.clone(), Work::Reclaim(job), slot)?;
    loop {
        let left = job.deadline.saturating_sub(start.elapsed());
        let wait = if left.is_zero() { INTERRUPT_AGAIN } else { left };
        let millis = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let mut fds = vec![PollFd::new(workers.wake_fd(), PollFlags::POLLIN)];
        fds.extend(interrupted.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let _ = poll(&mut fds, PollTimeout::from(if cancelled { 1 } else { millis }));
        cancelled |= fds.get(1).is_some_and(|fd| fd.any().unwrap_or(false));
        workers.rearm();
        match workers.answer() {
            Some((_, Answer::Done(report))) => return Some(report),
            Some(_) => return None,
            None if cancelled => {
                ticket.stop.cancel();
                ticket.interrupt();
            }
            None if start.elapsed() >= job.deadline => {
                ticket.stop.expire();
                ticket.interrupt();
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice_of(freed: Bytes, outcome: Outcome) -> Report {
        Report {
            id: 0,
            strategy: Strategy::MemoryReclaim,
            outcome,
            before: Bytes::mib(400),
            after: Bytes::mib(400).saturating_sub(freed),
            freed,
            direct_reclaim: 0,
            steps: 1,
            cpu: Duration::ZERO,
            wall: SLICE,
        }
    }

    #[test]
    fn what_comes_as_a_slice_ends_is_no_timeout() {
        let patience = 10 * SLICE;
        let mut slices = Slices::new(Bytes::mib(100), patience);
        assert!(slices.done(SLICE, slice_of(Bytes::mib(60), Outcome::Deadline)));
        assert!(!slices.done(2 * SLICE, slice_of(Bytes::mib(41), Outcome::Deadline)));
        let (_, report) = slices.end().report.unwrap();
        assert_eq!((report.outcome, report.freed), (Outcome::Reached, Bytes::mib(101)));
    }

    #[test]
    fn with_patience_over_it_says_so() {
        let mut slices = Slices::new(Bytes::mib(100), SLICE);
        assert!(!slices.done(SLICE, slice_of(Bytes::mib(60), Outcome::Deadline)));
        assert_eq!(slices.end().report.unwrap().1.outcome, Outcome::Deadline);
    }
}

//! One job outside of the event loop: `cgctl reclaim`, and emptying a group that has ended.

use super::worker::{Answer, Work, Workers, survey};
use super::{INTERRUPT_AGAIN, capabilities};
use crate::core::{Capabilities, Floor, Job, Plan, Report, Strategy, plan::plan};
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Limit, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One write to `memory.reclaim`. It overshoots by up to as much again, as the scan doubles from pass to
/// pass (measured on 6.1: asked for 100 MiB at once, 153 went); in batches only the last one does.
const RECLAIM_BATCH: Bytes = Bytes::mib(1);

/// What [`reclaim_once`] did.
#[derive(Debug)]
pub struct Once {
    /// By which means, and how it went; `None` if nothing was tried.
    pub report: Option<(Strategy, Report)>,
    /// Why less than was asked for was tried.
    pub why: Option<&'static str>,
}

/// Takes `size` bytes from the group, waiting for it, `patience` at most. `ended` says that the group
/// has no processes: then nothing can grow in the window of a step, and no margin is needed.
///
/// Never lowers a limit under the floor. Errors are those of looking at the group; what happens during
/// reclaim is in the report.
pub fn reclaim_once(
    memory: &Arc<dyn Memory>,
    size: Bytes,
    ended: bool,
    patience: Duration,
) -> Result<Once> {
    let look = survey(&**memory)?;
    let wanted = look.usage.saturating_sub(size);
    let floor = Floor::of(&look, 0);
    let can = Capabilities { force_empty: false, ..capabilities(&**memory) };
    // Asked for by a person: dirty pages too are worth a try, so the plan's own reasons to stand aside
    // do not count here, but its floor does.
    let (strategy, no_swap) = match plan(&look, wanted, 0, can) {
        Plan::Reclaim { strategy, no_swap, .. } => (strategy, no_swap),
        Plan::Aside(_) => {
            let strategy = match can {
                Capabilities { memory_reclaim: true, .. } => Strategy::MemoryReclaim,
                Capabilities { limit_step: true, .. } => Strategy::LimitStep,
                _ => Strategy::HighStep,
            };
            (strategy, false)
        }
    };
    let least = if ended { floor.unreclaimable } else { floor.floor };
    let stepped = matches!(strategy, Strategy::LimitStep | Strategy::HighStep);
    let reachable = if stepped { wanted.max(least) } else { wanted.max(floor.unreclaimable) };
    let why = match reachable > wanted {
        _ if look.usage < size => Some("no more than that is in use"),
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
        return Ok(Once { report: None, why });
    }
    let declared = match strategy {
        Strategy::HighStep => memory.high()?,
        _ => look.limit,
    };
    let job = Job {
        id: 0,
        strategy,
        target: reachable,
        floor: if stepped { least } else { Bytes(0) },
        step: match strategy {
            Strategy::MemoryReclaim => RECLAIM_BATCH.min(size),
            _ => size,
        },
        declared,
        deadline: patience,
        no_swap,
    };
    Ok(Once { report: run(memory, job).map(|report| (strategy, report)), why })
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
            no_swap: true,
        },
    );
}

fn run(memory: &Arc<dyn Memory>, job: Job) -> Option<Report> {
    let mut workers = Workers::new(1, 1).ok()?;
    let start = Instant::now();
    let ticket = workers.start(0, memory.clone(), Work::Reclaim(job))?;
    loop {
        let left = job.deadline.saturating_sub(start.elapsed());
        let wait = if left.is_zero() { INTERRUPT_AGAIN } else { left };
        let millis = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(workers.wake_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(millis));
        workers.rearm();
        match workers.answer() {
            Some((_, Answer::Done(report))) => return Some(report),
            Some(_) => return None,
            None if start.elapsed() >= job.deadline => {
                ticket.stop.expire();
                ticket.interrupt();
            }
            None => {}
        }
    }
}

//! One run of a load: when the next operation is due, when it is over, and what is counted.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::args::{Load, Plan};
use super::hist::Histogram;
use super::pace::Pacer;
use super::report::{Errors, Report, SCHEMA};
use super::sys;

/// The longest sleep at a time: how late a stop signal may be seen when it came to another thread,
/// or just before the sleep.
pub(crate) const NAP: Duration = Duration::from_millis(50);

/// The pause after an operation that failed, so that a load that is refused memory does not spin.
const AFTER_FAILURE: Duration = Duration::from_millis(1);

/// What the next operation has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is due: it counts as begun now.
    Now,
    /// It is due after so long.
    Later(Duration),
    /// There is none: the load is over.
    Over,
}

/// The state of one run. Nothing in it allocates once it is made.
#[derive(Debug)]
pub(crate) struct Run {
    start: Instant,
    duration: Option<Duration>,
    end: Option<Instant>,
    wall: Duration,
    total: Option<u64>,
    ops_limit: Option<u64>,
    /// Units of the pacer: bytes, or operations of the `alloc` load.
    units_per_op: u64,
    pacer: Pacer,
    attempts: u64,
    ops: u64,
    bytes: u64,
    latency: Histogram,
    /// Latency of the hot set, recorded by the `hotcold` load.
    pub(crate) hot: Option<Histogram>,
    /// Failed operations.
    pub(crate) errors: Errors,
    /// Children of the `fork` load that did not end well.
    pub(crate) children_lost: u64,
    /// Reads that returned less than they should.
    pub(crate) short_reads: u64,
}

impl Run {
    /// A run that has not begun: all of its memory is allocated and touched here.
    pub(crate) fn new(plan: &Plan) -> Run {
        let by_ops = plan.load == Load::Alloc && plan.alloc_rate > 0;
        let (per_second, units_per_op) =
            if by_ops { (plan.alloc_rate, 1) } else { (plan.rate, plan.chunk) };
        let now = Instant::now();
        Run {
            start: now,
            duration: plan.duration,
            end: None,
            wall: Duration::ZERO,
            total: plan.total,
            ops_limit: plan.ops,
            units_per_op,
            pacer: Pacer::new(now, per_second),
            attempts: 0,
            ops: 0,
            bytes: 0,
            latency: Histogram::new(),
            hot: (plan.load == Load::Hotcold).then(Histogram::new),
            errors: Errors::default(),
            children_lost: 0,
            short_reads: 0,
        }
    }

    /// Starts the clock: duration and pace count from now on.
    pub(crate) fn begin(&mut self) {
        self.start = Instant::now();
        self.end = self.duration.map(|duration| self.start + duration);
        self.pacer.start(self.start);
    }

    /// Stops the clock.
    pub(crate) fn finish(&mut self) {
        self.wall = self.start.elapsed();
    }

    /// Waits until the next operation is due. False: the load is over.
    pub(crate) fn next(&mut self) -> bool {
        loop {
            match self.turn() {
                Turn::Now => return true,
                Turn::Over => return false,
                Turn::Later(wait) => thread::sleep(wait.min(NAP)),
            }
        }
    }

    /// Whether the next operation is due. With [`Turn::Now`] it counts as begun.
    pub(crate) fn turn(&mut self) -> Turn {
        let now = Instant::now();
        if self.over_at(now) || self.ops_limit.is_some_and(|limit| self.attempts >= limit) {
            return Turn::Over;
        }
        let mut wait = self.pacer.wait(now);
        if wait.is_zero() {
            self.attempts += 1;
            self.pacer.issue(self.units_per_op);
            return Turn::Now;
        }
        if let Some(end) = self.end {
            wait = wait.min(end.saturating_duration_since(now));
        }
        Turn::Later(wait)
    }

    /// Whether the load is over but for operations that have begun.
    pub(crate) fn over(&self) -> bool {
        self.over_at(Instant::now())
    }

    fn over_at(&self, now: Instant) -> bool {
        sys::stop_requested()
            || self.end.is_some_and(|end| now >= end)
            || self.total.is_some_and(|total| self.bytes >= total)
    }

    /// Counts an operation that succeeded.
    pub(crate) fn done(&mut self, took: Duration, bytes: u64) {
        self.latency.record(took);
        self.ops += 1;
        self.bytes += bytes;
    }

    /// Counts an operation that failed, and pauses for a moment. EINTR is no failure: the signal
    /// that caused it ends the load.
    pub(crate) fn failed(&mut self, errno: Errno) {
        if errno != Errno::EINTR {
            self.errors.count(errno);
            thread::sleep(AFTER_FAILURE);
        }
    }

    /// The report of a finished run, histograms included.
    pub(crate) fn report(&self, plan: &Plan) -> Report {
        let throughput = self.bytes as f64 / self.wall.as_secs_f64().max(1e-9);
        Report {
            schema: SCHEMA,
            load: plan.load,
            size_bytes: plan.size,
            chunk_bytes: plan.chunk,
            rate_bytes_per_s: plan.rate,
            seed: plan.seed,
            procs: plan.procs,
            wall_ms: u64::try_from(self.wall.as_millis()).unwrap_or(u64::MAX),
            ops: self.ops,
            bytes: self.bytes,
            throughput_bytes_per_s: throughput as u64,
            latency_us: self.latency.summary(),
            alloc_latency_us: None,
            hot_latency_us: self.hot.as_ref().map(Histogram::summary),
            errors: self.errors,
            children_lost: self.children_lost,
            short_reads: self.short_reads,
            histogram: Some(self.latency.to_pairs()),
            alloc_histogram: None,
            hot_histogram: self.hot.as_ref().map(Histogram::to_pairs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memload::args::tests::plan;

    #[test]
    fn a_run_ends_with_the_operation_that_reaches_the_total() {
        let mut run = Run::new(&plan("anon --total 1000K"));
        run.begin();
        while run.next() {
            run.done(Duration::from_micros(1), 256 << 10);
        }
        assert_eq!((run.ops, run.bytes), (4, 1 << 20));
    }

    #[test]
    fn failed_operations_count_towards_ops_but_are_not_ops_done() {
        let plan = plan("anon --ops 6");
        let mut run = Run::new(&plan);
        run.begin();
        while run.next() {
            match run.attempts % 3 {
                0 => run.failed(Errno::ENOMEM),
                _ => run.done(Duration::from_micros(1), 1),
            }
        }
        run.finish();
        let report = run.report(&plan);
        assert_eq!((report.ops, report.errors.enomem, report.latency_us.samples), (4, 2, 4));
    }

    #[test]
    fn a_rate_is_held_and_the_duration_ends_a_wait() {
        let plan = plan("anon --rate 5M --duration 0.21");
        let mut run = Run::new(&plan);
        run.begin();
        while run.next() {
            run.done(Duration::from_micros(1), plan.chunk);
        }
        run.finish();
        // 20 chunks a second: due at 0, 50, 100, 150 and 200 ms.
        assert_eq!(run.ops, 5);
        assert!(run.wall >= Duration::from_millis(210), "{:?}", run.wall);
    }

    #[test]
    fn alloc_is_paced_by_operations() {
        let mut run = Run::new(&plan("alloc --alloc-rate 100"));
        run.begin();
        assert_eq!(run.turn(), Turn::Now);
        assert!(matches!(run.turn(), Turn::Later(wait) if wait <= Duration::from_millis(10)));
    }
}

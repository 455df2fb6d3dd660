//! `memload`: known loads on memory, and how long their operations took.
//!
//! One file a load; each says what it exercises in the kernel and what its latency is the latency of:
//! `anon`, `hotcold`, `read`, `dirty`, `tmpfs`, `pipe`, `fork`, `mmap`, `thp`, `alloc`.
//!
//! What all loads have in common:
//! - **A failed operation is counted by its errno, and the load goes on.** Nothing that the kernel
//!   refuses under memory pressure ends it.
//! - **Bounded memory.** Histograms, buffers and tables are allocated and touched before the clock
//!   starts (well under 2 MiB, and the chunk-sized buffer of the loads that write); the measured loops
//!   allocate nothing but what the load is about.
//! - **Latency is that of the operation**, from before its first system call or page fault to after
//!   its last. Paced loads follow absolute deadlines: after a stall they catch up, and how late an
//!   operation began is not part of its latency (see `pace.rs`).
//! - **Nothing stays behind.** Files have no name, processes end with their parent.
//!
//! `unsafe` is in `sys.rs` only.

mod alloc;
mod anon;
mod args;
mod copies;
mod dirty;
mod fill;
mod fork;
mod hist;
mod hotcold;
mod mmap;
mod pace;
mod pipe;
mod read;
mod report;
mod ring;
mod run;
mod scratch;
mod sys;
mod thp;
mod tmpfs;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

pub use args::{Args, EXAMPLES, Load};
pub use hist::{Histogram, Latency};
pub use report::{Errors, Report, SCHEMA};
pub(crate) use scratch::create as scratch_file;

use alloc::Beside;
use args::Plan;
use fill::Fill;
use run::{NAP, Run};

/// Why a load could not run. Each message is complete for a person.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments make no sense. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Something that the load needs is not to be had. Exit code 1.
    #[error("{0}")]
    Failed(String),
}

/// One load, prepared: its file written, its buffers touched.
trait Workload {
    /// Does operations until the run is over.
    fn run(&mut self, run: &mut Run);
}

/// Every parser of an option's value, over one text; and a whole command line: for the fuzzer.
#[doc(hidden)]
pub fn parse_values(text: &str) {
    args::parse_values(text);
}

/// Runs a load and prints its report: all of `memload`'s `main`. Exit code 0 with a report, 1 or 2
/// with a message on standard error.
///
/// To be called from the only thread of a process that has nothing else to do: it handles SIGTERM and
/// SIGINT from then on, and forks.
pub fn run(args: &Args) -> ExitCode {
    let result = measure(args).and_then(|report| print(args, report));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("memload: {failure}");
            ExitCode::from(match failure {
                Failure::Usage(_) => 2,
                Failure::Failed(_) => 1,
            })
        }
    }
}

/// Runs a load. The report has its histograms. What [`run()`] says about threads and signals holds.
pub fn measure(args: &Args) -> Result<Report, Failure> {
    let plan = Plan::new(args)?;
    sys::catch_stop_signals()
        .map_err(|errno| Failure::Failed(format!("cannot handle SIGTERM and SIGINT: {errno}")))?;
    let begin = Instant::now() + plan.start_delay;
    while !sys::stop_requested() && Instant::now() < begin {
        thread::sleep(begin.saturating_duration_since(Instant::now()).min(NAP));
    }
    // The fork load has its own idea of --procs.
    if plan.procs == 1 || plan.load == Load::Fork {
        execute(&plan, 0, || {})
    } else {
        copies::run(&plan)
    }
}

fn print(args: &Args, report: Report) -> Result<(), Failure> {
    let report = if args.histogram { report } else { report.without_histograms() };
    let text = if args.json {
        serde_json::to_string(&report)
            .map(|json| json + "\n")
            .map_err(|error| Failure::Failed(format!("cannot write the report: {error}")))?
    } else {
        report.to_string()
    };
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::Failed(format!("cannot write the report: {error}")))
}

/// Prepares one copy of a load, calls `ready`, runs it, and reports it.
fn execute(plan: &Plan, copy: u32, ready: impl FnOnce()) -> Result<Report, Failure> {
    let mut run = Run::new(plan);
    let mut load = prepare(plan, Fill::new(plan.seed.wrapping_add(copy.into())))?;
    let with_thread = plan.alloc_rate > 0 && plan.load != Load::Alloc;
    let mut beside = with_thread.then(|| Beside::new(plan.alloc_rate));
    ready();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let allocator = match &mut beside {
            None => None,
            Some(beside) => {
                let thread = thread::Builder::new().name("alloc".into()).stack_size(128 << 10);
                let spawned = thread.spawn_scoped(scope, || beside.run(&over));
                Some(spawned.map_err(|error| {
                    Failure::Failed(format!("--alloc-rate: cannot start a thread: {error}"))
                })?)
            }
        };
        // Even if the load panics, or the scope would wait for the thread forever.
        let ends_thread = SetOnDrop(&over);
        run.begin();
        load.run(&mut run);
        run.finish();
        drop(ends_thread);
        if let Some(allocator) = allocator {
            allocator.thread().unpark();
        }
        Ok(())
    })?;
    // What is live goes before the report takes memory of its own.
    drop(load);
    let mut report = run.report(plan);
    if let Some(beside) = beside {
        report.alloc_latency_us = Some(beside.latency.summary());
        report.alloc_histogram = Some(beside.latency.to_pairs());
        report.errors.add(&beside.errors);
    }
    Ok(report)
}

fn prepare(plan: &Plan, fill: Fill) -> Result<Box<dyn Workload>, Failure> {
    Ok(match plan.load {
        Load::Anon => Box::new(anon::Growth::new(plan, fill, sys::Anon::map)),
        Load::Hotcold => Box::new(hotcold::HotCold::new(plan, fill)?),
        Load::Read => Box::new(read::Stream::new(plan, fill)?),
        Load::Dirty => Box::new(dirty::Overwrite::new(plan, fill)?),
        Load::Tmpfs => Box::new(tmpfs::Files::new(plan, fill)?),
        Load::Pipe => Box::new(pipe::Pipes::new(plan, fill)?),
        Load::Fork => Box::new(fork::Storm::new(plan)?),
        Load::Mmap => Box::new(mmap::Walk::new(plan, fill)?),
        Load::Thp => Box::new(thp::growth(plan, fill)?),
        Load::Alloc => Box::new(alloc::Probe::new(plan)),
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

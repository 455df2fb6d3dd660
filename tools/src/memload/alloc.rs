//! The latency probe: memory that is mapped, touched and unmapped again, at a steady pace.
//!
//! In the kernel: the price of an allocation as a task that needs a little memory now and then pays
//! it: page faults, the memcg charge, and the direct reclaim or the throttling that its neighbours in
//! the group have brought about. Alone it is the `alloc` load; with `--alloc-rate` a thread beside
//! any other load does the same with 256 KiB.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Workload;
use super::args::{DEFAULT_CHUNK, Plan};
use super::hist::Histogram;
use super::pace::Pacer;
use super::report::Errors;
use super::run::{NAP, Run};
use super::sys::{self, Anon};

/// Maps, touches and unmaps a chunk. How long it took to map and touch it.
fn probe(chunk: usize) -> nix::Result<Duration> {
    let started = Instant::now();
    let mut memory = Anon::map(chunk)?;
    memory.touch();
    Ok(started.elapsed())
}

/// The load. Latency: to map and touch a chunk.
pub(crate) struct Probe {
    chunk: usize,
}

impl Probe {
    pub(crate) fn new(plan: &Plan) -> Probe {
        Probe { chunk: plan.chunk_len() }
    }
}

impl Workload for Probe {
    fn run(&mut self, run: &mut Run) {
        while run.next() {
            match probe(self.chunk) {
                Ok(took) => run.done(took, self.chunk as u64),
                Err(errno) => run.failed(errno),
            }
        }
    }
}

/// The allocator thread's part. Made, and its memory touched, before the load begins.
pub(crate) struct Beside {
    rate: u64,
    pub(crate) latency: Histogram,
    pub(crate) errors: Errors,
}

impl Beside {
    pub(crate) fn new(rate: u64) -> Beside {
        Beside { rate, latency: Histogram::new(), errors: Errors::default() }
    }

    /// Probes until `over`. To end it at once, unpark its thread.
    pub(crate) fn run(&mut self, over: &AtomicBool) {
        // A stop signal should interrupt the load's own system call, not this thread's sleep.
        let _ = sys::stop_signals().thread_block();
        let mut pacer = Pacer::new(Instant::now(), self.rate);
        while !over.load(Ordering::Relaxed) {
            let wait = pacer.wait(Instant::now());
            if !wait.is_zero() {
                thread::park_timeout(wait.min(NAP));
                continue;
            }
            pacer.issue(1);
            match probe(DEFAULT_CHUNK as usize) {
                Ok(took) => self.latency.record(took),
                Err(errno) => self.errors.count(errno),
            }
        }
    }
}

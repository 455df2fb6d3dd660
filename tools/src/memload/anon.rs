//! Cold anonymous memory that grows: a chunk is mapped, filled, and never touched again.
//!
//! In the kernel: page faults on anonymous memory (`do_anonymous_page`, memcg charge, direct reclaim
//! in the faulting task when the limit is hit), and swap-out of cold pages. What a fault meets under
//! a limit shows in the latency. Where the host gives huge pages to everybody
//! (`transparent_hugepage/enabled` is `always`), this load gets them as any process would.

use std::time::{Duration, Instant};

use super::args::Plan;
use super::ring::Ring;
use super::run::Run;
use super::sys::Anon;
use super::{Fill, Workload};

/// Memory that grows chunk by chunk up to the size; from then on the oldest chunk goes first.
/// Latency: to map and fill one chunk (not to unmap the oldest).
pub(crate) struct Growth {
    live: Ring<Anon>,
    fill: Fill,
    chunk: usize,
    map: fn(usize) -> nix::Result<Anon>,
}

impl Growth {
    pub(crate) fn new(plan: &Plan, fill: Fill, map: fn(usize) -> nix::Result<Anon>) -> Growth {
        Growth { live: Ring::new(plan.size, plan.chunk), fill, chunk: plan.chunk_len(), map }
    }

    /// The bytes of one chunk.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.chunk as u64
    }

    /// Grows by one chunk, and says how long it took.
    pub(crate) fn grow(&mut self) -> nix::Result<Duration> {
        self.live.make_room();
        let started = Instant::now();
        let mut memory = (self.map)(self.chunk)?;
        self.fill.fill(memory.bytes_mut());
        let took = started.elapsed();
        self.live.push(memory);
        Ok(took)
    }
}

impl Workload for Growth {
    fn run(&mut self, run: &mut Run) {
        while run.next() {
            match self.grow() {
                Ok(took) => run.done(took, self.chunk_bytes()),
                Err(errno) => run.failed(errno),
            }
        }
    }
}

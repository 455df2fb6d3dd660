//! A file mapped shared, touched in a circle.
//!
//! In the kernel: page cache through page faults (`filemap_fault`, with readahead and fault-around),
//! mapped pages on the LRU lists, whose eviction has to unmap them first. With `--write` the faults
//! dirty the pages (`page_mkwrite`), and reclaim has to wait for writeback.

use std::time::Instant;

use super::args::Plan;
use super::run::Run;
use super::sys::Shared;
use super::{Failure, Fill, Workload, scratch};

/// Latency: to touch each page of one chunk.
pub(crate) struct Walk {
    memory: Shared,
    size: usize,
    at: usize,
    chunk: usize,
    write: bool,
}

impl Walk {
    pub(crate) fn new(plan: &Plan, mut fill: Fill) -> Result<Walk, Failure> {
        let file = scratch::written(plan, &mut fill)?;
        let size = usize::try_from(plan.size).unwrap_or(usize::MAX);
        let memory = Shared::map(&file, size).map_err(|errno| {
            Failure::Failed(format!("--size {size}: cannot map the file: {errno}"))
        })?;
        Ok(Walk { memory, size, at: 0, chunk: plan.chunk_len(), write: plan.write })
    }
}

impl Workload for Walk {
    fn run(&mut self, run: &mut Run) {
        while run.next() {
            let len = self.chunk.min(self.size - self.at);
            let started = Instant::now();
            self.memory.touch(self.at, len, self.write);
            run.done(started.elapsed(), len as u64);
            self.at = (self.at + len) % self.size;
        }
    }
}

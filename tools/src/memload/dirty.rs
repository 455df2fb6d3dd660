//! Writes to a file, in a circle: dirty page cache.
//!
//! In the kernel: page cache allocation by write(), memcg charge, writeback, and dirty throttling
//! (`balance_dirty_pages`), which on cgroup v1 knows no memcg: under a limit there, reclaim meets
//! dirty pages and waits for the disk. Nothing is synced: the kernel sets the pace, or `--rate`.

use std::fs::File;
use std::time::Instant;

use nix::sys::uio::pwrite;

use super::args::Plan;
use super::run::Run;
use super::{Failure, Fill, Workload, scratch};

/// Latency: one pwrite() of a chunk.
pub(crate) struct Overwrite {
    file: File,
    size: u64,
    at: u64,
    buffer: Vec<u8>,
    fill: Fill,
}

impl Overwrite {
    pub(crate) fn new(plan: &Plan, mut fill: Fill) -> Result<Overwrite, Failure> {
        let file = scratch::create_for(plan)?;
        let mut buffer = vec![0; plan.chunk_len()];
        fill.fill(&mut buffer);
        Ok(Overwrite { file, size: plan.size, at: 0, buffer, fill })
    }
}

impl Workload for Overwrite {
    fn run(&mut self, run: &mut Run) {
        while run.next() {
            self.fill.stamp(&mut self.buffer);
            let want = (self.size - self.at).min(self.buffer.len() as u64);
            let started = Instant::now();
            match pwrite(&self.file, &self.buffer[..want as usize], self.at as i64) {
                Ok(written) => {
                    run.done(started.elapsed(), written as u64);
                    self.at = (self.at + written as u64) % self.size;
                }
                Err(errno) => run.failed(errno),
            }
        }
    }
}

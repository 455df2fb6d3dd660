//! Streaming reads of a file, in a circle: the page cache at work.
//!
//! In the kernel: page cache allocation by readahead in the reading task, its memcg charge, and
//! reclaim of clean pages. With a file larger than the limit every page is evicted before it comes
//! round again, and every charge past the limit is a `failcnt`. With `--fresh` the pages that are
//! read *into* are new each time too: the kernel faults them in within `copy_to_user`, where a charge
//! that is refused comes back as EFAULT or a short read, not as a blocked task.

use std::fs::File;
use std::time::Instant;

use nix::sys::uio::pread;

use super::args::Plan;
use super::run::Run;
use super::sys::Anon;
use super::{Failure, Fill, Workload, scratch};

/// Latency: one pread() of a chunk.
pub(crate) struct Stream {
    file: File,
    size: u64,
    at: u64,
    buffer: Anon,
    fresh: bool,
}

impl Stream {
    pub(crate) fn new(plan: &Plan, mut fill: Fill) -> Result<Stream, Failure> {
        let file = match &plan.file {
            None => scratch::written(plan, &mut fill)?,
            Some(path) => scratch::existing(path, plan.size)?,
        };
        let mut buffer = Anon::map(plan.chunk_len()).map_err(|errno| {
            Failure::Failed(format!("--chunk {}: cannot map a buffer: {errno}", plan.chunk))
        })?;
        buffer.touch();
        Ok(Stream { file, size: plan.size, at: 0, buffer, fresh: plan.fresh })
    }
}

impl Workload for Stream {
    fn run(&mut self, run: &mut Run) {
        while run.next() {
            if self.fresh
                && let Err(errno) = self.buffer.drop_pages()
            {
                run.failed(errno);
                continue;
            }
            let buffer = self.buffer.bytes_mut();
            let want = (self.size - self.at).min(buffer.len() as u64);
            let started = Instant::now();
            match pread(&self.file, &mut buffer[..want as usize], self.at as i64) {
                Ok(got) => {
                    run.done(started.elapsed(), got as u64);
                    run.short_reads += u64::from((got as u64) < want);
                    self.at = (self.at + got as u64) % self.size;
                }
                Err(errno) => run.failed(errno),
            }
        }
    }
}

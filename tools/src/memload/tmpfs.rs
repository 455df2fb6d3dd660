//! Files on tmpfs, the oldest removed to make room.
//!
//! In the kernel: shmem pages, charged to the memcg by write(). They are swap-backed: without swap
//! nothing can reclaim them, and a charge that fails under `oom_kill_disable` is ENOMEM from write(),
//! not a blocked task. The files have no name, so that the memory is freed however the load ends.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::uio::pwrite;

use super::args::Plan;
use super::ring::Ring;
use super::run::Run;
use super::{Failure, Fill, Workload, scratch};

/// About how many files hold the live set: few enough to be open at the same time.
const FILES: u64 = 64;

/// Latency: one pwrite() of a chunk (not to create a file, nor to remove the oldest).
pub(crate) struct Files {
    dir: PathBuf,
    complete: Ring<File>,
    /// The file that grows, and its length.
    growing: Option<(File, u64)>,
    file_size: u64,
    buffer: Vec<u8>,
    fill: Fill,
}

impl Files {
    pub(crate) fn new(plan: &Plan, mut fill: Fill) -> Result<Files, Failure> {
        let dir = plan.dir.display();
        let kind = statfs(&plan.dir)
            .map_err(|errno| Failure::Failed(format!("--dir {dir}: {}", io::Error::from(errno))))?
            .filesystem_type();
        if kind != TMPFS_MAGIC {
            return Err(Failure::Usage(format!("--dir {dir}: not on tmpfs")));
        }
        drop(scratch::create_for(plan)?);
        let file_size = (plan.size / FILES / plan.chunk).max(1) * plan.chunk;
        let mut buffer = vec![0; plan.chunk_len()];
        fill.fill(&mut buffer);
        Ok(Files {
            dir: plan.dir.clone(),
            complete: Ring::new(plan.size, file_size),
            growing: None,
            file_size,
            buffer,
            fill,
        })
    }

    /// The file to write to next: the one that grows, or a new one in place of the oldest.
    fn take_file(&mut self) -> Result<(File, u64), Errno> {
        if let Some(growing) = self.growing.take() {
            return Ok(growing);
        }
        self.complete.make_room();
        let file = scratch::create(&self.dir)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        Ok((file, 0))
    }
}

impl Workload for Files {
    fn run(&mut self, run: &mut Run) {
        while run.next() {
            self.fill.stamp(&mut self.buffer);
            let (file, length) = match self.take_file() {
                Ok(file) => file,
                Err(errno) => {
                    run.failed(errno);
                    continue;
                }
            };
            let want = (self.file_size - length).min(self.buffer.len() as u64);
            let started = Instant::now();
            match pwrite(&file, &self.buffer[..want as usize], length as i64) {
                Ok(written) => {
                    run.done(started.elapsed(), written as u64);
                    match length + written as u64 {
                        length if length < self.file_size => self.growing = Some((file, length)),
                        _ => self.complete.push(file),
                    }
                }
                Err(errno) => {
                    run.failed(errno);
                    // The file stays as long as it is: on a full tmpfs the ring goes on, and makes
                    // room by removing the oldest.
                    self.complete.push(file);
                }
            }
        }
    }
}

//! Pipes filled, then drained, again and again.
//!
//! In the kernel: unreclaimable kernel memory. Pipe buffers are pages allocated with GFP_ACCOUNT:
//! charged to the memcg, on no LRU list, freed only when they are read. A charge that fails is ENOMEM
//! from write().

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use log::warn;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{pipe2, read, write};

use cgroupfs::units::{Bytes, page_size};

use super::args::Plan;
use super::run::Run;
use super::{Failure, Fill, Workload};

/// What a pipe is made to hold, where the limits of the host let it.
const PIPE: u64 = 1 << 20;

/// What a pipe holds if nobody asks for more.
const DEFAULT_PIPE: u64 = 64 << 10;

struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: u64,
    buffered: u64,
}

/// Latency: one write() of a chunk into a pipe with room (not to drain).
pub(crate) struct Pipes {
    pipes: Vec<Pipe>,
    filling: usize,
    size: u64,
    buffered: u64,
    buffer: Vec<u8>,
    fill: Fill,
}

impl Pipes {
    pub(crate) fn new(plan: &Plan, mut fill: Fill) -> Result<Pipes, Failure> {
        allow_many_files();
        let most = largest_pipe();
        let mut pipes = Vec::new();
        let mut capacity = 0;
        while capacity < plan.size {
            match Pipe::new(most.min(plan.size - capacity)) {
                Ok(pipe) => {
                    capacity += pipe.capacity;
                    pipes.push(pipe);
                }
                Err(errno) if pipes.is_empty() => {
                    return Err(Failure::Failed(format!("pipe: cannot make one: {errno}")));
                }
                Err(errno) => {
                    let (have, asked) = (Bytes(capacity), Bytes(plan.size));
                    warn!("pipe: {have} of {asked}: no more than {} pipes: {errno}", pipes.len());
                    break;
                }
            }
        }
        let mut buffer = vec![0; plan.chunk_len()];
        fill.fill(&mut buffer);
        Ok(Pipes { pipes, filling: 0, size: plan.size, buffered: 0, buffer, fill })
    }

    /// Reads everything back, which frees it.
    fn drain(&mut self) -> Result<(), Errno> {
        for pipe in &mut self.pipes {
            while pipe.buffered > 0 {
                pipe.buffered -= read(&pipe.reader, &mut self.buffer)? as u64;
            }
        }
        self.filling = 0;
        self.buffered = 0;
        Ok(())
    }
}

impl Workload for Pipes {
    fn run(&mut self, run: &mut Run) {
        while run.next() {
            if (self.buffered >= self.size || self.filling == self.pipes.len())
                && let Err(errno) = self.drain()
            {
                run.failed(errno);
                continue;
            }
            let pipe = &mut self.pipes[self.filling];
            let room = (self.size - self.buffered).min(pipe.capacity - pipe.buffered);
            let want = room.min(self.buffer.len() as u64);
            self.fill.stamp(&mut self.buffer);
            let started = Instant::now();
            match write(&pipe.writer, &self.buffer[..want as usize]) {
                Ok(written) => {
                    run.done(started.elapsed(), written as u64);
                    pipe.buffered += written as u64;
                    self.buffered += written as u64;
                }
                Err(errno) => run.failed(errno),
            }
            if pipe.buffered == pipe.capacity {
                self.filling += 1;
            }
        }
    }
}

impl Pipe {
    fn new(wanted: u64) -> Result<Pipe, Errno> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // EPERM: over the user's share (pipe-user-pages-soft). The pipe keeps the size it has.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(wanted as i32));
        let capacity = fcntl(writer.as_fd(), FcntlArg::F_GETPIPE_SZ)? as u64;
        Ok(Pipe { reader, writer, capacity, buffered: 0 })
    }
}

/// 1 MiB, or what an unprivileged user may have (`fs.pipe-max-size`).
fn largest_pipe() -> u64 {
    let max = std::fs::read_to_string("/proc/sys/fs/pipe-max-size").ok();
    let max = max.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(DEFAULT_PIPE);
    max.clamp(page_size(), PIPE)
}

/// Raises the soft limit of open files to the hard one; two are needed a pipe. What is refused shows
/// when the pipes are made.
fn allow_many_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

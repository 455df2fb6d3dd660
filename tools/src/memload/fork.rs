//! A fork storm: short-lived children, each touching a little memory.
//!
//! In the kernel: charges of kernel memory (task, stack, page tables), fork()'s own failures (EAGAIN
//! at a limit of processes, ENOMEM), a new group of page faults in each child, and its exit, which
//! uncharges all of it. A child that the OOM killer takes is counted, and the storm goes on.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::args::Plan;
use super::run::{NAP, Run, Turn};
use super::sys::{self, Anon};
use super::{Failure, Workload};

/// How long children may take to end by themselves when the load is over.
const PATIENCE: Duration = Duration::from_secs(2);

struct Child {
    pid: Pid,
    started: Instant,
}

/// Latency: from before fork() until the child is reaped.
pub(crate) struct Storm {
    children: Vec<Child>,
    most: usize,
    chunk: usize,
    /// Readable when a child has ended.
    ended: SignalFd,
}

impl Storm {
    pub(crate) fn new(plan: &Plan) -> Result<Storm, Failure> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        let ended = signals
            .thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map_err(|errno| Failure::Failed(format!("fork: cannot make a signalfd: {errno}")))?;
        let most = plan.procs as usize;
        Ok(Storm { children: Vec::with_capacity(most), most, chunk: plan.chunk_len(), ended })
    }

    fn fork(&mut self, run: &mut Run) {
        let started = Instant::now();
        let chunk = self.chunk;
        let child = sys::fork_child(move || match Anon::map(chunk) {
            Ok(mut memory) => {
                memory.touch();
                0
            }
            // ENOMEM, which fits a byte as every errno of mmap() does.
            Err(errno) => errno as i32 as u8,
        });
        match child {
            Ok(pid) => self.children.push(Child { pid, started }),
            Err(errno) => run.failed(errno),
        }
    }

    /// Takes note of every child that has ended.
    fn reap(&mut self, run: &mut Run) {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                // ECHILD: there is none.
                Err(_) => return,
            };
            let Some(pid) = status.pid() else { return };
            let Some(index) = self.children.iter().position(|child| child.pid == pid) else {
                continue;
            };
            let child = self.children.swap_remove(index);
            match status {
                WaitStatus::Exited(_, 0) => run.done(child.started.elapsed(), self.chunk as u64),
                WaitStatus::Exited(_, code) => {
                    run.children_lost += 1;
                    if code == Errno::ENOMEM as i32 {
                        run.errors.count(Errno::ENOMEM);
                    }
                }
                _ => run.children_lost += 1,
            }
        }
    }

    /// Sleeps until a child ends, a stop signal comes, or the time is over.
    fn wait(&self, time: Duration) {
        let mut fds = [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        // Rounded up: a wait of less than 1 ms must not become a loop.
        let ms = u16::try_from(time.as_millis() + 1).unwrap_or(u16::MAX);
        // EINTR: the caller looks at the stop flag next.
        if poll(&mut fds, PollTimeout::from(ms)).is_ok_and(|ready| ready > 0) {
            // Merely to reset it: one signal may stand for several children.
            let _ = self.ended.read_signal();
        }
    }

    /// Lets the last children end, and kills those that do not.
    fn finish(&mut self, run: &mut Run) {
        let deadline = Instant::now() + PATIENCE;
        while !self.children.is_empty() && Instant::now() < deadline {
            self.wait(NAP);
            self.reap(run);
        }
        for child in &self.children {
            // Killed by us, not lost.
            let _ = kill(child.pid, Signal::SIGKILL);
        }
        for child in self.children.drain(..) {
            while waitpid(child.pid, None) == Err(Errno::EINTR) {}
        }
    }
}

impl Workload for Storm {
    fn run(&mut self, run: &mut Run) {
        loop {
            self.reap(run);
            if self.children.len() == self.most {
                if run.over() {
                    break;
                }
                self.wait(NAP);
                continue;
            }
            match run.turn() {
                Turn::Now => self.fork(run),
                Turn::Later(time) => self.wait(time.min(NAP)),
                Turn::Over => break,
            }
        }
        self.finish(run);
    }
}

//! A process that puts things right when its parent cannot: killed, or stopped, between a change to the
//! kernel and its undoing.
//!
//! It is forked early, locks its memory, drops every capability but the one to write files of others,
//! and sleeps. What is in flight it sees in the journal that both map. It undoes
//!
//! - what is in flight, as soon as the parent begins to die: when the thread that forked it is gone
//!   (`PR_SET_PDEATHSIG`), and again while its last threads are on their way out of the kernel;
//! - everything, when the parent's pipe closes: that is when the last thread is gone, which may take as
//!   long as a thread waits for a disk;
//! - what has stood past its deadline, whether the parent lives or not: a stopped one is as bad as a
//!   dead one, and so is one whose last thread waits for a disk.
//!
//! It costs no wake-up while nothing is in flight. SIGTERM and its kind are blocked, and it has a
//! session of its own, so that what ends or stops its parent does not end or stop it.

mod groups;
mod restore;
mod sys;
mod watch;

pub use groups::{Groups, Kernel};
pub use restore::{FREEZER_CHILD, Restored, Undone, restore, restore_all};

use crate::journal::{Journal, RunDir};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a guardian may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// How long its end is waited for.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The guardian of this process.
#[derive(Debug)]
pub struct Guardian {
    pid: Pid,
    /// Ours as long as we live; nobody writes.
    pipe: Option<OwnedFd>,
    /// Readable (at its end) when the guardian is gone.
    gone: OwnedFd,
}

impl Guardian {
    /// Forks one, and waits until it is at its post. Best before any thread is started: what memory this
    /// process has by then is the guardian's too. By a thread that lives as long as the process: its end is
    /// taken for the process's. `run_dir` is the lock that it has a share in.
    pub fn start(
        journal: &Journal,
        run_dir: Option<&RunDir>,
        kernel: &Kernel,
    ) -> io::Result<Guardian> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        let (gone, ready) = pipe2(OFlag::O_CLOEXEC)?;
        let post = watch::Post {
            journal,
            lock: run_dir.map(AsFd::as_fd),
            kernel,
            pipe: theirs.as_fd(),
            ready: ready.as_fd(),
        };
        let pid = sys::forked(|| watch::main(&post))?;
        drop((theirs, ready));
        let guardian = Guardian { pid, pipe: Some(ours), gone };
        let mut byte = [0];
        if !guardian.readable(READY_PATIENCE) || read(&guardian.gone, &mut byte) != Ok(1) {
            return Err(io::Error::other("the guardian process did not start"));
        }
        Ok(guardian)
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Readable once the guardian is gone: without one, no limit should be stepped. To be watched.
    pub fn gone(&self) -> BorrowedFd<'_> {
        self.gone.as_fd()
    }

    /// Whether it is at its post.
    pub fn is_there(&self) -> bool {
        !self.readable(Duration::ZERO)
    }

    fn readable(&self, patience: Duration) -> bool {
        let start = Instant::now();
        loop {
            let left = patience.saturating_sub(start.elapsed());
            let mut fds = [PollFd::new(self.gone.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Err(Errno::EINTR) => {}
                ready => return ready.is_ok_and(|n| n > 0),
            }
        }
    }
}

impl Drop for Guardian {
    /// Lets it go: it has a last look, and ends.
    fn drop(&mut self) {
        self.pipe = None;
        let start = Instant::now();
        while start.elapsed() < END_PATIENCE {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    self.readable(Duration::from_millis(5));
                }
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    }
}

//! A look before the kill: all of a container is stopped, for so long at most.
//!
//! By the same means as a throttle: a freezer group of ours under the container's, journaled before it is
//! frozen, on a lease that is renewed, so that the guardian thaws it where we are killed or stopped. Tasks that
//! wait for memory do not freeze, and need not: they sleep in the kernel until there is some, or the killer
//! comes.

use super::near::{name, outside, sweep, whose};
use super::{FreezeJournal, growers};
use cgroupfs::files::ControlDir;
use cgroupfs::freezer::{Freezer, FreezerGroup, State};
use cgroupfs::procfs::Task;
use cgroupfs::{Cgroup, Error, Op, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The journal's deadline, and how often it is put off.
const LEASE: Duration = Duration::from_secs(6);
const RENEW: Duration = Duration::from_secs(2);

/// How often tasks are looked for that are not stopped yet (somebody forked, or came from outside), and for
/// killed ones, which cannot die as long as they are frozen.
const ROUND: Duration = Duration::from_millis(20);

/// A look that is under way.
#[derive(Debug)]
pub(in crate::driver) struct Look {
    stop: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl Look {
    /// Stops everybody in `group` from now on, in a thread: moving tasks waits for grace periods of RCU.
    ///
    /// # Errors
    /// [`Error::Refused`] without threads or descriptors. What the freezer refuses is logged by the thread.
    pub(in crate::driver) fn start(
        group: Arc<Cgroup>,
        journal: Arc<dyn FreezeJournal>,
        longest: Duration,
    ) -> Result<Look> {
        let no = |errno| Error::refused(Op::Watch, group.path(), errno);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_flags(flags).map_err(no)?);
        let heard = stop.clone();
        let stopped = Stopped { group: group.clone(), end: Instant::now() + longest, stop: heard };
        let thread = std::thread::Builder::new()
            .name("cgshim-look".into())
            .stack_size(256 << 10)
            .spawn(move || match stopped.look(&*journal) {
                Ok(()) | Err(Error::Vanished { .. }) => {}
                Err(error) => log::warn!("not stopped for a look: {error}"),
            })
            .map_err(|_| no(Errno::EAGAIN))?;
        Ok(Look { stop, thread })
    }

    /// They go on; who waits for the thread knows that they are back where they were.
    pub(in crate::driver) fn end(self) -> JoinHandle<()> {
        let _ = self.stop.write(1);
        self.thread
    }
}

/// Who is to be stopped, and until when.
struct Stopped {
    group: Arc<Cgroup>,
    end: Instant,
    stop: Arc<EventFd>,
}

impl Stopped {
    fn look(&self, journal: &dyn FreezeJournal) -> Result<()> {
        let freezer = Freezer::find()?;
        let tids = growers::all(&self.group, &|_| false)?;
        let Some(home) = tids.iter().find_map(|tid| freezer.path_of(*tid).ok()) else {
            return Ok(());
        };
        let home = outside(home, &self.group);
        let parent = Arc::new(freezer.open(&home)?);
        sweep(freezer.kind, &parent, whose(&freezer, &self.group, &home));
        let name = name(&freezer, &self.group, &home, false);
        let cell = FreezerGroup::create(freezer.kind, parent, &name)?;
        // Its runtime has it paused: nobody runs.
        if cell.container_state()? != State::Thawed {
            return cell.remove();
        }
        journal.place(cell.path(), cell.inode())?;
        journal.begin(LEASE);
        let stayed = self.stay(&cell, &freezer, home, journal);
        // Thaws first, then gives everybody back.
        let removed = cell.remove();
        journal.end();
        stayed.and(removed)
    }

    fn stay(
        &self,
        cell: &FreezerGroup,
        freezer: &Freezer,
        home: PathBuf,
        journal: &dyn FreezeJournal,
    ) -> Result<()> {
        cell.freeze()?;
        let mut renewed = Instant::now();
        let mut tasks: BTreeMap<u32, Task> = BTreeMap::new();
        loop {
            for tid in growers::all(&self.group, &|_| false)? {
                if self.is_over(Duration::ZERO) {
                    return Ok(());
                }
                if renewed.elapsed() >= RENEW {
                    journal.begin(LEASE);
                    renewed = Instant::now();
                }
                if tasks.contains_key(&tid) {
                    continue;
                }
                let Ok(task) = Task::open(tid) else { continue };
                // Tasks in a freezer group of their own are not ours to move.
                if freezer.path_of(tid).is_ok_and(|path| path == home) {
                    cell.take(tid)?;
                }
                tasks.insert(tid, task);
            }
            tasks.retain(|_, task| task.stat().is_some());
            let killed = |task: &Task| task.stat().is_some_and(|stat| stat.killed());
            if tasks.values().any(killed) || self.is_over(ROUND) {
                return Ok(());
            }
        }
    }

    /// Whether it ends, within `patience`.
    fn is_over(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        poll(&mut fds, timeout).is_ok_and(|n| n > 0) || Instant::now() >= self.end
    }
}

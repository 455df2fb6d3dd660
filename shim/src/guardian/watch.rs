//! What the guardian process does.

use super::groups::Kernel;
use super::restore::{Restored, Undone, dying, everything, overdue};
use super::sys;
use crate::journal::{Deadline, Journal, Shared};
use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stdin, dup2_stdout, getppid, setsid, write};
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// How often deadlines are looked at while something is in flight. A step's deadline and this are less
/// than the 100 ms in which every limit is to be back.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// The same while its parent dies: what its last threads do in the kernel is undone as soon as it is done.
const LOOK_AT_THE_DYING_EVERY: Duration = Duration::from_millis(2);

/// Sent by the kernel when the thread that forked the guardian is gone, which is the first thing of a death: the pipe
/// closes with the last one, and that may take as long as a disk does, or a grace period of RCU.
const PARENT_DIES: Signal = Signal::SIGUSR1;

/// So many looks without anything in flight, and it goes to sleep: what comes in bursts wakes it once a
/// burst.
const QUIET_LOOKS: u32 = 3;

/// After its parent's end, what fails is tried again so often, for so long. Then the next start has it.
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(10);
const TRIES: u32 = 500;

/// What it is given.
pub(super) struct Post<'a> {
    pub(super) journal: &'a Journal,
    pub(super) lock: Option<BorrowedFd<'a>>,
    pub(super) kernel: &'a Kernel,
    /// Closed by the kernel when the parent's last thread is gone.
    pub(super) pipe: BorrowedFd<'a>,
    /// Told once all is prepared.
    pub(super) ready: BorrowedFd<'a>,
}

/// The whole life of the guardian: its exit code.
pub(super) fn main(post: &Post<'_>) -> i32 {
    let Some((shared, dies)) = prepare(post) else { return 1 };
    if write(post.ready, b"r").is_err() {
        return 1;
    }
    watch(post, &shared, dies.as_ref());
    for _ in 0..TRIES {
        let mut say = |path: &str, undone| say(path, undone, "its enforcer is gone");
        let Restored { failed, .. } = everything(shared.view(), post.kernel, &mut say);
        if failed == 0 {
            return 0;
        }
        let _ = poll(&mut [], PollTimeout::try_from(TRY_AGAIN_EVERY).unwrap_or(PollTimeout::ZERO));
    }
    2
}

/// Becomes a process that nothing of its parent's ends, with its memory in place. What is refused is
/// done without: it is protection against a host in trouble, and an unprivileged parent has none.
fn prepare(post: &Post<'_>) -> Option<(Shared, Option<SignalFd>)> {
    let _ = SigSet::all().thread_set_mask();
    let _ = setsid();
    let _ = prctl::set_name(c"cgshim-guardian");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    // Its work is short, and never reclaims: raising a limit, thawing, reading.
    sys::run_at_once();
    if let Ok(null) = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
        let _ = dup2_stdin(&null);
        let _ = dup2_stdout(&null);
    }
    let file = post.journal.file();
    let mut keep = vec![0, 1, 2];
    keep.extend([post.pipe, post.ready, post.journal.bell().fd()].map(|fd| fd.as_raw_fd()));
    keep.push(file.as_raw_fd());
    keep.extend(post.lock.map(|fd| fd.as_raw_fd()));
    keep.extend(post.kernel.fds().map(|fd| fd.as_raw_fd()));
    keep.sort_unstable();
    sys::close_all_but(&keep);
    // All that is mapped now, this program's text included. The journal is not: it comes after this, and
    // is locked page by page as it is touched, being mostly holes.
    let _ = mlockall(MlockAllFlags::MCL_CURRENT);
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_FUTURE | libc::MCL_ONFAULT);
    let _ = mlockall(on_fault);
    let shared = Shared::map(file, post.journal.bytes()).ok()?;
    let mut needed = CapsHashSet::new();
    // A container's control files may belong to whoever it was delegated to.
    needed.insert(Capability::CAP_DAC_OVERRIDE);
    if caps::read(None, CapSet::Permitted).is_ok_and(|have| have.is_superset(&needed)) {
        let _ = caps::set(None, CapSet::Effective, &needed);
        let _ = caps::set(None, CapSet::Permitted, &needed);
    }
    let _ = caps::clear(None, CapSet::Inheritable);
    // Last: a change of credentials takes it back. A parent that is dead already has closed its pipe.
    let mut only = SigSet::empty();
    only.add(PARENT_DIES);
    let dies = SignalFd::with_flags(&only, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).ok();
    let _ = prctl::set_pdeathsig(PARENT_DIES);
    Some((shared, dies))
}

/// Until the pipe closes.
fn watch(post: &Post<'_>, shared: &Shared, dies: Option<&SignalFd>) {
    let timeout_of = |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
    let look_every = timeout_of(LOOK_EVERY);
    let bell = post.journal.bell();
    let mut quiet = None;
    loop {
        let timeout = if quiet.is_some() { look_every } else { PollTimeout::NONE };
        let mut fds = [post.pipe, bell.fd(), dies.map_or(post.pipe, AsFd::as_fd)]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut fds, timeout);
        let [pipe, rung, dying] = fds.map(|fd| fd.any().unwrap_or(false));
        if pipe {
            return;
        }
        if dying && dies.is_some_and(is_of_parent) {
            return watch_the_dying(post, shared, timeout_of(LOOK_AT_THE_DYING_EVERY));
        }
        if rung {
            bell.take();
            quiet.get_or_insert(0);
        }
        let mut busy = false;
        if shared.view().in_flight().next().is_some() {
            busy = true;
            let mut say = |path: &str, undone| match undone {
                // Its owner sees that for itself, or who comes after it does.
                Undone::Foreign(_) | Undone::Gone => {}
                undone => say(path, undone, "it stood past its deadline"),
            };
            overdue(shared.view(), post.kernel, Deadline::now(), &mut say);
        }
        match &mut quiet {
            Some(looks) if busy => *looks = 0,
            Some(looks) if *looks < QUIET_LOOKS => *looks += 1,
            Some(_) => {
                shared.set_awake(false);
                // What began before that did not ring.
                if shared.view().in_flight().next().is_some() {
                    shared.set_awake(true);
                } else {
                    quiet = None;
                }
            }
            None if busy => quiet = Some(0),
            None => {}
        }
    }
}

/// Takes a signal: whether the parent's end sent it, and not just anybody.
fn is_of_parent(dies: &SignalFd) -> bool {
    let parent = u32::try_from(getppid().as_raw()).unwrap_or(0);
    dies.read_signal().is_ok_and(|info| info.is_some_and(|info| info.ssi_pid == parent))
}

/// Until the last thread of a parent that dies is gone.
fn watch_the_dying(post: &Post<'_>, shared: &Shared, look_every: PollTimeout) {
    loop {
        let mut say = |path: &str, undone| match undone {
            Undone::Foreign(_) | Undone::Gone => {}
            undone => say(path, undone, "its enforcer dies"),
        };
        dying(shared.view(), post.kernel, &mut say);
        let mut pipe = [PollFd::new(post.pipe, PollFlags::POLLIN)];
        if poll(&mut pipe, look_every).is_ok_and(|ready| ready > 0) {
            return;
        }
    }
}

/// One line on standard error, without allocating: logging is the parent's.
fn say(path: &str, undone: Undone, why: &str) {
    let mut line = Line { buf: [0; 1024], len: 0 };
    let _ = write!(line, "{path}: {undone}: {why}");
    line.print();
}

struct Line {
    buf: [u8; 1024],
    len: usize,
}

impl Line {
    fn print(&mut self) {
        let end = self.len.min(self.buf.len() - 1);
        self.buf[end] = b'\n';
        let mut left = &self.buf[..=end];
        // "guardian" first, then the line: one write, so that lines of others do not come between.
        while !left.is_empty() {
            match write(std::io::stderr(), left) {
                Ok(n) => left = &left[n..],
                Err(_) => return,
            }
        }
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.len == 0 {
            let name = b"cgshim guardian: ";
            self.buf[..name.len()].copy_from_slice(name);
            self.len = name.len();
        }
        let room = &mut self.buf[self.len..];
        let n = text.len().min(room.len());
        room[..n].copy_from_slice(&text.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

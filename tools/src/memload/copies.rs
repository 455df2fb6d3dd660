//! Several copies of a load, as processes: forked, started together, their reports pooled.
//!
//! Each copy prepares itself, says so through its pipe, and waits until the parent closes the gate
//! (another pipe), so that none runs while another still writes its file. At the end it writes its
//! report, histograms included, into its pipe. The parent passes stop signals on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use log::warn;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid, pipe2, read};

use super::args::Plan;
use super::report::Report;
use super::{Failure, execute, sys};

/// The first byte that a copy sends: it is ready, and a report follows when it is done...
const READY: u8 = b'R';
/// ...or it failed, and a message follows, about the usage...
const USAGE: u8 = b'U';
/// ...or about anything else.
const FAILED: u8 = b'F';

/// Runs the copies and pools their reports. A copy that is killed is counted as lost and the others
/// go on; one that cannot prepare itself ends all.
pub(crate) fn run(plan: &Plan) -> Result<Report, Failure> {
    // Blocked but while the parent waits in ppoll(), which therefore never misses one.
    let before = sys::stop_signals()
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(|errno| Failure::Failed(format!("--procs: cannot block signals: {errno}")))?;
    let result = start(plan, &before).and_then(|(mut copies, gate)| {
        let told = copies.listen(gate, &before)?;
        copies.result(plan, told)
    });
    // It was valid before.
    let _ = before.thread_set_mask();
    result
}

/// Forks the copies. The gate opens when the descriptor is dropped.
fn start(plan: &Plan, mask: &SigSet) -> Result<(Copies, OwnedFd), Failure> {
    let failure = |what: &str, errno: Errno| {
        Failure::Failed(format!("--procs {}: cannot {what}: {errno}", plan.procs))
    };
    let parent = getpid();
    let mut copies = Copies(Vec::new());
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| failure("make a pipe", errno));
    let (gate, holder) = pipe()?;
    let mut holder = Some(holder);
    for number in 0..plan.procs {
        let (reader, writer) = pipe()?;
        let mut reader = Some(reader);
        let pid = sys::fork_child(|| {
            // The parent's ends, closed here: a gate with a second holder would never open. The other
            // copies are not this one's to kill, either.
            drop((holder.take(), reader.take(), std::mem::take(&mut copies.0)));
            copy(plan, number, &gate, File::from(writer), parent, mask)
        })
        .map_err(|errno| failure("fork", errno))?;
        copies.0.push(Copy { pid, pipe: reader, sent: Vec::new() });
    }
    match holder {
        Some(holder) => Ok((copies, holder)),
        None => unreachable!("only a copy takes it"),
    }
}

/// What a copy does. Returns its exit code.
fn copy(plan: &Plan, number: u32, gate: &OwnedFd, pipe: File, parent: Pid, mask: &SigSet) -> u8 {
    // A copy does not outlive the parent, even if that died before prctl().
    let _ = prctl::set_pdeathsig(Signal::SIGTERM);
    if getppid() != parent || mask.thread_set_mask().is_err() {
        return 1;
    }
    let send = |kind: u8, text: &str| {
        (&pipe).write_all(&[kind]).and_then(|()| (&pipe).write_all(text.as_bytes()))
    };
    let mut sent = Ok(());
    let result = execute(plan, number, || {
        sent = send(READY, "");
        while read(gate, &mut [0]) == Err(Errno::EINTR) && !sys::stop_requested() {}
    });
    let sent = sent.and_then(|()| match &result {
        Ok(report) => serde_json::to_writer(&pipe, report).map_err(io::Error::from),
        Err(Failure::Usage(message)) => send(USAGE, message),
        Err(Failure::Failed(message)) => send(FAILED, message),
    });
    u8::from(result.is_err() || sent.is_err())
}

struct Copy {
    pid: Pid,
    /// `None` when the copy has ended.
    pipe: Option<OwnedFd>,
    sent: Vec<u8>,
}

/// All copies; those that were not waited for are killed on drop.
struct Copies(Vec<Copy>);

impl Copies {
    /// Opens the gate when all are ready, and takes in what they send until all have ended. Returns
    /// whether they were told to stop.
    fn listen(&mut self, gate: OwnedFd, before: &SigSet) -> Result<bool, Failure> {
        let mut gate = Some(gate);
        let mut told = false;
        while self.0.iter().any(|copy| copy.pipe.is_some()) {
            if self.0.iter().all(|copy| copy.pipe.is_none() || !copy.sent.is_empty()) {
                drop(gate.take());
            }
            let failed = |copy: &Copy| matches!(copy.sent.first(), Some(&(USAGE | FAILED)));
            if !told && (sys::stop_requested() || self.0.iter().any(failed)) {
                told = true;
                for copy in &self.0 {
                    // ESRCH cannot be: it is not reaped yet.
                    let _ = kill(copy.pid, Signal::SIGTERM);
                }
            }
            let open = self.0.iter().filter_map(|copy| copy.pipe.as_ref());
            let mut fds: Vec<PollFd> =
                open.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
            match ppoll(&mut fds, None, Some(*before)) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Failure::Failed(format!("--procs: ppoll: {errno}"))),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            let open = self.0.iter_mut().filter(|copy| copy.pipe.is_some());
            for (copy, _) in open.zip(ready).filter(|(_, ready)| *ready) {
                copy.receive();
            }
        }
        Ok(told)
    }

    /// Reaps all, and pools what they reported.
    fn result(mut self, plan: &Plan, told: bool) -> Result<Report, Failure> {
        let mut reports = Vec::new();
        let mut lost = 0;
        let copies = std::mem::take(&mut self.0);
        let ended: Vec<_> = copies.into_iter().map(|copy| (wait(copy.pid), copy)).collect();
        for (status, copy) in ended {
            let report = match copy.sent.split_first() {
                Some((&USAGE, message)) => return Err(Failure::Usage(text(message))),
                Some((&FAILED, message)) => return Err(Failure::Failed(text(message))),
                Some((_, json)) => serde_json::from_slice(json).ok(),
                None => None,
            };
            match (status, report) {
                (Ok(WaitStatus::Exited(_, 0)), Some(report)) => reports.push(report),
                (status, _) => {
                    lost += 1;
                    warn!("copy {} is lost, its numbers too: {}", copy.pid, ending(status));
                }
            }
        }
        let mut pooled = Report::pool(&reports).ok_or_else(|| {
            let when = if told { " after a stop signal" } else { "" };
            Failure::Failed(format!("--procs {}: all copies were lost{when}", plan.procs))
        })?;
        pooled.children_lost += lost;
        Ok(pooled)
    }
}

impl Copy {
    fn receive(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        let mut buffer = [0; 16 << 10];
        match read(pipe, &mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(got) => self.sent.extend_from_slice(&buffer[..got]),
            Err(Errno::EINTR) => {}
            Err(_) => self.pipe = None,
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for copy in &self.0 {
            let _ = kill(copy.pid, Signal::SIGKILL);
            let _ = wait(copy.pid);
        }
    }
}

fn wait(pid: Pid) -> nix::Result<WaitStatus> {
    loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn ending(status: nix::Result<WaitStatus>) -> String {
    match status {
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
        Ok(WaitStatus::Exited(_, code)) => format!("ended with code {code}"),
        Ok(status) => format!("{status:?}"),
        Err(errno) => errno.to_string(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

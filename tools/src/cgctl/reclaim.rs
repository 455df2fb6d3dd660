//! `cgctl reclaim`: byte-targeted reclaim of any cgroup, v1 or v2.

use super::cli::ReclaimArgs;
use super::error::{FAILED, Failure};
use super::find;
use crate::report::fmt;
use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, MemoryHierarchy};
use cgshim::core::Outcome;
use cgshim::driver::{self, Once};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

/// `cgctl reclaim --json`.
#[derive(Debug, Serialize)]
struct Reclaimed {
    schema: u32,
    cgroup: String,
    hierarchy: &'static str,
    asked_bytes: u64,
    freed_bytes: u64,
    strategy: Option<&'static str>,
    stopped_because: Option<String>,
    steps: u32,
    wall_ms: f64,
    cpu_ms: f64,
    usage_bytes: u64,
    limit_bytes: Option<u64>,
    declared_limit_restored: bool,
}

/// The signals that end a program, taken by descriptor while there is something to undo; Ctrl-Z waits.
struct Signals {
    fd: SignalFd,
    held: SigSet,
}

impl Signals {
    fn block() -> Result<Signals, Failure> {
        let refused =
            |errno: Errno| Failure::new(FAILED, format!("cannot block signals: {}", errno.desc()));
        let mut ending = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            ending.add(signal);
        }
        let mut held = ending;
        held.add(Signal::SIGTSTP);
        held.thread_block().map_err(refused)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&ending, flags).map_err(refused)?;
        Ok(Signals { fd, held })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The signal that came, if one did.
    fn unblock(self) -> Option<i32> {
        let signal = self.fd.read_signal().ok().flatten().map(|info| info.ssi_signo as i32);
        let _ = self.held.thread_unblock();
        signal
    }
}

pub(super) fn main(args: &ReclaimArgs) -> Result<ExitCode, Failure> {
    if args.size == Bytes(0) {
        return Err(Failure::usage("SIZE is 0: nothing to reclaim"));
    }
    if !(args.timeout > 0.0 && args.timeout <= 86_400.0) {
        return Err(Failure::usage("--timeout must be between 0 and 86400 seconds"));
    }
    let hierarchy = MemoryHierarchy::find()?;
    let group = find::group(&hierarchy, &args.group)?;
    if group.path() == hierarchy.mount_point {
        return Err(Failure::usage(
            "the root cgroup cannot be reclaimed from (its limit and memory.force_empty answer EINVAL); \
             name a group below it",
        ));
    }
    let memory = driver::open_memory(&group)?;
    let declared = memory.limit()?;
    // Ended by a signal, it must still undo what it has in flight; stopped by one, only when it is done.
    let signals = Signals::block()?;
    let ended = || {
        group.procs().is_ok_and(|procs| procs.is_empty())
            && group.children().is_ok_and(|children| children.is_empty())
    };
    let patience = Duration::from_secs_f64(args.timeout);
    let Once { report, why } =
        driver::reclaim_once(&memory, args.size, &ended, patience, Some(signals.fd()))?;
    let signal = signals.unblock();
    let now = memory.limit()?;
    let (freed, steps, wall, cpu, strategy, outcome) = match &report {
        Some((strategy, report)) => (
            report.freed,
            report.steps,
            report.wall,
            report.cpu,
            Some(strategy.as_str()),
            Some(report.outcome),
        ),
        None => (Bytes(0), 0, Duration::ZERO, Duration::ZERO, None, None),
    };
    let stopped_because = why.map(str::to_owned).or(match outcome {
        Some(Outcome::Reached) | None => None,
        Some(Outcome::Exhausted) => Some("nothing more can be reclaimed".into()),
        Some(Outcome::Deadline) => Some(format!("--timeout of {} s is over", args.timeout)),
        Some(Outcome::Cancelled) => Some("it was cancelled".into()),
        Some(Outcome::Foreign(limit)) => {
            Some(format!("somebody else set the limit to {limit} meanwhile: theirs stands"))
        }
        Some(Outcome::ForeignHigh(high)) => {
            Some(format!("somebody else set memory.high to {high} meanwhile: theirs stands"))
        }
        Some(Outcome::Vanished) => Some("the cgroup was removed meanwhile".into()),
        Some(Outcome::Failed(errno)) => {
            let errno = Errno::from_raw(errno);
            let way_out = match errno {
                Errno::EACCES | Errno::EPERM | Errno::EROFS => "; this needs root",
                _ => "",
            };
            Some(format!("the kernel refuses: {errno}{way_out}"))
        }
    });
    let result = Reclaimed {
        schema: 1,
        cgroup: group.path().display().to_string(),
        hierarchy: memory.version().as_str(),
        asked_bytes: args.size.0,
        freed_bytes: freed.0,
        strategy,
        stopped_because,
        steps,
        wall_ms: wall.as_secs_f64() * 1000.0,
        cpu_ms: cpu.as_secs_f64() * 1000.0,
        usage_bytes: memory.usage()?.0,
        limit_bytes: now.bytes().map(|bytes| bytes.0),
        declared_limit_restored: now == declared,
    };
    if args.json {
        super::print_json(&result)?;
    } else {
        super::print(&format!(
            "asked {}, freed {} by {} in {} ({} CPU); in use {}, limit {now}\n",
            fmt::bytes(result.asked_bytes),
            fmt::bytes(result.freed_bytes),
            result.strategy.unwrap_or("nothing"),
            fmt::duration_ms(result.wall_ms),
            fmt::duration_ms(result.cpu_ms),
            fmt::bytes(result.usage_bytes),
        ));
        if let Some(why) = &result.stopped_because {
            eprintln!("cgctl: less than asked: {why}");
        }
    }
    if let Some(signal) = signal {
        return Ok(ExitCode::from((128 + signal).clamp(0, 255) as u8));
    }
    let enough = result.stopped_because.is_none();
    Ok(ExitCode::from(if enough { 0 } else { FAILED }))
}

//! `cgctl reclaim`: byte-targeted reclaim of any cgroup, v1 or v2.

use super::cli::ReclaimArgs;
use super::error::{FAILED, Failure};
use super::guard::Guard;
use super::set::WithSchema;
use super::{daemon, find};
use crate::report::fmt;
use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, MemoryHierarchy};
use cgshim::api::message::{Reclaimed, Request};
use cgshim::daemon::stopped_because;
use cgshim::driver;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

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

pub(super) fn main(args: &ReclaimArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    if args.size == Bytes(0) {
        return Err(Failure::usage("SIZE is 0: nothing to reclaim"));
    }
    if !(args.timeout > 0.0 && args.timeout <= 86_400.0) {
        return Err(Failure::usage("--timeout must be between 0 and 86400 seconds"));
    }
    let hierarchy = MemoryHierarchy::find()?;
    let mut unknown = None;
    if let Some(result) = by_daemon(args, run_dir, &hierarchy, &mut unknown)? {
        show(args, &result)?;
        let enough = result.stopped_because.is_none();
        return Ok(ExitCode::from(if enough { 0 } else { FAILED }));
    }
    let group = find::group(&hierarchy, &args.group)
        .map_err(|failure| daemon::nobody(&args.group, unknown, failure))?;
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
    let guard = Guard::set_up()?;
    let slot = driver::enter(&guard.journal, &group, &hierarchy.mount_point)?;
    let signalled = Some(signals.fd());
    let once = driver::reclaim_once(&memory, args.size, &ended, patience, signalled, Some(slot))?;
    drop(guard);
    let signal = signals.unblock();
    let now = memory.limit()?;
    let (freed, steps, wall, cpu, strategy) = match &once.report {
        Some((strategy, report)) => (
            report.freed,
            report.steps,
            report.wall,
            report.cpu,
            Some(strategy.as_str().to_owned()),
        ),
        None => (Bytes(0), 0, Duration::ZERO, Duration::ZERO, None),
    };
    let stopped_because = stopped_because(&once, patience);
    let result = Reclaimed {
        cgroup: group.path().display().to_string(),
        hierarchy: memory.version().as_str().into(),
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
    show(args, &result)?;
    if let Some(signal) = signal {
        return Ok(ExitCode::from((128 + signal).clamp(0, 255) as u8));
    }
    let enough = result.stopped_because.is_none();
    Ok(ExitCode::from(if enough { 0 } else { FAILED }))
}

/// By the daemon, if the group is one of its containers: two that step one limit would each take the
/// other's step for somebody's new limit. Else why it is `unknown` to the daemon.
fn by_daemon(
    args: &ReclaimArgs,
    run_dir: Option<&Path>,
    hierarchy: &MemoryHierarchy,
    unknown: &mut Option<Failure>,
) -> Result<Option<Reclaimed>, Failure> {
    let Some(mut client) = daemon::connect_if_running(run_dir) else { return Ok(None) };
    let id = if args.group.contains('/') {
        let Ok(group) = find::group(hierarchy, &args.group) else { return Ok(None) };
        let path = group.path().display().to_string();
        let all = daemon::containers(&mut client, false)?;
        all.into_iter().find(|container| container.cgroup == path).map(|container| container.id)
    } else {
        let container = daemon::container(&mut client, &args.group);
        container.map_err(|failure| *unknown = Some(failure)).ok().map(|container| container.id)
    };
    let Some(id) = id else { return Ok(None) };
    let timeout = Duration::from_secs_f64(args.timeout);
    client.patience(Some(timeout + Duration::from_secs(10)))?;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Reclaim { id, bytes: args.size.0, timeout_ms };
    Ok(Some(client.ask(request)?))
}

fn show(args: &ReclaimArgs, result: &Reclaimed) -> Result<(), Failure> {
    if args.json {
        super::print_json(&WithSchema { schema: 1, value: result })?;
    } else {
        super::print(&format!(
            "asked {}, freed {} by {} in {} ({} CPU); in use {}, limit {}\n",
            fmt::bytes(result.asked_bytes),
            fmt::bytes(result.freed_bytes),
            result.strategy.as_deref().unwrap_or("nothing"),
            fmt::duration_ms(result.wall_ms),
            fmt::duration_ms(result.cpu_ms),
            fmt::bytes(result.usage_bytes),
            result.limit_bytes.map_or_else(|| "max".into(), fmt::bytes),
        ));
        if let Some(why) = &result.stopped_because {
            eprintln!("cgctl: less than asked: {why}");
        }
    }
    Ok(())
}

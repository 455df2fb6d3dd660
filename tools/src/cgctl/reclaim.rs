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
use serde::Serialize;
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
    let procs = group.procs()?.len() + group.children()?.len();
    let Once { report, why } = driver::reclaim_once(
        &memory,
        args.size,
        procs == 0,
        Duration::from_secs_f64(args.timeout),
    )?;
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
    let enough = result.stopped_because.is_none();
    Ok(ExitCode::from(if enough { 0 } else { FAILED }))
}

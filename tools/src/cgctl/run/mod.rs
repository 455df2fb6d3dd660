//! `cgctl run`: a command in a memory cgroup of its own, with the engine embedded.

mod child;
mod group;
mod record;
mod report;

use super::cli::{ReportFile, RunArgs, Share, Switch};
use super::error::{Failure, RUN_FAILED, USAGE, cannot_write};
use super::guard::Guard;
use crate::report::Timeline;
use cgroupfs::memory::Version;
use cgroupfs::{Bytes, Limit, MemoryHierarchy};
use cgshim::core::throttle::WayOut;
use cgshim::core::{Notice, OomPolicy, WatermarkSpec};
use cgshim::driver::oom::{Identity, OomOptions, OomWatch};
use cgshim::driver::{Engine, Happened, Key, OomHold, Policy};
use child::Child;
pub(crate) use child::Ended;
use group::RunGroup;
use nix::sys::signal::Signal;
use record::Recorder;
pub(crate) use report::{DirectReclaim, RunReport};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// Reclaim threads of the embedded engine: one group, one job at a time.
const WORKERS: usize = 1;

/// How long a release may take before the run goes on without it: a worker in writeback cannot be
/// interrupted within a pass.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// How long the last records of OOMs are waited for: the kernel log's line on a kill may be late.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);

/// What to run, and how it is to be held.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) parent: Option<PathBuf>,
    pub(crate) limit: Limit,
    pub(crate) high: Limit,
    pub(crate) swap: Option<Limit>,
    pub(crate) watermark: WatermarkSpec,
    pub(crate) throttle: bool,
    pub(crate) way_out: WayOut,
    pub(crate) oom: OomPolicy,
    pub(crate) off: bool,
    pub(crate) command: Vec<OsString>,
    /// Sample usage for a picture.
    pub(crate) timeline: bool,
    /// Where the command's standard output goes; ours if `None`.
    pub(crate) stdout: Option<File>,
    /// Records of OOMs are kept under this run directory.
    pub(crate) run_dir: Option<PathBuf>,
    /// Told about the run while it goes on, as often as samples are taken.
    pub(crate) progress: Option<Arc<Progress>>,
}

/// The last numbers of a run that goes on, for whoever shows them.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Usage.
    pub(crate) usage_bytes: AtomicU64,
    /// Direct reclaim since the start.
    pub(crate) direct_reclaim: AtomicU64,
}

/// What came of it.
pub(crate) struct Finished {
    pub(crate) report: RunReport,
    pub(crate) timeline: Timeline,
    pub(crate) ended: Ended,
    /// The signal that told us to end, if one did: it was passed on to the command.
    pub(crate) told_to_end: Option<Signal>,
}

/// `cgctl run`.
pub(crate) fn main(args: Box<RunArgs>, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let mut spec = spec(&args)?;
    spec.run_dir = Some(cgshim::api::client::run_dir(run_dir));
    // A file that cannot be written is better known before the command has run for an hour.
    let mut made = Vec::new();
    let finished = prepare(&args.report, &mut made).and_then(|()| execute(spec));
    let mut finished = finished.inspect_err(|_| {
        for path in made {
            let _ = std::fs::remove_file(path);
        }
    })?;
    finished.report.class = args.class;
    finished.report.request_bytes = args.request.map(|bytes| bytes.0);
    let json = || {
        serde_json::to_string(&finished.report)
            .map_err(|error| Failure::new(RUN_FAILED, error.to_string()))
    };
    for file in &args.report {
        let (path, content) = match file {
            ReportFile::Json(path) => (path, json()? + "\n"),
            ReportFile::Svg(path) => (path, crate::report::svg::run(&finished.timeline)),
        };
        std::fs::write(path, content)
            .map_err(|error| cannot_write(path.clone(), &error).code(RUN_FAILED))?;
    }
    if args.json && !args.report.iter().any(|file| matches!(file, ReportFile::Json(_))) {
        eprintln!("{}", json()?);
    } else if !args.quiet && args.report.is_empty() {
        eprint!("{}", finished.report.for_people());
    }
    Ok(ExitCode::from(finished.ended.exit_code()))
}

/// Sees that the reports can be written; `made` are files that were not there before.
fn prepare(reports: &[ReportFile], made: &mut Vec<PathBuf>) -> Result<(), Failure> {
    for ReportFile::Json(path) | ReportFile::Svg(path) in reports {
        match File::options().append(true).create_new(true).open(path) {
            Ok(_) => made.push(path.clone()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                File::options()
                    .append(true)
                    .open(path)
                    .map_err(|error| cannot_write(path.clone(), &error).code(RUN_FAILED))?;
            }
            Err(error) => return Err(cannot_write(path.clone(), &error).code(RUN_FAILED)),
        }
    }
    Ok(())
}

fn spec(args: &RunArgs) -> Result<Spec, Failure> {
    let limit = args.limit.unwrap_or(Limit::Max);
    if let Limit::Bytes(bytes) = limit
        && bytes < Bytes(cgroupfs::units::page_size())
    {
        return Err(Failure::usage(format!(
            "--limit {}: no command runs in less than a page; a few MiB is the least that is useful",
            bytes.0
        )));
    }
    let high = match (args.high, limit) {
        (None, _) => Limit::Max,
        (Some(Share::Size(high)), _) => high,
        (Some(Share::OfLimit(part)), Limit::Bytes(limit)) => {
            Limit::Bytes(limit.scale(u64::from(part), 10_000).page_floor())
        }
        (Some(Share::OfLimit(_)), Limit::Max) => {
            return Err(Failure::usage(
                "--high P% is a share of --limit, and there is none: give both",
            ));
        }
    };
    if high != Limit::Max && high > limit {
        return Err(Failure::usage(format!(
            "--high {high} is above --limit {limit}: the limit would be hit before throttling starts; \
             choose a lower --high, as in --high 90%"
        )));
    }
    if high == Limit::Bytes(Bytes(0)) {
        return Err(Failure::usage("--high 0 would stop the command for good; choose a size"));
    }
    if args.swap.is_some_and(|swap| swap != Limit::Max) && limit == Limit::Max {
        return Err(Failure::usage(
            "--swap is swap on top of --limit (v1 counts both together), and there is none: give both",
        ));
    }
    let name = args.name.clone().unwrap_or_else(|| format!("run-{}", std::process::id()));
    cgroupfs::dir::check_name(&name)
        .map_err(|error| Failure::new(USAGE, format!("--name: {error}")))?;
    Ok(Spec {
        name,
        parent: args.parent.clone(),
        limit,
        high,
        swap: args.swap,
        watermark: args.watermark,
        throttle: args.throttle == Switch::On,
        way_out: args.way_out,
        oom: args.oom,
        off: args.off,
        command: args.command.clone(),
        timeline: args.report.iter().any(|file| matches!(file, ReportFile::Svg(_))),
        stdout: None,
        progress: None,
        run_dir: None,
    })
}

/// Makes the group, runs the command in it, enforces, and removes the group again.
pub(crate) fn execute(mut spec: Spec) -> Result<Finished, Failure> {
    let failed = |error: cgroupfs::Error| Failure::from(error).code(RUN_FAILED);
    let hierarchy = MemoryHierarchy::find().map_err(failed)?;
    // From here on no signal ends us with a group left behind.
    let _blocked = child::block()?;
    let mut group = RunGroup::create(&hierarchy, &spec).map_err(failed)?;
    let mut guard = Guard::set_up().map_err(failed)?;
    let mut engine = Engine::new(WORKERS, guard.journal.clone()).map_err(failed)?;
    let memory = group.memory();
    // Before the command starts: it may be killed within its first millisecond.
    let mut recorder = Recorder::new(&spec, &*memory);
    let witness = attach_witness(&mut engine, &spec);
    // v2 has memory.oom.group; on v1 somebody must watch for the first kill.
    let watch_only =
        spec.off && !witness && spec.oom == OomPolicy::Group && group.version() == Version::V1;
    let key = if spec.off && !watch_only {
        None
    } else {
        let watermarks = if watch_only { WatermarkSpec::Off } else { spec.watermark };
        let policy = Policy { watermarks, high: spec.high };
        match engine.register(group.group(), policy) {
            Ok(key) => Some(key),
            Err(error) => {
                // Fail open, loudly: the command runs on under its limit.
                log::warn!("the engine cannot work here: {error}");
                None
            }
        }
    };
    let mut door = None;
    if let Some(key) = key {
        recorder.marks(engine.watermarks(key));
        let freezes = matches!(spec.oom, OomPolicy::Freeze(_)) && group.version() == Version::V1;
        if spec.throttle && !spec.off && !freezes {
            match engine.throttle_ahead(key, spec.way_out) {
                Ok(opened) => door = opened,
                Err(error) => log::warn!("growth above {} is not throttled: {error}", spec.high),
            }
        }
        let hold = match spec.oom {
            OomPolicy::Hold(longest) => Some(OomHold::Raise(longest, None)),
            OomPolicy::Freeze(longest) => Some(OomHold::Freeze(longest)),
            OomPolicy::Kill | OomPolicy::Group => None,
        };
        if hold.is_some()
            && let Err(error) = engine.hold(key, hold)
        {
            log::warn!("the OOM killer is not held off: {error}");
        }
    }
    let identity = Identity { name: spec.name.clone(), ..Identity::default() };
    let witnessed = match key {
        Some(key) => {
            engine.record_ooms(key, identity);
            Some(key)
        }
        None => engine.witness(group.group(), identity),
    };
    let mut child = Child::start(&mut spec, &group, door, &engine)?;
    watch_over(&engine, guard.gone()).map_err(failed)?;
    if let Some(key) = witnessed {
        engine.oom_init(key, child.pid());
    }
    let ended = attend(&mut engine, &mut guard, key, &mut child, &group, &spec, &mut recorder)?;
    recorder.wall = recorder.start.elapsed();
    if let Some(key) = witnessed {
        settle(&mut engine, key, &mut recorder)?;
    }
    if let Some(key) = key {
        // A job in flight may have its look at the limit still to come.
        engine.quiesce(key, RELEASE_PATIENCE);
        engine.look_at_limit(key);
        recorder.declare(engine.declared(key));
        recorder.throttled = engine.throttled(key).unwrap_or_default();
        release(&mut engine, key, &mut recorder)?;
    }
    group.kill_leftovers();
    recorder.finish(&*memory);
    // Of a group that somebody removed there is nothing left to restore.
    let restored = spec.off
        || match memory.limit() {
            Ok(limit) => limit == recorder.declared(),
            Err(error) => error.is_vanished(),
        };
    drop(engine);
    drop(guard);
    let removed = group.remove(!spec.off);
    if let Err(error) = removed {
        log::warn!("{error}");
    }
    let report = report::build(&spec, &hierarchy, &group, &recorder, ended, restored);
    let told_to_end = child.told_to_end();
    Ok(Finished { report, timeline: recorder.timeline(&spec), ended, told_to_end })
}

/// Whether a group named `name` can be made where a run would make it: makes it, and removes it again.
pub(crate) fn may_create(
    hierarchy: &MemoryHierarchy,
    parent: Option<&Path>,
    name: &str,
) -> cgroupfs::Result<()> {
    let parent = group::parent(hierarchy, parent)?;
    parent.create_child(name)?;
    parent.remove_child(name, Duration::from_secs(1))
}

/// Turns the loop until the command ends.
fn attend(
    engine: &mut Engine,
    guard: &mut Guard,
    key: Option<Key>,
    child: &mut Child,
    group: &RunGroup,
    spec: &Spec,
    recorder: &mut Recorder,
) -> Result<Ended, Failure> {
    let mut happened = Vec::new();
    loop {
        let patience = spec.timeline.then(|| recorder.sample(&*group.memory()));
        engine
            .turn(patience, &mut happened)
            .map_err(|error| Failure::from(error).code(RUN_FAILED))?;
        for event in happened.drain(..) {
            match event {
                Happened::Fd(GUARDIAN) => watch_over(engine, guard.post())
                    .map_err(|error| Failure::from(error).code(RUN_FAILED))?,
                Happened::Fd(_) => {
                    if let Some(ended) = child.signals(|| quiesce(engine, key))? {
                        return Ok(ended);
                    }
                }
                Happened::OomKill(_, _, kills, _) => {
                    recorder.take(&event);
                    // v2 has memory.oom.group for this.
                    if spec.oom == OomPolicy::Group && group.version() == Version::V1 {
                        log::info!("{kills} killed at the limit: the rest of the group follows");
                        group.kill_all(Signal::SIGKILL);
                    }
                }
                Happened::Throttle(_, _, ref told) => {
                    if let Some(message) = told.message() {
                        log::warn!("{}: {message}", spec.name);
                    }
                    recorder.take(&event);
                }
                Happened::Hold(_, _, held) => {
                    log::warn!("{}: {}", spec.name, held.message());
                    recorder.take(&event);
                }
                Happened::Notice(_, _, ref notice) => {
                    tell(&spec.name, notice);
                    recorder.take(&event);
                }
                event => recorder.take(&event),
            }
        }
    }
}

/// Has every OOM of the command recorded; whether that can be done. What is missing shows in the
/// records themselves.
fn attach_witness(engine: &mut Engine, spec: &Spec) -> bool {
    let options =
        OomOptions { run_dir: spec.run_dir.clone(), log_wakes: false, ..OomOptions::default() };
    let attached = OomWatch::start(options).and_then(|watch| {
        if let Err(why) = &watch.sources().store {
            log::info!("OOM records are in the report only: {why}");
        }
        engine.attach_oom_watch(watch)
    });
    match attached {
        Ok(()) => true,
        Err(error) => {
            log::warn!("{error}; kills are counted, and not explained");
            false
        }
    }
}

/// Waits until all that is to be said about OOMs has been said: at once if there were none.
fn settle(engine: &mut Engine, key: Key, recorder: &mut Recorder) -> Result<(), Failure> {
    engine.finish_ooms(key);
    if engine.oom_sources().is_none() {
        return Ok(());
    }
    let start = Instant::now();
    let mut happened = Vec::new();
    while start.elapsed() < SETTLE_PATIENCE {
        engine
            .turn(Some(Duration::from_millis(20)), &mut happened)
            .map_err(|error| Failure::from(error).code(RUN_FAILED))?;
        let mut settled = false;
        for event in happened.drain(..) {
            settled |= matches!(event, Happened::OomsRecorded(of) if of == key);
            recorder.take(&event);
        }
        if settled {
            break;
        }
    }
    Ok(())
}

/// What wakes the loop when the guardian is gone.
const GUARDIAN: u64 = 1;

fn watch_over(engine: &Engine, gone: Option<BorrowedFd<'_>>) -> cgroupfs::Result<()> {
    gone.map_or(Ok(()), |gone| engine.watch(gone, GUARDIAN))
}

/// Nothing of ours stands while we are stopped.
fn quiesce(engine: &mut Engine, key: Option<Key>) {
    if let Some(key) = key {
        engine.quiesce(key, RELEASE_PATIENCE);
    }
}

fn release(engine: &mut Engine, key: Key, recorder: &mut Recorder) -> Result<(), Failure> {
    engine.recount(key);
    if engine.totals(key).is_none() {
        // The group was removed under us, and the container forgotten with it.
        return Ok(());
    }
    engine.release(key);
    let start = Instant::now();
    let mut happened = Vec::new();
    loop {
        engine
            .turn(Some(Duration::from_millis(1)), &mut happened)
            .map_err(|error| Failure::from(error).code(RUN_FAILED))?;
        let mut forgotten = false;
        for event in happened.drain(..) {
            forgotten |= matches!(event, Happened::Forgotten(..));
            recorder.take(&event);
        }
        if forgotten {
            return Ok(());
        }
        if start.elapsed() > RELEASE_PATIENCE {
            log::warn!(
                "a reclaim write is still waiting in the kernel; leaving it to its deadline"
            );
            return Ok(());
        }
    }
}

fn tell(name: &str, notice: &Notice) {
    match notice {
        Notice::Adopted(from, to) => {
            log::warn!("{name}: somebody else changed the limit from {from} to {to}: adopted");
        }
        Notice::StandingAside(why) => log::info!("{name}: standing aside: {}", why.as_str()),
        Notice::Resumed => log::info!("{name}: reclaiming again"),
        Notice::Futile(pause) => log::info!(
            "{name}: reclaim frees next to nothing; trying again in {} ms",
            pause.as_millis()
        ),
        Notice::Refused(errno, pause) => log::warn!(
            "{name}: the kernel refuses to reclaim ({}); trying again in {} ms",
            nix::errno::Errno::from_raw(*errno),
            pause.as_millis()
        ),
    }
}

//! `cgctl demo`: the main job on bundled loads, without the engine and with it, side by side.
//!
//! Every run is what `cgctl run` does, of a load that this binary carries (`memload`). What drifts on the
//! host while the demo runs hits both sides alike: their runs take turns.

mod file;
mod progress;
mod scenario;
mod side;
mod zram;

use super::cli::DemoArgs;
use super::error::{FAILED, Failure};
use super::run::{self, Ended, Finished, Progress, Spec};
use crate::memload;
use crate::report::{CompareRow, Timeline, fmt, svg, term};
use crate::sys;
use cgroupfs::procfs::Meminfo;
use cgroupfs::{Limit, MemoryHierarchy};
use cgshim::core::{OomPolicy, WatermarkSpec};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use progress::{Live, say};
use scenario::{Host, Scenario, Skip};
use serde::Serialize;
use side::{Side, SideJson};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use zram::Zram;

/// The two sides.
const NAMES: (&str, &str) = ("engine off", "engine on");

/// `cgctl demo --json`.
#[derive(Debug, Serialize)]
struct Demo {
    schema: u32,
    kernel: String,
    hierarchy: &'static str,
    memory_bytes: u64,
    quick: bool,
    scenarios: Vec<ScenarioJson>,
    skipped: Vec<SkipJson>,
    svg: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct ScenarioJson {
    name: &'static str,
    load: String,
    limit_bytes: u64,
    off: SideJson,
    on: SideJson,
}

#[derive(Debug, Serialize)]
struct SkipJson {
    name: &'static str,
    why: String,
}

/// One load, both sides.
struct Compared {
    scenario: Scenario,
    off: Side,
    on: Side,
    rows: Vec<CompareRow>,
    /// The first run of each side.
    timelines: (Timeline, Timeline),
}

/// Why a load brought no result.
enum Stopped {
    /// The demo was told to end.
    Told(Signal),
    /// It cannot run here.
    Skipped(String),
    /// It broke.
    Failed(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Stopped {
        Stopped::Failed(failure.code(FAILED))
    }
}

/// The signals that end the demo, blocked from now on: it ends where it has cleaned up.
struct Signals(SignalFd);

impl Signals {
    fn block() -> Result<Signals, Failure> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            mask.add(signal);
        }
        mask.thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map(Signals)
            .map_err(|errno| {
                Failure::new(FAILED, format!("cannot wait for signals: {}", errno.desc()))
            })
    }

    /// The signal that came between two runs; within one, the run takes it.
    fn told(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok()??;
        Signal::try_from(info.ssi_signo as i32).ok()
    }
}

pub(super) fn main(args: &DemoArgs) -> Result<ExitCode, Failure> {
    let hierarchy = may_make_groups(args.parent.as_deref())?;
    let signals = Signals::block()?;
    let _zram = args.zram.map(Zram::set_up).transpose()?;
    if let Some(zram) = &_zram {
        say(&format!("swap on {} until the demo ends", zram.device().display()));
    }
    let host = host()?;
    let (scenarios, mut skips) = scenario::choose(host, args.quick);
    announce(&scenarios, &skips, args);
    let (mut compared, mut failed) = (Vec::new(), None);
    for scenario in scenarios {
        match both_sides(&scenario, args, &signals) {
            Ok(result) => {
                if !args.json {
                    show(&result);
                }
                compared.push(result);
            }
            Err(Stopped::Told(signal)) => {
                say(&format!("cgctl: ended by {}; its groups are removed", signal.as_str()));
                return Ok(ExitCode::from(Ended::Signal(signal as i32).exit_code()));
            }
            Err(Stopped::Skipped(why)) => {
                let way_out = "choose another directory with --dir".into();
                say(&format!("{}: skipped: {why}; {way_out}", scenario.kind.name()));
                skips.push(Skip { kind: scenario.kind, why, way_out });
            }
            Err(Stopped::Failed(failure)) => {
                say(&format!("{}: {}", scenario.kind.name(), failure.message));
                failed = Some(failure);
            }
        }
    }
    let svg = if compared.is_empty() { None } else { draw(&compared, &args.svg) };
    if args.json {
        print_json(&hierarchy, host, args.quick, &compared, &skips, svg)?;
    }
    match failed {
        Some(failure) => Ok(ExitCode::from(failure.code)),
        None if compared.is_empty() => Err(Failure::new(
            FAILED,
            "no load of the demo can run here; what each one lacks is said above",
        )),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Whether groups with a memory controller can be made: better known before anything else is done.
fn may_make_groups(parent: Option<&Path>) -> Result<MemoryHierarchy, Failure> {
    let refused = |error: cgroupfs::Error| {
        if let (cgroupfs::Error::Vanished { path }, Some(_)) = (&error, parent) {
            let path = path.display();
            return Failure::new(
                FAILED,
                format!(
                    "--parent: there is no cgroup {path}; make it first, or leave --parent out"
                ),
            );
        }
        let root = if nix::unistd::geteuid().is_root() {
            "it needs a host, or a container, that may make cgroups; see 'cgctl caps'"
        } else {
            "run it as root: sudo cgctl demo"
        };
        Failure::new(FAILED, format!("the demo makes cgroups: {error}\ncgctl: {root}"))
    };
    let hierarchy = MemoryHierarchy::find().map_err(refused)?;
    run::may_create(&hierarchy, parent, &format!("demo-{}", std::process::id()))
        .map_err(refused)?;
    Ok(hierarchy)
}

fn host() -> Result<Host, Failure> {
    let meminfo = Meminfo::read()?;
    Ok(Host {
        total: meminfo.total.unwrap_or_default(),
        swap_free: meminfo.swap_free.unwrap_or_default(),
    })
}

fn announce(scenarios: &[Scenario], skips: &[Skip], args: &DemoArgs) {
    if !scenarios.is_empty() {
        // Starting, ending and removing a group takes a moment too, and the file has to be written.
        let seconds: f64 = scenarios
            .iter()
            .map(|scenario| scenario.total_seconds() + 0.3 * scenario.order.len() as f64)
            .sum();
        say(&format!(
            "{} load{}, each with the engine off and on by turns, about {:.0} s; Ctrl-C ends it.",
            scenarios.len(),
            if scenarios.len() == 1 { "" } else { "s" },
            seconds + 1.0
        ));
        let parent = args.parent.as_deref().unwrap_or(Path::new("this one"));
        say(&format!("Cgroups are made under {}, a file without a name in", parent.display()));
        say(&format!("{}; nothing is left behind.", args.dir.display()));
    }
    for skip in skips {
        say(&format!("{}: skipped: {}", skip.kind.name(), skip.why));
        say(&format!("    {}", skip.way_out));
    }
}

/// Runs one load on both sides.
fn both_sides(
    scenario: &Scenario,
    args: &DemoArgs,
    signals: &Signals,
) -> Result<Compared, Stopped> {
    say("");
    say(&format!("{}, limit {}", scenario.kind.name(), fmt::bytes_short(scenario.limit.0)));
    let file = match scenario.kind {
        scenario::Kind::Stream => {
            Some(file::make(&args.dir, scenario.size, signals).map_err(|none| match none {
                file::NoFile::Skip(why) => Stopped::Skipped(why),
                file::NoFile::Told(signal) => Stopped::Told(signal),
            })?)
        }
        _ => None,
    };
    let path = file.as_ref().map(file::path).unwrap_or_default();
    let mut sides = [Side::new(), Side::new()];
    let mut timelines = [None, None];
    for (number, &on) in scenario.order.iter().enumerate() {
        if let Some(signal) = signals.told() {
            return Err(Stopped::Told(signal));
        }
        let name = if on { NAMES.1 } else { NAMES.0 };
        let (load, finished) = one_run(scenario, args, &path, on, number, name)?;
        let mut this = Side::new();
        this.add(scenario.kind, &load, &finished);
        say(&format!("  {name:<10}  {}", this.in_short()));
        let index = usize::from(on);
        sides[index].add(scenario.kind, &load, &finished);
        if timelines[index].is_none() {
            timelines[index] = Some(Timeline {
                title: format!("{}, {name}", scenario.kind.name()),
                subtitle: scenario.command_line(),
                ..finished.timeline
            });
        }
    }
    let [off, on] = sides;
    let [left, right] = timelines;
    Ok(Compared {
        rows: side::compare(scenario.kind, &off, &on),
        scenario: scenario.clone(),
        off,
        on,
        timelines: (left.unwrap_or_default(), right.unwrap_or_default()),
    })
}

/// One run of one load: `cgctl run` of this binary's own `memload`.
fn one_run(
    scenario: &Scenario,
    args: &DemoArgs,
    path: &Path,
    on: bool,
    number: usize,
    name: &str,
) -> Result<(memload::Report, Finished), Stopped> {
    let mut output = file::memory()?;
    let stdout = output.try_clone().map_err(|error| {
        Failure::new(FAILED, format!("cannot keep what the load prints: {error}"))
    })?;
    let mut command = vec!["/proc/self/exe".into(), "memload".into()];
    command.extend(scenario.arguments(path).into_iter().map(Into::into));
    let progress = Arc::new(Progress::default());
    let live = Live::start(
        format!("  {name}, run {} of {}", number + 1, scenario.order.len()),
        Duration::from_secs_f64(scenario.seconds),
        Some(scenario.limit.0),
        progress.clone(),
    );
    let finished = run::execute(Spec {
        name: format!("demo-{}", std::process::id()),
        parent: args.parent.clone(),
        limit: Limit::Bytes(scenario.limit),
        high: Limit::Max,
        swap: None,
        watermark: WatermarkSpec::Default,
        throttle: false,
        way_out: cgshim::core::throttle::WayOut::default(),
        oom: OomPolicy::Kill,
        off: !on,
        command,
        timeline: true,
        stdout: Some(stdout),
        progress: Some(progress),
        run_dir: None,
    });
    drop(live);
    let finished = finished?;
    if let Some(signal) = finished.told_to_end {
        return Err(Stopped::Told(signal));
    }
    let kills = finished.report.oom.kills;
    match finished.ended {
        Ended::Code(0) => {}
        Ended::Signal(signal) if kills > 0 => {
            return Err(Failure::new(
                FAILED,
                format!("{name}: the load was killed for want of memory (signal {signal})"),
            )
            .into());
        }
        ended => {
            return Err(
                Failure::new(FAILED, format!("{name}: the load ended with {ended:?}")).into()
            );
        }
    }
    let mut json = String::new();
    output.rewind().and_then(|()| output.read_to_string(&mut json)).map_err(|error| {
        Failure::new(FAILED, format!("cannot read what the load said: {error}"))
    })?;
    let load = serde_json::from_str(&json).map_err(|error| {
        Failure::new(FAILED, format!("{name}: cannot make sense of what the load said: {error}"))
    })?;
    Ok((load, finished))
}

/// The table and the charts of one load.
fn show(result: &Compared) {
    let stdout = std::io::stdout();
    let (width, height) = sys::terminal_size(stdout.as_fd()).unwrap_or((80, 24));
    let style = super::style();
    let (left, right) = &result.timelines;
    // Both charts on the screen at once, with the table, where it is tall enough.
    let beside = width >= 115;
    let each = if beside { height.saturating_sub(16) } else { height.saturating_sub(14) / 2 };
    let heading = format!("{}: {}", result.scenario.kind.name(), result.scenario.about());
    let measure = width.min(100);
    let text = format!(
        "\n{}\n{}\n{}",
        wrapped(&heading, measure),
        term::compare(NAMES, &result.rows, Some(width), style),
        term::side_by_side(left, right, width.min(180), each.clamp(11, 18), style),
    );
    // A pipe that nobody reads any more ends the output, not the demo's cleaning up.
    let mut stdout = stdout.lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Text in lines of at most `width` columns, broken at blanks.
fn wrapped(text: &str, width: usize) -> String {
    let (mut out, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 {
            let fits = used + 1 + length <= width;
            out.push(if fits { ' ' } else { '\n' });
            used = if fits { used + 1 } else { 0 };
        }
        out.push_str(word);
        used += length;
    }
    out.push('\n');
    out
}

/// Writes the picture; where it is, if it is anywhere.
fn draw(compared: &[Compared], path: &Path) -> Option<PathBuf> {
    let pairs: Vec<(&Timeline, &Timeline, &[CompareRow])> = compared
        .iter()
        .map(|result| (&result.timelines.0, &result.timelines.1, &result.rows[..]))
        .collect();
    let picture = svg::compare_all("cgctl demo: engine off and on", NAMES, &pairs);
    say("");
    match File::create(path).and_then(|mut file| file.write_all(picture.as_bytes())) {
        Ok(()) => {
            say(&format!("the picture: {}", path.display()));
            Some(path.to_path_buf())
        }
        Err(error) => {
            say(&format!(
                "cgctl: no picture: cannot write {}: {error}; name another file with --svg",
                path.display()
            ));
            None
        }
    }
}

fn print_json(
    hierarchy: &MemoryHierarchy,
    host: Host,
    quick: bool,
    compared: &[Compared],
    skips: &[Skip],
    svg: Option<PathBuf>,
) -> Result<(), Failure> {
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let demo = Demo {
        schema: 1,
        kernel,
        hierarchy: hierarchy.version.as_str(),
        memory_bytes: host.total.0,
        quick,
        scenarios: compared
            .iter()
            .map(|result| ScenarioJson {
                name: result.scenario.kind.id(),
                load: result.scenario.command_line(),
                limit_bytes: result.scenario.limit.0,
                off: result.off.json(),
                on: result.on.json(),
            })
            .collect(),
        skipped: skips
            .iter()
            .map(|skip| SkipJson { name: skip.kind.id(), why: skip.why.clone() })
            .collect(),
        svg,
    };
    let json =
        serde_json::to_string(&demo).map_err(|error| Failure::new(FAILED, error.to_string()))?;
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{json}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn a_heading_is_broken_at_blanks() {
        assert_eq!(wrapped("one two three", 7), "one two\nthree\n");
        assert_eq!(wrapped("incomprehensible", 7), "incomprehensible\n");
        assert_eq!(wrapped("a b", 80), "a b\n");
    }
}

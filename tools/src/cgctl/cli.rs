//! The command line.

use cgroupfs::{Bytes, Limit};
use cgshim::core::terms::BadTerm;
use cgshim::core::throttle::{BadWayOut, WayOut};
use cgshim::core::{OomPolicy, WatermarkSpec};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Keeps containers and commands out of direct reclaim, on any kernel.
#[derive(Debug, Parser)]
#[command(
    name = "cgctl",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  cgctl run --limit 256M -- make -j8        a command under a limit, reclaimed in the background
  cgctl demo                                what that does, in under a minute
  cgctl caps                                what this kernel offers
  cgctl reclaim /kubepods/burstable/pod1 100M

Logging: CGSHIM_LOG=info (error, warn, info, debug)."
)]
pub(crate) struct Cli {
    /// Where the daemon's socket is [default: CGSHIM_RUN_DIR, or /run/cgshim]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a memory cgroup of its own, with the engine at work on it
    Run(Box<RunArgs>),
    /// Show a cgroup's memory: usage, limits, what could be reclaimed, counters
    Stat(StatArgs),
    /// Show the containers that the daemon enforces
    Ps(PsArgs),
    /// Change a container's terms
    Set(SetArgs),
    /// Let containers go: their declared limits stand, nothing is done for them any more
    Release(ReleaseArgs),
    /// Show what has happened, and what happens
    Events(EventsArgs),
    /// Show what this kernel offers, feature by feature: native, vendor, emulated or absent, and why
    Caps(CapsArgs),
    /// Take so many bytes from a cgroup, and no more
    Reclaim(ReclaimArgs),
    /// Why was it killed? What is on record of a container's OOMs, and what to do next
    Why(WhyArgs),
    /// Dying memory cgroups: how many, whose, and how to be rid of them
    Dying(DyingArgs),
    /// Record a cgroup's control files, to send to somebody or to test with
    Record(RecordArgs),
    /// Show what the engine does: bundled loads with it off and on, side by side, in under a minute
    Demo(DemoArgs),
    /// The OCI hook in bundles
    Hook(HookArgs),
    /// Have a container runtime call the hook
    Install(InstallArgs),
    /// The loads of the demo
    #[command(hide = true, after_help = crate::memload::EXAMPLES)]
    Memload(crate::memload::Args),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl run --limit 256M -- ./greedy --fast
  cgctl run --limit 1G --high 90% --report run.svg -- python3 job.py
  cgctl run --limit 256M --off -- ./greedy            the limit alone, to compare with
  cgctl run --limit 2G --watermark 95%:90% --json -- ./server

Exit code: the command's own; 128+N if signal N killed it; 125 if cgctl failed, 126 if the command \
cannot be executed, 127 if there is none. The report goes to standard error unless --report names a \
file; standard output is the command's alone.")]
pub(crate) struct RunArgs {
    /// Memory limit: bytes, or with K, M, G; 'max' for none
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    pub(crate) limit: Option<Limit>,
    /// memory.high: a size, or a percentage of the limit. Growth above it is throttled: natively on v2, by
    /// freezing who grows for as long as v2 would let it sleep on v1
    #[arg(long, value_name = "SIZE|P%", value_parser = parse_share)]
    pub(crate) high: Option<Share>,
    /// What the command is expected to need; recorded in the report
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) request: Option<Bytes>,
    /// Its class; recorded in the report
    #[arg(long, value_enum)]
    pub(crate) class: Option<Class>,
    /// Background reclaim starts above HIGH % of min(high, limit) and stops at LOW %; 'off' for none
    #[arg(long, value_name = "HIGH%:LOW%|off", default_value = "default", value_parser = parse_watermark)]
    pub(crate) watermark: WatermarkSpec,
    /// Throttle above --high; off leaves it to background reclaim
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub(crate) throttle: Switch,
    /// What ends throttling (v1) that achieves nothing, and after how much frozen time: 'release' lifts it,
    /// 'oom' kills the largest process as well, 'notify' goes on, 'never' has no budget (as the kernel)
    #[arg(long, value_name = "release|oom|notify[=TIME]|never", default_value = "release=30s",
          value_parser = parse_way_out)]
    pub(crate) way_out: WayOut,
    /// Swap allowed on top of the limit; unset leaves it to the kernel
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    pub(crate) swap: Option<Limit>,
    /// When the limit cannot be held: 'kill' leaves it to the kernel, 'group' kills every process of
    /// the group, 'hold=30s' holds the kernel's killer off for so long at most (v1), 'freeze=30s' stops the
    /// whole group meanwhile, for a look
    #[arg(long, value_name = "kill|group|freeze=TIME|hold=TIME", default_value = "kill",
          value_parser = parse_oom)]
    pub(crate) oom: OomPolicy,
    /// The limit alone: no engine
    #[arg(long)]
    pub(crate) off: bool,
    /// Directory name of the cgroup [default: run-PID]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Make the cgroup under this one [default: our own cgroup; on v2 the nearest above it that can]
    #[arg(long, value_name = "PATH")]
    pub(crate) parent: Option<PathBuf>,
    /// Write a report: F.json, or F.svg with usage, limit, watermarks and reclaim over time; may be
    /// given twice
    #[arg(long, value_name = "FILE", value_parser = parse_report)]
    pub(crate) report: Vec<ReportFile>,
    /// The report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// No report on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl stat                      our own cgroup
  cgctl stat run-4711             a cgroup by its directory name
  cgctl stat /docker/3f2a --json  by its path in the hierarchy")]
pub(crate) struct StatArgs {
    /// Containers by id, or the beginning of it; cgroups by directory name, path in the hierarchy, or
    /// absolute path [default: our own]
    #[arg(value_name = "ID|PATH")]
    pub(crate) groups: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// No header line
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl ps
  cgctl ps --all --json           those that have ended too, as long as they are remembered")]
pub(crate) struct PsArgs {
    /// Those that have ended too
    #[arg(long, short)]
    pub(crate) all: bool,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// No header line
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl set 3f2a high=80% watermark=90%:80%
  cgctl set web throttle=off oom=group

Keys: high (512M, 80%, request+90%, max), watermark (92%:86%, default, off), request (a size), class \
(guaranteed, burstable, besteffort), throttle (on, off), way_out (release=30s, oom=30s, notify=30s, never), \
oom (kill, group, freeze=30s, hold=30s). Above what the configuration and the container's annotations say, until \
the container ends.")]
pub(crate) struct SetArgs {
    /// The container, or the beginning of its id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// What is to change
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub(crate) terms: Vec<String>,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl release 3f2a           its declared limit stands; nothing is done for it any more
  cgctl release --all
")]
pub(crate) struct ReleaseArgs {
    /// The container, or the beginning of its id
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
    /// All of them
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl events                 what has happened
  cgctl events --follow        and what happens from now on, until Ctrl-C
  cgctl events --follow --json | jq .event
  cgctl events --follow --format runc       OOM kills, as 'runc events' has them
")]
pub(crate) struct EventsArgs {
    /// And what happens from now on, until Ctrl-C
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// OOM kills only, as 'runc events' prints them
    #[arg(long, value_enum, conflicts_with = "json")]
    pub(crate) format: Option<EventsFormat>,
}

/// A form of events that others know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventsFormat {
    /// `{"type":"oom","id":"..."}`
    Runc,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl why                        every OOM of the last hour
  cgctl why web                    by name, container id (or the start of it), or cgroup
  cgctl why 3f2a91c07b55 --json    for programs

The newest 1,000 OOMs are kept, for an hour. Needs no daemon. Exit code: 0, also of \
an empty list; 1 if there is nothing on record of whom is asked for, or nothing any more.")]
pub(crate) struct WhyArgs {
    /// A container's name, its id or the start of it, its cgroup, or a record's id [default: all]
    #[arg(value_name = "ID|NAME|PREFIX|CGROUP")]
    pub(crate) whose: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// No header line
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl dying            removed groups that are still there, and where
  cgctl dying --reap     empties the groups that nobody is in, their dead children with them

Memory of live processes is never touched. On cgroup v1 the kernel does not say under which parent they \
are: shown are groups without processes that hold memory.")]
pub(crate) struct DyingArgs {
    /// Be rid of them
    #[arg(long)]
    pub(crate) reap: bool,
    /// Show so many parents
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) most: usize,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// No header line
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl caps
  cgctl caps --json | jq '.features[] | select(.support == \"absent\")'
")]
pub(crate) struct CapsArgs {
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// No header line
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl reclaim run-4711 100M
  cgctl reclaim /sys/fs/cgroup/memory/docker/3f2a 1G --json

Never lowers a limit under what cannot be reclaimed plus a margin for growth; the declared limit is \
back when it ends. Exit code 1 if less than asked could be freed.")]
pub(crate) struct ReclaimArgs {
    /// A container by id, or the beginning of it; a cgroup by directory name, path in the hierarchy, or
    /// absolute path
    #[arg(value_name = "ID|PATH")]
    pub(crate) group: String,
    /// How much: bytes, or with K, M, G
    #[arg(value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) size: Bytes,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub(crate) timeout: f64,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl record run-4711                       into recording-KERNEL-v1 or -v2
  cgctl record /docker/3f2a -o odd-kernel && tar czf odd-kernel.tar.gz odd-kernel

For kernels that are not like others: the recording shows what a kernel has, and the tests can run over \
it. In it: the kernel's release, names and modes of the group's files, the content of memory.* and \
cgroup.* (or the errno), how many processes, threads and child groups there are, and of /proc: cgroups, \
cgroup mounts, swaps, meminfo, zoneinfo, pressure. Not in it: process ids, names and command lines, other \
mounts, other controllers' values, the group's own name. Everything is text: look before you send it.")]
pub(crate) struct RecordArgs {
    /// The cgroup: a directory name, a path in the hierarchy, or an absolute path
    #[arg(value_name = "ID|PATH")]
    pub(crate) group: String,
    /// Make this directory [default: recording-KERNEL-HIERARCHY]
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl demo                      three loads, about 40 s
  cgctl demo --zram 1G            the same on a host without swap, which the first load needs
  cgctl demo --quick              a second per run: whether it works here, not how well
  cgctl demo --json --svg d.svg > d.json

Needs root and the memory controller. Every load runs in a cgroup of its own with a limit, which is \
removed afterwards. Results go to standard output, progress to standard error. Ctrl-C ends it; \
nothing is left behind.

Exit code: 0; 1 if no load could run, or one failed; 128+N if signal N ended it.")]
pub(crate) struct DemoArgs {
    /// Draw the picture here
    #[arg(long, value_name = "FILE", default_value = "cgshim-demo.svg")]
    pub(crate) svg: PathBuf,
    /// One JSON object instead of tables and charts
    #[arg(long)]
    pub(crate) json: bool,
    /// A second per run
    #[arg(long)]
    pub(crate) quick: bool,
    /// Where the file that is read is made (it has no name): a directory on a disk, not tmpfs
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(crate) dir: PathBuf,
    /// Swap to a zram device of this size while the demo runs; refused where zram is in use
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) zram: Option<Bytes>,
    /// Make the cgroups under this one [default: our own cgroup; on v2 the nearest above it that can]
    #[arg(long, value_name = "PATH")]
    pub(crate) parent: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl hook inject /path/to/bundle         brings the hook into config.json; twice is once
  cgctl install podman --dry-run            or once for all containers of a runtime
")]
pub(crate) struct HookArgs {
    #[command(subcommand)]
    pub(crate) command: HookCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HookCommand {
    /// Have a bundle's container call the hook: cgshimd enforces on it from its start
    Inject(InjectArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl hook inject /run/bundle && runc run -b /run/bundle web

Edits config.json in place, by a rename: two entries under \"hooks\", and not another byte. A second time \
changes nothing. Exit code 1 if the file cannot be edited; it is then as it was.")]
pub(crate) struct InjectArgs {
    /// The bundle: its directory, or its config.json
    #[arg(value_name = "BUNDLE")]
    pub(crate) bundle: PathBuf,
    /// The hook program [default: where it is installed, or beside cgctl]
    #[arg(long, value_name = "PATH")]
    pub(crate) hook: Option<PathBuf>,
    /// cgshimd's run directory, where it is not the default
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cgctl install podman --dry-run      what would change, as a diff
  cgctl install podman
  cgctl install podman --undo         exactly as it was

podman and crio get the hook; containerd and docker get cgshim-runtime as a runtime named cgshim, and \
use it where they are told to; runc has nothing to configure. A file that is edited is kept beside \
itself (.cgshim-before). What cannot be understood is named, with its line, and left alone: exit code 1.")]
pub(crate) struct InstallArgs {
    /// Which runtime, or caller of runtimes
    #[arg(value_enum)]
    pub(crate) runtime: InstallRuntime,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Take it back
    #[arg(long)]
    pub(crate) undo: bool,
    /// Work on a system below this directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
    /// Where the hook is installed
    #[arg(long, value_name = "PATH", default_value = cgshim::oci::inject::HOOK_PATH)]
    pub(crate) hook: PathBuf,
    /// Where the wrapper is installed
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/cgshim-runtime")]
    pub(crate) wrapper: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InstallRuntime {
    Runc,
    Containerd,
    Podman,
    Crio,
    Docker,
}

/// A size, or a share of the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Share {
    Size(Limit),
    /// In 1/10,000.
    OfLimit(u32),
}

/// Kubernetes' quality-of-service classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    Guaranteed,
    Burstable,
    Besteffort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// Where a report goes, and in which form: by the file's extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReportFile {
    Json(PathBuf),
    Svg(PathBuf),
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    text.parse().map_err(|error: cgroupfs::units::SizeError| error.to_string())
}

fn parse_bytes(text: &str) -> Result<Bytes, String> {
    text.parse().map_err(|error: cgroupfs::units::SizeError| error.to_string())
}

fn parse_watermark(text: &str) -> Result<WatermarkSpec, String> {
    text.parse().map_err(|error: cgshim::core::BadWatermark| error.to_string())
}

fn parse_share(text: &str) -> Result<Share, String> {
    let Some(percent) = text.trim().strip_suffix('%') else {
        return parse_limit(text).map(Share::Size);
    };
    let value: f64 =
        percent.trim().parse().map_err(|_| format!("'{text}' is not a percentage, as in 90%"))?;
    if !(value > 0.0 && value <= 100.0) {
        return Err(format!("'{text}' is not between 0 % and 100 % of the limit"));
    }
    Ok(Share::OfLimit((value * 100.0).round() as u32))
}

fn parse_way_out(text: &str) -> Result<WayOut, String> {
    text.parse().map_err(|error: BadWayOut| error.to_string())
}

fn parse_oom(text: &str) -> Result<OomPolicy, String> {
    text.parse().map_err(|error: BadTerm| error.to_string())
}

fn parse_report(text: &str) -> Result<ReportFile, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(ReportFile::Json(path)),
        Some("svg") => Ok(ReportFile::Svg(path)),
        _ => Err(format!("'{text}': the name must end in .json or .svg")),
    }
}

/// Each of the parsers above, over one text. A new one belongs in here.
pub(super) fn parse_values(text: &str) {
    let _ = (parse_limit(text), parse_bytes(text), parse_watermark(text));
    let _ = (parse_oom(text), parse_report(text), parse_way_out(text));
    if let Ok(Share::OfLimit(share)) = parse_share(text) {
        assert!(share <= 10_000, "{share}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_commands_own_options_are_its_own() {
        for line in ["cgctl run --limit 1M -- ls --json -l", "cgctl run --limit 1M ls --json -l"] {
            let Command::Run(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
                panic!("run");
            };
            assert!(!args.json);
            assert_eq!(args.command, ["ls", "--json", "-l"]);
        }
    }

    #[test]
    fn shares_are_of_the_limit() {
        assert_eq!(parse_share("90%"), Ok(Share::OfLimit(9000)));
        assert_eq!(parse_share("1M"), Ok(Share::Size(Limit::Bytes(Bytes::mib(1)))));
        for bad in ["0%", "101%", "%", "x%", "nan%", ""] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }
}

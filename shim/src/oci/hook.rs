//! The OCI hook: at `createRuntime` it registers the container, at `poststop` it releases it.
//!
//! A container never fails to start for it, unless its annotation `io.cgshim.strict` says so: without a
//! daemon that answers, the request goes to the spool. Everything here ends by a deadline, is bounded,
//! and leaves nothing running.
//!
//! What may take time, and how much of the second it gets: the state on standard input
//! ([`STATE_PATIENCE`]), the bundle's file system ([`BUNDLE_PATIENCE`]), the daemon ([`DAEMON_PATIENCE`], and
//! no more than leaves [`SPOOL_TIME`]). `/proc` and the spool, on tmpfs, wait for nobody.

use super::client::{self, Reply};
use super::spec::{self, Spec};
use super::spool;
use super::state::State;
use crate::api::message::{Envelope, Register, Release, Request, SCHEMA, line};
use crate::api::{MOST_REQUEST, SOCKET};
use cgroupfs::{Membership, procfs};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a hook may take in all. Its container waits for it.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How long it waits for the state, of that, from its start on.
pub const STATE_PATIENCE: Duration = Duration::from_millis(400);

/// How long for `config.json`: it is on a file system of the runtime's choice, which may be another machine's.
pub const BUNDLE_PATIENCE: Duration = Duration::from_millis(250);

/// How long for the daemon: one that is well answers within milliseconds.
pub const DAEMON_PATIENCE: Duration = Duration::from_millis(500);

/// What of the second is kept for the spool, and for ending.
pub const SPOOL_TIME: Duration = Duration::from_millis(150);

/// The longest state taken, in bytes. Kubernetes allows 256 KiB of annotations.
pub const LARGEST_STATE: usize = 1 << 20;

/// Notes about one container: more are of no use to anybody.
const MOST_NOTES: usize = 20;

/// When in a container's life the runtime calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The container's first process exists, its cgroup has its limits, its program has not begun.
    /// `prestart`, the deprecated hook of the same moment, too.
    CreateRuntime,
    /// It has ended, and its cgroup is gone.
    Poststop,
    /// Any other: nothing to do.
    Other,
}

impl FromStr for Stage {
    type Err = ();

    fn from_str(name: &str) -> Result<Stage, ()> {
        match name {
            "createRuntime" | "prestart" => Ok(Stage::CreateRuntime),
            "poststop" => Ok(Stage::Poststop),
            "createContainer" | "startContainer" | "poststart" => Ok(Stage::Other),
            _ => Err(()),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The daemon did it.
    Done {
        /// Which registration of the id this is.
        generation: Option<u64>,
    },
    /// No daemon answered; the request waits in the spool.
    Spooled(String),
    /// This stage asks for nothing.
    Nothing,
    /// Neither registered nor spooled, and why.
    Failed(String),
}

/// A hook's result: what a person should read, and how the runtime should see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What came of it.
    pub outcome: Outcome,
    /// What was odd on the way.
    pub notes: Vec<String>,
    /// The container must not start unregistered.
    pub strict: bool,
    /// The stage that was asked for.
    pub stage: Stage,
    /// The container, where the state told.
    pub id: Option<String>,
}

impl Report {
    /// Whether the runtime must be told to give up: a strict container that is not registered.
    pub fn fails(&self) -> bool {
        let registered = matches!(self.outcome, Outcome::Done { .. } | Outcome::Nothing);
        self.strict && self.stage == Stage::CreateRuntime && !registered
    }

    /// What belongs on standard error, a line each; empty when all is well.
    pub fn message(&self) -> String {
        let mut text = String::new();
        let id = self.id.as_deref().unwrap_or("?").escape_debug();
        for note in &self.notes {
            let _ = writeln!(text, "cgshim-hook: {id}: {}", note.escape_debug());
        }
        let (why, instead) = match &self.outcome {
            Outcome::Done { .. } | Outcome::Nothing => return text,
            Outcome::Spooled(why) => (why, "the daemon will find it in the spool"),
            Outcome::Failed(why) if self.stage == Stage::Poststop => (why, "not released"),
            Outcome::Failed(why) => (why, "it runs without cgshim"),
        };
        let why = why.escape_debug();
        let _ = match self.fails() {
            true => writeln!(
                text,
                "cgshim-hook: {id}: not registered, and {} is true: {why}",
                super::annotations::STRICT
            ),
            false => writeln!(text, "cgshim-hook: {id}: {why}; {instead}"),
        };
        text
    }
}

/// Does what `stage` asks for the container that `state` describes. Done by `deadline`, or nearly.
pub fn run(stage: Stage, state: &[u8], run_dir: &Path, deadline: Instant) -> Report {
    let mut report =
        Report { outcome: Outcome::Nothing, notes: Vec::new(), strict: false, stage, id: None };
    if stage == Stage::Other {
        return report;
    }
    let mut state = match State::parse(state, &mut report.notes) {
        Ok(state) => state,
        Err(error) => {
            report.outcome = Outcome::Failed(error.to_string());
            return report;
        }
    };
    report.id = Some(state.id.clone());
    let outcome = match stage {
        Stage::Poststop => {
            let release = Release { id: state.id.clone(), ..Release::default() };
            Ok(deliver(&state.id, Request::Release(release), run_dir, deadline, true))
        }
        _ => {
            let spec = read_spec(state.bundle.as_deref(), &mut report.notes);
            let spec = spec.unwrap_or_default();
            state.annotations.complete_with(spec.annotations.clone());
            report.strict = state.annotations.strict();
            register(&state, &spec, run_dir, deadline, &mut report.notes)
        }
    };
    report.outcome = outcome.unwrap_or_else(Outcome::Failed);
    if report.notes.len() > MOST_NOTES {
        report.notes.truncate(MOST_NOTES);
        report.notes.push("and more".into());
    }
    report
}

fn register(
    state: &State,
    spec: &Spec,
    run_dir: &Path,
    deadline: Instant,
    notes: &mut Vec<String>,
) -> Result<Outcome, String> {
    let pid = state.pid.ok_or("the state has no pid")?;
    // Before the group: should the number change hands in between, the daemon sees it by the time.
    let start_time = u32::try_from(pid).ok().and_then(procfs::starttime);
    let cgroup = memory_cgroup(pid)?;
    if let Some(path) = &spec.cgroups_path
        && !agrees(path, &cgroup)
    {
        notes.push(format!(
            "process {pid} is in {}, not where linux.cgroupsPath has it, {path}: taking the former",
            cgroup.display()
        ));
    }
    let bundle = state.bundle.as_deref().and_then(Path::to_str).map(str::to_owned);
    let request = Request::Register(Register {
        id: state.id.clone(),
        pid,
        start_time,
        cgroup: cgroup.to_str().ok_or("the name of its cgroup is not UTF-8")?.to_owned(),
        // Nobody has one of this length, and everything has to fit into a request.
        bundle: bundle.filter(|bundle| bundle.len() <= libc::PATH_MAX as usize),
        annotations: state.annotations.0.clone(),
        oom_score_adj: spec.oom_score_adj,
        runtime: caller().map(str::to_owned),
    });
    // What does not start unless it is registered has nothing to leave for later.
    Ok(deliver(&state.id, request, run_dir, deadline, !state.annotations.strict()))
}

/// Tells the daemon, or leaves it in the spool where it `may_wait`.
fn deliver(
    id: &str,
    request: Request,
    run_dir: &Path,
    deadline: Instant,
    may_wait: bool,
) -> Outcome {
    let release = matches!(request, Request::Release(_));
    let line = line(&Envelope { schema: SCHEMA, request });
    if line.len() > MOST_REQUEST {
        return Outcome::Failed(format!(
            "a request of {} bytes, which no daemon takes",
            line.len()
        ));
    }
    let now = Instant::now();
    let latest = deadline.checked_sub(SPOOL_TIME).unwrap_or(now);
    let patience = latest.min(now + DAEMON_PATIENCE);
    let silence = match client::ask(&run_dir.join(SOCKET), &line, patience) {
        Ok(Reply { ok: true, generation, .. }) => {
            // An older intent for this id must not come after this one.
            let _ = spool::forget(run_dir, id);
            return Outcome::Done { generation };
        }
        Ok(Reply { error, .. }) => {
            let why = error.unwrap_or_else(|| "no reason given".into());
            return Outcome::Failed(format!("the daemon refuses: {why}"));
        }
        Err(silence) => silence,
    };
    if !may_wait {
        return Outcome::Failed(silence.to_string());
    }
    let left = match release {
        true => spool::release(run_dir, id, &line),
        false => spool::register(run_dir, id, &line),
    };
    match left {
        Ok(()) => Outcome::Spooled(silence.to_string()),
        Err(error) => Outcome::Failed(format!("{silence}; and the spool: {error}")),
    }
}

fn read_spec(bundle: Option<&Path>, notes: &mut Vec<String>) -> Option<Spec> {
    let Some(bundle) = bundle else {
        notes.push("the state has no bundle".into());
        return None;
    };
    let path = bundle.to_path_buf();
    let read = within(BUNDLE_PATIENCE, move || spec::read_config(&path));
    let read = read.and_then(|read| read.map_err(|error| error.to_string()));
    let parsed = read.and_then(|text| Spec::parse(&text, notes).map_err(|error| error.to_string()));
    parsed.map_err(|why| notes.push(format!("config.json of {}: {why}", bundle.display()))).ok()
}

/// What `work` comes to, if it does so in time. Else it is left behind on its thread: the end of this process ends
/// a wait for a dead file server too, which no other signal does.
fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, result) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(move || {
            let _ = done.send(work());
        })
        .map_err(|error| format!("no thread to read it: {error}"))?;
    result.recv_timeout(patience).map_err(|_| format!("not read within {patience:?}"))
}

/// The group of a process in the hierarchy that has memory, as `/proc/PID/cgroup` shows it.
fn memory_cgroup(pid: i32) -> Result<PathBuf, String> {
    let groups = Membership::read(pid.unsigned_abs()).map_err(|error| error.to_string())?;
    let path = of_memory(&groups).ok_or_else(|| format!("process {pid} is in no memory cgroup"))?;
    let own = Membership::of_self().ok();
    if path == Path::new("/") || own.as_ref().and_then(of_memory) == Some(path) {
        // Without limits of its own, or on its way out (v1 shows `/` for what is exiting).
        return Err(format!("process {pid} has no memory cgroup of its own ({})", path.display()));
    }
    let straight =
        path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !straight {
        return Err(format!("its cgroup, {}, is outside of this cgroup namespace", path.display()));
    }
    Ok(path.into())
}

fn of_memory(groups: &Membership) -> Option<&Path> {
    groups.path("memory").or_else(|| groups.unified())
}

/// Whether a process in `cgroup` is where `linux.cgroupsPath` says. Where runtimes put a container:
/// below their own group if the path is relative; in `PREFIX-NAME.scope` for `SLICE:PREFIX:NAME` with
/// the systemd driver, in crun's case in a group `container` in it.
fn agrees(cgroups_path: &str, cgroup: &Path) -> bool {
    if let [_slice, prefix, name] = cgroups_path.split(':').collect::<Vec<_>>()[..]
        && !cgroups_path.starts_with('/')
    {
        let unit = match (name.ends_with(".slice"), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, _) => format!("{prefix}-{name}.scope"),
        };
        return cgroup.components().any(|c| c.as_os_str() == unit.as_str());
    }
    let declared = Path::new(cgroups_path.trim_start_matches('/'));
    cgroup.ends_with(declared) || cgroup.parent().is_some_and(|above| above.ends_with(declared))
}

/// The runtime that called: our parent's name.
fn caller() -> Option<&'static str> {
    let comm = std::fs::read(format!("/proc/{}/comm", nix::unistd::getppid())).ok()?;
    ["runc", "crun"].into_iter().find(|name| comm.starts_with(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_every_driver_agree() {
        for (declared, cgroup, expected) in [
            ("/a/b", "/a/b", true),
            ("/a/b", "/outer/a/b", true),
            ("a/b", "/user/a/b", true),
            ("/a/b", "/a/b/container", true),
            ("/a/b", "/a/bb", false),
            ("/a/b", "/b", false),
            ("/kubepods/pod1/c", "/kubepods/pod1/d", false),
            ("machine.slice:libpod:1f", "/machine.slice/libpod-1f.scope", true),
            ("machine.slice:libpod:1f", "/machine.slice/libpod-1f.scope/container", true),
            ("system.slice:docker:1f", "/system.slice/docker-20.scope", false),
            (":cri:1f", "/system.slice/cri-1f.scope", true),
            ("user.slice::me", "/user.slice/me.scope", true),
            ("/system.slice/cri:containerd:1", "/system.slice/cri:containerd:1", true),
        ] {
            assert_eq!(agrees(declared, Path::new(cgroup)), expected, "{declared} {cgroup}");
        }
    }

    #[test]
    fn a_process_without_a_group_of_its_own_is_not_registered() {
        let own = i32::try_from(std::process::id()).unwrap();
        let error = memory_cgroup(own).unwrap_err();
        assert!(error.contains("no memory cgroup of its own"), "{error}");
        assert!(memory_cgroup(i32::MAX).is_err());
    }
}

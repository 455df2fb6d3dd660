//! `cgshimd` as a process, in a run directory of the test's own.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use crate::common::{Ground, Load, guardian_of, memory, until};
use cgroupfs::{Bytes, Cgroup, Limit, Membership};
use cgshim::api::client::Client;
use cgshim::api::message::{EventLine, Listed, One, Register, Registered, Release, Request, View};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Most tests' declared limit.
pub(crate) const LIMIT: Limit = Limit::Bytes(Bytes::mib(96));

/// `cgshimd` on a run directory: where Cargo put it, or where the machines of the kernel matrix have it.
pub(crate) fn program(run_dir: &Path, config: Option<&Path>) -> Command {
    let program = std::env::var_os("CGSHIMD");
    let mut command = Command::new(program.unwrap_or(env!("CARGO_BIN_EXE_cgshimd").into()));
    command.arg("--run-dir").arg(run_dir);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// How a `cgshimd` that does not stay ended: its code, and what it said.
pub(crate) fn ended(mut command: Command) -> (Option<i32>, String) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The same of one that cannot start.
pub(crate) fn refused(run_dir: &Path, config: Option<&Path>) -> (Option<i32>, String) {
    ended(program(run_dir, config))
}

/// `cgshimd --restore`.
pub(crate) fn restored(run_dir: &Path) -> (Option<i32>, String) {
    let mut command = program(run_dir, None);
    command.arg("--restore");
    ended(command)
}

/// A run directory, its configuration, and what daemons in it have said. Gone with the last of its clones.
#[derive(Clone)]
pub(crate) struct RunDir(Arc<tempfile::TempDir>);

impl RunDir {
    /// On tmpfs, as run directories are: on a disk, stores to the journal wait for its writeback.
    pub(crate) fn new(config: &str) -> RunDir {
        let dir = RunDir(Arc::new(tempfile::tempdir_in("/dev/shm").unwrap()));
        dir.configure(config);
        dir
    }

    /// The directory that the run directory and the configuration are in.
    pub(crate) fn home(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.home().join("run")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.home().join("config.toml")
    }

    /// Replaces the configuration, as editors do: whoever reads it meanwhile has the old one or the new one.
    pub(crate) fn configure(&self, content: &str) {
        let new = self.home().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.config()).unwrap();
    }

    /// `cgshimd` with this directory.
    pub(crate) fn command(&self) -> Command {
        let log = fs::File::options().append(true).create(true).open(self.log_file()).unwrap();
        let mut command = program(&self.path(), Some(&self.config()));
        command.stderr(log);
        command
    }

    fn log_file(&self) -> PathBuf {
        self.home().join("log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A daemon, which may not answer yet.
    pub(crate) fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    /// The same with more in its environment.
    pub(crate) fn start_with(&self, environment: &[(&str, &str)]) -> Daemon {
        let child = self.command().envs(environment.iter().copied()).spawn().unwrap();
        Daemon { child, dir: self.clone() }
    }

    /// A daemon that answers.
    pub(crate) fn serve(&self) -> Daemon {
        let daemon = self.start();
        daemon.until_it_answers();
        daemon
    }
}

/// Killed when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) dir: RunDir,
}

impl Daemon {
    /// One that answers, with a run directory of its own.
    pub(crate) fn with_config(content: &str) -> Daemon {
        RunDir::new(content).serve()
    }

    /// Connecting is possible before it has looked at what was there before it: it answers when it has.
    pub(crate) fn until_it_answers(&self) {
        until("the daemon answers", PATIENCE, || {
            let client = Client::connect(&self.run_dir(), PATIENCE);
            client.is_ok_and(|mut client| client.ask::<Value>(Request::Ping {}).is_ok())
        });
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path()
    }

    /// What it and those before it have said.
    pub(crate) fn log(&self) -> String {
        self.dir.log()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.run_dir(), PATIENCE).unwrap()
    }

    pub(crate) fn list(&self) -> Vec<View> {
        self.client().ask::<Listed>(Request::List { ended: false }).unwrap().containers
    }

    /// Those that have ended and are remembered.
    pub(crate) fn ended(&self) -> Vec<View> {
        let all: Listed = self.client().ask(Request::List { ended: true }).unwrap();
        all.containers.into_iter().filter(|view| view.ended_ms.is_some()).collect()
    }

    pub(crate) fn set(&self, id: &str, key: &str, value: &str) -> Result<View, String> {
        let terms = [(key.to_owned(), value.to_owned())].into();
        let request = Request::Set { id: id.into(), terms };
        self.client().ask::<One>(request).map(|one| one.container).map_err(|e| e.to_string())
    }

    pub(crate) fn stat(&self, id: &str) -> View {
        self.client().ask::<One>(Request::Stat { id: id.into() }).unwrap().container
    }

    pub(crate) fn register(&self, asked: &Register) -> Result<u64, String> {
        let reply = self.client().ask::<Registered>(Request::Register(asked.clone()));
        reply.map(|reply| reply.generation).map_err(|error| error.to_string())
    }

    pub(crate) fn release(&self, id: &str) -> Result<u64, String> {
        let release = Release { id: id.into(), ..Release::default() };
        let reply = self.client().ask::<Registered>(Request::Release(release));
        reply.map(|reply| reply.generation).map_err(|error| error.to_string())
    }

    pub(crate) fn events(&self) -> Vec<EventLine> {
        let mut client = self.client();
        client.ask::<Value>(Request::Events { follow: false }).unwrap();
        std::iter::from_fn(|| client.next_line().unwrap()).collect()
    }

    /// The kinds of its events, the oldest first.
    pub(crate) fn told(&self) -> Vec<String> {
        self.events().into_iter().map(|event| event.event).collect()
    }

    /// A line of its status: a number, of KiB or of times.
    pub(crate) fn number(&self, key: &str) -> u64 {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            // A thread may have ended by now.
            let path = task.unwrap().path().join("status");
            let Ok(status) = fs::read_to_string(path) else { continue };
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            let number: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            // Memory is the process's, switches are a task's.
            if key.starts_with("Vm") {
                return number;
            }
            sum += number;
        }
        sum
    }

    /// What its descriptors are of.
    pub(crate) fn descriptors(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The guardian that it forked.
    pub(crate) fn guardian(&self) -> Option<Pid> {
        guardian_of(self.child.id())
    }

    /// Ends it as systemd does.
    pub(crate) fn stop(mut self) {
        assert_eq!(self.end(), Some(0));
    }

    /// Ends it by SIGTERM: its code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        until("it stops", PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// Another in the same directory, after this one was killed (SIGKILL), or was ended (SIGTERM).
    pub(crate) fn next_after(mut self, signal: Signal) -> Daemon {
        self.signal(signal);
        self.child.wait().unwrap();
        self.dir.serve()
    }

    /// Kills it; gone when this returns, with its last thread.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}", self.log());
        }
    }
}

/// A group with a limit, and a process in it.
pub(crate) fn container(ground: &Ground, name: &str, limit: Limit) -> (Arc<Cgroup>, Load) {
    let group = ground.group(name);
    memory(&group).set_limit(limit).unwrap();
    let load = Load::in_group(&group);
    (group, load)
}

/// What a hook would say of a process.
pub(crate) fn known(ground: &Ground, id: &str, pid: u32) -> Register {
    let membership = Membership::read(pid).unwrap();
    let path = if ground.v1() { membership.path("memory") } else { membership.unified() };
    Register {
        id: id.into(),
        pid: i32::try_from(pid).unwrap(),
        cgroup: path.map(Path::to_str).unwrap().unwrap().to_owned(),
        ..Register::default()
    }
}

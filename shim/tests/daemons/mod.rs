//! `cgshimd` as a process, in a run directory of the test's own.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use crate::common::{Ground, guardian_of, until};
use cgroupfs::Membership;
use cgshim::api::client::Client;
use cgshim::api::message::{EventLine, Listed, One, Register, Registered, Release, Request, View};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A run directory, its configuration, and what daemons in it have said.
pub(crate) struct RunDir(tempfile::TempDir);

impl RunDir {
    /// On tmpfs, as run directories are: on a disk, stores to the journal wait for its writeback.
    pub(crate) fn new(config: &str) -> RunDir {
        let dir = RunDir(tempfile::tempdir_in("/dev/shm").unwrap());
        fs::write(dir.0.path().join("config.toml"), config).unwrap();
        dir
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("run")
    }

    /// `cgshimd` with this directory.
    pub(crate) fn command(&self) -> Command {
        let log = fs::File::options().append(true).create(true).open(self.log_file()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cgshimd"));
        command
            .args(["--run-dir".as_ref(), self.path().as_os_str()])
            .args(["--config".as_ref(), self.0.path().join("config.toml").as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    fn log_file(&self) -> PathBuf {
        self.0.path().join("log")
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
        Daemon { child, run_dir: self.path() }
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
    run_dir: PathBuf,
}

impl Daemon {
    pub(crate) fn until_it_answers(&self) {
        until("the daemon answers", PATIENCE, || {
            let client = Client::connect(&self.run_dir, PATIENCE);
            client.is_ok_and(|mut client| client.ask::<Value>(Request::Ping {}).is_ok())
        });
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.run_dir, PATIENCE).unwrap()
    }

    pub(crate) fn list(&self) -> Vec<View> {
        self.client().ask::<Listed>(Request::List { ended: false }).unwrap().containers
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

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The guardian that it forked.
    pub(crate) fn guardian(&self) -> Option<Pid> {
        guardian_of(self.child.id())
    }

    /// Ends it as systemd does.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success());
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
    }
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

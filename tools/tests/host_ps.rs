//! `cgctl` and the daemon: what people see of it, with and without one.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod commands;
mod common;

use cgroupfs::{Bytes, Limit, Membership};
use cgshim::api::client::Client;
use cgshim::api::message::{Register, Registered, Request};
use commands::{Ran, Scratch, cgctl, finish};
use common::{DiskFile, Ground, Load, memory, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// The daemon's program: beside cgctl, where cargo puts what is built of the whole workspace.
fn cgshimd() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CGSHIMD") {
        return Some(path.into());
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_cgctl")).with_file_name("cgshimd");
    beside.exists().then_some(beside)
}

struct Daemon(Child);

impl Daemon {
    fn start(program: &Path, scratch: &Scratch) -> Daemon {
        let run = scratch.file("run");
        let config = scratch.file("config.toml");
        std::fs::write(&config, "[defaults]\nhigh = '75%'\n").unwrap();
        let mut command = Command::new(program);
        command.arg("--run-dir").arg(&run).arg("--config").arg(&config);
        let daemon = Daemon(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until("it answers", 30 * SECOND, || Client::connect(&run, 60 * SECOND).is_ok());
        daemon
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(scratch: &Scratch, words: &[&str]) -> Ran {
    let mut command = cgctl();
    command.arg("--run-dir").arg(scratch.file("run")).args(words);
    finish(command)
}

#[test]
fn the_daemons_containers_are_listed_changed_reclaimed_and_released() {
    let test = "the_daemons_containers_are_listed_changed_reclaimed_and_released";
    let Some(ground) = Ground::new(test) else { return };
    let Some(program) = cgshimd() else {
        return skip(test, "cgshimd is not built: cargo build --workspace --bins");
    };
    let scratch = Scratch::new();
    let daemon = Daemon::start(&program, &scratch);
    let group = ground.group("web");
    memory(&group).set_limit(Limit::Bytes(Bytes::mib(256))).unwrap();
    let mut load = Load::in_group(&group);
    let membership = Membership::read(load.pid()).unwrap();
    let path = if ground.v1() { membership.path("memory") } else { membership.unified() };
    let register = Register {
        id: "0123456789abcdef0123456789abcdef".into(),
        pid: load.pid() as i32,
        cgroup: path.unwrap().to_str().unwrap().into(),
        ..Register::default()
    };
    let mut client = Client::connect(&scratch.file("run"), 60 * SECOND).unwrap();
    client.ask::<Registered>(Request::Register(register.clone())).unwrap();

    let ps = ask(&scratch, &["ps"]);
    assert_eq!(ps.code(), Some(0), "{ps:?}");
    let line = ps.stdout.lines().nth(1).unwrap();
    for part in ["0123456789ab ", "burstable", "256.0 MiB", "192.0 MiB", "watching"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let all = ask(&scratch, &["ps", "--json"]).object();
    assert_eq!(all["schema"], 1);
    assert_eq!(all["containers"][0]["limit_bytes"], 256 << 20);

    let set = ask(&scratch, &["set", "0123", "high=160M", "--json"]);
    assert_eq!(set.object()["high_bytes"], 160 << 20);
    ask(&scratch, &["set", "0123", "hihg=1"]).assert_failed(2, &["there is no 'hihg'"]);
    ask(&scratch, &["set", "0123", "high"]).assert_failed(2, &["KEY=VALUE"]);
    ask(&scratch, &["set", "nobody", "high=50%"]).assert_failed(1, &["no container 'nobody'"]);
    for words in [&["stat", "nobody"][..], &["reclaim", "nobody", "1M"]] {
        ask(&scratch, words)
            .assert_failed(1, &["no container 'nobody'", "no cgroup named 'nobody'"]);
    }

    let file = DiskFile::new(Bytes::mib(100));
    load.read(&file, Bytes::mib(100));
    // By id, and by the path of its group: both are the daemon's to do.
    let cgroup = group_path(&group);
    for name in ["0123", cgroup.as_str()] {
        let done = ask(&scratch, &["reclaim", name, "8M", "--json"]).object();
        assert!(done["freed_bytes"].as_u64().unwrap() >= 8 << 20, "{done}");
        assert_eq!(done["declared_limit_restored"], true);
    }
    let stat = ask(&scratch, &["stat", "0123", "--json"]).object();
    assert_eq!(stat["container"]["id"], "0123456789abcdef0123456789abcdef");
    let caps = ask(&scratch, &["caps", "--json"]).object();
    assert_eq!(caps["daemon"]["containers"], 1);

    let mut follow = cgctl();
    follow.arg("--run-dir").arg(scratch.file("run")).args(["events", "--follow", "--json"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    ask(&scratch, &["release"]).assert_failed(2, &["--all"]);
    let released = ask(&scratch, &["release", "--all"]);
    assert!(released.stdout.contains("released"), "{released:?}");
    assert_eq!(ask(&scratch, &["ps", "--no-headers"]).stdout, "");
    assert!(ask(&scratch, &["ps", "--all"]).stdout.contains("ended"));
    let events = ask(&scratch, &["events"]).stdout;
    assert!(events.contains("registered") && events.contains("released"), "{events}");
    // The stream goes on with the next daemon, also after a kill, and ends where none comes.
    drop(daemon);
    let daemon = Daemon::start(&program, &scratch);
    let mut client = Client::connect(&scratch.file("run"), 60 * SECOND).unwrap();
    client.ask::<Registered>(Request::Register(register)).unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut told = Vec::new();
    while told.len() < 2 {
        let line = lines.next().expect("the stream has ended").unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["event"] == "registered" {
            told.push(event["generation"].as_u64().unwrap());
        }
    }
    daemon.stop();
    assert_eq!(follow.wait().unwrap().code(), Some(1));
    assert_eq!(lines.map_while(Result::ok).filter(|line| line.contains("\"registered")).count(), 0);
}

#[test]
fn without_a_daemon_the_way_out_is_named_and_the_journal_still_knows_ids() {
    let test = "without_a_daemon_the_way_out_is_named_and_the_journal_still_knows_ids";
    let Some(ground) = Ground::new(test) else { return };
    let scratch = Scratch::new();
    for words in [&["ps"][..], &["events"], &["set", "a", "high=1M"], &["release", "--all"]] {
        ask(&scratch, words)
            .assert_failed(1, &["no daemon answers", "systemctl start", "--run-dir"]);
    }
    let Some(program) = cgshimd() else {
        return skip(test, "cgshimd is not built: cargo build --workspace --bins");
    };
    let daemon = Daemon::start(&program, &scratch);
    let group = ground.group("known");
    memory(&group).set_limit(Limit::Bytes(Bytes::mib(64))).unwrap();
    let load = Load::in_group(&group);
    let membership = Membership::read(load.pid()).unwrap();
    let path = if ground.v1() { membership.path("memory") } else { membership.unified() };
    let register = Register {
        id: "an-id-of-its-own".into(),
        pid: load.pid() as i32,
        cgroup: path.unwrap().to_str().unwrap().into(),
        ..Register::default()
    };
    let mut client = Client::connect(&scratch.file("run"), 60 * SECOND).unwrap();
    client.ask::<Registered>(Request::Register(register)).unwrap();
    daemon.stop();
    let stat = ask(&scratch, &["stat", "an-id", "--json"]).object();
    assert_eq!(
        (stat["name"].as_str(), stat["high_bytes"].as_u64()),
        (Some("an-id-of-its-own"), Some(48 << 20))
    );
    assert_eq!(stat["limit_bytes"], 64 << 20);
}

fn group_path(group: &cgroupfs::Cgroup) -> String {
    use cgroupfs::files::ControlDir;
    group.path().display().to_string()
}

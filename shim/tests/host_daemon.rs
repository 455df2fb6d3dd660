//! The daemon as a process on a real hierarchy: what it takes in, what it refuses, what it costs.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::freezer::Freezer;
use cgroupfs::{Bytes, Cgroup, Limit, Membership};
use cgshim::api::client::{Client, ClientError};
use cgshim::api::message::{
    EventLine, Listed, One, Reclaimed, Register, Registered, Release, Request, Status, View,
};
use cgshim::api::{SOCKET, SPOOL};
use common::{DiskFile, Ground, Load, LowestLimit, alone, join, memory, until, without_swap};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// A daemon on a run directory of its own.
struct Daemon {
    child: Child,
    dir: Arc<tempfile::TempDir>,
}

fn program(run_dir: &Path, config: Option<&Path>) -> Command {
    let program = std::env::var_os("CGSHIMD");
    let mut command = Command::new(program.unwrap_or(env!("CARGO_BIN_EXE_cgshimd").into()));
    command.arg("--run-dir").arg(run_dir);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// How one that does not stay ended: its code, and what it said.
fn refused(run_dir: &Path, config: Option<&Path>) -> (Option<i32>, String) {
    let output = program(run_dir, config).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

impl Daemon {
    fn start() -> Daemon {
        Daemon::start_in(Arc::new(tempfile::tempdir().unwrap()), "")
    }

    fn with_config(content: &str) -> Daemon {
        Daemon::start_in(Arc::new(tempfile::tempdir().unwrap()), content)
    }

    fn start_in(dir: Arc<tempfile::TempDir>, config: &str) -> Daemon {
        let file = dir.path().join("config.toml");
        fs::write(&file, config).unwrap();
        let log =
            fs::File::options().append(true).create(true).open(dir.path().join("log")).unwrap();
        let run = dir.path().join("run");
        let child = program(&run, Some(&file)).stderr(log).spawn().unwrap();
        let daemon = Daemon { child, dir };
        // Connecting is possible before it has looked at what was there before it.
        until("it answers", 60 * SECOND, || {
            let client = Client::connect(&run, 20 * SECOND);
            client.is_ok_and(|mut client| client.ask::<Value>(Request::Ping {}).is_ok())
        });
        daemon
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn client(&self) -> Client {
        Client::connect(&self.run_dir(), 20 * SECOND).unwrap()
    }

    fn list(&self) -> Vec<View> {
        self.client().ask::<Listed>(Request::List { ended: false }).unwrap().containers
    }

    fn ended(&self) -> Vec<View> {
        let all: Listed = self.client().ask(Request::List { ended: true }).unwrap();
        all.containers.into_iter().filter(|view| view.ended_ms.is_some()).collect()
    }

    fn stat(&self, id: &str) -> View {
        self.client().ask::<One>(Request::Stat { id: id.into() }).unwrap().container
    }

    fn set(&self, id: &str, key: &str, value: &str) -> Result<View, String> {
        let terms = [(key.to_owned(), value.to_owned())].into();
        let request = Request::Set { id: id.into(), terms };
        self.client().ask::<One>(request).map(|one| one.container).map_err(|e| e.to_string())
    }

    fn register(&self, asked: &Register) -> Result<u64, String> {
        let reply = self.client().ask::<Registered>(Request::Register(asked.clone()));
        reply.map(|reply| reply.generation).map_err(|error| error.to_string())
    }

    fn release(&self, id: &str) -> Result<u64, String> {
        let release = Release { id: id.into(), ..Release::default() };
        let reply = self.client().ask::<Registered>(Request::Release(release));
        reply.map(|reply| reply.generation).map_err(|error| error.to_string())
    }

    fn events(&self) -> Vec<EventLine> {
        let mut client = self.client();
        client.ask::<Value>(Request::Events { follow: false }).unwrap();
        std::iter::from_fn(|| client.next_line().unwrap()).collect()
    }

    /// A line of its status: a number, of KiB or of times.
    fn number(&self, key: &str) -> u64 {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
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

    fn descriptors(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Ends it by a signal; its code.
    fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < 10 * SECOND, "it does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
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
fn container(ground: &Ground, name: &str, limit: Limit) -> (Arc<Cgroup>, Load) {
    let group = ground.group(name);
    memory(&group).set_limit(limit).unwrap();
    let load = Load::in_group(&group);
    (group, load)
}

/// What a hook would say of it.
fn known(ground: &Ground, id: &str, pid: u32) -> Register {
    let membership = Membership::read(pid).unwrap();
    let path = if ground.v1() { membership.path("memory") } else { membership.unified() };
    Register {
        id: id.into(),
        pid: i32::try_from(pid).unwrap(),
        cgroup: path.unwrap().to_str().unwrap().to_owned(),
        ..Register::default()
    }
}

const LIMIT: Limit = Limit::Bytes(Bytes::mib(96));

#[test]
fn a_registered_container_has_its_terms_and_is_gone_once_released() {
    let test = "a_registered_container_has_its_terms_and_is_gone_once_released";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::with_config(
        "[defaults]\nhigh = '90%'\n[[policy]]\nmatch = '/**/policed'\nwatermark = '60%:50%'\n",
    );
    let (_group, load) = container(&ground, "policed", LIMIT);
    let mut asked = known(&ground, "c-1", load.pid());
    asked.annotations = [("io.cgshim.high", "50%"), ("io.cgshim.oom", "hold=9s"), ("other", "x")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    asked.oom_score_adj = Some(1000);
    let generation = daemon.register(&asked).unwrap();
    // Twice the same is once.
    assert_eq!(daemon.register(&asked), Ok(generation));
    let view = daemon.stat("c");
    assert_eq!((view.id.as_str(), view.class.as_str()), ("c-1", "besteffort"));
    assert_eq!(view.limit_bytes, LIMIT.bytes().map(|bytes| bytes.0));
    assert_eq!(view.high_bytes, Some(48 << 20));
    assert_eq!(view.wmark_high_bytes, Some(Bytes(48 << 20).scale(60, 100).page_floor().0));
    // Looser than the operator's.
    assert_eq!(
        (view.oom.as_str(), view.refused.as_slice()),
        ("kill", ["oom".to_owned()].as_slice())
    );
    // The operator's own hand may loosen, and all of it or nothing is changed.
    assert!(daemon.set("c-1", "hihg", "1").unwrap_err().contains("there is no 'hihg'"));
    assert_eq!(daemon.set("c-1", "oom", "hold=9s").unwrap().oom, "hold=9s");
    assert_eq!(daemon.release("c-1"), Ok(generation));
    assert!(daemon.list().is_empty());
    assert_eq!(daemon.ended()[0].state, "ended");
    // Nobody there any more: no failure.
    assert_eq!(daemon.release("c-1"), Ok(0));
    let events: Vec<String> = daemon.events().into_iter().map(|event| event.event).collect();
    assert_eq!(events, ["registered", "released"]);
}

#[test]
fn registrations_that_are_not_true_are_refused_by_name() {
    let Some(ground) = Ground::new("registrations_that_are_not_true_are_refused_by_name") else {
        return;
    };
    let daemon = Daemon::start();
    let (_g1, load) = container(&ground, "g1", LIMIT);
    let (_g2, mut other) = container(&ground, "g2", LIMIT);
    let good = known(&ground, "a", load.pid());
    let elsewhere = known(&ground, "a", other.pid());
    let start_time = Some(1);
    for (wrong, part) in [
        (Register { cgroup: elsewhere.cgroup.clone(), ..good.clone() }, "is in "),
        (Register { cgroup: "/".into(), ..good.clone() }, "is in "),
        (Register { cgroup: format!("{}/../g2", good.cgroup), ..good.clone() }, "'..'"),
        (Register { cgroup: "relative".into(), ..good.clone() }, "does not begin"),
        (Register { cgroup: format!("/{}", "x/".repeat(4000)), ..good.clone() }, "longer than"),
        (Register { start_time, ..good.clone() }, "another one by now"),
        (Register { pid: 0, ..good.clone() }, "no process id"),
        (Register { pid: -1, ..good.clone() }, "no process id"),
        (Register { pid: i32::MAX, ..good.clone() }, "is gone"),
        (Register { id: String::new(), ..good.clone() }, "is empty"),
        (Register { id: "x\n\u{1b}[2J".into(), ..good.clone() }, "control characters"),
        (Register { id: "y".repeat(300), ..good.clone() }, "longer than"),
    ] {
        let why = daemon.register(&wrong).unwrap_err();
        assert!(why.contains(part) && !why.contains('\n'), "{why}");
    }
    // The id of a thread is known to /proc as well, and its start is the same to a hundredth of a second.
    let thread = fs::read_dir(format!("/proc/{}/task", load.pid())).unwrap().map(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().parse::<i32>().unwrap()
    });
    let thread = thread.max().unwrap();
    assert!(thread > good.pid, "a load has a thread of its own");
    let wrong = Register { pid: thread, start_time: None, ..good.clone() };
    let why = daemon.register(&wrong).unwrap_err();
    assert!(why.contains(&format!("thread of process {}", good.pid)), "{why}");
    // The daemon's own process is in no container: the root group, or another that is not this one.
    let own = Register { pid: i32::try_from(daemon.child.id()).unwrap(), ..good.clone() };
    assert!(daemon.register(&own).unwrap_err().contains("is in "));
    let first = daemon.register(&good).unwrap();
    // Another container of that id while the first is there: refused, naming both.
    let why = daemon.register(&elsewhere).unwrap_err();
    assert!(why.contains(&good.cgroup) && why.contains(&elsewhere.cgroup), "{why}");
    // Once its group is gone, it takes the id's place as another generation.
    drop(load);
    ground.dir.remove_child("g1", 5 * SECOND).unwrap();
    let second = daemon.register(&elsewhere).unwrap();
    assert!(second > first);
    assert_eq!(daemon.list().len(), 1);
    assert!(other.is_alive());
}

#[test]
fn a_group_that_is_removed_ends_its_container_in_one_pass() {
    let test = "a_group_that_is_removed_ends_its_container_in_one_pass";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::start();
    let (_group, load) = container(&ground, "g", LIMIT);
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    drop(load);
    ground.dir.remove_child("g", 5 * SECOND).unwrap();
    until("it is gone from the list", 3 * SECOND, || daemon.list().is_empty());
    assert_eq!(daemon.ended().len(), 1);
    let events: Vec<String> = daemon.events().into_iter().map(|event| event.event).collect();
    assert_eq!(events, ["registered", "vanished"]);
    assert_eq!(daemon.log().matches("container a is gone").count(), 1);
}

#[test]
fn one_daemon_a_run_directory_and_what_a_dead_one_left_is_in_nobodys_way() {
    let test = "one_daemon_a_run_directory_and_what_a_dead_one_left_is_in_nobodys_way";
    if Ground::new(test).is_none() {
        return;
    }
    let mut daemon = Daemon::start();
    let run = daemon.run_dir();
    let (code, said) = refused(&run, None);
    assert_eq!(code, Some(1), "{said}");
    let pid = format!("pid {}", daemon.child.id());
    assert!(said.contains(&pid) && said.contains("--run-dir"), "{said}");
    // Killed: its socket stays behind, and is replaced.
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(run.join(SOCKET).exists());
    let mut daemon = Daemon::start_in(daemon.dir.clone(), "");
    assert_eq!(daemon.stop(), Some(0));
    assert!(!run.join(SOCKET).exists());
    // What is no socket is not removed.
    fs::write(run.join(SOCKET), "mine").unwrap();
    let (code, said) = refused(&run, None);
    assert_eq!(code, Some(1));
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(run.join(SOCKET)).unwrap(), "mine");
    fs::remove_file(run.join(SOCKET)).unwrap();
    // Somebody else's socket, who answers.
    let listener = std::os::unix::net::UnixListener::bind(run.join(SOCKET)).unwrap();
    assert!(refused(&run, None).1.contains("another daemon answers"));
    drop(listener);
}

#[test]
fn what_it_cannot_start_with_is_named_with_the_way_out() {
    if Ground::new("what_it_cannot_start_with_is_named_with_the_way_out").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    for (content, part) in [
        ("[defaults]\nhigh = '80 percent'\n", "config.toml:2:8: "),
        ("[defaults]\nhihg = '80%'\n", "config.toml:2:1: "),
        ("a\n\u{0}", "config.toml:1:2: "),
    ] {
        let config = dir.path().join("config.toml");
        fs::write(&config, content).unwrap();
        let (code, said) = refused(&run, Some(&config));
        assert_eq!(code, Some(1));
        assert!(said.contains(part), "{said}");
    }
    let (_, said) = refused(&run, Some(&dir.path().join("none.toml")));
    assert!(said.contains("none.toml") && said.contains("--config"), "{said}");
    // One that is there, and cannot be read.
    fs::create_dir(dir.path().join("dir.toml")).unwrap();
    let (code, said) = refused(&run, Some(&dir.path().join("dir.toml")));
    assert!(code == Some(1) && said.contains("dir.toml"), "{said}");
    fs::write(dir.path().join("file"), "").unwrap();
    let (code, said) = refused(&dir.path().join("file/run"), None);
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot use the run directory"), "{said}");
    // Full: found at the start, not at the first registration.
    let full = Path::new("/dev/full");
    if full.exists() {
        let run = dir.path().join("full");
        fs::create_dir(&run).unwrap();
        std::os::unix::fs::symlink(full, run.join("cgshimd.lock")).unwrap();
        let (code, said) = refused(&run, None);
        assert_eq!(code, Some(1));
        assert!(said.contains("cgshimd.lock"), "{said}");
    }
    assert_eq!(
        program(&run, None).arg("--frob").stderr(Stdio::null()).status().unwrap().code(),
        Some(2)
    );
}

/// A run directory on a tmpfs of its own, which can be full.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(at: &Path) -> SmallFileSystem {
        fs::create_dir(at).unwrap();
        mount(Some("small"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        SmallFileSystem(at.into())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.filler()).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn on_a_full_run_directory_nothing_is_stepped_that_could_not_be_restored() {
    let test = "on_a_full_run_directory_nothing_is_stepped_that_could_not_be_restored";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let small = SmallFileSystem::mount(&dir.path().join("run"));
    // From the start: named, with the way out.
    small.fill();
    let (code, said) = refused(&small.0, None);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("No space left") && said.contains("free some"), "{said}");
    small.make_room();

    let config = "[defaults]\nwatermark = '50%:40%'\n";
    let mut daemon = Daemon::start_in(dir.clone(), config);
    let (before, idle) = container(&ground, "before", LIMIT);
    daemon.register(&known(&ground, "before", idle.pid())).unwrap();
    small.fill();
    // It is taken in, and watched; its limit stays as it is, and people are told why.
    let (group, mut load) = container(&ground, "g", LIMIT);
    let file = DiskFile::new(Bytes::mib(128));
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    let lowest = LowestLimit::watch(memory(&group));
    load.stream(&file, Bytes::mib(300));
    std::thread::sleep(SECOND);
    assert_eq!(daemon.list().len(), 2);
    if ground.v1() {
        assert_eq!(lowest.seen(), LIMIT, "stepped without a place in the journal");
    }
    let log = daemon.log();
    assert!(log.contains("No space left") && log.contains("journal"), "{log}");
    // What has its place keeps it, and a restore needs no room.
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    let restore = program(&small.0, None).arg("--restore").stderr(Stdio::piped()).output().unwrap();
    assert_eq!(restore.status.code(), Some(0), "{restore:?}");
    assert_eq!(memory(&before).limit().unwrap(), LIMIT);
    small.make_room();
    daemon = Daemon::start_in(dir.clone(), config);
    assert!(daemon.list().iter().any(|view| view.id == "before"));
    // With room again, it is enforced like any other.
    daemon.release("a").unwrap();
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    until("it is at work", 20 * SECOND, || daemon.stat("a").reclaim.rounds > 0);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(memory(&group).limit().unwrap(), LIMIT);
}

#[test]
fn a_changed_configuration_counts_at_once_and_a_bad_one_keeps_the_old() {
    let test = "a_changed_configuration_counts_at_once_and_a_bad_one_keeps_the_old";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::with_config("[defaults]\nhigh = '90%'\n");
    let (_group, load) = container(&ground, "g", Limit::Bytes(Bytes::mib(100)));
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    let high = || daemon.stat("a").high_bytes.unwrap() >> 20;
    assert_eq!(high(), 90);
    let config = daemon.dir.path().join("config.toml");
    // By inotify.
    fs::write(&config, "[defaults]\nhigh = '80%'\n").unwrap();
    until("the new one is in force", 3 * SECOND, || high() == 80);
    // Bad: named with line and column, once, and nothing changes.
    fs::write(&config, "[defaults]\nhigh = '80%'\nhigh = '70%'\n").unwrap();
    let status = || daemon.client().ask::<Status>(Request::Status {}).unwrap();
    until("it is refused", 3 * SECOND, || status().config_error.is_some());
    assert!(status().config_error.unwrap().contains("config.toml:3:1"), "{:?}", status());
    assert_eq!(high(), 80);
    daemon.signal(Signal::SIGHUP);
    std::thread::sleep(SECOND / 5);
    assert_eq!(daemon.log().matches("config.toml:3:1").count(), 1);
    // Good again, by SIGHUP; a directory that was not there when it started.
    fs::create_dir(daemon.dir.path().join("config.d")).unwrap();
    fs::write(daemon.dir.path().join("config.d/1.toml"), "[defaults]\nhigh = '60%'\n").unwrap();
    fs::write(&config, "").unwrap();
    daemon.signal(Signal::SIGHUP);
    until("it is in force", 3 * SECOND, || high() == 60);
    assert_eq!(status().config_error, None);
    let events: Vec<String> = daemon.events().into_iter().map(|event| event.event).collect();
    assert!(events.iter().filter(|event| *event == "config_refused").count() == 1, "{events:?}");
}

#[test]
fn intents_that_hooks_left_are_taken_at_start_and_within_a_second() {
    let test = "intents_that_hooks_left_are_taken_at_start_and_within_a_second";
    let Some(ground) = Ground::new(test) else { return };
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let spool = dir.path().join("run").join(SPOOL);
    fs::create_dir_all(&spool).unwrap();
    let leave = |register: &Register| {
        let mut line = serde_json::to_value(register).unwrap();
        line["schema"] = json!(1);
        line["op"] = json!("register");
        let unfinished = spool.join(".1.tmp");
        fs::write(&unfinished, line.to_string() + "\n").unwrap();
        fs::rename(unfinished, spool.join(format!("{}.json", register.id))).unwrap();
    };
    let (_g1, first) = container(&ground, "g1", LIMIT);
    let (_g2, second) = container(&ground, "g2", LIMIT);
    leave(&known(&ground, "one", first.pid()));
    leave(&Register { pid: i32::MAX, ..known(&ground, "gone", first.pid()) });
    fs::write(spool.join("junk.json"), "{").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", spool.join("link.json")).unwrap();
    let daemon = Daemon::start_in(dir.clone(), "");
    // Before it answers anybody.
    let ids: Vec<String> = daemon.list().into_iter().map(|view| view.id).collect();
    assert_eq!(ids, ["one"]);
    assert_eq!(daemon.stat("one").source, "spool");
    leave(&known(&ground, "two", second.pid()));
    until("it is taken", SECOND, || daemon.list().len() == 2);
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 0);
    let log = daemon.log();
    for part in ["container gone is dropped", "junk.json is refused", "link.json is refused"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn groups_that_patterns_name_are_found_when_they_have_processes() {
    let test = "groups_that_patterns_name_are_found_when_they_have_processes";
    let Some(ground) = Ground::new(test) else { return };
    let path = |group: &Cgroup| {
        let relative = group.path().strip_prefix(&ground.hierarchy.mount_point).unwrap();
        format!("/{}", relative.to_str().unwrap())
    };
    let base = path(&ground.dir);
    let flat = Arc::new(ground.hierarchy.enable_memory(ground.group("flat").path()).unwrap());
    let deep = Arc::new(ground.hierarchy.enable_memory(ground.group("deep").path()).unwrap());
    let there = Arc::new(flat.create_child("there").unwrap_or_else(|_| unreachable!()));
    let mut loads = vec![Load::in_group(&there)];
    let daemon = Daemon::with_config(&format!(
        "[discovery]\npatterns = ['{base}/flat/*', '{base}/deep/**']\n"
    ));
    let ids = || daemon.list().into_iter().map(|view| view.id).collect::<Vec<String>>();
    assert_eq!(ids(), ["there"]);
    assert_eq!(daemon.stat("there").source, "discovery");
    // Made later, and filled later still.
    let later = Arc::new(flat.create_child("later").unwrap());
    std::thread::sleep(SECOND / 5);
    assert_eq!(ids(), ["there"]);
    loads.push(Load::in_group(&later));
    until("it is found", 2 * SECOND, || ids() == ["later", "there"]);
    // Levels between are no containers, and what is in a container is none either.
    deep.create_child("pod").unwrap();
    let pod = Arc::new(ground.hierarchy.enable_memory(&deep.path().join("pod")).unwrap());
    let inner = Arc::new(pod.create_child("ctr").unwrap());
    loads.push(Load::in_group(&inner));
    until("it is found", 2 * SECOND, || ids() == ["ctr", "later", "there"]);
    if ground.v1() {
        let below = Arc::new(inner.create_child("below").unwrap());
        loads.push(Load::in_group(&below));
        std::thread::sleep(SECOND / 5);
        assert_eq!(ids(), ["ctr", "later", "there"]);
    }
    // The runtime's own word for it replaces ours.
    daemon.register(&known(&ground, "proper-name", loads[0].pid())).unwrap();
    assert_eq!(ids(), ["ctr", "later", "proper-name"]);
    // A group of the same name made later is another container.
    let before = daemon.stat("later").generation;
    drop(loads.remove(1));
    flat.remove_child("later", 5 * SECOND).unwrap();
    until("it is gone", 3 * SECOND, || ids() == ["ctr", "proper-name"]);
    let again = Arc::new(flat.create_child("later").unwrap());
    loads.push(Load::in_group(&again));
    until("it is found again", 2 * SECOND, || ids() == ["ctr", "later", "proper-name"]);
    assert!(daemon.stat("later").generation > before);
    drop(loads);
}

#[test]
fn reclaim_that_is_asked_for_goes_between_the_engines_own() {
    let Some(ground) = Ground::new("reclaim_that_is_asked_for_goes_between_the_engines_own") else {
        return;
    };
    let _alone = alone();
    let daemon = Daemon::start();
    let (group, mut load) = container(&ground, "g", Limit::Bytes(Bytes::mib(256)));
    let file = DiskFile::new(Bytes::mib(128));
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    load.read(&file, Bytes::mib(128));
    let before = memory(&group).usage().unwrap();
    let ask = |bytes| {
        let request = Request::Reclaim { id: "a".into(), bytes, timeout_ms: 10_000 };
        daemon.client().ask::<Reclaimed>(request)
    };
    let done = ask(32 << 20).unwrap();
    assert!(done.freed_bytes >= 32 << 20, "{done:?}");
    assert!(done.declared_limit_restored && done.stopped_because.is_none(), "{done:?}");
    let after = memory(&group).usage().unwrap();
    assert!(after.0 + (30 << 20) <= before.0, "{before} {after}");
    assert!(ask(0).is_err());
    // More than there is: less is freed, and it says why.
    let done = ask(1 << 30).unwrap();
    assert!(done.stopped_because.is_some(), "{done:?}");
    // Under a load that keeps the engine busy too, with several who ask at once.
    daemon.set("a", "watermark", "30%:20%").unwrap();
    load.stream(&file, Bytes::mib(200));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    match ask(4 << 20) {
                        Ok(_) => {}
                        Err(ClientError::Refused(why)) => {
                            assert!(why.contains("somebody else"), "{why}")
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    until("the engine's own turn", 10 * SECOND, || daemon.stat("a").reclaim.rounds > 0);
    // None of all these steps was taken for somebody's new limit.
    let adopted =
        daemon.events().into_iter().filter(|event| event.event == "limit_adopted").count();
    assert_eq!(adopted, 0);
    daemon.release("a").unwrap();
    assert_eq!(memory(&group).limit().unwrap(), Limit::Bytes(Bytes::mib(256)));
}

#[test]
fn stopped_in_the_middle_of_its_work_it_leaves_every_declared_limit() {
    let test = "stopped_in_the_middle_of_its_work_it_leaves_every_declared_limit";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let (group, mut load) = container(&ground, "g", LIMIT);
    let file = DiskFile::new(Bytes::mib(128));
    load.stream(&file, Bytes::mib(300));
    for run in 0..10 {
        let mut daemon = Daemon::with_config("[defaults]\nwatermark = '50%:40%'\n");
        daemon.register(&known(&ground, "a", load.pid())).unwrap();
        until("it is at work", 10 * SECOND, || daemon.stat("a").reclaim.rounds > 0);
        std::thread::sleep(Duration::from_micros(run * 1733));
        assert_eq!(daemon.stop(), Some(0), "run {run}");
        assert_eq!(memory(&group).limit().unwrap(), LIMIT, "run {run}");
    }
    assert!(load.is_alive());
}

#[test]
fn who_follows_events_hears_of_them_and_who_is_too_slow_is_told_what_it_missed() {
    let test = "who_follows_events_hears_of_them_and_who_is_too_slow_is_told_what_it_missed";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::start();
    let (_group, load) = container(&ground, "g", LIMIT);
    let mut asked = known(&ground, "a", load.pid());
    // Long lines.
    let wrong = |n: u32| (format!("io.cgshim.{}{n}", "x".repeat(39)), String::new());
    asked.annotations = (0..6).map(wrong).collect();
    let mut quick = daemon.client();
    quick.ask::<Value>(Request::Events { follow: true }).unwrap();
    let mut slow = daemon.client();
    slow.ask::<Value>(Request::Events { follow: true }).unwrap();
    daemon.register(&asked).unwrap();
    assert_eq!(quick.next_line::<EventLine>().unwrap().unwrap().event, "registered");
    daemon.release("a").unwrap();
    assert_eq!(quick.next_line::<EventLine>().unwrap().unwrap().event, "released");
    drop(quick);
    // More than the socket and the buffer hold.
    for _ in 0..1000 {
        daemon.register(&asked).unwrap();
        daemon.release("a").unwrap();
    }
    let (mut lines, mut missed) = (0, 0);
    while lines + missed < 2002 {
        // Room again: the next event says what was missed.
        let event = match slow.next_line::<EventLine>() {
            Ok(Some(event)) => event,
            other => panic!("{lines} {missed} {other:?}"),
        };
        if event.event == "dropped" {
            missed += event.detail["dropped"].as_u64().unwrap();
        } else {
            lines += 1;
        }
        if lines == 200 {
            std::thread::sleep(SECOND / 10);
            daemon.register(&asked).unwrap();
            daemon.release("a").unwrap();
        }
        if missed > 0 {
            break;
        }
    }
    assert!(missed > 0 && lines > 200, "{lines} {missed}");
}

#[test]
fn a_high_that_makes_no_sense_is_refused_and_one_above_the_limit_is_never_met() {
    let test = "a_high_that_makes_no_sense_is_refused_and_one_above_the_limit_is_never_met";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::with_config("[defaults]\nhigh = '50%'\nwatermark = 'off'\n");
    let (_group, mut load) = container(&ground, "g", LIMIT);
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    for nonsense in ["0", "1K", "0%", "101%", "-1", "9e99"] {
        let why = daemon.set("a", "high", nonsense).unwrap_err();
        assert!(why.contains("high") && why.contains(nonsense), "{nonsense}: {why}");
    }
    assert_eq!(daemon.stat("a").high_bytes, Some(48 << 20));
    assert_eq!(daemon.set("a", "high", "2G").unwrap().high_bytes, Some(2 << 30));
    // Up to the limit as if there were none.
    assert!(load.anon(Bytes::mib(80)));
    assert!(daemon.stat("a").throttled.is_none_or(|throttled| throttled.pulses == 0));
    // Under what is in use: only further growth is slowed.
    assert_eq!(daemon.set("a", "high", "16M").unwrap().high_bytes, Some(16 << 20));
    assert!(load.is_alive() && daemon.stat("a").usage_bytes.unwrap() >= 80 << 20);
    // The root group holds everybody.
    let root = Register { cgroup: "/".into(), ..known(&ground, "root", load.pid()) };
    assert!(daemon.register(&root).unwrap_err().contains('/'));
    assert!(daemon.list().iter().all(|view| view.id == "a"));
}

#[test]
fn the_way_out_is_a_term_like_others_and_its_event_says_why() {
    let test = "the_way_out_is_a_term_like_others_and_its_event_says_why";
    let Some(ground) = Ground::new(test) else { return };
    if !ground.v1() || Freezer::find().is_err() {
        return common::skip(test, "v2 has memory.high (host_native), or there is no freezer");
    }
    let _alone = alone();
    let config = "[defaults]\nhigh = '50%'\nwatermark = 'off'\nway_out = 'release=3s'\n\
                  [[policy]]\nmatch = '/**/policed'\nway_out = 'notify=2s'\n";
    let daemon = Daemon::with_config(config);
    let (group, mut load) = container(&ground, "policed", LIMIT);
    without_swap(&group);
    let (_other, second) = container(&ground, "other", LIMIT);
    let mut asked = known(&ground, "b", second.pid());
    let wants = |value: &str| [("io.cgshim.way_out".to_owned(), value.to_owned())].into();
    // Shorter than the operator's: not for a container to ask.
    asked.annotations = wants("release=1s");
    daemon.register(&asked).unwrap();
    let view = daemon.stat("b");
    assert_eq!(view.way_out, "release=3s");
    assert_eq!(view.refused, ["way_out"]);
    daemon.release("b").unwrap();
    asked.annotations = wants("release=60s");
    daemon.register(&asked).unwrap();
    assert_eq!(daemon.stat("b").way_out, "release=60s");
    assert!(daemon.set("b", "way_out", "later").unwrap_err().contains("release, oom, notify"));

    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    assert_eq!(daemon.stat("a").way_out, "notify=2s");
    load.grow(Bytes(0), Bytes::mib(80));
    let told = || -> Vec<String> {
        let events = daemon.events().into_iter();
        let ours = events.filter(|event| event.event == "throttle_way_out");
        ours.map(|event| event.message).collect()
    };
    until("it is told", 20 * SECOND, || !told().is_empty());
    assert!(told()[0].contains("cannot be reclaimed: throttling goes on"), "{:?}", told());
    // And it does.
    let usage = || memory(&group).usage().unwrap();
    assert!(usage() < Bytes::mib(72), "{}", usage());
    let throttled = daemon.stat("a").throttled.unwrap();
    assert!(throttled.pulses > 0 && throttled.frozen_ms >= 2000.0 && throttled.share > 0.0);
    assert_eq!(throttled.released, 0);
    // A way out of another kind has a budget of its own.
    assert_eq!(daemon.set("a", "way_out", "release=1s").unwrap().way_out, "release=1s");
    until("it has all that it wants", 20 * SECOND, || usage() >= Bytes::mib(80));
    until("it is told", 2 * SECOND, || told().len() == 2);
    assert!(told()[1].contains("cannot be reclaimed: throttling is lifted"), "{:?}", told());
    until("it is counted", 2 * SECOND, || daemon.stat("a").throttled.unwrap().released == 1);
}

#[test]
fn a_restart_loses_no_container_no_term_and_no_count() {
    let Some(ground) = Ground::new("a_restart_loses_no_container_no_term_and_no_count") else {
        return;
    };
    let _alone = alone();
    // Not throttled: memory is to be filled up to the limit at once.
    let config = "[defaults]\nhigh = '90%'\nthrottle = 'off'\n";
    let mut daemon = Daemon::with_config(config);
    let (group, mut load) = container(&ground, "g", Limit::Bytes(Bytes::mib(32)));
    without_swap(&group);
    let (_gone, other) = container(&ground, "gone", LIMIT);
    let mut asked = known(&ground, "a", load.pid());
    asked.annotations = [("io.cgshim.high".to_owned(), "50%".to_owned())].into();
    asked.oom_score_adj = Some(-997);
    let first = daemon.register(&asked).unwrap();
    daemon.register(&known(&ground, "b", other.pid())).unwrap();
    daemon.set("a", "watermark", "70%:60%").unwrap();
    let killed = |load: &mut Load| {
        assert!(!load.anon(Bytes::mib(64)), "it outlived 64 of 32 MiB");
        *load = Load::in_group(&group);
    };
    killed(&mut load);
    until("it is counted", 3 * SECOND, || daemon.stat("a").oom_kills == 1);
    let before = daemon.stat("a");
    for (run, way) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        daemon.signal(way);
        daemon.child.wait().unwrap();
        // Nobody looks, and two are killed.
        killed(&mut load);
        killed(&mut load);
        if run == 0 {
            drop(Load::in_group(&group));
        }
        daemon = Daemon::start_in(daemon.dir.clone(), config);
        let view = daemon.stat("a");
        assert_eq!((&view.class, &view.source), (&before.class, &before.source));
        assert_eq!(
            (view.high_bytes, view.wmark_high_bytes),
            (before.high_bytes, before.wmark_high_bytes)
        );
        assert_eq!(
            (view.since_ms, view.inode, view.pid),
            (before.since_ms, before.inode, before.pid)
        );
        assert!(view.generation > first);
        let kills = 1 + 2 * (run as u64 + 1);
        until("what was killed meanwhile is counted", 3 * SECOND, || {
            daemon.stat("a").oom_kills == kills
        });
        let announced = || {
            let told = daemon.events().into_iter().filter(|event| event.event == "oom_kill");
            told.filter_map(|event| event.detail["kills"].as_u64()).sum::<u64>()
        };
        until("and announced", 3 * SECOND, || announced() == 2);
        assert!(daemon.list().iter().any(|view| view.id == "b"));
    }
    // Gone while nobody looked.
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    drop(other);
    ground.dir.remove_child("gone", 5 * SECOND).unwrap();
    daemon = Daemon::start_in(daemon.dir.clone(), config);
    assert!(daemon.log().contains("container b is not gone on with"));
    assert_eq!(daemon.list().len(), 1);
    // Released is released, after a restart too.
    daemon.release("a").unwrap();
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    daemon = Daemon::start_in(daemon.dir.clone(), config);
    assert!(daemon.list().is_empty());
    assert_eq!(fs::read_dir(daemon.run_dir().join("containers")).unwrap().count(), 0);
}

/// As an update, or a downgrade, finds it: what the journal alone knew is said to be so, what else is known goes on.
#[test]
fn a_journal_of_another_version_is_moved_aside_and_no_container_is_lost() {
    let test = "a_journal_of_another_version_is_moved_aside_and_no_container_is_lost";
    let Some(ground) = Ground::new(test) else { return };
    let mut daemon = Daemon::start();
    let (group, load) = container(&ground, "g", LIMIT);
    let mut asked = known(&ground, "a", load.pid());
    asked.annotations = [("io.cgshim.high".to_owned(), "50%".to_owned())].into();
    let generation = daemon.register(&asked).unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let run = daemon.run_dir();
    until("its guardian is gone", 5 * SECOND, || {
        cgshim::journal::RunDir::lock(&run, Duration::ZERO).is_ok()
    });
    let journal = fs::File::options().write(true).open(run.join("journal")).unwrap();
    // The second word of the header is the layout.
    std::os::unix::fs::FileExt::write_all_at(&journal, &99u64.to_le_bytes(), 8).unwrap();
    drop(journal);
    let daemon = Daemon::start_in(daemon.dir.clone(), "");
    let log = daemon.log();
    assert!(log.contains("layout 99") && log.contains("journal.layout-99"), "{log}");
    assert!(run.join("journal.layout-99").exists());
    let view = daemon.stat("a");
    assert_eq!(view.high_bytes, Some(48 << 20));
    assert!(view.generation > generation);
    assert_eq!(memory(&group).limit().unwrap(), LIMIT);
}

#[test]
fn a_restore_from_outside_leaves_a_living_daemon_alone() {
    if Ground::new("a_restore_from_outside_leaves_a_living_daemon_alone").is_none() {
        return;
    }
    let mut daemon = Daemon::start();
    let run = daemon.run_dir();
    let restore = || {
        let output = program(&run, None).arg("--restore").stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = restore();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("nothing to restore"), "{said}");
    assert_eq!(daemon.stop(), Some(0));
    let (code, said) = restore();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("0 limits restored"), "{said}");
}

#[test]
fn a_hundred_thousand_hostile_messages_change_nothing() {
    let Some(ground) = Ground::new("a_hundred_thousand_hostile_messages_change_nothing") else {
        return;
    };
    let _alone = alone();
    let daemon = Daemon::start();
    let (_group, load) = container(&ground, "g", LIMIT);
    let good = known(&ground, "a", load.pid());
    daemon.register(&good).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut sent = 0;
    let mut batch = |count: usize| {
        while sent < count {
            let mut stream = UnixStream::connect(daemon.run_dir().join(SOCKET)).unwrap();
            stream.set_read_timeout(Some(10 * SECOND)).unwrap();
            let lines = if sent % 64 == 0 { 1 } else { 50 };
            let mut bytes = Vec::new();
            for _ in 0..lines {
                bytes.extend(hostile(&mut next, &good));
                bytes.push(b'\n');
            }
            sent += lines;
            // An answer each, or the end of the connection: never silence.
            let mut reader = stream.try_clone().unwrap();
            let reading = std::thread::spawn(move || {
                let mut answers = Vec::new();
                let _ = reader.read_to_end(&mut answers);
                answers
            });
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let answers = reading.join().unwrap();
            assert!(answers.starts_with(b"{\"schema\":1,\"ok\":"), "{answers:?}");
        }
    };
    batch(5_000);
    // The last connection of the batch may not be closed yet, and a threshold not armed.
    std::thread::sleep(SECOND);
    let (descriptors, resident) = (daemon.descriptors().len(), daemon.number("VmRSS:"));
    // An emulated machine takes a minute for a few thousand.
    let all = if std::env::var_os("CGSHIM_LANE").is_some() { 10_000 } else { 100_000 };
    batch(all);
    until("every descriptor is closed", 5 * SECOND, || daemon.descriptors().len() <= descriptors);
    let open = daemon.descriptors();
    let grown = daemon.number("VmRSS:").saturating_sub(resident);
    assert!(grown < 2048, "{resident} and {grown} KiB more");
    let freezer = cgroupfs::Mounts::read().unwrap();
    let freezer = freezer.v1("freezer").map(|mount| mount.mount_point.as_path());
    for file in open.iter().filter(|file| file.starts_with("/sys")) {
        let ours = file.starts_with(&ground.hierarchy.mount_point);
        assert!(ours || Some(file.as_path()) == freezer, "{}", file.display());
    }
    let ids: Vec<String> = daemon.list().into_iter().map(|view| view.id).collect();
    assert_eq!(ids, ["a"]);
    assert!(!daemon.log().contains("panicked"));
    assert!(daemon.log().len() < 1 << 20, "the log is not limited");
}

/// One of many ways to be wrong.
fn hostile(next: &mut impl FnMut() -> u64, good: &Register) -> Vec<u8> {
    let mut register = serde_json::to_value(good).unwrap();
    register["schema"] = json!(1);
    register["op"] = json!("register");
    register["id"] = json!(format!("h{}", next() % 1000));
    let paths = [
        "/",
        "//",
        "/..",
        "/../..",
        "/a/../../etc",
        "relative",
        "",
        "/proc/1",
        "/sys/fs/cgroup",
        "/no/such/group",
        "/./.",
        "\u{0}",
        "/\u{202e}x",
    ];
    let path = || good.cgroup.clone();
    match next() % 16 {
        0 => {
            (0..next() % 300).map(|_| (next() % 256) as u8).filter(|byte| *byte != b'\n').collect()
        }
        1 => vec![b'['; usize::try_from(next() % 60_000).unwrap()],
        2 => format!("{}1{}", "{\"a\":".repeat(2000), "}".repeat(2000)).into_bytes(),
        3 => b"{\"schema\":1,\"op\":\"stat\",\"id\":\"\xff\xfe\"}".to_vec(),
        4 => json!({"schema": next(), "op": "ping"}).to_string().into_bytes(),
        5 => json!({"schema": 1, "op": "set", "id": "a", "terms": {"high": "9e99%"}})
            .to_string()
            .into_bytes(),
        6 => json!({"schema": 1, "op": "release", "id": "../../a"}).to_string().into_bytes(),
        7 => json!({"schema": 1, "op": "reclaim", "id": "", "bytes": u64::MAX})
            .to_string()
            .into_bytes(),
        8 => vec![b'x'; if next().is_multiple_of(50) { 70_000 } else { 100 }],
        9 => {
            let text = register.to_string();
            text.as_bytes()[..usize::try_from(next()).unwrap_or(0) % text.len()].to_vec()
        }
        10 => {
            // Any but the right one.
            let pid = (next() % 40_000) as i32;
            register["pid"] = json!(if pid == good.pid { 0 } else { pid });
            register.to_string().into_bytes()
        }
        11 => {
            register["cgroup"] = json!(paths[usize::try_from(next() % 13).unwrap()]);
            register.to_string().into_bytes()
        }
        12 => {
            register["cgroup"] = json!(format!(
                "{}/../{}",
                path(),
                "x".repeat(usize::try_from(next() % 9000).unwrap())
            ));
            register.to_string().into_bytes()
        }
        13 => {
            register["id"] =
                json!(format!("{}\u{7}", "i".repeat(usize::try_from(next() % 600).unwrap())));
            register.to_string().into_bytes()
        }
        14 => {
            register["start_time"] = json!(next());
            register.to_string().into_bytes()
        }
        _ => {
            register["annotations"] = json!({"io.cgshim.high": {"deep": [[[]]]}});
            register.to_string().into_bytes()
        }
    }
}

#[test]
fn a_thousand_idle_containers_cost_next_to_nothing() {
    let Some(ground) = Ground::new("a_thousand_idle_containers_cost_next_to_nothing") else {
        return;
    };
    let _alone = alone();
    let daemon = Daemon::start();
    let parent = ground.hierarchy.enable_memory(ground.path()).unwrap();
    let mut client = daemon.client();
    // One process that has been in each of them.
    let first = parent.create_child("c0").unwrap();
    let load = Load::in_group(&first);
    // In an emulated machine, which takes half a second for each, 200 of them.
    let count = if std::env::var_os("CGSHIM_LANE").is_some() { 200 } else { 1000 };
    for n in 0..count {
        let group = match n {
            0 => Arc::new(parent.child("c0").unwrap()),
            _ => Arc::new(parent.create_child(&format!("c{n}")).unwrap()),
        };
        memory(&group).set_limit(LIMIT).unwrap();
        join(&group, load.pid());
        let asked = known(&ground, &format!("c{n}"), load.pid());
        client.ask::<Registered>(Request::Register(asked)).unwrap();
    }
    assert_eq!(daemon.list().len(), count);
    let switches =
        || daemon.number("voluntary_ctxt_switches:") + daemon.number("nonvoluntary_ctxt_switches:");
    // Each threshold takes a grace period of the kernel's to arm.
    until("all are armed", 120 * SECOND, || {
        let before = switches();
        std::thread::sleep(SECOND);
        switches() - before <= 5
    });
    let before = switches();
    std::thread::sleep(4 * SECOND);
    let a_second = (switches() - before) as f64 / 4.0;
    let resident = daemon.number("VmRSS:");
    let descriptors = daemon.descriptors().len();
    let _ = writeln!(
        std::io::stderr(),
        "{count} idle containers: {a_second:.1} context switches a second, {resident} KiB resident, \
         {descriptors} descriptors"
    );
    assert!(a_second <= 5.0, "{a_second} context switches a second");
    // All of the program is locked, and one with debug assertions is larger.
    let most = if cfg!(debug_assertions) { 24 << 10 } else { 16 << 10 };
    assert!(resident <= most, "{resident} KiB resident");
    assert!(descriptors < 18_000, "{descriptors} descriptors");
}

/// `None`, having said so, where the kernel has no `memory.high`.
fn native(test: &str) -> Option<Ground> {
    let ground = Ground::new(test)?;
    if ground.v1() {
        common::skip(test, "cgroup v1 has no memory.high");
        return None;
    }
    Some(ground)
}

const NATIVE: &str = "[defaults]\nhigh = '50%'\n";
const HALF: Limit = Limit::Bytes(Bytes::mib(48));

#[test]
fn a_native_high_is_written_and_put_back_whatever_becomes_of_the_daemon() {
    let test = "a_native_high_is_written_and_put_back_whatever_becomes_of_the_daemon";
    let Some(ground) = native(test) else { return };
    let mut daemon = Daemon::with_config(NATIVE);
    let (group, load) = container(&ground, "g", LIMIT);
    let high = || memory(&group).high().unwrap();
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    until("it is written", 5 * SECOND, || high() == HALF);
    // Other terms, and none.
    daemon.set("a", "high", "75%").unwrap();
    until("it is written anew", 5 * SECOND, || high() == Limit::Bytes(Bytes::mib(72)));
    daemon.set("a", "throttle", "off").unwrap();
    until("it is put back", 5 * SECOND, || high() == Limit::Max);
    daemon.set("a", "throttle", "on").unwrap();
    until("it is there again", 5 * SECOND, || high() == Limit::Bytes(Bytes::mib(72)));
    // kill -9: by the guardian.
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    until("the guardian puts it back", SECOND, || high() == Limit::Max);
    // The next one writes it again, and takes it along when it ends.
    let dir = daemon.dir.clone();
    drop(daemon);
    let mut daemon = Daemon::start_in(dir, NATIVE);
    until("the next daemon writes it", 5 * SECOND, || high() == Limit::Bytes(Bytes::mib(72)));
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(high(), Limit::Max);
    // With the guardian killed too: by --restore.
    let dir = daemon.dir.clone();
    drop(daemon);
    let mut daemon = Daemon::start_in(dir, NATIVE);
    until("it is there", 5 * SECOND, || high() == Limit::Bytes(Bytes::mib(72)));
    let pid = daemon.child.id().to_string();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in children.split_whitespace() {
        kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGSTOP).unwrap();
    }
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    for child in children.split_whitespace() {
        kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    let restored = program(&daemon.run_dir(), None).arg("--restore").output().unwrap();
    assert_eq!((restored.status.code(), high()), (Some(0), Limit::Max), "{restored:?}");
}

#[test]
fn a_foreign_high_stands_and_is_said_once() {
    let Some(ground) = native("a_foreign_high_stands_and_is_said_once") else { return };
    let mut daemon = Daemon::with_config(NATIVE);
    let (group, load) = container(&ground, "g", LIMIT);
    let memory = memory(&group);
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    until("it is written", 5 * SECOND, || memory.high().unwrap() == HALF);
    let start = Instant::now();
    let mut overwritten = 0;
    for n in 0u64.. {
        let theirs = Limit::Bytes(Bytes::mib(60 + n % 2));
        memory.set_high(theirs).unwrap();
        std::thread::sleep(SECOND / 100);
        overwritten += u32::from(memory.high().unwrap() != theirs);
        if start.elapsed() > 3 * SECOND {
            break;
        }
    }
    assert_eq!(overwritten, 0);
    memory.set_high(Limit::Bytes(Bytes::mib(64))).unwrap();
    std::thread::sleep(SECOND / 2);
    let told = daemon.events();
    assert_eq!(told.iter().filter(|event| event.event == "high_adopted").count(), 1, "{told:?}");
    // Nothing of ours stands: nothing is put back.
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(memory.high().unwrap(), Limit::Bytes(Bytes::mib(64)));
}

//! What the daemon does when memory runs out, on a real hierarchy: all of a container killed with one of it, the OOM
//! killer held off, the limit raised; and what is left of a hold when the daemon is killed or stopped.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::api::client::Client;
use cgshim::api::message::{EventLine, Listed, Register, Registered, Release, Request, View};
use common::{DiskFile, Ground, Load, alone, bar, guardian_of, memory, skip, until, without_swap};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// A daemon, and a container of its that may use 48 MiB.
struct Bed {
    child: Child,
    dir: tempfile::TempDir,
    group: Arc<Cgroup>,
    ground: Ground,
}

impl Bed {
    /// `None`, having said so, where the test cannot run; `v1` if it is about what only v1 has.
    fn new(test: &'static str, config: &str, v1: bool) -> Option<Bed> {
        Bed::with(test, config, v1, Limit::Bytes(Bytes::mib(48)), &[])
    }

    /// The same with another limit, and with more in the daemon's environment.
    fn with(
        test: &'static str,
        config: &str,
        v1: bool,
        limit: Limit,
        environment: &[(&str, &str)],
    ) -> Option<Bed> {
        let ground = Ground::new(test)?;
        if v1 && !ground.v1() {
            skip(test, "cgroup v2 has nothing that holds the OOM killer off");
            return None;
        }
        let group = ground.group("c");
        without_swap(&group);
        memory(&group).set_limit(limit).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let child = start(&dir, environment);
        Some(Bed { child, dir, group, ground })
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn client(&self) -> Client {
        Client::connect(&self.run_dir(), 20 * SECOND).unwrap()
    }

    fn register(&self, pid: u32) {
        let own = self.group.path().strip_prefix(&self.ground.hierarchy.mount_point).unwrap();
        let asked = Register {
            id: "c".into(),
            pid: i32::try_from(pid).unwrap(),
            cgroup: format!("/{}", own.display()),
            ..Register::default()
        };
        self.client().ask::<Registered>(Request::Register(asked)).unwrap();
    }

    /// A line of `memory.oom_control`.
    fn oom_control(&self, key: &str) -> u64 {
        let content = fs::read(self.group.path().join("memory.oom_control")).unwrap();
        cgroupfs::flat::get(&content, key).unwrap()
    }

    fn events(&self) -> Vec<String> {
        let mut client = self.client();
        client.ask::<Value>(Request::Events { follow: false }).unwrap();
        let lines = std::iter::from_fn(|| client.next_line::<EventLine>().unwrap());
        lines.map(|line| line.event).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

fn start(dir: &tempfile::TempDir, environment: &[(&str, &str)]) -> Child {
    let log = fs::File::options().append(true).create(true).open(dir.path().join("log")).unwrap();
    let program = std::env::var_os("CGSHIMD").unwrap_or(env!("CARGO_BIN_EXE_cgshimd").into());
    let run = dir.path().join("run");
    let child = Command::new(program)
        .arg("--config")
        .arg(dir.path().join("config.toml"))
        .arg("--run-dir")
        .arg(&run)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    until("the daemon answers", 60 * SECOND, || {
        Client::connect(&run, SECOND)
            .is_ok_and(|mut client| client.ask::<Value>(Request::Ping {}).is_ok())
    });
    child
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log: {}", self.log());
        }
    }
}

/// Fills more than it may, in a thread: whether it lived to tell, and after how long.
fn fill(mut load: Load, size: Bytes) -> std::thread::JoinHandle<(bool, Duration)> {
    std::thread::spawn(move || {
        let start = Instant::now();
        let lived = load.anon(size);
        (lived, start.elapsed())
    })
}

#[test]
fn with_oom_group_the_whole_container_goes_with_its_victim() {
    let test = "with_oom_group_the_whole_container_goes_with_its_victim";
    let _alone = alone();
    let Some(bed) = Bed::new(test, "[defaults]\noom = 'group'\n", false) else { return };
    let mut init = Load::in_group(&bed.group);
    let load = Load::in_group(&bed.group);
    let mut outside = Load::in_group(&bed.ground.group("other"));
    bed.register(init.pid());
    let native = bed.group.path().join("memory.oom.group");
    let together = || fs::read_to_string(&native).unwrap();
    if !bed.ground.v1() {
        // By the kernel itself; put back when the container is let go.
        assert_eq!(together(), "1\n");
        let release = Release { id: "c".into(), ..Release::default() };
        bed.client().ask::<Registered>(Request::Release(release)).unwrap();
        assert_eq!(together(), "0\n");
        bed.register(init.pid());
    }
    assert!(!fill(load, Bytes::mib(96)).join().unwrap().0);
    until("init goes too", 5 * SECOND, || !init.is_alive());
    assert!(outside.is_alive());
    until("it is told", 5 * SECOND, || bed.events().iter().any(|event| event == "group_killed"));
}

#[test]
fn a_hold_keeps_the_killer_off_for_its_time_and_no_longer() {
    let test = "a_hold_keeps_the_killer_off_for_its_time_and_no_longer";
    let _alone = alone();
    let Some(bed) = Bed::new(test, "[defaults]\noom = 'hold=2s'\n", true) else { return };
    let load = Load::in_group(&bed.group);
    bed.register(load.pid());
    assert_eq!(bed.oom_control("oom_kill_disable"), 1);
    let (lived, took) = fill(load, Bytes::mib(96)).join().unwrap();
    assert!(!lived && took >= 2 * SECOND && took < bar(6 * SECOND), "{lived} {took:?}");
    assert_eq!(bed.oom_control("oom_kill"), 1);
    until("the kill is on record, and that it was held", 5 * SECOND, || {
        let records = cgshim::oom::all(&bed.run_dir()).unwrap();
        records.iter().any(|record| {
            record.kills == 1 && record.deeds.iter().any(|deed| deed.what == "oom_held")
        })
    });
    let events = bed.events();
    let at = |name: &str| events.iter().position(|event| event == name);
    assert!(
        at("oom_held") < at("oom_released") && at("oom_released") < at("oom_kill"),
        "{events:?}"
    );
    // Let go, it is as it was.
    let release = Release { id: "c".into(), ..Release::default() };
    bed.client().ask::<Registered>(Request::Release(release)).unwrap();
    assert_eq!(bed.oom_control("oom_kill_disable"), 0);
}

#[test]
fn a_hold_raises_the_limit_as_far_as_the_operator_allows_and_nobody_is_killed() {
    let test = "a_hold_raises_the_limit_as_far_as_the_operator_allows_and_nobody_is_killed";
    let _alone = alone();
    let config = "[defaults]\noom = 'hold=30s'\n[daemon]\nhold_limit = '100M'\n";
    let Some(bed) = Bed::new(test, config, true) else { return };
    let load = Load::in_group(&bed.group);
    bed.register(load.pid());
    let (lived, took) = fill(load, Bytes::mib(80)).join().unwrap();
    assert!(lived && took < bar(20 * SECOND), "{lived} {took:?}");
    let limit = memory(&bed.group).limit().unwrap();
    assert!(
        limit > Limit::Bytes(Bytes::mib(80)) && limit <= Limit::Bytes(Bytes::mib(100)),
        "{limit}"
    );
    assert_eq!(bed.oom_control("oom_kill"), 0);
    let listed: Listed = bed.client().ask(Request::List { ended: false }).unwrap();
    let view: &View = &listed.containers[0];
    assert_eq!(view.limit_bytes.map(|bytes| Limit::Bytes(Bytes(bytes))), Some(limit));
    let told = |name: &str| bed.events().iter().any(|event| event == name);
    until("it is told that there is memory again", 5 * SECOND, || told("oom_recovered"));
    assert!(told("limit_raised") && !told("limit_adopted"), "{:?}", bed.events());
}

/// Memory runs out while a step has the limit lowered: that is the step's doing, and its restore is all the raise that
/// it takes. A raise of the lowered value would be taken for the declared limit.
#[test]
fn a_hold_does_not_raise_a_limit_that_a_step_has_lowered() {
    let test = "a_hold_does_not_raise_a_limit_that_a_step_has_lowered";
    let _alone = alone();
    let config =
        "[defaults]\noom = 'hold=30s'\nwatermark = '50%:40%'\n[daemon]\nhold_limit = '512M'\n";
    // Each step stands for so long that all is filled before its end.
    let fault = ("CGSHIM_FAULT", "sleep-3000:lowered:*1");
    let declared = Limit::Bytes(Bytes::mib(96));
    let Some(bed) = Bed::with(test, config, true, declared, &[fault]) else { return };
    // Its guardian would undo it after 30 ms.
    let guardian = guardian_of(bed.child.id()).unwrap();
    kill(guardian, Signal::SIGSTOP).unwrap();
    let file = DiskFile::new(Bytes::mib(128));
    let mut reader = Load::in_group(&bed.group);
    let mut load = Load::in_group(&bed.group);
    bed.register(reader.pid());
    let held = || bed.events().iter().any(|event| event == "oom_held");
    let start = Instant::now();
    // There is always cache for another step, and each leaves less than is filled.
    while !held() {
        assert!(start.elapsed() < 60 * SECOND, "memory never ran out in a window");
        reader.read(&file, Bytes::mib(96));
        let begun = Instant::now();
        let low = Limit::Bytes(Bytes::mib(84));
        while memory(&bed.group).limit().unwrap() > low && begun.elapsed() < 5 * SECOND {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(memory(&bed.group).limit().unwrap() <= declared);
        assert!(load.anon(Bytes::mib(88)), "killed");
        load.free();
    }
    kill(guardian, Signal::SIGCONT).unwrap();
    until("the declared limit is back", 20 * SECOND, || {
        memory(&bed.group).limit().unwrap() == declared
    });
    let events = bed.events();
    assert!(!events.iter().any(|e| e == "limit_raised" || e == "limit_adopted"), "{events:?}");
    assert_eq!(bed.oom_control("oom_kill"), 0);
}

#[test]
fn a_daemon_that_is_killed_or_stopped_in_a_hold_leaves_the_killer_at_work() {
    let test = "a_daemon_that_is_killed_or_stopped_in_a_hold_leaves_the_killer_at_work";
    let _alone = alone();
    let Some(mut bed) = Bed::new(test, "[defaults]\noom = 'hold=600s'\n", true) else { return };
    // The guardian has it at once where the daemon is dead, and within the lease where it is stopped.
    for (signal, patience) in [(Signal::SIGSTOP, 8 * SECOND), (Signal::SIGKILL, SECOND)] {
        let load = Load::in_group(&bed.group);
        bed.register(load.pid());
        until("it is held off", 20 * SECOND, || bed.oom_control("oom_kill_disable") == 1);
        // A group that is made meanwhile has the flag from its parent.
        let inner = bed.group.create_child("inner").unwrap();
        let filling = fill(load, Bytes::mib(96));
        until("memory runs out", 10 * SECOND, || bed.oom_control("under_oom") == 1);
        bed.signal(signal);
        let start = Instant::now();
        until("the killer is let loose", patience, || bed.oom_control("oom_kill_disable") == 0);
        let (lived, _) = filling.join().unwrap();
        assert!(
            !lived && start.elapsed() < bar(patience + SECOND),
            "{signal}: {:?}",
            start.elapsed()
        );
        if signal == Signal::SIGSTOP {
            bed.signal(Signal::SIGCONT);
            // It is the daemon's again; and ended, the group beneath is as it would have been.
            until("it is held off again", 20 * SECOND, || bed.oom_control("oom_kill_disable") == 1);
            let release = Release { id: "c".into(), ..Release::default() };
            bed.client().ask::<Registered>(Request::Release(release)).unwrap();
            let inside = fs::read(inner.path().join("memory.oom_control")).unwrap();
            assert_eq!(cgroupfs::flat::get(&inside, "oom_kill_disable"), Some(0));
        }
        drop(inner);
        bed.group.remove_child("inner", 5 * SECOND).unwrap();
    }
    let _ = bed.child.wait();
    // Its successor goes on with nothing of it but what it asks for itself.
    bed.child = start(&bed.dir, &[]);
}

#[test]
fn somebody_elses_oom_kill_disable_stands() {
    let test = "somebody_elses_oom_kill_disable_stands";
    let _alone = alone();
    let Some(bed) = Bed::new(test, "[defaults]\noom = 'hold=2s'\n", true) else { return };
    let load = Load::in_group(&bed.group);
    let file = bed.group.path().join("memory.oom_control");
    fs::write(&file, "1").unwrap();
    bed.register(load.pid());
    let release = Release { id: "c".into(), ..Release::default() };
    bed.client().ask::<Registered>(Request::Release(release)).unwrap();
    assert_eq!(bed.oom_control("oom_kill_disable"), 1);
    fs::write(&file, "0").unwrap();
    bed.register(load.pid());
    until("it is held off", SECOND, || bed.oom_control("oom_kill_disable") == 1);
    fs::write(&file, "0").unwrap();
    until("it is told", 10 * SECOND, || {
        bed.events().iter().filter(|event| *event == "oom_hold_foreign").count() == 2
    });
    std::thread::sleep(3 * SECOND);
    assert_eq!(bed.oom_control("oom_kill_disable"), 0);
}

#[test]
fn a_group_that_is_made_in_a_hold_has_a_killer_and_what_others_set_there_stands() {
    let test = "a_group_that_is_made_in_a_hold_has_a_killer_and_what_others_set_there_stands";
    let _alone = alone();
    let Some(bed) = Bed::new(test, "[defaults]\noom = 'hold=600s'\n", true) else { return };
    let load = Load::in_group(&bed.group);
    let disabled = |name: &str| {
        let content = fs::read_to_string(bed.group.path().join(name).join("memory.oom_control"));
        content.unwrap().lines().any(|line| line == "oom_kill_disable 1")
    };
    let make = |name: &str| fs::create_dir(bed.group.path().join(name)).unwrap();
    let set = |name: &str| {
        fs::write(bed.group.path().join(name).join("memory.oom_control"), "1").unwrap();
    };
    make("before");
    set("before");
    bed.register(load.pid());
    until("it is held off", 10 * SECOND, || disabled(""));
    make("made");
    assert!(disabled("made"), "the kernel copies it");
    until("it is taken from it", 30 * SECOND, || !disabled("made"));
    assert!(disabled("") && disabled("before"));
    set("made");
    // Whatever comes next, it goes on for as long as two renewals.
    make("next");
    until("it is taken from the next", 30 * SECOND, || !disabled("next"));
    let release = Release { id: "c".into(), ..Release::default() };
    bed.client().ask::<Registered>(Request::Release(release)).unwrap();
    assert!(!disabled("") && disabled("before") && disabled("made"));
    for name in ["before", "made", "next"] {
        fs::remove_dir(bed.group.path().join(name)).unwrap();
    }
}

/// A process in the container that is never idle.
struct Spinner(Child);

impl Spinner {
    fn in_group(group: &Cgroup) -> Spinner {
        let child = Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        common::join(group, child.id());
        Spinner(child)
    }

    /// Whether it is frozen, which is shown as an uninterruptible sleep: it never sleeps by itself, and on a busy
    /// machine it may have no CPU for a while.
    fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().next() == Some("D")
    }

    /// The groups it is in, but for the one that it is stopped in.
    fn groups(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cgroup", self.0.id())).unwrap()
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_freeze_stops_all_of_it_for_a_look_and_then_the_killer_has_its_way() {
    let test = "a_freeze_stops_all_of_it_for_a_look_and_then_the_killer_has_its_way";
    let _alone = alone();
    let Some(bed) = Bed::new(test, "[defaults]\noom = 'freeze=5s'\n", true) else { return };
    let load = Load::in_group(&bed.group);
    let spinner = Spinner::in_group(&bed.group);
    let outside = Spinner::in_group(&bed.ground.group("other"));
    let groups = spinner.groups();
    bed.register(load.pid());
    assert_eq!(bed.oom_control("oom_kill_disable"), 1);
    assert!(!spinner.is_stopped());
    let filling = fill(load, Bytes::mib(96));
    until("memory runs out", 10 * SECOND, || bed.oom_control("under_oom") == 1);
    let start = Instant::now();
    until("all of it stands still", 2 * SECOND, || spinner.is_stopped());
    assert!(!outside.is_stopped());
    assert!(bed.oom_control("oom_kill") == 0 && bed.oom_control("under_oom") == 1);
    let (lived, took) = filling.join().unwrap();
    assert!(!lived && took >= 5 * SECOND && start.elapsed() < bar(8 * SECOND), "{lived} {took:?}");
    until("it goes on, where it was", 2 * SECOND, || {
        !spinner.is_stopped() && spinner.groups() == groups
    });
    assert_eq!(bed.oom_control("oom_kill"), 1);
    until("the look is on record, with the kill", 5 * SECOND, || {
        let records = cgshim::oom::all(&bed.run_dir()).unwrap();
        records.iter().any(|record| {
            record.kills == 1 && record.deeds.iter().any(|deed| deed.what == "oom_frozen")
        })
    });
    let events = bed.events();
    let at = |name: &str| events.iter().position(|event| event == name);
    assert!(
        at("oom_frozen") < at("oom_released") && at("oom_released") < at("oom_kill"),
        "{events:?}"
    );
}

#[test]
fn a_freeze_ends_when_the_operator_has_seen_enough_or_somebody_kills() {
    let test = "a_freeze_ends_when_the_operator_has_seen_enough_or_somebody_kills";
    let _alone = alone();
    let Some(bed) = Bed::new(test, "[defaults]\noom = 'freeze=600s'\n", true) else { return };
    for n in 0..2 {
        let load = Load::in_group(&bed.group);
        let pid = load.pid();
        let mut spinner = Spinner::in_group(&bed.group);
        bed.register(pid);
        until("it is held off", 10 * SECOND, || bed.oom_control("oom_kill_disable") == 1);
        let filling = fill(load, Bytes::mib(96));
        until("memory runs out", 10 * SECOND, || bed.oom_control("under_oom") == 1);
        until("all of it stands still", 2 * SECOND, || spinner.is_stopped());
        if n == 0 {
            // The runtime's kill, which a frozen task does not die of.
            spinner.0.kill().unwrap();
            let start = Instant::now();
            spinner.0.wait().unwrap();
            assert!(start.elapsed() < bar(SECOND), "{:?}", start.elapsed());
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        } else {
            let set = Request::Set {
                id: "c".into(),
                terms: [("oom".to_owned(), "kill".to_owned())].into(),
            };
            bed.client().ask::<Value>(set).unwrap();
            until("it goes on", 2 * SECOND, || !spinner.is_stopped());
            assert_eq!(bed.oom_control("oom_kill_disable"), 0);
        }
        assert!(!filling.join().unwrap().0);
        assert_eq!(bed.oom_control("oom_kill"), n);
        let release = Release { id: "c".into(), ..Release::default() };
        bed.client().ask::<Registered>(Request::Release(release)).unwrap();
    }
}

#[test]
fn a_limit_that_somebody_raises_in_a_freeze_lets_all_of_it_go_on_and_stands() {
    let test = "a_limit_that_somebody_raises_in_a_freeze_lets_all_of_it_go_on_and_stands";
    let _alone = alone();
    let Some(bed) = Bed::new(test, "[defaults]\noom = 'freeze=600s'\n", true) else { return };
    let load = Load::in_group(&bed.group);
    let spinner = Spinner::in_group(&bed.group);
    bed.register(load.pid());
    until("it is held off", 10 * SECOND, || bed.oom_control("oom_kill_disable") == 1);
    let filling = fill(load, Bytes::mib(96));
    until("memory runs out", 10 * SECOND, || bed.oom_control("under_oom") == 1);
    until("all of it stands still", 2 * SECOND, || spinner.is_stopped());
    let raised = Limit::Bytes(Bytes::mib(160));
    memory(&bed.group).set_limit(raised).unwrap();
    assert!(filling.join().unwrap().0, "killed");
    until("all of it goes on", 2 * SECOND, || !spinner.is_stopped());
    let told = |name: &str| bed.events().iter().any(|event| event == name);
    until("it is told", 10 * SECOND, || told("oom_recovered") && told("limit_adopted"));
    // The next one is held off as well, and the end of it changes nothing that others set.
    assert_eq!((bed.oom_control("oom_kill_disable"), bed.oom_control("oom_kill")), (1, 0));
    let release = Release { id: "c".into(), ..Release::default() };
    bed.client().ask::<Registered>(Request::Release(release)).unwrap();
    assert_eq!(memory(&bed.group).limit().unwrap(), raised);
    assert_eq!(bed.oom_control("oom_kill_disable"), 0);
}

#[test]
fn a_daemon_that_is_stopped_or_killed_in_a_freeze_leaves_nobody_frozen() {
    let test = "a_daemon_that_is_stopped_or_killed_in_a_freeze_leaves_nobody_frozen";
    let _alone = alone();
    let Some(mut bed) = Bed::new(test, "[defaults]\noom = 'freeze=600s'\n", true) else { return };
    for (signal, patience) in [(Signal::SIGSTOP, 8 * SECOND), (Signal::SIGKILL, SECOND)] {
        let load = Load::in_group(&bed.group);
        let spinner = Spinner::in_group(&bed.group);
        bed.register(load.pid());
        until("it is held off", 20 * SECOND, || bed.oom_control("oom_kill_disable") == 1);
        let filling = fill(load, Bytes::mib(96));
        until("memory runs out", 10 * SECOND, || bed.oom_control("under_oom") == 1);
        until("all of it stands still", 2 * SECOND, || spinner.is_stopped());
        bed.signal(signal);
        let start = Instant::now();
        assert!(!filling.join().unwrap().0);
        until("nobody is frozen", patience, || !spinner.is_stopped());
        assert!(start.elapsed() < bar(patience + SECOND), "{signal}: {:?}", start.elapsed());
        assert_eq!(bed.oom_control("oom_kill_disable"), 0);
        if signal == Signal::SIGSTOP {
            bed.signal(Signal::SIGCONT);
            until("the daemon is there again", 20 * SECOND, || !bed.events().is_empty());
            let release = Release { id: "c".into(), ..Release::default() };
            bed.client().ask::<Registered>(Request::Release(release)).unwrap();
        }
    }
    let _ = bed.child.wait();
    bed.child = start(&bed.dir, &[]);
}

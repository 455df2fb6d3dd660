//! The daemon as a process on a real hierarchy: what it takes in and what it refuses, of hooks, patterns and people; and
//! what it tells.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::api::SPOOL;
use cgshim::api::message::{EventLine, Register, Request, Status};
use common::{Ground, Load, until};
use daemons::{Daemon, LIMIT, RunDir, container, known};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine needs now and then; not what is promised.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let events = daemon.told();
    assert_eq!(events, ["registered", "released"]);
}

#[test]
fn registrations_that_are_not_true_are_refused_by_name() {
    let Some(ground) = Ground::new("registrations_that_are_not_true_are_refused_by_name") else {
        return;
    };
    let daemon = Daemon::with_config("");
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
    ground.dir.remove_child("g1", PATIENCE).unwrap();
    let second = daemon.register(&elsewhere).unwrap();
    assert!(second > first);
    assert_eq!(daemon.list().len(), 1);
    assert!(other.is_alive());
}

#[test]
fn a_group_that_is_removed_ends_its_container_in_one_pass() {
    let test = "a_group_that_is_removed_ends_its_container_in_one_pass";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::with_config("");
    let (_group, load) = container(&ground, "g", LIMIT);
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    drop(load);
    ground.dir.remove_child("g", PATIENCE).unwrap();
    until("it is gone from the list", PATIENCE, || daemon.list().is_empty());
    assert_eq!(daemon.ended().len(), 1);
    let events = daemon.told();
    assert_eq!(events, ["registered", "vanished"]);
    assert_eq!(daemon.log().matches("container a is gone").count(), 1);
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
    // By inotify.
    daemon.dir.configure("[defaults]\nhigh = '80%'\n");
    until("the new one is in force", PATIENCE, || high() == 80);
    // Bad: named with line and column, once, and nothing changes.
    daemon.dir.configure("[defaults]\nhigh = '80%'\nhigh = '70%'\n");
    let status = || daemon.client().ask::<Status>(Request::Status {}).unwrap();
    until("it is refused", PATIENCE, || status().config_error.is_some());
    assert!(status().config_error.unwrap().contains("config.toml:3:1"), "{:?}", status());
    assert_eq!(high(), 80);
    daemon.signal(Signal::SIGHUP);
    std::thread::sleep(SECOND / 5);
    assert_eq!(daemon.log().matches("config.toml:3:1").count(), 1);
    // Good again, by SIGHUP; a directory that was not there when it started.
    fs::create_dir(daemon.dir.home().join("config.d")).unwrap();
    fs::write(daemon.dir.home().join("config.d/1.toml"), "[defaults]\nhigh = '60%'\n").unwrap();
    daemon.dir.configure("");
    daemon.signal(Signal::SIGHUP);
    until("it is in force", PATIENCE, || high() == 60);
    assert_eq!(status().config_error, None);
    let events = daemon.told();
    assert!(events.iter().filter(|event| *event == "config_refused").count() == 1, "{events:?}");
}

#[test]
fn intents_that_hooks_left_are_taken_at_start_and_within_a_second() {
    let test = "intents_that_hooks_left_are_taken_at_start_and_within_a_second";
    let Some(ground) = Ground::new(test) else { return };
    let dir = RunDir::new("");
    let spool = dir.path().join(SPOOL);
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
    let daemon = dir.serve();
    // Before it answers anybody.
    let ids: Vec<String> = daemon.list().into_iter().map(|view| view.id).collect();
    assert_eq!(ids, ["one"]);
    assert_eq!(daemon.stat("one").source, "spool");
    leave(&known(&ground, "two", second.pid()));
    until("it is taken", SECOND, || daemon.list().len() == 2);
    until("the spool is empty", SECOND, || fs::read_dir(&spool).unwrap().count() == 0);
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
    until("it is found", PATIENCE, || ids() == ["later", "there"]);
    // Levels between are no containers, and what is in a container is none either.
    deep.create_child("pod").unwrap();
    let pod = Arc::new(ground.hierarchy.enable_memory(&deep.path().join("pod")).unwrap());
    let inner = Arc::new(pod.create_child("ctr").unwrap());
    loads.push(Load::in_group(&inner));
    until("it is found", PATIENCE, || ids() == ["ctr", "later", "there"]);
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
    flat.remove_child("later", PATIENCE).unwrap();
    until("it is gone", PATIENCE, || ids() == ["ctr", "proper-name"]);
    let again = Arc::new(flat.create_child("later").unwrap());
    loads.push(Load::in_group(&again));
    until("it is found again", PATIENCE, || ids() == ["ctr", "later", "proper-name"]);
    assert!(daemon.stat("later").generation > before);
    drop(loads);
}

#[test]
fn who_follows_events_hears_of_them_and_who_is_too_slow_is_told_what_it_missed() {
    let test = "who_follows_events_hears_of_them_and_who_is_too_slow_is_told_what_it_missed";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::with_config("");
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
    // As it reads there is room again: the next event says what was missed.
    let (over, mut lines) = (AtomicBool::new(false), 0);
    let missed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                daemon.register(&asked).unwrap();
                daemon.release("a").unwrap();
                std::thread::sleep(SECOND / 50);
            }
        });
        let dropped = loop {
            match slow.next_line::<EventLine>() {
                Ok(Some(event)) if event.event == "dropped" => break Ok(event),
                Ok(Some(_)) => lines += 1,
                other => break Err(format!("{lines}: {other:?}")),
            }
        };
        over.store(true, Ordering::SeqCst);
        dropped.unwrap().detail["dropped"].as_u64().unwrap()
    });
    assert!(missed > 0 && lines > 0, "{lines} {missed}");
}

//! A runtime's container with the daemon at work on it: an operator's updates stand, an OOM is on record as soon as the
//! runtime tells of it, and its start is hardly later.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod contained;

use cgroupfs::{Bytes, Limit};
use cgshim::api::client::Client;
use cgshim::api::message::{Register, Registered, Release, Request};
use cgshim::oci::inject;
use common::{DiskFile, Load, bar, memory, until};
use contained::{Container, Containerd, Host, PATIENCE, PROGRAM, SECOND, fifo, find_program};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When it holds, as closely as another process can see it.
fn seen(what: &str, holds: impl Fn() -> bool) -> Instant {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(100));
    }
    Instant::now()
}

/// Has a child of its own killed for every word it is told.
const VICTIMS: &str = "echo first > /ask/out; while read word < /ask/in && [ $word = go ]; do \
                       busybox head -c 200000000 /dev/zero | \
                       (echo 1000 > /proc/self/oom_score_adj; exec busybox tail -n 1); done";

#[test]
fn an_oom_is_on_record_as_soon_as_containerd_tells_of_it() {
    let name = "an_oom_is_on_record_as_soon_as_containerd_tells_of_it";
    let Some(host) = Host::new(name, &["containerd", "ctr", "runc"]) else { return };
    fs::write(host.path("config.toml"), "[defaults]\nhigh = 'max'\nthrottle = 'off'\n").unwrap();
    let _daemon = host.daemon();
    let containerd = Containerd::start(&host);
    let bundle = host.bundle("web", json!({}));
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["args"][2] = json!(VICTIMS);
    // Where there is swap they would fill that first.
    spec["linux"]["resources"]["memory"]["swappiness"] = json!(0);
    fs::write(&config, spec.to_string()).unwrap();
    assert!(inject::inject(&config, &host.hook()).unwrap());

    let mut events = containerd.ctr(&host, &["events"]).spawn().unwrap();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let (send, theirs) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = send.send((Instant::now(), line));
        }
    });
    // Of what was before it is listened to it tells nothing: until the first of some is heard.
    let mut number = 0;
    until("containerd's events are heard", PATIENCE, || {
        number += 1;
        let name = format!("heard-{number}");
        containerd.ctr(&host, &["namespaces", "create", &name]).output().unwrap();
        theirs.recv_timeout(SECOND / 5).is_ok()
    });
    let told_of_one = |(at, line): (Instant, String)| line.contains("/tasks/oom").then_some(at);

    // A file has its name once it is whole.
    let records = || {
        let names = fs::read_dir(cgshim::oom::directory(&host.run_dir())).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("oom-")).count()
    };
    let times = std::env::var("CGSHIM_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let mut orders = fifo(&host.path("ask/in"));
    let (mut ours, mut told) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let mut command = containerd.ctr(&host, &["run", "--rm"]);
        let child = command.arg("--config").arg(&config).arg("web").spawn().unwrap();
        let mut container = Container { child: Some(child) };
        host.first_word(&mut container);
        let files = memory(&Arc::new(host.ground.dir.child("web").unwrap()));
        let kills = || files.counters().ok().and_then(|counters| counters.oom_kill);
        while ours.len() < times {
            let (Some(killed), recorded) = (kills(), records()) else { break };
            orders.write_all(b"go\n").unwrap();
            let rose = seen("somebody is killed", || kills().is_none_or(|n| n > killed));
            // Where machines are busy the kernel was seen to take the first process, and with it the container.
            if kills().is_none() {
                break;
            }
            let at = seen("it is on record", || records() > recorded);
            let tells = loop {
                let line = theirs.recv_timeout(PATIENCE).expect("containerd tells of it");
                if let Some(at) = told_of_one(line) {
                    break at;
                }
            };
            ours.push(at - rose);
            // From before the kill, most of the time: it tells that memory has run out.
            told.push(tells.saturating_duration_since(rose));
            // And as often as that was signalled.
            std::thread::sleep(SECOND / 2);
            while theirs.try_recv().is_ok() {}
        }
        if ours.len() == times {
            orders.write_all(b"end\n").unwrap();
        }
        container.wait();
        until("it is not listed", PATIENCE, || host.listed("web").is_none());
        if ours.len() == times {
            break;
        }
        // What is on record of its end is none of the next one's.
        std::thread::sleep(2 * SECOND);
        while theirs.try_recv().is_ok() {}
    }
    assert_eq!(ours.len(), times, "its first process was killed again and again");
    let _ = events.kill();
    let _ = events.wait();
    for (who, times) in [("on record", &mut ours), ("told by containerd", &mut told)] {
        times.sort_unstable();
        let (middle, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{who}: {middle:?} in the median, {worst:?} at worst, of {}", times.len());
    }
    // Of a machine without other work; it is a few milliseconds.
    assert!(ours[ours.len() / 2] < bar(Duration::from_millis(100)), "{ours:?}");
}

/// An operator's `runc update` at any moment of the daemon's steps, whose windows a fault keeps open for longer than
/// half of the time: 100 of 100 stand, by hand with CGSHIM_TEST_UPDATES=100.
#[test]
fn what_runc_update_sets_during_stepping_stands() {
    let Some(host) = Host::new("what_runc_update_sets_during_stepping_stands", &["runc"]) else {
        return;
    };
    if !host.ground.v1() {
        return;
    }
    fs::write(host.path("config.toml"), "[defaults]\nwatermark = '50%:40%'\n").unwrap();
    let log = host.path("faults");
    let daemon = host.daemon_with(&[
        ("CGSHIM_FAULT", "sleep-3:lowered:*1"),
        ("CGSHIM_FAULT_LOG", log.to_str().unwrap()),
    ]);
    let bundle = host.injected("web");
    let runc = find_program("runc").unwrap();
    let child = host.run("runc", &runc, &bundle, "web").spawn().unwrap();
    let mut container = Container { child: Some(child) };
    host.first_word(&mut container);
    let pid = host.listed("web").unwrap().pid.unwrap();
    let group = Arc::new(host.ground.dir.child("web").unwrap());
    let memory = memory(&group);
    let file = DiskFile::new(Bytes::mib(128));
    let mut load = Load::in_group(&group);
    load.stream(&file, Bytes::mib(600));

    let ask = |request| {
        let mut client = Client::connect(&host.run_dir(), PATIENCE).unwrap();
        client.ask::<Registered>(request).unwrap()
    };
    let rounds = std::env::var("CGSHIM_TEST_UPDATES").ok().and_then(|n| n.parse().ok());
    let rounds: u64 = rounds.unwrap_or(15);
    let mut lost = Vec::new();
    for round in 0..rounds {
        // Whoever has set a limit is left in peace for half a minute: registered anew, it is stepped at once.
        ask(Request::Release(Release { id: "web".into(), ..Release::default() }));
        let cgroup = host.cgroup("web");
        ask(Request::Register(Register { id: "web".into(), pid, cgroup, ..Register::default() }));
        until("it is stepped", PATIENCE, || host.listed("web").unwrap().reclaim.rounds > 0);
        std::thread::sleep(Duration::from_micros(round * 1373 % 20_000));
        let value = (66 + round % 16) << 20;
        let mut update = host.command("runc", &runc);
        update.arg("--root").arg(host.path("state"));
        let output =
            update.args(["update", "--memory", &value.to_string(), "web"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        // Longer than a step, and than it takes the guardian to restore one.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            let standing = memory.limit().unwrap();
            if standing != Limit::Bytes(Bytes(value)) {
                lost.push(format!("round {round}: {value} set, {standing} stands"));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        until("adopted", PATIENCE, || host.listed("web").unwrap().limit_bytes == Some(value));
    }
    let windows = fs::read_to_string(&log).unwrap().lines().count();
    println!(
        "{} of {rounds} updates stand; {windows} windows held open",
        rounds - lost.len() as u64
    );
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(windows as u64 >= rounds, "it was not stepped");
    drop(load);
    assert!(host.end(container).status.success());
    drop(daemon);
}

/// What the hook adds to a container's start, with the daemon's own work at registration in it: by turns with
/// and without, the medians.
#[test]
fn the_hook_adds_little_to_a_start() {
    let Some(host) = Host::new("the_hook_adds_little_to_a_start", &["runc"]) else { return };
    let _daemon = host.daemon();
    let runc = find_program("runc").unwrap();
    let bundles = ["without", "with"].map(|id| {
        let bundle = host.bundle(id, json!({}));
        let config = bundle.join("config.json");
        let ends = fs::read_to_string(&config).unwrap().replace(&format!("\"{PROGRAM}\""), "\":\"");
        fs::write(&config, ends).unwrap();
        (id, bundle, Vec::new())
    });
    assert!(inject::inject(&bundles[1].1.join("config.json"), &host.hook()).unwrap());
    let mut bundles = bundles;
    for _ in 0..20 {
        for (id, bundle, times) in &mut bundles {
            let start = Instant::now();
            let output = host.run("runc", &runc, bundle, id).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            times.push(start.elapsed());
        }
    }
    let [without, with] = bundles.map(|(_, _, mut times)| {
        times.sort();
        times[times.len() / 2]
    });
    let _ = writeln!(std::io::stderr(), "runc run: {without:?} without the hook, {with:?} with it");
    assert!(
        with < 2 * without + bar(Duration::from_millis(20)),
        "{without:?} without, {with:?} with"
    );
}

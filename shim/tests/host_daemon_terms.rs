//! What the daemon does by a container's terms, and at an operator's word: highs, ways out, reclaim.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgroupfs::freezer::Freezer;
use cgroupfs::{Bytes, Limit};
use cgshim::api::client::ClientError;
use cgshim::api::message::{Reclaimed, Register, Request};
use common::{DiskFile, Ground, alone, memory, until, without_swap};
use daemons::{Daemon, LIMIT, container, known, restored};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine needs now and then; not what is promised.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_high_that_makes_no_sense_is_refused_and_one_above_the_limit_is_never_met() {
    let test = "a_high_that_makes_no_sense_is_refused_and_one_above_the_limit_is_never_met";
    let Some(ground) = Ground::new(test) else { return };
    let daemon = Daemon::with_config("[defaults]\nhigh = '50%'\nwatermark = 'off'\n");
    let (group, mut load) = container(&ground, "g", LIMIT);
    without_swap(&group);
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
    let (group, mut load) = container(&ground, "policed", Limit::Bytes(Bytes::mib(128)));
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
    // As fast as it can it might have it all before anybody gets a CPU to throttle it, or while its terms change.
    load.grow(Bytes::mib(20), Bytes::mib(116));
    let told = || -> Vec<String> {
        let events = daemon.events().into_iter();
        let ours = events.filter(|event| event.event == "throttle_way_out");
        ours.map(|event| event.message).collect()
    };
    until("it is told", PATIENCE, || !told().is_empty());
    assert!(told()[0].contains("cannot be reclaimed: throttling goes on"), "{:?}", told());
    // And it does.
    let usage = || memory(&group).usage().unwrap();
    assert!(usage() < Bytes::mib(96), "{}", usage());
    let throttled = || daemon.stat("a").throttled.unwrap();
    until("it was frozen for that long", PATIENCE, || throttled().frozen_ms >= 2000.0);
    assert!(throttled().pulses > 0 && throttled().share > 0.0);
    assert_eq!(throttled().released, 0);
    // For a way out of another kind what was spent so far counts, too.
    assert_eq!(daemon.set("a", "way_out", "release=1s").unwrap().way_out, "release=1s");
    until("it has all that it wants", PATIENCE, || usage() >= Bytes::mib(116));
    until("it is told", PATIENCE, || told().len() == 2);
    assert!(told()[1].contains("cannot be reclaimed: throttling is lifted"), "{:?}", told());
    until("it is counted", PATIENCE, || throttled().released == 1);
}

#[test]
fn reclaim_that_is_asked_for_goes_between_the_engines_own() {
    let Some(ground) = Ground::new("reclaim_that_is_asked_for_goes_between_the_engines_own") else {
        return;
    };
    let _alone = alone();
    let daemon = Daemon::with_config("");
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
    until("the engine's own turn", PATIENCE, || daemon.stat("a").reclaim.rounds > 0);
    // None of all these steps was taken for somebody's new limit.
    let adopted =
        daemon.events().into_iter().filter(|event| event.event == "limit_adopted").count();
    assert_eq!(adopted, 0);
    daemon.release("a").unwrap();
    assert_eq!(memory(&group).limit().unwrap(), Limit::Bytes(Bytes::mib(256)));
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
    until("it is written", PATIENCE, || high() == HALF);
    // Other terms, and none.
    daemon.set("a", "high", "75%").unwrap();
    until("it is written anew", PATIENCE, || high() == Limit::Bytes(Bytes::mib(72)));
    daemon.set("a", "throttle", "off").unwrap();
    until("it is put back", PATIENCE, || high() == Limit::Max);
    daemon.set("a", "throttle", "on").unwrap();
    until("it is there again", PATIENCE, || high() == Limit::Bytes(Bytes::mib(72)));
    // kill -9: by the guardian.
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    until("the guardian puts it back", SECOND, || high() == Limit::Max);
    // The next one writes it again, and takes it along when it ends.
    daemon = daemon.dir.serve();
    until("the next daemon writes it", PATIENCE, || high() == Limit::Bytes(Bytes::mib(72)));
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(high(), Limit::Max);
    // With the guardian killed too: by --restore.
    daemon = daemon.dir.serve();
    until("it is there", PATIENCE, || high() == Limit::Bytes(Bytes::mib(72)));
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
    let (code, said) = restored(&daemon.run_dir());
    assert_eq!((code, high()), (Some(0), Limit::Max), "{said}");
}

#[test]
fn a_foreign_high_stands_and_is_said_once() {
    let Some(ground) = native("a_foreign_high_stands_and_is_said_once") else { return };
    let mut daemon = Daemon::with_config(NATIVE);
    let (group, load) = container(&ground, "g", LIMIT);
    let memory = memory(&group);
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    until("it is written", PATIENCE, || memory.high().unwrap() == HALF);
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
    let told = || daemon.told().iter().filter(|event| *event == "high_adopted").count();
    until("it is said", PATIENCE, || told() > 0);
    std::thread::sleep(SECOND / 2);
    assert_eq!(told(), 1, "{:?}", daemon.events());
    // Nothing of ours stands: nothing is put back.
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(memory.high().unwrap(), Limit::Bytes(Bytes::mib(64)));
}

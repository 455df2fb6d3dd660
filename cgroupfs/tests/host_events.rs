//! The kernel's events: thresholds, OOM, modified files. Hints to look, every one of them.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::events::{Modified, Notification};
use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Limit};
use common::{Ground, Load, memory, readable, until, without_swap};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);
const A_WHILE: Duration = Duration::from_millis(200);

#[test]
fn usage_over_a_threshold_wakes_and_below_it_nothing_does() {
    let test = "usage_over_a_threshold_wakes_and_below_it_nothing_does";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("g");
    if !ground.v1() {
        // v2 has no such event.
        assert!(Notification::usage_threshold(&group, Bytes::mib(32)).is_err());
        return;
    }
    let threshold = Notification::usage_threshold(&group, Bytes::mib(32)).unwrap();
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(16)));
    assert!(!readable(&threshold, A_WHILE), "it woke at {}", memory(&group).usage().unwrap());
    assert!(load.anon(Bytes::mib(32)));
    assert!(readable(&threshold, SOON));
    assert!(threshold.take() && !threshold.take());
    // Back again is a crossing, too.
    load.free();
    assert!(readable(&threshold, SOON));
}

#[test]
fn a_kill_at_the_limit_is_signalled_and_counted() {
    let Some(ground) = Ground::new("a_kill_at_the_limit_is_signalled_and_counted") else { return };
    let group = ground.group("g");
    let memory = memory(&group);
    memory.set_limit(Limit::Bytes(Bytes::mib(32))).unwrap();
    without_swap(&group);
    let oom = ground.v1().then(|| Notification::oom(&group).unwrap());
    let mut events = (!ground.v1()).then(|| Modified::watch(&group, "memory.events").unwrap());
    let mut load = Load::in_group(&group);
    assert!(!load.anon(Bytes::mib(128)), "128 MiB fit under 32");
    match (&oom, &mut events) {
        (Some(oom), _) => assert!(readable(oom, SOON) && oom.take()),
        (_, Some(events)) => assert!(readable(&*events, SOON) && events.take()),
        _ => unreachable!(),
    }
    if memory.counters().unwrap().oom_kill.is_some() {
        until("oom_kill rises", SOON, || memory.counters().unwrap().oom_kill >= Some(1));
    }
    assert!(memory.usage().unwrap() <= Bytes::mib(32));
}

#[test]
fn a_foreign_write_of_the_limit_is_noticed_and_reading_it_is_not() {
    let test = "a_foreign_write_of_the_limit_is_noticed_and_reading_it_is_not";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("g");
    let file = if ground.v1() { "memory.limit_in_bytes" } else { "memory.max" };
    let mut modified = Modified::watch(&group, file).unwrap();
    let path = group.path().join(file);
    std::fs::read_to_string(&path).unwrap();
    memory(&group).limit().unwrap();
    assert!(!readable(&modified, A_WHILE) && !modified.take());
    std::fs::write(&path, "67108864").unwrap();
    assert!(readable(&modified, SOON) && modified.take());
    assert!(!modified.take(), "taken is taken");
}

#[test]
fn removing_a_group_wakes_whoever_watches_it() {
    let Some(ground) = Ground::new("removing_a_group_wakes_whoever_watches_it") else { return };
    if !ground.v1() {
        return;
    }
    let group = ground.group("g");
    let memory = memory(&group);
    let oom = Notification::oom(&group).unwrap();
    let threshold = Notification::usage_threshold(&group, Bytes::mib(32)).unwrap();
    assert!(!readable(&oom, Duration::ZERO) && !readable(&threshold, Duration::ZERO));
    ground.dir.remove_child("g", SOON).unwrap();
    assert!(readable(&oom, SOON) && readable(&threshold, SOON));
    assert!(memory.usage().unwrap_err().is_vanished());
}

//! A throttle on cgroup v1 that is held to other terms: it goes on, with whoever is in its group.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;
mod freezers;

use cgroupfs::{Bytes, Limit};
use cgshim::core::throttle::{Then, WayOut};
use cgshim::driver::throttle::{Ancestor, ThrottleConfig, ThrottleEvent, ThrottleTerms, Throttler};
use common::{alone, memory, strict, until};
use daemons::{Daemon, RunDir, known};
use freezers::{Container, ENDLESS, container};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const HIGH: Bytes = Bytes::mib(64);
/// What the load wants: more than any high here, and no more than the machine has.
const MOST: Bytes = Bytes::mib(1024);

/// Fills memory as fast as it can, and is throttled: who is in our group once only the thread that grows is.
fn throttled(at: &mut Container, throttler: &Throttler) -> (u64, BTreeSet<u32>) {
    at.load.grow(Bytes(0), MOST);
    until("pulses", 20 * SECOND, || throttler.totals().pulses > 3);
    until("who does not grow is given back", 20 * SECOND, || {
        at.held().is_some_and(|(_, tids)| tids.len() == 1)
    });
    at.held().unwrap()
}

/// These terms of the container's own, and none above it.
fn own(high: Bytes, way_out: WayOut) -> ThrottleTerms {
    ThrottleTerms { high: Limit::Bytes(high), way_out, ancestors: Vec::new(), reclaims: false }
}

#[test]
fn a_higher_high_thaws_and_a_lower_one_throttles_on_with_the_same_tasks_in_the_same_group() {
    let test =
        "a_higher_high_thaws_and_a_lower_one_throttles_on_with_the_same_tasks_in_the_same_group";
    let Some((_ground, mut at)) = container(test) else { return };
    let _alone = alone();
    let throttler = Throttler::start(at.config(HIGH)).unwrap();
    let held = throttled(&mut at, &throttler);
    // Far under what is in use, where a charge costs 2 s: what is there is not paid for, and further growth is.
    throttler.change(own(Bytes::mib(16), ENDLESS));
    at.is_throttled_on(&throttler);
    let before = at.usage();
    assert!(before < Bytes(2 * HIGH.0), "{before}");
    until("frozen", 20 * SECOND, || at.is_frozen());
    // Above what is in use.
    let high = Bytes(before.0 + Bytes::mib(64).0);
    let start = Instant::now();
    throttler.change(own(high, ENDLESS));
    until("it is thawed", 2 * SECOND, || !at.is_frozen() || at.usage() > before);
    println!("thawed after {:?}", start.elapsed());
    assert!(!strict() || start.elapsed() < SECOND / 10);
    until("it grows to there", 20 * SECOND, || at.usage() >= high);
    at.is_throttled_on(&throttler);
    assert!(at.usage() < Bytes(2 * high.0), "{}", at.usage());
    assert_eq!(at.held(), Some(held));
    assert!(throttler.events().iter().all(|event| matches!(event, ThrottleEvent::Pulse { .. })));
    throttler.stop();
    assert!(at.is_home() && !at.ours().exists());
}

/// By hand more of them: `CGSHIM_TEST_CHANGES=200`.
#[test]
fn changes_in_pulses_leave_nobody_frozen_and_who_grows_in_the_group_it_is_in() {
    let test = "changes_in_pulses_leave_nobody_frozen_and_who_grows_in_the_group_it_is_in";
    let Some((_ground, mut at)) = container(test) else { return };
    let _alone = alone();
    let changes = std::env::var("CGSHIM_TEST_CHANGES").map_or(20, |n| n.parse::<u32>().unwrap());
    let throttler = Throttler::start(at.config(HIGH)).unwrap();
    let held = throttled(&mut at, &throttler);
    let ways_out = [ENDLESS, "notify=1s".parse().unwrap(), "release=600s".parse().unwrap()];
    let (mut raised, mut pulses) = (0, 0);
    for n in 0..changes {
        let usage = at.usage();
        // Above what is in use, just under it, and far under it.
        let high = match n % 10 {
            0 => usage.saturating_add(Bytes::mib(4)),
            5 => Bytes(usage.0 / 100 * 98),
            n => Bytes(usage.0 / u64::from(1 + n)),
        };
        raised += u32::from(high > usage);
        let terms = own(high, ways_out[n as usize % 3]);
        throttler.change(ThrottleTerms { reclaims: n % 4 == 0, ..terms });
        // Often in a pulse, in a window now and then, and in the middle of the change before.
        std::thread::sleep(Duration::from_millis([0, 3, 40, 90][n as usize % 4]));
        assert_eq!(at.held().as_ref(), Some(&held), "change {n}");
        pulses = throttler.totals().pulses;
    }
    println!("{changes} changes, {raised} of them raised high above usage, {pulses} pulses");
    throttler.change(own(HIGH, ENDLESS));
    at.is_throttled_on(&throttler);
    assert_eq!(at.held(), Some(held));
    // Twice what it might have got from those that were raised.
    let most = Bytes::mib(160 + 2 * 8 * u64::from(raised));
    assert!(at.usage() < most, "{} of {most}", at.usage());
    throttler.stop();
    assert!(at.is_home() && !at.ours().exists());
    at.grows_freely(Bytes::mib(32));
}

#[test]
fn what_was_spent_of_a_budget_counts_for_another_way_out() {
    let Some((_ground, mut at)) =
        container("what_was_spent_of_a_budget_counts_for_another_way_out")
    else {
        return;
    };
    let _alone = alone();
    let throttler = Throttler::start(at.config(HIGH)).unwrap();
    at.load.grow(Bytes(0), MOST);
    until("it was frozen for 3 s", 30 * SECOND, || throttler.totals().frozen > 3 * SECOND);
    assert_eq!(throttler.totals().released, 0);
    let way_out = WayOut { budget: Some(3 * SECOND), then: Then::Release };
    throttler.change(own(HIGH, way_out));
    let frozen = throttler.totals().frozen;
    until("it is released", 20 * SECOND, || throttler.totals().released == 1);
    // By the pulse that was going on, or the next.
    let more = throttler.totals().frozen - frozen;
    assert!(more < 3 * SECOND, "{more:?}");
    at.grows_freely(Bytes::mib(32));
    // One that knows of no release: throttled at high again.
    throttler.change(own(HIGH, ENDLESS));
    at.is_throttled_on(&throttler);
    let events = throttler.events();
    let count = |name: &str| events.iter().filter(|event| event.name() == name).count();
    assert_eq!((count("throttle_way_out"), count("throttle_resumed")), (1, 1));
    throttler.stop();
}

#[test]
fn highs_of_groups_above_come_and_go_with_the_same_tasks_in_the_same_group() {
    let test = "highs_of_groups_above_come_and_go_with_the_same_tasks_in_the_same_group";
    let Some((ground, mut at)) = container(test) else { return };
    let _alone = alone();
    let throttler = Throttler::start(at.config(HIGH)).unwrap();
    let held = throttled(&mut at, &throttler);
    let group = ground.dir.clone();
    let pod = |high| {
        let memory = memory(&group);
        vec![Ancestor { group: group.clone(), memory, high, way_out: ENDLESS, reclaims: false }]
    };
    let wide = Bytes(MOST.0 * 2);
    for _ in 0..2 {
        // The one above decides.
        let high = Limit::Bytes(wide);
        throttler.change(ThrottleTerms { high, ancestors: pod(HIGH), ..own(HIGH, ENDLESS) });
        at.is_throttled_on(&throttler);
        throttler.change(ThrottleTerms {
            high: Limit::Max,
            ancestors: pod(HIGH),
            ..own(HIGH, ENDLESS)
        });
        at.is_throttled_on(&throttler);
        throttler.change(ThrottleTerms { ancestors: pod(wide), ..own(HIGH, ENDLESS) });
        at.is_throttled_on(&throttler);
        throttler.change(own(HIGH, ENDLESS));
        at.is_throttled_on(&throttler);
        assert_eq!(at.held().as_ref(), Some(&held));
    }
    throttler.stop();
    assert!(at.is_home() && !at.ours().exists());
}

#[test]
fn a_high_that_comes_down_to_what_is_in_use_is_noticed_without_a_threshold_crossed() {
    let test = "a_high_that_comes_down_to_what_is_in_use_is_noticed_without_a_threshold_crossed";
    let Some((_ground, mut at)) = container(test) else { return };
    let _alone = alone();
    let config = ThrottleConfig { high: Limit::Bytes(Bytes::mib(4096)), ..at.config(HIGH) };
    let throttler = Throttler::start(config).unwrap();
    assert!(at.load.anon(Bytes::mib(80)));
    // It waits far below its high: no group of ours.
    assert_eq!(at.held(), None);
    throttler.change(own(HIGH, ENDLESS));
    until("it is made ready", 20 * SECOND, || at.held().is_some());
    // And far below it again: everybody goes home.
    throttler.change(own(Bytes::mib(16384), ENDLESS));
    until("all are home", 30 * SECOND, || at.is_home() && !at.ours().exists());
    throttler.stop();
}

/// What `cgctl set` does, and a daemon that is killed meanwhile.
#[test]
fn a_high_that_is_set_while_the_daemon_throttles_changes_the_throttle_that_is_there() {
    let test = "a_high_that_is_set_while_the_daemon_throttles_changes_the_throttle_that_is_there";
    let Some((ground, mut at)) = container(test) else { return };
    let _alone = alone();
    let config = "[defaults]\nhigh = '64M'\nwatermark = 'off'\nway_out = 'never'\n";
    let run_dir = RunDir::new(config);
    let daemon = run_dir.serve();
    daemon.register(&known(&ground, "a", at.load.pid())).unwrap();
    at.load.grow(Bytes(0), MOST);
    let pulses = |daemon: &Daemon| daemon.stat("a").throttled.map_or(0, |seen| seen.pulses);
    until("pulses", 60 * SECOND, || pulses(&daemon) > 3);
    until("who does not grow is given back", 60 * SECOND, || {
        at.held().is_some_and(|(_, tids)| tids.len() == 1)
    });
    let held = at.held().unwrap();
    let mut before = pulses(&daemon);
    for (key, value) in
        [("high", "32M"), ("way_out", "notify=1s"), ("high", "48M"), ("way_out", "never")]
    {
        daemon.set("a", key, value).unwrap();
        until("pulses go on", 60 * SECOND, || pulses(&daemon) > before);
        before = pulses(&daemon);
        assert_eq!(at.held().as_ref(), Some(&held), "{key}={value}");
    }
    // None, and one again at once, when everybody may be on the way home.
    for _ in 0..3 {
        daemon.set("a", "high", "max").unwrap();
        daemon.set("a", "high", "48M").unwrap();
        until("pulses again", 60 * SECOND, || pulses(&daemon) > before);
        before = pulses(&daemon);
    }
    until("frozen", 60 * SECOND, || at.is_frozen());
    daemon.set("a", "high", "40M").unwrap();
    daemon.signal(Signal::SIGKILL);
    let usage = at.usage();
    until("the guardian thaws", 60 * SECOND, || at.usage() > usage.saturating_add(Bytes::mib(16)));
    daemon.kill();
    run_dir.serve().stop();
    until("all are home", 30 * SECOND, || at.is_home() && !at.ours().exists());
}

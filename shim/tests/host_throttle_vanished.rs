//! What vanishes around a throttle on cgroup v1: it ends with its own memory group, and with nothing else.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod freezers;

use cgroupfs::{Bytes, Limit};
use cgshim::driver::throttle::{Ancestor, ThrottleConfig, Throttler};
use common::{Load, alone, memory, until, without_swap};
use freezers::{Container, ENDLESS, container};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HIGH: Bytes = Bytes::mib(64);
const MOST: Bytes = Bytes::mib(2048);
const RATE: Bytes = Bytes::mib(20);

fn grows_until_throttled(at: &mut Container, throttler: &Throttler) {
    at.load.grow(RATE, MOST);
    at.is_throttled_on(throttler);
}

#[test]
fn a_throttle_whose_freezer_group_is_removed_begins_anew() {
    let Some((_ground, mut at)) =
        container("a_throttle_whose_freezer_group_is_removed_begins_anew")
    else {
        return;
    };
    let _alone = alone();
    let throttler = Throttler::start(at.config(HIGH)).unwrap();
    grows_until_throttled(&mut at, &throttler);
    // Somebody moves everybody out, as often as we move them in, until it can be removed.
    until("our group is removed", 30 * SECOND, || {
        let tasks = std::fs::read_to_string(at.ours().join("tasks")).unwrap_or_default();
        for tid in tasks.lines() {
            let _ = std::fs::write(at.freezer.0.join("tasks"), tid);
        }
        std::fs::remove_dir(at.ours()).is_ok()
    });
    at.is_throttled_on(&throttler);
    assert!(at.ours().exists());
    let usage = at.memory.usage().unwrap();
    assert!(usage < Bytes(MOST.0 / 2), "{usage}");
    throttler.stop();
    assert!(!at.ours().exists());
}

#[test]
fn a_throttle_goes_on_without_a_group_above_that_is_gone() {
    let Some((ground, mut at)) = container("a_throttle_goes_on_without_a_group_above_that_is_gone")
    else {
        return;
    };
    let _alone = alone();
    // Not above it in truth: that could not be removed while it is there.
    let group = ground.group("above");
    let memory = memory(&group);
    let above = Ancestor { group, memory, high: HIGH, way_out: ENDLESS, reclaims: true };
    let mut wakes = Vec::new();
    for early in [true, false] {
        let config = ThrottleConfig { ancestors: vec![above.clone()], ..at.config(HIGH) };
        let throttler = Throttler::start(config).unwrap();
        if early {
            ground.dir.remove_child("above", SECOND).unwrap();
        }
        match wakes.is_empty() {
            true => grows_until_throttled(&mut at, &throttler),
            false => at.is_throttled_on(&throttler),
        }
        wakes.push(throttler.stop().pulses);
    }
    assert!(wakes.iter().all(|pulses| *pulses > 0), "{wakes:?}");
}

#[test]
fn groups_beneath_that_come_and_go_do_not_end_a_throttle() {
    let Some((_ground, mut at)) =
        container("groups_beneath_that_come_and_go_do_not_end_a_throttle")
    else {
        return;
    };
    let _alone = alone();
    let throttler = Throttler::start(at.config(HIGH)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (group, stop) = (at.group.clone(), &stop);
        let made = scope.spawn(move || {
            let mut made = 0;
            while !stop.load(Ordering::SeqCst) {
                let name = format!("beneath{}", made % 7);
                group.create_child(&name).unwrap();
                group.remove_child(&name, 10 * SECOND).unwrap();
                made += 1;
            }
            made
        });
        at.load.grow(RATE, MOST);
        for _ in 0..2 {
            at.is_throttled_on(&throttler);
        }
        stop.store(true, Ordering::SeqCst);
        println!("{} groups beneath", made.join().unwrap());
    });
    let events = throttler.events();
    assert!(events.iter().all(|event| event.name() == "pulse"), "{events:?}");
    throttler.stop();
}

#[test]
fn a_throttle_ends_with_its_group_and_leaves_nothing() {
    let Some((ground, mut at)) = container("a_throttle_ends_with_its_group_and_leaves_nothing")
    else {
        return;
    };
    let _alone = alone();
    // Far below its high, near it, and throttled.
    for (n, high) in [Bytes::mib(4096), Bytes::mib(128), HIGH].into_iter().enumerate() {
        let group = ground.group(&format!("g{n}"));
        without_swap(&group);
        let mut load = Load::in_group(&group);
        at.freezer.take(load.pid());
        let high = Limit::Bytes(high);
        let config = ThrottleConfig { high, ..ThrottleConfig::new(group.clone(), HIGH) };
        let throttler = Throttler::start(config).unwrap();
        match n {
            0 => {}
            1 => {
                assert!(load.anon(Bytes::mib(70)));
                until("it is made ready", 30 * SECOND, || at.ours().exists());
            }
            _ => {
                load.grow(RATE, MOST);
                until("pulses", 30 * SECOND, || throttler.totals().pulses > 1);
            }
        }
        drop(load);
        assert!(!throttler.is_over());
        ground.dir.remove_child(&format!("g{n}"), 10 * SECOND).unwrap();
        until("it is over", 30 * SECOND, || throttler.is_over());
        assert!(!at.ours().exists());
        let events = throttler.events();
        assert!(events.iter().all(|event| event.name() == "pulse"), "{events:?}");
    }
    assert!(at.load.is_alive());
}

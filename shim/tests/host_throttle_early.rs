//! Containers with a small high are ready long before it: their tasks are in the group that is frozen while they do nothing
//! yet, which costs nothing, and what fills memory faster than tasks are moved is held near high.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod freezers;
mod throttled;

use cgroupfs::freezer::Freezer;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::driver::throttle::{Moves, ThrottleConfig, ThrottleTerms, Throttler};
use common::{Ground, Load, alone, strict, until, without_swap};
use freezers::{ENDLESS, FreezerDir};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use throttled::{Throttled, ground};

const SECOND: Duration = Duration::from_secs(1);
const HIGH: Bytes = Bytes::mib(64);

fn tasks(group: &Path) -> BTreeSet<u32> {
    let tasks = std::fs::read_to_string(group.join("tasks")).unwrap_or_default();
    tasks.lines().map(|tid| tid.parse().unwrap()).collect()
}

/// A container of a runtime's, in both hierarchies, with a throttle on it.
struct Made {
    at: Throttled,
    home: FreezerDir,
}

impl Made {
    fn new(ground: &Ground, name: &str, loads: usize) -> (Made, Vec<Load>) {
        let home = FreezerDir::new(&Freezer::find().unwrap().mount_point, name);
        let group = ground.group(name);
        without_swap(&group);
        let loads =
            (0..loads).map(|_| Load::in_group(&group)).inspect(|load| home.take(load.pid()));
        let loads = loads.collect();
        (Made { at: Throttled::over(group, HIGH, ENDLESS), home }, loads)
    }

    fn ours(&self) -> PathBuf {
        self.home.0.join("cgshim")
    }

    fn until_ready(&self, loads: &[Load]) {
        until("moved in", 10 * SECOND, || {
            let inside = tasks(&self.ours());
            loads.iter().all(|load| inside.contains(&load.pid()))
        });
        assert!(self.at.memory.usage().unwrap() < Bytes(HIGH.0 / 8));
    }
}

/// Threads of this process with this name, and how often they slept of their own accord.
fn threads(name: &str) -> (usize, u64) {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let status =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
    let ours = status.filter(|status| status.lines().next().is_some_and(|at| at.ends_with(name)));
    let slept = ours.map(|status| {
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    });
    slept.fold((0, 0), |(n, slept), more| (n + 1, slept + more))
}

#[test]
fn ready_and_at_rest_it_costs_no_thread_and_no_wake_up() {
    let Some(ground) = ground("ready_and_at_rest_it_costs_no_thread_and_no_wake_up") else {
        return;
    };
    let _alone = alone();
    let (made, loads) = Made::new(&ground, "rest", 2);
    made.until_ready(&loads);
    let mut before = None;
    until("at rest", 5 * SECOND, || {
        std::thread::sleep(SECOND);
        let now = threads("cgshim-throttle");
        before.replace(now) == Some(now)
    });
    std::thread::sleep(2 * SECOND);
    assert_eq!(Some(threads("cgshim-throttle")), before);
    assert_eq!(threads("cgshim-pulse").0, 0);
    let said = |group: &Path| std::fs::read_to_string(group.join("freezer.state")).unwrap();
    assert_eq!((said(&made.ours()).trim(), said(&made.home.0).trim()), ("THAWED", "THAWED"));
    let (ours, pids): (_, Vec<u32>) = (made.ours(), loads.iter().map(Load::pid).collect());
    assert_eq!(made.at.throttler.stop().pulses, 0);
    assert!(!ours.exists());
    let back = tasks(&made.home.0);
    assert!(pids.iter().all(|pid| back.contains(pid)), "{pids:?} {back:?}");
}

#[test]
fn who_fills_memory_faster_than_tasks_are_moved_is_held_near_high() {
    let test = "who_fills_memory_faster_than_tasks_are_moved_is_held_near_high";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let (mut made, mut loads) = Made::new(&ground, "huge", 4);
    made.until_ready(&loads);
    loads.iter_mut().for_each(|load| load.grow_huge(Bytes(0), Bytes::mib(2048)));
    let memory = made.at.memory.clone();
    until("at high", 20 * SECOND, || memory.usage().unwrap() >= HIGH);
    std::thread::sleep(3 * SECOND);
    let overage = made.at.overage(HIGH);
    println!("{:.1} % above high", overage * 100.0);
    // Natively 28 % by then. Where tasks were moved on the way to high it was 240.
    assert!(overage < if strict() { 0.45 } else { 1.0 }, "{overage}");
    assert!(made.at.pulses().len() > 1);
    drop(loads);
    made.at.throttler.stop();
}

#[test]
fn who_comes_into_an_empty_group_is_taken_in_when_it_uses_something() {
    let test = "who_comes_into_an_empty_group_is_taken_in_when_it_uses_something";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let (made, _) = Made::new(&ground, "empty", 0);
    std::thread::sleep(SECOND / 2);
    assert!(!made.ours().exists());
    let mut load = Load::in_group(&made.at.group);
    made.home.take(load.pid());
    assert!(load.anon(Bytes::mib(3)));
    made.until_ready(std::slice::from_ref(&load));
    drop(load);
    made.at.throttler.stop();
}

#[test]
fn who_is_moved_by_its_runtime_afterwards_is_found_where_it_is() {
    let test = "who_is_moved_by_its_runtime_afterwards_is_found_where_it_is";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let (mut made, mut loads) = Made::new(&ground, "moved", 1);
    made.until_ready(&loads);
    let elsewhere = made.home.child("elsewhere");
    let pid = loads[0].pid();
    elsewhere.take(pid);
    loads[0].grow(Bytes::mib(20), Bytes::mib(2048));
    let there = elsewhere.0.join("cgshim");
    until("found", 20 * SECOND, || !tasks(&there).is_empty());
    until("pulses", 30 * SECOND, || !made.at.pulses().is_empty());
    assert!(!made.ours().exists());
    drop(loads);
    made.at.throttler.stop();
    assert!(!there.exists());
}

#[test]
fn another_high_ends_it_or_begins_it() {
    let Some(ground) = ground("another_high_ends_it_or_begins_it") else { return };
    let _alone = alone();
    let (made, loads) = Made::new(&ground, "terms", 1);
    made.until_ready(&loads);
    let terms =
        |high| ThrottleTerms { high, ..ThrottleConfig::new(made.at.group.clone(), HIGH).terms() };
    for high in [Limit::Max, Limit::Bytes(Bytes::mib(8192))] {
        made.at.throttler.change(terms(high));
        until("removed", 10 * SECOND, || !made.ours().exists());
        assert!(tasks(&made.home.0).contains(&loads[0].pid()));
        made.at.throttler.change(terms(Limit::Bytes(HIGH)));
        made.until_ready(&loads);
    }
    drop(loads);
    made.at.throttler.stop();
}

#[test]
fn what_a_killed_throttle_left_is_taken_over_and_ended() {
    let Some(ground) = ground("what_a_killed_throttle_left_is_taken_over_and_ended") else {
        return;
    };
    let _alone = alone();
    let home = FreezerDir::new(&Freezer::find().unwrap().mount_point, "left");
    let left = home.child("cgshim");
    let group = ground.group("left");
    without_swap(&group);
    let load = Load::in_group(&group);
    left.take(load.pid());
    let at = Throttled::over(group, HIGH, ENDLESS);
    std::thread::sleep(SECOND);
    assert!(tasks(&left.0).contains(&load.pid()));
    at.throttler.stop();
    assert!(!left.0.exists());
    assert!(tasks(&home.0).contains(&load.pid()));
}

#[test]
fn many_at_once_are_ready_one_after_the_other_and_who_ends_meanwhile_is_in_nobodys_way() {
    let test = "many_at_once_are_ready_one_after_the_other_and_who_ends_is_in_nobodys_way";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let mount = Freezer::find().unwrap().mount_point;
    let moves: Arc<Moves> = Arc::default();
    let mut all: Vec<_> = (0..24)
        .map(|n| {
            let home = FreezerDir::new(&mount, &format!("many{n}"));
            let group = ground.group(&format!("many{n}"));
            let load = Load::in_group(&group);
            home.take(load.pid());
            (load, home, group)
        })
        .collect();
    let start = Instant::now();
    let start_one = |group: &Arc<Cgroup>| {
        let config =
            ThrottleConfig { way_out: ENDLESS, ..ThrottleConfig::new(group.clone(), HIGH) };
        Throttler::start(ThrottleConfig { moves: moves.clone(), ..config }).unwrap()
    };
    let mut throttlers: Vec<_> = all.iter().map(|(_, _, group)| start_one(group)).collect();
    // Some of those who wait, and maybe one that moves.
    // Each ends before its groups are removed.
    throttlers.drain(4..8);
    all.drain(4..8);
    for (load, home, _) in &all {
        until("ready", 60 * SECOND, || tasks(&home.0.join("cgshim")).contains(&load.pid()));
    }
    println!("{} are ready after {:?}", all.len(), start.elapsed());
    drop(throttlers);
    for (load, home, _) in &all {
        assert!(tasks(&home.0).contains(&load.pid()));
        assert!(!home.0.join("cgshim").exists());
    }
}

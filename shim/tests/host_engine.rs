//! The engine over a real group with a real load: what it must never do, and what it must see.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::freezer::Freezer;
use cgroupfs::memory::{Memory, Version};
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::core::throttle::WayOut;
use cgshim::core::{Notice, Outcome, Strategy, Totals};
use cgshim::driver::{Engine, Happened, Key, Policy, reclaim_once};
use cgshim::journal::Journal;
use common::{DiskFile, Ground, Load, LowestLimit, alone, bar, memory, skip, strict, without_swap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Limit = Limit::Bytes(Bytes::mib(96));
const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine needs now and then; not what is promised.
const PATIENCE: Duration = Duration::from_secs(60);

/// A group under [`LIMIT`] with an engine on it, whose marks are low enough to be reached all the time.
struct Enforced {
    engine: Engine,
    key: Key,
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    happened: Vec<Happened>,
}

impl Enforced {
    fn new(ground: &Ground, name: &str) -> Enforced {
        let group = ground.group(name);
        let memory = memory(&group);
        memory.set_limit(LIMIT).unwrap();
        let mut engine = Engine::new(1, Arc::new(Journal::private().unwrap())).unwrap();
        let key = register(&mut engine, &group);
        Enforced { engine, key, group, memory, happened: Vec::new() }
    }

    /// Turns the loop for a while; how many rounds of reclaim ended in it.
    fn work(&mut self, time: Duration) -> usize {
        let (start, seen) = (Instant::now(), self.rounds());
        while start.elapsed() < time {
            self.engine
                .turn(Some(time.saturating_sub(start.elapsed())), &mut self.happened)
                .unwrap();
        }
        self.rounds() - seen
    }

    /// Turns it until so many more rounds have ended.
    fn work_rounds(&mut self, rounds: usize) {
        let goal = self.rounds() + rounds;
        self.work_until(&format!("{goal} rounds"), |at| at.rounds() >= goal);
    }

    /// Turns it until something holds.
    fn work_until(&mut self, what: &str, holds: impl Fn(&Enforced) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "never: {what}: {:?}", self.happened);
            self.engine.turn(Some(SECOND / 100), &mut self.happened).unwrap();
        }
    }

    /// Waits for what is in flight, and hears of it.
    fn settle(&mut self) {
        self.engine.quiesce(self.key, PATIENCE);
        self.work(SECOND / 100);
    }

    fn rounds(&self) -> usize {
        self.happened.iter().filter(|event| matches!(event, Happened::Round(..))).count()
    }

    fn steps(&self) -> u32 {
        let steps = |event: &Happened| match event {
            Happened::Round(_, _, report) => report.steps,
            _ => 0,
        };
        self.happened.iter().map(steps).sum()
    }

    /// Ends enforcement, and waits for that.
    fn release(&mut self) -> Totals {
        self.engine.release(self.key);
        self.forgotten()
    }

    /// Waits until one is.
    fn forgotten(&mut self) -> Totals {
        let forgotten = |event: &Happened| match event {
            Happened::Forgotten(_, totals) => Some(*totals),
            _ => None,
        };
        self.work_until("forgotten", |at| {
            at.happened.iter().any(|event| forgotten(event).is_some())
        });
        self.happened.iter().find_map(forgotten).unwrap()
    }
}

fn register(engine: &mut Engine, group: &Arc<Cgroup>) -> Key {
    let watermarks = "50%:40%".parse().unwrap();
    engine.register(group.clone(), Policy { watermarks, high: Limit::Max }).unwrap()
}

#[test]
fn after_work_the_declared_limit_stands() {
    let Some(ground) = Ground::new("after_work_the_declared_limit_stands") else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let mut at = Enforced::new(&ground, "g");
    let mut load = Load::in_group(&at.group);
    let lowest = LowestLimit::watch(at.memory.clone());
    load.stream(&file, Bytes::mib(300));
    at.work_rounds(5);
    at.work(SECOND);
    let totals = at.release();
    assert!(totals.rounds >= 5 && totals.freed > Bytes::mib(20), "{totals:?}");
    assert_eq!(at.memory.limit().unwrap(), LIMIT);
    assert_eq!(at.memory.counters().unwrap().oom_kill.unwrap_or(0), 0);
    // Law 2: no window so low that the group's own growth would end in it.
    let floor = Limit::Bytes(Bytes::mib(32));
    assert!(lowest.seen() >= floor);
    assert!(load.is_alive());
    // Released is released: nothing more happens, whatever the group does.
    at.happened.clear();
    at.work(SECOND / 5);
    assert!(at.happened.is_empty(), "{:?}", at.happened);
    assert_eq!(at.memory.limit().unwrap(), LIMIT);
}

#[test]
fn usage_is_kept_about_the_marks_and_the_loads_own_threads_hardly_reclaim() {
    let test = "usage_is_kept_about_the_marks_and_the_loads_own_threads_hardly_reclaim";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let mut at = Enforced::new(&ground, "g");
    let mut load = Load::in_group(&at.group);
    load.stream(&file, Bytes::mib(100));
    at.work_rounds(2);
    // v2 has no usage event: a group that was quiet is looked at once a second, and what the stream fills
    // in that second, on however slow a machine, is not late.
    let most = match at.memory.version() {
        Version::V1 => Bytes::mib(90),
        Version::V2 => Bytes::mib(120),
    };
    // In one of some seconds: where others take every CPU for a while the engine comes too late in that while.
    let direct = |at: &Enforced| at.memory.counters().unwrap().direct_reclaim();
    let mut seconds = Vec::new();
    let kept = (0..if strict() { 1 } else { 30 }).any(|_| {
        let before = direct(&at);
        at.happened.clear();
        at.work(SECOND);
        let usage = |event: &Happened| match event {
            Happened::Usage(_, _, usage) => Some(*usage),
            _ => None,
        };
        let peak = at.happened.iter().filter_map(usage).max();
        seconds.push((direct(&at) - before, peak));
        // Half of the limit is free: the limit itself is met in our own windows at most.
        direct(&at) - before < 50 && peak.is_some_and(|peak| peak < most)
    });
    assert!(kept, "(direct reclaim, peak) in each second: {seconds:?}");
    at.release();
}

#[test]
fn a_foreign_limit_is_adopted_stands_at_the_end_and_stops_stepping() {
    let test = "a_foreign_limit_is_adopted_stands_at_the_end_and_stops_stepping";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let mut at = Enforced::new(&ground, "g");
    let mut load = Load::in_group(&at.group);
    // As fast as it can: reclaim is in flight most of the time.
    load.stream(&file, Bytes::mib(4000));
    let mut lost = Vec::new();
    // v2 never steps memory.max, and tells of no new one: that is found with the next look, in 1 s.
    let (runs, seen_after) =
        if ground.v1() { (100, Duration::from_millis(25)) } else { (4, SECOND * 3 / 2) };
    for run in 0..runs {
        at.work_rounds(1);
        // Another process, at any moment of our work.
        let foreign = Limit::Bytes(Bytes::mib(100 + run % 20));
        let writer = at.memory.clone();
        let path = at.group.path().to_path_buf();
        let write = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(run * 137 % 20_000));
            // As runtimes do it, and as one who holds the file open.
            match run % 2 {
                0 if writer.version() == Version::V1 => {
                    let bytes = foreign.bytes().unwrap().0.to_string();
                    std::fs::write(path.join("memory.limit_in_bytes"), bytes).unwrap();
                }
                _ => writer.set_limit(foreign).unwrap(),
            }
        });
        at.work(Duration::from_millis(25));
        write.join().unwrap();
        at.work(seen_after);
        // As `cgctl run` ends: what is in flight may have its look at the limit still to come.
        at.engine.quiesce(at.key, PATIENCE);
        at.engine.look_at_limit(at.key);
        let adopted = at.engine.declared(at.key);
        at.release();
        let end = at.memory.limit().unwrap();
        assert!(end == foreign || end == LIMIT, "run {run}: a stepped {end} stays");
        assert_eq!(adopted, Some(end), "run {run}");
        if end != foreign {
            lost.push(format!("run {run}: wrote {foreign}, end {end}"));
        } else {
            let told = |event: &Happened| matches!(event, Happened::Notice(_, _, Notice::Adopted(_, to)) if *to == foreign);
            assert!(at.happened.iter().any(told), "run {run}: nobody was told");
        }
        at.memory.set_limit(LIMIT).unwrap();
        at.happened.clear();
        at.key = register(&mut at.engine, &at.group);
    }
    println!("lost: {lost:#?}");
    assert!(lost.is_empty(), "{} of {runs}: {lost:#?}", lost.len());

    // For half a minute no limit is stepped; what opens no window goes on.
    at.work_rounds(1);
    let theirs = Limit::Bytes(Bytes::mib(120));
    at.memory.set_limit(theirs).unwrap();
    at.work_until("adopted", |at| at.engine.declared(at.key) == Some(theirs));
    at.settle();
    let lowest = LowestLimit::watch(at.memory.clone());
    at.work(SECOND);
    assert_eq!(lowest.seen(), theirs);
    at.release();
    assert_eq!(at.memory.limit().unwrap(), theirs);
}

#[test]
fn against_a_writer_that_never_rests_no_limit_is_stepped_and_one_alert_is_given() {
    let test = "against_a_writer_that_never_rests_no_limit_is_stepped_and_one_alert_is_given";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let mut at = Enforced::new(&ground, "g");
    let mut load = Load::in_group(&at.group);
    load.stream(&file, Bytes::mib(300));
    at.work_rounds(3);
    let seconds = std::env::var("CGSHIM_TEST_WRITER_S").ok().and_then(|s| s.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(8));
    let writer = at.memory.clone();
    let start = Instant::now();
    let write = std::thread::spawn(move || {
        let mut writes = 0;
        while start.elapsed() < time {
            writes += 1;
            writer.set_limit(Limit::Bytes(Bytes::mib(100 + writes % 10))).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        Limit::Bytes(Bytes::mib(100 + writes % 10))
    });
    let adopted = |event: &Happened| matches!(event, Happened::Notice(_, _, Notice::Adopted(..)));
    // Until it is found: at once on v1, with the next look on v2.
    at.work_until("adopted", |at| at.happened.iter().any(adopted));
    at.settle();
    // What opens no window goes on.
    let steps = |at: &Enforced| {
        let steps = |event: &Happened| match event {
            Happened::Round(_, _, report) if report.strategy == Strategy::LimitStep => report.steps,
            _ => 0,
        };
        at.happened.iter().map(steps).sum::<u32>()
    };
    let before = steps(&at);
    at.work(time.saturating_sub(start.elapsed()));
    let last = write.join().unwrap();
    at.work_until("the last is adopted", |at| at.engine.declared(at.key) == Some(last));
    let (made, alerts) = (steps(&at) - before, at.happened.iter().filter(|e| adopted(e)).count());
    println!("{time:?}: {made} steps of ours, {alerts} alerts");
    assert!(!ground.v1() || u64::from(made) <= time.as_secs() / 30, "{made} steps");
    assert_eq!(alerts, 1);
    assert_eq!(at.memory.limit().unwrap(), last);
    at.release();
}

#[test]
fn more_containers_than_the_journal_has_room_for_are_watched_and_not_stepped() {
    let test = "more_containers_than_the_journal_has_room_for_are_watched_and_not_stepped";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let mut at = Enforced::new(&ground, "first");
    // A journal of one process's own has 64 places, and one is taken.
    let others: Vec<Key> =
        (1..64).map(|n| register(&mut at.engine, &ground.group(&format!("idle{n}")))).collect();
    let group = ground.group("one-too-many");
    let memory = memory(&group);
    memory.set_limit(LIMIT).unwrap();
    let key = register(&mut at.engine, &group);
    let file = DiskFile::new(Bytes::mib(128));
    let mut load = Load::in_group(&group);
    load.stream(&file, Bytes::mib(300));
    let lowest = LowestLimit::watch(memory.clone());
    at.work(SECOND);
    if ground.v1() {
        assert_eq!(lowest.seen(), LIMIT, "stepped without a place in the journal");
    }
    // Once another has made room, it is enforced like any other.
    at.engine.release(others[0]);
    at.engine.release(key);
    let forgotten = |event: &&Happened| matches!(event, Happened::Forgotten(..));
    at.work_until("both are gone", |at| at.happened.iter().filter(forgotten).count() == 2);
    at.happened.clear();
    at.key = register(&mut at.engine, &group);
    at.work_rounds(1);
    at.release();
    assert_eq!(memory.limit().unwrap(), LIMIT);
}

#[test]
fn every_foreign_limit_is_adopted_also_the_second_within_the_pause() {
    let test = "every_foreign_limit_is_adopted_also_the_second_within_the_pause";
    let Some(ground) = Ground::new(test) else { return };
    let mut at = Enforced::new(&ground, "g");
    for mib in [80, 120, 100, 90] {
        let foreign = Limit::Bytes(Bytes::mib(mib));
        at.memory.set_limit(foreign).unwrap();
        // v2 tells of no new limit: it is looked at with the next look at usage, 1 s at most.
        at.work_until("adopted", |at| at.engine.declared(at.key) == Some(foreign));
    }
    at.release();
}

#[test]
fn a_group_that_is_removed_midway_is_released_in_one_pass() {
    let test = "a_group_that_is_removed_midway_is_released_in_one_pass";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    for run in 0..10 {
        // What the group of the run before still holds would not be charged to this one.
        file.drop_cache();
        let mut at = Enforced::new(&ground, "g");
        let mut load = Load::in_group(&at.group);
        load.stream(&file, Bytes::mib(300));
        at.work_rounds(2);
        drop(load);
        at.happened.clear();
        let parent = ground.dir.clone();
        let remove = std::thread::spawn(move || {
            let start = Instant::now();
            parent.remove_child("g", PATIENCE).unwrap();
            start.elapsed()
        });
        // v2 has no event for it; the timer finds out, within its second.
        at.forgotten();
        let took = remove.join().unwrap();
        assert!(took < bar(SECOND), "run {run}: our writes held rmdir up for {took:?}");
        at.happened.clear();
        at.work(SECOND / 20);
        assert!(at.happened.is_empty(), "run {run}: {:?}", at.happened);
        assert!(at.engine.totals(at.key).is_none());
    }
}

#[test]
fn a_young_container_is_enforced_before_it_has_a_threshold() {
    let test = "a_young_container_is_enforced_before_it_has_a_threshold";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let mut at = Enforced::new(&ground, "old");
    at.engine.arm_after(60 * SECOND);
    let group = ground.group("young");
    let memory = memory(&group);
    memory.set_limit(LIMIT).unwrap();
    let key = register(&mut at.engine, &group);
    let mut load = Load::in_group(&group);
    load.stream(&file, Bytes::mib(100));
    let young = |event: &&Happened| matches!(event, Happened::Round(of, ..) if *of == key);
    let rounds = |at: &Enforced| at.happened.iter().filter(young).count();
    at.work_until("the young one is taken from", |at| rounds(at) >= 2);
    at.engine.release(key);
    assert_eq!(memory.limit().unwrap(), LIMIT);
    at.release();
}

/// A throttle is a thread and a threshold, which most short containers never need.
#[test]
fn a_young_container_has_no_throttle_until_it_comes_near_its_high() {
    let test = "a_young_container_has_no_throttle_until_it_comes_near_its_high";
    let Some(ground) = Ground::new(test) else { return };
    if !ground.v1() {
        return;
    }
    if let Err(error) = Freezer::find() {
        return skip(test, &error.to_string());
    }
    let _alone = alone();
    let mut at = Enforced::new(&ground, "old");
    at.engine.arm_after(60 * SECOND);
    let group = ground.group("young");
    without_swap(&group);
    memory(&group).set_limit(Limit::Bytes(Bytes::mib(512))).unwrap();
    // Near it is 128 MiB below it.
    let policy = Policy { watermarks: "off".parse().unwrap(), high: Limit::Bytes(Bytes::mib(256)) };
    let key = at.engine.register(group.clone(), policy).unwrap();
    at.engine.throttle(key, Some(WayOut::default())).unwrap();
    let throttles = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        tasks
            .filter_map(|task| name(task).ok())
            .filter(|name| name.starts_with("cgshim-throttle"))
            .count()
    };
    let mut load = Load::in_group(&group);
    load.grow(Bytes::mib(500), Bytes::mib(64));
    at.work(SECOND / 2);
    assert_eq!((throttles(), at.engine.throttled_in_all(key).map(|all| all.pulses)), (0, Some(0)));
    load.grow(Bytes::mib(500), Bytes::mib(200));
    at.work_until("a throttle", |_| throttles() > 0);
    at.engine.release(key);
    at.release();
}

#[test]
fn nothing_is_lowered_once_quiesce_returns() {
    let Some(ground) = Ground::new("nothing_is_lowered_once_quiesce_returns") else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let mut at = Enforced::new(&ground, "g");
    let mut load = Load::in_group(&at.group);
    load.stream(&file, Bytes::mib(300));
    for run in 0..40 {
        at.work_rounds(1);
        at.work(Duration::from_micros(run * 731 % 9000));
        at.engine.quiesce(at.key, PATIENCE);
        let lowest = LowestLimit::watch(at.memory.clone());
        std::thread::sleep(Duration::from_millis(15));
        assert_eq!(lowest.seen(), LIMIT, "run {run}");
    }
    // And it goes on afterwards.
    at.work_rounds(3);
    at.release();
}

#[test]
fn what_the_kernel_would_not_swap_is_not_swapped_while_its_cache_is_taken() {
    let test = "what_the_kernel_would_not_swap_is_not_swapped_while_its_cache_is_taken";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let mut at = Enforced::new(&ground, "g");
    match at.memory.set_limits(LIMIT, Some(Limit::Bytes(Bytes(0)))) {
        Ok(()) => {}
        Err(error) if error.is_absent() => return common::skip(test, &error.to_string()),
        Err(error) => panic!("{error}"),
    }
    let swappiness =
        || std::fs::read_to_string(at.group.path().join("memory.swappiness")).unwrap_or_default();
    let before = swappiness();
    let mut load = Load::in_group(&at.group);
    assert!(load.anon(Bytes::mib(36)));
    load.stream(&file, Bytes::mib(200));
    at.work_rounds(4);
    at.work(SECOND);
    let totals = at.release();
    assert!(totals.freed > Bytes::mib(8), "{totals:?}");
    assert_eq!(at.memory.swap_usage().unwrap().unwrap_or_default(), Bytes(0));
    let anon = at.memory.stat().unwrap().anon.unwrap();
    assert!(anon >= Bytes::mib(34), "{anon}");
    let after = std::fs::read_to_string(at.group.path().join("memory.swappiness"));
    assert_eq!(after.unwrap_or_default(), before, "swappiness is as it was");
    assert!(load.is_alive());
}

#[test]
fn once_takes_what_can_be_taken_and_never_goes_under_the_rest() {
    let test = "once_takes_what_can_be_taken_and_never_goes_under_the_rest";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let group = ground.group("g");
    let memory = memory(&group);
    memory.set_limit(Limit::Bytes(Bytes::mib(200))).unwrap();
    without_swap(&group);
    let file = DiskFile::new(Bytes::mib(80));
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(64)));
    load.read(&file, Bytes::mib(80));
    let lowest = LowestLimit::watch(memory.clone());
    let once = reclaim_once(&memory, Bytes::mib(500), &|| false, 5 * SECOND, None, None).unwrap();
    let (_, report) = once.report.unwrap();
    assert!(once.why.is_some(), "500 MiB cannot be had");
    assert!((Bytes::mib(40)..Bytes::mib(84)).contains(&report.freed), "{report:?}");
    // Anon and the margin for growth.
    assert!(lowest.seen() >= Limit::Bytes(Bytes::mib(94)));
    assert_eq!(memory.limit().unwrap(), Limit::Bytes(Bytes::mib(200)));
    assert!(memory.stat().unwrap().anon.unwrap() >= Bytes::mib(62));
    assert!(load.is_alive());
}

#[test]
fn a_resting_group_wakes_nobody() {
    let Some(ground) = Ground::new("a_resting_group_wakes_nobody") else { return };
    let _alone = alone();
    let mut at = Enforced::new(&ground, "g");
    let mut load = Load::in_group(&at.group);
    assert!(load.anon(Bytes::mib(16)));
    // v2: what it grew by is forgotten by halves.
    at.work(if ground.v1() { SECOND } else { 9 * SECOND });
    // v1 has an event for growth; v2 is looked at once a second.
    let most = if ground.v1() { 1 } else { 5 };
    let mut seen = Vec::new();
    // What others do to the host may wake it once.
    let rests = (0..if strict() { 1 } else { 10 }).any(|_| {
        at.happened.clear();
        let (start, mut turns) = (Instant::now(), 0);
        while start.elapsed() < 3 * SECOND {
            let left = (3 * SECOND).saturating_sub(start.elapsed());
            at.engine.turn(Some(left), &mut at.happened).unwrap();
            turns += 1;
        }
        seen.push((turns, format!("{:?}", at.happened)));
        turns <= most
    });
    assert!(rests, "(turns, what happened) in 3 s: {seen:?}");
    assert_eq!(at.steps(), 0);
    at.release();
}

#[test]
fn a_limit_that_comes_later_is_enforced_and_one_that_goes_is_no_more() {
    let test = "a_limit_that_comes_later_is_enforced_and_one_that_goes_is_no_more";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(Bytes::mib(128));
    let group = ground.group("g");
    let memory = memory(&group);
    let mut engine = Engine::new(1, Arc::new(Journal::private().unwrap())).unwrap();
    let key = register(&mut engine, &group);
    let mut at = Enforced { engine, key, group, memory, happened: Vec::new() };
    assert_eq!(at.engine.watermarks(at.key), None);
    let mut load = Load::in_group(&at.group);
    load.stream(&file, Bytes::mib(100));
    at.memory.set_limit(LIMIT).unwrap();
    at.work_rounds(1);
    let reached = |event: &Happened| matches!(event, Happened::Round(_, _, report) if report.outcome != Outcome::Vanished);
    assert!(at.happened.iter().any(reached));
    at.memory.set_limit(Limit::Max).unwrap();
    at.work_until("no limit", |at| at.engine.declared(at.key) == Some(Limit::Max));
    at.settle();
    at.happened.clear();
    assert_eq!(at.work(SECOND / 2), 0);
    at.release();
    assert_eq!(at.memory.limit().unwrap(), Limit::Max);
}

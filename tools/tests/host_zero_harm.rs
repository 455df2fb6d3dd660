//! The zero-harm gate: loads of every kind well under their limit, with the engine hard at work against
//! them, and without. Not one OOM kill, refused operation or lost child more than without, and work done
//! ≥ 0.97 × of it. Then the same with a high that most of them are above, throttled on top of it: no harm
//! either; less work is what that is for.
//!
//! `CGSHIM_ZERO_HARM_STEPS` asks for so many reclaim steps against each load (10,000 for the full gate);
//! unset, a few seconds' worth. Each ends with a line of what it came to: `cargo test --release -p tools --test
//! host_zero_harm -- --nocapture`.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgctl::{Ran, memload, run_sh};
use common::{Ground, alone, data_dir, host_has_swap};
use serde_json::Value;
use std::path::Path;

/// Reclaim wherever the load is at, and go far; less far where many steps are wanted.
const MARKS: &str = "40%:30%";
const MARKS_FOR_STEPS: &str = "40%:38%";

/// Where many steps are wanted of the cache beside a load that keeps what it fills: so much of it leaves room.
const KEPT: &str = "112M";
const KEPT_FOR_STEPS: &str = "56M";
const MARKS_BESIDE_KEPT: &str = "60%:57%";

/// A high that loads which keep what they fill are above.
const HIGH: &str = "64M";
const HIGH_BESIDE_KEPT: &str = "48M";

/// Work done with the engine, in relation to without, that is asked for: in the median of many pairs, and of the
/// few that run everywhere, where other loads on the machine disturb it.
const LEAST_WORK: f64 = 0.97;
const LEAST_WORK_ANYWHERE: f64 = 0.9;

/// How often such a pair may be repeated. Harm is harm the first time.
const TRIES: u32 = 5;

/// Bytes a second of each load, in MiB: paced, so that work done compares; slow enough for an emulated machine. What
/// the engine takes from is as fast as reclaim steps are wanted; what it cannot take, and grows faster than this,
/// leaves no room for a step.
const SLOW: u64 = 32;
const FAST: u64 = 300;

/// A run of a load: what harm came to it, what it got done, and what reclaim there was.
#[derive(Debug)]
struct Came {
    harm: u64,
    bytes: u64,
    rounds: u64,
    steps: u64,
    freed: u64,
    pulses: u64,
    /// For the message of a failure: everything.
    _all: Ran,
}

fn number(object: &Value, pointer: &str) -> u64 {
    object.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {object}"))
}

/// What the engine takes where the load itself has nothing that it could: cache read beside it.
const CACHE: &str = "read --size 160M";

fn come(ground: &Ground, line: &str, beside: Option<&str>, seconds: f64, engine: &str) -> Came {
    let command = |line: &str| {
        let data = data_dir();
        let dir = if line.starts_with("tmpfs") { Path::new("/dev/shm") } else { &data };
        format!("{} {line} --duration {seconds} --json --dir {}", memload(), dir.display())
    };
    let script = match beside {
        None => command(line),
        Some(beside) => format!("{} >/dev/null & {}; wait", command(beside), command(line)),
    };
    let ran = run_sh(ground, &format!("--limit 192M --json {engine}"), &script);
    assert_eq!(ran.code(), Some(0), "{line} {engine}: {ran:?}");
    let (load, report) = (ran.object(), ran.report());
    assert_eq!(report["declared_limit_restored"], true, "{line}: {report}");
    let errors = load["errors"].as_object().unwrap().values().map(|n| n.as_u64().unwrap());
    Came {
        harm: errors.sum::<u64>()
            + number(&load, "/children_lost")
            + number(&load, "/short_reads")
            + number(&report, "/oom/kills"),
        bytes: number(&load, "/bytes"),
        rounds: number(&report, "/reclaim/rounds"),
        steps: number(&report, "/reclaim/steps"),
        freed: number(&report, "/reclaim/freed_bytes"),
        pulses: report.pointer("/throttle/pulses").and_then(Value::as_u64).unwrap_or(0),
        _all: ran,
    }
}

/// Pairs of one load, until so much reclaim was done to it.
fn assert_no_harm(test: &str, load: &str, has_what_can_be_taken: bool) {
    assert_no_harm_with(test, load, has_what_can_be_taken, "");
}

/// With more terms of the container's.
fn assert_no_harm_with(test: &str, load: &str, has_what_can_be_taken: bool, terms: &str) {
    let keeps_it = load.contains(KEPT) && !host_has_swap();
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let wanted: u64 = std::env::var("CGSHIM_ZERO_HARM_STEPS").map_or(0, |n| n.parse().unwrap());
    let by_hand = wanted > 0;
    let keeps = load.contains(KEPT);
    let (fast, marks, high) = match (by_hand, keeps) {
        (false, _) => (SLOW, MARKS, HIGH),
        (true, false) => (FAST, MARKS_FOR_STEPS, HIGH),
        (true, true) => (FAST, MARKS_BESIDE_KEPT, HIGH_BESIDE_KEPT),
    };
    let kept_for_steps = load.replace(KEPT, KEPT_FOR_STEPS);
    let load = if by_hand { &kept_for_steps } else { load };
    let has_what_can_be_taken = has_what_can_be_taken && !(by_hand && keeps);
    let paced = |load: &str, rate: u64| format!("{load} --rate {rate}M");
    let line = paced(load, if has_what_can_be_taken { fast } else { SLOW });
    let beside = (!has_what_can_be_taken).then(|| paced(CACHE, fast));
    let beside = beside.as_deref();
    let seconds = if by_hand { 15.0 } else { 3.5 };
    let (mut rounds, mut steps, mut pulses, mut tries) = (0, 0, 0, 0);
    let (mut harm, mut works) = (0, Vec::new());
    loop {
        let off = come(&ground, &line, beside, seconds, "--off");
        let on = come(&ground, &line, beside, seconds, &format!("--watermark {marks} {terms}"));
        let engine = format!("--watermark {marks} {terms} --high {high}");
        let high = come(&ground, &line, beside, seconds, &engine);
        for with in [&on, &high] {
            harm += with.harm;
            assert!(
                with.harm <= off.harm,
                "{line}: harm {}, {} without: {with:?} {off:?}",
                with.harm,
                off.harm
            );
        }
        rounds += on.rounds + high.rounds;
        steps += on.steps + high.steps;
        pulses += high.pulses;
        let work = on.bytes as f64 / off.bytes as f64;
        works.push(work);
        println!(
            "{line}: work {work:.3}, {} and {} steps, {} and {} MiB freed, {} pulses",
            on.steps,
            high.steps,
            on.freed >> 20,
            high.freed >> 20,
            high.pulses
        );
        // An emulated machine has no time to spare: there every page that is swapped takes 300 µs.
        if !by_hand && work < LEAST_WORK_ANYWHERE && std::env::var_os("CGSHIM_LANE").is_none() {
            tries += 1;
            assert!(tries < TRIES, "{line}: work done {work:.3} of that without: {on:?} {off:?}");
            continue;
        }
        // A machine with much else to do may not have come to the mark, or to high, in this time.
        let throttles = keeps_it && ground.v1();
        if !by_hand && (rounds == 0 || throttles && pulses == 0) && works.len() < TRIES as usize {
            continue;
        }
        if steps >= wanted || works.len() >= 200 {
            break;
        }
    }
    works.sort_by(f64::total_cmp);
    let work = works[works.len() / 2];
    println!(
        "{line}: {} pairs, {rounds} rounds, {steps} steps, {pulses} pulses, harm {harm}, work {work:.3}",
        works.len()
    );
    assert!(rounds > 0, "{line}: the engine never worked");
    assert!(!by_hand || work >= LEAST_WORK, "{line}: work done {works:.3?} of that without");
    // Where high is emulated, who keeps what it fills is held there.
    if keeps_it && ground.v1() {
        assert!(pulses > 0, "{line}: never throttled");
    }
}

#[test]
fn page_faults() {
    assert_no_harm("page_faults", "anon --size 112M", host_has_swap());
}

#[test]
fn reads_into_fresh_pages() {
    assert_no_harm("reads_into_fresh_pages", "read --fresh --size 160M", true);
}

#[test]
fn files_on_tmpfs() {
    assert_no_harm("files_on_tmpfs", "tmpfs --size 112M", host_has_swap());
}

/// With `oom_kill_disable` set what meets a lowered limit would fail with ENOMEM, or EFAULT, where it waits
/// otherwise.
#[test]
fn files_on_tmpfs_with_the_killer_held_off() {
    let test = "files_on_tmpfs_with_the_killer_held_off";
    if is_v1(test) {
        assert_no_harm_with(test, "tmpfs --size 112M", host_has_swap(), "--oom hold=30s");
    }
}

#[test]
fn reads_into_fresh_pages_with_a_freeze_for_a_look() {
    let test = "reads_into_fresh_pages_with_a_freeze_for_a_look";
    if is_v1(test) {
        assert_no_harm_with(test, "read --fresh --size 160M", true, "--oom freeze=5s");
    }
}

fn is_v1(test: &str) -> bool {
    let v1 = Ground::new(test).is_some_and(|ground| ground.v1());
    if !v1 {
        common::skip(test, "cgroup v2 has nothing that holds the OOM killer off");
    }
    v1
}

#[test]
fn a_hot_set_beside_cold_growth() {
    let test = "a_hot_set_beside_cold_growth";
    assert_no_harm(test, "hotcold --size 112M --hot 4M", host_has_swap());
}

/// Where the kernel gives none, of small pages.
#[test]
fn huge_pages() {
    assert_no_harm("huge_pages", "thp --size 112M", host_has_swap());
}

#[test]
fn allocations_that_are_freed_at_once() {
    assert_no_harm("allocations_that_are_freed_at_once", "alloc", false);
}

/// No more dirty than the engine works beside: were most of what is cached dirty, it would stand aside.
#[test]
fn writes_to_a_file() {
    assert_no_harm("writes_to_a_file", "dirty --size 16M", false);
}

#[test]
fn pipes() {
    assert_no_harm("pipes", "pipe --size 32M", false);
}

#[test]
fn forks() {
    assert_no_harm("forks", "fork --procs 4 --chunk 8M", false);
}

#[test]
fn mapped_files() {
    assert_no_harm("mapped_files", "mmap --size 160M", true);
}

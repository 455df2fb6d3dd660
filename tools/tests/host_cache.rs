//! Page cache above high, read and written: reclaimed, not slept on. On v1 by the engine, on v2 by the kernel (`--off`: no engine), to be
//! compared on one kernel: `ci/vm/tests v1-6.1 host_cache -- --nocapture`, and v2-6.1.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgctl::{finish, memload, run_command};
use common::{Ground, MIB, alone, data_dir, skip, strict};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const HIGH: u64 = 64;

/// How long a file is read, in circles; `CGSHIM_TEST_SECONDS` says otherwise.
fn seconds() -> u64 {
    std::env::var("CGSHIM_TEST_SECONDS").map_or(4, |n| n.parse().unwrap())
}

/// What reading or writing a file of four times high came to.
#[derive(Debug)]
struct Ran {
    /// Bytes a second.
    throughput: f64,
    /// Of looks at usage, 10 ms apart, from the second second on: the 99th percentile, in MiB above high.
    p99: f64,
    pulses: u64,
}

/// A load of `memload`, read or dirty; `rate` in MiB/s, as fast as it goes for 0.
fn run(ground: &Ground, load: &str, name: &str, rate: u64, options: &str) -> Ran {
    let (memload, dir) = (memload(), data_dir());
    let (size, duration) = (format!("{}M", 4 * HIGH), seconds().to_string());
    let words = [&*memload, load, "--size", &size, "--duration", &duration, "--json", "--dir"];
    let rate_option = format!("{rate}M");
    let paced: &[&str] = if rate > 0 { &["--rate", &rate_option] } else { &[] };
    let words: Vec<&str> =
        words.into_iter().chain([dir.to_str().unwrap()]).chain(paced.iter().copied()).collect();
    let options = format!("--name {name} --swap 0 --json {options}");
    let file = ground.path().join(name).join(match ground.v1() {
        true => "memory.usage_in_bytes",
        false => "memory.current",
    });
    let over = AtomicBool::new(false);
    let (ran, mut looks) = std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looks: Vec<(Instant, u64)> = Vec::new();
            while !over.load(Ordering::SeqCst) {
                if let Ok(usage) = fs::read_to_string(&file) {
                    looks.push((Instant::now(), usage.trim().parse().unwrap()));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            looks
        });
        let ran = finish(run_command(ground, &options, &words));
        over.store(true, Ordering::SeqCst);
        (ran, looks.join().unwrap())
    });
    let report = ran.report();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(report["oom"]["kills"], 0, "{report}");
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    // It makes the file first, in the group.
    let end = looks.last().unwrap().0;
    looks.retain(|(at, _)| end - *at < Duration::from_secs(seconds() - 1));
    let mut usages: Vec<u64> = looks.into_iter().map(|(_, usage)| usage).collect();
    usages.sort_unstable();
    let p99 = usages[(usages.len() - 1) * 99 / 100];
    let came_to = Ran {
        throughput: said["throughput_bytes_per_s"].as_f64().unwrap(),
        p99: p99 as f64 / MIB as f64 - HIGH as f64,
        pulses: report["throttle"]["pulses"].as_u64().unwrap(),
    };
    println!(
        "{load} {options}: {:.0} MiB/s, {:+.1} MiB of high at p99 of {} looks, {} pulses",
        came_to.throughput / MIB as f64,
        came_to.p99,
        usages.len(),
        came_to.pulses
    );
    came_to
}

#[test]
fn a_stream_of_page_cache_above_high_is_reclaimed_and_not_slept_on() {
    held("a_stream_of_page_cache_above_high_is_reclaimed_and_not_slept_on", reads);
}

#[test]
fn writing_files_above_high_goes_on_at_the_speed_of_the_disk() {
    held("writing_files_above_high_goes_on_at_the_speed_of_the_disk", writes);
}

/// One of a few tries is as it should be.
fn held(test: &str, once: impl Fn(&Ground, &str) -> (bool, Vec<Ran>)) {
    let Some(ground) = Ground::new(test) else { return };
    if ground.v1() && cgroupfs::freezer::Freezer::find().is_err() {
        return skip(test, "there is no freezer: nothing is throttled");
    }
    let _alone = alone();
    let high = format!("--limit 512M --high {HIGH}M");
    // What others do to the machine meets one run and not the other.
    let tries = if strict() { 1 } else { 5 };
    let mut seen = Vec::new();
    let held = (0..tries).any(|_| {
        let (holds, all) = once(&ground, &high);
        seen.push(all);
        holds
    });
    assert!(held, "(ours, the kernel's, ours paced): {seen:#?}");
}

/// Whether two runs of a writer are as they should be, and what they came to.
fn writes(ground: &Ground, high: &str) -> (bool, Vec<Ran>) {
    let ours = run(ground, "dirty", "ours", 0, high);
    let kernel = match ground.v1() {
        true => run(ground, "dirty", "kernel", 0, &format!("--off --limit {HIGH}M")),
        false => run(ground, "dirty", "kernel", 0, &format!("--off {high}")),
    };
    // Slept on, it came to 0.03 of the kernel's (measured: 600 MiB in 27 s), with usage at three times high.
    let as_fast = ours.throughput >= 0.3 * kernel.throughput;
    (as_fast && ours.p99 <= HIGH as f64, vec![ours, kernel])
}

/// Whether three reads are as they should be, and what they came to.
fn reads(ground: &Ground, high: &str) -> (bool, Vec<Ran>) {
    let read = |ground, name, rate, options: &str| run(ground, "read", name, rate, options);
    let ours = read(ground, "ours", 0, high);
    // The kernel's own reclaim: at high, or on v1 at a limit.
    let kernel = match ground.v1() {
        true => read(ground, "kernel", 0, &format!("--off --limit {HIGH}M")),
        false => read(ground, "kernel", 0, &format!("--off {high}")),
    };
    let paced = read(ground, "paced", 200, high);
    // 0.9 is the aim on a quiet machine; here others may be at work.
    let as_fast = ours.throughput >= 0.7 * kernel.throughput;
    // 16 MiB is the aim. A reader at 1 GB/s is ahead of the engine by 25 (measured), by 70 where three compilers are at
    // work on two CPUs, and is frozen for it now and then; let be it would have the whole file, 192.
    let held = ours.p99 <= 2.0 * HIGH as f64 && paced.p99 <= 0.5 * HIGH as f64;
    (as_fast && held, vec![ours, kernel, paced])
}

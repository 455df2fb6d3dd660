//! The kernel's own `memory.high` beside the formula that the emulation follows; by hand a table of it for shim/docs/memory-high.md, in
//! three minutes:
//!
//!     CGSHIM_TEST_CURVE=all ci/vm/tests v2-6.1-nothp host_native_curve -- --nocapture
//!     CGSHIM_TEST_CURVE=huge ci/vm/tests v2-6.1 host_native_curve -- --nocapture     in charges of huge pages
//!
//! The lines with commas are what `ci/plot-throttle` takes for its dots.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Limit};
use cgshim::core::throttle::{Curve, HUGE};
use common::{Ground, MIB, memory, skip, without_swap};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// High in MiB, growers, their pace in MiB/s (0: as fast as they can).
const ROWS: [(u64, u32, u64); 5] = [(64, 1, 0), (64, 4, 0), (100, 1, 0), (100, 4, 0), (256, 1, 50)];
/// In huge pages.
const HUGE_ROWS: [(u64, u32, u64); 5] =
    [(64, 1, 0), (64, 4, 10), (64, 4, 200), (64, 4, 0), (256, 4, 0)];
/// Seconds after it was above high.
const AT: [u64; 5] = [2, 5, 10, 20, 30];
/// Huge pages are charged in steps of two seconds.
const HUGE_AT: [u64; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
/// What is always run: so many of the rows, and of the seconds.
const SHORT: (usize, usize) = (2, 2);
/// How far usage may be off then, in % of high: a huge page more, which is 2 MiB of 64.
const ALLOWED: f64 = 3.2;

/// It waits to be told to go, in the group.
fn grower(group: &dyn ControlDir, pace: u64, huge: bool) -> Child {
    let pace = if pace == 0 { String::new() } else { format!("--rate {pace}M") };
    let load = if huge { "thp --size 900M" } else { "anon --size 4G" };
    let memload = cgctl::memload();
    let script = format!("echo $$ > \"$0\" && read -r go && exec {memload} {load} {pace}");
    Command::new("/bin/sh")
        .arg("-c")
        .arg(script)
        .arg(group.path().join("cgroup.procs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn growers_above_a_native_high_follow_the_formula() {
    let test = "growers_above_a_native_high_follow_the_formula";
    let Some(ground) = Ground::new(test) else { return };
    if ground.v1() {
        return skip(test, "cgroup v1: ci/bench-throttle measures what is emulated");
    }
    let which = std::env::var("CGSHIM_TEST_CURVE").unwrap_or_default();
    let (all, huge) = (!which.is_empty(), which == "huge");
    let (rows, at) = match (all, huge) {
        (false, _) => (&ROWS[..SHORT.0], &AT[..SHORT.1]),
        (true, false) => (&ROWS[..], &AT[..]),
        (true, true) => (&HUGE_ROWS[..], &HUGE_AT[..]),
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let jiffy = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    let curve = Curve::new(Curve::batch_of(&release), jiffy.into());
    println!("Linux {}", release.trim());
    for (high, growers, pace) in rows.iter().copied() {
        let name = format!("g{high}-{growers}-{pace}");
        let group = ground.group(&name);
        let memory = memory(&group);
        memory.set_limit(Limit::Bytes(Bytes::mib(1024))).unwrap();
        without_swap(&group);
        let mut loads: Vec<Child> = (0..growers).map(|_| grower(&*group, pace, huge)).collect();
        std::thread::sleep(Duration::from_millis(300));
        memory.set_high(Limit::Bytes(Bytes::mib(high))).unwrap();
        for load in &mut loads {
            load.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }
        // The formula begins at high.
        let start = Instant::now();
        while memory.usage().unwrap() < Bytes::mib(high) {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        let start = Instant::now();
        let (mut row, mut dots, mut worst) = (String::new(), String::new(), 0.0f64);
        let key = format!("{high} {growers} {pace}{}", if huge { " thp" } else { "" });
        for at in at.iter().copied() {
            std::thread::sleep(Duration::from_secs(at).saturating_sub(start.elapsed()));
            let over = Curve::overage(memory.usage().unwrap(), Bytes::mib(high)) * 100.0;
            let bytes = (pace > 0).then_some(pace * MIB);
            let unit = if huge { HUGE } else { curve.batch() };
            let time = Duration::from_secs(at);
            let formula = curve.overage_after(Bytes::mib(high), growers, bytes, unit, time) * 100.0;
            row += &format!("{over:.1} ({formula:.1}), ");
            dots += &format!("{key},{at},{:.4}\n", over / 100.0);
            worst = worst.max((over - formula).abs());
        }
        let pace = if pace == 0 { "memset".into() } else { format!("{pace} MiB/s") };
        let row = row.trim_end_matches(", ");
        println!("| {high} MiB, {growers} × {pace} | {row} % |");
        if all {
            print!("{dots}");
        }
        for mut load in loads {
            let _ = load.kill();
            let _ = load.wait();
        }
        drop((memory, group));
        ground.dir.remove_child(&name, Duration::from_secs(5)).unwrap();
        assert!(all || worst < ALLOWED, "{name}: {row}");
    }
}

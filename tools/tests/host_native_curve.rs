//! The kernel's own `memory.high` beside its formula: a table for README.md.
//!
//!     ci/vm/tests v2-6.1-nothp host_native_curve -- --ignored --nocapture

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Limit};
use cgshim::core::throttle::Curve;
use common::{Ground, MIB, memory, skip, without_swap};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// High in MiB, growers, their pace in MiB/s (0: as fast as they can).
const ROWS: [(u64, u32, u64); 5] = [(64, 1, 0), (64, 4, 0), (100, 1, 0), (100, 4, 0), (256, 1, 50)];
const AT: [u64; 5] = [2, 5, 10, 20, 30];

/// It waits to be told to go, in the group.
fn grower(group: &dyn ControlDir, pace: u64) -> Child {
    let pace = if pace == 0 { String::new() } else { format!("--rate {pace}M") };
    let script = format!(
        "echo $$ > \"$0\" && read -r go && exec {} anon --size 4G {pace}",
        cgctl::memload()
    );
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
#[ignore = "a measurement of three minutes"]
fn table() {
    let Some(ground) = Ground::new("table") else { return };
    if ground.v1() {
        return skip("table", "cgroup v1: ci/bench-throttle measures what is emulated");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let jiffy = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    let curve = Curve::new(Curve::batch_of(&release), jiffy.into());
    println!("Linux {}", release.trim());
    for (high, growers, pace) in ROWS {
        let name = format!("g{high}-{growers}-{pace}");
        let group = ground.group(&name);
        let memory = memory(&group);
        memory.set_limit(Limit::Bytes(Bytes::mib(1024))).unwrap();
        without_swap(&group);
        let mut loads: Vec<Child> = (0..growers).map(|_| grower(&*group, pace)).collect();
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
        let mut row = String::new();
        for at in AT {
            std::thread::sleep(Duration::from_secs(at).saturating_sub(start.elapsed()));
            let over = Curve::overage(memory.usage().unwrap(), Bytes::mib(high)) * 100.0;
            let bytes = (pace > 0).then_some(pace * MIB);
            let unit = curve.batch();
            let time = Duration::from_secs(at);
            let formula = curve.overage_after(Bytes::mib(high), growers, bytes, unit, time) * 100.0;
            row += &format!("{over:.1} ({formula:.1}), ");
        }
        let pace = if pace == 0 { "memset".into() } else { format!("{pace} MiB/s") };
        println!("| {high} MiB, {growers} × {pace} | {} % |", row.trim_end_matches(", "));
        for mut load in loads {
            let _ = load.kill();
            let _ = load.wait();
        }
        drop((memory, group));
        ground.dir.remove_child(&name, Duration::from_secs(5)).unwrap();
    }
}

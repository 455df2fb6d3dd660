//! `cgctl run --high` on cgroup v1: throttled, released, and nobody left frozen whatever happens to `cgctl`.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

mod common;
#[path = "common/cgctl.rs"]
mod tool;

use common::{Ground, alone, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tool::{memload, run, run_command};

const SECOND: Duration = Duration::from_secs(1);

/// `None`, having said so, where the kernel has its own `memory.high`, or no freezer.
fn ground(test: &str) -> Option<Ground> {
    let ground = Ground::new(test)?;
    if !ground.v1() {
        skip(test, "v2 has memory.high: nothing is emulated");
        return None;
    }
    if let Err(error) = cgroupfs::freezer::Freezer::find() {
        skip(test, &error.to_string());
        return None;
    }
    Some(ground)
}

/// A run whose command fills memory above its high.
struct Run {
    cgctl: Child,
}

impl Run {
    fn start(ground: &Ground) -> Run {
        let load = memload();
        let words = [&*load, "anon", "--size", "1G", "--duration", "60"];
        let options = "--limit 512M --high 64M --swap 0 --way-out never --quiet";
        let mut command = run_command(ground, options, &words);
        let cgctl = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Run { cgctl }
    }

    /// Our group in the freezer hierarchy.
    fn group(&self) -> Option<PathBuf> {
        let freezer = cgroupfs::freezer::Freezer::find().unwrap();
        let home = freezer.path_of(std::process::id()).unwrap();
        let prefix = format!("cgshim-{}-", self.cgctl.id());
        let entries = fs::read_dir(home).unwrap().flatten();
        entries
            .map(|entry| entry.path())
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix))
    }

    fn state(&self) -> String {
        let state = self.group().map(|path| fs::read_to_string(path.join("freezer.state")));
        state.and_then(Result::ok).unwrap_or_default().trim().to_owned()
    }

    fn tasks(&self) -> Vec<i32> {
        let tasks = self.group().map(|path| fs::read_to_string(path.join("tasks")));
        let tasks = tasks.and_then(Result::ok).unwrap_or_default();
        tasks.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.cgctl.id() as i32), signal).unwrap();
    }

    /// Waits for a pulse, 100 ms of which have passed.
    fn wait_for_a_long_pulse(&self) {
        let start = Instant::now();
        let mut since = None;
        loop {
            assert!(start.elapsed() < 60 * SECOND, "no pulse: {}", self.state());
            match (&*self.state(), since) {
                ("FROZEN", None) => since = Some(Instant::now()),
                ("FROZEN", Some(at)) if at.elapsed() > SECOND / 10 => return,
                ("FROZEN", _) => {}
                _ => since = None,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Whatever went wrong: nobody stays frozen.
        if let Some(path) = self.group() {
            let _ = fs::write(path.join("freezer.state"), "THAWED");
        }
        let _ = self.cgctl.kill();
        let _ = self.cgctl.wait();
        for pid in self.tasks() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let start = Instant::now();
        while let Some(path) = self.group()
            && fs::remove_dir(path).is_err()
            && start.elapsed() < 5 * SECOND
        {
            std::thread::sleep(SECOND / 100);
        }
    }
}

#[test]
fn growth_above_high_is_throttled_and_reported() {
    let Some(ground) = ground("growth_above_high_is_throttled_and_reported") else { return };
    let _alone = alone();
    let load = memload();
    let words = [&*load, "anon", "--size", "1G", "--duration", "6"];
    let ran = run(&ground, "--limit 512M --high 64M --swap 0 --json", &words);
    let report = ran.report();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert!(report["throttle"]["pulses"].as_u64().unwrap() > 3, "{report}");
    // From the first page above high on it is held, so that it comes as far as the kernel's curve lets it.
    let peak = report["peak_bytes"].as_u64().unwrap();
    assert!(peak < 80 << 20, "{report}");
    let (f, high) = (peak as f64 / f64::from(64 << 20) - 1.0, f64::from(64 << 20));
    let curve = 64.0 * f.powi(3) * high / (3.0 * 262_144.0);
    let frozen = report["throttle"]["frozen_ms"].as_u64().unwrap() as f64 / 1000.0;
    assert!((curve * 0.6 - 1.0..curve * 1.2 + 1.0).contains(&frozen), "{curve} s: {report}");
    assert_eq!(report["throttle"]["released"], 0, "{report}");
    assert_eq!(report["oom"]["kills"], 0, "{report}");
}

#[test]
fn without_a_throttle_growth_goes_on() {
    let Some(ground) = ground("without_a_throttle_growth_goes_on") else { return };
    let _alone = alone();
    let load = memload();
    let words = [&*load, "anon", "--size", "200M", "--duration", "2"];
    let ran = run(&ground, "--limit 512M --high 64M --throttle off --swap 0 --json", &words);
    let report = ran.report();
    assert_eq!(report["throttle"]["pulses"], 0, "{report}");
    assert!(report["peak_bytes"].as_u64().unwrap() > 190 << 20, "{report}");
}

#[test]
fn a_kill_9_in_a_pulse_leaves_nobody_frozen() {
    let Some(ground) = ground("a_kill_9_in_a_pulse_leaves_nobody_frozen") else { return };
    let _alone = alone();
    let mut times = Vec::new();
    for _ in 0..3 {
        let mut at = Run::start(&ground);
        at.wait_for_a_long_pulse();
        at.signal(Signal::SIGKILL);
        let start = Instant::now();
        until("thawed", 5 * SECOND, || at.state() != "FROZEN");
        times.push(start.elapsed());
        at.cgctl.wait().unwrap();
    }
    times.sort();
    println!("{times:?}");
    assert!(times[1] < SECOND / 5, "{times:?}");
}

#[test]
fn a_stopped_cgctl_keeps_nobody_frozen_past_the_end_of_the_pulse() {
    let test = "a_stopped_cgctl_keeps_nobody_frozen_past_the_end_of_the_pulse";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let at = Run::start(&ground);
    at.wait_for_a_long_pulse();
    // SIGSTOP, which no program can see coming: whenever the pulse began, it is over within 2 s.
    at.signal(Signal::SIGSTOP);
    let start = Instant::now();
    until("thawed", 5 * SECOND, || at.state() != "FROZEN");
    assert!(start.elapsed() < Duration::from_millis(2300), "{:?}", start.elapsed());
    // And stays so.
    std::thread::sleep(SECOND / 2);
    assert_eq!(at.state(), "THAWED");
    at.signal(Signal::SIGCONT);
}

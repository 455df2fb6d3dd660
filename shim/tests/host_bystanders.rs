//! Who does not grow, beside those that do, above high: not slowed more than the kernel's own `memory.high`
//! slows it. The same loads over our throttle (v1) and the kernel's (v2), to be compared on one kernel:
//! `ci/vm/tests v1-6.1 host_bystanders -- --nocapture`, and v2-6.1.
//!
//! `CGSHIM_TEST_BYSTANDERS` says for how many seconds; unset, a few.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::freezer::Freezer;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::core::throttle::{Curve, IGNORED, Then, WayOut};
use cgshim::driver::throttle::{ThrottleConfig, Throttler, curve};
use common::{Ground, Load, alone, memory, skip, until, without_swap};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const HIGH: Bytes = Bytes::mib(64);

/// A nap of a bystander.
const NAP: Duration = MS;

fn seconds() -> u32 {
    std::env::var("CGSHIM_TEST_BYSTANDERS").map_or(6, |n| n.parse().unwrap())
}

/// A group above its high, throttled by us or by the kernel.
struct Throttled {
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    throttler: Option<Throttler>,
}

impl Throttled {
    fn new(ground: &Ground, name: &str) -> Throttled {
        let group = ground.group(name);
        without_swap(&group);
        let memory = memory(&group);
        let throttler = if ground.v1() {
            let way_out = WayOut { budget: None, then: Then::Release };
            let config = ThrottleConfig { way_out, ..ThrottleConfig::new(group.clone(), HIGH) };
            Some(Throttler::start(config).unwrap())
        } else {
            memory.set_high(Limit::Bytes(HIGH)).unwrap();
            None
        };
        Throttled { group, memory, throttler }
    }

    fn overage(&self) -> f64 {
        Curve::overage(self.memory.usage().unwrap(), HIGH)
    }

    /// What a probe costs natively that charges so many bytes here.
    fn natively(&self, charged: Bytes) -> Duration {
        let sleep = curve().sleep(self.overage(), curve().batch());
        sleep.max(IGNORED) * (charged.0 / Bytes::kib(256).0) as u32
    }
}

fn ground(test: &str) -> Option<Ground> {
    let ground = Ground::new(test)?;
    if ground.v1()
        && let Err(error) = Freezer::find()
    {
        skip(test, &error.to_string());
        return None;
    }
    Some(ground)
}

/// Not a test: a process that grows in threads of its own, and naps in another, for so many seconds. Prints how
/// long each nap took, in microseconds.
#[test]
fn napper_child() {
    let Ok(line) = std::env::var("CGSHIM_TEST_NAPPER") else { return };
    let mut words = line.split(' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (growers, seconds) = (number(), number());
    std::fs::write(words.next().unwrap(), std::process::id().to_string()).unwrap();
    for _ in 0..growers {
        std::thread::spawn(|| {
            let mut filled = Vec::new();
            while filled.len() < 2048 {
                filled.push(vec![1u8; 1 << 20]);
            }
            std::hint::black_box(&filled);
            std::thread::park();
        });
    }
    // All of it is there before: it allocates nothing.
    let mut naps = vec![1u32; seconds as usize * 1100];
    naps.clear();
    let start = Instant::now();
    while start.elapsed() < SECOND * seconds as u32 && naps.len() < naps.capacity() {
        let nap = Instant::now();
        std::thread::sleep(NAP);
        naps.push(nap.elapsed().as_micros() as u32);
    }
    for nap in naps {
        println!("nap {nap}");
    }
    // With threads that may be asleep for as long as the kernel likes.
    nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A process that naps, in a group, with threads that grow.
struct Napper(Child);

impl Napper {
    fn start(group: &Cgroup, growers: u32, seconds: u32) -> Napper {
        let procs = group.path().join("cgroup.procs");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "napper_child", "--nocapture", "--test-threads", "1"])
            .env("CGSHIM_TEST_NAPPER", format!("{growers} {seconds} {}", procs.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Napper(child)
    }

    /// How long its naps took, those after the first second.
    fn naps(mut self) -> Naps {
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let nap =
            |line: &str| Some(Duration::from_micros(line.strip_prefix("nap ")?.parse().ok()?));
        let mut naps: Vec<Duration> = said.lines().filter_map(nap).collect();
        let mut passed = Duration::ZERO;
        naps.retain(|nap| {
            passed += *nap;
            passed > SECOND
        });
        naps.sort();
        Naps(naps)
    }
}

impl Drop for Napper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Naps(Vec<Duration>);

impl Naps {
    fn at(&self, share: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }

    fn say(&self) -> String {
        format!(
            "{} naps: {:.1?} in the median, {:.1?} at p99, {:.1?} at worst",
            self.0.len(),
            self.at(0.5),
            self.at(0.99),
            self.at(1.0)
        )
    }
}

/// Runs a program in the group, as somebody does who looks whether a container is well.
fn probe(group: &Cgroup, program: &str) -> Duration {
    let script = format!("echo 0 > {}/cgroup.procs && exec {program}", group.path().display());
    let start = Instant::now();
    let status = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{program}: {status:?}");
    start.elapsed()
}

#[test]
fn a_thread_that_allocates_nothing_beside_growing_ones_is_not_slowed() {
    let test = "a_thread_that_allocates_nothing_beside_growing_ones_is_not_slowed";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    for growers in [1, 4] {
        let at = Throttled::new(&ground, &format!("g{growers}"));
        // In a process of its own, and in one that grows.
        let same = Napper::start(&at.group, growers, seconds());
        let other = Napper::start(&at.group, 0, seconds());
        std::thread::sleep(SECOND * (seconds() - 1));
        let f = at.overage() * 100.0;
        let (same, other) = (same.naps(), other.naps());
        let pulses = at.throttler.as_ref().map(|throttler| throttler.totals().pulses);
        println!("{growers} growers, {f:.1} % above high, pulses {pulses:?}");
        println!("  in the process that grows: {}", same.say());
        println!("  in another: {}", other.say());
        assert!(pulses.is_none_or(|pulses| pulses > 3), "{pulses:?}");
        for naps in [same, other] {
            // Of 5,000 all but 50: the first few pulses show who grows.
            assert!(naps.at(0.99) < 50 * MS, "{growers} growers: {}", naps.say());
            assert!(
                naps.0.len() as u32 > (seconds() - 1) * 200,
                "{growers} growers: {}",
                naps.say()
            );
        }
    }
}

#[test]
fn a_probe_takes_no_longer_than_the_kernels_own_high_would_have_it() {
    let test = "a_probe_takes_no_longer_than_the_kernels_own_high_would_have_it";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    // (What it runs, and what that is sure to charge.)
    let programs =
        [("true", Bytes(0)), ("dd if=/dev/zero of=/dev/null bs=2M count=1", Bytes::mib(2))];
    for growers in [1, 4] {
        let at = Throttled::new(&ground, &format!("p{growers}"));
        let _loads: Vec<Load> = (0..growers)
            .map(|_| {
                let mut load = Load::in_group(&at.group);
                load.grow(Bytes(0), Bytes::mib(2048));
                load
            })
            .collect();
        until("above high", 20 * SECOND, || at.overage() > 0.05);
        for (program, charges) in programs {
            let mut took = Vec::new();
            let start = Instant::now();
            while start.elapsed() < SECOND * seconds() / 2 {
                let natively = at.natively(charges);
                let probed = probe(&at.group, program);
                // A process takes a while to start, also where nobody throttles.
                if at.throttler.is_some() {
                    assert!(
                        probed < natively + SECOND / 2,
                        "{program}: {probed:?}, {natively:?} natively"
                    );
                }
                took.push(probed);
                std::thread::sleep(SECOND.saturating_sub(probed).min(SECOND * seconds() / 20));
            }
            took.sort();
            println!(
                "{growers} growers, {:.1} % above high: {} probes of {program}: {:.1?} in the median, {:.1?} at worst",
                at.overage() * 100.0,
                took.len(),
                took[took.len() / 2],
                took[took.len() - 1]
            );
        }
    }
}

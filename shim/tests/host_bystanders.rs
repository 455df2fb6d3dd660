//! Who does not grow, beside those that do, above high: not slowed more than the kernel's own `memory.high`
//! slows it. The same loads over our throttle (v1) and the kernel's (v2), to be compared on one kernel:
//! `ci/vm/tests v1-6.1 host_bystanders -- --nocapture`, and v2-6.1.
//!
//! `CGSHIM_TEST_BYSTANDERS` says for how many seconds; unset, a few. `CGSHIM_TEST_PROBES` says how many probes of `true`, 0.3 s
//! apart, are started beside one grower, and of nothing else.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::freezer::Freezer;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::core::throttle::{Curve, IGNORED, Then, WayOut};
use cgshim::driver::throttle::{ThrottleConfig, Throttler, curve};
use common::{Ground, Load, alone, memory, skip, strict, until, without_swap};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const HIGH: Bytes = Bytes::mib(64);

/// A nap of a bystander.
const NAP: Duration = MS;

/// One that takes no longer may be a busy machine's.
const LATE: Duration = Duration::from_millis(100);

fn seconds() -> u32 {
    std::env::var("CGSHIM_TEST_BYSTANDERS").map_or(6, |n| n.parse().unwrap())
}

fn probes() -> Option<usize> {
    std::env::var("CGSHIM_TEST_PROBES").ok().map(|n| n.parse().unwrap())
}

/// A group above its high, throttled by us or by the kernel.
struct Throttled {
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    throttler: Option<Throttler>,
}

impl Throttled {
    fn new(ground: &Ground, name: &str) -> Throttled {
        let mut at = Throttled::unthrottled(ground, name);
        at.throttle(ground, HIGH);
        at
    }

    /// Until it is.
    fn unthrottled(ground: &Ground, name: &str) -> Throttled {
        let group = ground.group(name);
        without_swap(&group);
        let memory = memory(&group);
        Throttled { group, memory, throttler: None }
    }

    fn throttle(&mut self, ground: &Ground, high: Bytes) {
        if ground.v1() {
            let way_out = WayOut { budget: None, then: Then::Release };
            let config =
                ThrottleConfig { way_out, ..ThrottleConfig::new(self.group.clone(), high) };
            self.throttler = Some(Throttler::start(config).unwrap());
        } else {
            self.memory.set_high(Limit::Bytes(high)).unwrap();
        }
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

/// Which thread of a process naps.
#[derive(Clone, Copy)]
enum Who {
    /// The one that was there first.
    First,
    /// The same, and it fills four pages in a tenth of a second.
    Faults,
    /// The first of a process that fills slowly what is beyond 64 MiB.
    Slow,
    /// One that a growing thread starts two seconds later, beneath the throttle.
    Late,
}

/// Not a test: a process that grows in threads of its own, and naps in another, for so many seconds. Prints how
/// long each nap took, in microseconds.
#[test]
fn napper_child() {
    let Ok(line) = std::env::var("CGSHIM_TEST_NAPPER") else { return };
    let mut words = line.split(' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (growers, seconds) = (number(), number());
    let who = number();
    std::fs::write(words.next().unwrap(), std::process::id().to_string()).unwrap();
    let start = Instant::now();
    for n in 0..growers {
        std::thread::spawn(move || {
            let mut late = n == 0 && who == Who::Late as u64;
            let mut filled = Vec::new();
            while filled.len() < 2048 {
                filled.push(vec![1u8; 1 << 20]);
                if who == Who::Slow as u64 && filled.len() > 32 {
                    std::thread::sleep(20 * MS);
                }
                if late && start.elapsed() > 2 * SECOND {
                    late = false;
                    std::thread::spawn(move || nap(seconds - 2, false));
                }
            }
            std::hint::black_box(&filled);
            std::thread::park();
        });
    }
    if who != Who::Late as u64 {
        nap(seconds, who == Who::Faults as u64);
    }
    std::thread::park();
}

/// Naps for so long, says how long each took, and ends the process.
fn nap(seconds: u64, faults: bool) {
    let mut pages = vec![0u8; (seconds as usize * 10 + 10) * 4 * 4096];
    let mut fill = pages.chunks_mut(4096);
    let mut filled = Instant::now();
    // All of it is there before: it allocates nothing.
    let mut naps = vec![1u32; seconds as usize * 1100];
    naps.clear();
    let start = Instant::now();
    while start.elapsed() < SECOND * seconds as u32 && naps.len() < naps.capacity() {
        let nap = Instant::now();
        std::thread::sleep(NAP);
        naps.push(nap.elapsed().as_micros() as u32);
        if faults && filled.elapsed() > 100 * MS {
            filled = Instant::now();
            fill.by_ref().take(4).for_each(|page| page.fill(1));
        }
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
        Napper::of(group, growers, seconds, Who::First)
    }

    fn of(group: &Cgroup, growers: u32, seconds: u32, who: Who) -> Napper {
        let who = who as u64;
        let procs = group.path().join("cgroup.procs");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "napper_child", "--nocapture", "--test-threads", "1"])
            .env("CGSHIM_TEST_NAPPER", format!("{growers} {seconds} {who} {}", procs.display()))
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

    /// What they took beyond [`LATE`] each, in all: a thread that is frozen with growers loses most of its time so.
    fn lost(&self) -> Duration {
        self.0.iter().map(|nap| nap.saturating_sub(LATE)).sum()
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
    let _ = env_logger::Builder::from_env("CGSHIM_TEST_LOG").try_init();
    // Beside nobody first: what this machine makes of a nap.
    for growers in [0, 1, 4] {
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
        if growers > 0 {
            assert!(pulses.is_none_or(|pulses| pulses > 3), "{pulses:?}");
        }
        for naps in [same, other] {
            assert!(naps.at(0.99) < 50 * MS, "{growers} growers: {}", naps.say());
            let least = (seconds() - 1) * 200;
            assert!(naps.0.len() as u32 > least, "{growers} growers: {}", naps.say());
            // Not even in the first pulse, of however many growers.
            assert!(naps.lost() < SECOND, "{growers} growers: {}", naps.say());
            assert!(!strict() || naps.at(1.0) < LATE, "{growers} growers: {}", naps.say());
        }
    }
}

/// Not thrown in with those that grow for long either where there was no way to high on which to show it: the throttle
/// comes when the group is above already, the thread when the throttle is at work; nor for a few faults.
#[test]
fn who_comes_late_or_faults_now_and_then_is_not_slowed_for_long() {
    let test = "who_comes_late_or_faults_now_and_then_is_not_slowed_for_long";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let _ = env_logger::Builder::from_env("CGSHIM_TEST_LOG").try_init();
    let seconds = seconds();
    for (name, who) in [("late", Who::Late), ("faults", Who::Faults), ("above", Who::Slow)] {
        let mut at = Throttled::unthrottled(&ground, name);
        let above = name == "above";
        if !above {
            at.throttle(&ground, HIGH);
        }
        let napper = Napper::of(&at.group, 2, seconds, who);
        if above {
            until("above high", SECOND, || at.overage() > 0.1);
            let usage = at.memory.usage().unwrap();
            at.throttle(&ground, Bytes((usage.0 as f64 / 1.1) as u64));
        }
        let naps = napper.naps();
        let pulses = at.throttler.as_ref().map(|throttler| throttler.totals().pulses);
        println!("{name}, 2 growers, pulses {pulses:?}: {}, lost {:.1?}", naps.say(), naps.lost());
        // Natively, who faults pays for it.
        if at.throttler.is_some() {
            let all: Duration = naps.0.iter().sum();
            assert!(!naps.0.is_empty() && naps.lost() * 2 < all, "{name}: {}", naps.say());
            assert!(!strict() || naps.at(1.0) < 3 * LATE, "{name}: {}", naps.say());
        }
    }
}

#[test]
fn a_probe_takes_no_longer_than_the_kernels_own_high_would_have_it() {
    let test = "a_probe_takes_no_longer_than_the_kernels_own_high_would_have_it";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let _ = env_logger::Builder::from_env("CGSHIM_TEST_LOG").try_init();
    // (What it runs, and what that is sure to charge.)
    let programs =
        [("true", Bytes(0)), ("dd if=/dev/zero of=/dev/null bs=2M count=1", Bytes::mib(2))];
    let (growers, programs) = match probes() {
        Some(_) => (&[1][..], &programs[..1]),
        None => (&[1, 4][..], &programs[..]),
    };
    for &growers in growers {
        let at = Throttled::new(&ground, &format!("p{growers}"));
        let _loads: Vec<Load> = (0..growers)
            .map(|_| {
                let mut load = Load::in_group(&at.group);
                load.grow(Bytes(0), Bytes::mib(2048));
                load
            })
            .collect();
        until("above high", 20 * SECOND, || at.overage() > 0.05);
        for &(program, charges) in programs {
            let mut took = Vec::new();
            let start = Instant::now();
            let pause = probes().map_or(SECOND.min(SECOND * seconds() / 20), |_| 300 * MS);
            while probes().map_or(start.elapsed() < SECOND * seconds() / 2, |n| took.len() < n) {
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
                std::thread::sleep(pause.saturating_sub(probed));
            }
            took.sort();
            println!(
                "{growers} growers, {:.1} % above high: {} probes of {program}: {:.1?} in the median, {:.1?} at p95, {:.1?} at worst",
                at.overage() * 100.0,
                took.len(),
                took[took.len() / 2],
                took[took.len() * 95 / 100],
                took[took.len() - 1]
            );
        }
    }
}

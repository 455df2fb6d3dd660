//! How throttling above high compares with the kernel's curve, and what allocating near it takes: tables, not claims.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod freezers;
mod throttled;

use cgroupfs::Bytes;
use cgshim::core::throttle::{HUGE, WayOut};
use cgshim::driver::throttle::{ThrottleConfig, ThrottleEvent, Throttler, curve};
use common::{Ground, Load, memory, until, without_swap};
use freezers::ENDLESS;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use throttled::{Throttled, ground};

const SECOND: Duration = Duration::from_secs(1);

/// Huge pages go up in steps of 8 MiB every two seconds where four growers charge them in step. One that comes so much
/// sooner or later is not off by 8 MiB. Nor is one by the time in which a task fills a page at its own pace (0.2 s at 10
/// MiB/s): the curve has them all begin one at high, and here they are amid one.
const STEP: Duration = Duration::from_millis(100);

/// `ci/bench-throttle` prints it. `CGSHIM_BENCH` says what is measured: high (MiB),
/// growers and pace (MiB/s each, 0: as fast as they can), for how many seconds, then `thp` for huge pages or
/// `release=SECONDS` for a way out; those joined by `+` at the same time. What was seen each second, and each pulse,
/// is appended to the file `CGSHIM_BENCH_CSV`.
#[test]
#[ignore = "a benchmark: ci/bench-throttle"]
fn table() {
    let _ = env_logger::Builder::from_env("CGSHIM_TEST_LOG").try_init();
    let Some(ground) = ground("table") else { return };
    let spec = std::env::var("CGSHIM_BENCH").unwrap_or_else(|_| "100,1,0,10 100,4,0,10".into());
    println!(
        "| high, growers | overage after 5, 10, 20, 30, 60 s (the curve) | furthest off after 5 s | bar | \
         pulses, longest, seen from outside | late, p99, worst | CPU |"
    );
    let ground = &ground;
    let mut n = 0;
    for together in spec.split_whitespace() {
        let rows: Vec<Row> = together.split('+').map(Row::parse).collect();
        let alone = rows.len() == 1;
        // While the first of them that wants it lives, for all: a row is to be with its like.
        let _always = rows.iter().any(|row| row.thp).then(HugePages::always);
        std::thread::scope(|scope| {
            for row in &rows {
                n += 1;
                scope.spawn(move || println!("{}", row.measure(ground, n, alone)));
            }
        });
    }
}

/// What one row of the table is about.
struct Row {
    spec: String,
    high: Bytes,
    growers: u32,
    pace: Bytes,
    seconds: u32,
    thp: bool,
    way_out: WayOut,
}

impl Row {
    fn parse(spec: &str) -> Row {
        let (numbers, options): (Vec<&str>, Vec<&str>) =
            spec.split(',').partition(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        let numbers: Vec<u64> = numbers.iter().map(|n| n.parse().unwrap()).collect();
        let [high, growers, pace, seconds] = numbers[..] else { panic!("{spec}") };
        let (growers, seconds) = (growers as u32, seconds as u32);
        let budget = options.iter().find_map(|option| option.strip_prefix("release="));
        let way_out = match budget {
            Some(time) => WayOut { budget: Some(time.parse::<u32>().unwrap() * SECOND), ..ENDLESS },
            None => ENDLESS,
        };
        let thp = options.contains(&"thp");
        let (high, pace) = (Bytes::mib(high), Bytes::mib(pace));
        Row { spec: spec.replace(',', " "), high, growers, pace, seconds, thp, way_out }
    }

    fn measure(&self, ground: &Ground, n: usize, alone: bool) -> String {
        let high = self.high;
        let group = ground.group(&format!("table{n}"));
        without_swap(&group);
        let mut loads: Vec<Load> = (0..self.growers).map(|_| Load::in_group(&group)).collect();
        // A container whose tasks are there: who joins one later on has to be found first.
        let mut at = Throttled::over(group, high, self.way_out);
        if self.pace.0 > 0 {
            // Most of the way at once.
            assert!(loads[0].anon(Bytes(high.0 / 16 * 15)));
        }
        // Until all are in the group that is frozen: each move takes a grace period.
        std::thread::sleep(SECOND * 2);
        let cpu = cpu_time();
        // With a way out it ends somewhere.
        let most = if self.way_out == ENDLESS { Bytes::mib(8192) } else { Bytes(high.0 * 2) };
        // All at once: in pulses the first are frozen before they have answered.
        let order = if self.thp { "grow-huge" } else { "grow" };
        for load in &mut loads {
            load.order(&format!("{order} {} {}", self.pace.0, most.0)).unwrap();
        }
        let memory = at.memory.clone();
        until("at high", 120 * SECOND, || memory.usage().unwrap() >= high);
        let start = Instant::now();
        let outside = at.freezer_group().map(Outside::watch);
        let unit = if self.thp { HUGE } else { curve().batch() };
        let pace = (self.pace.0 > 0).then_some(self.pace.0);
        let page = (unit * cgroupfs::units::page_size()) as f64;
        let step = pace.map_or(STEP, |pace| STEP.max(Duration::from_secs_f64(page / pace as f64)));
        let (mut shown, mut worst, mut bar) = (Vec::new(), 0.0f64, 1.0f64);
        let mut data = String::new();
        for second in 1..=self.seconds {
            std::thread::sleep((second * SECOND).saturating_sub(start.elapsed()));
            let ours = at.overage(high);
            let native = |after| curve().overage_after(high, self.growers, pace, unit, after);
            let after = start.elapsed();
            let (sooner, later) = (native(after.saturating_sub(step)), native(after + step));
            let native = native(after);
            data += &format!("{},second,{second},{ours:.5},{native:.5}\n", self.spec);
            if [5, 10, 20, 30, 60].contains(&second) {
                shown.push(format!("{:.1} ({:.1})", ours * 100.0, native * 100.0));
            }
            // 5 % of native's, or 1 % of high, or the charge of one task, whichever is larger.
            let charge = page / high.0 as f64;
            let allowed = (native * 0.05).max(0.01).max(charge);
            let off = ours - ours.clamp(sooner, later);
            if second == 5 || second > 5 && off.abs() / allowed > worst.abs() / bar {
                (worst, bar) = (off, allowed);
            }
        }
        let cpu = cpu_time() - cpu;
        let seen = outside.map(Outside::longest).unwrap_or_default();
        at.take();
        for load in &mut loads {
            load.answer().unwrap();
        }
        let pulses: Vec<(Duration, Duration)> = at
            .events
            .iter()
            .filter_map(|event| match event {
                ThrottleEvent::Pulse { frozen, late, .. } => Some((*frozen, *late)),
                _ => None,
            })
            .collect();
        for (frozen, late) in &pulses {
            data += &format!("{},pulse,,{},{}\n", self.spec, frozen.as_micros(), late.as_micros());
        }
        if let Some(file) = std::env::var_os("CGSHIM_BENCH_CSV") {
            let mut file = File::options().append(true).create(true).open(file).unwrap();
            file.write_all(data.as_bytes()).unwrap();
        }
        let longest = pulses.iter().map(|(frozen, _)| *frozen).max().unwrap_or_default();
        let mut late: Vec<Duration> = pulses.iter().map(|(_, late)| *late).collect();
        late.sort();
        let p99 = late.get((late.len() * 99).div_ceil(100).saturating_sub(1));
        drop(loads);
        at.throttler.stop();
        let pace = if self.pace.0 == 0 { "memset".into() } else { format!("{}/s", self.pace) };
        format!(
            "| {high}, {} × {pace}{} | {} % | {:+.1} | {:.1} | {}, {}, {} ms | {:.1}, {:.1} ms | {} |",
            self.growers,
            if self.thp { ", THP" } else { "" },
            shown.join(", "),
            worst * 100.0,
            bar * 100.0,
            pulses.len(),
            longest.as_millis(),
            seen.as_millis(),
            p99.copied().unwrap_or_default().as_secs_f64() * 1e3,
            late.last().copied().unwrap_or_default().as_secs_f64() * 1e3,
            // The process's, which is more than this row's if there are others.
            match alone {
                true => format!("{:.1} %", cpu.as_secs_f64() / f64::from(self.seconds) * 100.0),
                false => "-".into(),
            },
        )
    }
}

/// What allocating 256 KiB takes near high, over and over, for 8 s or so many as
/// `CGSHIM_BENCH` says. v1: emulated; v2: native.
#[test]
#[ignore = "a benchmark: ci/bench-throttle latency"]
fn latencies() {
    let Some(ground) = Ground::new("latencies") else { return };
    let high = Bytes::mib(256);
    let size = Bytes::kib(256);
    let seconds = std::env::var("CGSHIM_BENCH").ok().and_then(|seconds| seconds.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(8.0));
    println!("| usage | median, p99, worst of so many (ms) |");
    for (percent, throttled) in [(-1, false), (-1, true), (1, true), (2, true), (3, true)] {
        let group = ground.group(&format!("latency{percent}{throttled}"));
        without_swap(&group);
        let memory = memory(&group);
        let mut load = Load::in_group(&group);
        std::thread::sleep(SECOND / 5);
        let level = Bytes(high.0 / 100 * (100 + percent) as u64);
        let before = memory.usage().unwrap();
        assert!(load.anon(level.saturating_sub(before)));
        let throttler = match (throttled, ground.v1()) {
            (false, _) => None,
            (true, true) => {
                let config =
                    ThrottleConfig { way_out: ENDLESS, ..ThrottleConfig::new(group.clone(), high) };
                Some(Throttler::start(config).unwrap())
            }
            (true, false) => {
                memory.set_high(cgroupfs::Limit::Bytes(high)).unwrap();
                None
            }
        };
        std::thread::sleep(SECOND);
        let mut took = load.allocate(size, time);
        took.sort_unstable();
        let at = |share: usize| took[(took.len() - 1) * share / 1000] as f64 / 1e3;
        println!(
            "| high {percent:+} %{} | {:.2}, {:.2}, {:.2} of {} (mean {:.2}) |",
            if throttled { "" } else { ", no throttle" },
            at(500),
            at(990),
            at(1000),
            took.len(),
            took.iter().sum::<u64>() as f64 / took.len() as f64 / 1e3,
        );
        drop(load);
        drop(throttler);
    }
}

/// Transparent huge pages for everybody, while this lives.
struct HugePages(String);

impl HugePages {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

    fn always() -> HugePages {
        let said = std::fs::read_to_string(HugePages::FILE).unwrap();
        let before = said.split(['[', ']']).nth(1).unwrap().to_owned();
        std::fs::write(HugePages::FILE, "always").unwrap();
        HugePages(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(HugePages::FILE, &self.0);
    }
}

/// Looks at a freezer group from outside, and remembers the longest that nobody in it had a CPU: a window may be
/// shorter than it takes to look at the group's state.
struct Outside {
    stop: Arc<AtomicBool>,
    watcher: JoinHandle<Duration>,
}

impl Outside {
    fn watch(group: PathBuf) -> Outside {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let watcher = std::thread::spawn(move || {
            let (mut since, mut longest) = (None::<Instant>, Duration::ZERO);
            let mut before = 0;
            while !stopped.load(Ordering::SeqCst) {
                let state = std::fs::read_to_string(group.join("freezer.state"));
                let tasks = std::fs::read_to_string(group.join("tasks")).unwrap_or_default();
                let now: u64 = tasks.lines().map(times_run).sum();
                let ran = std::mem::replace(&mut before, now) != now;
                since = match state.unwrap_or_default().trim() {
                    "FROZEN" | "FREEZING" if ran => Some(Instant::now()),
                    "FROZEN" | "FREEZING" => since.or_else(|| Some(Instant::now())),
                    _ => None,
                };
                longest = longest.max(since.map_or(Duration::ZERO, |since| since.elapsed()));
                std::thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        Outside { stop, watcher }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        self.watcher.join().unwrap()
    }
}

/// So often a task was given a CPU.
fn times_run(tid: &str) -> u64 {
    let counts = std::fs::read_to_string(format!("/proc/{tid}/schedstat")).unwrap_or_default();
    counts.split_whitespace().nth(2).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// CPU time of this process, without the loads.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

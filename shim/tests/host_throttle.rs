//! Throttling above high on cgroup v1, over a real group with real growers.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup};
use cgshim::core::throttle::{Then, WayOut};
use cgshim::driver::throttle::{ThrottleConfig, ThrottleEvent, Throttler, curve};
use common::{Ground, Load, alone, memory, without_swap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const ENDLESS: WayOut = WayOut { budget: None, then: Then::Release };

/// A group with a throttle on it.
struct Throttled {
    throttler: Throttler,
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    events: Vec<ThrottleEvent>,
}

impl Throttled {
    fn new(ground: &Ground, name: &str, high: Bytes, way_out: WayOut) -> Throttled {
        let group = ground.group(name);
        without_swap(&group);
        let config = ThrottleConfig { way_out, ..ThrottleConfig::new(group.clone(), high) };
        let throttler = Throttler::start(config).unwrap();
        Throttled { throttler, memory: memory(&group), group, events: Vec::new() }
    }

    fn take(&mut self) {
        self.events.extend(self.throttler.events());
    }
}

#[test]
fn explore() {
    let Ok(spec) = std::env::var("EXPLORE") else { return };
    let _ = env_logger_init();
    let Some(ground) = Ground::new("explore") else { return };
    let _alone = alone();
    let numbers: Vec<u64> = spec.split(',').map(|n| n.parse().unwrap()).collect();
    let (high, growers, pace, seconds) =
        (Bytes::mib(numbers[0]), numbers[1], numbers[2], numbers[3]);
    let mut at = Throttled::new(&ground, "g", high, ENDLESS);
    let mut loads: Vec<Load> = (0..growers).map(|_| Load::in_group(&at.group)).collect();
    std::thread::sleep(SECOND / 5);
    for load in &mut loads {
        load.grow(Bytes::mib(pace), Bytes::mib(4096));
    }
    let curve = curve();
    let before = at.memory.usage().unwrap();
    while at.memory.usage().unwrap() < high {
        std::thread::sleep(Duration::from_micros(200));
    }
    let start = Instant::now();
    println!("base {before}");
    for n in 1..=seconds {
        std::thread::sleep((n as u32 * SECOND).saturating_sub(start.elapsed()));
        let usage = at.memory.usage().unwrap();
        let f = usage.0 as f64 / high.0 as f64 - 1.0;
        let pace = (pace > 0).then_some(pace << 20);
        let native = curve.overage_after(high, growers as u32, pace, 64, n as u32 * SECOND);
        println!(
            "{n:3} s  {:.2} %  native {:.2} %  diff {:+.2}",
            f * 100.0,
            native * 100.0,
            (f - native) * 100.0
        );
    }
    at.take();
    let pulses: Vec<Duration> = at
        .events
        .iter()
        .filter_map(|event| match event {
            ThrottleEvent::Pulse(_, time) => Some(*time),
            _ => None,
        })
        .collect();
    println!(
        "{} pulses, longest {:?}, {:?}",
        pulses.len(),
        pulses.iter().max(),
        at.throttler.totals()
    );
    for event in &at.events {
        if !matches!(event, ThrottleEvent::Pulse(..)) {
            println!("{event:?}");
        }
    }
    let usage = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = usage.rsplit(')').next().unwrap().split_whitespace().collect();
    println!("our CPU: {} + {} ticks", fields[11], fields[12]);
    drop(loads);
    let start = Instant::now();
    at.throttler.stop();
    println!("stopped in {:?}", start.elapsed());
}

fn env_logger_init() -> bool {
    struct Log;
    impl log::Log for Log {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            eprintln!("{:?} {}", Instant::now(), record.args());
        }
        fn flush(&self) {}
    }
    static LOG: Log = Log;
    if std::env::var_os("TRACE").is_some() {
        log::set_max_level(log::LevelFilter::Trace);
        let _ = log::set_logger(&LOG);
    }
    true
}

//! The control loop over the model kernel against the control loop over the host's: the same load must come to
//! the same usage, the same bytes reclaimed and the same direct reclaim, with the engine and without. Where they
//! disagree the model is wrong.
//!
//! How fast the machine is, is no claim of the model's: it is told the pace that the load kept on the host, and
//! how long the host took for a page it swapped out.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

mod bed;
#[path = "../../tools/tests/common/mod.rs"]
mod common;

use bed::{Bed, LOOK, Looks};
use cgroupfs::memory::{Memory, MemoryV1, Version};
use cgroupfs::{Bytes, Limit};
use cgroupfs_model as model;
use cgshim::core::WatermarkSpec;
use cgshim::driver::{Engine, Happened, Policy};
use cgshim::journal::Journal;
use common::{DiskFile, Ground, Load, alone, host_has_swap, memory, skip, strict};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Bytes = Bytes::mib(96);
/// Far below what a machine can do, so that a busy one keeps up too.
const RATE: Bytes = Bytes::mib(40);
const WORK: Bytes = Bytes::mib(240);
const PATIENCE: Duration = Duration::from_secs(120);
const RUNS: usize = 3;
/// So many where they do not agree at first.
const MOST_RUNS: usize = 9;
/// So many runs may be repeated.
const MOST_AGAIN: usize = 4;
/// How far apart they may be.
const TOLERANCE: f64 = 0.10;

/// What a run came to, in bytes and numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Usage.
    mean: f64,
    peak: f64,
    /// Charged by the load and not in use any more.
    reclaimed: f64,
    /// What the engine says that it freed: less than it did, as growth hides some.
    freed: f64,
    failcnt: f64,
    /// Bytes a second that the load charged.
    pace: f64,
    /// Seconds for a page that the engine's writes swapped out; with growth counted that they hid.
    page: f64,
}

impl Seen {
    const FIELDS: [fn(&mut Seen) -> &mut f64; 7] = [
        |seen| &mut seen.mean,
        |seen| &mut seen.peak,
        |seen| &mut seen.reclaimed,
        |seen| &mut seen.freed,
        |seen| &mut seen.failcnt,
        |seen| &mut seen.pace,
        |seen| &mut seen.page,
    ];

    /// Of each field the median.
    fn median(runs: &[Seen]) -> Seen {
        let mut median = Seen::default();
        for field in Seen::FIELDS {
            let mut values: Vec<f64> = runs.iter().map(|seen| *field(&mut { *seen })).collect();
            values.sort_by(f64::total_cmp);
            *field(&mut median) = values[values.len() / 2];
        }
        median
    }
}

fn seen(looks: &Looks, memory: &dyn Memory, done: u64, time: Duration) -> Seen {
    let usage = memory.usage().unwrap();
    Seen {
        mean: looks.mean(),
        peak: memory.peak().unwrap().0 as f64,
        reclaimed: done.saturating_sub(usage.0) as f64,
        failcnt: memory.counters().unwrap().failcnt.unwrap() as f64,
        pace: done as f64 / time.as_secs_f64(),
        ..Seen::default()
    }
}

fn looks() -> Looks {
    Looks::above(LIMIT.scale(8, 10))
}

/// The load on the host, with the engine or the limit alone.
fn on_host(ground: &Ground, name: &str, engine: bool, start: impl FnOnce(&mut Load)) -> Seen {
    let group = ground.group(name);
    let memory = memory(&group);
    memory.set_limit(Limit::Bytes(LIMIT)).unwrap();
    let mut load = Load::in_group(&group);
    let mut driver = Engine::new(1, Arc::new(Journal::private().unwrap())).unwrap();
    let policy = Policy { watermarks: WatermarkSpec::Default, high: Limit::Max };
    let key = engine.then(|| driver.register(group.clone(), policy).unwrap());
    start(&mut load);
    let watched = memory.clone();
    let watcher = std::thread::spawn(move || {
        let (begun, mut looks, mut done) = (Instant::now(), looks(), 0);
        while done < WORK.0 {
            looks.at(begun.elapsed(), watched.usage().unwrap());
            std::thread::sleep(LOOK);
            assert!(begun.elapsed() < PATIENCE, "{done} of {WORK} in {PATIENCE:?}");
            done = load.done();
        }
        seen(&looks, &*watched, done, begun.elapsed())
    });
    let mut happened = Vec::new();
    while !watcher.is_finished() {
        driver.turn(Some(LOOK), &mut happened).unwrap();
    }
    let mut seen = watcher.join().unwrap();
    let Some(key) = key else { return seen };
    seen.freed = driver.totals(key).unwrap().freed.0 as f64;
    let mut wall = 0.0;
    for event in &happened {
        if let Happened::Round(_, _, report) = event {
            wall += report.wall.as_secs_f64();
        }
    }
    seen.page = wall * 4096.0 / (seen.freed + seen.pace * wall).max(4096.0);
    seen
}

/// The same on the model, which is told how fast the host was.
fn on_model(engine: bool, host: &Seen, load: impl FnOnce(u64) -> model::Load) -> Seen {
    let load = load((host.pace / 4096.0) as u64);
    let done = |host: &model::Host| host.lock().task(model::TaskId(1)).unwrap().done * 4096;
    let config = model::Config::v1_6_18();
    if !engine {
        let host = model::Host::new(config);
        let group = bed::group_on(&host, Version::V1, &[load]);
        let memory = MemoryV1::open(host.dir(group)).unwrap();
        memory.set_limit(Limit::Bytes(LIMIT)).unwrap();
        let (mut looks, mut now) = (looks(), Duration::ZERO);
        while done(&host) < WORK.0 {
            now += LOOK;
            host.advance(LOOK);
            looks.at(now, memory.usage().unwrap());
        }
        return seen(&looks, &memory, done(&host), now);
    }
    let mut bed = Bed::with_limit(config, Limit::Bytes(LIMIT), &[load]);
    bed.window = Duration::from_micros(20);
    bed.swap_out = Duration::from_secs_f64(host.page);
    *bed.looks.lock().unwrap() = looks();
    while done(&bed.host) < WORK.0 {
        bed.run(LOOK);
    }
    let seen = seen(&bed.looks.lock().unwrap(), &*bed.memory, done(&bed.host), bed.now());
    Seen { freed: bed.core.totals().freed.0 as f64, ..seen }
}

/// Runs the load on the host three times, and on the model; off and on. All that is claimed of them. Where that does not
/// hold, runs it once more, and again: others that are at work on the machine meet some runs and not the median.
fn agree(
    ground: &Ground,
    name: &str,
    start: impl Fn(&mut Load),
    load: impl Fn(u64) -> model::Load,
) {
    let mut runs: [Vec<Seen>; 2] = [Vec::new(), Vec::new()];
    let (mut run, mut again) = (0, MOST_AGAIN);
    let mut wrong = Vec::new();
    for wanted in RUNS..=if strict() { RUNS } else { MOST_RUNS } {
        while runs[1].len() < wanted {
            let engine = runs[0].len() > runs[1].len();
            run += 1;
            let seen = on_host(ground, &format!("{name}-{run}"), engine, &start);
            // A machine too busy for the load is too busy for the engine.
            if seen.pace < RATE.0 as f64 / 2.0 && again > 0 {
                again -= 1;
                continue;
            }
            runs[usize::from(engine)].push(seen);
        }
        wrong = disagreements(name, &runs, &load);
        if wrong.is_empty() {
            return;
        }
    }
    panic!("{}\n{runs:#?}", wrong.join("\n"));
}

/// The claims that do not hold of the runs' medians.
fn disagreements(
    name: &str,
    runs: &[Vec<Seen>; 2],
    load: impl Fn(u64) -> model::Load,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for engine in [false, true] {
        let host = Seen::median(&runs[usize::from(engine)]);
        let model = on_model(engine, &host, &load);
        let title = format!("{name}, engine {}", if engine { "on" } else { "off" });
        // A meeting of the limit is one charge of so many: with the engine there are next to none.
        let charges = WORK.0 as f64 / 4096.0;
        let mut claim = |what: &str, host: f64, model: f64, of: f64| {
            let apart = (host - model).abs() / of;
            let line = format!(
                "{title}: {what}: host {host:.0}, model {model:.0}, {:.1} % apart",
                100.0 * apart
            );
            let _ = writeln!(std::io::stderr(), "{line}");
            if apart.is_nan() || apart > TOLERANCE {
                wrong.push(line);
            }
        };
        claim("mean usage", host.mean, model.mean, host.mean);
        claim("peak usage", host.peak, model.peak, host.peak);
        claim("reclaimed bytes", host.reclaimed, model.reclaimed, host.reclaimed);
        if engine {
            claim("bytes freed by the engine", host.freed, model.freed, host.freed);
            claim("failcnt, of all charges", host.failcnt, model.failcnt, charges);
        } else {
            claim("failcnt", host.failcnt, model.failcnt, host.failcnt);
        }
    }
    wrong
}

#[test]
fn a_stream_of_clean_cache_agrees() {
    let test = "a_stream_of_clean_cache_agrees";
    let Some(ground) = Ground::new(test) else { return };
    if !ground.v1() {
        return skip(test, "the loads are compared by what v1 counts");
    }
    let _alone = alone();
    let file = DiskFile::sparse(Bytes(WORK.0 * 2));
    let stream = |load: &mut Load| {
        file.drop_cache();
        load.stream_pages(&file, RATE);
    };
    agree(&ground, "stream", stream, model::Load::stream);
}

#[test]
fn cold_anonymous_growth_over_swap_agrees() {
    let test = "cold_anonymous_growth_over_swap_agrees";
    let Some(ground) = Ground::new(test) else { return };
    if !ground.v1() {
        return skip(test, "the loads are compared by what v1 counts");
    }
    if !host_has_swap() {
        return skip(test, "no swap is on");
    }
    let _alone = alone();
    let total = Bytes(WORK.0 * 2);
    let grow = |load: &mut Load| load.grow_pages(RATE, total);
    agree(&ground, "grow", grow, |rate| model::Load::anon(rate, total.0 / 4096));
}

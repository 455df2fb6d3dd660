//! What came of the runs of one load, without the engine and with it; and the two compared.

use super::scenario::Kind;
use crate::cgctl::run::{DirectReclaim, Finished};
use crate::memload::{Histogram, Report};
use crate::report::{CompareRow, fmt};
use serde::Serialize;

/// All runs of one load on one side, pooled.
pub(super) struct Side {
    runs: u64,
    /// Latency of allocations: the load's own, or those of the thread beside the stream.
    allocation: Histogram,
    /// Latency of touching 64 pages of the hot set.
    hot: Histogram,
    bytes: u64,
    load_ms: u64,
    wall_ms: u64,
    direct_reclaim: u64,
    /// The counter that `direct_reclaim` is from.
    counter: &'static str,
    reclaim_cpu_ms: u64,
    rounds: u64,
    freed_bytes: u64,
    stood_aside: u64,
    oom_kills: u64,
    failed_ops: u64,
}

/// A side in JSON.
#[derive(Debug, Serialize)]
pub(super) struct SideJson {
    runs: u64,
    bytes: u64,
    wall_ms: u64,
    throughput_bytes_per_s: u64,
    allocation: LatencyJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    hot: Option<LatencyJson>,
    direct_reclaim: u64,
    direct_reclaim_counter: &'static str,
    reclaim_cpu_ms: u64,
    rounds: u64,
    freed_bytes: u64,
    stood_aside: u64,
    oom_kills: u64,
    failed_ops: u64,
}

#[derive(Debug, Serialize)]
struct LatencyJson {
    samples: u64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

impl Side {
    pub(super) fn new() -> Side {
        Side {
            runs: 0,
            allocation: Histogram::new(),
            hot: Histogram::new(),
            bytes: 0,
            load_ms: 0,
            wall_ms: 0,
            direct_reclaim: 0,
            counter: "failcnt",
            reclaim_cpu_ms: 0,
            rounds: 0,
            freed_bytes: 0,
            stood_aside: 0,
            oom_kills: 0,
            failed_ops: 0,
        }
    }

    /// Adds a run: what the load said, and what `run` saw.
    pub(super) fn add(&mut self, kind: Kind, load: &Report, finished: &Finished) {
        let pairs = |pairs: &Option<Vec<(u64, u64)>>| pairs.clone().unwrap_or_default();
        self.runs += 1;
        self.allocation.merge(&pairs(match kind {
            Kind::Stream => &load.alloc_histogram,
            Kind::Growth | Kind::Hot => &load.histogram,
        }));
        self.hot.merge(&pairs(&load.hot_histogram));
        self.bytes += load.bytes;
        self.load_ms += load.wall_ms;
        self.failed_ops += load.errors.total();
        let report = &finished.report;
        self.wall_ms += report.wall_ms;
        (self.direct_reclaim, self.counter) = match report.direct_reclaim {
            DirectReclaim::V1 { failcnt } => (self.direct_reclaim + failcnt, "failcnt"),
            DirectReclaim::V2 { events_high, events_max } => {
                (self.direct_reclaim + events_high + events_max, "events max + high")
            }
        };
        self.reclaim_cpu_ms += report.reclaim.cpu_ms;
        self.rounds += report.reclaim.rounds;
        self.freed_bytes += report.reclaim.freed_bytes;
        self.stood_aside += report.reclaim.stood_aside;
        self.oom_kills += report.oom.kills;
    }

    /// One line about it, for whoever waits.
    pub(super) fn in_short(&self) -> String {
        format!(
            "p99.9 {}, {} direct reclaim{}",
            fmt::duration_ms(percentile_ms(&self.allocation, 99.9)),
            fmt::count(self.direct_reclaim),
            if self.direct_reclaim == 1 { "" } else { "s" }
        )
    }

    pub(super) fn json(&self) -> SideJson {
        SideJson {
            runs: self.runs,
            bytes: self.bytes,
            wall_ms: self.wall_ms,
            throughput_bytes_per_s: self.throughput() as u64,
            allocation: latency(&self.allocation),
            hot: (self.hot.samples() > 0).then(|| latency(&self.hot)),
            direct_reclaim: self.direct_reclaim,
            direct_reclaim_counter: self.counter,
            reclaim_cpu_ms: self.reclaim_cpu_ms,
            rounds: self.rounds,
            freed_bytes: self.freed_bytes,
            stood_aside: self.stood_aside,
            oom_kills: self.oom_kills,
            failed_ops: self.failed_ops,
        }
    }

    /// Bytes a second while the load ran.
    fn throughput(&self) -> f64 {
        self.bytes as f64 / (self.load_ms.max(1) as f64 / 1e3)
    }

    /// Time of the reclaim threads, in percent of one CPU.
    fn cpu_percent(&self) -> f64 {
        100.0 * self.reclaim_cpu_ms as f64 / self.wall_ms.max(1) as f64
    }
}

/// The table of one load.
pub(super) fn compare(kind: Kind, off: &Side, on: &Side) -> Vec<CompareRow> {
    let mut rows = Vec::new();
    let what = kind.allocation();
    let percentiles: [(&str, f64); 4] =
        [("median", 50.0), ("p99", 99.0), ("p99.9", 99.9), ("longest", 100.0)];
    for (name, percent) in percentiles {
        let label = format!("{what}, {name}");
        let of = |side: &Side| percentile_ms(&side.allocation, percent);
        rows.push(latency_row(label, of(off), of(on)));
    }
    if kind == Kind::Hot {
        for (name, percent) in &percentiles[1..3] {
            let label = format!("touch of 64 hot pages, {name}");
            let of = |side: &Side| percentile_ms(&side.hot, *percent);
            rows.push(latency_row(label, of(off), of(on)));
        }
    }
    let done = match kind {
        Kind::Stream => "read",
        Kind::Growth | Kind::Hot => "allocated",
    };
    let throughputs = (off.throughput(), on.throughput());
    rows.push(row(format!("{done}, per second"), throughputs, fmt::bytes_per_second, More));
    let direct = (off.direct_reclaim as f64, on.direct_reclaim as f64);
    let label = format!("direct reclaims ({})", off.counter);
    rows.push(row(label, direct, |n| fmt::count(n as u64), Less));
    rows.push(CompareRow {
        label: "reclaim threads, of one CPU".into(),
        off: "-".into(),
        on: format!("{:.1}%", on.cpu_percent()),
        ratio: None,
        better: None,
    });
    for (label, off, on) in [
        ("operations that failed", off.failed_ops, on.failed_ops),
        ("killed for want of memory", off.oom_kills, on.oom_kills),
    ] {
        if off + on > 0 {
            let counts = (off as f64, on as f64);
            rows.push(row(label.into(), counts, |n| fmt::count(n as u64), Less));
        }
    }
    rows
}

/// What is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    Less,
    More,
}

use Better::{Less, More};

/// Within this of each other, two values are alike.
const ALIKE: f64 = 0.1;

/// So are latencies that differ by less, whatever their ratio: microseconds are not what this is about.
const ALIKE_MS: f64 = 0.05;

fn latency_row(label: String, off: f64, on: f64) -> CompareRow {
    let row = row(label, (off, on), fmt::duration_ms, Less);
    let better = row.better.filter(|_| (on - off).abs() >= ALIKE_MS);
    CompareRow { better, ..row }
}

fn row(
    label: String,
    (off, on): (f64, f64),
    text: fn(f64) -> String,
    better: Better,
) -> CompareRow {
    let alike = (on - off).abs() <= ALIKE * off.max(on);
    CompareRow {
        label,
        off: text(off),
        on: text(on),
        ratio: (off > 0.0).then(|| on / off),
        better: (!alike).then_some((on < off) == (better == Less)),
    }
}

fn latency(histogram: &Histogram) -> LatencyJson {
    LatencyJson {
        samples: histogram.samples(),
        p50_ms: percentile_ms(histogram, 50.0),
        p99_ms: percentile_ms(histogram, 99.0),
        p999_ms: percentile_ms(histogram, 99.9),
        max_ms: percentile_ms(histogram, 100.0),
    }
}

fn percentile_ms(histogram: &Histogram, percent: f64) -> f64 {
    histogram.percentile_ns(percent) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_is_said_of_what_differs_and_of_nothing_else() {
        let verdict = |off, on, better| row(String::new(), (off, on), fmt::duration_ms, better);
        assert_eq!(verdict(10.0, 2.0, Less).better, Some(true));
        assert_eq!(verdict(10.0, 20.0, Less).better, Some(false));
        assert_eq!(verdict(10.0, 20.0, More).better, Some(true));
        assert_eq!(verdict(100.0, 95.0, Less).better, None);
        assert_eq!(verdict(0.0, 0.0, Less).better, None);
        assert_eq!(
            verdict(0.0, 3.0, Less),
            CompareRow { better: Some(false), ratio: None, ..verdict(0.0, 3.0, Less) }
        );
        assert_eq!(verdict(10.0, 2.0, Less).ratio, Some(0.2));
        assert_eq!(latency_row(String::new(), 0.002, 0.04).better, None);
        assert_eq!(latency_row(String::new(), 2.0, 40.0).better, Some(false));
    }
}

//! What a load reports: one object as JSON, or a short table.

use std::fmt;

use cgroupfs::units::Bytes;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::args::Load;
use super::hist::{Histogram, Latency};

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;

/// The result of one `memload` run. Its JSON form is what `memload --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this form: 1.
    pub schema: u32,
    /// The load that ran.
    pub load: Load,
    /// `--size`, of each copy.
    pub size_bytes: u64,
    /// `--chunk`: the bytes of one operation.
    pub chunk_bytes: u64,
    /// `--rate`, of each copy; 0 is as fast as possible.
    pub rate_bytes_per_s: u64,
    /// `--seed`.
    pub seed: u64,
    /// `--procs`: copies of the load, or children at a time of the `fork` load.
    pub procs: u32,
    /// How long the load ran, without start delay and preparation; of copies, the longest.
    pub wall_ms: u64,
    /// Operations that succeeded.
    pub ops: u64,
    /// Bytes that these moved or touched.
    pub bytes: u64,
    /// `bytes` over the time that the load ran; of copies, the sum.
    pub throughput_bytes_per_s: u64,
    /// Latency of the load's operation (each load's documentation says of what).
    pub latency_us: Latency,
    /// Latency of the allocator thread (`--alloc-rate`): mapping and touching 256 KiB.
    pub alloc_latency_us: Option<Latency>,
    /// Latency of touching 64 pages of the hot set, of the `hotcold` load only.
    pub hot_latency_us: Option<Latency>,
    /// Operations that failed, by errno; the allocator thread's are among them.
    pub errors: Errors,
    /// Children that were killed by a signal or ended with a code other than 0: copies of the load
    /// (their numbers are lost), or children of the `fork` load.
    pub children_lost: u64,
    /// Reads that returned less than was asked for and was there.
    pub short_reads: u64,
    /// Every latency as `[value_ns, count]`, with `--histogram`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Vec<(u64, u64)>>,
    /// The same of the allocator thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alloc_histogram: Option<Vec<(u64, u64)>>,
    /// The same of the hot set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_histogram: Option<Vec<(u64, u64)>>,
}

/// Operations that failed, by errno. A failed operation is counted and the load goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// No memory: a memcg charge, a mapping or a fork was refused.
    pub enomem: u64,
    /// A copy to or from user memory failed, as with read() into pages that cannot be charged.
    pub efault: u64,
    /// The file system is full.
    pub enospc: u64,
    /// Try again: fork() at a limit of processes, a pipe without room.
    pub eagain: u64,
    /// Any other.
    pub other: u64,
}

impl Errors {
    /// Counts one failed operation.
    pub fn count(&mut self, errno: Errno) {
        let counter = match errno {
            Errno::ENOMEM => &mut self.enomem,
            Errno::EFAULT => &mut self.efault,
            Errno::ENOSPC => &mut self.enospc,
            Errno::EAGAIN => &mut self.eagain,
            _ => &mut self.other,
        };
        *counter += 1;
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Errors) {
        self.enomem += other.enomem;
        self.efault += other.efault;
        self.enospc += other.enospc;
        self.eagain += other.eagain;
        self.other += other.other;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.enomem + self.efault + self.enospc + self.eagain + self.other
    }
}

impl Report {
    /// Pools reports of copies that ran at the same time: counts, errors and throughput are sums, the
    /// time is the longest, latencies come from the pooled histograms, which each report must carry.
    /// `None` without any report.
    pub fn pool(reports: &[Report]) -> Option<Report> {
        let mut pooled = reports.first()?.clone();
        pooled.histogram = pool_pairs(reports, |report| report.histogram.as_deref());
        pooled.alloc_histogram = pool_pairs(reports, |report| report.alloc_histogram.as_deref());
        pooled.hot_histogram = pool_pairs(reports, |report| report.hot_histogram.as_deref());
        for report in &reports[1..] {
            pooled.wall_ms = pooled.wall_ms.max(report.wall_ms);
            pooled.ops += report.ops;
            pooled.bytes += report.bytes;
            pooled.throughput_bytes_per_s += report.throughput_bytes_per_s;
            pooled.errors.add(&report.errors);
            pooled.children_lost += report.children_lost;
            pooled.short_reads += report.short_reads;
        }
        let summary = |pairs: &Option<Vec<_>>| {
            pairs.as_deref().map(|pairs| Histogram::from_pairs(pairs).summary())
        };
        pooled.latency_us = summary(&pooled.histogram).unwrap_or_default();
        pooled.alloc_latency_us = summary(&pooled.alloc_histogram);
        pooled.hot_latency_us = summary(&pooled.hot_histogram);
        Some(pooled)
    }

    /// Without the histograms, which are long.
    pub fn without_histograms(self) -> Report {
        Report { histogram: None, alloc_histogram: None, hot_histogram: None, ..self }
    }
}

fn pool_pairs(
    reports: &[Report],
    pairs_of: impl Fn(&Report) -> Option<&[(u64, u64)]>,
) -> Option<Vec<(u64, u64)>> {
    let mut pooled: Option<Histogram> = None;
    for pairs in reports.iter().filter_map(pairs_of) {
        pooled.get_or_insert_default().merge(pairs);
    }
    pooled.map(|histogram| histogram.to_pairs())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memload {}: size {}, chunk {}",
            self.load,
            Bytes(self.size_bytes),
            Bytes(self.chunk_bytes)
        )?;
        if self.rate_bytes_per_s > 0 {
            write!(f, ", rate {}/s", Bytes(self.rate_bytes_per_s))?;
        }
        if self.procs > 1 {
            write!(f, ", procs {}", self.procs)?;
        }
        writeln!(f, ", {:.1} s", self.wall_ms as f64 / 1000.0)?;
        writeln!(
            f,
            "done     {} ops, {}, {}/s",
            self.ops,
            Bytes(self.bytes),
            Bytes(self.throughput_bytes_per_s)
        )?;
        let errors = &self.errors;
        let failed = [
            ("ENOMEM", errors.enomem),
            ("EFAULT", errors.efault),
            ("ENOSPC", errors.enospc),
            ("EAGAIN", errors.eagain),
            ("other errors", errors.other),
            ("children lost", self.children_lost),
            ("short reads", self.short_reads),
        ];
        write!(f, "failed  ")?;
        for (name, count) in failed.iter().filter(|(_, count)| *count > 0) {
            write!(f, " {name} {count}")?;
        }
        writeln!(
            f,
            "{}",
            if failed.iter().all(|(_, count)| *count == 0) { " nothing" } else { "" }
        )?;
        writeln!(
            f,
            "{:8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "latency", "samples", "p50", "p90", "p99", "p99.9", "max", "mean"
        )?;
        write_row(f, self.load.name(), &self.latency_us)?;
        if let Some(latency) = &self.hot_latency_us {
            write_row(f, "hot set", latency)?;
        }
        if let Some(latency) = &self.alloc_latency_us {
            write_row(f, "alloc", latency)?;
        }
        Ok(())
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, name: &str, latency: &Latency) -> fmt::Result {
    write!(f, "{name:8} {:>9}", latency.samples)?;
    for us in [latency.p50, latency.p90, latency.p99, latency.p999, latency.max, latency.mean] {
        write!(f, " {:>9}", human_us(us))?;
    }
    writeln!(f)
}

/// Three digits and a unit: `4.21 µs`, `31.0 ms`, `1.20 s`.
fn human_us(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1_000.0 => (us, "µs"),
        us if us < 1_000_000.0 => (us / 1_000.0, "ms"),
        us => (us / 1_000_000.0, "s"),
    };
    let decimals = if value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report(latencies_us: &[u64]) -> Report {
        let mut histogram = Histogram::new();
        for us in latencies_us {
            histogram.record(Duration::from_micros(*us));
        }
        Report {
            schema: SCHEMA,
            load: Load::Anon,
            size_bytes: 64 << 20,
            chunk_bytes: 256 << 10,
            rate_bytes_per_s: 0,
            seed: 1,
            procs: 1,
            wall_ms: 2_000,
            ops: latencies_us.len() as u64,
            bytes: latencies_us.len() as u64 * (256 << 10),
            throughput_bytes_per_s: 1 << 20,
            latency_us: histogram.summary(),
            alloc_latency_us: None,
            hot_latency_us: None,
            errors: Errors { enomem: 2, ..Errors::default() },
            children_lost: 0,
            short_reads: 0,
            histogram: Some(histogram.to_pairs()),
            alloc_histogram: None,
            hot_histogram: None,
        }
    }

    #[test]
    fn json_round_trips_and_leaves_out_histograms_that_were_not_asked_for() {
        let full = report(&[5, 6, 7]);
        let text = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), full);
        let short = full.without_histograms();
        let text = serde_json::to_string(&short).unwrap();
        assert!(!text.contains("histogram"), "{text}");
        assert!(text.contains("\"alloc_latency_us\":null"), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), short);
    }

    #[test]
    fn pooled_reports_sum_and_their_latencies_come_from_all_samples() {
        let pooled = Report::pool(&[report(&[1, 1, 1]), report(&[100, 100, 100, 100])]).unwrap();
        assert_eq!((pooled.ops, pooled.wall_ms), (7, 2_000));
        assert_eq!(pooled.throughput_bytes_per_s, 2 << 20);
        assert_eq!(pooled.errors, Errors { enomem: 4, ..Errors::default() });
        assert_eq!(pooled.latency_us.samples, 7);
        assert!((pooled.latency_us.p50 - 100.0).abs() < 0.2, "{:?}", pooled.latency_us);
        assert_eq!(pooled.alloc_latency_us, None);
        assert_eq!(Report::pool(&[]), None);
    }

    #[test]
    fn errors_are_counted_by_errno() {
        let mut errors = Errors::default();
        for errno in [Errno::ENOMEM, Errno::EFAULT, Errno::ENOSPC, Errno::EAGAIN, Errno::EIO] {
            errors.count(errno);
        }
        let one_each = Errors { enomem: 1, efault: 1, enospc: 1, eagain: 1, other: 1 };
        assert_eq!(errors, one_each);
        assert_eq!(errors.total(), 5);
    }

    #[test]
    fn times_have_three_digits() {
        for (us, text) in [
            (0.0, "0.00 µs"),
            (4.214, "4.21 µs"),
            (123.4, "123 µs"),
            (31_012.0, "31.0 ms"),
            (1_200_000.0, "1.20 s"),
        ] {
            assert_eq!(human_us(us), text);
        }
    }

    #[test]
    fn the_table_says_what_failed() {
        let table = report(&[5]).to_string();
        assert!(table.contains("failed   ENOMEM 2\n"), "{table}");
        let fine = Report { errors: Errors::default(), ..report(&[5]) }.to_string();
        assert!(fine.contains("failed   nothing\n"), "{fine}");
    }
}

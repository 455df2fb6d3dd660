//! Latency histograms: recording without allocating, pooling across processes and runs.

use std::hint::black_box;
use std::time::Duration;

use hdrhistogram::Histogram as Hdr;
use serde::{Deserialize, Serialize};

/// The longest latency told apart from longer ones: an hour. Anything above counts as this.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Three significant digits: a value is reported at most 0.1 % above what was measured.
const DIGITS: u8 = 3;

/// A histogram of durations in nanoseconds, three significant digits, from 1 ns to one hour.
///
/// All of its memory (about 300 KiB) is allocated and touched by [`Histogram::new`], so that
/// [`Histogram::record`] never allocates nor faults: it may be called from a measured loop.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Hdr<u64>,
}

/// What a report shows of a histogram. Times are microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many durations were recorded; all the rest is 0 where none was.
    pub samples: u64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Histogram {
    /// An empty histogram, its memory touched.
    pub fn new() -> Histogram {
        let counts = Hdr::new_with_bounds(1, LONGEST_NS, DIGITS)
            .unwrap_or_else(|error| unreachable!("the bounds are constants and valid: {error}"));
        // Writes a zero to every counter, which makes the kernel give each page now. The compiler
        // must not know that they are zero already, or it leaves the writing out.
        let mut counts = black_box(counts);
        counts.reset();
        Histogram { counts }
    }

    /// Pools histograms that were written out with [`Histogram::to_pairs`].
    pub fn from_pairs(pairs: &[(u64, u64)]) -> Histogram {
        let mut histogram = Histogram::new();
        histogram.merge(pairs);
        histogram
    }

    /// Counts one duration.
    pub fn record(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts.saturating_record(ns.clamp(1, LONGEST_NS));
    }

    /// Adds what another histogram counted, given as `(value_ns, count)` pairs.
    pub fn merge(&mut self, pairs: &[(u64, u64)]) {
        for &(value_ns, count) in pairs {
            self.counts.saturating_record_n(value_ns.clamp(1, LONGEST_NS), count);
        }
    }

    /// Every value that was recorded with its count, as `(value_ns, count)`, rising. A value stands
    /// for the durations that three digits do not tell apart from it.
    pub fn to_pairs(&self) -> Vec<(u64, u64)> {
        self.counts
            .iter_recorded()
            .map(|point| (point.value_iterated_to(), point.count_at_value()))
            .collect()
    }

    /// How many durations were recorded.
    pub fn samples(&self) -> u64 {
        self.counts.len()
    }

    /// The duration, in nanoseconds, that `percent` of the samples do not exceed; 0 without samples.
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        if self.counts.is_empty() { 0 } else { self.counts.value_at_quantile(percent / 100.0) }
    }

    /// The summary that goes into a report.
    pub fn summary(&self) -> Latency {
        if self.counts.is_empty() {
            return Latency::default();
        }
        let us = |ns: u64| ns as f64 / 1000.0;
        Latency {
            samples: self.samples(),
            p50: us(self.percentile_ns(50.0)),
            p90: us(self.percentile_ns(90.0)),
            p99: us(self.percentile_ns(99.0)),
            p999: us(self.percentile_ns(99.9)),
            max: us(self.counts.max()),
            mean: us(self.counts.mean().round() as u64),
        }
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values_ns: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        for ns in values_ns {
            histogram.record(Duration::from_nanos(ns));
        }
        histogram
    }

    #[test]
    fn pooling_two_equals_recording_all_in_one() {
        let mut pooled = of((1..5_000).map(|n| n * 997));
        pooled.merge(&of((1..3_000).map(|n| n * 1_013_131)).to_pairs());
        let all = of((1..5_000).map(|n| n * 997).chain((1..3_000).map(|n| n * 1_013_131)));
        assert_eq!(pooled.to_pairs(), all.to_pairs());
        assert_eq!(pooled.samples(), 7_998);
        for percent in [1.0, 50.0, 99.0, 99.9, 100.0] {
            assert_eq!(pooled.percentile_ns(percent), all.percentile_ns(percent));
        }
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let summary = of((1..=100_000).map(|us| us * 1_000)).summary();
        assert_eq!(summary.samples, 100_000);
        for (got, want) in [
            (summary.p50, 50_000.0),
            (summary.p90, 90_000.0),
            (summary.p99, 99_000.0),
            (summary.p999, 99_900.0),
            (summary.max, 100_000.0),
            (summary.mean, 50_000.0),
        ] {
            assert!((got - want).abs() <= want / 1_000.0, "{got} for {want}");
        }
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let empty = Histogram::new();
        assert_eq!(empty.summary(), Latency::default());
        assert_eq!(empty.percentile_ns(99.0), 0);
        assert!(empty.to_pairs().is_empty());
    }

    #[test]
    fn what_is_out_of_range_is_counted_at_the_end() {
        let mut histogram = of([0]);
        histogram.record(Duration::from_secs(100_000));
        histogram.merge(&[(0, 1), (u64::MAX, 1)]);
        assert_eq!(histogram.samples(), 4);
        assert!(histogram.percentile_ns(100.0) >= LONGEST_NS);
    }
}

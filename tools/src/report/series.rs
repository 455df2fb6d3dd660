//! A timeline made fit to draw: ordered, finite, thinned without losing a peak, and turned from
//! cumulative counters into rates. What the picture and the terminal chart have in common.

use super::{Mark, Round, Sample, Timeline};

/// Times further out than this (30,000 years) are taken for it, so that no sum of two overflows.
const FAR_MS: f64 = 1e15;

/// A timeline with its times in order and no number that cannot be drawn.
pub(super) struct Series<'a> {
    pub(super) timeline: &'a Timeline,
    pub(super) samples: Vec<Sample>,
    pub(super) rounds: Vec<Round>,
    pub(super) marks: Vec<&'a Mark>,
    pub(super) wall_ms: f64,
}

/// The stretch of time on the x axis, in milliseconds; never empty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) start: f64,
    pub(super) end: f64,
}

/// Rates over a span, one value per bin of equal width.
pub(super) struct Rates {
    /// Background reclaim, bytes per second.
    pub(super) background: Vec<f64>,
    /// Direct reclaim, events per second.
    pub(super) direct: Vec<f64>,
    /// Bins in which a futile round ended.
    pub(super) futile: Vec<bool>,
}

/// A horizontal line: what it marks, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) kind: LevelKind,
    pub(super) bytes: u64,
}

/// What a horizontal line marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LevelKind {
    Limit,
    High,
    WmarkHigh,
    WmarkLow,
}

impl LevelKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            LevelKind::Limit => "limit",
            LevelKind::High => "high",
            LevelKind::WmarkHigh => "wmark_high",
            LevelKind::WmarkLow => "wmark_low",
        }
    }
}

impl<'a> Series<'a> {
    pub(super) fn of(timeline: &'a Timeline) -> Series<'a> {
        let mut samples: Vec<Sample> = timeline
            .samples
            .iter()
            .filter(|s| s.t_ms.is_finite())
            .map(|&s| Sample {
                t_ms: near(s.t_ms),
                throttled_ms: if s.throttled_ms.is_finite() { near(s.throttled_ms) } else { 0.0 },
                ..s
            })
            .collect();
        samples.sort_by(|a, b| a.t_ms.total_cmp(&b.t_ms));

        let mut rounds: Vec<Round> = timeline
            .rounds
            .iter()
            .filter(|r| r.start_ms.is_finite() && r.end_ms.is_finite())
            .map(|&r| {
                let (a, b) = (near(r.start_ms), near(r.end_ms));
                Round { start_ms: a.min(b), end_ms: a.max(b), ..r }
            })
            .collect();
        rounds.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));

        let mut marks: Vec<&Mark> = timeline.marks.iter().filter(|m| m.t_ms.is_finite()).collect();
        marks.sort_by(|a, b| a.t_ms.total_cmp(&b.t_ms));

        let wall_ms =
            if timeline.wall_ms.is_finite() { near(timeline.wall_ms).max(0.0) } else { 0.0 };
        Series { timeline, samples, rounds, marks, wall_ms }
    }

    /// When it was throttled: a pulse is counted when it is over.
    pub(super) fn frozen(&self) -> impl Iterator<Item = (f64, f64)> {
        self.samples.windows(2).filter_map(|pair| {
            let time = pair[1].throttled_ms - pair[0].throttled_ms;
            (time > 0.0).then(|| (pair[1].t_ms - time, pair[1].t_ms))
        })
    }

    /// The horizontal lines, from the most important down: of two in one place, the first wins.
    pub(super) fn levels(&self) -> Vec<Level> {
        let t = self.timeline;
        [
            (LevelKind::Limit, t.limit_bytes),
            (LevelKind::High, t.high_bytes),
            (LevelKind::WmarkHigh, t.wmark_high_bytes),
            (LevelKind::WmarkLow, t.wmark_low_bytes),
        ]
        .into_iter()
        .filter_map(|(kind, bytes)| bytes.map(|bytes| Level { kind, bytes }))
        .collect()
    }

    pub(super) fn has_swap(&self) -> bool {
        self.samples.iter().any(|s| s.swap_bytes.is_some_and(|b| b > 0))
    }

    /// The usage samples that show the same picture, at most `most` of them.
    pub(super) fn usage(&self, span: Span, most: usize) -> Vec<(f64, f64)> {
        let points = self.samples.iter().map(|s| (s.t_ms, s.usage_bytes as f64)).collect();
        thinned(points, span, most)
    }

    /// The same for swap; samples without it are left out.
    pub(super) fn swap(&self, span: Span, most: usize) -> Vec<(f64, f64)> {
        let points =
            self.samples.iter().filter_map(|s| Some((s.t_ms, s.swap_bytes? as f64))).collect();
        thinned(points, span, most)
    }

    /// What happened per second, in `bins` equal stretches of `span`. A round's bytes, and a
    /// counter's rise between two samples, are spread evenly over the time they took.
    pub(super) fn rates(&self, span: Span, bins: usize) -> Rates {
        let mut rates = Rates {
            background: vec![0.0; bins],
            direct: vec![0.0; bins],
            futile: vec![false; bins],
        };
        for round in &self.rounds {
            let (a, b) = (span.bin(round.start_ms, bins), span.bin(round.end_ms, bins));
            spread(&mut rates.background, a, b, round.freed_bytes as f64);
            if let (true, Some(bin)) = (round.futile, rates.futile.get_mut(b as usize)) {
                *bin = true;
            }
        }
        for pair in self.samples.windows(2) {
            let rise = pair[1].direct_reclaim.saturating_sub(pair[0].direct_reclaim);
            if rise > 0 {
                let (a, b) = (span.bin(pair[0].t_ms, bins), span.bin(pair[1].t_ms, bins));
                spread(&mut rates.direct, a, b, rise as f64);
            }
        }
        let seconds = span.length() / bins as f64 / 1e3;
        for value in rates.background.iter_mut().chain(&mut rates.direct) {
            *value /= seconds;
        }
        rates
    }
}

impl Span {
    /// The time that all of these take, together. It begins at 0, but for a window cut from a
    /// longer history, which begins where it begins.
    pub(super) fn of(all: &[&Series<'_>]) -> Span {
        let times = || {
            all.iter().flat_map(|s| {
                let samples = s.samples.iter().map(|s| s.t_ms);
                let rounds = s.rounds.iter().flat_map(|r| [r.start_ms, r.end_ms]);
                samples.chain(rounds).chain(s.marks.iter().map(|m| near(m.t_ms)))
            })
        };
        let first = times().reduce(f64::min).unwrap_or(0.0);
        let last = times().reduce(f64::max).unwrap_or(0.0);
        let wall = all.iter().map(|s| s.wall_ms).fold(0.0, f64::max);
        let start = if first >= 0.0 && first <= 0.05 * last.max(wall) { 0.0 } else { first };
        let end = last.max(start + wall);
        // One sample, or none: a second of nothing reads better than an axis of no length.
        if end - start > (start.abs().max(end.abs()) * 1e-9).max(1e-6) {
            Span { start, end }
        } else {
            Span { start, end: start + (start.abs() * 1e-6).max(1e3) }
        }
    }

    pub(super) fn length(self) -> f64 {
        self.end - self.start
    }

    /// Where a time falls among `bins`, as a fraction: 2.5 is the middle of the third.
    fn bin(self, t: f64, bins: usize) -> f64 {
        ((t - self.start) / self.length()).clamp(0.0, 1.0) * bins as f64
    }
}

/// What the usage axis has to reach, in bytes: all usage and swap, and the horizontal lines, but
/// for lines so far up that the usage would lie flat on the floor.
pub(super) fn top_bytes(all: &[&Series<'_>]) -> f64 {
    let samples = || all.iter().flat_map(|s| &s.samples);
    let data = samples().map(|s| s.usage_bytes.max(s.swap_bytes.unwrap_or(0))).max().unwrap_or(0);
    let levels = all.iter().flat_map(|s| s.levels()).map(|l| l.bytes);
    let near = levels.filter(|&bytes| data == 0 || bytes <= data.saturating_mul(4)).max();
    let top = data.max(near.unwrap_or(0));
    if top == 0 { f64::from(1 << 20) } else { top as f64 }
}

/// At most `most` of the points (ordered by time), with the first, the last, and of every stretch
/// of time between them the lowest and the highest: a peak is never lost.
fn thinned(points: Vec<(f64, f64)>, span: Span, most: usize) -> Vec<(f64, f64)> {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return points };
    if points.len() <= most {
        return points;
    }
    let buckets = (most.saturating_sub(2) / 2).max(1);
    let bucket_of = |t: f64| (span.bin(t, buckets) as usize).min(buckets - 1);
    let mut out = vec![first];
    let mut rest = &points[1..points.len() - 1];
    while let Some(&(t, _)) = rest.first() {
        let bucket = bucket_of(t);
        let length = rest.partition_point(|p| bucket_of(p.0) <= bucket);
        let (these, later) = rest.split_at(length);
        rest = later;
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = these.iter().min_by(by_value).copied();
        let high = these.iter().max_by(by_value).copied();
        if let (Some(low), Some(high)) = (low, high) {
            out.extend(if low.0 <= high.0 { [low, high] } else { [high, low] });
        }
    }
    out.push(last);
    out
}

/// Adds `amount` to the bins from `a` to `b` (fractions of a bin count), each getting its share.
fn spread(bins: &mut [f64], a: f64, b: f64, amount: f64) {
    let Some(last) = bins.len().checked_sub(1) else { return };
    let (from, to) = ((a as usize).min(last), (b as usize).min(last));
    if from == to || b <= a {
        bins[from] += amount;
        return;
    }
    for (i, bin) in bins.iter_mut().enumerate().take(to + 1).skip(from) {
        let share = (b.min(i as f64 + 1.0) - a.max(i as f64)).max(0.0);
        *bin += amount * share / (b - a);
    }
}

fn near(ms: f64) -> f64 {
    ms.clamp(-FAR_MS, FAR_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(t_ms: f64, usage_bytes: u64, direct_reclaim: u64) -> Sample {
        Sample { t_ms, usage_bytes, direct_reclaim, ..Sample::default() }
    }

    #[test]
    fn thinning_keeps_the_one_peak_and_the_one_dip_of_a_hundred_thousand_samples() {
        let mut samples: Vec<Sample> = (0..100_000).map(|i| sample(f64::from(i), 500, 0)).collect();
        samples[31_337].usage_bytes = 900;
        samples[77_777].usage_bytes = 10;
        let timeline = Timeline { samples, ..Timeline::default() };
        let series = Series::of(&timeline);
        let points = series.usage(Span::of(&[&series]), 2000);
        assert!(points.len() <= 2000, "{}", points.len());
        assert!(points.contains(&(31_337.0, 900.0)));
        assert!(points.contains(&(77_777.0, 10.0)));
        assert_eq!(points.first(), Some(&(0.0, 500.0)));
        assert_eq!(points.last(), Some(&(99_999.0, 500.0)));
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn rates_add_up_to_what_was_freed_and_counted() {
        let timeline = Timeline {
            samples: vec![sample(1000.0, 0, 30), sample(0.0, 0, 0), sample(2000.0, 0, 5)],
            rounds: vec![
                Round { start_ms: 500.0, end_ms: 1500.0, freed_bytes: 1000, futile: false },
                Round { start_ms: 1999.0, end_ms: 2000.0, freed_bytes: 7, futile: true },
            ],
            wall_ms: 2000.0,
            ..Timeline::default()
        };
        let series = Series::of(&timeline);
        let rates = series.rates(Span::of(&[&series]), 8);
        let total = |rates: &[f64]| rates.iter().sum::<f64>() * 0.25;
        assert!((total(&rates.background) - 1007.0).abs() < 1e-6, "{:?}", rates.background);
        // The counter fell from 30 to 5: a cgroup made anew, not minus 25 events.
        assert!((total(&rates.direct) - 30.0).abs() < 1e-6, "{:?}", rates.direct);
        assert_eq!(rates.background[4], 1000.0);
    }

    #[test]
    fn a_span_is_never_empty_and_a_late_window_keeps_its_beginning() {
        let span = |times: &[f64], wall_ms| {
            let samples = times.iter().map(|&t| sample(t, 1, 0)).collect();
            let timeline = Timeline { samples, wall_ms, ..Timeline::default() };
            Span::of(&[&Series::of(&timeline)])
        };
        assert_eq!(span(&[], 0.0), Span { start: 0.0, end: 1000.0 });
        assert_eq!(span(&[50.0, 19_000.0], 20_000.0), Span { start: 0.0, end: 20_000.0 });
        assert_eq!(span(&[1e6, 1.06e6], 0.0), Span { start: 1e6, end: 1.06e6 });
        assert!(span(&[f64::MAX, f64::MIN], f64::MAX).length().is_finite());
        assert!(span(&[1e15], 0.0).length() > 0.0);
    }

    #[test]
    fn a_limit_far_above_the_usage_does_not_flatten_it() {
        let top = |limit| {
            let samples = vec![sample(0.0, 1 << 20, 0)];
            let timeline = Timeline { samples, limit_bytes: Some(limit), ..Timeline::default() };
            top_bytes(&[&Series::of(&timeline)])
        };
        assert_eq!(top(2 << 20), f64::from(2 << 20));
        assert_eq!(top(u64::MAX), f64::from(1 << 20));
    }
}

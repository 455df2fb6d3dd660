//! What happened, in words: the run in a few phrases, a mark in a line.

use super::series::Series;
use super::{Mark, MarkKind, fmt, text};

/// The run in a few phrases, the most telling first.
pub(super) fn summary(series: &Series<'_>) -> Vec<String> {
    let pairs = || series.samples.windows(2).map(|pair| (pair[0], pair[1]));
    let mut phrases = Vec::new();
    if let Some(peak) = series.samples.iter().map(|s| s.usage_bytes).max() {
        phrases.push(format!("peak {}", fmt::bytes_short(peak)));
        let rise = total(pairs().map(|(a, b)| b.direct_reclaim.saturating_sub(a.direct_reclaim)));
        phrases.push(counted(rise, "direct reclaim"));
    }
    if !series.rounds.is_empty() {
        let freed = total(series.rounds.iter().map(|r| r.freed_bytes));
        let rounds = counted(series.rounds.len() as u64, "background round");
        let futile = match series.rounds.iter().filter(|r| r.futile).count() {
            0 => String::new(),
            n => format!(" ({} futile)", fmt::count(n as u64)),
        };
        phrases.push(format!("{} freed in {rounds}{futile}", fmt::bytes_short(freed)));
    }
    let throttled: f64 = pairs().map(|(a, b)| (b.throttled_ms - a.throttled_ms).max(0.0)).sum();
    if throttled > 0.0 {
        phrases.push(format!("throttled {}", fmt::duration_ms(throttled)));
    }
    let ooms = series.marks.iter().filter(|m| m.kind == MarkKind::Oom).count();
    if ooms > 0 {
        phrases.push(counted(ooms as u64, "OOM event"));
    }
    let swap = series.samples.iter().filter_map(|s| s.swap_bytes).max();
    if let Some(peak) = swap.filter(|&bytes| bytes > 0) {
        phrases.push(format!("swap peak {}", fmt::bytes_short(peak)));
    }
    if series.wall_ms > 0.0 {
        phrases.push(format!("took {}", fmt::duration_ms(series.wall_ms)));
    }
    phrases
}

/// A mark's label, or its kind's name where it has none.
pub(super) fn label(mark: &Mark) -> String {
    let label = text::printable(&mark.label, 200);
    if label.trim().is_empty() { mark.kind.name().to_owned() } else { label }
}

/// When, and what, for marks that share a place: `12.30 s · OOM: memload killed, and 3 more until
/// 12.90 s`.
pub(super) fn moment(marks: &[&Mark]) -> String {
    let (Some(first), Some(last)) = (marks.first(), marks.last()) else { return String::new() };
    let (label, kind) = (label(first), first.kind.name());
    let says_so = label.to_lowercase().contains(&kind.to_lowercase());
    let what = match first.kind {
        MarkKind::Other => label,
        _ if says_so => label,
        _ => format!("{kind}: {label}"),
    };
    let more = match marks.len() - 1 {
        0 => String::new(),
        more => format!(", and {} more until {}", fmt::count(more as u64), time(last.t_ms)),
    };
    format!("{} · {what}{more}", time(first.t_ms))
}

/// A moment, to a hundredth of a second where that says enough.
fn time(ms: f64) -> String {
    if ms != 0.0 && ms.abs() < 100.0 {
        fmt::duration_ms(ms)
    } else {
        format!("{:.2} s", ms.clamp(-1e15, 1e15) / 1e3)
    }
}

fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", fmt::count(n), if n == 1 { "" } else { "s" })
}

fn total(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Round, Sample, Timeline};

    #[test]
    fn the_summary_counts_rises_only_and_names_what_there_was() {
        let sample = |t_ms, direct_reclaim, throttled_ms| Sample {
            t_ms,
            usage_bytes: 3 << 20,
            direct_reclaim,
            throttled_ms,
            ..Sample::default()
        };
        let timeline = Timeline {
            samples: vec![sample(0.0, 0, 0.0), sample(2.0, 5, 0.0), sample(1.0, 30, 1200.0)],
            rounds: vec![Round { futile: true, freed_bytes: u64::MAX, ..Round::default() }; 2],
            wall_ms: 2.0,
            ..Timeline::default()
        };
        assert_eq!(
            summary(&Series::of(&timeline)),
            [
                "peak 3 MiB",
                "30 direct reclaims",
                "16 EiB freed in 2 background rounds (2 futile)",
                "throttled 1.2 s",
                "took 2.0 ms"
            ]
        );
        assert!(summary(&Series::of(&Timeline::default())).is_empty());
    }

    #[test]
    fn a_moment_names_its_kind_once() {
        let mark = |kind, label: &str| Mark { t_ms: 12_300.0, kind, label: label.to_owned() };
        let oom = mark(MarkKind::Oom, "memload killed");
        assert_eq!(moment(&[&oom]), "12.30 s · OOM: memload killed");
        assert_eq!(moment(&[&mark(MarkKind::Oom, "own oom")]), "12.30 s · own oom");
        assert_eq!(moment(&[&mark(MarkKind::StandAside, "")]), "12.30 s · stood aside");
        assert_eq!(
            moment(&[&oom, &oom]),
            "12.30 s · OOM: memload killed, and 1 more until 12.30 s"
        );
    }
}

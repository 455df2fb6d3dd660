//! Axes with ticks where a person would put them: sizes at powers of two, counts and times at 1, 2
//! and 5.

use super::fmt;

/// No axis reaches further: far past what can happen, far short of where floats misbehave.
const MOST: f64 = 1e24;

/// One axis: a range, and the ticks inside it.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) lo: f64,
    pub(super) hi: f64,
    pub(super) ticks: Vec<Tick>,
    /// The unit of the labels where they do not carry it themselves.
    pub(super) unit: &'static str,
}

/// A place on an axis, and what to write there.
#[derive(Debug, Clone)]
pub(super) struct Tick {
    pub(super) at: f64,
    pub(super) label: String,
}

impl Axis {
    /// Milliseconds from `lo` to `hi`, labelled in ms, s, min or h, with `most` steps or fewer.
    pub(super) fn time(lo: f64, hi: f64, most: usize) -> Axis {
        let (scale, unit) = match hi - lo {
            span if span < 100.0 => (1.0, "ms"),
            span if span < 20.0 * 60e3 => (1e3, "s"),
            span if span < 10.0 * 3600e3 => (60e3, "min"),
            _ => (3600e3, "h"),
        };
        let step = nice_decimal((hi - lo) / scale / most.max(1) as f64);
        let decimals = decimals_of(step);
        let ticks = ticks(lo, hi, step * scale, |at| format!("{:.decimals$}", at / scale));
        Axis { lo, hi, ticks, unit }
    }

    /// Bytes from 0 to `hi`, each tick with its unit, with `most` steps or fewer.
    pub(super) fn sizes(hi: f64, most: usize) -> Axis {
        let hi = hi.clamp(1.0, MOST);
        let step = 2f64.powf((hi / most.max(1) as f64).max(1.0).log2().ceil());
        let ticks = ticks(0.0, hi, step, |at| size_label(at, step));
        Axis { lo: 0.0, hi, ticks, unit: "" }
    }

    /// Bytes per second from 0 to `hi`.
    pub(super) fn byte_rates(hi: f64, most: usize) -> Axis {
        let mut axis = Axis::sizes(hi, most);
        for tick in axis.ticks.iter_mut().skip(1) {
            tick.label.push_str("/s");
        }
        axis
    }

    /// Events per second from 0 to `hi`.
    pub(super) fn event_rates(hi: f64, most: usize) -> Axis {
        let hi = hi.clamp(1.0, MOST);
        let step = nice_decimal(hi / most.max(1) as f64);
        let ticks = ticks(0.0, hi, step, |at| match at {
            0.0 => "0".to_owned(),
            _ => format!("{}/s", fmt::count_short(at)),
        });
        Axis { lo: 0.0, hi, ticks, unit: "" }
    }

    /// Where `value` lies: 0 at the low end, 1 at the high end, never outside.
    pub(super) fn fraction(&self, value: f64) -> f64 {
        let f = (value - self.lo) / (self.hi - self.lo);
        if f.is_finite() { f.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// Every multiple of `step` in the range; counted, not summed, so that it ends whatever the numbers.
fn ticks(lo: f64, hi: f64, step: f64, label: impl Fn(f64) -> String) -> Vec<Tick> {
    let first = (lo / step - 1e-9).ceil();
    let number = ((hi / step + 1e-9).floor() - first).clamp(0.0, 60.0);
    (0..=number as u32)
        .map(|i| (first + f64::from(i)) * step)
        // Adding zero turns -0.0 into 0.0.
        .map(|at| Tick { at: at + 0.0, label: label(at + 0.0) })
        .collect()
}

/// The smallest of 1, 2 and 5 times a power of ten that is no smaller than `raw`.
fn nice_decimal(raw: f64) -> f64 {
    let raw = if raw.is_finite() { raw.max(1e-9) } else { 1.0 };
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// Digits after the point that tell multiples of `step` apart.
fn decimals_of(step: f64) -> usize {
    (-(step.log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize
}

/// A multiple of `step` (a power of two) in the unit that fits the step, or in the next where that
/// is reached: 512 MiB, 768 MiB, 1 GiB. Half a unit counts as the larger one: 0.5 GiB, 1.0 GiB.
fn size_label(at: f64, step: f64) -> String {
    const UNITS: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];
    if at == 0.0 {
        return "0".to_owned();
    }
    let power = step.log2().round().max(0.0) as usize;
    let unit = (power + 1) / 10;
    let value = at / 1024f64.powi(unit as i32);
    let (value, unit) = if value >= 1024.0 { (value / 1024.0, unit + 1) } else { (value, unit) };
    let Some(name) = UNITS.get(unit) else { return format!("{at:.0e} B") };
    let digits = usize::from(power % 10 == 9);
    // Multiples of a power of two: what a hundredth does not show, no such axis has.
    let digits =
        if (value * 10.0).fract() > 0.0 { 2 } else { digits.max(usize::from(value.fract() > 0.0)) };
    format!("{value:.digits$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|t| t.label.as_str()).collect()
    }

    #[test]
    fn sizes_tick_at_powers_of_two_in_one_unit() {
        let mib = f64::from(1 << 20);
        let axis = Axis::sizes(271.0 * mib, 5);
        assert_eq!(labels(&axis), ["0", "64 MiB", "128 MiB", "192 MiB", "256 MiB"]);
        let axis = Axis::sizes(2200.0 * mib, 5);
        assert_eq!(labels(&axis), ["0", "0.5 GiB", "1.0 GiB", "1.5 GiB", "2.0 GiB"]);
        let axis = Axis::sizes(1300.0 * mib, 5);
        assert_eq!(labels(&axis), ["0", "0.5 GiB", "1.0 GiB"]);
        let axis = Axis::sizes(1280.0 * mib, 5);
        assert_eq!(labels(&axis), ["0", "256 MiB", "512 MiB", "768 MiB", "1 GiB", "1.25 GiB"]);
        assert_eq!(labels(&Axis::sizes(0.0, 5)), ["0", "1 B"]);
    }

    #[test]
    fn times_tick_at_one_two_and_five() {
        let axis = Axis::time(0.0, 20_000.0, 10);
        assert_eq!(axis.unit, "s");
        assert_eq!(labels(&axis), ["0", "2", "4", "6", "8", "10", "12", "14", "16", "18", "20"]);
        let axis = Axis::time(0.0, 1_000.0, 5);
        assert_eq!(labels(&axis), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        let axis = Axis::time(3_600_000.0, 3_660_000.0, 3);
        assert_eq!(labels(&axis), ["3600", "3620", "3640", "3660"]);
    }

    #[test]
    fn an_axis_of_any_numbers_has_few_ticks_and_maps_into_itself() {
        for (lo, hi) in [(0.0, 1e15), (-1e15, 1e15), (1e15, 1e15 + 1.0), (0.0, 1e-6), (5.0, 5.0)] {
            let axis = Axis::time(lo, hi, 8);
            assert!(axis.ticks.len() <= 61, "{lo} {hi}: {}", axis.ticks.len());
            assert!((0.0..=1.0).contains(&axis.fraction(f64::MAX)));
        }
        for hi in [0.0, 1.0, u64::MAX as f64, 1e30, f64::MAX] {
            assert!(Axis::sizes(hi, 5).ticks.len() <= 61);
            assert!(Axis::event_rates(hi, 3).ticks.len() <= 61);
        }
    }
}

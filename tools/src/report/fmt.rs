//! Numbers as a person reads them: one unit, few digits, never a surprise at a boundary.

const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Bytes in the largest unit (of 1024) that keeps the number at 1 or more: `256.0 MiB`, `512 B`.
pub fn bytes(n: u64) -> String {
    byte_amount(n as f64, 1)
}

/// [`bytes`] without a `.0`, for labels where space is short: `256 MiB`, `1.5 GiB`.
pub fn bytes_short(n: u64) -> String {
    without_zero_fraction(&bytes(n))
}

/// A rate in bytes per second: `12.5 MiB/s`, `166 MiB/s`.
pub fn bytes_per_second(rate: f64) -> String {
    let short = byte_amount(rate, 1);
    let text = if short.find('.') >= Some(3) { byte_amount(rate, 0) } else { short };
    format!("{}/s", without_zero_fraction(&text))
}

/// Milliseconds with two or three digits that count: `0.16 ms`, `31 ms`, `1.2 s`, `3 min 05 s`.
/// What is not a number is a `-`.
pub fn duration_ms(ms: f64) -> String {
    if !ms.is_finite() {
        return "-".to_owned();
    }
    let sign = if ms < 0.0 { "-" } else { "" };
    let ms = ms.abs();
    // Each bound is where the shorter form would round up to the next unit's 1.
    let text = match ms {
        0.0 => "0 ms".to_owned(),
        _ if ms < 0.0005 => "<0.001 ms".to_owned(),
        _ if ms < 0.00995 => format!("{ms:.3} ms"),
        _ if ms < 0.995 => format!("{ms:.2} ms"),
        _ if ms < 9.95 => format!("{ms:.1} ms"),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        _ if ms < 99_950.0 => format!("{:.1} s", ms / 1e3),
        _ if ms < 7_199_500.0 => {
            let seconds = (ms / 1e3).round();
            format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
        }
        _ => {
            let minutes = (ms / 60e3).round();
            format!("{:.0} h {:02.0} min", (minutes / 60.0).floor(), minutes % 60.0)
        }
    };
    format!("{sign}{text}")
}

/// A ratio: `0.19x`, `12.3x`, `0.0036x`. What is not a number is a `-`.
pub fn ratio(r: f64) -> String {
    if !r.is_finite() {
        return "-".to_owned();
    }
    let size = r.abs();
    match size {
        0.0 => "0x".to_owned(),
        _ if size < 0.00005 => "<0.0001x".to_owned(),
        _ if size < 0.00995 => format!("{r:.4}x"),
        _ if size < 9.995 => format!("{r:.2}x"),
        _ if size < 99.95 => format!("{r:.1}x"),
        _ => format!("{r:.0}x"),
    }
}

/// A count with its thousands set apart: `166,908`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count or a rate of events in three digits or so: `0.5`, `8`, `12.3k`, `1.5M`.
pub fn count_short(n: f64) -> String {
    if !n.is_finite() {
        return "-".to_owned();
    }
    let (mut value, mut unit) = (n, 0);
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    while value.abs() >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value.abs() {
        0.0 => 0,
        v if v < 0.0995 => 3,
        v if v < 0.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let number = format!("{value:.digits$}");
    let number =
        if digits > 0 { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number}{}", UNITS[unit])
}

/// `amount` bytes with `digits` after the point; whole bytes have none.
fn byte_amount(amount: f64, digits: usize) -> String {
    let (mut value, mut unit) = (if amount.is_finite() { amount } else { 0.0 }, 0);
    // 1023.95 would print as 1024.0: that is 1.0 of the next unit.
    let bound = 1024.0 - 0.5 * 0.1f64.powi(digits as i32);
    while value.abs() >= if unit == 0 { 1023.5 } else { bound } && unit + 1 < BYTE_UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { digits };
    format!("{value:.digits$} {}", BYTE_UNITS[unit])
}

fn without_zero_fraction(text: &str) -> String {
    text.replacen(".0 ", " ", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_unit_that_keeps_them_at_one_or_more() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (256 << 20, "256.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes_short(256 << 20), "256 MiB");
        assert_eq!(bytes_short(3 << 29), "1.5 GiB");
        assert_eq!(bytes_per_second(12.5 * 1048576.0), "12.5 MiB/s");
        assert_eq!(bytes_per_second(165.7 * 1048576.0), "166 MiB/s");
        assert_eq!(bytes_per_second(1023.96 * 1048576.0), "1 GiB/s");
    }

    #[test]
    fn durations_never_show_a_thousand_of_the_smaller_unit() {
        for (ms, text) in [
            (0.0, "0 ms"),
            (0.0001, "<0.001 ms"),
            (0.004, "0.004 ms"),
            (0.16, "0.16 ms"),
            (0.999, "1.0 ms"),
            (3.12, "3.1 ms"),
            (31.0, "31 ms"),
            (999.4, "999 ms"),
            (999.9, "1.0 s"),
            (1234.0, "1.2 s"),
            (99_990.0, "1 min 40 s"),
            (185_000.0, "3 min 05 s"),
            (7_199_900.0, "2 h 00 min"),
            (-0.16, "-0.16 ms"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(duration_ms(ms), text, "{ms}");
        }
    }

    #[test]
    fn ratios_and_counts_keep_the_digits_that_count() {
        for (r, text) in [
            (0.0, "0x"),
            (0.19, "0.19x"),
            (0.0036, "0.0036x"),
            (1e-9, "<0.0001x"),
            (1.36, "1.36x"),
            (12.34, "12.3x"),
            (1234.5, "1234x"),
            (f64::INFINITY, "-"),
        ] {
            assert_eq!(ratio(r), text, "{r}");
        }
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (166_908, "166,908")] {
            assert_eq!(count(n), text);
        }
        for (n, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (8.0, "8"),
            (999.9, "1k"),
            (12_345.0, "12.3k"),
            (1.5e6, "1.5M"),
            (150.0, "150"),
        ] {
            assert_eq!(count_short(n), text, "{n}");
        }
    }
}

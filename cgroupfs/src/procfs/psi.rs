//! Pressure stall information: how long tasks waited for memory.

use super::slurp;
use crate::error::Result;
use crate::flat::{lines, number, words};
use std::path::Path;
use std::time::Duration;

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Share of the last 10 s spent stalled, in percent.
    pub avg10: f64,
    /// The same over 60 s.
    pub avg60: f64,
    /// The same over 300 s.
    pub avg300: f64,
    /// Time stalled since boot, or since the cgroup was made.
    pub total: Duration,
}

/// `/proc/pressure/memory`, or a cgroup's `memory.pressure` on v2. Source: `psi_show()`,
/// Documentation/accounting/psi.rst.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// At least one task was stalled.
    pub some: Option<Stall>,
    /// All tasks that were not idle were stalled at once.
    pub full: Option<Stall>,
}

impl Psi {
    /// Reads `/proc/pressure/memory`: the pressure of the whole node.
    ///
    /// # Errors
    /// `Absent` without PSI (before 4.20, or off at boot); `Refused` with the errno otherwise.
    pub fn read() -> Result<Psi> {
        slurp(
            Path::new("/proc/pressure/memory"),
            "this kernel counts no pressure (PSI is not built in, or is off: boot with psi=1)",
        )
        .map(|content| Psi::parse(&content))
    }

    /// Takes the `some` and `full` lines; one that lacks a number, or has one that does not parse, is
    /// `None`. Of duplicates the last.
    pub fn parse(content: &[u8]) -> Psi {
        let mut psi = Psi::default();
        for line in lines(content) {
            let mut words = words(line);
            let field = match words.next() {
                Some(b"some") => &mut psi.some,
                Some(b"full") => &mut psi.full,
                _ => continue,
            };
            if let Some(stall) = stall(words) {
                *field = Some(stall);
            }
        }
        psi
    }
}

/// `avg10=0.12 avg60=1.50 avg300=0.00 total=123456` (microseconds), in any order.
fn stall<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<Stall> {
    let (mut avg10, mut avg60, mut avg300, mut total) = (None, None, None, None);
    for word in words {
        let equals = word.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&word[..equals], &word[equals + 1..]);
        match key {
            b"avg10" => avg10 = Some(percent(value)?),
            b"avg60" => avg60 = Some(percent(value)?),
            b"avg300" => avg300 = Some(percent(value)?),
            b"total" => total = Some(Duration::from_micros(number(value)?)),
            _ => {}
        }
    }
    Some(Stall { avg10: avg10?, avg60: avg60?, avg300: avg300?, total: total? })
}

/// `%lu.%02lu` from 0 to 100: never a NaN, never an infinity.
fn percent(word: &[u8]) -> Option<f64> {
    let dot = word.iter().position(|byte| *byte == b'.')?;
    let (whole, cents) = (&word[..dot], &word[dot + 1..]);
    let whole = number(whole).filter(|whole| *whole <= 100)?;
    let cents = (cents.len() == 2).then(|| number(cents))??;
    Some((whole * 100 + cents) as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    #[test]
    fn an_idle_host_shows_no_pressure() {
        let psi = Psi::parse(&samples::read("proc/host-6.18/pressure-memory"));
        assert_eq!(psi, Psi { some: Some(Stall::default()), full: Some(Stall::default()) });
    }

    #[test]
    fn averages_are_percent_and_totals_are_microseconds() {
        let psi = Psi::parse(
            b"some avg10=12.34 avg60=5.06 avg300=100.00 total=1500000\n\
              full avg10=0.00 avg60=0.50 avg300=0.01 total=18446744073709551615\n",
        );
        let (some, full) = (psi.some.unwrap(), psi.full.unwrap());
        assert_eq!((some.avg10, some.avg60, some.avg300), (12.34, 5.06, 100.0));
        assert_eq!(some.total, Duration::from_millis(1500));
        assert_eq!((full.avg60, full.avg300), (0.5, 0.01));
        assert_eq!(full.total, Duration::from_micros(u64::MAX));
    }

    #[test]
    fn what_is_no_percentage_is_no_line() {
        for value in [
            "nan",
            "inf",
            "1e2",
            "-1.00",
            "1.5",
            "1",
            "101.00",
            "184744073709551615.00",
            "+1.00",
            "",
        ] {
            let line = format!("some avg10={value} avg60=0.00 avg300=0.00 total=0\n");
            assert_eq!(Psi::parse(line.as_bytes()), Psi::default(), "{value}");
        }
        assert_eq!(Psi::parse(b"some avg10=0.00 avg60=0.00 total=0\nfull\n"), Psi::default());
    }

    proptest! {
        #[test]
        fn a_mutated_sample_never_panics_and_averages_stay_percentages(
            content in samples::mutated("proc/host-6.18/pressure-memory"),
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            for stall in [Psi::parse(&content).some, Psi::parse(&bytes).full].into_iter().flatten() {
                for avg in [stall.avg10, stall.avg60, stall.avg300] {
                    prop_assert!((0.0..101.0).contains(&avg));
                }
            }
        }
    }
}

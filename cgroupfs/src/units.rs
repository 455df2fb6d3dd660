//! Sizes as the kernel's memory files have them: bytes, and limits that may be "none".

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Parses `4096`, `64K`, `256M`, `1G`, `2T` (powers of 1024; an `iB` or `B` after
/// the letter and lower case are accepted). Displays with one decimal (`256.0 MiB`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;

/// The page size the kernel counts in. 4096 on every machine cgroup v1 is common on; read from
/// `sysconf(_SC_PAGESIZE)` where it is not.
pub fn page_size() -> u64 {
    use std::sync::OnceLock;
    static PAGE: OnceLock<u64> = OnceLock::new();
    *PAGE.get_or_init(|| {
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|n| u64::try_from(n).ok())
            .filter(|n| n.is_power_of_two())
            .unwrap_or(4096)
    })
}

impl Bytes {
    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n * MIB)
    }

    /// `n` kibibytes.
    pub const fn kib(n: u64) -> Bytes {
        Bytes(n * KIB)
    }

    /// Rounded down to a whole page, as `page_counter_memparse` does with every value written.
    pub fn page_floor(self) -> Bytes {
        Bytes(self.0 / page_size() * page_size())
    }

    /// `self − other`, zero where that would be negative.
    pub const fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    /// `self + other`, at most `u64::MAX`.
    pub const fn saturating_add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }

    /// `self × part / whole` without overflow; zero where `whole` is zero.
    pub fn scale(self, part: u64, whole: u64) -> Bytes {
        if whole == 0 {
            return Bytes(0);
        }
        let scaled = u128::from(self.0) * u128::from(part) / u128::from(whole);
        Bytes(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < KIB {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// Why a size did not parse. The message is complete for a person; callers add where it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is not a size: {why} (write bytes, or a number with K, M, G or T, as in 256M)")]
pub struct SizeError {
    /// What was given.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for Bytes {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Bytes, SizeError> {
        let fail = |why| SizeError { value: text.chars().take(64).collect(), why };
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(fail("it is empty"));
        }
        if trimmed.starts_with('-') {
            return Err(fail("it is negative"));
        }
        let digits_end =
            trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(digits_end);
        let shift = match suffix.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(fail("the unit is unknown")),
        };
        let multiplier = 1u64 << shift;
        if number.contains('.') {
            let value: f64 = number.parse().map_err(|_| fail("the number does not parse"))?;
            let bytes = value * multiplier as f64;
            if !(0.0..=(1u64 << 62) as f64).contains(&bytes) {
                return Err(fail("it is out of range"));
            }
            return Ok(Bytes(bytes as u64));
        }
        let value: u64 = number.parse().map_err(|_| fail("the number does not parse"))?;
        value
            .checked_mul(multiplier)
            .filter(|bytes| *bytes <= 1 << 62)
            .map(Bytes)
            .ok_or_else(|| fail("it is out of range"))
    }
}

/// A limit as a memory control file has it: a number of bytes, or none.
///
/// v1 has no word for "none": it shows `PAGE_COUNTER_MAX` in bytes (9223372036854771712 with 4 KiB
/// pages) and takes `-1`. v2 reads and writes `max`. Both become [`Limit::Max`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// So many bytes.
    Bytes(Bytes),
    /// No limit.
    Max,
}

impl Limit {
    /// From v1's number: anything from `PAGE_COUNTER_MAX` (`LONG_MAX / PAGE_SIZE` pages) up is none.
    pub fn from_v1(bytes: u64) -> Limit {
        let counter_max = i64::MAX as u64 / page_size() * page_size();
        if bytes >= counter_max { Limit::Max } else { Limit::Bytes(Bytes(bytes)) }
    }

    /// The number of bytes, `None` for no limit.
    pub const fn bytes(self) -> Option<Bytes> {
        match self {
            Limit::Bytes(bytes) => Some(bytes),
            Limit::Max => None,
        }
    }

    /// Rounded down to a page as the kernel stores it.
    pub fn page_floor(self) -> Limit {
        match self {
            Limit::Bytes(bytes) => Limit::Bytes(bytes.page_floor()),
            Limit::Max => Limit::Max,
        }
    }

    /// The smaller of two limits.
    pub fn min(self, other: Limit) -> Limit {
        std::cmp::min(self, other)
    }

    /// What v1 takes: bytes, or `-1`.
    pub fn to_v1(self) -> String {
        match self {
            Limit::Bytes(bytes) => bytes.0.to_string(),
            Limit::Max => "-1".to_string(),
        }
    }

    /// What v2 takes: bytes, or `max`.
    pub fn to_v2(self) -> String {
        match self {
            Limit::Bytes(bytes) => bytes.0.to_string(),
            Limit::Max => "max".to_string(),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Bytes(bytes) => bytes.fmt(f),
            Limit::Max => f.write_str("max"),
        }
    }
}

impl FromStr for Limit {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Limit, SizeError> {
        if text.trim() == "max" { Ok(Limit::Max) } else { text.parse().map(Limit::Bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 64 * KIB),
            ("256M", 256 * MIB),
            ("1g", GIB),
            ("1.5G", GIB + GIB / 2),
            (" 2 MiB ", 2 * MIB),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for text in ["", "M", "-1", "12X", "1e3", "99999999999T", "1..2", "18446744073709551616"] {
            let message = text.parse::<Bytes>().unwrap_err().to_string();
            assert!(message.contains("is not a size"), "{message}");
        }
    }

    #[test]
    fn v1_none_is_page_counter_max_and_writes_minus_one() {
        assert_eq!(Limit::from_v1(i64::MAX as u64 / page_size() * page_size()), Limit::Max);
        assert_eq!(Limit::from_v1(u64::MAX), Limit::Max);
        assert_eq!(Limit::from_v1(GIB), Limit::Bytes(Bytes(GIB)));
        assert_eq!(Limit::Max.to_v1(), "-1");
        assert_eq!(Limit::Max.to_v2(), "max");
        assert!(Limit::Max > Limit::Bytes(Bytes(u64::MAX)));
    }

    #[test]
    fn display_is_short() {
        assert_eq!(Bytes::mib(256).to_string(), "256.0 MiB");
        assert_eq!(Bytes(12).to_string(), "12 B");
        assert_eq!(Bytes(u64::MAX).to_string(), "16384.0 PiB");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Limit>();
        }

        #[test]
        fn bytes_round_trip(n in 0u64..(1 << 62)) {
            prop_assert_eq!(n.to_string().parse::<Bytes>().unwrap(), Bytes(n));
        }
    }
}

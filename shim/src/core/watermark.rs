//! Where background reclaim starts and where it stops.

use cgroupfs::Limit;
use cgroupfs::units::{Bytes, MIB};
use std::str::FromStr;

/// Smallest room kept free by default. A task that streams is several MiB past a threshold before the
/// woken thread sees it (measured on 6.18: 5 MiB in the median, 16 at worst), and growth goes on while
/// reclaim starts.
pub const MIN_HEADROOM: Bytes = Bytes::mib(8);

/// Largest room kept free by default: more is memory that the container paid for and does not get.
/// 512 MiB is a quarter of a second at the 2 GiB/s that one task can touch fresh memory with.
pub const MAX_HEADROOM: Bytes = Bytes::mib(512);

/// Default headroom, in 1/1000 of the limit.
pub const HEADROOM_PERMILLE: u64 = 80;

/// A burst that reaches the limit in spite of the headroom widens it by a quarter, up to this many: a
/// reader with a read-ahead of 8 MiB has two such windows in flight before anybody can wake.
pub const WIDEST: u32 = 6;

/// The band between the watermarks is this share of the headroom by default (in 1/1000): wide enough
/// that a round frees more than the counting fuzz (64 pages a CPU), narrow enough not to evict much
/// that is still wanted.
pub const BAND_PERMILLE: u64 = 750;

/// No narrower band than this: the per-CPU stocks alone make usage jump by 64 pages a CPU.
pub const MIN_BAND: Bytes = Bytes::mib(1);

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WatermarkSpec {
    /// From the constants of this module.
    Default,
    /// `HIGH%:LOW%` of min(high, limit), in 1/10,000 (Alibaba's `memory.wmark_ratio` unit, which its
    /// tools mixed up with per mille: here it never leaves the program).
    Ratio {
        /// Reclaim starts above this.
        high: u32,
        /// Reclaim stops here.
        low: u32,
    },
    /// No background reclaim.
    Off,
}

/// Why watermarks did not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is not a pair of watermarks: {why} (write HIGH%:LOW%, as in 92%:86%, or off)")]
pub struct BadWatermark {
    value: String,
    why: &'static str,
}

impl FromStr for WatermarkSpec {
    type Err = BadWatermark;

    fn from_str(text: &str) -> Result<WatermarkSpec, BadWatermark> {
        let fail = |why| BadWatermark { value: text.chars().take(64).collect(), why };
        match text {
            "off" => return Ok(WatermarkSpec::Off),
            "default" | "on" => return Ok(WatermarkSpec::Default),
            _ => {}
        }
        let percent = |part: &str| -> Option<u32> {
            let value: f64 = part.trim().strip_suffix('%').unwrap_or(part).trim().parse().ok()?;
            (value.is_finite() && value > 0.0 && value < 100.0)
                .then(|| (value * 100.0).round() as u32)
        };
        let (high, low) = text.split_once(':').ok_or_else(|| fail("there is no ':'"))?;
        let high = percent(high).ok_or_else(|| fail("HIGH is not between 0 % and 100 %"))?;
        let low = percent(low).ok_or_else(|| fail("LOW is not between 0 % and 100 %"))?;
        if low >= high {
            return Err(fail("LOW must be below HIGH"));
        }
        Ok(WatermarkSpec::Ratio { high, low })
    }
}

/// The two marks of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Reclaim starts when usage is above.
    pub high: Bytes,
    /// Reclaim stops when usage is here.
    pub low: Bytes,
}

impl Watermarks {
    /// The marks for a container whose `memory.high` and limit are these; `None` where there is nothing
    /// to stay under, or reclaim is off.
    pub fn of(spec: WatermarkSpec, limit: Limit, high: Limit) -> Option<Watermarks> {
        let base = limit.min(high).bytes()?;
        let marks = match spec {
            WatermarkSpec::Off => return None,
            WatermarkSpec::Ratio { high, low } => Watermarks {
                high: base.scale(u64::from(high), 10_000),
                low: base.scale(u64::from(low), 10_000),
            },
            WatermarkSpec::Default => {
                let headroom = base
                    .scale(HEADROOM_PERMILLE, 1000)
                    .clamp(MIN_HEADROOM.min(base.scale(1, 8)), MAX_HEADROOM);
                let band = headroom.scale(BAND_PERMILLE, 1000);
                let high = base.saturating_sub(headroom);
                Watermarks { high, low: high.saturating_sub(band) }
            }
        };
        let low = marks.low.min(marks.high.saturating_sub(MIN_BAND));
        Some(Watermarks { high: marks.high.page_floor(), low: low.page_floor() })
    }

    /// The same marks with `quarters` of the headroom more room above them, at most [`WIDEST`]: for a
    /// group whose bursts run through the room it has. Operators' own ratios stay as they are.
    pub fn widened(
        self,
        spec: WatermarkSpec,
        limit: Limit,
        high: Limit,
        quarters: u32,
    ) -> Watermarks {
        let (WatermarkSpec::Default, Some(base)) = (spec, limit.min(high).bytes()) else {
            return self;
        };
        let headroom = base.saturating_sub(self.high);
        let more = headroom.scale(u64::from(quarters.min(WIDEST)), 4);
        Watermarks {
            high: self.high.saturating_sub(more).page_floor(),
            low: self.low.saturating_sub(more).page_floor(),
        }
    }

    /// The last mark before the limit: where a group that we let be is looked at again.
    pub fn ceiling(limit: Limit, high: Limit) -> Option<Bytes> {
        let base = limit.min(high).bytes()?;
        Some(base.saturating_sub(base.scale(1, 64).clamp(Bytes(MIB / 4), Bytes(4 * MIB))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn operators_ratios_are_of_the_smaller_of_high_and_limit() {
        let spec: WatermarkSpec = "90%:80%".parse().unwrap();
        let limit = Limit::Bytes(Bytes::mib(200));
        let marks = Watermarks::of(spec, limit, Limit::Bytes(Bytes::mib(100))).unwrap();
        assert_eq!((marks.high, marks.low), (Bytes::mib(90), Bytes::mib(80)));
        assert_eq!(Watermarks::of(spec, limit, Limit::Max).unwrap().high, Bytes::mib(180));
        assert_eq!(Watermarks::of(spec, Limit::Max, Limit::Max), None);
        assert_eq!(Watermarks::of(WatermarkSpec::Off, limit, Limit::Max), None);
    }

    #[test]
    fn bad_watermarks_say_what_is_wrong() {
        for text in ["", "90", "80%:90%", "x:y", "101%:5%", "90:90", "nan%:1%", "-5:1"] {
            let message = text.parse::<WatermarkSpec>().unwrap_err().to_string();
            assert!(message.contains("92%:86%"), "{message}");
        }
        assert_eq!("off".parse(), Ok(WatermarkSpec::Off));
        assert_eq!("92.5:80".parse(), Ok(WatermarkSpec::Ratio { high: 9250, low: 8000 }));
    }

    proptest! {
        #[test]
        fn low_is_under_high_is_under_the_limit(limit in (4 * MIB)..(1u64 << 50), high in 1u32..10_000, low in 1u32..10_000) {
            let limit_ = Limit::Bytes(Bytes(limit));
            for spec in [WatermarkSpec::Default, WatermarkSpec::Ratio { high: high.max(low), low: high.min(low) }] {
                let marks = Watermarks::of(spec, limit_, Limit::Max).unwrap();
                prop_assert!(marks.high < Bytes(limit));
                prop_assert!(marks.low < marks.high || marks.high == Bytes(0));
            }
            prop_assert!(Watermarks::ceiling(limit_, Limit::Max).unwrap() < Bytes(limit));
        }
    }
}

//! How fast a group fills, and so how often it must be looked at where no event tells.

use super::event::Now;
use cgroupfs::Bytes;
use std::time::Duration;

/// No look more often than this. A look costs about 10 µs with the wake-up: 200 a second are 0.2 % of
/// a core.
pub const SHORTEST: Duration = Duration::from_millis(5);

/// No look less often: a group that stopped growing may start again. Slower than 1 Hz gains nothing.
pub const LONGEST: Duration = Duration::from_secs(1);

/// What a group that is quiet now is taken to grow by, at the least, once it starts (bytes a second).
const SUSPECTED: u64 = 64 << 20;

/// A slower pace is none: at 1 Hz it is seen long before it fills any headroom.
const FADED: u64 = 1 << 20;

/// The fill rate of a group: the highest seen lately, halved every half second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    last: Option<(Now, Bytes)>,
    rate: f64,
}

const HALF_LIFE: Duration = Duration::from_millis(500);

/// Intervals shorter than this say more about per-CPU batching than about growth.
const SHORTEST_SAMPLE: Duration = Duration::from_millis(1);

impl Pace {
    /// Usage is `usage` now, after `freed` bytes were taken from it since the last call.
    pub fn observe(&mut self, now: Now, usage: Bytes, freed: Bytes) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, usage));
            return;
        };
        let elapsed = now.saturating_sub(then);
        if elapsed < SHORTEST_SAMPLE && freed == Bytes(0) {
            return;
        }
        self.last = Some((now, usage));
        let grown = usage.saturating_add(freed).saturating_sub(before);
        let sample = grown.0 as f64 / elapsed.max(SHORTEST_SAMPLE).as_secs_f64();
        let decay = 0.5f64.powf(elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.rate = (self.rate * decay).max(sample);
    }

    /// Bytes a second.
    pub fn rate(&self) -> u64 {
        self.rate as u64
    }

    /// When to look again at a group that has so much room: half the time it needs to fill it at its
    /// pace (earlyoom's rule with the pace observed instead of the worst case), or at a suspected one
    /// where it is quiet. A group that grows by less than 1 MiB a second gets [`LONGEST`].
    pub fn period(&self, headroom: Bytes) -> Duration {
        // What is left of a pace that has faded is no pace.
        if self.rate < FADED as f64 {
            return LONGEST;
        }
        let rate = self.rate.max(SUSPECTED as f64);
        Duration::from_secs_f64((headroom.0 as f64 / rate / 2.0).min(LONGEST.as_secs_f64()))
            .clamp(SHORTEST, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    #[test]
    fn a_group_that_does_not_grow_is_looked_at_once_a_second() {
        let mut pace = Pace::default();
        for t in 0..10 {
            pace.observe(ms(t * 100), Bytes::mib(50), Bytes(0));
        }
        assert_eq!(pace.period(Bytes::mib(10)), LONGEST);
    }

    #[test]
    fn the_period_follows_headroom_and_rate() {
        let mut pace = Pace::default();
        pace.observe(ms(0), Bytes::mib(0), Bytes(0));
        pace.observe(ms(100), Bytes::mib(100), Bytes(0));
        assert!((999..1002).contains(&(pace.rate() >> 20)), "{}", pace.rate());
        let near = pace.period(Bytes::mib(20));
        assert_eq!(near.as_millis(), 10);
        assert!(pace.period(Bytes::mib(200)) > near);
        assert_eq!(pace.period(Bytes::kib(64)), SHORTEST);
    }

    #[test]
    fn what_was_reclaimed_counts_as_growth() {
        let mut pace = Pace::default();
        pace.observe(ms(0), Bytes::mib(200), Bytes(0));
        pace.observe(ms(100), Bytes::mib(180), Bytes::mib(50));
        assert!((299..302).contains(&(pace.rate() >> 20)));
    }

    #[test]
    fn the_rate_fades() {
        let mut pace = Pace::default();
        pace.observe(ms(0), Bytes::mib(0), Bytes(0));
        pace.observe(ms(100), Bytes::mib(100), Bytes(0));
        for t in 2..400 {
            pace.observe(ms(t * 100), Bytes::mib(100), Bytes(0));
        }
        assert_eq!(pace.period(Bytes::mib(20)), LONGEST);
    }
}

//! Pacing by absolute deadlines.
//!
//! The n-th unit (byte or operation) is due at `start + n / rate`, whatever happened before it. A
//! load that was held up issues what it owes back to back until it has caught up, so that over a
//! run it does the work that was asked for and has the number of samples that was asked for: a stall
//! does not silently lower the rate (the first half of "coordinated omission"). The other half, the
//! time by which an operation *started* late, is not part of any latency reported by `memload`: a
//! latency is that of the operation itself, from its first system call or page fault to its last.

use std::time::{Duration, Instant};

/// When the next unit is due.
#[derive(Debug)]
pub(crate) struct Pacer {
    start: Instant,
    per_second: u64,
    issued: u64,
}

impl Pacer {
    /// Paces to `per_second` units from `start` on; 0 means as fast as possible.
    pub(crate) fn new(start: Instant, per_second: u64) -> Pacer {
        Pacer { start, per_second, issued: 0 }
    }

    /// Counts from another start.
    pub(crate) fn start(&mut self, start: Instant) {
        self.start = start;
    }

    /// How long to wait from `now` until the next operation is due; zero when it is due or late.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        (self.start + offset(self.issued, self.per_second)).saturating_duration_since(now)
    }

    /// Counts units as issued.
    pub(crate) fn issue(&mut self, units: u64) {
        self.issued = self.issued.saturating_add(units);
    }
}

/// When unit number `units` is due, from the start. At most ten years: a sum with an `Instant` must
/// not overflow.
fn offset(units: u64, per_second: u64) -> Duration {
    const TEN_YEARS_NS: u64 = 10 * 365 * 86_400 * 1_000_000_000;
    if per_second == 0 {
        return Duration::ZERO;
    }
    let ns = u128::from(units) * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX).min(TEN_YEARS_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_do_not_drift() {
        assert_eq!(offset(0, 100), Duration::ZERO);
        assert_eq!(offset(1, 3), Duration::from_nanos(333_333_333));
        assert_eq!(offset(3_000_000, 3), Duration::from_secs(1_000_000));
        assert_eq!(offset(7, 0), Duration::ZERO);
        assert!(offset(u64::MAX, 1) > Duration::from_secs(86_400));
    }

    #[test]
    fn what_is_late_is_due_at_once_until_caught_up() {
        let start = Instant::now();
        let mut pacer = Pacer::new(start, 10);
        assert_eq!(pacer.wait(start), Duration::ZERO);
        pacer.issue(1);
        assert_eq!(pacer.wait(start), Duration::from_millis(100));
        // Held up for 350 ms: units 1, 2 and 3 are due at once, unit 4 at 400 ms as ever.
        let late = start + Duration::from_millis(350);
        for _ in 1..=3 {
            assert_eq!(pacer.wait(late), Duration::ZERO);
            pacer.issue(1);
        }
        assert_eq!(pacer.wait(late), Duration::from_millis(50));
    }
}

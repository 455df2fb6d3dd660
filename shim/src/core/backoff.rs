//! Exponential backoff with jitter and a cap (law 6).

use std::time::Duration;

/// Doubles from `first` to `cap` with every failure; a success starts it over. Jitter of ±25 % keeps
/// many containers that failed for one cause from trying again in step. The jitter is a hash of the
/// seed and the count, so that a run can be repeated.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
    seed: u64,
}

impl Backoff {
    /// Starts at `first`, never above `cap`.
    pub const fn new(first: Duration, cap: Duration, seed: u64) -> Backoff {
        Backoff { first, cap, failures: 0, seed }
    }

    /// Another failure: how long to wait.
    pub fn fail(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let base = doubled.min(self.cap);
        // 75 % to 125 %, but the cap is a cap.
        let jitter = 768 + (mix(self.seed ^ u64::from(self.failures)) % 512) as u32;
        (base * jitter / 1024).min(self.cap)
    }

    /// It worked: the next failure waits `first` again.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_with_jitter_up_to_the_cap_and_starts_over() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 60 * second, 7);
        let waits: Vec<f64> = (0..12).map(|_| backoff.fail().as_secs_f64()).collect();
        for (n, wait) in waits.iter().enumerate().take(5) {
            let base = f64::from(1 << n);
            assert!((0.75 * base..=1.25 * base).contains(wait), "{n}: {wait}");
        }
        assert!(waits.iter().all(|wait| *wait <= 60.0));
        assert!(waits[11] >= 45.0);
        backoff.succeed();
        assert!(backoff.fail() <= second * 5 / 4);
    }

    #[test]
    fn two_containers_do_not_try_again_in_step() {
        let waits = |seed| {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), seed);
            (0..4).map(|_| backoff.fail()).collect::<Vec<_>>()
        };
        assert_ne!(waits(1), waits(2));
    }
}

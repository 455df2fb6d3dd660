//! When to look at what no threshold tells of: kernel memory.
//!
//! Usage thresholds of cgroup v1 are checked where pages are charged, not where kernel memory is (sockets, names and
//! inodes, page tables; `memcg1_check_events()`). A container that fills sockets goes past each of them unseen.
//! (Measured on 6.18: 316 MiB above a high of 96, as far as it would, and not one pulse.) So for a moment after anything
//! was seen, and for as long as kernel memory grows, it is looked at. Then no more: who rests wakes nobody.

use crate::core::event::Now;
use cgroupfs::Bytes;
use std::time::Duration;

/// The first look; each one after that in which it has not grown comes so many times later than that before, up to the last.
const FIRST: Duration = Duration::from_millis(20);
const LATER: u32 = 4;
const LAST: Duration = Duration::from_millis(320);

/// Between two looks while it grows.
const SOONEST: Duration = Duration::from_millis(2);

/// Less than this is no growth.
const GROWS: Bytes = Bytes::kib(64);

/// Looks at one container's kernel memory.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    last: (Now, Bytes),
    pause: Duration,
}

impl Looks {
    /// From now on, with this much in use.
    pub const fn new(now: Now, kernel: Bytes) -> Looks {
        Looks { last: (now, kernel), pause: FIRST }
    }

    /// In how long to look again; `None`: no more.
    pub fn pause(&self) -> Option<Duration> {
        (self.pause <= LAST).then_some(self.pause)
    }

    /// It was looked at: so much is in use, and so much more may be until something is to be done.
    pub fn looked(&mut self, now: Now, kernel: Bytes, room: Bytes) {
        let (before, was) = self.last;
        self.last = (now, kernel);
        let grown = kernel.saturating_sub(was);
        if grown < GROWS {
            self.pause = self.pause.max(FIRST) * LATER;
            return;
        }
        // Half of the way there at this pace.
        let ratio = (room.0 as f64 / grown.0 as f64 / 2.0).min(100.0);
        self.pause = now.saturating_sub(before).mul_f64(ratio).clamp(SOONEST, LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until there are no more of them, at kernel memory that is this much after so long.
    fn look(room: Bytes, kernel: impl Fn(Duration) -> Bytes) -> Vec<Duration> {
        let (mut now, mut at) = (Duration::ZERO, Vec::new());
        let mut looks = Looks::new(now, kernel(now));
        while let Some(pause) = looks.pause() {
            now += pause;
            at.push(now);
            let grown = kernel(now).saturating_sub(kernel(Duration::ZERO));
            if grown >= room || at.len() > 1000 {
                break;
            }
            looks.looked(now, kernel(now), room.saturating_sub(grown));
        }
        at
    }

    #[test]
    fn one_that_rests_is_looked_at_no_more_after_half_a_second() {
        let at = look(Bytes::mib(64), |_| Bytes::mib(5));
        assert_eq!(at.len(), 3);
        assert!(at[2] < Duration::from_millis(500));
    }

    #[test]
    fn one_that_grows_is_seen_soon_after_it_comes_to_where_something_is_to_be_done() {
        let room = Bytes::mib(64);
        for rate in [1, 50, 400, 4000] {
            let at = look(room, |now| {
                Bytes((now.as_secs_f64() * rate as f64 * f64::from(1 << 20)) as u64)
            });
            let past = at.last().unwrap().as_secs_f64() * f64::from(rate) - 64.0;
            let most = (f64::from(rate) * FIRST.as_secs_f64()).max(0.25);
            assert!(
                past <= most && at.len() < 300,
                "{rate} MiB/s: {past} MiB past, {} looks",
                at.len()
            );
        }
    }

    #[test]
    fn one_that_shrinks_rests() {
        let shrinks =
            |now: Duration| Bytes::mib(500).saturating_sub(Bytes::mib(now.as_millis() as u64));
        assert_eq!(look(Bytes::mib(64), shrinks).len(), 3);
    }
}

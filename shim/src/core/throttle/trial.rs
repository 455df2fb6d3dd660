//! Pulses in which somebody is frozen of whom nothing is known yet: short ones, so that who does not grow loses little
//! until that shows. What was due beyond them is carried. Each costs a window more, in which growers get a little of
//! their next charge early: so there are only a few in a row.

use super::account::BEHIND;
use crate::core::event::Now;
use std::time::Duration;

/// So long is one.
const SHORT: Duration = BEHIND;

/// So many there are in a row, and another one after so long.
const MOST: u32 = 4;
const AGAIN: Duration = Duration::from_secs(5);

/// Of one container.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trial {
    used: u32,
    last: Now,
}

impl Trial {
    /// How long a pulse that is due for so long is to last; `untried`: somebody is in it who has not shown yet whether
    /// it grows, nor been frozen for long.
    pub fn length(&mut self, now: Now, due: Duration, untried: bool) -> Duration {
        if !untried || due <= SHORT {
            return due;
        }
        let regained = now.saturating_sub(self.last).as_nanos() / AGAIN.as_nanos();
        if regained > 0 {
            self.used = self.used.saturating_sub(u32::try_from(regained).unwrap_or(u32::MAX));
            self.last = now;
        }
        if self.used >= MOST {
            return due;
        }
        if self.used == 0 {
            self.last = now;
        }
        self.used += 1;
        SHORT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pulses_are_short_while_somebody_in_them_is_not_known_but_not_many_of_them() {
        let mut trial = Trial::default();
        let mut at = |now, untried| trial.length(SECOND * now, SECOND, untried);
        assert_eq!(at(0, false), SECOND);
        let short = (1..30).filter(|now| at(*now, true) == SHORT).count() as u32;
        // As long as new ones come all the time.
        assert!((MOST..=MOST + 6).contains(&short), "{short}");
        assert_eq!(at(100, true), SHORT);
    }

    #[test]
    fn a_pulse_that_is_short_anyway_is_as_long_as_is_due() {
        let mut trial = Trial::default();
        for now in 0..100 {
            assert_eq!(trial.length(SECOND * now, SHORT / 2, true), SHORT / 2);
        }
    }
}

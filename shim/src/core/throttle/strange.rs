//! Growth in a pulse, when all who are known to grow are frozen: somebody else's, who is to be looked for. Or nobody's:
//! the kernel makes huge pages of small ones (`khugepaged`), of frozen tasks too, and until the small ones are freed
//! both are charged. (Measured on 6.1: 2 MiB more for a moment, in one pulse of ten; whoever had been in the kernel for
//! a clock tick was taken for who wrote them, and frozen with the growers for seconds.)

use crate::core::event::Now;
use cgroupfs::Bytes;
use std::time::Duration;

/// Less is no growth: usage moves in batches.
const LEAST: Bytes = Bytes::mib(1);

/// More than the kernel's own work comes to is somebody's at once.
const MUCH: Bytes = Bytes::mib(4);

/// What is there for so long was not for a moment.
const LASTS: Duration = Duration::from_millis(50);

/// What a look at usage in a pulse came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing, or nothing new.
    Nothing,
    /// Growth that may be for a moment: it is time to look at all tasks, to see later what they did meanwhile.
    Growth,
    /// Somebody grows.
    Somebody,
}

/// Of one pulse.
#[derive(Debug, Clone, Copy, Default)]
pub struct Strange {
    since: Option<Now>,
}

impl Strange {
    /// Usage is up by so much since the pulse began to hold, and the resident sets of the frozen by `filled`, which the
    /// kernel does.
    pub fn look(&mut self, now: Now, grown: Bytes, filled: impl FnOnce() -> Bytes) -> Seen {
        let grown = if grown < LEAST { grown } else { grown.saturating_sub(filled()) };
        if grown < LEAST {
            self.since = None;
            return Seen::Nothing;
        }
        let since = *self.since.get_or_insert(now);
        if grown >= MUCH || now.saturating_sub(since) >= LASTS {
            self.since = None;
            return Seen::Somebody;
        }
        if since == now { Seen::Growth } else { Seen::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const HUGE: Bytes = Bytes::mib(2);

    #[test]
    fn a_huge_page_that_the_kernel_makes_of_small_ones_is_nobodys_growth() {
        let mut strange = Strange::default();
        let none = || Bytes(0);
        // Charged before the small ones are freed, time and again.
        for n in 0..8u32 {
            assert_eq!(strange.look(100 * MS * n, HUGE, none), Seen::Growth);
            assert_eq!(strange.look(100 * MS * n + 10 * MS, HUGE, none), Seen::Nothing);
            assert_eq!(strange.look(100 * MS * n + 20 * MS, none(), none), Seen::Nothing);
        }
        // Where some were missing, usage stays up, and so do the resident sets.
        assert_eq!(strange.look(1000 * MS, HUGE, || HUGE), Seen::Nothing);
    }

    #[test]
    fn who_writes_is_looked_for_when_it_lasts_and_at_once_when_it_is_much() {
        let mut strange = Strange::default();
        assert_eq!(strange.look(MS, LEAST, || Bytes(0)), Seen::Growth);
        assert_eq!(strange.look(40 * MS, HUGE, || Bytes(0)), Seen::Nothing);
        assert_eq!(strange.look(51 * MS, HUGE, || Bytes(0)), Seen::Somebody);
        assert_eq!(strange.look(61 * MS, MUCH, || Bytes(0)), Seen::Somebody);
    }
}

//! Which containers are made ready long before high, and when: so that it costs others little.
//!
//! Moving a task into the group that is frozen waits for a grace period of RCU (measured on 6.18: 7 to 12 ms at rest, 13 to
//! 90 on a busy host), with a lock held that every other move, fork and exit on the host waits for. Moves right behind it
//! are free (20 tasks: 7.5 ms for the first, 0.03 for all others). A task fills 8 ms × 7.5 GiB/s = 60 MiB meanwhile, and
//! 90 ms make 675. So where that is much of high, tasks are moved while there is time; and not one by one: those of
//! several containers in a row, and then none for a while.

use crate::core::event::Now;
use cgroupfs::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

/// Up to this high: from where it is made ready to high (128 MiB) memory is filled in 17 ms, sooner than a task is moved on
/// a busy host; what goes through in 90 ms, half a gigabyte, is half of it.
const EARLY: Bytes = Bytes::mib(1024);

/// Who comes into a group in which nobody is has used this when it is looked at.
const FIRST_LOOK: Bytes = Bytes::mib(1);

/// So many containers' tasks are moved in a row, at most.
const IN_A_ROW: u32 = 16;

/// Then there is a pause, of so long, or of so many times what they took: others have nine tenths of the time.
const PAUSE: Duration = Duration::from_millis(100);
const SHARE: u32 = 9;

/// Whether a container with this high is made ready long before it.
pub fn is_early(high: Bytes) -> bool {
    high <= EARLY
}

/// At which usage it is looked again who has come since, after a look at this: a handful of looks on the way to high, and
/// none at rest.
pub fn next_look(usage: Bytes) -> Bytes {
    Bytes(usage.0.saturating_mul(2)).max(FIRST_LOOK)
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The asker's: until it leaves, nobody else's.
    Now,
    /// The asker's, from then on.
    At(Now),
    /// Somebody's before: the asker is told ([`Moves::leave`]).
    Behind,
}

/// The containers that wait to have their tasks moved, of a whole host.
#[derive(Debug, Default)]
pub struct Moves {
    waiting: VecDeque<u64>,
    next: u64,
    /// Who moves, and since when.
    moving: Option<(u64, Now)>,
    /// So many have, in a row, and took so long.
    row: u32,
    spent: Duration,
    not_before: Now,
}

impl Moves {
    /// One more waits: its ticket.
    pub fn join(&mut self) -> u64 {
        self.next += 1;
        self.waiting.push_back(self.next);
        self.next
    }

    /// Whether its turn has come.
    pub fn turn(&mut self, ticket: u64, now: Now) -> Turn {
        match self.moving {
            Some((moving, _)) if moving == ticket => return Turn::Now,
            None if self.waiting.front() == Some(&ticket) => {}
            _ => return Turn::Behind,
        }
        if now < self.not_before {
            return Turn::At(self.not_before);
        }
        self.moving = Some((ticket, now));
        Turn::Now
    }

    /// It has moved, or waits no more. Whose turn it is next, if nobody moves: to be told.
    pub fn leave(&mut self, ticket: u64, now: Now) -> Option<u64> {
        self.waiting.retain(|waiting| *waiting != ticket);
        if let Some((moving, since)) = self.moving
            && moving == ticket
        {
            self.moving = None;
            self.row += 1;
            self.spent += now.saturating_sub(since);
            if self.row >= IN_A_ROW || self.waiting.is_empty() {
                self.not_before = now + PAUSE.max(self.spent * SHARE);
                (self.row, self.spent) = (0, Duration::ZERO);
            }
        }
        self.waiting.front().copied().filter(|_| self.moving.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Has so many containers come at once, each of whose moves takes so long when it is the first in a row, and nothing
    /// else; when each had moved.
    fn flood(containers: u64, first: Duration) -> Vec<Now> {
        let (mut moves, mut now, mut moved) = (Moves::default(), Duration::ZERO, Vec::new());
        let tickets: Vec<u64> = (0..containers).map(|_| moves.join()).collect();
        for ticket in tickets {
            loop {
                match moves.turn(ticket, now) {
                    Turn::Now => break,
                    Turn::At(when) => now = when,
                    Turn::Behind => panic!("{ticket} waits for nobody"),
                }
            }
            if moves.row == 0 {
                now += first;
            }
            moves.leave(ticket, now);
            moved.push(now);
        }
        moved
    }

    #[test]
    fn highs_are_small_where_memory_fills_faster_than_tasks_move() {
        assert!(is_early(Bytes::mib(64)) && is_early(Bytes::mib(1024)));
        assert!(!is_early(Bytes::mib(2048)) && !is_early(Bytes(u64::MAX)));
    }

    #[test]
    fn however_many_come_others_have_nine_tenths_of_the_time() {
        for first in [8 * MS, 90 * MS] {
            let moved = flood(10_000, first);
            let rows = moved.len() as u32 / IN_A_ROW;
            let all = *moved.last().unwrap();
            assert!(first * rows <= all / 10 + first, "{first:?}: {rows} rows in {all:?}");
            // And no more than so many a second.
            for window in moved.windows(IN_A_ROW as usize + 1) {
                assert!(window[IN_A_ROW as usize] - window[0] >= PAUSE, "{window:?}");
            }
        }
    }

    #[test]
    fn one_that_comes_alone_does_not_wait_and_the_next_one_little() {
        assert_eq!(flood(1, 8 * MS), [8 * MS]);
        let mut moves = Moves::default();
        let one = moves.join();
        assert_eq!(moves.turn(one, MS), Turn::Now);
        assert_eq!(moves.leave(one, 9 * MS), None);
        let two = moves.join();
        assert_eq!(moves.turn(two, 10 * MS), Turn::At(9 * MS + PAUSE));
        assert_eq!(moves.turn(two, 9 * MS + PAUSE), Turn::Now);
    }

    #[test]
    fn one_moves_at_a_time_and_who_is_next_is_told_when_somebody_leaves() {
        let mut moves = Moves::default();
        let tickets: Vec<u64> = (0..4).map(|_| moves.join()).collect();
        assert_eq!(moves.turn(tickets[0], MS), Turn::Now);
        assert_eq!(moves.turn(tickets[1], MS), Turn::Behind);
        // One that ends while it waits is nobody's concern, nor does it take a turn.
        assert_eq!(moves.leave(tickets[1], MS), None);
        assert_eq!(moves.leave(tickets[0], 2 * MS), Some(tickets[2]));
        assert_eq!(moves.turn(tickets[3], 2 * MS), Turn::Behind);
        assert_eq!(moves.leave(tickets[2], 2 * MS), Some(tickets[3]));
        assert_eq!(moves.turn(tickets[3], 2 * MS), Turn::Now);
    }

    #[test]
    fn looks_are_few_and_end_at_high() {
        let (mut usage, mut looks) = (Bytes(0), 0);
        while usage < EARLY {
            usage = next_look(usage);
            looks += 1;
        }
        assert!(looks <= 11, "{looks}");
    }
}

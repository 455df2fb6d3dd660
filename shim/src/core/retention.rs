//! What is remembered of the past, and for how long.

use super::Now;
use std::collections::VecDeque;
use std::time::Duration;

/// The newest of some records: so many at most, none older than so long (law 10).
#[derive(Debug, Clone)]
pub struct Retained<T> {
    records: VecDeque<(Now, T)>,
    most: usize,
    longest: Duration,
}

impl<T> Retained<T> {
    /// Keeps `most` records for `longest`.
    pub const fn new(most: usize, longest: Duration) -> Retained<T> {
        Retained { records: VecDeque::new(), most, longest }
    }

    /// Adds one, and forgets what is too much or too old.
    pub fn push(&mut self, now: Now, record: T) {
        self.expire(now);
        while self.records.len() >= self.most.max(1) {
            self.records.pop_front();
        }
        self.records.push_back((now, record));
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Now) {
        while self.records.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= self.longest) {
            self.records.pop_front();
        }
    }

    /// What is there, oldest first; [`Retained::expire`] before it where age matters.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.records.iter().map(|(_, record)| record)
    }

    /// As [`Retained::iter`], to amend them.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.records.iter_mut().map(|(_, record)| record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_keeps_the_newest_and_nothing_old(pauses in proptest::collection::vec(0u64..20, 1..60)) {
            let mut kept = Retained::new(10, Duration::from_secs(60));
            let (mut now, mut all) = (Duration::ZERO, Vec::new());
            for (index, pause) in pauses.into_iter().enumerate() {
                now += Duration::from_secs(pause);
                kept.push(now, index);
                all.push((now, index));
                let young = all.iter().filter(|(at, _)| now - *at < Duration::from_secs(60));
                let mut expected: Vec<usize> = young.map(|(_, index)| *index).collect();
                expected.drain(..expected.len().saturating_sub(10));
                prop_assert_eq!(kept.iter().copied().collect::<Vec<_>>(), expected);
            }
        }
    }
}

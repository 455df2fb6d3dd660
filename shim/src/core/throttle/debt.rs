//! What each task owes: penalties for its growth less the time it was frozen.
//!
//! The kernel lets every task sleep on its own account, all of them at the same time. A pulse freezes
//! them together, so it lasts as long as the *largest* debt, not as the sum; whoever owed less has
//! then been frozen for longer than its own growth was worth, and gets a little of that back as credit.
//! Without credit, whichever task had got ahead in the last window would set the pace of all.

use std::collections::BTreeMap;
use std::time::Duration;

/// Credit is worth so many charges at most: a task that does not grow while others are frozen for it
/// must not save up for a sprint.
const CREDIT_CHARGES: u32 = 4;

/// The debts of one container's tasks, in nanoseconds; negative ones are credit.
#[derive(Debug, Clone, Default)]
pub(super) struct Debts(BTreeMap<u32, i64>);

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

impl Debts {
    /// `task` grew, and owes so much for it.
    pub(super) fn owe(&mut self, task: u32, penalty: Duration) {
        let debt = self.0.entry(task).or_default();
        *debt = debt.saturating_add(nanos(penalty));
    }

    /// All of them were frozen for `time`, when one charge cost `sleep`.
    pub(super) fn frozen(&mut self, time: Duration, sleep: Duration) {
        let least = -nanos(sleep.saturating_mul(CREDIT_CHARGES));
        for debt in self.0.values_mut() {
            // Credit that stems from dearer times is not taken away, only not added to.
            *debt = debt.saturating_sub(nanos(time)).max(least.min(*debt));
        }
    }

    /// What the task that owes most owes.
    pub(super) fn largest(&self) -> Duration {
        let most = self.0.values().copied().max().unwrap_or(0);
        Duration::from_nanos(u64::try_from(most).unwrap_or(0))
    }

    /// Forgets tasks that are gone, or grow no more.
    pub(super) fn keep(&mut self, mut alive: impl FnMut(u32) -> bool) {
        self.0.retain(|task, _| alive(*task));
    }

    /// Forgets all debt: usage is back at high, where nothing is owed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_largest_debt_counts_not_the_sum() {
        let mut debts = Debts::default();
        for task in 0..10 {
            debts.owe(task, 50 * MS);
        }
        debts.owe(3, 20 * MS);
        assert_eq!(debts.largest(), 70 * MS);
    }

    #[test]
    fn what_a_pulse_did_not_cover_is_carried() {
        let mut debts = Debts::default();
        debts.owe(1, 3000 * MS);
        debts.frozen(2000 * MS, 2000 * MS);
        assert_eq!(debts.largest(), 1000 * MS);
    }

    #[test]
    fn who_was_frozen_for_another_may_grow_a_little_for_free_and_no_more() {
        let mut debts = Debts::default();
        debts.owe(1, 1000 * MS);
        debts.owe(2, Duration::ZERO);
        debts.frozen(1000 * MS, 50 * MS);
        // Four charges of 50 ms are free, the fifth is not.
        debts.owe(2, 250 * MS);
        assert_eq!(debts.largest(), 50 * MS);
    }

    #[test]
    fn a_task_that_is_gone_owes_nothing() {
        let mut debts = Debts::default();
        debts.owe(1, 1000 * MS);
        debts.keep(|task| task != 1);
        assert_eq!(debts.largest(), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_task_outruns_its_penalties(steps in prop::collection::vec((0u32..4, 0u64..2000, any::<bool>()), 1..200)) {
            // Whatever the order of growth and pulses: what a task was charged is covered by the time it
            // was frozen, its debt, and the credit of four charges.
            let sleep = 500 * MS;
            let mut debts = Debts::default();
            let mut charged = [Duration::ZERO; 4];
            let mut frozen = Duration::ZERO;
            for (task, ms, pulse) in steps {
                debts.owe(task, ms as u32 * MS);
                charged[task as usize] += ms as u32 * MS;
                if pulse {
                    let time = debts.largest().min(2000 * MS);
                    debts.frozen(time, sleep);
                    frozen += time;
                }
            }
            for total in charged {
                prop_assert!(total <= frozen + debts.largest() + Duration::ZERO);
            }
        }
    }
}

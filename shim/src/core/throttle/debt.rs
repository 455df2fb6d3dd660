//! What is owed, and by how many: of all that a window cost, the part of the task that grew most.
//!
//! The kernel lets every task sleep on its own account, all of them at the same time. A pulse freezes
//! them together, so each is to sleep for the *largest* debt, never for the sum (`sleeps.rs`).
//!
//! Whose is the largest cannot be told from one window, which is a fraction of a millisecond: whoever
//! happens to have a CPU grows in it by the charges of two, and in the next window somebody else does.
//! Taken at each window's word, equal growers would pay for luck: measured with four growers on two CPUs,
//! they stayed 1 to 2 % of high below the kernel's curve. So each task's share of the growth is averaged
//! over windows, and of all that is owed the largest share is due: that of an equal part, unless
//! somebody's is larger by more than [`LUCK`]. Of a task that had no turn in a window, nothing is learnt from it. Where a task
//! was taken to grow that turns out not to, the others pay what it was to.

use super::sleeps::{Sleeps, Turns};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Seconds that can be owed for one window.
const MOST: f64 = 1e6;

/// Shares are averaged over about so many windows in which each may charge.
const WINDOWS: f64 = 32.0;

/// What a share may be larger by and still be luck. With four growers on two CPUs the largest of the four
/// averages is 0.05 above its 0.25 by chance, and more because a thaw wakes them in the same order each
/// time: measured on 6.18, with 0.08 four growers stayed 5 to 8 % below the curve's overage.
const LUCK: f64 = 0.12;

/// Who has this part of the largest share grows.
const GROWS: f64 = 0.25;

/// Shares are sums: an equal one may come to a little less.
const NEARLY: f64 = 0.999;

/// Who has grown in fewer windows may have been taken for another thread of its process: it loses this part of its share
/// in each window that it lets pass, from the second on. (Measured on 6.18, huge pages: the threads that had started four
/// growers had half of their debt for five windows, 8 MiB.)
const PROVEN: u32 = 2;
const UNPROVEN: f64 = 0.5;

/// Who has charged less than this in all has not grown: it may have faulted for something else.
const A_CHARGE: f64 = 0.5;

/// Windows in which a task has grown, and those that it let pass since.
#[derive(Debug, Clone, Copy, Default)]
struct Shown {
    grew: u32,
    passed: u32,
    /// Charges in all.
    charged: f64,
}

/// The debt of one container.
#[derive(Debug, Clone, Default)]
pub(super) struct Debts {
    /// Each task's share of the growth, in all 1.
    shares: BTreeMap<u32, f64>,
    /// What each has shown since it came.
    shown: BTreeMap<u32, Shown>,
    /// What each still has to sleep.
    sleeps: Sleeps,
    /// Seconds that were the part of those who were taken to grow, and have not so far.
    borne: BTreeMap<u32, f64>,
    /// Who had no turn in the window that is over.
    waiting: BTreeSet<u32>,
}

impl Shown {
    /// It lets a window pass: what part of its share it loses for that.
    fn pass(&mut self) -> f64 {
        self.passed = self.passed.saturating_add(1);
        if self.grew < PROVEN && self.passed > 1 { UNPROVEN } else { 0.0 }
    }
}

impl Debts {
    /// A window is over in which tasks made so many charges, and owe so much for them; `costs`: of the first of all
    /// charges, and so on, to the last, as far as that is known. `turns` are those of so many growers.
    pub(super) fn window(
        &mut self,
        owed: impl IntoIterator<Item = (u32, f64, Duration)>,
        costs: &[Duration],
        turns: impl Fn(u64) -> Turns,
    ) {
        let owed: Vec<(u32, f64, Duration)> = owed.into_iter().collect();
        let charges: f64 = owed.iter().map(|(_, charges, _)| charges).sum();
        if charges <= 0.0 {
            return;
        }
        for (task, own, _) in &owed {
            if own / charges >= GROWS {
                self.grows_after_all(*task);
            }
            self.enroll(*task);
        }
        // Those who had a turn show among each other who grows. Little growth says little of by how much: a round is
        // what they all grow by.
        let weight = charges.min(1.0) / WINDOWS;
        let part = (charges / self.growers().max(1) as f64).min(1.0) / WINDOWS;
        let (mut given_up, mut lost) = (0.0, 0.0);
        for (task, share) in &mut self.shares {
            let grew = owed.iter().any(|(grown, ..)| grown == task);
            if !grew && self.waiting.contains(task) {
                continue;
            }
            let shown = self.shown.entry(*task).or_default();
            let unproven = match grew {
                false if charges >= GROWS => *share * shown.pass(),
                _ => 0.0,
            };
            let gives_up = (*share - unproven) * if grew { part } else { weight };
            if grew {
                (shown.grew, shown.passed) = (shown.grew.saturating_add(1), 0);
            }
            *share -= gives_up + unproven;
            given_up += gives_up;
            lost += unproven;
        }
        for (task, own, _) in &owed {
            *self.shares.entry(*task).or_default() += given_up * own / charges;
            self.shown.entry(*task).or_default().charged += own;
        }
        // Who did not grow at all leaves its part to all of them, not to whose turn it was.
        if lost > 0.0 {
            let left = (1.0 - lost).max(f64::MIN_POSITIVE);
            self.shares.values_mut().for_each(|share| *share /= left);
        }
        let penalty: f64 = owed.iter().map(|(_, _, penalty)| penalty.as_secs_f64()).sum();
        let each = Duration::from_secs_f64((penalty * self.largest_share()).clamp(0.0, MOST));
        let unpaid = self.unpaid();
        self.sleeps.take_turns(turns(self.growers() as u64), unpaid);
        self.sleeps.charged(charges, each, costs);
        self.bear(penalty);
    }

    /// What was the part of those of whom it shows now that they do not grow.
    fn unpaid(&mut self) -> Duration {
        let (least, shares, mut unpaid) = (self.least(), &self.shares, 0.0);
        self.borne.retain(|task, part| {
            let grows = shares.get(task).is_some_and(|share| *share >= least);
            unpaid += if grows { 0.0 } else { *part };
            grows
        });
        Duration::from_secs_f64(unpaid.clamp(0.0, MOST))
    }

    /// Of so many seconds those have borne a part who are taken to grow, and have not so far.
    fn bear(&mut self, penalty: f64) {
        let least = self.least();
        for (task, share) in &self.shares {
            let charged = self.shown.get(task).map_or(0.0, |shown| shown.charged);
            if charged >= A_CHARGE {
                self.borne.remove(task);
            } else if *share >= least {
                *self.borne.entry(*task).or_default() += penalty * share;
            }
        }
    }

    /// These would have run in the window that is over, but others had the CPUs.
    pub(super) fn waiting(&mut self, tasks: BTreeSet<u32>) {
        self.waiting = tasks;
    }

    /// One that was not believed to grow does: it begins anew, like the others.
    fn grows_after_all(&mut self, task: u32) {
        let Some(shown) = self.shown.get(&task).copied().filter(|shown| shown.grew < PROVEN) else {
            return;
        };
        let equal = 1.0 / self.growers().max(1) as f64;
        if self.shares.get(&task).is_some_and(|share| *share < equal * NEARLY) {
            self.keep(|other| other != task);
            self.enroll(task);
            self.shown.insert(task, shown);
        }
    }

    /// A task is taken to grow like the others, until windows show better.
    pub(super) fn enroll(&mut self, task: u32) {
        if self.shares.contains_key(&task) {
            return;
        }
        let n = self.growers() as f64;
        for share in self.shares.values_mut() {
            *share *= n / (n + 1.0);
        }
        self.shares.insert(task, 1.0 / (n + 1.0));
    }

    fn largest(&self) -> f64 {
        self.shares.values().copied().fold(0.0, f64::max)
    }

    fn largest_share(&self) -> f64 {
        let equal = 1.0 / self.growers().max(1) as f64;
        equal.max(self.largest() - LUCK).min(self.largest())
    }

    /// How many grow.
    pub(super) fn growers(&self) -> usize {
        let least = self.least();
        self.shares.values().filter(|share| **share >= least).count()
    }

    /// Whose share is less does not grow.
    fn least(&self) -> f64 {
        self.largest() * GROWS
    }

    /// Forgets tasks that are gone, or grow no more.
    pub(super) fn keep(&mut self, mut alive: impl FnMut(u32) -> bool) {
        self.shares.retain(|task, _| alive(*task));
        self.shown.retain(|task, _| self.shares.contains_key(task));
        let sum: f64 = self.shares.values().sum();
        if sum > 0.0 {
            self.shares.values_mut().for_each(|share| *share /= sum);
        } else {
            self.clear();
        }
    }

    /// Nothing is owed any more.
    pub(super) fn clear(&mut self) {
        self.sleeps.clear();
        self.borne.clear();
    }

    /// What each still has to sleep.
    pub(super) const fn sleeps(&self) -> &Sleeps {
        &self.sleeps
    }

    /// The same, to have them sleep.
    pub(super) const fn sleeps_mut(&mut self) -> &mut Sleeps {
        &mut self.sleeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cgroupfs::Bytes;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    impl Debts {
        fn owe(&mut self, owed: impl IntoIterator<Item = (u32, f64, Duration)>) {
            self.window(owed, &[], |growers| Turns::new(growers, 64, 50 * MS, Bytes::mib(64)));
        }
    }

    fn close(due: Duration, want: Duration) -> bool {
        due.abs_diff(want) < MS
    }

    /// What is due in all over 400 windows in which tasks make these charges, of 50 ms each.
    fn due_in_all(charges: impl Fn(u32) -> Vec<(u32, f64)>) -> Duration {
        let mut debts = Debts::default();
        for n in 0..400 {
            debts.owe(charges(n).into_iter().map(|(task, n)| (task, n, (50 * MS).mul_f64(n))));
        }
        debts.sleeps.due()
    }

    #[test]
    fn equal_growers_owe_together_what_one_of_them_owes() {
        let due = due_in_all(|_| (0..10).map(|task| (task, 1.0)).collect());
        assert!(close(due, 400 * 50 * MS), "{due:?}");
    }

    #[test]
    fn what_a_pulse_did_not_cover_is_carried() {
        let mut debts = Debts::default();
        debts.owe([(1, 1.5, 3000 * MS)]);
        debts.sleeps.frozen(2000 * MS);
        assert!(close(debts.sleeps.due(), 1000 * MS));
    }

    #[test]
    fn growers_that_get_ahead_by_turns_do_not_pay_for_luck() {
        // Four growers, two of which grow by two charges in each window.
        let due = due_in_all(|n| {
            let other = (n / 3 + 1 + n % 2) % 4;
            vec![((n / 3) % 4, 2.0), (other, 2.0)]
        });
        // Four charges a window, shared among four.
        let fair = 400 * 50 * MS;
        assert!(due.abs_diff(fair) < fair / 20, "{due:?} {fair:?}");
    }

    #[test]
    fn one_that_is_faster_than_the_others_sets_the_pace() {
        for others in [0.01, 0.1, 0.5] {
            let due = due_in_all(|_| vec![(0, 1.0), (1, others), (2, others), (3, others)]);
            let alone = 400 * 50 * MS;
            assert!(due <= alone * 11 / 10, "{others}: {due:?}");
            assert!(due >= alone * 65 / 100, "{others}: {due:?}");
        }
    }

    #[test]
    fn who_is_known_to_grow_counts_before_it_gets_a_cpu() {
        let mut debts = Debts::default();
        (0..4).for_each(|task| debts.enroll(task));
        debts.owe([(0, 4.0, 200 * MS)]);
        assert!(close(debts.sleeps.due(), 50 * MS), "{:?}", debts.sleeps.due());
    }

    #[test]
    fn who_had_no_turn_is_not_taken_for_one_that_does_not_grow() {
        let mut debts = Debts::default();
        (0..4).for_each(|task| debts.enroll(task));
        for _ in 0..100 {
            debts.waiting([1, 2, 3].into());
            debts.owe([(0, 4.0, 200 * MS)]);
        }
        assert!(close(debts.sleeps.due(), 100 * 50 * MS), "{:?}", debts.sleeps.due());
        // Those who ran and did not grow leave it all to the one that does.
        for _ in 0..200 {
            debts.waiting(BTreeSet::new());
            debts.owe([(0, 1.0, 50 * MS)]);
        }
        debts.sleeps.frozen(debts.sleeps.due());
        debts.owe([(0, 1.0, 50 * MS)]);
        assert!(close(debts.sleeps.due(), 50 * MS), "{:?}", debts.sleeps.due());
    }

    #[test]
    fn who_was_taken_for_another_thread_of_its_process_is_out_after_three_windows() {
        let mut debts = Debts::default();
        // The four that started them.
        debts.owe((0..4).map(|task| (task, 0.25, 12 * MS)));
        (4..8).for_each(|task| debts.enroll(task));
        for n in 0..3 {
            assert_eq!(debts.growers(), 8, "{n}");
            debts.owe((4..8).map(|task| (task, 1.0, 50 * MS)));
        }
        assert_eq!(debts.growers(), 4);
    }

    #[test]
    fn what_those_have_left_who_did_not_grow_goes_to_all_and_not_to_whose_turn_it_was() {
        let mut debts = Debts::default();
        (0..8).for_each(|task| debts.enroll(task));
        debts.owe((0..4).map(|task| (task, 0.1, 5 * MS)));
        for _ in 0..4 {
            debts.waiting([5, 6, 7].into());
            debts.owe([(4, 1.0, 50 * MS)]);
        }
        assert_eq!(debts.growers(), 4);
        debts.sleeps.frozen(debts.sleeps.due());
        debts.waiting([5, 6, 7].into());
        debts.owe([(4, 1.0, 48 * MS)]);
        assert!(close(debts.sleeps.due(), 12 * MS), "{:?}", debts.sleeps.due());
    }

    #[test]
    fn who_has_let_windows_pass_before_it_grew_at_all_counts_as_soon_as_it_does() {
        let mut debts = Debts::default();
        (0..4).for_each(|task| debts.enroll(task));
        for _ in 0..6 {
            debts.owe((0..3).map(|task| (task, 1.0, 50 * MS)));
        }
        assert_eq!(debts.growers(), 3);
        debts.owe([(3, 1.0, 50 * MS)]);
        assert_eq!(debts.growers(), 4);
    }

    #[test]
    fn what_was_the_part_of_those_that_do_not_grow_after_all_is_owed_by_the_others() {
        let mut debts = Debts::default();
        (0..7).for_each(|task| debts.enroll(task));
        debts.owe([(0, 1.0, 50 * MS), (1, 1.0, 50 * MS)]);
        debts.keep(|task| task < 4);
        debts.owe([(2, 1.0, 50 * MS), (3, 1.0, 50 * MS)]);
        assert!(close(debts.sleeps.due(), 50 * MS), "{:?}", debts.sleeps.due());
        // One that had grown takes its debt with it, as in the kernel.
        debts.keep(|task| task < 3);
        debts.owe([(0, 1.0, 50 * MS), (1, 1.0, 50 * MS), (2, 1.0, 50 * MS)]);
        assert!(close(debts.sleeps.due(), 100 * MS), "{:?}", debts.sleeps.due());
    }

    #[test]
    fn those_that_have_charged_sleep_for_what_that_cost_whoever_else_was_taken_to_grow() {
        let mut debts = Debts::default();
        let turns = |growers| Turns::new(growers, 512, 2000 * MS, Bytes::mib(64));
        (0..7).for_each(|task| debts.enroll(task));
        let costs = [770 * MS, 2000 * MS];
        debts.window([(0, 1.0, 1385 * MS), (1, 1.0, 1385 * MS)], &costs, turns);
        assert_eq!(debts.sleeps.granted(Duration::ZERO), 5);
        debts.keep(|task| task < 4);
        debts.window([(2, 1.0, 2000 * MS), (3, 1.0, 2000 * MS)], &[2000 * MS; 2], turns);
        let near = |due: Duration, want: Duration| due.abs_diff(want) < 40 * MS;
        assert!(near(debts.sleeps.due(), 770 * MS), "{:?}", debts.sleeps.due());
        debts.sleeps.frozen(770 * MS);
        assert_eq!(debts.sleeps.granted(Duration::ZERO), 1);
        debts.window([(0, 1.0, 2000 * MS)], &[2000 * MS], turns);
        assert!(near(debts.sleeps.due(), 1230 * MS), "{:?}", debts.sleeps.due());
    }

    #[test]
    fn a_task_that_is_gone_leaves_its_share_to_the_others() {
        let mut debts = Debts::default();
        debts.owe([(1, 1.0, 50 * MS), (2, 1.0, 50 * MS)]);
        debts.keep(|task| task != 1);
        debts.sleeps.frozen(debts.sleeps.due());
        debts.owe([(2, 1.0, 50 * MS)]);
        assert!(close(debts.sleeps.due(), 50 * MS));
    }

    proptest! {
        #[test]
        fn never_more_than_the_sum_nor_less_than_an_equal_part(
            windows in prop::collection::vec(prop::collection::vec((0u32..4, 0.0f64..20.0), 0..4), 1..200),
        ) {
            let mut debts = Debts::default();
            let mut owed = 0.0;
            for window in windows {
                debts.owe(window.iter().map(|(task, n)| (*task, *n, Duration::from_secs_f64(n * 0.05))));
                owed += window.iter().map(|(_, n)| n * 0.05).sum::<f64>();
                let sum: f64 = debts.shares.values().sum();
                prop_assert!(debts.shares.is_empty() || (sum - 1.0).abs() < 1e-6);
            }
            let due = debts.sleeps.due().as_secs_f64();
            prop_assert!(due <= owed + 1e-6 && due >= owed / 4.0 * 0.99 - 1e-6, "{due} {owed}");
        }
    }
}

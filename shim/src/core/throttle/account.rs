//! One task's own account: what it owes by itself, and whether it grows when it gets to run.
//!
//! All tasks in a pulse are frozen for as long as the one that owes most. A task that has grown little
//! pays for others there, which the kernel would not ask of it: as soon as it has been frozen for all that
//! it owes, and was seen to run without growing, it has no business in the pulse any more.
//!
//! That it did not grow in a window says nothing alone: with more growers than CPUs one of them gets none
//! in many a window, and let go it would grow at the speed of memory until it is found again. So it has to
//! have run: for most of the window, or until it went to sleep by itself. One that nobody has ever seen growing is let
//! go the first time it did, once it was frozen for so long that it would be behind, had it anything to fill.

use super::who::GROWS;
use std::time::Duration;

/// Who grows by fewer pages than this in a window does not grow; from [`GROWS`] on it does.
const LITTLE: u64 = 4;

/// One that was frozen for so much longer than it owed may grow by more, but less than who grows: it faults now and then,
/// for which the kernel would let it sleep for a fraction of that.
const OVERPAID: Duration = Duration::from_millis(200);

/// CPU time, in windows that were mostly its own, that is a stretch. At memset speed a task grows by a thousand
/// pages in it, in an emulated machine by a few dozen.
const RAN: Duration = Duration::from_millis(1);

/// A task that is frozen is put to sleep once by that; more often in a window: it slept by itself.
pub(super) const SLEPT: u64 = 2;

/// So many stretches in a row without growth: it has stopped. One may have waited for a lock.
const CALM: u32 = 4;

/// Windows in which one that may be amid a huge page slept on, of which that shows something. (Measured on 6.18, four growers
/// on two CPUs in windows of 0.25 ms: one had no CPU in four of them, was let go, and came to 6 MiB. One that is not due goes
/// to sleep once more as soon as it has had one.)
const STILL: u32 = 12;

/// One that never grew was frozen for so long: a task that fills memory at a pace of its own sleeps by itself, too,
/// but not when it was kept from it for so long.
pub(super) const BEHIND: Duration = Duration::from_millis(100);

/// The same where it may be amid a huge page. (Measured on 6.18 at 10 MiB/s, which is one in 0.2 s: a thread that naps was let
/// go after 0.1 s, found again, and so on, and came to 12 MiB.)
const BEHIND_HUGE: Duration = Duration::from_millis(400);

/// What a task did in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Chance {
    /// How long the window was.
    pub(super) window: Duration,
    /// How long it had a CPU, being thawed and frozen included.
    pub(super) ran: Duration,
    /// How often it slept, being frozen included (`voluntary_ctxt_switches`).
    pub(super) slept: u64,
    /// It was frozen in a system call that it had made, without having faulted: who fills memory is not.
    pub(super) asleep: bool,
    /// It faulted a few times, and was frozen in a call after that, as who sleeps for a time is.
    pub(super) rests: bool,
    /// It was started by one that grows, where huge pages are filled, or was seen to fault where its process filled one: it
    /// may be amid one, and naps without faulting.
    pub(super) amid: bool,
    /// Its sleep may be over by now: it may only have had no CPU.
    pub(super) may_be_due: bool,
}

/// The account.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    /// Nanoseconds owed; negative: frozen for longer than it owed.
    owed: i64,
    /// For how long it was frozen in all, and whether it was seen to grow.
    frozen: Duration,
    grew: bool,
    /// Since the last stretch ended.
    ran: Duration,
    calm: u32,
    /// Windows in which it slept on, as far as that can be told.
    still: u32,
}

impl Account {
    /// Of one that grows, and comes with this debt.
    pub(super) fn owing(debt: Duration) -> Account {
        Account { owed: nanos(debt), grew: true, ..Account::default() }
    }

    /// It was seen to grow.
    pub(super) fn grew(&mut self) {
        self.grew = true;
    }

    /// Whether it was frozen for long beyond what it owed.
    pub(super) fn has_overpaid(&self) -> bool {
        self.owed <= -nanos(OVERPAID)
    }

    /// Whether it has not shown yet if it grows, nor been kept from it for long: it may have had no CPU. (Measured on 6.18:
    /// one that had napped before the first pulse, which shows nothing, was frozen for all of that, 1.2 s.)
    pub(super) fn is_untried(&self) -> bool {
        !self.grew && self.frozen < if self.calm == 0 { 4 * BEHIND } else { BEHIND }
    }

    /// Whether it was frozen for so long that it would be behind, had it anything to do.
    pub(super) fn was_kept(&self) -> bool {
        self.frozen >= BEHIND
    }

    /// Whether nobody has seen it grow.
    pub(super) const fn never_grew(&self) -> bool {
        !self.grew
    }

    /// A window is over, in which it grew by so many pages and owes this for them.
    pub(super) fn window(&mut self, pages: u64, penalty: Duration, chance: Chance) {
        self.owed = self.owed.saturating_add(nanos(penalty));
        if pages >= GROWS {
            (self.ran, self.calm, self.grew) = (Duration::ZERO, 0, true);
        } else if pages < LITTLE || self.has_overpaid() {
            if chance.ran >= chance.window / 2 {
                self.ran += chance.ran;
            }
            // In a call, and has not slept since: it is as it was, and may only have had no CPU (measured: paced growers,
            // let go for that, took a high of 64 MiB to 105).
            let asleep = chance.asleep && !self.grew && chance.slept > 0;
            let unsure = chance.amid && !self.grew;
            // Not in the first pulses, which are short, so that windows follow each other. (Measured on 6.18: one of four
            // growers in huge pages that had no CPU in any of five windows within 0.3 s was let go, and filled 8 MiB.)
            let still = asleep && unsure && chance.may_be_due;
            self.still += u32::from(still && !self.is_untried());
            let for_long = self.still > 0 && self.still.is_multiple_of(STILL);
            let asleep = asleep && (!still || for_long);
            // It had a CPU, and would have gone on filling: it was kept from it for long. (Measured on 6.18 beside busy
            // loops, in windows of 0.2 ms: one that faults four times in 100 ms did so in every window, and went to
            // sleep; it was frozen for as long as there were growers.)
            let asleep = asleep || chance.rests && self.has_overpaid() && !unsure;
            if self.ran >= RAN || chance.slept >= SLEPT || asleep {
                self.ran = Duration::ZERO;
                // Before it was kept from growing that shows nothing. (Measured with huge pages filled at 50 and 200
                // MiB/s: two of four threads were let go in the second pulse, and filled 30 and 160 MiB.)
                self.calm += u32::from(!unsure || self.frozen >= BEHIND_HUGE);
            }
        }
    }

    /// It was frozen for so long.
    pub(super) fn frozen(&mut self, time: Duration) {
        self.owed = self.owed.saturating_sub(nanos(time));
        self.frozen = self.frozen.saturating_add(time);
    }

    /// Whether it has paid for what it grew by, and grows no more.
    pub(super) fn is_settled(&self) -> bool {
        let never_grew = !self.grew && self.frozen >= BEHIND;
        self.owed <= 0 && self.calm >= if never_grew { 1 } else { CALM }
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const WINDOW: Duration = Duration::from_micros(600);
    const STARVES: Chance = Chance {
        window: WINDOW,
        ran: Duration::from_micros(200),
        slept: 1,
        asleep: false,
        rests: false,
        amid: false,
        may_be_due: false,
    };
    const SLEEPS: Chance = Chance { ran: Duration::from_micros(10), slept: 2, ..STARVES };
    const SPINS: Chance = Chance { ran: Duration::from_micros(500), ..STARVES };
    const ASLEEP: Chance = Chance { slept: 1, asleep: true, ..SLEEPS };

    fn settled_after(account: &mut Account, chance: Chance, pulse: Duration) -> Option<u32> {
        (1..200).find(|_| {
            account.window(0, Duration::ZERO, chance);
            account.frozen(pulse);
            account.is_settled()
        })
    }

    #[test]
    fn one_that_runs_without_growing_is_let_go_after_a_few_windows() {
        for (chance, windows) in [(SLEEPS, 4), (SPINS, 8)] {
            let after = settled_after(&mut Account::owing(Duration::ZERO), chance, 100 * MS);
            assert_eq!(after, Some(windows), "{chance:?}");
        }
    }

    #[test]
    fn one_that_never_grew_is_let_go_after_the_first_long_pulse_in_which_it_fell_behind_nothing() {
        for (chance, windows) in [(SLEEPS, 1), (ASLEEP, 1), (SPINS, 2)] {
            let after = settled_after(&mut Account::default(), chance, BEHIND);
            assert_eq!(after, Some(windows), "{chance:?}");
        }
        // One that has grown may wait for others in a call.
        assert_eq!(settled_after(&mut Account::owing(Duration::ZERO), ASLEEP, BEHIND), None);
        // In short pulses a paced one has nothing to do either.
        assert_eq!(settled_after(&mut Account::default(), SLEEPS, 10 * MS), Some(4));
        let mut grows = Account::default();
        grows.window(64, 100 * MS, SLEEPS);
        assert!(!grows.is_untried());
        assert_eq!(settled_after(&mut grows, SLEEPS, 100 * MS), Some(4));
    }

    #[test]
    fn one_that_may_be_amid_a_huge_page_is_let_go_when_it_naps_although_it_was_kept_from_growing() {
        let mut account = Account::default();
        let naps = Chance { amid: true, may_be_due: true, ..SLEEPS };
        for kept in [BEHIND, BEHIND_HUGE - BEHIND] {
            account.window(0, Duration::ZERO, naps);
            account.frozen(kept);
            // That was before.
            assert!(!account.is_settled());
        }
        account.window(0, Duration::ZERO, naps);
        assert!(account.is_settled());
        // And where it may only have had no CPU, after a few windows that were not among the first.
        let may_be_due = Chance { slept: 1, asleep: true, ..naps };
        assert_eq!(settled_after(&mut Account::default(), may_be_due, BEHIND), Some(4 + STILL));
        let beside_long_pulses = settled_after(&mut Account::default(), may_be_due, 5 * BEHIND);
        assert_eq!(beside_long_pulses, Some(1 + STILL));
    }

    #[test]
    fn one_that_is_where_it_was_shows_nothing() {
        let stays = Chance { slept: 0, ..ASLEEP };
        assert_eq!(settled_after(&mut Account::default(), stays, BEHIND), None);
    }

    #[test]
    fn one_that_gets_no_cpu_is_not_taken_for_one_that_does_not_grow() {
        // 40 ms of CPU in all, in 200 windows, and all of it for being thawed and frozen.
        assert_eq!(settled_after(&mut Account::default(), STARVES, 100 * MS), None);
    }

    #[test]
    fn it_pays_for_what_it_grew_by_first() {
        let mut account = Account::owing(1000 * MS);
        assert_eq!(settled_after(&mut account, SLEEPS, 100 * MS), Some(10));
    }

    #[test]
    fn one_that_faults_now_and_then_is_let_go_when_it_has_paid_for_that_and_more() {
        let mut account = Account::owing(100 * MS);
        let after = (1..100).find(|_| {
            account.window(LITTLE, 10 * MS, SLEEPS);
            account.frozen(100 * MS);
            account.is_settled()
        });
        // It owes 90 ms less after each: four in which it is 200 ms ahead.
        assert_eq!(after, Some(8));
    }

    #[test]
    fn one_that_faults_a_few_times_and_rests_in_every_window_is_let_go_once_it_has_paid_for_more() {
        let after = |mut account: Account, chance: Chance| {
            (1..100).find(|_| {
                account.window(LITTLE, 10 * MS, chance);
                account.frozen(100 * MS);
                account.is_settled()
            })
        };
        let rests = Chance { rests: true, ..STARVES };
        assert_eq!(after(Account::default(), rests), Some(4));
        assert_eq!(after(Account::owing(100 * MS), rests), Some(8));
        // Who fills memory is stopped at that; and one that may be amid a huge page shows nothing.
        assert_eq!(after(Account::default(), STARVES), None);
        assert_eq!(after(Account::default(), Chance { amid: true, ..rests }), None);
    }

    #[test]
    fn one_that_napped_before_the_first_pulse_is_tried_in_a_short_one() {
        let mut account = Account::default();
        account.window(0, Duration::ZERO, SLEEPS);
        assert!(account.is_untried() && !account.is_settled());
        account.frozen(BEHIND);
        assert!(!account.is_untried() && account.is_settled());
    }

    #[test]
    fn one_that_grows_now_and_then_stays() {
        let mut account = Account::owing(Duration::ZERO);
        for _ in 0..100 {
            for chance in [SLEEPS, SLEEPS, SPINS] {
                account.window(0, Duration::ZERO, chance);
                account.frozen(100 * MS);
                assert!(!account.is_settled());
            }
            account.window(64, 100 * MS, SPINS);
        }
    }
}

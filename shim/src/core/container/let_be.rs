//! Whether to let a group be because what is reclaimed comes back.

use super::super::backoff::Backoff;
use super::super::event::{Now, Survey};
use cgroupfs::Bytes;
use cgroupfs::units::page_size;
use std::time::Duration;

/// How long a group that is let be must stay below the ceiling for its set to count as fitting.
const FITS_AFTER: Duration = Duration::from_secs(10);

/// First and longest pause between two tries at letting a group be.
const LET_BE_FIRST: Duration = Duration::from_secs(2);
const LET_BE_CAP: Duration = Duration::from_secs(120);

/// Freed bytes that a judgement about refaults needs.
const JUDGED_ON: Bytes = Bytes::mib(16);

/// What came back of what was reclaimed: the group's working set is above our mark but fits under the limit, where
/// nothing would have happened to it without us.
///
/// Refaults alone do not tell: a stream that is read in circles refaults just as much. So the group is
/// let be, and what happens next tells: a set that fits stays under the ceiling, a stream goes on
/// through it at once.
#[derive(Debug)]
pub(super) struct LetBe {
    /// Since when it is let be.
    since: Option<Now>,
    not_before: Now,
    backoff: Backoff,
    refaults: Option<u64>,
    refaulted: u64,
    freed: Bytes,
    /// Direct reclaim events when it began.
    direct_reclaim: u64,
}

impl LetBe {
    pub(super) const fn new(seed: u64) -> LetBe {
        LetBe {
            since: None,
            not_before: Now::ZERO,
            backoff: Backoff::new(LET_BE_FIRST, LET_BE_CAP, seed),
            refaults: None,
            refaulted: 0,
            freed: Bytes(0),
            direct_reclaim: 0,
        }
    }

    /// The group is let be.
    pub(super) const fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// So much was reclaimed.
    pub(super) const fn took(&mut self, freed: Bytes) {
        self.freed = self.freed.saturating_add(freed);
    }

    /// Whether what we reclaim comes back, and it is time to see what happens without us.
    pub(super) fn is_in_use(&mut self, now: Now, survey: &Survey) -> bool {
        // Pages of a file that come back within the distance of the working set are activated at once
        // (mm/workingset.c); those of a stream, however often it goes round, are not.
        let stat = &survey.stat;
        let kept = stat.active_file.unwrap_or_default() > stat.inactive_file.unwrap_or_default();
        let refaults = stat.workingset_refault_anon.unwrap_or(0)
            + if kept { stat.workingset_refault_file.unwrap_or(0) } else { 0 };
        let delta = refaults.saturating_sub(self.refaults.unwrap_or(refaults));
        self.refaults = Some(refaults);
        // Pages; bytes on v1 before 6.7, where the statistics multiply every item by the page size.
        let bytes = if refaults.is_multiple_of(page_size()) && delta.is_multiple_of(page_size()) {
            delta
        } else {
            delta.saturating_mul(page_size())
        };
        self.refaulted = self.refaulted.saturating_add(bytes);
        if self.freed < JUDGED_ON {
            return false;
        }
        let comes_back = self.refaulted >= self.freed.0 / 2;
        self.refaulted = 0;
        self.freed = Bytes(0);
        comes_back && now >= self.not_before
    }

    /// It is let be from now on.
    pub(super) const fn begin(&mut self, now: Now, survey: &Survey) {
        self.since = Some(now);
        self.direct_reclaim = survey.direct_reclaim;
    }

    /// Whether it met its limit since.
    pub(super) const fn was_hit(&self, survey: &Survey) -> bool {
        survey.direct_reclaim > self.direct_reclaim
    }

    /// It goes through the ceiling: the longer until the next try, the sooner it did.
    pub(super) fn end(&mut self, now: Now) {
        if let Some(since) = self.since.take() {
            if now.saturating_sub(since) >= FITS_AFTER {
                self.backoff.succeed();
            }
            self.not_before = now + self.backoff.fail();
        }
    }

    /// It is held to other terms.
    pub(super) const fn forget(&mut self) {
        self.since = None;
    }
}

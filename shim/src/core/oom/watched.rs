//! What is known of one container, and what is waited for about it.

use super::cause::Evidence;
use super::event::{Detail, LevelLook, LogKill, Stamp, Subject};
use super::ledger::{RECHECK_FOR, RECHECK_FULL_FOR, RECHECK_LAST};
use super::open::{Open, conclude};
use super::record::{Breakdown, Cause, From, Record};
use crate::core::Now;
use cgroupfs::Limit;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A record is settled this long after the kill: whether init outlived it is known by then.
const SETTLE: Duration = Duration::from_millis(100);

/// The same for one whose victim is not known yet while the log can be read: its line follows the
/// counter within microseconds, but its reader may be behind in a flood.
const SETTLE_UNCLAIMED: Duration = Duration::from_millis(500);

/// A line of the log about a group whose counter did not rise makes a record of its own after this long.
pub(super) const UNCOUNTED: Duration = Duration::from_millis(20);

/// A line that comes so long after its record was settled still completes it (a slow serial console held
/// one up for 0.8 s).
const LATE: Duration = Duration::from_secs(10);

/// What is known of a group is kept this long after it is gone, for lines that are still to come.
pub(super) const REMEMBER: Duration = Duration::from_secs(2);

/// A look at the group before the kill describes it this long.
const FRESH: Duration = Duration::from_millis(250);

/// A rise of `failcnt` since longer ago says nothing about this OOM, unless the group was full.
const RECENT: Duration = Duration::from_secs(10);

/// Who runs out of memory is counted first, and kills then: the killer may be busy with others, this long at most.
const SEEN_COMING: Duration = Duration::from_secs(2);

/// Signals without a kill are told once in this long for a container.
const WOKE_EVERY: Duration = Duration::from_secs(1);

/// A container that is watched, or was until a moment ago.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) subject: Subject,
    pub(super) seen: u64,
    /// Kills recorded by the log that the counter has yet to show.
    pub(super) owed: u64,
    pub(super) baseline: (Now, Vec<LevelLook>),
    /// Since when the hits of each level have stood as they are there.
    quiet_since: Vec<Now>,
    /// The last look while nobody had been killed yet.
    pub(super) before: Option<(Now, Box<Detail>)>,
    /// The last look of all.
    pub(super) last: Option<Box<Detail>>,
    pub(super) episode: Option<Episode>,
    pub(super) open: Vec<Open>,
    pub(super) unclaimed: Vec<(Now, LogKill)>,
    /// Settled without their line of the log, and when.
    pub(super) late: VecDeque<(Now, Open)>,
    pub(super) gone: Option<Now>,
    /// Found gone, and no limit but its own can have been hit since its baseline.
    pub(super) only_own: bool,
    pub(super) leaving: bool,
    pub(super) init_exited: bool,
    pub(super) woke: Option<Now>,
}

/// From a signal until nothing has happened for a while.
#[derive(Debug)]
pub(super) struct Episode {
    pub(super) since: Now,
    pub(super) until: Now,
    pub(super) next_look: Now,
    pub(super) signals: u64,
    pub(super) signalled: Vec<bool>,
    pub(super) kills: u64,
    /// Memory ran out, whether or not anybody looked in time.
    pub(super) sure: bool,
    /// Its end was due then, without a kill, and one more look was asked for.
    last_look: Option<Now>,
}

impl Watched {
    pub(super) fn new(now: Now, mut subject: Subject) -> Watched {
        Watched {
            seen: subject.oom_kill.unwrap_or(0),
            owed: 0,
            quiet_since: std::mem::take(&mut subject.quiet_since),
            baseline: (now, std::mem::take(&mut subject.levels)),
            before: None,
            last: None,
            episode: None,
            open: Vec::new(),
            unclaimed: Vec::new(),
            late: VecDeque::new(),
            gone: None,
            only_own: false,
            leaving: false,
            init_exited: false,
            woke: None,
            subject,
        }
    }

    pub(super) fn episode(&mut self, now: Now) -> &mut Episode {
        let levels = self.subject.ancestors.len() + 1;
        self.episode.get_or_insert_with(|| Episode {
            since: now,
            until: now + RECHECK_FOR,
            next_look: now,
            signals: 0,
            signalled: vec![false; levels],
            kills: 0,
            sure: false,
            last_look: None,
        })
    }

    /// Puts off the end of an episode that is due, and in which nobody was killed, until it is known whether the group
    /// is still full, and for as long as it is; true if one more look is to be taken for that.
    pub(super) fn ends_full(&mut self, now: Now) -> bool {
        let look = self.before.as_ref();
        let Some(episode) = &mut self.episode else { return false };
        let due = now >= episode.until && now < episode.since + RECHECK_FULL_FOR;
        if !due || episode.kills > 0 || episode.signals == 0 || self.gone.is_some() {
            return false;
        }
        let Some(asked) = episode.last_look else {
            episode.last_look = Some(now);
            episode.until = now + RECHECK_LAST;
            return true;
        };
        let look = look.filter(|(when, _)| *when >= asked);
        if look.and_then(|(_, detail)| detail.levels.first()).is_some_and(LevelLook::full) {
            episode.last_look = None;
            episode.until = now + RECHECK_FOR;
        }
        false
    }

    /// One more record is open.
    pub(super) fn push(&mut self, open: Open) {
        // Hardly ever are there several, and each is more than half a KiB.
        self.open.reserve_exact(1);
        self.open.push(open);
    }

    /// Room that is needed no more: what is remembered of a group that is gone is not to hold it.
    pub(super) fn let_go(&mut self) {
        if self.open.is_empty() {
            self.open = Vec::new();
        }
        if self.unclaimed.is_empty() {
            self.unclaimed = Vec::new();
        }
    }

    /// The oldest record that was settled lately without its line of the log.
    pub(super) fn settled_without(&mut self, now: Now) -> Option<Open> {
        while let Some((settled, open)) = self.late.pop_front() {
            if now <= settled + LATE {
                return Some(open);
            }
        }
        None
    }

    pub(super) fn told_lately(&self, now: Now) -> bool {
        self.woke.is_some_and(|told| now < told + WOKE_EVERY)
    }

    pub(super) fn settles_at(&self, n: usize, log_readable: bool) -> Now {
        let Some(open) = self.open.get(n) else { return Now::ZERO };
        let waits = open.waits() && log_readable;
        open.born
            + match (waits, self.leaving) {
                (true, _) => SETTLE_UNCLAIMED,
                (false, true) => Duration::ZERO,
                (false, false) => SETTLE,
            }
    }

    pub(super) fn deadline(&self, log_readable: bool) -> Option<Now> {
        let settle = (0..self.open.len()).map(|n| self.settles_at(n, log_readable)).min();
        let uncounted = self.unclaimed.first().map(|(since, _)| *since + UNCOUNTED);
        let episode = self.episode.as_ref().map(|episode| match self.gone {
            Some(_) => episode.until,
            None => episode.until.min(episode.next_look),
        });
        let gone = self.gone.map(|gone| gone + REMEMBER);
        let idle = self.open.is_empty() && self.unclaimed.is_empty() && self.gone.is_none();
        let leaving = (self.leaving && idle).then_some(Now::ZERO);
        [settle, uncounted, episode, gone, leaving].into_iter().flatten().min()
    }

    /// A record of the group as it was.
    pub(super) fn open(
        &self,
        at: Stamp,
        id: String,
        kills: u64,
        beneath: bool,
        from: From,
    ) -> Open {
        let before = self.before.as_ref().filter(|(when, _)| at.now <= *when + FRESH);
        let (detail, when) = match (before, &self.last) {
            (Some((_, detail)), _) => (Some(detail), From::FilesBefore),
            (None, Some(detail)) => (Some(detail), From::FilesAfter),
            (None, None) => (None, From::FilesAfter),
        };
        let subject = &self.subject;
        let mut record = Record {
            schema: 1,
            id,
            settled: false,
            wall_ms: at.wall_ms,
            boot_ms: at.boot_ms,
            name: subject.name.clone(),
            container: subject.container.clone(),
            cgroup: subject.cgroup.clone(),
            generation: subject.generation,
            kills,
            oom_kill_counter: None,
            cause: Cause::Unknown,
            unknown: Vec::new(),
            limit_cgroup: None,
            victim: None,
            init_survived: None,
            usage_bytes: None,
            peak_bytes: None,
            limit_declared_bytes: None,
            limit_in_force_bytes: None,
            ancestor_limit_bytes: None,
            breakdown: Breakdown::default(),
            signals: self.episode.as_ref().map_or(0, |episode| episode.signals),
            deeds: Vec::new(),
            cgshim_could_be_cause: false,
            from: BTreeMap::new(),
        };
        record.source("kills", from);
        if self.init_exited {
            record.init_survived = Some(false);
            record.source("init_survived", From::Pidfd);
        }
        if let Some(detail) = detail {
            let own = detail.levels.first().copied().unwrap_or_default();
            let bytes = |limit: Option<Limit>| limit.and_then(Limit::bytes).map(|bytes| bytes.0);
            record.usage_bytes = own.usage.map(|usage| usage.0);
            record.peak_bytes = detail.peak.map(|peak| peak.0);
            record.limit_in_force_bytes = bytes(own.limit);
            record.limit_declared_bytes = bytes(detail.declared.or(own.limit));
            record.breakdown = detail.breakdown;
            record.deeds.clone_from(&detail.deeds);
            record.cgshim_could_be_cause = detail.lowered
                || detail.deeds.iter().any(|deed| deed.lowered && deed.before_ms <= 20);
            for field in ["usage_bytes", "peak_bytes", "limit_in_force_bytes", "breakdown"] {
                record.source(field, when);
            }
            for field in ["limit_declared_bytes", "deeds", "cgshim_could_be_cause"] {
                record.source(field, From::Cgshim);
            }
        }
        Open { record, born: at.now, claimed: false, levels: self.evidence(at.now), beneath }
    }

    /// An episode is over: what happens from now on is held against what was seen last.
    pub(super) fn begin_anew(&mut self, now: Now) {
        let Some(last) = &self.last else { return };
        let (since, before) = &self.baseline;
        let signalled = self.episode.as_ref().map(|episode| &episode.signalled[..]);
        let quiet_since = last.levels.iter().enumerate().map(|(n, after)| {
            let signalled = signalled.and_then(|levels| levels.get(n)) == Some(&true);
            let stood = before.get(n).is_some_and(|before| before.hits() == after.hits());
            match stood && !signalled {
                true => self.quiet_since.get(n).copied().unwrap_or(*since),
                false => now,
            }
        });
        self.quiet_since = quiet_since.collect();
        self.baseline = (now, last.levels.clone());
    }

    /// Whether this level may have run out of memory before it was first looked at, and have somebody killed for it now.
    fn unsure(&self, level: usize, now: Now) -> bool {
        let (since, baseline) = &self.baseline;
        let Some(before) = baseline.get(level) else { return false };
        let quiet_since = self.quiet_since.get(level).unwrap_or(since);
        before.limited() && before.hits() != Some(0) && now < *quiet_since + SEEN_COMING
    }

    /// Whether none of the groups above can have been out of memory, as they are now that it is gone: they have no limit
    /// and had none, or have never been, or not while they were watched long enough to see a kill coming.
    pub(super) fn had_the_only_limit(&self, now: Now, above: &[LevelLook]) -> bool {
        let Some((own, before)) = self.baseline.1.split_first() else { return false };
        let still = |(n, (before, after)): (usize, (&LevelLook, &LevelLook))| {
            let counted = before.hits().is_some() && before.hits() == after.hits();
            !before.limited() && !after.limited() || counted && !self.unsure(n + 1, now)
        };
        self.subject.all_ancestors
            && matches!(own.limit, Some(Limit::Bytes(_)))
            && before.len() == above.len()
            && before.iter().zip(above).enumerate().all(still)
    }

    pub(super) fn evidence(&self, now: Now) -> Vec<Evidence> {
        let (since, baseline) = &self.baseline;
        let recent = now <= *since + RECENT;
        let paths = std::iter::once(&self.subject.path).chain(&self.subject.ancestors);
        let rise = |after: Option<u64>, before: Option<u64>| {
            after.unwrap_or(0).saturating_sub(before.unwrap_or(0))
        };
        paths
            .enumerate()
            .map(|(n, path)| {
                let before = baseline.get(n).copied().unwrap_or_default();
                let at = |detail: &Detail| detail.levels.get(n).copied();
                let last = self.last.as_ref().and_then(|detail| at(detail));
                let look = self.before.as_ref().and_then(|(_, detail)| at(detail));
                let full = [look, last].iter().flatten().any(LevelLook::full);
                let read = |look: &LevelLook| look.failcnt.is_some() || look.oom.is_some();
                let unread = ![look, last].iter().flatten().any(read);
                let last = last.or(look).unwrap_or_default();
                Evidence {
                    path: path.clone(),
                    signalled: self
                        .episode
                        .as_ref()
                        .is_some_and(|episode| episode.signalled.get(n) == Some(&true)),
                    oom_local: rise(last.oom_local, before.oom_local),
                    oom: rise(last.oom, before.oom),
                    failcnt: match recent || full {
                        true => rise(last.failcnt, before.failcnt),
                        false => 0,
                    },
                    full,
                    unread,
                    unsure: self.unsure(n, now),
                    only_limit: n == 0 && self.only_own,
                }
            })
            .collect()
    }

    /// Signals were heard that had been made before the group was removed: what the log alone made a record of,
    /// without the line that says whose limit was hit, is judged by them.
    pub(super) fn judge_again(&mut self, now: Now, log_readable: bool) {
        let levels = self.evidence(now);
        for open in &mut self.open {
            let by_log = open.record.from.get("cause") == Some(&From::KernelLog);
            if !by_log && open.record.cause != Cause::WokeWithoutKill {
                open.levels.clone_from(&levels);
                conclude(open, None, log_readable);
            }
        }
    }

    pub(super) fn limit_of(&self, path: &str) -> Option<u64> {
        let level = self.subject.ancestors.iter().position(|ancestor| ancestor == path)? + 1;
        let looks = self.last.iter().chain(self.before.iter().map(|(_, detail)| detail));
        looks
            .filter_map(|detail| detail.levels.get(level)?.limit?.bytes())
            .map(|bytes| bytes.0)
            .next()
    }
}

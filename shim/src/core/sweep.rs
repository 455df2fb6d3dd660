//! When what ended containers left behind is swept, through the group that they were in.
//!
//! Pages that could not be emptied at the exit (they were dirty, or in a CPU's batch on the way to a
//! list) keep a removed group alive. Reclaim on its parent reaches them first: the kernel takes from
//! groups that are offline at every priority, and from live ones by their size (`get_scan_count()`).

use super::Now;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A sweep comes so long after an exit, for all that end meanwhile: the more dead groups there are, the
/// less the live ones pay, which give a little in every round through all groups.
pub const AFTER_EXIT: Duration = Duration::from_secs(5);

/// Or once so many have ended that could not be emptied, and this long after the sweep before.
const MANY: u32 = 50;
const BETWEEN: Duration = Duration::from_secs(1);

/// Or once so many have ended and were emptied: CPUs may have a batch of charges of an emptied one (16 of them on two CPUs
/// on 6.18), which keeps it as a page does, and a sweep that takes nothing has them give it back.
const MANY_ENDS: u32 = 20;

/// So few dead groups are not worth what live ones would lose, 2 MiB in the first round where their page cache is in huge
/// folios.
pub const FEW: u32 = 3;

/// What live groups may lose before dead ones let go four times as much: a huge folio or two.
const FIRST_ROUND: u64 = 4 << 20;

/// After one that let nothing go, the next comes after this, then twice as late each time. Dirty pages
/// are written after 30 s (`vm.dirty_expire_centisecs`) at the latest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// So many in a row that let nothing go are the last, until a container ends there again.
const MOST_FUTILE: u32 = 5;

/// The disk is waited for as long, in twice as long steps from here: a sweep that meets dirty pages only has the kernel
/// write them at once (`shrink_inactive_list()` wakes the flusher), and the next one finds them written. So is one that
/// had to end as the living paid for it.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const MOST_WAITS: u32 = 7;

/// Groups that are remembered at most; beyond that, a parent is not swept.
const MOST_PARENTS: usize = 4096;

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// On the parent's account and nobody's that lives, before it.
    pub held_before: u64,
    /// The same after it.
    pub held_after: u64,
    /// What live groups beneath the parent had less after the sweep's writes than before them: at most
    /// what the sweep took from them.
    pub from_live: u64,
    /// Of what is held after it, to be written to a disk first.
    pub to_write: u64,
    /// Groups with processes are beneath it.
    pub live: bool,
    /// The parent is gone.
    pub gone: bool,
}

impl Swept {
    /// Most of it cannot be had now.
    pub fn waits_for_the_disk(&self) -> bool {
        self.to_write > self.held_after / 2
    }

    /// The living pay too much for what it lets go: it is to end here.
    pub fn is_dear(&self) -> bool {
        let freed = self.held_before.saturating_sub(self.held_after);
        self.waits_for_the_disk() || self.from_live > freed / 4 + FIRST_ROUND
    }
}

/// How much a parent's live groups may lose for its dead ones: no more than those hold, all sweeps
/// together. It is earned by what dead groups hold that was not there at the last sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Negative: a write took more than was left.
    left: i64,
    /// What dead groups held after the last sweep: earned for already.
    held: u64,
}

impl Budget {
    /// What may be taken from live groups, with so much held by dead ones.
    pub fn before(&mut self, held: u64) -> u64 {
        self.left = self
            .left
            .saturating_add(held.saturating_sub(self.held).cast_signed())
            .min(held.cast_signed());
        u64::try_from(self.left).unwrap_or(0)
    }

    /// A sweep was made.
    pub fn after(&mut self, swept: &Swept) {
        self.left = self.left.saturating_sub(swept.from_live.cast_signed());
        self.held = swept.held_after;
    }
}

/// What is yet to be swept.
#[derive(Debug, Default)]
pub struct Sweeps {
    parents: BTreeMap<PathBuf, Parent>,
}

#[derive(Debug)]
struct Parent {
    due: Now,
    budget: Budget,
    futile: u32,
    /// Sweeps in a row that let nothing go, as it was dirty or the living would have paid for it.
    waits: u32,
    /// So many ended since the last sweep began and could not be emptied.
    exits: u32,
    /// So many that could be emptied.
    ends: u32,
    /// So many may still be dying.
    dying: u32,
    /// What is due is not more than a look whether all is gone.
    again: bool,
    last: Option<Now>,
    under_way: bool,
}

impl Sweeps {
    /// A container in `parent` has ended, and was emptied or not.
    pub fn ended(&mut self, now: Now, parent: &Path, emptied: bool) {
        let left = u32::from(!emptied);
        if let Some(known) = self.parents.get_mut(parent) {
            known.exits += left;
            known.ends += 1 - left;
            known.dying += left;
            known.again = true;
            if !emptied {
                (known.futile, known.waits) = (0, 0);
            }
            if !known.under_way {
                known.due = known.due.min(known.after_exit(now));
            }
        } else if self.parents.len() < MOST_PARENTS {
            let fresh = Parent {
                due: now + AFTER_EXIT,
                budget: Budget::default(),
                futile: 0,
                waits: 0,
                exits: left,
                ends: 1 - left,
                dying: left,
                again: false,
                last: None,
                under_way: false,
            };
            self.parents.insert(parent.to_owned(), fresh);
        }
    }

    /// The parent to be swept now, if it is time for one. One at a time: [`Sweeps::swept`] comes before
    /// the next.
    ///
    /// With it comes what live groups may lose, or that they are not to be touched.
    pub fn begin(&mut self, now: Now) -> Option<(PathBuf, Option<Budget>)> {
        if self.parents.values().any(|parent| parent.under_way) {
            return None;
        }
        let due = self.parents.iter_mut().filter(|(_, parent)| parent.due <= now);
        let (path, parent) = due.min_by_key(|(_, parent)| parent.due)?;
        parent.under_way = true;
        (parent.exits, parent.ends) = (0, 0);
        parent.again = false;
        Some((path.clone(), (parent.dying > FEW).then_some(parent.budget)))
    }

    /// What came of it, and what is left of the budget.
    pub fn swept(&mut self, now: Now, path: &Path, swept: &Swept, budget: Option<Budget>) {
        let Some(parent) = self.parents.get_mut(path) else { return };
        parent.under_way = false;
        parent.budget = budget.unwrap_or(parent.budget);
        let freed = swept.held_before.saturating_sub(swept.held_after);
        // Less than a pass is as good as nothing, but for the last of it.
        let futile = freed < (128 << 10).min(swept.held_before.max(1));
        let waits = swept.live && swept.is_dear();
        match (futile, waits) {
            (false, _) => (parent.futile, parent.waits) = (0, 0),
            (true, false) => parent.futile += 1,
            (true, true) => parent.waits += 1,
        }
        if swept.held_after == 0 {
            parent.dying = parent.exits;
        }
        // Few are kept in mind: others may follow.
        let few = swept.live && parent.dying <= FEW;
        let in_vain = parent.futile >= MOST_FUTILE || parent.waits >= MOST_WAITS;
        let done = parent.dying == 0 || in_vain;
        parent.last = Some(now);
        if swept.gone || (done && !parent.again) {
            self.parents.remove(path);
            return;
        }
        let pause = match waits {
            true => FIRST_WAIT * 2u32.pow(parent.waits.min(MOST_WAITS)),
            false => FIRST_PAUSE * 2u32.pow(parent.futile.min(MOST_FUTILE)),
        };
        parent.due = if few { Now::MAX } else { now + pause };
        if parent.again {
            parent.due = parent.due.min(parent.after_exit(now));
        }
    }

    /// When [`Sweeps::begin`] is due.
    pub fn deadline(&self) -> Option<Now> {
        if self.parents.values().any(|parent| parent.under_way) {
            return None;
        }
        self.parents.values().map(|parent| parent.due).filter(|due| *due < Now::MAX).min()
    }
}

impl Parent {
    fn after_exit(&self, now: Now) -> Now {
        match (self.exits >= MANY || self.ends >= MANY_ENDS, self.last) {
            (true, Some(last)) => now.max(last + BETWEEN),
            (true, None) => now,
            (false, _) => now + AFTER_EXIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn left(held_before: u64, held_after: u64) -> Swept {
        Swept { held_before, held_after, live: true, ..Swept::default() }
    }

    fn end(sweeps: &mut Sweeps, now: Now, parent: &Path, n: u32) {
        for _ in 0..n {
            sweeps.ended(now, parent, false);
        }
    }

    #[test]
    fn exits_at_the_same_time_are_one_sweep() {
        let mut sweeps = Sweeps::default();
        let pod = Path::new("/pod");
        for ms in 0..40 {
            sweeps.ended(Duration::from_millis(ms * 10), pod, false);
        }
        assert_eq!(sweeps.deadline(), Some(AFTER_EXIT));
        assert_eq!(sweeps.begin(AFTER_EXIT / 2), None);
        let (path, budget) = sweeps.begin(AFTER_EXIT).unwrap();
        assert_eq!((path.as_path(), budget.is_some()), (pod, true));
        // While it goes on there is no other.
        assert_eq!(sweeps.begin(10 * SECOND), None);
        sweeps.swept(SECOND * 6, pod, &left(1 << 20, 0), budget);
        assert_eq!(sweeps.deadline(), None);
        // Many do not wait.
        end(&mut sweeps, SECOND * 10, pod, 1);
        end(&mut sweeps, SECOND * 10, pod, MANY);
        assert_eq!(sweeps.deadline(), Some(SECOND * 10));
    }

    #[test]
    fn the_living_pay_nothing_for_few_and_those_are_not_forgotten() {
        let mut sweeps = Sweeps::default();
        let pod = Path::new("/pod");
        end(&mut sweeps, SECOND, pod, FEW);
        let (path, budget) = sweeps.begin(10 * SECOND).unwrap();
        assert_eq!(budget, None);
        sweeps.swept(10 * SECOND, &path, &left(1 << 20, 1 << 20), budget);
        assert_eq!(sweeps.deadline(), None);
        // An exit that left nothing is a look whether all is gone by now; one more that left something is
        // enough of them.
        sweeps.ended(20 * SECOND, pod, true);
        assert_eq!(sweeps.begin(25 * SECOND).unwrap().1, None);
        sweeps.ended(25 * SECOND, pod, false);
        sweeps.swept(25 * SECOND, pod, &left(1 << 20, 1 << 20), None);
        assert!(sweeps.begin(31 * SECOND).unwrap().1.is_some());
    }

    #[test]
    fn what_is_yet_to_be_written_is_waited_for_and_what_is_written_then_had_at_once() {
        let mut sweeps = Sweeps::default();
        let pod = Path::new("/pod");
        let dirty = |held_before, held_after| Swept {
            to_write: held_after - (64 << 10),
            ..left(held_before, held_after)
        };
        assert!(dirty(1 << 20, 1 << 20).waits_for_the_disk());
        assert!(!left(1 << 20, 1 << 20).waits_for_the_disk());
        assert!(!left(1 << 20, 0).waits_for_the_disk());
        end(&mut sweeps, Duration::ZERO, pod, 2 * FEW);
        let (mut now, mut pauses) = (sweeps.deadline().unwrap(), Vec::new());
        while let Some(at) = sweeps.deadline() {
            pauses.push(at - now);
            now = at;
            let (_, budget) = sweeps.begin(now).unwrap();
            sweeps.swept(now, pod, &dirty(1 << 20, 1 << 20), budget);
        }
        assert_eq!((pauses.len() as u32, pauses[1]), (MOST_WAITS, 2 * FIRST_WAIT));
        assert!(now > 60 * SECOND && now < 180 * SECOND, "{now:?}");
        // Some of it was written.
        end(&mut sweeps, now, pod, 2 * FEW);
        let at = sweeps.deadline().unwrap();
        let (_, budget) = sweeps.begin(at).unwrap();
        sweeps.swept(at, pod, &dirty(2 << 20, 1 << 20), budget);
        assert_eq!(sweeps.deadline(), Some(at + FIRST_WAIT));
    }

    #[test]
    fn many_that_were_emptied_are_looked_at_once_a_second() {
        let mut sweeps = Sweeps::default();
        let pod = Path::new("/pod");
        for _ in 0..MANY_ENDS {
            assert_eq!(sweeps.deadline(), (!sweeps.parents.is_empty()).then_some(AFTER_EXIT));
            sweeps.ended(Duration::ZERO, pod, true);
        }
        assert_eq!(sweeps.deadline(), Some(Duration::ZERO));
        let (_, budget) = sweeps.begin(Duration::ZERO).unwrap();
        assert_eq!(budget, None);
        for _ in 0..MANY_ENDS {
            sweeps.ended(SECOND / 2, pod, true);
        }
        sweeps.swept(SECOND / 2, pod, &left(0, 0), budget);
        assert_eq!(sweeps.deadline(), Some(SECOND / 2 + BETWEEN));
        let (_, budget) = sweeps.begin(2 * SECOND).unwrap();
        sweeps.swept(2 * SECOND, pod, &left(0, 0), budget);
        assert_eq!(sweeps.deadline(), None);
    }

    #[test]
    fn what_stays_is_tried_for_a_minute_and_then_left_to_the_kernel() {
        let mut sweeps = Sweeps::default();
        let pod = Path::new("/pod");
        end(&mut sweeps, Duration::ZERO, pod, 2 * FEW);
        let (mut now, mut tries) = (Duration::ZERO, 0);
        while let Some(at) = sweeps.deadline() {
            now = at;
            let (_, budget) = sweeps.begin(now).unwrap();
            sweeps.swept(now, pod, &left(1 << 20, 1 << 20), budget);
            tries += 1;
        }
        assert_eq!(tries, MOST_FUTILE);
        assert!(now > 30 * SECOND && now < 120 * SECOND, "{now:?}");
        // Until somebody ends there again.
        end(&mut sweeps, now, pod, 1);
        assert_eq!(sweeps.deadline(), Some(now + AFTER_EXIT));
    }

    #[test]
    fn a_parent_that_is_gone_is_forgotten_and_memory_is_bounded() {
        let mut sweeps = Sweeps::default();
        for n in 0..2 * MOST_PARENTS {
            sweeps.ended(Duration::ZERO, Path::new(&format!("/{n}")), true);
        }
        assert_eq!(sweeps.parents.len(), MOST_PARENTS);
        while let Some((path, budget)) = sweeps.begin(AFTER_EXIT) {
            sweeps.ended(SECOND, &path, false);
            sweeps.swept(SECOND, &path, &Swept { gone: true, ..Swept::default() }, budget);
        }
        assert!(sweeps.parents.is_empty());
    }

    #[test]
    fn the_living_never_lose_more_than_the_dead_held() {
        let mut budget = Budget::default();
        let (mut held, mut lost, mut ever) = (0, 0, 0);
        // More die, most of it stays however much is taken from the living.
        for (dies, goes) in [(100, 0), (0, 0), (50, 20), (0, 0), (7, 100), (30, 0)] {
            held += dies;
            ever += dies;
            let mut now = budget;
            let from_live = now.before(held);
            lost += from_live;
            let after = u64::saturating_sub(held, goes);
            now.after(&Swept { from_live, ..left(held, after) });
            (budget, held) = (now, after);
            assert!(lost <= ever, "{lost} of {ever}");
        }
        assert!(lost > 0);
    }
}

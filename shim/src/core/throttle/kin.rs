//! Who started whom. A shell that runs one command after the other grows by none of its tasks for long: each has ended
//! before it has shown much. So a task that comes when another one of its starter's has ended takes over from that:
//! what is owed, and averaged, goes on as if both were one. And what a task had faulted in when it ended, since somebody
//! looked at it last, its parent knows: the kernel adds it up there when it waits for it (`cminflt`), and for threads in
//! their process.

use super::growth::Change;
use super::who::GROWS;
use std::collections::{BTreeMap, BTreeSet};

/// Who has ended is waited for, for so many windows, to be followed by another of its starter's.
const FOLLOWED: u32 = 8;

/// For so many windows after somebody came or ended, all are looked for in each.
const WATCHED: u32 = 64;

/// What a process has faulted in so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// All its threads, those that have ended included.
    pub faults: u64,
    /// Its children, and theirs, that it has waited for.
    pub of_children: u64,
}

/// Who has started others that grow may be about to start more of them, for so many windows, or twice as many if it did
/// in several.
const STARTS: u32 = 16;
const SEVERAL: u32 = 2;

/// Those whose children were found outside, for longer.
const OUTSIDE: u32 = 3;

/// What one task has started. Who starts others is where they are, so that they are, too: given back, as it does not grow
/// itself, it would start the next ones outside. (Measured on 6.18: a shell that runs one `dd` after the other, and a process
/// that has each MiB filled by a thread of its own, came from a high of 64 MiB to 400 and 600 in a second.)
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Starts {
    /// In so many windows.
    times: u32,
    /// Windows since.
    since: u32,
}

impl Starts {
    /// It, or another thread of its process, has started one that grows.
    pub(super) fn more(&mut self) {
        *self = Starts { times: self.times.max((self.times + 1).min(SEVERAL)), since: 0 };
    }

    /// It did so where nobody looked after it.
    pub(super) fn outside(&mut self) {
        *self = Starts { times: OUTSIDE, since: 0 };
    }

    /// A window is over.
    pub(super) fn window(&mut self) {
        self.since = self.since.saturating_add(1);
    }

    /// Whether it may start more. One that works, naps, or waits for somebody other than a child or a thread (`waits`: for one
    /// of these) is not waiting for those whom it started: which thread of its process did is not known.
    pub(super) fn goes_on(&self, waits: bool) -> bool {
        let windows = if self.times > 0 { STARTS << (self.times - 1) } else { 0 };
        (waits || self.times >= OUTSIDE) && self.since < windows
    }
}

/// A task that is looked after.
#[derive(Debug, Clone, Copy)]
struct Member {
    process: u32,
    starter: u32,
    account: u32,
    /// It came since the last look.
    new: bool,
    /// It has not been seen to grow.
    unseen: bool,
}

/// What one process has started.
#[derive(Debug, Clone, Default)]
struct Family {
    /// The accounts of those that have ended, and how many windows ago.
    vacant: Vec<(u32, u32)>,
    /// It has had threads.
    threads: bool,
}

/// The process that started a task of this process, whose parent is that one: a thread was started by its own.
pub const fn starter(task: u32, process: u32, parent: u32) -> u32 {
    if task == process { parent } else { process }
}

/// The tasks of one container that are looked after.
#[derive(Debug, Clone, Default)]
pub struct Kin {
    members: BTreeMap<u32, Member>,
    /// By the process that started them.
    families: BTreeMap<u32, Family>,
    /// As of the last look.
    processes: BTreeMap<u32, Process>,
    /// Processes whose last task ended since: who started them.
    ended: BTreeMap<u32, u32>,
    watched: u32,
}

impl Kin {
    /// A task is looked after from now on: of this process, whose parent is that one. `born`: of others that were. The account that its
    /// growth is put down to.
    pub fn came(&mut self, task: u32, process: u32, parent: u32, born: bool) -> u32 {
        let starter = starter(task, process, parent);
        let family = self.families.entry(starter).or_default();
        family.threads |= task != process;
        let vacant = if born { family.vacant.pop() } else { None };
        let account = vacant.map_or(task, |(account, _)| account);
        self.members.insert(task, Member { process, starter, account, new: born, unseen: born });
        if born {
            self.watched = WATCHED;
        }
        account
    }

    /// It is looked after no more; `ended`: as there is no such task any more. It may have grown: who comes next takes over.
    pub fn went(&mut self, task: u32, ended: bool) {
        let Some(member) = self.members.remove(&task) else { return };
        if !ended {
            return;
        }
        self.watched = WATCHED;
        let family = self.families.entry(member.starter).or_default();
        family.vacant.push((member.account, 0));
        if task == member.process {
            self.ended.insert(member.process, member.starter);
        }
    }

    /// It begins to count who starts others that grow: those who are there were started before.
    pub fn begin(&mut self) {
        self.members.values_mut().for_each(|member| member.unseen = false);
    }

    /// Nobody is looked after any more.
    pub fn clear(&mut self) {
        *self = Kin::default();
    }

    /// Whether tasks come and go, so that new ones are to be looked for.
    pub const fn is_watched(&self) -> bool {
        self.watched > 0
    }

    /// Whether threads of this process have come while it was looked after: its faults are more than its tasks'.
    pub fn has_threads(&self, process: u32) -> bool {
        self.families.get(&process).is_some_and(|family| family.threads)
    }

    /// Processes that have started others who are looked after.
    pub fn starters(&self) -> BTreeSet<u32> {
        self.members.values().map(|member| member.starter).collect()
    }

    /// Processes that have started others since the last look, and how many.
    pub fn births(&self) -> BTreeMap<u32, u64> {
        let mut births = BTreeMap::new();
        for member in self.members.values().filter(|member| member.new) {
            *births.entry(member.starter).or_default() += 1;
        }
        births
    }

    /// The accounts of those that have ended, and may be followed by others.
    pub fn vacant(&self) -> impl Iterator<Item = u32> {
        self.families.values().flat_map(|family| family.vacant.iter().map(|(account, _)| *account))
    }

    /// A window is over: what those had faulted in by then who have ended is put down to who came after them, else to
    /// them as long as somebody may, else to who started them. The processes that have started others who grow.
    pub fn window(&mut self, processes: &[Process], changes: &mut Vec<Change>) -> BTreeSet<u32> {
        let mut starters = BTreeSet::new();
        let before = std::mem::take(&mut self.processes);
        let mut left: BTreeMap<u32, u64> = BTreeMap::new();
        for now in processes {
            self.processes.insert(now.pid, *now);
            let Some(then) = before.get(&now.pid) else { continue };
            let known = changes.iter().filter(|change| change.process == now.pid);
            let known: u64 = known.map(|change| change.faults).sum();
            let threads = match self.has_threads(now.pid) {
                true => now.faults.saturating_sub(then.faults).saturating_sub(known),
                false => 0,
            };
            let known = self.known_of_ended(now.pid, &before);
            let children = now.of_children.saturating_sub(then.of_children).saturating_sub(known);
            left.insert(now.pid, threads + children);
        }
        for (starter, faults) in left.into_iter().filter(|(_, faults)| *faults > 0) {
            if faults >= GROWS {
                starters.insert(starter);
            }
            let heirs = self.heirs(starter);
            for (n, account) in heirs.iter().enumerate() {
                let (n, of) = (n as u64, heirs.len() as u64);
                let faults = faults * (n + 1) / of - faults * n / of;
                match changes.iter_mut().find(|change| change.task == *account) {
                    Some(change) => change.faults += faults,
                    None => changes.push(Change {
                        task: *account,
                        process: starter,
                        faults,
                        ..Change::default()
                    }),
                }
            }
        }
        for member in self.members.values_mut().filter(|member| member.unseen) {
            let own = changes.iter().find(|change| change.task == member.account);
            if own.is_some_and(|change| change.faults >= GROWS) {
                member.unseen = false;
                starters.insert(member.starter);
            }
        }
        self.grow_older();
        starters
    }

    /// What was known before of those who have ended, and whom this process had started, or who had whom it had started.
    fn known_of_ended(&self, starter: u32, before: &BTreeMap<u32, Process>) -> u64 {
        let (mut starters, mut known) = (vec![starter], 0);
        // Ids may have been used again: no circles.
        let mut counted = BTreeSet::from([starter]);
        while let Some(starter) = starters.pop() {
            for (pid, _) in self.ended.iter().filter(|(_, by)| **by == starter) {
                if counted.insert(*pid) {
                    let process = before.get(pid);
                    known += process.map_or(0, |process| process.faults + process.of_children);
                    starters.push(*pid);
                }
            }
        }
        known
    }

    /// Who is to pay for what others had faulted in whom this process started, and who have ended.
    fn heirs(&self, starter: u32) -> Vec<u32> {
        let new = self.members.values().filter(|member| member.new && member.starter == starter);
        let new: Vec<u32> = new.map(|member| member.account).collect();
        if !new.is_empty() {
            return new;
        }
        let vacant = self.families.get(&starter).map(|family| &*family.vacant).unwrap_or_default();
        if !vacant.is_empty() {
            return vacant.iter().map(|(account, _)| *account).collect();
        }
        let tasks = self.members.iter().filter(|(_, member)| member.process == starter);
        let first = tasks.min_by_key(|(task, _)| (**task != starter, **task));
        first.map(|(_, member)| member.account).into_iter().collect()
    }

    fn grow_older(&mut self) {
        self.watched = self.watched.saturating_sub(1);
        self.ended.clear();
        for member in self.members.values_mut() {
            member.new = false;
        }
        let alive: BTreeSet<u32> = self.members.values().map(|member| member.process).collect();
        for family in self.families.values_mut() {
            family.vacant.retain_mut(|(_, windows)| {
                *windows += 1;
                *windows <= FOLLOWED
            });
        }
        self.families
            .retain(|starter, family| !family.vacant.is_empty() || alive.contains(starter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: u32 = 10;

    fn process(pid: u32, faults: u64, of_children: u64) -> Process {
        Process { pid, faults, of_children }
    }

    fn change(task: u32, process: u32, faults: u64) -> Change {
        Change { task, process, faults, ..Change::default() }
    }

    fn shell() -> Kin {
        let mut kin = Kin::default();
        assert_eq!(kin.came(SHELL, SHELL, 1, false), SHELL);
        kin.window(&[process(SHELL, 5, 0)], &mut Vec::new());
        kin
    }

    #[test]
    fn one_command_after_the_other_is_one_account() {
        let mut kin = shell();
        let first = kin.came(20, 20, SHELL, true);
        kin.window(&[process(SHELL, 5, 0), process(20, 64, 0)], &mut vec![change(20, 20, 64)]);
        for pid in 21..40 {
            // It faults 36 times more, and ends; the next one has faulted 7 times by then.
            kin.went(pid - 1, true);
            assert_eq!(kin.vacant().collect::<Vec<_>>(), [first]);
            assert_eq!(kin.came(pid, pid, SHELL, true), first);
            let mut changes = vec![change(first, pid, 64)];
            let waited_for = u64::from(pid - 20) * 100;
            kin.window(&[process(SHELL, 5, waited_for), process(pid, 64, 0)], &mut changes);
            assert_eq!(changes, [change(first, pid, 100)]);
        }
        assert!(kin.is_watched() && kin.starters().contains(&SHELL));
    }

    #[test]
    fn those_at_the_same_time_have_an_account_each() {
        let mut kin = shell();
        let accounts: BTreeSet<u32> = (20..24).map(|pid| kin.came(pid, pid, SHELL, true)).collect();
        assert_eq!(accounts.len(), 4);
        kin.window(&[], &mut Vec::new());
        kin.went(21, true);
        kin.went(23, true);
        let next: BTreeSet<u32> = (30..32).map(|pid| kin.came(pid, pid, SHELL, true)).collect();
        assert_eq!(next, BTreeSet::from([21, 23]));
        assert_eq!(kin.came(32, 32, SHELL, true), 32);
    }

    #[test]
    fn who_came_and_went_unseen_is_paid_for_by_who_started_it() {
        let mut kin = shell();
        let mut changes = vec![change(SHELL, SHELL, 2)];
        kin.window(&[process(SHELL, 7, 40)], &mut changes);
        assert_eq!(changes, [change(SHELL, SHELL, 42)]);
    }

    #[test]
    fn threads_that_ended_are_known_by_their_process() {
        let mut kin = shell();
        kin.came(11, SHELL, 1, true);
        kin.window(&[process(SHELL, 5, 0)], &mut vec![change(11, SHELL, 0)]);
        kin.went(11, true);
        let mut changes = vec![change(SHELL, SHELL, 1)];
        kin.window(&[process(SHELL, 106, 0)], &mut changes);
        // It may be followed by another.
        assert_eq!(changes, [change(SHELL, SHELL, 1), change(11, SHELL, 100)]);
        assert_eq!(kin.came(12, SHELL, 1, true), 11);
    }

    #[test]
    fn what_a_child_had_waited_for_itself_is_not_paid_for_twice() {
        let mut kin = shell();
        kin.came(20, 20, SHELL, true);
        kin.came(30, 30, 20, true);
        let at_first = [process(SHELL, 5, 0), process(20, 10, 0), process(30, 500, 0)];
        kin.window(&at_first, &mut Vec::new());
        // Both end: the child has waited for its own.
        kin.went(30, true);
        kin.went(20, true);
        let mut changes = vec![change(SHELL, SHELL, 0)];
        kin.window(&[process(SHELL, 5, 515)], &mut changes);
        assert_eq!(changes.iter().map(|change| change.faults).sum::<u64>(), 5, "{changes:?}");
    }

    #[test]
    fn who_starts_others_is_kept_for_longer_the_more_often_it_did() {
        let kept = |times, outside, rests| {
            let mut starts = Starts::default();
            (0..times).for_each(|_| starts.more());
            if outside {
                starts.outside();
            }
            let windows = (0..1000).take_while(|_| {
                starts.window();
                starts.goes_on(rests)
            });
            windows.count() as u32 + 1
        };
        assert_eq!((kept(0, false, true), kept(9, false, false)), (1, 1));
        assert_eq!((kept(1, false, true), kept(9, false, true)), (STARTS, 2 * STARTS));
        assert_eq!((kept(0, true, false), kept(9, true, true)), (4 * STARTS, 4 * STARTS));
    }

    #[test]
    fn who_starts_others_that_do_not_grow_is_no_starter_of_growth() {
        let mut kin = shell();
        kin.came(20, 20, SHELL, true);
        kin.came(21, 21, SHELL, true);
        let grown = |faults| kin_window(&mut kin.clone(), faults);
        assert_eq!(grown(GROWS - 1), BTreeSet::new());
        assert_eq!(grown(GROWS), BTreeSet::from([SHELL]));
        // Once each.
        assert_eq!(kin_window(&mut kin, GROWS), BTreeSet::from([SHELL]));
        assert_eq!(kin_window(&mut kin, GROWS), BTreeSet::new());
        // Those who were there before are not asked.
        kin.begin();
        assert_eq!(
            kin.window(&[process(SHELL, 5, 0)], &mut vec![change(21, 21, GROWS)]),
            BTreeSet::new()
        );
        // And who ended before it was seen to.
        assert_eq!(kin.window(&[process(SHELL, 5, 0)], &mut Vec::new()), BTreeSet::new());
        let starters = kin.window(&[process(SHELL, 5, GROWS)], &mut Vec::new());
        assert_eq!(starters, BTreeSet::from([SHELL]));
    }

    fn kin_window(kin: &mut Kin, faults: u64) -> BTreeSet<u32> {
        kin.window(&[process(SHELL, 5, 0)], &mut vec![change(20, 20, faults)])
    }

    #[test]
    fn who_is_followed_by_nobody_is_forgotten() {
        let mut kin = shell();
        kin.came(20, 20, SHELL, true);
        kin.went(20, true);
        for _ in 0..=FOLLOWED {
            kin.window(&[process(SHELL, 5, 0)], &mut Vec::new());
        }
        assert_eq!(kin.vacant().count(), 0);
        assert_eq!(kin.came(21, 21, SHELL, true), 21);
        // One that is given back leaves nothing to take over.
        kin.went(21, false);
        assert_eq!(kin.vacant().count(), 0);
    }
}

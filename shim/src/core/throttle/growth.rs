//! Who grew: what a group's usage rose by, shared out among its tasks.
//!
//! The kernel knows which task charges a page. From outside there are each task's page faults (exact,
//! but a fault on a page that somebody else was charged for counts as well), its process's resident set
//! (which shows huge pages, but is counted in batches), and the group's usage (which has everything,
//! what is written to tmpfs included). Faults say who; usage bounds how much in all. What faults do not explain is
//! put down to those who read and wrote meanwhile (tmpfs, pipes, page cache), by the bytes; then to those who were
//! stopped in a call by which memory is charged (`fallocate`, sockets, names), by the time that they ran; and what is left
//! then to those who were in the kernel, which is counted in ticks of 10 ms, some forty windows long.

use super::curve::HUGE;
use cgroupfs::Bytes;
use cgroupfs::units::page_size;
use std::collections::BTreeMap;
use std::time::Duration;

/// By so many pages the sum over tasks may be ahead of the group's usage, or behind: usage moves in
/// batches of 64 pages a CPU.
const FUZZ: i64 = 256;

/// No call charges more pages in so long than this: 16 GiB/s.
const CALL: Duration = Duration::from_micros(1);
const IN_A_CALL: u64 = 4;

/// Nor does starting a task: the page tables of 2 GiB.
const IN_A_BIRTH: u64 = 1024;

/// Of what was filled in one pulse outside no more is owed.
const OUTSIDE: Bytes = Bytes::mib(8);

/// How one task changed since it was last looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// The task (thread) and its process.
    pub task: u32,
    /// Tasks of one process share its resident set.
    pub process: u32,
    /// Its page faults, minor and major.
    pub faults: u64,
    /// Pages by which its process's resident set grew; negative if it shrank.
    pub resident: i64,
    /// CPU time in the kernel, in whatever unit: who writes without faulting.
    pub kernel_time: u64,
    /// Bytes that it read and wrote by system calls, where that was asked for.
    pub transferred: u64,
    /// It waits for somebody else, and hardly faulted before.
    pub rests: bool,
    /// Tasks that it, or another of its process, has started.
    pub births: u64,
    /// How long it had a CPU, where that was asked for, and it was stopped in a call by which memory is charged without a
    /// fault.
    pub charging: Duration,
}

impl Change {
    /// Together with what it did before.
    const fn add(&mut self, before: &Change) {
        self.faults += before.faults;
        self.resident += before.resident;
        self.kernel_time += before.kernel_time;
        self.transferred += before.transferred;
    }
}

/// By how much a task grew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grown {
    /// The task.
    pub task: u32,
    /// Pages charged.
    pub pages: u64,
    /// Pages charged at once: the kernel's batch, or [`HUGE`].
    pub unit: u64,
}

/// Shares growth out; keeps count of what was shared so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attribution {
    /// Pages shared out beyond what usage grew by; negative: growth that nobody is known for.
    ahead: i64,
}

/// What was shared out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    /// To whom.
    pub grown: Vec<Grown>,
    /// The part of it that is put down to reading, writing and other calls: task and pages.
    pub written: Vec<(u32, u64)>,
    /// Pages that none of the tasks is known for: somebody else grows.
    pub unexplained: u64,
}

impl Shares {
    /// What these tasks filled in a pulse, before they were found, is growth of theirs as any other, where it came in huge
    /// pages: a few charges. (Measured on 6.18: one of four growers at 200 MiB/s, let go as it waited, and told to grow just
    /// then, came to 6 MiB outside.)
    pub fn found(&mut self, tasks: &[u32], outside: Bytes) {
        let pages = outside.min(OUTSIDE).0 / page_size() / tasks.len().max(1) as u64;
        for task in tasks.iter().filter(|_| pages > 0) {
            match self.grown.iter_mut().find(|grown| grown.task == *task) {
                Some(grown) => (grown.pages, grown.unit) = (grown.pages + pages, HUGE),
                None => self.grown.push(Grown { task: *task, pages, unit: HUGE }),
            }
        }
    }
}

impl Attribution {
    /// Shares out a growth of the group's usage by `usage` pages.
    pub fn share(&mut self, changes: &[Change], usage: u64, batch: u64) -> Shares {
        let mut grown = by_faults(changes, batch);
        let sum: u64 = grown.iter().map(|grown| grown.pages).sum();
        self.ahead = self.ahead.saturating_add_unsigned(sum).saturating_sub_unsigned(usage);
        let mut unexplained = 0;
        if self.ahead > FUZZ {
            // Faults that charged nothing: all are scaled down.
            let kept = sum.saturating_sub(self.ahead.abs_diff(FUZZ));
            for grown in &mut grown {
                grown.pages =
                    (u128::from(grown.pages) * u128::from(kept) / u128::from(sum.max(1))) as u64;
            }
            self.ahead = FUZZ;
        } else if self.ahead < -FUZZ {
            unexplained = self.ahead.abs_diff(-FUZZ);
            self.ahead = -FUZZ;
        }
        let mut written = Vec::new();
        if unexplained > 0 {
            (written, unexplained) = by_transfer(changes, unexplained, batch, &mut grown);
        }
        if unexplained > 0 {
            let (called, left) = by_call(changes, unexplained, batch, &mut grown);
            written.extend(called);
            unexplained = left;
        }
        if unexplained > 0 {
            let (born, left) = by_births(changes, unexplained, batch, &mut grown);
            written.extend(born);
            unexplained = left;
        }
        if unexplained > 0 {
            unexplained = by_kernel_time(changes, unexplained, batch, &mut grown);
        }
        grown.retain(|grown| grown.pages > 0);
        Shares { grown, written, unexplained }
    }
}

impl Attribution {
    /// Whether somebody filled huge pages, each of which is a call of its own, or had `before`.
    pub fn is_huge(changes: &[Change], before: &[Change]) -> bool {
        [changes, before].iter().any(|those| processes(those).values().any(Process::is_huge))
    }

    /// The same; where these do not explain it all, or huge pages were filled, which somebody of their process may have
    /// been, `born` is asked who came to be since they were looked at last, with all that those have done so far: a task
    /// that a known one has started grows in the first window as in any other. (Measured on 6.18 with huge pages: the
    /// first of each of four threads, 2 MiB, cost nothing, or was put down to who had started it.)
    ///
    /// `before`: what they had done by the time that they were looked at last, which may have been after the growth. (Measured
    /// on 6.18: a first huge page above high that nobody was known for, and that cost nothing.)
    pub fn share_with(
        &mut self,
        changes: &mut Vec<Change>,
        before: &[Change],
        usage: u64,
        batch: u64,
        born: impl FnOnce() -> Vec<Change>,
    ) -> Shares {
        let was = *self;
        let shares = self.share(changes, usage, batch);
        let explains = shares.unexplained == 0;
        if explains && !processes(changes).values().any(Process::is_huge) {
            return shares;
        }
        let (born, before) = (born(), if explains { &[] } else { before });
        if born.is_empty() && before.is_empty() {
            return shares;
        }
        for then in before {
            if let Some(change) = changes.iter_mut().find(|change| change.task == then.task) {
                change.add(then);
            }
        }
        changes.extend(born);
        *self = was;
        self.share(changes, usage, batch)
    }
}

/// What the tasks of a process did together.
#[derive(Debug, Clone, Copy, Default)]
struct Process {
    faults: u64,
    /// Those of tasks that did not come to rest.
    at_work: u64,
    resident: u64,
}

impl Process {
    /// Whether it filled huge pages, each of which is one fault.
    fn is_huge(&self) -> bool {
        self.faults > 0 && self.resident >= HUGE && self.resident >= self.faults.saturating_mul(4)
    }

    /// Pages that a task of it filled, and in which units. Of two that faulted, one of which rests, the other filled the
    /// huge ones: to start a thread takes some faults.
    fn share(&self, change: &Change, batch: u64) -> (u64, u64) {
        let those = if self.at_work > 0 { self.at_work } else { self.faults };
        if !self.is_huge() || change.rests && self.at_work > 0 {
            return (change.faults, batch);
        }
        ((u128::from(self.resident) * u128::from(change.faults) / u128::from(those)) as u64, HUGE)
    }
}

fn processes(changes: &[Change]) -> BTreeMap<u32, Process> {
    let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
    for change in changes {
        let process = processes.entry(change.process).or_default();
        process.faults += change.faults;
        process.at_work += if change.rests { 0 } else { change.faults };
        process.resident = process.resident.max(u64::try_from(change.resident).unwrap_or(0));
    }
    processes
}

fn by_faults(changes: &[Change], batch: u64) -> Vec<Grown> {
    let processes = processes(changes);
    let share = |change: &Change| {
        let (pages, unit) = processes[&change.process].share(change, batch);
        Grown { task: change.task, pages, unit }
    };
    changes.iter().map(share).collect()
}

/// Shares what faults do not explain among those who read and wrote, by the bytes and no more than these; to whom, and
/// how much is left over.
fn by_transfer(
    changes: &[Change],
    pages: u64,
    batch: u64,
    grown: &mut [Grown],
) -> (Vec<(u32, u64)>, u64) {
    let of = |change: &Change| change.transferred.div_ceil(page_size());
    let all: u64 = changes.iter().map(of).fold(0, u64::saturating_add);
    shared_by(changes, pages, all, of, batch, grown)
}

/// Shares so many pages, by what each of them may have had, which is so much for `all`.
fn shared_by(
    changes: &[Change],
    pages: u64,
    all: u64,
    of: impl Fn(&Change) -> u64,
    batch: u64,
    grown: &mut [Grown],
) -> (Vec<(u32, u64)>, u64) {
    let shared = pages.min(all);
    let mut written = Vec::new();
    for (change, grown) in changes.iter().zip(grown) {
        let share = (u128::from(shared) * u128::from(of(change)) / u128::from(all.max(1))) as u64;
        if share > 0 {
            if grown.pages < share {
                grown.unit = batch;
            }
            grown.pages += share;
            written.push((change.task, share));
        }
    }
    let found: u64 = written.iter().map(|(_, share)| share).sum();
    (written, pages - found)
}

/// The same among those who were stopped in a call by which memory is charged, by the time that they ran, and no more
/// than a call can charge in it.
fn by_call(
    changes: &[Change],
    pages: u64,
    batch: u64,
    grown: &mut [Grown],
) -> (Vec<(u32, u64)>, u64) {
    let most = |change: &Change| {
        let most = change.charging.as_nanos() * u128::from(IN_A_CALL) / CALL.as_nanos();
        u64::try_from(most).unwrap_or(u64::MAX)
    };
    let all: u64 = changes.iter().map(most).fold(0, u64::saturating_add);
    shared_by(changes, pages, all, most, batch, grown)
}

/// The same among those who have started others: stacks and page tables, which the kernel charges to them.
fn by_births(
    changes: &[Change],
    pages: u64,
    batch: u64,
    grown: &mut [Grown],
) -> (Vec<(u32, u64)>, u64) {
    let most = |change: &Change| change.births.saturating_mul(IN_A_BIRTH);
    let all: u64 = changes.iter().map(most).fold(0, u64::saturating_add);
    shared_by(changes, pages, all, most, batch, grown)
}

/// Shares what faults do not explain among those who were in the kernel; how much is left over.
fn by_kernel_time(changes: &[Change], pages: u64, batch: u64, grown: &mut [Grown]) -> u64 {
    let time: u64 = changes.iter().map(|change| change.kernel_time).sum();
    if time == 0 {
        return pages;
    }
    for (change, grown) in changes.iter().zip(grown) {
        let share = (u128::from(pages) * u128::from(change.kernel_time) / u128::from(time)) as u64;
        if share > 0 && grown.pages < share {
            grown.unit = if is_huge(change, share) { HUGE } else { batch };
        }
        grown.pages += share;
    }
    0
}

/// Whether one that faulted a few times filled a huge page that its resident set, which is counted in batches, does not
/// show yet. (Measured on 6.18: taken for a charge of 256 KiB eight times, it was owed 16 s for.)
const fn is_huge(change: &Change, pages: u64) -> bool {
    change.faults > 0 && change.faults <= pages / HUGE * 4 + 4 && pages + FUZZ as u64 >= HUGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn faults(task: u32, faults: u64) -> Change {
        Change { task, process: task, faults, ..Change::default() }
    }

    #[test]
    fn each_task_is_known_for_its_own_faults() {
        let shares = Attribution::default().share(&[faults(1, 64), faults(2, 128)], 192, 64);
        assert_eq!(
            shares.grown,
            [Grown { task: 1, pages: 64, unit: 64 }, Grown { task: 2, pages: 128, unit: 64 }]
        );
        assert_eq!(shares.unexplained, 0);
    }

    #[test]
    fn huge_pages_are_seen_in_the_resident_set() {
        let change = Change { resident: 2048, ..faults(1, 4) };
        let shares = Attribution::default().share(&[change], 2048, 64);
        assert_eq!(shares.grown, [Grown { task: 1, pages: 2048, unit: HUGE }]);
    }

    #[test]
    fn threads_share_their_resident_set_by_their_faults() {
        let change =
            |task, faults| Change { process: 1, resident: 4096, ..self::faults(task, faults) };
        let shares = Attribution::default().share(&[change(1, 6), change(2, 2)], 4096, 64);
        let pages: Vec<u64> = shares.grown.iter().map(|grown| grown.pages).collect();
        assert_eq!(pages, [3072, 1024]);
    }

    #[test]
    fn faults_that_charge_nothing_are_not_paid_for() {
        // A task that maps files which are in the cache already.
        let mut attribution = Attribution::default();
        let paid: u64 = (0..100)
            .flat_map(|_| attribution.share(&[faults(1, 1000)], 10, 64).grown)
            .map(|grown| grown.pages)
            .sum();
        assert!(paid <= 100 * 10 + FUZZ as u64, "{paid}");
    }

    #[test]
    fn writing_without_faults_is_put_down_to_who_was_in_the_kernel() {
        let change = Change { kernel_time: 5, ..faults(1, 0) };
        let shares = Attribution::default().share(&[change, faults(2, 10)], 5000, 64);
        assert_eq!(shares.unexplained, 0);
        assert!(shares.grown[0].task == 1 && shares.grown[0].pages > 4000, "{shares:?}");
    }

    #[test]
    fn a_huge_page_that_the_resident_set_does_not_show_yet_is_one_charge_all_the_same() {
        let change = Change { kernel_time: 1, ..faults(1, 1) };
        let mut attribution = Attribution { ahead: -FUZZ };
        let shares = attribution.share(&[change, faults(2, 0)], HUGE, 64);
        assert_eq!(shares.grown, [Grown { task: 1, pages: HUGE, unit: HUGE }]);
        // Without a fault it was written.
        let writes = Change { faults: 0, ..change };
        let shares = attribution.share(&[writes], HUGE, 64);
        assert_eq!(shares.grown, [Grown { task: 1, pages: HUGE, unit: 64 }]);
    }

    #[test]
    fn what_is_written_is_put_down_to_who_wrote_it_whoever_was_in_the_kernel() {
        let bytes = |pages: u64| pages * page_size();
        let writer = Change { transferred: bytes(64), ..faults(1, 0) };
        let busy = Change { kernel_time: 5, transferred: bytes(1), ..faults(2, 0) };
        let mut attribution = Attribution { ahead: -FUZZ };
        let shares = attribution.share(&[writer, busy], 64, 64);
        let grown = |task, pages| Grown { task, pages, unit: 64 };
        assert_eq!(shares.grown, [grown(1, 63), grown(2, 1)]);
        assert_eq!(shares.written, [(1, 63)]);
    }

    #[test]
    fn what_no_bytes_tell_of_is_put_down_to_who_was_in_a_call_that_charges() {
        let calls =
            |task, micros| Change { charging: Duration::from_micros(micros), ..faults(task, 0) };
        let mut attribution = Attribution { ahead: -FUZZ };
        // One who was in such a call for a moment has no part in it, nor who was in the kernel for long.
        let busy = Change { kernel_time: 5, ..faults(3, 0) };
        let shares = attribution.share(&[calls(1, 160), calls(2, 1), busy], 64, 64);
        assert_eq!(
            shares.grown,
            [Grown { task: 1, pages: 63, unit: 64 }, Grown { task: 3, pages: 1, unit: 64 }]
        );
        assert_eq!(shares.written, [(1, 63)]);
        // Nor does it for more than it can have filled.
        let mut attribution = Attribution { ahead: -FUZZ };
        let shares = attribution.share(&[calls(1, 100)], 5000, 64);
        assert_eq!((&*shares.written, shares.unexplained), (&[(1, 400)][..], 4600));
    }

    #[test]
    fn what_starting_a_task_takes_is_put_down_to_who_started_it() {
        let starts = Change { births: 2, ..faults(1, 3) };
        let busy = Change { kernel_time: 5, ..faults(2, 0) };
        let mut attribution = Attribution { ahead: -FUZZ };
        let shares = attribution.share(&[starts, busy], 63, 64);
        assert_eq!(shares.grown, [Grown { task: 1, pages: 63, unit: 64 }]);
        assert_eq!((shares.written, shares.unexplained), (vec![(1, 60)], 0));
    }

    #[test]
    fn nobody_wrote_more_than_it_wrote() {
        let writer = Change { transferred: 10 * page_size(), ..faults(1, 0) };
        let mut attribution = Attribution { ahead: -FUZZ };
        let shares = attribution.share(&[writer], 5000, 64);
        assert_eq!((&*shares.written, shares.unexplained), (&[(1, 10)][..], 4990));
    }

    #[test]
    fn growth_of_somebody_else_is_reported() {
        let shares = Attribution::default().share(&[faults(1, 64)], 5000, 64);
        assert_eq!(shares.grown.len(), 1);
        assert_eq!(shares.unexplained, 5000 - 64 - FUZZ as u64);
    }

    #[test]
    fn a_thread_that_is_new_in_a_window_pays_for_its_first_huge_page() {
        // Its process was looked at, by another thread of it: there the resident set shows.
        let parent = Change { resident: HUGE as i64, ..faults(1, 0) };
        let born = Change { process: 1, ..faults(2, 6) };
        let mut changes = vec![parent];
        let mut attribution = Attribution::default();
        let shares = attribution.share_with(&mut changes, &[], HUGE, 64, || vec![born]);
        assert_eq!(shares.grown, [Grown { task: 2, pages: HUGE, unit: HUGE }]);
        assert_eq!((shares.unexplained, changes.len()), (0, 2));
        // Where all is explained nobody is asked.
        let shares =
            attribution.share_with(&mut vec![faults(2, 64)], &[], 64, 64, || panic!("asked"));
        assert_eq!(shares.grown, [Grown { task: 2, pages: 64, unit: 64 }]);
    }

    #[test]
    fn who_starts_a_thread_that_fills_huge_pages_does_not_pay_for_them() {
        // What it faulted for that explains all, until it is known who else there is.
        let parent = Change { resident: HUGE as i64, rests: true, ..faults(1, 3) };
        let born = Change { process: 1, ..faults(2, 1) };
        let mut changes = vec![parent];
        let mut attribution = Attribution::default();
        let shares = attribution.share_with(&mut changes, &[], HUGE, 64, || vec![born]);
        let grown = |task, pages, unit| Grown { task, pages, unit };
        assert_eq!(shares.grown, [grown(1, 3, 64), grown(2, HUGE, HUGE)]);
        // Alone, it was it.
        let shares = attribution.share_with(&mut vec![parent], &[], HUGE, 64, Vec::new);
        assert_eq!(shares.grown, [grown(1, HUGE, HUGE)]);
    }

    #[test]
    fn who_was_looked_at_after_it_had_grown_pays_for_that_in_the_next_window() {
        let filled = Change { resident: 8 * HUGE as i64, ..faults(1, 8) };
        let rests = |task| Change { rests: true, ..faults(task, 0) };
        let mut changes = vec![rests(1), rests(2)];
        let shares = Attribution::default().share_with(&mut changes, &[filled], HUGE, 64, Vec::new);
        assert_eq!((shares.grown.len(), shares.unexplained), (1, 0), "{shares:?}");
        assert_eq!((shares.grown[0].task, shares.grown[0].unit), (1, HUGE));
        assert!(shares.grown[0].pages >= HUGE && shares.grown[0].pages <= HUGE + FUZZ as u64);
        assert!(Attribution::is_huge(&[rests(1)], &[filled]));
        assert!(!Attribution::is_huge(&[rests(1)], &[faults(1, 5000)]));
        // What the window explains is that window's; and who is gone pays nothing.
        let mut changes = vec![faults(2, 512)];
        let shares = Attribution::default().share_with(&mut changes, &[filled], HUGE, 64, Vec::new);
        assert_eq!(shares.grown, [Grown { task: 2, pages: 512, unit: 64 }]);
        let shares = Attribution::default().share_with(
            &mut vec![faults(2, 0)],
            &[filled],
            HUGE,
            64,
            Vec::new,
        );
        assert_eq!((shares.grown.len(), shares.unexplained), (0, HUGE - FUZZ as u64));
    }

    #[test]
    fn those_found_in_a_pulse_owe_for_what_was_filled_outside() {
        let grown = |task, pages| Grown { task, pages, unit: HUGE };
        let mut shares = Shares { grown: vec![grown(1, HUGE)], ..Shares::default() };
        shares.found(&[1, 2], Bytes::mib(4));
        assert_eq!(shares.grown, [grown(1, 2 * HUGE), grown(2, HUGE)]);
        shares.found(&[2], Bytes::mib(4000));
        assert_eq!(shares.grown, [grown(1, 2 * HUGE), grown(2, 5 * HUGE)]);
        shares.found(&[], Bytes::mib(4));
        shares.found(&[3], Bytes(0));
        assert_eq!(shares.grown.len(), 2);
    }

    #[test]
    fn a_new_task_pays_for_no_more_than_the_group_grew_by_in_the_window() {
        // It had filled memory below high already.
        let shares = Attribution::default()
            .share_with(&mut Vec::new(), &[], 1000, 64, || vec![faults(2, 50_000)]);
        assert!(shares.grown[0].pages <= 1000 + FUZZ as u64, "{shares:?}");
    }

    proptest! {
        #[test]
        fn tasks_never_pay_for_more_than_the_group_grew_by(
            rounds in prop::collection::vec(
                (0u64..10_000, 0u64..10_000, -100i64..10_000, 0u64..3, 0u64..10_000, 0u64..1 << 26), 1..50),
        ) {
            let mut attribution = Attribution::default();
            let (mut paid, mut usage) = (0u64, 0u64);
            for (a, b, resident, kernel_time, grew, transferred) in rounds {
                let writer = Change { transferred, ..faults(2, b) };
                let changes = [Change { resident, kernel_time, ..faults(1, a) }, writer];
                let shares = attribution.share(&changes, grew, 64);
                paid += shares.grown.iter().map(|grown| grown.pages).sum::<u64>() + shares.unexplained;
                usage += grew;
                prop_assert!(paid <= usage + FUZZ as u64);
                prop_assert!(paid + 2 * FUZZ as u64 >= usage.saturating_sub(FUZZ as u64));
            }
        }
    }
}

//! Who grows, by what each task has shown: its page faults, its process' resident set, its CPU time.
//!
//! Near high whoever is there may grow, and is suspected of it. Who is seen to grow is convicted: what is owed is
//! shared among the convicted alone. Who is not, by the time that others have grown by [`CHANCE`], is let go: below high
//! already ([`chance`]), so that nobody is frozen for being there, else in the first pulses, which are short as long as
//! some are in them of whom nothing is known ([`super::Trial`]).

use super::account::{Account, BEHIND, Chance, SLEPT};
use super::curve::HUGE;
use super::growth::Change;
use super::kin::Starts;
use cgroupfs::Bytes;
use cgroupfs::procfs::{Stopped, TaskStat};
use cgroupfs::units::page_size;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A task that faulted in so many pages between two looks grows.
pub(super) const GROWS: u64 = 16;

/// Unless it has just started ([`STARTING`]) and not faulted in so many yet, nor has so many times eight resident: a
/// probe that somebody runs in the container, a `runc init`. In windows of less than a millisecond it would take
/// seconds to start.
const START: u64 = 2048;

/// For so long a task has just started.
pub const STARTING: Duration = Duration::from_secs(1);

/// One that nobody has seen growing does not grow if it faulted in no more than this part of what the group has
/// grown by since: programs fault now and then. Where there are many it is this part of an equal one. (Measured on 6.18:
/// of 150 processes that filled memory at the same time, each was given back in turn.)
const PART: u64 = 64;
const EQUAL_PART: u64 = 4;

/// In so many windows it must have faulted while its process grew by a huge page, if others of its threads faulted as
/// well: one that starts another faults, too. (Measured on 6.18: the main threads of four growers taken for growers
/// halved what was owed, for six windows.)
const HUGE_WINDOWS: u32 = 2;

/// Where growth is not explained by faults, a task that was in the kernel for so many clock ticks between two looks is
/// taken for who writes, unless somebody was for more than twice as long: whoever sleeps and wakes is in the kernel.
const WRITES: u64 = 1;

/// A task that was thawed so often without growing is given back. With more growers than CPUs one of them
/// gets none in many a window; given back it would run free until it is found again (measured with fewer
/// windows: 30 MiB).
const IDLE_WINDOWS: u32 = 50;

/// A resident set may be so far from what its threads faulted in, which huge pages are but one of.
const FUZZ: u64 = HUGE / 4;

/// After so many it rests: nobody shares a debt with it until it grows again. (Measured with huge pages, and so few
/// windows: shared with a thread that had filled memory once, growth cost half.)
const RESTS: u32 = 4;

/// A task that has run for so many clock ticks without growing had its turn. A thaw wakes tasks in one order, and
/// windows are short: the same may take all of each of them (measured on 6.18, four growers on two CPUs: 30 windows on
/// end). Those who wait behind it are no idlers.
const TURN: u64 = 2;

/// One that nobody has seen growing is let go when the group has grown by so much since it came.
const CHANCE: Bytes = Bytes::mib(16);

/// One that slept and woke so often without growing had its chance.
const RUNS: u64 = 4;

/// In a window of so long one that does something has run for more than a twentieth of it, and in any for more than this:
/// being told to start a thread takes 0.2 ms.
const LONG: Duration = Duration::from_millis(10);
const HARDLY: Duration = Duration::from_millis(1);

/// A pulse that has lasted for so long is a long one for who does not grow.
pub const TRIED: Duration = BEHIND;

/// Below high that is judged on less where there is less room, but not on less than this.
const LEAST_CHANCE: Bytes = Bytes::mib(2);

/// Why a task that was not looked after so far is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It grows.
    Grows,
    /// It may: it is suspected.
    Suspect,
    /// It, or another thread of its process, fills huge pages: it is suspected.
    Huge,
    /// It, or another thread of its process, starts others: it is suspected.
    Starts,
}

/// What somebody looks for among tasks that nobody looks after.
#[derive(Debug, Clone, Copy)]
pub struct Sought {
    /// Some are known to grow, who charge so many pages at once: who has not faulted in that many between two looks
    /// grows no faster than the kernel lets it.
    pub others: Option<u64>,
    /// Faults do not explain what the group grew by: who was in the kernel for so many clock ticks is taken for who
    /// writes ([`writes`]).
    pub writes: Option<u64>,
}

/// How long somebody was in the kernel who writes, where the tasks were for so long each between two looks.
pub fn writes(kernel_time: impl Iterator<Item = u64>) -> u64 {
    (kernel_time.max().unwrap_or(0) / 2).max(WRITES)
}

/// What became of a task that nobody looks after from one look to the next; `young`: its process started less than
/// [`STARTING`] ago. (Measured with huge pages, taken of a thread by itself: one that had just been started filled 16 MiB
/// in a pulse beside it.)
pub fn found(before: &TaskStat, now: &TaskStat, young: bool, sought: Sought) -> Option<Found> {
    if now.state == b'Z' {
        return None;
    }
    let kernel_time = now.stime.saturating_sub(before.stime);
    if sought.writes.is_some_and(|writes| kernel_time >= writes) {
        return Some(Found::Grows);
    }
    // Where nobody is known to grow, whoever does is looked for.
    if sought.others.is_some() && young && now.faults() < START && now.rss < START * 8 {
        return None;
    }
    if faults(before, now) >= sought.others.unwrap_or(GROWS).max(GROWS) {
        return Some(Found::Grows);
    }
    grew_huge(before, now).then_some(Found::Huge)
}

/// Whether a task was there only, from one look to the next, in which others were seen growing: it slept.
pub fn is_bystander(before: &TaskStat, now: &TaskStat) -> bool {
    now.state == b'S' && faults(before, now) < GROWS && !grew_huge(before, now)
}

/// By how much the group is to grow, from here on, until those who have not grown with it are let go: half of the way
/// to where somebody is frozen. `None` where that is too little to tell.
pub fn chance(room: Bytes) -> Option<Bytes> {
    let chance = Bytes(room.0 / 2).min(CHANCE);
    (chance >= LEAST_CHANCE).then_some(chance)
}

fn faults(before: &TaskStat, now: &TaskStat) -> u64 {
    now.faults().saturating_sub(before.faults())
}

/// A huge page is one fault: the process's resident set tells, less what its threads filled page by page. (Measured on
/// 6.18: two threads filled 2 MiB of small pages from one look to the next, and a third, which naps and faults now and
/// then, was frozen with them for seconds, again and again.)
fn grew_huge(before: &TaskStat, now: &TaskStat) -> bool {
    let grew = now.rss.saturating_sub(before.rss);
    let small = now.process_faults.saturating_sub(before.process_faults);
    faults(before, now) > 0 && grew >= HUGE && grew.saturating_sub(small) >= HUGE - FUZZ
}

/// What a task did between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its page faults.
    pub faults: u64,
    /// Pages by which its process's resident set grew.
    pub resident: i64,
    /// Clock ticks in the kernel.
    pub kernel_time: u64,
    /// It waits for somebody else, and hardly did anything before.
    pub rests: bool,
    /// Where it was stopped, if that was asked for.
    pub stopped: Option<Stopped>,
}

/// What one task has shown so far.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    last: TaskStat,
    idle: u32,
    account: Account,
    /// CPU time and sleeps, when it was last looked at in a window without growth.
    ran: Option<(Duration, u64)>,
    /// When it was last seen at work in the kernel.
    worked: TaskStat,
    waits: bool,
    /// It did not work in the last window; and was not known to have had a turn.
    passes: bool,
    idles: bool,
    /// In the window before it went to sleep by itself.
    naps: bool,
    asleep: bool,
    may_be_due: bool,
    /// It faulted a few times, and was in a call after that.
    few: bool,
    /// It was started by one that grows; and has itself grown by so many pages.
    born: bool,
    grown: u64,
    /// It waits for somebody else; for a child, or a thread.
    rests: bool,
    for_child: bool,
    for_thread: bool,
    /// It has for long, beside others that fill huge pages.
    waited: bool,
    starts: Starts,
    /// It faulted before the last look while its process grew by a huge page.
    huge: bool,
    suspect: Option<Suspect>,
}

/// Nobody has seen it grow.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    /// How it was when it came, and what the group used then.
    then: TaskStat,
    usage: Bytes,
    /// Windows in which it faulted while its process grew by a huge page; whether the last was one, and what it did before it
    /// came, if no window was judged since.
    huge: u32,
    now: bool,
    just: bool,
    /// Pages that the group grew by and that are put down to what it read and wrote.
    wrote: u64,
}

impl Suspect {
    const fn new(then: TaskStat, usage: Bytes) -> Suspect {
        Suspect { then, usage, huge: 0, now: false, just: false, wrote: 0 }
    }

    /// Pages that who grows, as one of so many, has had of what the group has grown by since it came.
    fn part(&self, usage: Bytes, tasks: usize) -> u64 {
        let parts = PART.max(EQUAL_PART * tasks as u64);
        (usage.saturating_sub(self.usage).0 / page_size() / parts).max(GROWS)
    }
}

impl Standing {
    /// Of one that grows, and comes with this debt.
    pub fn grower(now: TaskStat, debt: Duration) -> Standing {
        Standing {
            last: now,
            idle: 0,
            account: Account::owing(debt),
            ran: None,
            worked: now,
            waits: false,
            passes: false,
            idles: false,
            naps: false,
            asleep: false,
            may_be_due: false,
            few: false,
            born: false,
            grown: 0,
            rests: false,
            for_child: false,
            for_thread: false,
            waited: false,
            starts: Starts::default(),
            huge: false,
            suspect: None,
        }
    }

    /// Of one that may grow, in a group that uses so much; `ran_and_slept`: so far.
    pub fn suspect(
        now: TaskStat,
        usage: Bytes,
        ran_and_slept: Option<(Duration, u64)>,
    ) -> Standing {
        let suspect = Some(Suspect::new(now, usage));
        Standing { suspect, born: false, ..Standing::born(now, ran_and_slept) }
    }

    /// The same, which was seen to fault while its process grew by a huge page.
    #[must_use]
    pub fn beside_huge(mut self) -> Standing {
        if let Some(suspect) = &mut self.suspect {
            suspect.huge = 1;
        }
        self
    }

    /// Of a child or thread of one that grows: it pays with the others as if it did, until it shows that it does not.
    pub fn born(now: TaskStat, ran_and_slept: Option<(Duration, u64)>) -> Standing {
        let account = Account::default();
        let grower = Standing::grower(now, Duration::ZERO);
        Standing { account, born: true, ran: ran_and_slept, ..grower }
    }

    /// Whether it was started by one that grows, and has not grown by a charge itself: a process that is forked copies some pages.
    fn is_new(&self) -> bool {
        self.born && self.grown < CHARGE
    }

    /// The same, or nobody has seen it grow.
    fn is_unproven(&self) -> bool {
        (self.born || self.is_suspect()) && self.grown < CHARGE
    }

    /// Whether it was in a call, and has neither run nor faulted since.
    pub fn sleeps_on(&self, now: &TaskStat) -> bool {
        let (last, ran) = (&self.last, |stat: &TaskStat| (stat.utime, stat.stime, stat.faults()));
        self.asleep && ran(last) == ran(now) && last.signal == now.signal
    }

    /// As of the last look.
    pub const fn last(&self) -> &TaskStat {
        &self.last
    }

    /// Whether nobody has seen it grow.
    pub const fn is_suspect(&self) -> bool {
        self.suspect.is_some()
    }

    /// Whether it has not run since it was last seen at work, or hardly, but would: others had the CPUs.
    pub const fn waits(&self) -> bool {
        self.waits
    }

    /// Whether it went to sleep by itself in the window before the last look.
    pub const fn naps(&self) -> bool {
        self.naps
    }

    /// Whether nothing is learnt of it from the last window: it waits, or did not work and is not known to nap. One that
    /// slept between two charges when it was frozen has to be given a CPU to go on as well.
    pub const fn had_no_turn(&self) -> bool {
        self.waits || self.passes && !self.naps
    }

    /// It is looked at; `stopped` tells where it was stopped. That it did not work shows something if all of them have
    /// had a `turn` since this was so last, and it waits for somebody else: one that sleeps may be due by now, and have
    /// had no CPU (measured: of four that fill huge pages one had ten turns on end, until the others were taken not to
    /// grow).
    pub fn look(&mut self, now: TaskStat, turn: bool, stopped: impl FnOnce() -> Stopped) -> Step {
        let before = std::mem::replace(&mut self.last, now);
        let mut step = Step {
            faults: faults(&before, &now),
            resident: i64::try_from(now.rss).unwrap_or(i64::MAX)
                - i64::try_from(before.rss).unwrap_or(i64::MAX),
            kernel_time: now.stime.saturating_sub(before.stime),
            rests: false,
            stopped: None,
        };
        step.stopped = (step.faults < GROWS).then(stopped);
        let stopped = step.stopped.unwrap_or(Stopped::Called);
        step.rests = stopped.waits() && step.kernel_time == 0;
        self.rests = step.rests;
        self.for_child = stopped == Stopped::ForChild;
        self.for_thread = stopped == Stopped::ForThread;
        self.huge = grew_huge(&before, &now);
        if let Some(suspect) = &mut self.suspect {
            suspect.now = self.huge;
            suspect.huge += u32::from(suspect.now);
        }
        let works = step.faults > 0 || step.kernel_time > 0;
        if works {
            (self.worked, self.idle) = (now, 0);
        }
        let ran = |stat: &TaskStat| stat.utime + stat.stime;
        let had_a_turn = ran(&now).saturating_sub(ran(&self.worked)) >= TURN;
        // One that charges and naps waits for a reader.
        let goes_on = stopped == Stopped::Running || stopped == Stopped::Charging && !self.naps;
        let in_a_call = step.faults == 0 && !goes_on;
        self.waits = !works && !had_a_turn && !in_a_call;
        (self.asleep, self.may_be_due) = (in_a_call, !stopped.waits());
        self.few = (1..GROWS).contains(&step.faults) && stopped == Stopped::Called;
        self.passes = !works;
        self.idles = !works && !self.waits;
        if self.idles && turn && self.rests {
            self.idle += 1;
            self.idles = false;
        }
        step
    }

    /// Convicts it if it grew since it came, and had its part in what the group has grown by to `usage`, where it is one of
    /// so many; `alone`: no other task of its process faulted in the last window ([`who_faulted_alone`]).
    pub fn convict(&mut self, usage: Bytes, tasks: usize, alone: bool) {
        let Some(suspect) = &mut self.suspect else { return };
        let part = suspect.part(usage, tasks);
        let just = std::mem::take(&mut suspect.just);
        let huge = suspect.huge >= HUGE_WINDOWS || (suspect.now || just) && alone;
        if huge || faults(&suspect.then, &self.last) + suspect.wrote >= part {
            self.suspect = None;
            // A few faults now and then, which it has paid for and more, are no evidence against one that rests.
            if huge || !self.account.has_overpaid() {
                self.account.grew();
            }
        }
    }

    /// So many pages that the group grew by in the last window are what it read and wrote.
    pub fn wrote(&mut self, pages: u64) {
        (self.idle, self.idles, self.rests) = (0, false, false);
        if let Some(suspect) = &mut self.suspect {
            suspect.wrote += pages;
        }
    }

    /// As if it had just come, if it has grown since it did: one that has not is as suspect as it was.
    pub fn suspect_again(&mut self, usage: Bytes, tasks: usize) {
        let grew_by = |suspect: &Suspect, pages: u64| {
            faults(&suspect.then, &self.last) >= pages || grew_huge(&suspect.then, &self.last)
        };
        // (Measured on 6.18 beside busy loops: 28 faults while others filled 400 MiB, and it was frozen for 18 s, as it had
        // no CPU in any window to show that it naps.)
        if self.suspect.as_ref().is_some_and(|suspect| grew_by(suspect, suspect.part(usage, tasks)))
        {
            self.account.grew();
        }
        if self.suspect.as_ref().is_none_or(|suspect| grew_by(suspect, GROWS)) {
            self.suspect = Some(Suspect { just: self.huge, ..Suspect::new(self.last, usage) });
            self.idle = 0;
        }
    }

    /// Whether it had its chance to grow, by the time that the group uses so much, and did not. One that waits for somebody
    /// else may be about to be told to, and loses nothing so far. (Measured on 6.18 at memset speed: of four processes that were
    /// told one after the other, the last was let go before it was, and filled 20 MiB outside.)
    pub fn is_cleared(&self, usage: Bytes) -> bool {
        // Huge pages that may be its own speak against it, and what it wrote: of that the group grew by, a part alone shows.
        let chance = |suspect: &Suspect| {
            let shown = suspect.huge > 0 || suspect.wrote >= GROWS;
            !shown && usage.saturating_sub(suspect.usage) >= CHANCE
        };
        let may_be_told = self.rests && !self.account.was_kept();
        !self.waits && !may_be_told && self.suspect.as_ref().is_some_and(chance)
    }

    /// The same of one that nobody has frozen yet, and by the time that the group has grown by no more than `chance`:
    /// it sleeps of its own accord.
    pub fn is_cleared_below(&self, usage: Bytes, chance: Bytes) -> bool {
        let since = |suspect: &Suspect| {
            suspect.huge == 0 && usage.saturating_sub(suspect.usage) >= chance.min(CHANCE)
        };
        self.last.state == b'S' && self.suspect.as_ref().is_some_and(since)
    }

    /// Whether it has slept and woken some times since it came, when nobody has frozen it yet: by now it has run for so
    /// long and slept so often in all. Of one that only waits nothing is known: it may be about to be told to grow.
    /// (Measured on 6.18: three idle processes that were given back, and then grew, came to 24 MiB before they were
    /// found again.)
    pub fn has_run(&self, ran_and_slept: Option<(Duration, u64)>) -> bool {
        let since = self.ran.zip(ran_and_slept).map(|(before, now)| now.1.saturating_sub(before.1));
        since.is_some_and(|slept| slept >= RUNS)
    }

    /// Whether it has not shown yet if it grows, nor been frozen for long: it is tried in short pulses.
    pub fn is_untried(&self) -> bool {
        self.account.is_untried() && !self.only_waits()
    }

    /// Whether it only waits for somebody else, and has for long, beside others that fill huge pages, and nobody has seen it
    /// grow: it is let go within a pulse that has lasted for [`TRIED`], not tried in short ones. (Measured on 6.18: a process
    /// that waited, and had not shown anything in four short pulses, let a grower beside it charge a huge page after each.
    /// Small pages cost less than being told to grow as soon as it is let go may.)
    pub const fn only_waits(&self) -> bool {
        self.waited && self.account.never_grew()
    }

    /// A window is over, that was so long, in which it grew by so many pages and owes this for them; by then it had
    /// run for so long and slept so often in all, if that is known. `huge`: those that grow fill huge pages.
    pub fn window(
        &mut self,
        window: Duration,
        huge: bool,
        pages: u64,
        penalty: Duration,
        ran_and_slept: impl FnOnce() -> Option<(Duration, u64)>,
    ) {
        let before = std::mem::take(&mut self.ran);
        // Of those that grow nobody asks why they do not.
        self.ran = if pages < GROWS { ran_and_slept() } else { None };
        let chance = match (before, self.ran) {
            (Some(before), Some(now)) => Chance {
                window,
                ran: now.0.saturating_sub(before.0),
                slept: now.1.saturating_sub(before.1),
                asleep: self.asleep,
                rests: self.few,
                amid: huge && self.born || self.suspect.is_some_and(|suspect| suspect.huge > 0),
                may_be_due: self.may_be_due,
            },
            _ => Chance::default(),
        };
        // One that copies without faulting is stopped in a `read()`, too; it has run meanwhile.
        let long = window >= LONG && chance.ran <= window / 20;
        let known = huge && before.is_some() && self.ran.is_some() && !self.born;
        self.waited = known && self.rests && chance.ran <= HARDLY && (self.waited || long);
        // It ran, and went to sleep by itself.
        self.naps = chance.slept >= SLEPT;
        if self.idles && self.naps {
            self.idle += 1;
        }
        self.grown = self.grown.saturating_add(pages);
        self.account.window(pages, penalty, chance);
        self.starts.window();
    }

    /// Its process has started others that grow.
    pub fn started(&mut self) {
        self.starts.more();
    }

    /// The same, found when nobody looked after them.
    pub fn started_outside(&mut self) {
        self.starts.outside();
    }

    /// Whether it is to stay with those whom it has started: more are likely to come, or it waits for one of them and
    /// loses nothing (`has_children`: some are looked after).
    pub fn stays(&self, has_children: bool) -> bool {
        self.starts.goes_on(self.for_child || self.for_thread) || self.for_child && has_children
    }

    /// Whether it was started by one that grows, has not grown by a charge itself, and waits for somebody else.
    pub fn is_onlooker(&self) -> bool {
        self.rests && self.is_new()
    }

    /// It was frozen for so long.
    pub fn frozen(&mut self, time: Duration) {
        self.account.frozen(time);
    }

    /// Whether it grows no more and has paid for what it grew by, or has done nothing for long.
    pub fn is_done(&self) -> bool {
        self.idle >= IDLE_WINDOWS || self.account.is_settled() && !self.waits
    }
}

/// So many that have not grown yet share a debt with who started them. (Measured on 6.18: a process that starts others,
/// which sleep, owed a thirtieth of what it grew by, as they were thirty in each window.)
const MANY_NEW: usize = 8;

/// And so many of whom nothing is known: they wait for a CPU. (Measured: of 2,600 threads that were started within a
/// tenth of a second most had had none yet.)
const MANY_UNPROVEN: usize = 64;

/// Pages that the kernel charges at once (`MEMCG_CHARGE_BATCH`).
const CHARGE: u64 = 64;

/// Which of these tasks grow, those included that had no turn yet, and without those that wait for somebody else or have
/// not grown for long: all, as long as none was seen to. (Measured with huge pages: of eight, four that had started the
/// others, and waited for them, had half of what was owed for a dozen turns.)
pub fn who_grows<'a, I>(tasks: I) -> BTreeSet<u32>
where
    I: Iterator<Item = (u32, &'a Standing)> + Clone,
{
    let seen =
        |standing: &Standing| !standing.is_suspect() && standing.idle < RESTS && !standing.rests;
    let any = tasks.clone().any(|(_, standing)| seen(standing));
    let count =
        |is: fn(&Standing) -> bool| tasks.clone().filter(|(_, standing)| is(standing)).count();
    let proven = tasks.clone().any(|(_, standing)| seen(standing) && !standing.is_unproven());
    let many_new = proven && count(Standing::is_new) > MANY_NEW;
    let many = proven && count(Standing::is_unproven) > MANY_UNPROVEN;
    let grows = |standing: &Standing| match many_new && standing.is_new()
        || many && standing.is_unproven()
    {
        true => false,
        false => !any || seen(standing) || standing.waits,
    };
    tasks.filter(|(_, standing)| grows(standing)).map(|(task, _)| task).collect()
}

/// The tasks that faulted in a window as the only ones of their processes.
pub fn who_faulted_alone(changes: &[Change]) -> BTreeSet<u32> {
    let mut alone: BTreeMap<u32, Option<u32>> = BTreeMap::new();
    for change in changes.iter().filter(|change| change.faults > 0) {
        alone.entry(change.process).and_modify(|task| *task = None).or_insert(Some(change.task));
    }
    alone.into_values().flatten().collect()
}

#[cfg(test)]
mod tests;

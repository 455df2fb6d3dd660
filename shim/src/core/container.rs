//! One container's life: watermark control with hysteresis, futility backoff, foreign writes, and
//! letting a working set be that fits under the limit.
//!
//! ```text
//!            usage > wmark_high              survey says so
//!  Watching ───────────────────▶ Surveying ─────────────────▶ Reclaiming
//!     ▲  ▲                          │ stand aside                │
//!     │  └──────────── timer ── Resting ◀──── futile, refused ───┤
//!     └──────────────────────────────── at wmark_low ────────────┘
//! ```

use super::backoff::Backoff;
use super::event::{
    Action, Capabilities, Event, Job, Notice, Now, Outcome, Report, Strategy, Survey,
};
use super::floor::Floor;
use super::pace::Pace;
use super::plan::{LEAST, Plan, StandAside, plan, write_back};
use super::state::State;
use super::watermark::{WIDEST, WatermarkSpec, Watermarks};
use cgroupfs::units::page_size;
use cgroupfs::{Bytes, Limit};
use std::time::Duration;

/// A job reports back after this long even if it is not done: the survey it acts on is stale by then,
/// and a group that outruns it is to be let alone.
pub const JOB_DEADLINE: Duration = Duration::from_millis(100);

/// How long no limit is stepped after somebody else wrote it (law 4).
pub const FOREIGN_PAUSE: Duration = Duration::from_secs(30);

/// Futile rounds in a row before backing off (law 6).
const FUTILE_ROUNDS: u32 = 2;

/// Direct reclaim events a second, beside a job that never lets up, from which on a group counts as
/// outrunning us: measured on 6.18, an event stands for about 7 KiB, so this is 140 MiB/s more than what
/// we took. A load at memset speed shows 28,000 to 58,000.
const OVERRUN_RATE: f64 = 20_000.0;

/// So many such jobs in a row: other loads on the CPUs must not look like it.
const OVERRUN_ROUNDS: u32 = 3;

/// First and longest pause after that. Each new try costs one job that is in the group's way.
const OVERRUN_FIRST: Duration = Duration::from_secs(1);
const OVERRUN_CAP: Duration = Duration::from_secs(30);

/// How often a dirty group is looked at while it is over its mark: writeback of a few MiB takes about
/// as long on a disk of 100 MiB/s.
const DIRTY_PAUSE: Duration = Duration::from_millis(100);

/// How long the disk is left to it where a reclaim write had writeback started, and took nothing yet.
const WRITING: Duration = Duration::from_millis(20);

/// A reclaim write that waited for the disk so long found none that writes (NFS, say): it is backed off from.
const STUCK: Duration = Duration::from_secs(1);

/// How long a group that is let be must stay below the ceiling for its set to count as fitting.
const FITS_AFTER: Duration = Duration::from_secs(10);

/// First and longest pause between two tries at letting a group be.
const LET_BE_FIRST: Duration = Duration::from_secs(2);
const LET_BE_CAP: Duration = Duration::from_secs(120);

/// A widened headroom that was enough for so long is narrowed by a quarter.
const NARROW_AFTER: Duration = Duration::from_secs(10);

/// How often a group is looked at again after a threshold event, while its usage moves; at the least.
const RECHECK: Duration = Duration::from_millis(50);

/// Usage that moves by less in a [`RECHECK`] rests: the per-CPU stock of one CPU.
const STEADY: Bytes = Bytes::kib(256);

/// Freed bytes that a judgement about refaults needs.
const JUDGED_ON: Bytes = Bytes::mib(16);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Under the mark, or about to be looked at.
    Watching,
    /// A survey is being taken.
    Surveying,
    /// Job so-and-so is in flight.
    Reclaiming(u64),
    /// Over the mark, but left alone until then.
    Resting(Now),
    /// Released while a job was in flight: its report is waited for.
    Leaving,
    /// Nothing more happens.
    Gone,
}

/// What was done for a container so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Jobs that ended.
    pub rounds: u64,
    /// Bytes asked for.
    pub asked: Bytes,
    /// Bytes seen to go; a lower bound.
    pub freed: Bytes,
    /// CPU time of the workers.
    pub cpu: Duration,
    /// Jobs that freed next to nothing.
    pub futile: u64,
    /// Times it was let be: dirty, in use, nothing to take.
    pub aside: u64,
    /// Writes that reclaimed.
    pub steps: u64,
}

/// The state of one container.
#[derive(Debug)]
pub struct Container {
    can: Capabilities,
    spec: WatermarkSpec,
    declared: Limit,
    high: Limit,
    marks: Option<Watermarks>,
    phase: Phase,
    pace: Pace,
    usage: Bytes,
    /// When usage moved last, and what it was then.
    moved: (Now, Bytes),
    freed_unobserved: Bytes,
    backoff: Backoff,
    futile_rounds: u32,
    /// Quarters of the headroom that it is widened by, since when, and charges that had failed then.
    wide: u32,
    widened_at: Now,
    hits: Option<u64>,
    /// What could not be reclaimed at the last survey.
    stuck: Option<(Now, Bytes)>,
    /// The last job ran into its deadline with usage at the limit all the same.
    at_limit: bool,
    /// Direct reclaim events at the last survey.
    direct: Option<(Now, u64)>,
    overruns: u32,
    overrun_backoff: Backoff,
    no_steps_until: Option<Now>,
    told: Option<StandAside>,
    /// The job in flight has dirty page cache written back.
    writes_back: bool,
    next_job: u64,
    let_be: LetBe,
    totals: Totals,
}

/// Whether to let a group be because what is reclaimed comes back: its working set is above our mark
/// but fits under the limit, where nothing would have happened to it without us.
///
/// Refaults alone do not tell: a stream that is read in circles refaults just as much. So the group is
/// let be, and what happens next tells: a set that fits stays under the ceiling, a stream goes on
/// through it at once.
#[derive(Debug)]
struct LetBe {
    since: Option<Now>,
    not_before: Now,
    backoff: Backoff,
    refaults: Option<u64>,
    refaulted: u64,
    freed: Bytes,
    direct_reclaim: u64,
}

impl Container {
    /// A container with this declared limit and `memory.high` ([`Limit::Max`] for none).
    pub fn new(
        spec: WatermarkSpec,
        declared: Limit,
        high: Limit,
        can: Capabilities,
        seed: u64,
    ) -> Container {
        Container {
            can,
            spec,
            declared,
            high,
            marks: Watermarks::of(spec, declared, high),
            phase: Phase::Watching,
            pace: Pace::default(),
            usage: Bytes(0),
            moved: (Now::ZERO, Bytes(0)),
            freed_unobserved: Bytes(0),
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(30), seed),
            futile_rounds: 0,
            wide: 0,
            widened_at: Now::ZERO,
            hits: None,
            stuck: None,
            at_limit: false,
            direct: None,
            overruns: 0,
            overrun_backoff: Backoff::new(OVERRUN_FIRST, OVERRUN_CAP, seed),
            no_steps_until: None,
            told: None,
            writes_back: false,
            next_job: 0,
            let_be: LetBe {
                since: None,
                not_before: Now::ZERO,
                backoff: Backoff::new(LET_BE_FIRST, LET_BE_CAP, seed),
                refaults: None,
                refaulted: 0,
                freed: Bytes(0),
                direct_reclaim: 0,
            },
            totals: Totals::default(),
        }
    }

    /// How the marks are found.
    pub const fn watermark_spec(&self) -> WatermarkSpec {
        self.spec
    }

    /// `memory.high`, as declared.
    pub const fn high(&self) -> Limit {
        self.high
    }

    /// The limit that stands when we do nothing.
    pub const fn declared(&self) -> Limit {
        self.declared
    }

    /// The marks in force, `None` where there is nothing to do.
    pub const fn watermarks(&self) -> Option<Watermarks> {
        self.marks
    }

    /// What is going on.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Leaving => State::Releasing,
            Phase::Gone => State::Ended,
            Phase::Surveying | Phase::Reclaiming(_) => State::Reclaiming,
            _ if self.marks.is_none() => match self.declared.min(self.high) {
                Limit::Max => State::Unlimited,
                Limit::Bytes(_) => State::Off,
            },
            Phase::Watching if self.let_be.since.is_some() => State::Aside(StandAside::InUse),
            Phase::Watching => State::Watching,
            Phase::Resting(_) => self.told.map_or(State::BackingOff, State::Aside),
        }
    }

    /// What was done so far.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// Takes an event, appends what is to be done.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        if self.phase == Phase::Gone {
            return;
        }
        match event {
            Event::Vanished => {
                if let Phase::Reclaiming(_) = self.phase {
                    out.push(Action::Cancel);
                }
                self.phase = Phase::Gone;
                out.push(Action::Forget);
            }
            Event::Release => self.release(out),
            Event::LimitChanged(limit) => self.adopt(now, limit, out),
            Event::Terms(spec, high) => self.set_terms(now, spec, high, out),
            Event::Usage(usage) => {
                if usage.0.abs_diff(self.moved.1.0) > STEADY.0 {
                    self.moved = (now, usage);
                }
                self.look(now, usage, out);
            }
            Event::Crossed(usage) => {
                self.moved = (now, usage);
                self.look(now, usage, out);
            }
            Event::LimitHit(usage) => {
                // Too late already: whatever we were waiting for, it is over.
                self.stop_letting_be(now);
                if let Phase::Resting(until) = self.phase
                    && !matches!(self.told, Some(StandAside::Dirty | StandAside::Overrun))
                    && self.backoff.failures() == 0
                    && until > now
                {
                    self.phase = Phase::Watching;
                }
                self.look(now, usage, out);
            }
            Event::Surveyed(survey) => {
                if self.phase == Phase::Surveying {
                    self.decide(now, &survey, out);
                }
            }
            Event::Done(report) => self.done(now, &report, out),
            Event::OomInWindow => self.no_steps_until = Some(now + FOREIGN_PAUSE),
            Event::Failed(errno) => match self.phase {
                Phase::Leaving => {
                    self.phase = Phase::Gone;
                    out.push(Action::Forget);
                }
                _ => self.refused(now, errno, out),
            },
        }
    }

    fn look(&mut self, now: Now, usage: Bytes, out: &mut Vec<Action>) {
        self.usage = usage;
        self.pace.observe(now, usage, std::mem::take(&mut self.freed_unobserved));
        match self.phase {
            Phase::Resting(until) if now >= until => self.phase = Phase::Watching,
            Phase::Resting(_)
                if self.mark().is_some_and(|mark| usage.saturating_add(self.slack()) < mark) =>
            {
                self.phase = Phase::Watching;
            }
            _ => {}
        }
        if self.phase != Phase::Watching {
            return;
        }
        match self.mark() {
            // While it is let be, an event may also mean that it was at the limit for an instant: direct
            // reclaim takes usage back at once. The counters in the survey tell.
            Some(mark)
                if usage.saturating_add(self.slack()) >= mark
                    || (self.let_be.since.is_some() && self.can.threshold_event) =>
            {
                self.phase = Phase::Surveying;
                out.push(Action::Survey);
            }
            _ => self.watch(now, out),
        }
    }

    /// Where the next look is due: the mark, or the ceiling for a group that is let be.
    fn mark(&self) -> Option<Bytes> {
        let marks = self.marks?;
        match self.let_be.since {
            Some(_) => Watermarks::ceiling(self.declared, self.high).max(Some(marks.high)),
            None => Some(marks.high),
        }
    }

    /// How far under the mark counts as over it; never so far that a round's end counts.
    fn slack(&self) -> Bytes {
        let band = self.marks.map_or(Bytes(0), |marks| marks.high.saturating_sub(marks.low));
        self.can.threshold_slack.min(Bytes(band.0 / 2))
    }

    fn watch(&mut self, now: Now, out: &mut Vec<Action>) {
        let Some(mark) = self.mark() else {
            // Without a limit there is nothing to do until it changes; where no event tells of that,
            // look now and then.
            out.push(Action::Timer(
                (!self.can.threshold_event).then_some(now + super::pace::LONGEST),
            ));
            out.push(Action::Arm(None));
            return;
        };
        if self.can.threshold_event {
            // The kernel looks at thresholds every 128 page events a CPU, so that its idea of which side
            // usage is on may be behind, and the next crossing then tells nobody. As long as usage
            // moves, look again, soon where it grows fast (measured: a stream of 1.7 GB/s was 41 MiB above
            // high in one look of a hundred with 50 ms, 1 MiB with this); once it rests, no more.
            let soon = self.pace.period(mark.saturating_sub(self.usage)).min(RECHECK);
            let moves = now.saturating_sub(self.moved.0) < RECHECK;
            out.push(Action::Timer(moves.then_some(now + soon)));
            // After the timer: arming sets one where usage is above already.
            out.push(Action::Arm(Some(mark)));
        } else {
            let period = self.pace.period(mark.saturating_sub(self.usage));
            out.push(Action::Timer(Some(now + period)));
        }
    }

    fn rest(&mut self, until: Now, out: &mut Vec<Action>) {
        self.phase = Phase::Resting(until);
        out.push(Action::Timer(Some(until)));
    }

    fn decide(&mut self, now: Now, survey: &Survey, out: &mut Vec<Action>) {
        self.phase = Phase::Watching;
        if survey.limit != self.declared {
            self.adopt(now, survey.limit, out);
        }
        self.usage = survey.usage;
        let Some(marks) = self.marks else {
            return self.watch(now, out);
        };
        if self.let_be.since.is_some() {
            let hit = survey.direct_reclaim > self.let_be.direct_reclaim;
            if !hit && self.mark().is_some_and(|mark| survey.usage < mark) {
                return self.watch(now, out);
            }
            self.stop_letting_be(now);
        }
        let marks = self.widen(now, survey).unwrap_or(marks);
        if survey.usage < marks.low.saturating_add(LEAST) {
            return self.watch(now, out);
        }
        if self.outruns(now, survey) {
            self.totals.aside += 1;
            self.tell_aside(StandAside::Overrun, out);
            let pause = self.overrun_backoff.fail();
            return self.rest(now + pause, out);
        }
        if self.in_use(now, survey) {
            self.let_be.since = Some(now);
            self.let_be.direct_reclaim = survey.direct_reclaim;
            self.totals.aside += 1;
            self.tell_aside(StandAside::InUse, out);
            return self.watch(now, out);
        }
        let mut can = self.can;
        if self.no_steps_until.is_some_and(|until| now < until) {
            can.limit_step = false;
            can.high_step = false;
        }
        let planned = plan(survey, marks.low, self.stuck_growth(now, survey), can);
        let dirty = planned == Plan::Aside(StandAside::Dirty);
        self.writes_back = dirty && self.high != Limit::Max && can.force_empty;
        let planned = match self.writes_back {
            true => write_back(survey, marks.low),
            false => planned,
        };
        match planned {
            Plan::Aside(why) => {
                self.totals.aside += 1;
                self.tell_aside(why, out);
                let pause = match why {
                    StandAside::Dirty => DIRTY_PAUSE,
                    _ => self.backoff.fail(),
                };
                self.rest(now + pause, out);
            }
            Plan::Reclaim { strategy, target, floor, step, cheap, no_swap } => {
                let id = self.next_job;
                self.next_job += 1;
                self.phase = Phase::Reclaiming(id);
                self.totals.asked =
                    self.totals.asked.saturating_add(survey.usage.saturating_sub(target));
                out.push(Action::Reclaim(Job {
                    id,
                    strategy,
                    target,
                    floor,
                    step,
                    declared: match strategy {
                        Strategy::HighStep => self.high,
                        _ => self.declared,
                    },
                    deadline: JOB_DEADLINE,
                    cheap,
                    no_swap,
                }));
            }
        }
    }

    fn done(&mut self, now: Now, report: &Report, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Leaving => {
                self.count(report);
                self.phase = Phase::Gone;
                if report.outcome != Outcome::Vanished {
                    out.push(Action::Restore(self.declared));
                }
                out.push(Action::Forget);
                return;
            }
            Phase::Reclaiming(id) if id == report.id => {}
            // Of an older generation: it never changes the current one.
            _ => return,
        }
        self.count(report);
        self.phase = Phase::Watching;
        self.freed_unobserved = self.freed_unobserved.saturating_add(report.freed);
        self.let_be.freed = self.let_be.freed.saturating_add(report.freed);
        // Charges that failed in our own windows are not for want of room.
        self.hits = Some(report.direct_reclaim);
        match report.outcome {
            Outcome::Vanished => {
                self.phase = Phase::Gone;
                out.push(Action::Forget);
                return;
            }
            Outcome::Foreign(limit) => self.adopt(now, limit, out),
            Outcome::ForeignHigh(_) => self.no_steps_until = Some(now + FOREIGN_PAUSE),
            Outcome::Failed(errno) => {
                return self.refused(now, errno, out);
            }
            Outcome::Reached | Outcome::Deadline | Outcome::Cancelled | Outcome::Exhausted => {}
        }
        // A write that went on until its deadline made progress in every pass (without any the kernel
        // ends it with EBUSY): what it freed was charged again at once, and is not seen in usage.
        let judged = match report.outcome {
            Outcome::Reached | Outcome::Exhausted => true,
            Outcome::Deadline => report.strategy != Strategy::LimitStep,
            _ => false,
        };
        if report.freed < LEAST && judged && self.writes_back && report.wall < STUCK {
            return self.rest(now + WRITING.max(report.wall), out);
        }
        if report.freed < LEAST && judged {
            self.totals.futile += 1;
            self.futile_rounds += 1;
            if self.futile_rounds >= FUTILE_ROUNDS {
                let pause = self.backoff.fail();
                if self.backoff.failures() == 1 {
                    out.push(Action::Tell(Notice::Futile(pause)));
                }
                return self.rest(now + pause, out);
            }
        } else if report.freed >= LEAST || report.outcome == Outcome::Deadline {
            self.futile_rounds = 0;
            self.backoff.succeed();
        }
        if report.outcome == Outcome::Reached && self.told.take().is_some() {
            out.push(Action::Tell(Notice::Resumed));
        }
        self.at_limit = report.outcome == Outcome::Deadline
            && Watermarks::ceiling(self.declared, self.high)
                .is_some_and(|ceiling| report.after >= ceiling);
        if report.outcome == Outcome::Reached {
            self.overrun_backoff.succeed();
        }
        self.look(now, report.after, out);
    }

    /// Whether the group outruns us: usage is at the limit in spite of a job that never let up, and its
    /// own threads reclaim more than we could. Once that is so, one more such job is enough to say so
    /// again.
    fn outruns(&mut self, now: Now, survey: &Survey) -> bool {
        let (then, before) = self.direct.replace((now, survey.direct_reclaim)).unwrap_or((now, 0));
        let elapsed = now.saturating_sub(then).as_secs_f64();
        let direct = survey.direct_reclaim.saturating_sub(before) as f64;
        if std::mem::take(&mut self.at_limit) && elapsed > 0.0 && direct / elapsed >= OVERRUN_RATE {
            self.overruns += 1;
        } else {
            self.overruns = 0;
        }
        self.overruns >= OVERRUN_ROUNDS
            || (self.overruns > 0 && self.overrun_backoff.failures() > 0)
    }

    fn refused(&mut self, now: Now, errno: i32, out: &mut Vec<Action>) {
        let pause = self.backoff.fail();
        if self.backoff.failures() == 1 {
            out.push(Action::Tell(Notice::Refused(errno, pause)));
        }
        self.rest(now + pause, out);
    }

    fn count(&mut self, report: &Report) {
        self.totals.rounds += 1;
        self.totals.freed = self.totals.freed.saturating_add(report.freed);
        self.totals.cpu += report.cpu;
        self.totals.steps += u64::from(report.steps);
    }

    fn adopt(&mut self, now: Now, limit: Limit, out: &mut Vec<Action>) {
        if limit == self.declared {
            return;
        }
        let quiet = self.no_steps_until.is_some_and(|until| now < until);
        if !quiet {
            out.push(Action::Tell(Notice::Adopted(self.declared, limit)));
        }
        self.no_steps_until = Some(now + FOREIGN_PAUSE);
        self.declared = limit;
        self.remark();
        self.let_be.since = None;
        match self.phase {
            // The job in flight finds the foreign value itself, but need not go on until then.
            Phase::Reclaiming(_) => out.push(Action::Cancel),
            Phase::Watching | Phase::Resting(_) => {
                self.phase = Phase::Watching;
                self.watch(now, out);
            }
            Phase::Surveying | Phase::Leaving | Phase::Gone => {}
        }
    }

    fn set_terms(&mut self, now: Now, spec: WatermarkSpec, high: Limit, out: &mut Vec<Action>) {
        if (spec, high) == (self.spec, self.high) {
            return;
        }
        (self.spec, self.high) = (spec, high);
        self.wide = 0;
        self.remark();
        self.let_be.since = None;
        match self.phase {
            // Its target is of the old terms.
            Phase::Reclaiming(_) => out.push(Action::Cancel),
            Phase::Watching | Phase::Resting(_) => {
                self.phase = Phase::Watching;
                self.look(now, self.usage, out);
            }
            Phase::Surveying | Phase::Leaving | Phase::Gone => {}
        }
    }

    fn release(&mut self, out: &mut Vec<Action>) {
        out.push(Action::Arm(None));
        out.push(Action::Timer(None));
        if let Phase::Reclaiming(_) = self.phase {
            self.phase = Phase::Leaving;
            out.push(Action::Cancel);
        } else if self.phase != Phase::Leaving {
            self.phase = Phase::Gone;
            out.push(Action::Restore(self.declared));
            out.push(Action::Forget);
        }
    }

    fn tell_aside(&mut self, why: StandAside, out: &mut Vec<Action>) {
        if self.told != Some(why) {
            self.told = Some(why);
            out.push(Action::Tell(Notice::StandingAside(why)));
        }
    }

    /// Widens the headroom where charges failed since the last survey, narrows it again after a while
    /// without; the marks that follow.
    fn widen(&mut self, now: Now, survey: &Survey) -> Option<Watermarks> {
        let hits = self.hits.replace(survey.direct_reclaim).unwrap_or(survey.direct_reclaim);
        // What comes while we stand aside is not for want of room.
        let hit = hits < survey.direct_reclaim && self.told.is_none();
        let wide = match (hit, now.saturating_sub(self.widened_at) >= NARROW_AFTER) {
            (true, _) => (self.wide + 1).min(WIDEST),
            (false, true) => self.wide.saturating_sub(1),
            (false, false) => return self.marks,
        };
        self.widened_at = now;
        if wide != self.wide {
            self.wide = wide;
            self.remark();
        }
        self.marks
    }

    fn remark(&mut self) {
        self.marks = Watermarks::of(self.spec, self.declared, self.high)
            .map(|marks| marks.widened(self.spec, self.declared, self.high, self.wide));
    }

    /// How fast what cannot be reclaimed grows, in bytes a second: only that can make a step's window an
    /// OOM. A stream of page cache fills fast, and is gone as fast. The larger of what the last two
    /// surveys show and the group's whole pace times the stuck share of its memory.
    fn stuck_growth(&mut self, now: Now, survey: &Survey) -> u64 {
        let stuck = Floor::of(survey, 0).unreclaimable;
        let seen = match self.stuck.replace((now, stuck)) {
            Some((then, before)) if now > then => {
                stuck.saturating_sub(before).0 as f64 / (now - then).as_secs_f64()
            }
            _ => 0.0,
        };
        let share = stuck.0 as f64 / survey.usage.0.max(1) as f64;
        seen.max(self.pace.rate() as f64 * share.min(1.0)) as u64
    }

    /// Whether what we reclaim comes back, and it is time to see what happens without us.
    fn in_use(&mut self, now: Now, survey: &Survey) -> bool {
        // Pages of a file that come back within the distance of the working set are activated at once
        // (mm/workingset.c); those of a stream, however often it goes round, are not.
        let stat = &survey.stat;
        let kept = stat.active_file.unwrap_or_default() > stat.inactive_file.unwrap_or_default();
        let refaults = stat.workingset_refault_anon.unwrap_or(0)
            + if kept { stat.workingset_refault_file.unwrap_or(0) } else { 0 };
        let state = &mut self.let_be;
        let delta = refaults.saturating_sub(state.refaults.unwrap_or(refaults));
        state.refaults = Some(refaults);
        // Pages; bytes on v1 before 6.7, where the statistics multiply every item by the page size.
        let bytes = if refaults.is_multiple_of(page_size()) && delta.is_multiple_of(page_size()) {
            delta
        } else {
            delta.saturating_mul(page_size())
        };
        state.refaulted = state.refaulted.saturating_add(bytes);
        if state.freed < JUDGED_ON {
            return false;
        }
        let comes_back = state.refaulted >= state.freed.0 / 2;
        state.refaulted = 0;
        state.freed = Bytes(0);
        comes_back && now >= state.not_before
    }

    fn stop_letting_be(&mut self, now: Now) {
        if let Some(since) = self.let_be.since.take() {
            if now.saturating_sub(since) >= FITS_AFTER {
                self.let_be.backoff.succeed();
            }
            self.let_be.not_before = now + self.let_be.backoff.fail();
        }
    }
}

//! A round: what is done after a survey, and what is made of the job's report.

use super::super::event::{Action, Job, Notice, Now, Outcome, Report, Strategy, Survey};
use super::super::floor::Floor;
use super::super::plan::{LEAST, Plan, StandAside, plan, write_back};
use super::super::watermark::{WIDEST, Watermarks};
use super::terms::FOREIGN_PAUSE;
use super::{Container, Phase};
use cgroupfs::Limit;
use std::time::Duration;

/// A job reports back after this long even if it is not done: the survey it acts on is stale by then,
/// and a group that outruns it is to be let alone.
pub const JOB_DEADLINE: Duration = Duration::from_millis(100);

/// Futile rounds in a row before backing off (law 6).
const FUTILE_ROUNDS: u32 = 2;

/// Direct reclaim events a second, beside a job that never lets up, from which on a group counts as
/// outrunning us: measured on 6.18, an event stands for about 7 KiB, so this is 140 MiB/s more than what
/// we took. A load at memset speed shows 28,000 to 58,000.
const OVERRUN_RATE: f64 = 20_000.0;

/// So many such jobs in a row: other loads on the CPUs must not look like it.
const OVERRUN_ROUNDS: u32 = 3;

/// First and longest pause after that. Each new try costs one job that is in the group's way.
pub(super) const OVERRUN_FIRST: Duration = Duration::from_secs(1);
pub(super) const OVERRUN_CAP: Duration = Duration::from_secs(30);

/// How often a dirty group is looked at while it is over its mark: writeback of a few MiB takes about
/// as long on a disk of 100 MiB/s.
const DIRTY_PAUSE: Duration = Duration::from_millis(100);

/// How long the disk is left to it where a reclaim write had writeback started, and took nothing yet.
const WRITING: Duration = Duration::from_millis(20);

/// A reclaim write that waited for the disk so long found none that writes (NFS, say): it is backed off from.
const STUCK: Duration = Duration::from_secs(1);

/// A widened headroom that was enough for so long is narrowed by a quarter.
const NARROW_AFTER: Duration = Duration::from_secs(10);

impl Container {
    pub(super) fn decide(&mut self, now: Now, survey: &Survey, out: &mut Vec<Action>) {
        self.phase = Phase::Watching;
        if survey.limit != self.declared {
            self.adopt(now, survey.limit, out);
        }
        self.usage = survey.usage;
        let Some(marks) = self.marks else {
            return self.watch(now, out);
        };
        if self.let_be.is_on() {
            if !self.let_be.was_hit(survey) && self.mark().is_some_and(|mark| survey.usage < mark) {
                return self.watch(now, out);
            }
            self.let_be.end(now);
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
        if self.let_be.is_in_use(now, survey) {
            self.let_be.begin(now, survey);
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

    pub(super) fn done(&mut self, now: Now, report: &Report, out: &mut Vec<Action>) {
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
        self.let_be.took(report.freed);
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

    pub(super) fn refused(&mut self, now: Now, errno: i32, out: &mut Vec<Action>) {
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
}

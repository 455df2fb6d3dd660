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

mod let_be;
mod round;
mod terms;

pub use round::JOB_DEADLINE;
pub use terms::FOREIGN_PAUSE;

use super::backoff::Backoff;
use super::event::{Action, Capabilities, Event, Now};
use super::pace::Pace;
use super::plan::StandAside;
use super::state::State;
use super::watermark::{WatermarkSpec, Watermarks};
use cgroupfs::{Bytes, Limit};
use let_be::LetBe;
use std::time::Duration;

/// How often a group is looked at again after a threshold event, while its usage moves; at the least.
const RECHECK: Duration = Duration::from_millis(50);

/// Usage that moves by less in a [`RECHECK`] rests: the per-CPU stock of one CPU.
const STEADY: Bytes = Bytes::kib(256);

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
            overrun_backoff: Backoff::new(round::OVERRUN_FIRST, round::OVERRUN_CAP, seed),
            no_steps_until: None,
            told: None,
            writes_back: false,
            next_job: 0,
            let_be: LetBe::new(seed),
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
            Phase::Watching if self.let_be.is_on() => State::Aside(StandAside::InUse),
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
                self.let_be.end(now);
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
                    || (self.let_be.is_on() && self.can.threshold_event) =>
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
        match self.let_be.is_on() {
            true => Watermarks::ceiling(self.declared, self.high).max(Some(marks.high)),
            false => Some(marks.high),
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
}

//! Takes memory from one group, by one of four means. Runs on a worker thread: every write here may
//! block in the kernel.
//!
//! Between a lower and its restore nothing is allocated and nothing is waited for.

use super::attention::Attention;
use super::fault::{self, Point};
use super::sys;
use crate::core::{Job, Outcome, Report, Strategy};
use crate::journal::{Deadline, Slot, Step, StepFile, Swappiness};
use cgroupfs::files::{Decimal, Knob};
use cgroupfs::memory::{Memory, ReclaimFile, Version};
use cgroupfs::{Bytes, Error, Limit, Op};
use nix::errno::Errno;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Stops a job from outside: at its deadline, or for good.
#[derive(Debug, Default)]
pub struct Stop {
    cancelled: AtomicBool,
    expired: AtomicBool,
    /// The value a step stands at, 0 for none: what a rescuer looks for in the file.
    lowered: AtomicU64,
    /// What is to stand there; `u64::MAX` for no limit.
    declared: AtomicU64,
    /// A limit that somebody else wrote meanwhile, as seen by the event loop; 0 for none.
    foreign: AtomicU64,
}

impl Stop {
    /// Stop as soon as can be.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// The deadline has passed.
    pub fn expire(&self) {
        self.expired.store(true, Ordering::SeqCst);
    }

    /// Whether it was told to stop.
    pub fn stopped(&self) -> Option<Outcome> {
        if self.cancelled.load(Ordering::SeqCst) {
            Some(Outcome::Cancelled)
        } else if self.expired.load(Ordering::SeqCst) {
            Some(Outcome::Deadline)
        } else {
            None
        }
    }

    /// Somebody else's limit: the job ends, and what it restores is this.
    pub fn found_foreign(&self, limit: Limit) {
        let bytes = limit.bytes().map_or(u64::MAX, |bytes| bytes.0);
        self.foreign.store(bytes, Ordering::SeqCst);
        self.cancel();
    }

    fn foreign(&self) -> Option<Limit> {
        match self.foreign.load(Ordering::SeqCst) {
            0 => None,
            u64::MAX => Some(Limit::Max),
            bytes => Some(Limit::Bytes(Bytes(bytes))),
        }
    }

    /// The value that a lowered limit stands at this instant, if it is lowered.
    pub fn lowered(&self) -> Option<Bytes> {
        match self.lowered.load(Ordering::SeqCst) {
            0 => None,
            value => Some(Bytes(value)),
        }
    }
}

impl Stop {
    fn lower(&self, value: Bytes, declared: Limit) {
        let declared = declared.bytes().map_or(u64::MAX, |bytes| bytes.0);
        self.declared.store(declared, Ordering::SeqCst);
        self.lowered.store(value.0, Ordering::SeqCst);
    }

    fn restored(&self) {
        self.lowered.store(0, Ordering::SeqCst);
    }

    /// What a job that ended left lowered, and what is to stand there.
    pub(super) fn left(&self) -> Option<(Bytes, Limit)> {
        let declared = match self.declared.load(Ordering::SeqCst) {
            u64::MAX => Limit::Max,
            bytes => Limit::Bytes(Bytes(bytes)),
        };
        Some((self.lowered()?, declared))
    }
}

/// What a worker has at hand for a job.
pub(super) struct At<'a> {
    /// How it is stopped.
    pub(super) stop: &'a Stop,
    /// Where it writes down what it changes before it does; `None` for one job outside of the event loop.
    pub(super) slot: Option<&'a Slot>,
    /// Its thread.
    pub(super) me: sys::Thread,
    /// How it notices who else is about to write.
    pub(super) attention: &'a mut Attention,
}

/// The guardian restores a step that has stood for so long: with its [`crate::guardian`]'s pace, less
/// than the 100 ms in which every limit is to be back. A lowering write may go on for longer, and has
/// nothing lowered until it is done.
const STEP_DEADLINE: Duration = Duration::from_millis(30);

/// It puts swappiness back after so long: a job and what it may take to end.
const SWAPPINESS_DEADLINE: Duration = Duration::from_secs(1);

/// Others that touch the file make a step's writes begin anew so often. After that a restore is made
/// whoever else writes, and a step is not.
const TOUCHES: u32 = 8;

/// What the attempts of a job came to so far.
struct Tally {
    freed: Bytes,
    steps: u32,
}

/// Does `job` on `memory`, in the calling thread, which must be a worker's
/// ([`sys::become_interruptible`]).
pub(super) fn execute(memory: &dyn Memory, job: &Job, at: &mut At<'_>) -> Report {
    let wall = Instant::now();
    let cpu = sys::thread_cpu();
    let before = memory.usage().unwrap_or_default();
    let mut tally = Tally { freed: Bytes(0), steps: 0 };
    let outcome = match SwapGuard::set(memory, job.no_swap, at.slot) {
        Ok(_guard) => match job.strategy {
            Strategy::LimitStep => step(memory, job, at, &mut tally, ReclaimFile::Limit),
            Strategy::HighStep => step(memory, job, at, &mut tally, ReclaimFile::High),
            Strategy::MemoryReclaim => memory_reclaim(memory, job, at.stop, &mut tally),
            Strategy::ForceEmpty => force_empty(memory, job, at.stop, &mut tally, at.me),
        },
        Err(error) => Err(error),
    }
    .unwrap_or_else(|error| outcome_of(&error));
    Report {
        id: job.id,
        strategy: job.strategy,
        outcome,
        before,
        after: memory.usage().unwrap_or_default(),
        freed: tally.freed,
        direct_reclaim: memory.counters().map_or(0, |counters| counters.direct_reclaim()),
        steps: tally.steps,
        cpu: sys::thread_cpu().saturating_sub(cpu),
        wall: wall.elapsed(),
    }
}

fn outcome_of(error: &Error) -> Outcome {
    match error {
        Error::Vanished { .. } => Outcome::Vanished,
        error => Outcome::Failed(error.errno().unwrap_or(Errno::EIO) as i32),
    }
}

/// Steps a limit (v1 `memory.limit_in_bytes`, v2 `memory.high`): lower, which reclaims, then the
/// declared value at once.
fn step(
    memory: &dyn Memory,
    job: &Job,
    at: &mut At<'_>,
    tally: &mut Tally,
    file: ReclaimFile,
) -> Result<Outcome, Error> {
    let knob = memory.reclaim_file(file)?;
    // memory.high may be anybody's: what it is when the job starts is what it is put back to.
    let declared = match file {
        ReclaimFile::High => read_limit(&knob, memory.version(), file)?,
        _ => job.declared.page_floor(),
    };
    at.attention.pay(&knob);
    let outcome = steps(memory, job, at, tally, file, &knob, declared);
    at.attention.ease();
    outcome
}

fn steps(
    memory: &dyn Memory,
    job: &Job,
    at: &mut At<'_>,
    tally: &mut Tally,
    file: ReclaimFile,
    knob: &Knob,
    declared: Limit,
) -> Result<Outcome, Error> {
    let text_of_declared = LimitText::new(memory.version(), file, declared);
    let stop = at.stop;
    let foreign = |limit| match file {
        ReclaimFile::High => Outcome::ForeignHigh(limit),
        _ => Outcome::Foreign(limit),
    };
    let mut touches = 0;
    loop {
        if let Some(outcome) = stop.stopped() {
            return Ok(outcome);
        }
        let usage = memory.usage()?;
        if usage <= job.target {
            return Ok(Outcome::Reached);
        }
        // Foreign writes win: look before each write.
        at.attention.fresh();
        let standing = read_limit(knob, memory.version(), file)?;
        if standing != declared {
            return Ok(foreign(standing));
        }
        let value = usage.saturating_sub(job.step).max(job.target).max(job.floor);
        let value = Bytes(value.0.next_multiple_of(cgroupfs::units::page_size()));
        if value >= usage || Limit::Bytes(value) >= standing {
            return Ok(Outcome::Exhausted);
        }
        let text = Decimal::new(value.0);
        tally.steps += 1;
        stop.lower(value, declared);
        if let Some(slot) = at.slot {
            slot.begin_step(Step {
                file: if file == ReclaimFile::High { StepFile::High } else { StepFile::Limit },
                declared,
                written: value,
                deadline: Deadline::after(STEP_DEADLINE),
            });
        }
        fault::point(Point::Journaled);
        let lowered = sys::interruptible_and_attentive(|| match stop.stopped() {
            Some(_) => Err(Errno::EINTR),
            None if sys::is_touched() => Err(Errno::EINTR),
            None => knob.raw().write(text.as_bytes()),
        });
        let restored = match lowered {
            Ok(()) => {
                fault::point(Point::Lowered);
                restore(memory, knob, file, value, declared, &text_of_declared, at)
            }
            // Refused: the limit is as it was.
            Err(_) => Ok(None),
        };
        fault::point(Point::Restored);
        // A restore that failed leaves the mark: the event loop tries again.
        if restored.is_ok() {
            stop.restored();
            if let Some(slot) = at.slot {
                slot.end_step();
            }
        }
        // Judged by bytes, not by the return code.
        let after = memory.usage()?;
        // memory.limit_in_bytes is lowered only once usage fits; memory.high says nothing of the kind.
        let fits = lowered.is_ok() && file == ReclaimFile::Limit;
        let went = usage.saturating_sub(if fits { after.min(value) } else { after });
        tally.freed = tally.freed.saturating_add(went);
        match restored {
            Ok(None) => {}
            Ok(Some(theirs)) => return Ok(foreign(theirs)),
            Err(errno) => return Err(knob.error(Op::Write, None, errno)),
        }
        match lowered {
            Ok(()) if file == ReclaimFile::High && went < Bytes::kib(128) => {
                return Ok(Outcome::Exhausted);
            }
            Ok(()) => {}
            // By somebody who touches the file, unless by who stops us.
            Err(Errno::EINTR) => {
                touches += 1;
                if touches > TOUCHES {
                    return Ok(stop.stopped().unwrap_or(Outcome::Cancelled));
                }
            }
            // Nothing (more) could be reclaimed. Next to nothing freed is the end of it.
            Err(Errno::EBUSY) if went >= Bytes::kib(128) => {}
            Err(Errno::EBUSY) => return Ok(Outcome::Exhausted),
            Err(errno) => return Err(knob.error(Op::Write, None, errno)),
        }
    }
}

/// Writes the declared value back where the file still holds ours; `Some(value)` if it holds another.
/// EINVAL means that memsw was lowered under the declared limit meanwhile: then the largest value that
/// the kernel takes is written, and reported as foreign.
fn restore(
    memory: &dyn Memory,
    knob: &Knob,
    file: ReclaimFile,
    ours: Bytes,
    declared: Limit,
    text_of_declared: &LimitText,
    at: &mut At<'_>,
) -> Result<Option<Limit>, Errno> {
    let version = memory.version();
    for touches in 0.. {
        at.attention.fresh();
        match read_limit(knob, version, file) {
            // By the guardian, or the event loop.
            Ok(standing) if standing == declared => return Ok(None),
            Ok(standing) if standing != Limit::Bytes(ours) => return Ok(Some(standing)),
            _ => {}
        }
        // Written while our lowering write was under way, and overwritten by it: theirs is put back.
        let theirs = at.stop.foreign().filter(|_| file == ReclaimFile::Limit);
        let text = theirs.map_or(*text_of_declared, |theirs| LimitText::new(version, file, theirs));
        let write = || knob.raw().write(text.as_bytes());
        let written = match touches {
            0..TOUCHES => sys::attentive(|| match sys::is_touched() {
                true => Err(Errno::EINTR),
                false => write(),
            }),
            _ => write(),
        };
        match written {
            Ok(()) => return Ok(theirs),
            // Somebody touched the file since we looked, and nothing was written: look again.
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL) if file == ReclaimFile::Limit => {
                let bound =
                    memory.limit_bound().map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
                match write_on(knob, &LimitText::new(version, file, bound)) {
                    Ok(()) => return Ok(Some(bound)),
                    // memsw was lowered again meanwhile.
                    Err(Errno::EINVAL) if touches < TOUCHES => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EINTR)
}

/// Writes, going on after EINTR: a raise that a signal interrupted did nothing.
fn write_on(knob: &Knob, text: &LimitText) -> Result<(), Errno> {
    loop {
        match knob.raw().write(text.as_bytes()) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Sees that `declared` stands where the file still holds the stepped value `ours`: for the event loop,
/// which never lowers and so never reclaims here. On a descriptor of its own, so as not to wait for a
/// write in flight.
pub(super) fn rescue(
    memory: &dyn Memory,
    file: ReclaimFile,
    ours: Bytes,
    declared: Limit,
) -> Result<(), Error> {
    let knob = memory.reclaim_file(file)?;
    let version = memory.version();
    if read_limit(&knob, version, file)? != Limit::Bytes(ours) {
        return Ok(());
    }
    let write = |limit| write_on(&knob, &LimitText::new(version, file, limit));
    match write(declared) {
        Err(Errno::EINVAL) if file == ReclaimFile::Limit => write(memory.limit_bound()?),
        result => result,
    }
    .map_err(|errno| knob.error(Op::Write, None, errno))
}

/// A limit as the file takes it, on the stack.
#[derive(Clone, Copy)]
enum LimitText {
    Number(Decimal),
    Word(&'static [u8]),
}

impl LimitText {
    fn new(version: Version, file: ReclaimFile, limit: Limit) -> LimitText {
        match (limit, version, file) {
            (Limit::Bytes(bytes), _, _) => LimitText::Number(Decimal::new(bytes.0)),
            (Limit::Max, Version::V1, ReclaimFile::Limit) => LimitText::Word(b"-1"),
            (Limit::Max, _, _) => LimitText::Word(b"max"),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            LimitText::Number(decimal) => decimal.as_bytes(),
            LimitText::Word(word) => word,
        }
    }
}

fn read_limit(knob: &Knob, version: Version, file: ReclaimFile) -> Result<Limit, Error> {
    match (version, file) {
        (Version::V1, ReclaimFile::Limit) => knob.read_u64().map(Limit::from_v1),
        _ => knob.read_limit_v2(),
    }
}

/// `memory.reclaim` in batches; EAGAIN means short, not wrong.
fn memory_reclaim(
    memory: &dyn Memory,
    job: &Job,
    stop: &Stop,
    tally: &mut Tally,
) -> Result<Outcome, Error> {
    let knob = memory.reclaim_file(ReclaimFile::Reclaim)?;
    loop {
        if let Some(outcome) = stop.stopped() {
            return Ok(outcome);
        }
        let usage = memory.usage()?;
        let want = usage.saturating_sub(job.target);
        if want == Bytes(0) {
            return Ok(Outcome::Reached);
        }
        let text = Decimal::new(want.min(job.step).0);
        tally.steps += 1;
        let written = sys::interruptible(|| match stop.stopped() {
            Some(_) => Err(Errno::EINTR),
            None => knob.raw().write(text.as_bytes()),
        });
        let went = usage.saturating_sub(memory.usage()?);
        tally.freed = tally.freed.saturating_add(match written {
            // The kernel says it took them; growth meanwhile hides it.
            Ok(()) => went.max(want.min(job.step)),
            Err(_) => went,
        });
        match written {
            Ok(()) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if went >= Bytes::kib(128) => {}
            Err(Errno::EAGAIN) => return Ok(Outcome::Exhausted),
            Err(errno) => return Err(knob.error(Op::Write, None, errno)),
        }
    }
}

/// How soon a write is interrupted once more, at first and in the end.
const INTERRUPT_FIRST: Duration = Duration::from_micros(20);
const INTERRUPT_SELDOM: Duration = Duration::from_millis(20);

/// `memory.force_empty` has no byte target, but returns EINTR between 32-page passes: a monitor watches
/// usage and stops it with a signal. Overshoots by what is reclaimed between the monitor's look and the
/// next pass (measured on 6.18, 100 MiB asked: 103 in the median, 338 at worst).
fn force_empty(
    memory: &dyn Memory,
    job: &Job,
    stop: &Stop,
    tally: &mut Tally,
    me: sys::Thread,
) -> Result<Outcome, Error> {
    let knob = memory.reclaim_file(ReclaimFile::ForceEmpty)?;
    let before = memory.usage()?;
    if before <= job.target {
        return Ok(Outcome::Reached);
    }
    let done = AtomicBool::new(false);
    tally.steps += 1;
    let written = std::thread::scope(|scope| {
        let monitor = std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, || {
            let mut again = INTERRUPT_FIRST;
            while !done.load(Ordering::SeqCst) {
                let enough = memory.usage().is_ok_and(|usage| usage <= job.target);
                if enough || stop.stopped().is_some() {
                    sys::interrupt(me);
                    // The signal may have come before the write: again until it is out. One that waits for a disk is
                    // out when that answers.
                    std::thread::sleep(again);
                    again = (again * 2).min(INTERRUPT_SELDOM);
                }
            }
        });
        let written = match monitor {
            // Without a monitor nothing would stop it.
            Err(_) => Err(Errno::EAGAIN),
            Ok(_) => sys::interruptible(|| knob.raw().write(b"0")),
        };
        done.store(true, Ordering::SeqCst);
        written
    });
    let after = memory.usage()?;
    let went = before.saturating_sub(after);
    tally.freed = tally.freed.saturating_add(went);
    match written {
        _ if after <= job.target => Ok(Outcome::Reached),
        Ok(()) | Err(Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => {
            Ok(stop.stopped().unwrap_or(Outcome::Exhausted))
        }
        Err(errno) => Err(knob.error(Op::Write, Some("0"), errno)),
    }
}

/// The group's swappiness at 0 while this lives: its own limits forbid what a v1 reclaim write would do
/// to its anonymous memory (law 2).
struct SwapGuard<'a>(Option<(Knob, u64, Option<&'a Slot>)>);

impl<'a> SwapGuard<'a> {
    fn set(memory: &dyn Memory, wanted: bool, slot: Option<&'a Slot>) -> Result<Self, Error> {
        if !wanted || memory.version() != Version::V1 {
            return Ok(SwapGuard(None));
        }
        let knob = memory.reclaim_file(ReclaimFile::Swappiness)?;
        let before = knob.read_u64()?;
        if let Some(slot) = slot {
            slot.begin_swappiness(Swappiness {
                before,
                deadline: Deadline::after(SWAPPINESS_DEADLINE),
            });
        }
        let guard = SwapGuard(Some((knob, before, slot)));
        if let SwapGuard(Some((knob, ..))) = &guard {
            knob.write("0")?;
        }
        fault::point(Point::Swappiness);
        Ok(guard)
    }
}

impl Drop for SwapGuard<'_> {
    fn drop(&mut self) {
        let Some((knob, before, slot)) = &self.0 else { return };
        // Somebody else's value stays. What the kernel refuses stays in the journal.
        let undone = match knob.read_u64() {
            Ok(0) => knob.write(&before.to_string()).is_ok(),
            _ => true,
        };
        if let Some(slot) = slot
            && undone
        {
            slot.end_swappiness();
        }
    }
}

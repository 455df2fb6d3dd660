//! A `memory.high` that the kernel itself throttles above: written where cgshim declares one, watched so
//! that throttling which achieves nothing has an end ([`crate::core::throttle::native`]), and put back.
//!
//! Nothing is read as long as `memory.events` does not change: while a group is throttled, it is looked at
//! once a second. A write that may reclaim is made by a thread of its own, and interrupted after
//! [`LONG_ENOUGH`]: the kernel stores the value first, so that it stands all the same, and what is above it
//! is left to background reclaim and to those who charge.

use super::engine::Engine;
use super::flight::{INTERRUPT_AGAIN, stepped_file};
use super::throttle::{self, ThrottleEvent};
use super::throttling::{before, write_down};
use super::{Happened, Key, sys};
use crate::core::throttle::native::{Deed, Native, Seen};
use crate::core::throttle::{Then, ThrottleTotals, WayOut};
use crate::core::{Event, Now};
use crate::journal::HighMark;
use cgroupfs::events::Watch;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, ReclaimFile, Version};
use cgroupfs::procfs::Psi;
use cgroupfs::{Bytes, Error, Limit, Op, Result};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a write may reclaim: nobody's rmdir is to wait longer (law 9).
const LONG_ENOUGH: Duration = Duration::from_millis(20);

/// How long a write that was interrupted is waited for at a release. One that waits for a disk ends by
/// itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// Events come a hundred times a second; looks do not.
const APART: Duration = Duration::from_millis(100);

/// A write that was refused is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// Those of all containers.
pub(super) type Natives = HashMap<u64, Guarded>;

/// A container's guard.
pub(super) struct Guarded {
    core: Native,
    way_out: WayOut,
    pressure: Option<Knob>,
    watch: Option<Watch>,
    at: Option<Now>,
    looked: Option<Now>,
    writing: Option<Writing>,
    /// What was done before this guard was there, by the journal.
    earlier: ThrottleTotals,
}

impl Guarded {
    /// When it is to be seen to.
    pub(super) fn at(&self) -> Option<Now> {
        match &self.writing {
            Some(writing) => Some(writing.interrupt_at),
            None => self.at,
        }
    }
}

/// A write under way.
struct Writing {
    high: Limit,
    thread: JoinHandle<Result<()>>,
    me: Arc<OnceLock<sys::Thread>>,
    interrupt_at: Now,
}

impl Writing {
    /// Starts to write; `wake` is signalled when it is done.
    fn start(memory: &dyn Memory, high: Limit, now: Now, wake: Arc<EventFd>) -> Result<Writing> {
        let knob = memory.reclaim_file(ReclaimFile::High)?;
        let refused = Error::refused(Op::Write, knob.path(), Errno::EAGAIN);
        let me = Arc::new(OnceLock::new());
        let mine = me.clone();
        let thread = std::thread::Builder::new()
            .name("cgshim-high".into())
            .stack_size(64 << 10)
            .spawn(move || {
                let _ = mine.set(sys::become_interruptible());
                let result = sys::interruptible(|| knob.write(&high.to_v2()));
                let _ = wake.write(1);
                result
            })
            .map_err(|_| refused)?;
        Ok(Writing { high, thread, me, interrupt_at: now + LONG_ENOUGH })
    }

    /// The thread has not been joined: it is, with this.
    fn interrupt(&self) {
        if let Some(me) = self.me.get()
            && !self.thread.is_finished()
        {
            sys::interrupt(*me);
        }
    }

    /// Interrupts it until it has ended; `None` if it does not.
    fn end(self) -> Option<Result<()>> {
        let start = Instant::now();
        while !self.thread.is_finished() {
            if start.elapsed() > PATIENCE {
                return None;
            }
            if start.elapsed() > LONG_ENOUGH {
                self.interrupt();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.join().into()
    }

    fn join(self) -> Result<()> {
        self.thread.join().unwrap_or(Ok(()))
    }
}

impl Engine {
    /// Guards the native `memory.high` of a container from now on, or no more (`None`); `wanted` is written
    /// there if it is lower than what stands.
    pub(super) fn guard_native(
        &mut self,
        key: Key,
        wanted: Limit,
        way_out: Option<WayOut>,
    ) -> Result<()> {
        let Some(way_out) = way_out else {
            self.end_native(key.0);
            return Ok(());
        };
        if let Some(guarded) = self.natives.get_mut(&key.0) {
            guarded.core.want(wanted, way_out);
            guarded.way_out = way_out;
        } else {
            let Some(enforced) = self.containers.get(&key.0) else { return Ok(()) };
            if enforced.journaled.is_none() {
                return Err(Error::NoController {
                    controller: "memory",
                    why: "without a place in the journal nobody would put back a memory.high that a kill -9 \
                          of ours leaves"
                        .into(),
                });
            }
            let earlier = self.slot(key).and_then(|slot| slot.record());
            let earlier = earlier.map(|record| before(&record.counters)).unwrap_or_default();
            let dir: Arc<dyn ControlDir> = enforced.group.clone();
            let standing = enforced.memory.high()?;
            let guarded = Guarded {
                core: Native::new(throttle::curve(), wanted, standing, way_out),
                way_out,
                pressure: Knob::open(&dir, "memory.pressure", Access::Read).ok(),
                watch: self.modified.watch(&enforced.group, "memory.high", key.0).ok(),
                at: None,
                looked: None,
                writing: None,
                earlier,
            };
            self.natives.insert(key.0, guarded);
        }
        self.look_at_native(key.0);
        Ok(())
    }

    /// What stood before us is put back.
    pub(super) fn end_native(&mut self, key: u64) {
        let Some(mut guarded) = self.natives.remove(&key) else { return };
        if let Some(watch) = &guarded.watch {
            self.modified.forget(watch);
        }
        if let Some(writing) = guarded.writing.take() {
            let high = writing.high;
            let _ = writing.end();
            guarded.core.wrote(high);
        }
        let Some(enforced) = self.containers.get(&key) else { return };
        let Some(slot) = enforced.journaled.as_ref().map(super::journaled::Journaled::slot) else {
            return;
        };
        let Some((before, ours)) = guarded.core.to_undo() else {
            slot.end_high();
            return;
        };
        let memory = &enforced.memory;
        let restored = match memory.high() {
            Ok(standing) if standing != ours => Ok(()),
            // No limit: nothing can be reclaimed.
            Ok(_) if before == Limit::Max => memory.set_high(before),
            Ok(_) => {
                let wake = self.workers.waker();
                match Writing::start(&**memory, before, Now::ZERO, wake).map(Writing::end) {
                    Ok(Some(result)) => result,
                    // It stands, and will be done by and by.
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        match restored {
            Ok(()) => slot.end_high(),
            Err(error) if error.is_vanished() => slot.end_high(),
            // It stays in the journal: for the guardian, and the next start.
            Err(error) => log::error!("{error}: memory.high {before} is not back"),
        }
    }

    pub(super) fn native_totals(&self, key: u64) -> Option<ThrottleTotals> {
        self.natives.get(&key).map(|guarded| guarded.core.totals())
    }

    pub(super) fn native_totals_in_all(&self, key: u64) -> Option<ThrottleTotals> {
        self.natives.get(&key).map(|guarded| guarded.core.totals().after(guarded.earlier))
    }

    /// `memory.events` or `memory.high` of a container has changed.
    pub(super) fn native_stirred(&mut self, key: u64) {
        let now = self.now();
        let Some(guarded) = self.natives.get_mut(&key) else { return };
        match guarded.looked {
            Some(looked) if now.saturating_sub(looked) < APART => {
                let soon = looked + APART;
                // While it is looked at by the clock, that is often enough.
                guarded.at = guarded.at.or(Some(soon));
            }
            _ if guarded.at.is_none() => self.look_at_native(key),
            _ => {}
        }
    }

    /// Those that are due.
    pub(super) fn natives_due(&mut self) {
        if self.natives.is_empty() {
            return;
        }
        self.native_writes();
        let now = self.now();
        let due: Vec<u64> = self
            .natives
            .iter()
            .filter(|(_, guarded)| {
                guarded.writing.is_none() && guarded.at.is_some_and(|at| at <= now)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.look_at_native(key);
        }
    }

    /// Writes that are done, and those that take too long.
    fn native_writes(&mut self) {
        let now = self.now();
        let mut failed = Vec::new();
        for (key, guarded) in &mut self.natives {
            let Some(writing) = &mut guarded.writing else { continue };
            if !writing.thread.is_finished() {
                if writing.interrupt_at <= now {
                    writing.interrupt();
                    writing.interrupt_at = now + INTERRUPT_AGAIN;
                }
                continue;
            }
            let Some(writing) = guarded.writing.take() else { continue };
            let high = writing.high;
            guarded.at = Some(now + APART);
            match writing.join() {
                Ok(()) => guarded.core.wrote(high),
                Err(error) => {
                    guarded.at = Some(now + AGAIN);
                    failed.push((*key, error));
                    continue;
                }
            }
            if guarded.core.to_undo().is_none()
                && let Some(enforced) = self.containers.get(key)
                && let Some(journaled) = &enforced.journaled
            {
                journaled.slot().end_high();
            }
        }
        for (key, error) in failed {
            self.failed(key, &error);
        }
    }

    fn look_at_native(&mut self, key: u64) {
        let now = self.now();
        let Some(enforced) = self.containers.get(&key) else { return };
        let Some(guarded) = self.natives.get_mut(&key) else { return };
        if guarded.writing.is_some() {
            return;
        }
        // A step of ours has it lowered: what stands is not for long.
        let stepped = enforced.flight.as_ref().is_some_and(|flight| {
            flight.job.is_some_and(|job| stepped_file(job.strategy) == ReclaimFile::High)
        });
        // So has one that is being emptied as it ends (before 5.19).
        let emptying = enforced.deeds.as_ref().is_some_and(|deeds| deeds.is_emptying());
        if stepped || emptying || enforced.unrestored.is_some() {
            guarded.at = Some(now + APART);
            return;
        }
        guarded.looked = Some(now);
        let mut deeds = Vec::new();
        match see(&*enforced.memory, guarded.pressure.as_ref()) {
            Ok(seen) => {
                let known = guarded.core.totals();
                guarded.at = guarded.core.look(now, seen, &mut deeds);
                if guarded.core.totals() != known
                    && let Some(journaled) = &enforced.journaled
                {
                    write_down(&journaled.slot(), guarded.core.totals().after(guarded.earlier));
                }
            }
            Err(error) => {
                guarded.at = None;
                return self.failed(key, &error);
            }
        }
        log::trace!("memory.high of {}: {deeds:?}", enforced.group.path().display());
        for deed in deeds {
            self.do_native(key, deed);
        }
        self.follow(key);
    }

    fn do_native(&mut self, key: u64, deed: Deed) {
        let now = self.now();
        let Some(enforced) = self.containers.get(&key) else { return };
        let event = match deed {
            Deed::Write(high) => return self.write_native(key, high),
            Deed::Spent(then, stalled) => {
                let declared = self.natives.get(&key).map(|guarded| guarded.core.declared());
                let high = declared.and_then(Limit::bytes).unwrap_or_default();
                let cause = throttle::cause(&*enforced.memory, high);
                if then == Then::Oom
                    && let Some(pid) = throttle::largest(&enforced.group)
                {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                ThrottleEvent::WayOut(then, cause, stalled)
            }
            Deed::Resumed => ThrottleEvent::Resumed,
            Deed::Adopted(from, to) => ThrottleEvent::Adopted(from, to),
        };
        self.happened.push(Happened::Throttle(Key(key), now, event));
    }

    fn write_native(&mut self, key: u64, high: Limit) {
        let now = self.now();
        let wake = self.workers.waker();
        let Some(enforced) = self.containers.get(&key) else { return };
        let Some(guarded) = self.natives.get_mut(&key) else { return };
        let Some(journaled) = &enforced.journaled else { return };
        let before = guarded.core.before();
        let last = guarded.core.to_undo().map_or(before, |(_, ours)| ours);
        // Before the kernel has it.
        journaled.slot().begin_high(HighMark { before, written: high, last });
        match Writing::start(&*enforced.memory, high, now, wake) {
            Ok(writing) => guarded.writing = Some(writing),
            Err(error) => {
                guarded.at = Some(now + AGAIN);
                self.failed(key, &error);
            }
        }
    }

    /// The marks follow the high that is declared, whoever declared it.
    fn follow(&mut self, key: u64) {
        let Some(enforced) = self.containers.get(&key) else { return };
        let Some(guarded) = self.natives.get(&key) else { return };
        let declared = guarded.core.declared();
        if declared != enforced.core.high().page_floor() {
            let spec = enforced.core.watermark_spec();
            self.deliver(key, Event::Terms(spec, declared));
        }
    }
}

/// Whether the kernel of this group throttles by itself.
pub(super) fn is_native(memory: &dyn Memory) -> bool {
    memory.version() == Version::V2 && memory.dir().has("memory.high")
}

fn see(memory: &dyn Memory, pressure: Option<&Knob>) -> Result<Seen> {
    // Refused where PSI is off: then there is no such time.
    let psi = pressure.and_then(|knob| knob.read().ok()).map(|content| Psi::parse(&content));
    Ok(Seen {
        usage: memory.usage().unwrap_or(Bytes(0)),
        standing: memory.high()?,
        limit: memory.limit()?,
        events: memory.counters()?.high.unwrap_or(0),
        stalled: psi.and_then(|psi| psi.some).map(|some| some.total),
    })
}

//! The thread behind a throttle, while nothing is frozen: it waits on thresholds, and has everything ready
//! when growth begins to cost something.

use super::early::{Early, Seat};
use super::levels::{Levels, all_far};
use super::near::{Ground, Near, near};
use super::pulser::{Bar, Crossing, Order, Report, Terms};
use super::{Control, EVENTS, ThrottleConfig, ThrottleEvent};
use crate::core::throttle::{Curve, Level, Looks, MOST_LEVELS, Throttle, ThrottleTotals, chance};
use crate::driver::sys::Urgent;
use cgroupfs::events::Notification;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::freezer::{Freezer, Kind};
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Error, Result};
use crossbeam_channel::Sender;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// So many tasks are moved in that have not shown whether they grow. On the way to high, or else in the first pulses, those that do
/// not are moved back.
pub(super) const FEW: usize = 64;

/// Usage so far below high for so long: the growers go back.
const CALM: Duration = Duration::from_secs(5);

/// A quiet group is looked at again when it has grown by so much.
const STIR: Bytes = Bytes::kib(256);

/// On the way to high it is looked so often who grows, at most: before it comes to that again it has been above, or
/// far below.
const HALVES: usize = 8;

/// All tasks are looked at there so often.
const SCAN_BELOW: Duration = Duration::from_millis(1);

/// How often a released group is looked at.
const RELEASED: Duration = Duration::from_secs(1);

/// How often a group is looked at for whose tasks others' growth counts, too.
const LOOK_ABOVE: Duration = Duration::from_secs(1);

/// A threshold that tells who comes into a group far from high is registered once the group is at rest, as nothing else is
/// seen for the grace period that this takes: until then it is looked at, so often after it was last.
const UNTIL_AT_REST: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(320),
];

/// What could not be done is tried again after this, and after twice as long the next time, up to the second.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(10);

/// The manager.
pub(super) struct Manager {
    pub(super) config: ThrottleConfig,
    pub(super) memory: Arc<dyn Memory>,
    pub(super) levels: Levels,
    pub(super) freezer: Freezer,
    /// Made ready far from high, or waiting for its turn to be.
    pub(super) early: Option<Early>,
    pub(super) seat: Option<Seat>,
    /// At this usage it is looked who has come since; at once, if `None`.
    pub(super) next_look: Option<Bytes>,
    /// What of usage no threshold tells of, where the kernel counts it.
    kernel_memory: Option<Knob>,
    pub(super) core: Throttle,
    pub(super) start: Instant,
    pub(super) control: Arc<Control>,
    /// How often its terms have changed.
    pub(super) changes: u64,
    events: Sender<ThrottleEvent>,
    wake: Arc<EventFd>,
    told_real_time: bool,
    pub(super) told_strangers: bool,
    told_failed: bool,
}

/// Why waiting, or throttling, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// A threshold was crossed, or time is up.
    Look,
    /// The throttle ends.
    Stop,
}

impl Manager {
    pub(super) fn new(
        config: ThrottleConfig,
        memory: Arc<dyn Memory>,
        freezer: Freezer,
        curve: Curve,
        control: Arc<Control>,
        events: Sender<ThrottleEvent>,
        wake: Arc<EventFd>,
    ) -> Manager {
        let levels = Levels::new(&config, &memory);
        let dir: Arc<dyn ControlDir> = config.group.clone();
        let kernel_memory = Knob::open(&dir, "memory.kmem.usage_in_bytes", Access::Read).ok();
        let high = config.high.bytes().unwrap_or(Level::NONE.high);
        let core = Throttle::new(curve, high, config.way_out);
        let core = levels.above().fold(core, |core, above| core.beneath(above.way_out));
        Manager {
            core,
            levels,
            config,
            memory,
            freezer,
            early: None,
            seat: None,
            next_look: None,
            kernel_memory,
            start: Instant::now(),
            control,
            changes: 0,
            events,
            wake,
            told_real_time: false,
            told_strangers: false,
            told_failed: false,
        }
    }

    /// Until it is told to stop, or the group is gone. With what was made ready ahead, if anything was.
    pub(super) fn run(mut self, ahead: Option<Near>) {
        let (mut ahead, mut again) = (ahead, AGAIN);
        loop {
            let cycle = match ahead.take() {
                Some(at) => self.stay(at, true),
                None => self.cycle(),
            };
            match cycle {
                Ok(Woken::Look) => {
                    self.told_failed = false;
                    again = AGAIN;
                }
                Ok(Woken::Stop) => break,
                Err(error) if self.is_over(&error) => break,
                Err(error) => {
                    self.forget_early();
                    if !std::mem::replace(&mut self.told_failed, true) {
                        self.tell(ThrottleEvent::Failed(error));
                    }
                    if self.wait(&[], Some(again)) == Woken::Stop {
                        break;
                    }
                    again = (again * 2).min(AGAIN_AT_MOST);
                }
            }
        }
        self.forget_early();
        self.control.held.store(true, Ordering::SeqCst);
    }

    /// Its own group is gone, not one of ours that somebody removed; or about to be: its files answer with ENODEV
    /// before its directory is removed.
    fn is_over(&self, error: &Error) -> bool {
        let own = self.config.group.path();
        match error {
            Error::Refused { path, errno: Errno::ENODEV, .. } => path.parent() == Some(own),
            error => error.is_vanished() && self.config.group.is_gone(),
        }
    }

    pub(super) fn ground(&self) -> Ground<'_> {
        Ground {
            config: &self.config,
            memory: &self.memory,
            freezer: &self.freezer,
            curve: self.core.curve(),
            beneath: self.control.beneath.load(Ordering::SeqCst),
            changes: self.changes,
        }
    }

    /// Makes ready for tasks that are yet to be started.
    pub(super) fn ahead(&self) -> Result<Near> {
        Near::ahead(&self.ground())
    }

    /// Waits until usage comes near high, and stays until it is away again.
    fn cycle(&mut self) -> Result<Woken> {
        let mut urgent = None;
        while self.is_far()? {
            let (threshold, armed) = (self.levels.near_threshold()?, self.changes);
            let mut come: Option<(Bytes, Notification)> = None;
            let (mut sought, mut looks) = (None, 0);
            while armed == self.changes && self.is_far()? {
                if self.seat.is_none() {
                    urgent = None;
                }
                let turn = self.prepare()?;
                // That took a grace period, if it moved somebody.
                if !self.is_far()? {
                    break;
                }
                let near = self.config.high.bytes().map_or(Level::NONE.high, near);
                let look = self.when_to_look(near);
                if std::mem::replace(&mut sought, look) != look {
                    (come, looks) = (None, 0);
                }
                let settles = look.and_then(|_| UNTIL_AT_REST.get(looks).copied());
                looks += 1;
                if let (Some(at), None, None) = (look, settles, &come) {
                    let group = &self.config.group;
                    come = Some((at, Notification::usage_thresholds(&[(group, at)])?));
                    // What was crossed while this was registered signals nothing.
                    continue;
                }
                let mut fds = vec![threshold.as_fd()];
                fds.extend(come.as_ref().map(|(_, come)| come.as_fd()));
                let patience = self.patience().into_iter().chain(turn).chain(settles).min();
                // 64 MiB are filled sooner than a thread at normal priority has a CPU on a busy host; and whose turn it is to
                // move shares a grace period with those before it if it comes at once.
                let hurries = self.early.is_some() || self.seat.is_some();
                urgent = urgent.or_else(|| hurries.then(Urgent::new));
                let woken = self.wait_looking(&fds, patience, look.unwrap_or(near))?;
                if woken == Woken::Stop {
                    return Ok(Woken::Stop);
                }
                threshold.take();
                come.as_ref().map(|(_, come)| come.take());
            }
        }
        // Others' turn.
        self.seat = None;
        let (early, terms) = (self.early.take(), self.terms(Duration::ZERO)?);
        let mark =
            self.config.high.bytes().map_or(Level::NONE.high, |high| self.core.free_until(high));
        match Near::approach(&self.ground(), early, urgent, terms, mark)? {
            Some(at) => self.stay(at, false),
            // All who are in it have throttles of their own.
            None if self.config.taken.has_beneath(&self.config.group) => {
                Ok(self.wait(&[], Some(AGAIN_AT_MOST)))
            }
            // Nobody is in it: what there is will be gone, or somebody comes.
            None => Ok(self.wait(&[], Some(RELEASED))),
        }
    }

    /// Several throttles register thresholds of a group above them while it grows, and one was seen (2 of 32 runs,
    /// on a machine with much else to do) to begin seconds late, or not at all: usage is looked at now and then.
    fn patience(&self) -> Option<Duration> {
        self.levels.above().next().map(|_| LOOK_ABOVE)
    }

    fn is_far(&self) -> Result<bool> {
        Ok(all_far(&self.levels.now(self.memory.usage()?)))
    }

    /// Whether a throttle beneath has come, or ended, since it was made ready: who belongs to it has to be
    /// found out anew.
    pub(super) fn is_stale(&self, at: &Near) -> bool {
        self.control.beneath.load(Ordering::SeqCst) != at.beneath
    }

    /// Near high, and above; of what was made ready ahead, to the end.
    fn stay(&mut self, mut at: Near, ahead: bool) -> Result<Woken> {
        if let Some(trouble) = at.trouble()
            && !std::mem::replace(&mut self.told_real_time, true)
        {
            self.tell(trouble);
        }
        let result = self.attend(&mut at, ahead);
        let away = matches!(result, Ok(Woken::Look)) && !at.elsewhere && !self.is_stale(&at);
        if !ahead && away && self.wants_early() {
            // Who was given back is taken in again.
            (self.early, self.next_look) = (Some(at.withdraw()), None);
            return result;
        }
        let removed = at.dissolve();
        match result {
            Err(error) => Err(error),
            Ok(woken) => removed.map(|()| woken),
        }
    }

    fn attend(&mut self, at: &mut Near, ahead: bool) -> Result<Woken> {
        // The real-time thread looks after the group while thresholds are registered.
        at.pulser.order(Order::Open(self.terms(Duration::ZERO)?));
        let mut near_crossed = self.levels.near_threshold()?;
        let mut armed = self.changes;
        let mut below: Option<Instant> = None;
        // Usage when the group was last found not to grow.
        let mut rested: Option<Bytes> = None;
        loop {
            if self.obey() == Woken::Stop {
                return Ok(Woken::Stop);
            }
            if self.is_stale(at) {
                return Ok(Woken::Look);
            }
            if armed != self.changes {
                self.renew(at)?;
                at.pulser.order(Order::Open(self.terms(Duration::ZERO)?));
                near_crossed = self.levels.near_threshold()?;
                armed = self.changes;
                rested = None;
            }
            near_crossed.take();
            let usage = self.memory.usage()?;
            let levels = self.levels.now(usage);
            let free = self.free(&levels);
            let far = all_far(&levels);
            match (far, below) {
                (true, None) => below = Some(Instant::now()),
                (false, Some(_)) => {
                    below = None;
                    if ahead {
                        // From here on it counts who grows.
                        at.growers.suspect_all(&at.group)?;
                    }
                }
                _ => {}
            }
            if !ahead && below.is_some_and(|since| since.elapsed() >= CALM) {
                return Ok(Woken::Look);
            }
            let stirs = |rest: Bytes| usage.0.abs_diff(rest.0) >= STIR.0;
            let costs = reached(&levels, &free, |usage, free| usage > free);
            if costs && rested.is_none_or(stirs) {
                at.growers.suspect_again(&at.group);
                at.pulser.order(Order::Open(self.terms(Duration::ZERO)?));
                let woken = self.throttle(at)?;
                if woken == Woken::Stop || at.elsewhere {
                    return Ok(woken);
                }
                rested = Some(self.memory.usage()?);
                continue;
            }
            // Nothing is sampled here: thresholds wake us, and the real-time thread. Where growth costs
            // something, whose ever it was, the container's own counts.
            let upward = match costs {
                true => vec![Some(rested.unwrap_or(usage).max(usage).saturating_add(STIR))],
                false => free,
            };
            let any = upward.iter().any(Option::is_some);
            let above = any.then(|| self.levels.threshold(&upward)).transpose()?.map(Arc::new);
            // What was crossed while this was registered signals nothing.
            let now = self.levels.now(self.memory.usage()?);
            if far != all_far(&now) || reached(&now, &upward, |usage, level| usage >= level) {
                rested = None;
                continue;
            }
            if self.settle(at) == Woken::Stop {
                return Ok(Woken::Stop);
            }
            if let Some(above) = &above {
                let terms = self.terms(Duration::ZERO)?;
                let mark = upward.first().copied().flatten().unwrap_or(Level::NONE.high);
                let crossing = Crossing { mark, tasks: at.growers.len() as u64 };
                at.pulser.order(Order::Await(above.clone(), terms, crossing));
            }
            let patience = match (below, self.core.is_released()) {
                (_, true) => Some(RELEASED),
                (Some(since), false) if !ahead => Some(CALM.saturating_sub(since.elapsed())),
                (_, false) => None,
            };
            let free = upward.first().copied().flatten().filter(|_| !costs);
            let woken = self.wait_below(at, &near_crossed, free, patience)?;
            let crossed = matches!(at.pulser.report(), Some(Report::Crossed));
            match woken {
                Woken::Stop => return Ok(Woken::Stop),
                Woken::Look if crossed && !self.holding() => {
                    // Unless they are frozen already: then it is too late to see who grows in this window.
                    if !at.pulser.has_report() {
                        at.growers.suspect_again(&at.group);
                    }
                    let woken = self.throttle(at)?;
                    if woken == Woken::Stop || at.elsewhere {
                        return Ok(woken);
                    }
                    rested = Some(self.memory.usage()?);
                }
                Woken::Look => {}
            }
        }
    }

    /// Waits for what happens first. Half of the way to where growth is no longer `free`, and half of what is left then,
    /// and so on, those are let go who do not grow with the others, and taken in who do, so that nobody is frozen who
    /// was only there. Thresholds tell: who does not grow wakes nobody.
    fn wait_below(
        &mut self,
        at: &mut Near,
        near_crossed: &Notification,
        free: Option<Bytes>,
        patience: Option<Duration>,
    ) -> Result<Woken> {
        let group = self.config.group.clone();
        for _ in 0..HALVES {
            let usage = self.memory.usage()?;
            let room = free.map_or(Bytes(0), |free| free.saturating_sub(usage));
            let Some(chance) = chance(room).filter(|_| at.group.kind() == Kind::V1) else { break };
            let mark = usage.saturating_add(chance);
            let half = Notification::usage_thresholds(&[(&group, mark)])?;
            if self.memory.usage()? < mark {
                let fds = [near_crossed.as_fd(), at.pulser.wake_fd(), half.as_fd()];
                let woken = self.wait_looking(&fds, patience, mark)?;
                let crossed = half.take() || self.memory.usage()? >= mark;
                if woken == Woken::Stop || !crossed || at.pulser.has_report() {
                    return Ok(woken);
                }
            }
            let batch = self.core.curve().batch();
            at.growers.sift_below(&at.group, chance, batch)?;
            if at.growers.may_scan(SCAN_BELOW) {
                at.growers
                    .scan(&at.group, false, 0, self.core.curve().batch(), |_| Duration::ZERO)?;
            }
        }
        let high = self.config.high.bytes().unwrap_or(Level::NONE.high);
        let next = match self.memory.usage()? {
            usage if usage < near(high) => near(high),
            _ => free.unwrap_or(Level::NONE.high),
        };
        self.wait_looking(&[near_crossed.as_fd(), at.pulser.wake_fd()], patience, next)
    }

    /// Waits for one of `fds`, `patience` at most, and until usage comes to `mark`, of which no threshold may tell.
    fn wait_looking(
        &mut self,
        fds: &[BorrowedFd<'_>],
        patience: Option<Duration>,
        mark: Bytes,
    ) -> Result<Woken> {
        let start = Instant::now();
        let kernel = |knob: &Option<Knob>| knob.as_ref().and_then(|knob| knob.read_u64().ok());
        let mut looks =
            kernel(&self.kernel_memory).map(|kernel| Looks::new(Duration::ZERO, Bytes(kernel)));
        loop {
            let left = patience.map(|patience| patience.saturating_sub(start.elapsed()));
            let pause = looks.as_ref().and_then(Looks::pause);
            let is_look = pause.is_some_and(|pause| left.is_none_or(|left| pause < left));
            let happened = self.poll(fds, if is_look { pause } else { left });
            let woken = self.obey();
            let usage = self.memory.usage()?;
            if woken == Woken::Stop || happened || !is_look || usage >= mark {
                return Ok(woken);
            }
            if let (Some(looks), Some(kernel)) = (&mut looks, kernel(&self.kernel_memory)) {
                looks.looked(start.elapsed(), Bytes(kernel), mark.saturating_sub(usage));
            }
        }
    }

    /// The highs to throttle above; tells when a release has ended.
    pub(super) fn effective(&mut self, levels: &[Level]) -> Vec<Option<Bytes>> {
        let released = self.core.is_released();
        let now = self.start.elapsed();
        let highs = levels.iter().enumerate();
        let effective = highs.map(|(n, level)| self.core.effective_high(now, n, *level).bytes());
        let effective = effective.map(|high| high.filter(|high| *high != Level::NONE.high));
        let effective = effective.collect();
        if released && !self.core.is_released() {
            self.tell(ThrottleEvent::Resumed);
        }
        effective
    }

    /// Up to where growth costs nothing.
    fn free(&mut self, levels: &[Level]) -> Vec<Option<Bytes>> {
        let effective = self.effective(levels).into_iter();
        effective.map(|high| high.map(|high| self.core.free_until(high))).collect()
    }

    /// The terms of the window after a pulse of this length.
    pub(super) fn terms(&mut self, pulse: Duration) -> Result<Terms> {
        let (quota, carried) = self.core.after(pulse);
        let (growers, unit) = self.core.growers();
        let levels = self.levels.now(self.memory.usage()?);
        Ok(Terms { bars: self.bars(&levels), quota, growers, unit, carried })
    }

    pub(super) fn bars(&mut self, levels: &[Level]) -> [Bar; MOST_LEVELS] {
        let mut bars = [Bar::NONE; MOST_LEVELS];
        let highs = self.effective(levels).into_iter().zip(self.levels.surveyed());
        for (bar, (high, reclaimable)) in bars.iter_mut().zip(highs) {
            *bar = Bar { high: high.unwrap_or(Bar::NONE.high), reclaimable };
        }
        bars
    }

    pub(super) fn stopped(&self) -> bool {
        self.control.stop.load(Ordering::SeqCst)
    }

    pub(super) fn holding(&self) -> bool {
        self.control.hold.load(Ordering::SeqCst)
    }

    /// Waits for one of `fds`, `patience` at most, and for as long as nothing is to be frozen.
    fn wait(&mut self, fds: &[BorrowedFd<'_>], patience: Option<Duration>) -> Woken {
        self.poll(fds, patience);
        self.obey()
    }

    /// Waits for as long as nothing is to be frozen, and takes note of other terms. Nothing is frozen when this is
    /// called.
    fn obey(&mut self) -> Woken {
        while self.holding() && !self.stopped() {
            self.control.held.store(true, Ordering::SeqCst);
            self.poll(&[], None);
        }
        self.control.held.store(false, Ordering::SeqCst);
        self.take_terms();
        match self.stopped() {
            true => Woken::Stop,
            false => Woken::Look,
        }
    }

    /// Whether anything happened.
    pub(super) fn poll(&self, fds: &[BorrowedFd<'_>], patience: Option<Duration>) -> bool {
        if self.stopped() {
            return true;
        }
        let mut set: Vec<PollFd<'_>> =
            fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        set.push(PollFd::new(self.control.kick.as_fd(), PollFlags::POLLIN));
        let timeout = patience.map_or(PollTimeout::NONE, |patience| {
            PollTimeout::try_from(patience.as_millis().max(1)).unwrap_or(PollTimeout::MAX)
        });
        let ready = poll(&mut set, timeout);
        let _ = self.control.kick.read();
        // A signal is for somebody to look, too.
        ready != Ok(0)
    }

    pub(super) fn tell(&self, event: ThrottleEvent) {
        if self.events.len() < EVENTS {
            let _ = self.events.try_send(event);
        }
        let _ = self.wake.write(1);
    }

    pub(super) fn publish(&self) {
        let totals: ThrottleTotals = self.core.totals();
        *self.control.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }
}

/// Whether usage of one of these has come to where it is to be looked at.
fn reached(levels: &[Level], at: &[Option<Bytes>], has: impl Fn(Bytes, Bytes) -> bool) -> bool {
    levels.iter().zip(at).any(|(level, at)| at.is_some_and(|at| has(level.usage, at)))
}

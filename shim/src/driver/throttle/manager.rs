//! The thread behind a throttle: it waits on thresholds, looks who grew while they are frozen, and tells
//! the real-time thread for how long.

use super::growers::Growers;
use super::pulser::{Order, Pulser, Report, Terms};
use super::{Control, ThrottleConfig, ThrottleEvent};
use crate::core::floor::Floor;
use crate::core::throttle::{
    Attribution, Cause, Curve, LONGEST, Level, Then, Throttle, ThrottleTotals,
};
use crate::driver::worker::survey;
use crate::guardian::FREEZER_CHILD;
use cgroupfs::events::Notification;
use cgroupfs::freezer::{self, Freezer, FreezerGroup, Parked, State};
use cgroupfs::memory::Memory;
use cgroupfs::units::page_size;
use cgroupfs::{Bytes, Cgroup, Error, Limit, Result};
use crossbeam_channel::Sender;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How far below high the growers are made ready, and no further than half of it: moving a task waits for
/// an RCU grace period (measured on 6.18: 13 ms and more), and memory is filled at gigabytes a second.
const APPROACH: Bytes = Bytes::mib(64);

/// Usage under that for so long: the growers go back.
const CALM: Duration = Duration::from_secs(5);

/// How often a task that has been killed is looked for in a pulse.
const KILLED: Duration = Duration::from_millis(10);

/// How long a task that has been killed is given to die.
const DYING: Duration = Duration::from_millis(20);

/// A pulse that has not reached FROZEN by then is thawed: somebody waits for a disk, with others
/// frozen who may be needed for that. (Measured on 6.18: 0.34 ms in the median, 62 ms once.)
const NOT_FROZEN: Duration = Duration::from_millis(200);

/// How long tasks run after that.
const UNFROZEN_PAUSE: Duration = Duration::from_millis(50);

/// How long the real-time thread is waited for, which is a nap away.
const SETTLED: Duration = Duration::from_secs(1);

/// All tasks are looked at so often while there is growth above high.
const SCAN: Duration = Duration::from_millis(250);

/// Statistics of the group are read so often.
const SURVEY: Duration = Duration::from_millis(100);

/// A quiet group is looked at again when it has grown by so much.
const STIR: Bytes = Bytes::kib(256);

/// How often a released group is looked at.
const RELEASED: Duration = Duration::from_secs(1);

/// What could not be done is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// Growth in a pulse that shows that somebody grows who is not frozen.
const STRANGE: Bytes = Bytes::mib(1);

/// Pages that nobody is known for, from which on all tasks are looked at.
const UNEXPLAINED: u64 = 512;

/// The manager.
pub(super) struct Manager {
    config: ThrottleConfig,
    memory: Arc<dyn Memory>,
    freezer: Freezer,
    core: Throttle,
    start: Instant,
    control: Arc<Control>,
    events: Sender<ThrottleEvent>,
    wake: Arc<EventFd>,
    surveyed: Option<(Instant, Bytes)>,
    told_real_time: bool,
    told_strangers: bool,
    told_failed: bool,
}

/// What is there while throttling is near: dropped from top to bottom.
struct Near {
    pulser: Pulser,
    growers: Growers,
    attribution: Attribution,
    /// Usage when the last pulse held.
    frozen_at: Bytes,
    group: FreezerGroup,
    _parked: Option<Parked>,
}

/// What a look at a pulse came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pulse {
    /// It goes on for as long as is due.
    Due,
    /// The container's runtime has it paused: nothing grows, and nothing is ours to do.
    Paused,
    /// It did not hold: not all tasks stopped.
    Unfrozen,
}

/// Why waiting, or throttling, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
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
        Manager {
            core: Throttle::new(curve, config.high, config.way_out),
            config,
            memory,
            freezer,
            start: Instant::now(),
            control,
            events,
            wake,
            surveyed: None,
            told_real_time: false,
            told_strangers: false,
            told_failed: false,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            match self.cycle() {
                Ok(Woken::Look) => self.told_failed = false,
                Ok(Woken::Stop) | Err(Error::Vanished { .. }) => break,
                Err(error) => {
                    if !std::mem::replace(&mut self.told_failed, true) {
                        self.tell(ThrottleEvent::Failed(error));
                    }
                    if self.wait(&[], Some(AGAIN)) == Woken::Stop {
                        break;
                    }
                }
            }
        }
        self.control.held.store(true, Ordering::SeqCst);
    }

    /// Waits until usage comes near high, and stays until it is away again.
    fn cycle(&mut self) -> Result<Woken> {
        let near = self.near();
        let threshold = Notification::usage_threshold(&self.config.group, near)?;
        while self.memory.usage()? < near {
            if self.wait(&[threshold.as_fd()], None) == Woken::Stop {
                return Ok(Woken::Stop);
            }
            threshold.take();
        }
        drop(threshold);
        let Some(mut at) = self.approach()? else {
            // Nobody is in it: what there is will be gone, or somebody comes.
            return Ok(self.wait(&[], Some(RELEASED)));
        };
        let result = self.stay(&mut at, near);
        let Near { pulser, growers, group, _parked, .. } = at;
        // Thawed first, then moved back, then the group goes.
        drop(pulser);
        drop(growers);
        let removed = group.remove();
        match result {
            Err(error) => Err(error),
            Ok(woken) => removed.map(|()| woken),
        }
    }

    /// The usage from which on growers are made ready.
    fn near(&self) -> Bytes {
        let high = self.config.high;
        high.saturating_sub(APPROACH.max(Bytes(high.0 / 16))).max(Bytes(high.0 / 2))
    }

    /// Makes the group, the real-time thread, and moves in who grows.
    fn approach(&mut self) -> Result<Option<Near>> {
        let mut tids = freezer::tasks(&self.config.group, "cgroup.procs")?;
        for name in self.config.group.children()? {
            if let Ok(child) = self.config.group.child(&name) {
                tids.extend(freezer::tasks(&Arc::new(child), "cgroup.procs").unwrap_or_default());
            }
        }
        let home = tids.iter().find_map(|tid| self.freezer.path_of(*tid).ok());
        let Some(home) = home else { return Ok(None) };
        let parent = Arc::new(self.freezer.open(&home)?);
        sweep(&parent);
        let group = FreezerGroup::create(self.freezer.kind, parent, &self.name(&home))?;
        self.config.journal.place(group.path(), group.inode())?;
        let parked = Parked::new(&self.freezer).unwrap_or_else(|error| {
            log::debug!("{error}: freezes take a little longer");
            None
        });
        let pulser = Pulser::start(
            group.switch()?,
            self.memory.clone(),
            self.core.curve(),
            self.config.journal.clone(),
        )
        .map_err(|errno| Error::refused(cgroupfs::Op::Watch, group.path(), errno))?;
        if let Err(errno) = pulser.real_time
            && !std::mem::replace(&mut self.told_real_time, true)
        {
            self.tell(ThrottleEvent::NotRealTime(errno));
        }
        let mut growers = Growers::new(self.config.group.clone(), home, self.freezer.clone());
        growers.scan(&group, false)?;
        // Those that have no CPU right now show only after a while.
        for pause in [1, 4, 10] {
            std::thread::sleep(Duration::from_millis(pause));
            growers.scan(&group, false)?;
            log::trace!("{} growers with {:?} in use", growers.len(), self.memory.usage());
            if self.memory.usage()? >= self.config.high {
                break;
            }
        }
        Ok(Some(Near {
            pulser,
            growers,
            attribution: Attribution::default(),
            frozen_at: Bytes(0),
            group,
            _parked: parked,
        }))
    }

    /// `cgshim` beneath a container's own group. Where others may be in the same freezer group (the root,
    /// or our own) our pid and the memory group's inode tell ours from theirs.
    fn name(&self, home: &std::path::Path) -> String {
        let shared = home == self.freezer.mount_point
            || self.freezer.path_of(std::process::id()).is_ok_and(|own| own == home);
        match shared {
            true => format!("cgshim-{}-{}", std::process::id(), self.config.group.inode()),
            false => FREEZER_CHILD.into(),
        }
    }

    /// Near high, and above.
    fn stay(&mut self, at: &mut Near, near: Bytes) -> Result<Woken> {
        let mut below: Option<Instant> = None;
        // Usage when the group was last found not to grow.
        let mut rested: Option<Bytes> = None;
        loop {
            if self.obey() == Woken::Stop {
                return Ok(Woken::Stop);
            }
            let usage = self.memory.usage()?;
            let free = self.effective(usage).map(|high| self.core.free_until(high));
            below = if usage < near { below.or_else(|| Some(Instant::now())) } else { None };
            if below.is_some_and(|since| since.elapsed() >= CALM) {
                return Ok(Woken::Look);
            }
            let stirs = |rest: Bytes| usage.0.abs_diff(rest.0) >= STIR.0;
            if free.is_some_and(|free| usage > free) && rested.is_none_or(stirs) {
                at.pulser.order(Order::Open(self.terms(Duration::ZERO)?));
                if self.throttle(at)? == Woken::Stop {
                    return Ok(Woken::Stop);
                }
                rested = Some(self.memory.usage()?);
                continue;
            }
            // Nothing is sampled here: thresholds wake us, and the real-time thread.
            let crossing = |level| Notification::usage_threshold(&self.config.group, level);
            let near_crossed = crossing(near)?;
            let upward = match free {
                Some(free) if usage > free => {
                    Some(rested.unwrap_or(usage).max(usage).saturating_add(STIR))
                }
                free => free,
            };
            let above = upward.map(crossing).transpose()?.map(Arc::new);
            // What was crossed while this was registered signals nothing.
            let now = self.memory.usage()?;
            if (usage < near) != (now < near) || upward.is_some_and(|level| now >= level) {
                rested = None;
                continue;
            }
            if let Some(above) = &above {
                let terms = self.terms(Duration::ZERO)?;
                at.pulser.order(Order::Await(above.clone(), terms));
            }
            let patience = match (below, self.core.is_released()) {
                (_, true) => Some(RELEASED),
                (Some(since), false) => Some(CALM.saturating_sub(since.elapsed())),
                (None, false) => None,
            };
            let woken = self.wait(&[near_crossed.as_fd(), at.pulser.wake_fd()], patience);
            let crossed = matches!(at.pulser.report(), Some(Report::Crossed));
            match woken {
                Woken::Stop => return Ok(Woken::Stop),
                Woken::Look if crossed && !self.holding() => {
                    if self.throttle(at)? == Woken::Stop {
                        return Ok(Woken::Stop);
                    }
                    rested = Some(self.memory.usage()?);
                }
                Woken::Look => {
                    self.settle(at);
                }
            }
        }
    }

    /// The high to throttle above; tells when a release has ended.
    fn effective(&mut self, usage: Bytes) -> Option<Bytes> {
        let released = self.core.is_released();
        let effective = self.core.effective_high(self.start.elapsed(), usage);
        if released && !self.core.is_released() {
            self.tell(ThrottleEvent::Resumed);
        }
        effective.bytes()
    }

    /// The real-time thread is at work: looks after it until the group is quiet, or let go.
    fn throttle(&mut self, at: &mut Near) -> Result<Woken> {
        // What they did until now is not of the first window.
        at.growers.look();
        let mut pulsing: Option<(u64, Instant)> = None;
        loop {
            if self.stopped() || self.holding() {
                return Ok(self.settle(at));
            }
            match at.pulser.report() {
                Some(Report::Frozen { pulse, at: when, usage, grown }) => {
                    pulsing = Some((pulse, when));
                    match self.frozen(at, pulse, when, usage, grown)? {
                        Pulse::Due => {}
                        Pulse::Paused => {
                            return Ok(self.settle(at));
                        }
                        Pulse::Unfrozen => {
                            pulsing = None;
                            if let Some(woken) = self.let_run(at, UNFROZEN_PAUSE, |_| true)? {
                                return Ok(woken);
                            }
                        }
                    }
                }
                Some(Report::Thawed { frozen, at: when, late, .. }) => {
                    if late > DYING {
                        log::debug!("thawed {late:?} after it was due");
                    }
                    pulsing = None;
                    if self.thawed(at, when, frozen)? {
                        return Ok(self.settle(at));
                    }
                }
                Some(Report::Crossed | Report::Parked) => {}
                Some(Report::Quiet) => return Ok(Woken::Look),
                Some(Report::Refused(errno)) => {
                    return Err(at.group.refused("FROZEN", errno));
                }
                None => {
                    if !at.pulser.is_alive() {
                        return Err(at.group.refused("THAWED", Errno::ESRCH));
                    }
                    if let Some((pulse, when)) = pulsing
                        && self.watch_pulse(at, pulse, when)?
                    {
                        pulsing = None;
                        if let Some(woken) = self.let_run(at, DYING, Growers::killed)? {
                            return Ok(woken);
                        }
                        continue;
                    }
                    let patience = pulsing.map(|_| KILLED);
                    self.poll(&[at.pulser.wake_fd()], patience);
                }
            }
        }
    }

    /// Has the real-time thread thaw and park, and takes its last reports.
    fn settle(&mut self, at: &mut Near) -> Woken {
        at.pulser.order(Order::Park);
        let start = Instant::now();
        while start.elapsed() < SETTLED && at.pulser.is_alive() {
            match at.pulser.report() {
                Some(Report::Parked) => break,
                Some(Report::Thawed { frozen, at: when, .. }) => {
                    let _ = self.thawed(at, when, frozen);
                }
                Some(_) => {}
                None => {
                    let mut fds = [PollFd::new(at.pulser.wake_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut fds, PollTimeout::from(10u8));
                }
            }
        }
        // One that was said before this one was asked for.
        while at.pulser.report().is_some() {}
        match self.stopped() {
            true => Woken::Stop,
            false => Woken::Look,
        }
    }

    /// A pulse has begun: who grew, and what they owe for it.
    fn frozen(
        &mut self,
        at: &mut Near,
        pulse: u64,
        when: Instant,
        decided: Bytes,
        grown: Bytes,
    ) -> Result<Pulse> {
        let mut state = at.group.state()?;
        while state != State::Frozen && when.elapsed() < NOT_FROZEN {
            std::thread::sleep(Duration::from_micros(100));
            state = at.group.state()?;
        }
        let usage = self.memory.usage()?;
        at.frozen_at = usage;
        let leaked = usage.saturating_sub(decided);
        self.core.leaked(leaked);
        let pages = grown.saturating_add(leaked).0 / page_size();
        let changes = at.growers.look();
        let shares = at.attribution.share(&changes, pages, self.core.curve().batch());
        let unexplained = shares.unexplained >= UNEXPLAINED;
        if (unexplained || at.growers.len() == 0) && at.growers.may_scan(SCAN / 10)
            || at.growers.may_scan(SCAN)
        {
            at.growers.scan(&at.group, unexplained)?;
            if at.growers.strangers() > 0 && !std::mem::replace(&mut self.told_strangers, true) {
                self.tell(ThrottleEvent::Strangers(at.growers.strangers()));
            }
        }
        self.core.growing(&at.growers.tids());
        let levels = self.levels(usage);
        let reclaimable = self.reclaimable();
        let due = self.core.window(self.start.elapsed(), &levels, reclaimable, &shares.grown);
        if at.group.container_state()? != State::Thawed {
            return Ok(Pulse::Paused);
        }
        if state != State::Frozen {
            self.core.not_frozen();
            self.publish();
            return Ok(Pulse::Unfrozen);
        }
        log::trace!(
            "pulse {pulse}: usage {usage}, grown {grown} leaked {leaked}, {} growers, due {due:?}, {shares:?}",
            at.growers.len(),
        );
        let terms = self.terms(due)?;
        at.pulser.order(Order::ThawAt(pulse, when + due, terms));
        Ok(Pulse::Due)
    }

    /// A pulse goes on: usage may be down again. True: somebody has been killed, and cannot die frozen.
    fn watch_pulse(&mut self, at: &mut Near, pulse: u64, when: Instant) -> Result<bool> {
        if at.growers.killed() {
            self.core.cut_short();
            return Ok(true);
        }
        let usage = self.memory.usage()?;
        // All growers are frozen: somebody else is one too.
        if usage.saturating_sub(at.frozen_at) >= STRANGE && at.growers.may_scan(KILLED) {
            at.growers.scan(&at.group, true)?;
            at.frozen_at = usage;
        }
        if self.effective(usage).is_none_or(|high| usage <= high) || when.elapsed() > LONGEST {
            let terms = self.terms(LONGEST)?;
            at.pulser.order(Order::ThawAt(pulse, Instant::now(), terms));
        }
        Ok(false)
    }

    /// Thaws for as long as something holds of the growers, `patience` at most. For tasks that have been
    /// killed, say: a window may be too short to die in.
    fn let_run(
        &mut self,
        at: &mut Near,
        patience: Duration,
        holds: fn(&Growers) -> bool,
    ) -> Result<Option<Woken>> {
        if self.settle(at) == Woken::Stop {
            return Ok(Some(Woken::Stop));
        }
        let start = Instant::now();
        while start.elapsed() < patience && holds(&at.growers) {
            std::thread::sleep(Duration::from_millis(1));
        }
        at.pulser.order(Order::Open(self.terms(Duration::ZERO)?));
        Ok(None)
    }

    /// A pulse is over. True: throttling is.
    fn thawed(&mut self, at: &mut Near, when: Instant, frozen: Duration) -> Result<bool> {
        let usage = self.memory.usage()?;
        let then = self.core.pulsed(self.start.elapsed(), frozen, usage);
        self.publish();
        self.tell(ThrottleEvent::Pulse(when.checked_sub(frozen).unwrap_or(when), frozen));
        at.growers.give_back_idle(&at.group)?;
        let Some(then) = then else { return Ok(false) };
        let cause = cause(&*self.memory, self.config.high);
        self.tell(ThrottleEvent::WayOut(then, cause, self.core.stalled()));
        if then == Then::Oom
            && let Some(pid) = at.growers.largest().and_then(|pid| i32::try_from(pid).ok())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(then != Then::Notify)
    }

    /// The terms of the window after a pulse of this length.
    fn terms(&mut self, pulse: Duration) -> Result<Terms> {
        let (quota, carried) = self.core.after(pulse);
        let (growers, unit) = self.core.growers();
        let usage = self.memory.usage()?;
        let high = self.effective(usage).unwrap_or(Bytes(u64::MAX));
        let reclaimable = self.surveyed.map_or(Bytes(0), |(_, bytes)| bytes);
        Ok(Terms { high, reclaimable, quota, growers, unit, carried })
    }

    fn levels(&self, usage: Bytes) -> Vec<Level> {
        let mut levels = vec![Level { usage, high: self.config.high }];
        for (memory, high) in &self.config.ancestors {
            // One that is gone takes us with it soon enough.
            if let Ok(usage) = memory.usage() {
                levels.push(Level { usage, high: *high });
            }
        }
        levels
    }

    /// Clean page cache is reclaimed, not slept on: the kernel, too, reclaims before it lets anybody sleep.
    fn reclaimable(&mut self) -> Bytes {
        if !self.config.reclaims {
            return Bytes(0);
        }
        if let Some((when, bytes)) = self.surveyed
            && when.elapsed() < SURVEY
        {
            return bytes;
        }
        let bytes = survey(&*self.memory)
            .map(|survey| Floor::of(&survey, 0).clean_file)
            .unwrap_or_default();
        self.surveyed = Some((Instant::now(), bytes));
        bytes
    }

    fn stopped(&self) -> bool {
        self.control.stop.load(Ordering::SeqCst)
    }

    fn holding(&self) -> bool {
        self.control.hold.load(Ordering::SeqCst)
    }

    /// Waits for one of `fds`, `patience` at most, and for as long as nothing is to be frozen.
    fn wait(&self, fds: &[BorrowedFd<'_>], patience: Option<Duration>) -> Woken {
        self.poll(fds, patience);
        self.obey()
    }

    /// Waits for as long as nothing is to be frozen. Nothing is frozen when this is called.
    fn obey(&self) -> Woken {
        while self.holding() && !self.stopped() {
            self.control.held.store(true, Ordering::SeqCst);
            self.poll(&[], None);
        }
        self.control.held.store(false, Ordering::SeqCst);
        match self.stopped() {
            true => Woken::Stop,
            false => Woken::Look,
        }
    }

    fn poll(&self, fds: &[BorrowedFd<'_>], patience: Option<Duration>) {
        if self.stopped() {
            return;
        }
        let mut set: Vec<PollFd<'_>> =
            fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        set.push(PollFd::new(self.control.kick.as_fd(), PollFlags::POLLIN));
        let timeout = patience.map_or(PollTimeout::NONE, |patience| {
            PollTimeout::try_from(patience.as_millis().max(1)).unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut set, timeout);
        let _ = self.control.kick.read();
    }

    fn tell(&self, event: ThrottleEvent) {
        let _ = self.events.try_send(event);
        let _ = self.wake.write(1);
    }

    fn publish(&self) {
        let totals: ThrottleTotals = self.core.totals();
        *self.control.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }
}

/// Why usage does not fall.
pub(in crate::driver) fn cause(memory: &dyn Memory, high: Bytes) -> Cause {
    let Ok(survey) = survey(memory) else { return Cause::NoProgress };
    let floor = Floor::of(&survey, 0);
    let over = survey.usage.saturating_sub(high);
    if floor.reclaimable() >= over {
        return Cause::NoProgress;
    }
    let room = survey.swap.room != Limit::Bytes(Bytes(0));
    if survey.swap.swaps_at_limit && has_swap() && (survey.host_swap_free == Bytes(0) || !room) {
        return Cause::SwapFull;
    }
    Cause::Unreclaimable
}

/// Removes what is left of throttles whose process was killed, and whose tasks have ended since.
fn sweep(parent: &Cgroup) {
    for name in parent.children().unwrap_or_default() {
        let rest = name.strip_prefix("cgshim-parked-").or_else(|| name.strip_prefix("cgshim-"));
        let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<i32>().ok());
        if let Some(pid) = pid
            && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
        {
            // Not while somebody is in it.
            let _ = parent.remove_child(&name, Duration::ZERO);
        }
    }
}

fn has_swap() -> bool {
    nix::sys::sysinfo::sysinfo().is_ok_and(|info| info.swap_total() > 0)
}

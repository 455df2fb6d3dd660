//! The thread behind a throttle, while there is growth above high: it looks who grew, in every pulse, and
//! tells the real-time thread for how long to freeze.

use super::ThrottleEvent;
use super::manager::{FEW, Manager, Woken};
use super::near::Near;
use super::pulser::{Order, Report};
use crate::core::floor::Floor;
use crate::core::throttle::{
    Attribution, Cause, LONGEST, Seen, Strange, TRIED, Then, may_hold_yet,
};
use crate::driver::worker::survey;
use cgroupfs::freezer::State;
use cgroupfs::memory::Memory;
use cgroupfs::units::page_size;
use cgroupfs::{Bytes, Limit, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How often usage is looked at in a pulse.
const LOOK: Duration = Duration::from_millis(10);

/// Where there is page cache, which somebody reclaims meanwhile: the pulse is over as soon as that is done.
const LOOK_AT_CACHE: Duration = Duration::from_millis(2);

/// A thaw that was late by more is worth a line in the log.
const LATE: Duration = Duration::from_millis(20);

/// How long tasks run after a pulse that did not reach FROZEN: somebody waits for a disk, with others frozen who may be
/// needed for that.
const UNFROZEN_PAUSE: Duration = Duration::from_millis(50);

/// How long the real-time thread is waited for, which is a nap away.
const SETTLED: Duration = Duration::from_secs(1);

/// All tasks are looked at so often while there is growth above high.
const SCAN: Duration = Duration::from_millis(250);

/// Pages that nobody is known for, from which on all tasks are looked at.
const UNEXPLAINED: u64 = 512;

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

impl Manager {
    /// The real-time thread is at work: looks after it until the group is quiet, or let go.
    pub(super) fn throttle(&mut self, at: &mut Near) -> Result<Woken> {
        let mut pulsing: Option<(u64, Instant)> = None;
        loop {
            self.take_terms();
            if self.stopped() || self.holding() || self.is_stale(at) {
                return Ok(self.settle(at));
            }
            if let Some(woken) = self.inform(at)? {
                return Ok(woken);
            }
            match at.pulser.report() {
                Some(Report::Frozen { pulse, at: when, usage, grown, huge }) => {
                    pulsing = Some((pulse, when));
                    match self.frozen(at, pulse, when, usage, grown, huge)? {
                        Pulse::Due => {}
                        Pulse::Paused => return Ok(self.settle_paused(at)),
                        Pulse::Unfrozen => {
                            pulsing = None;
                            if let Some(woken) = self.let_run(at, UNFROZEN_PAUSE)? {
                                return Ok(woken);
                            }
                        }
                    }
                }
                Some(Report::Thawed { frozen, at: when, late, killed }) => {
                    if killed {
                        self.core.cut_short();
                    }
                    let level = if late > LATE { log::Level::Debug } else { log::Level::Trace };
                    log::log!(level, "frozen for {frozen:?}, thawed {late:?} after it was due");
                    pulsing = None;
                    if self.thawed(at, when, frozen, late)? {
                        return Ok(self.settle(at));
                    }
                }
                Some(Report::Crossed | Report::Parked) => {}
                Some(Report::Quiet) => return Ok(Woken::Look),
                Some(Report::Refused(errno)) => {
                    // It may be the memory group that is gone.
                    self.memory.usage()?;
                    return Err(at.group.refused("FROZEN", errno));
                }
                None => {
                    if !at.pulser.is_alive() {
                        return Err(at.group.refused("THAWED", Errno::ESRCH));
                    }
                    if let Some((pulse, when)) = pulsing {
                        self.watch_pulse(at, pulse, when)?;
                    }
                    let cache = self.levels.surveyed()[0] > Bytes(0);
                    let patience = pulsing.map(|_| if cache { LOOK_AT_CACHE } else { LOOK });
                    self.poll(&[at.pulser.wake_fd()], patience);
                }
            }
        }
    }

    /// Has the real-time thread thaw and park, and takes its last reports.
    pub(super) fn settle(&mut self, at: &mut Near) -> Woken {
        for report in self.last_reports(at) {
            if let Report::Thawed { frozen, at: when, late, .. } = report {
                let _ = self.thawed(at, when, frozen, late);
            }
        }
        self.after_settling()
    }

    /// The same where somebody else has paused them: the pulse that found that out is none.
    fn settle_paused(&mut self, at: &mut Near) -> Woken {
        self.last_reports(at);
        self.after_settling()
    }

    fn after_settling(&self) -> Woken {
        match self.stopped() {
            true => Woken::Stop,
            false => Woken::Look,
        }
    }

    fn last_reports(&self, at: &Near) -> Vec<Report> {
        at.pulser.order(Order::Park);
        let (start, mut reports) = (Instant::now(), Vec::new());
        while start.elapsed() < SETTLED && at.pulser.is_alive() {
            match at.pulser.report() {
                Some(Report::Parked) => break,
                Some(report) => reports.push(report),
                None => {
                    let mut fds = [PollFd::new(at.pulser.wake_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut fds, PollTimeout::from(10u8));
                }
            }
        }
        // One that was said before this one was asked for.
        while at.pulser.report().is_some() {}
        reports
    }

    /// A pulse holds once all tasks have stopped: FROZEN, or FREEZING if it did not in time. THAWED: it is over already.
    fn wait_for_frozen(at: &Near, when: Instant) -> Result<State> {
        loop {
            let (state, since) = (at.group.state()?, when.elapsed());
            if state != State::Freezing || !may_hold_yet(since, || at.growers.somebody_runs()) {
                return Ok(state);
            }
            std::thread::sleep((since / 100).max(Duration::from_micros(100)));
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
        huge: Bytes,
    ) -> Result<Pulse> {
        let told = when.elapsed();
        let state = Self::wait_for_frozen(at, when)?;
        log::trace!("pulse {pulse}: told after {told:?}, {state:?} after {:?}", when.elapsed());
        let usage = self.memory.usage()?;
        let first = at.frozen_at == Bytes(0);
        let leaked = usage.saturating_sub(decided);
        // In the pulse, by those who were found in it.
        let found = std::mem::take(&mut at.found);
        let outside = decided.saturating_sub(grown).saturating_sub(at.held_at);
        (at.held_at, at.frozen_at) = (usage, usage);
        (at.strange, at.let_go) = (Strange::default(), false);
        self.core.leaked(leaked);
        let nobody = at.growers.len() == 0;
        let before = at.growers.before();
        let mut changes = at.growers.look(&at.group, self.core.all_had_turns());
        let grown = match Attribution::is_huge(&changes, &before) {
            true => grown,
            false => grown.saturating_sub(huge),
        };
        let pages = grown.saturating_add(leaked).0 / page_size();
        let batch = self.core.curve().batch();
        let born = || match nobody {
            // Who is there from before high is no newcomer.
            true => Vec::new(),
            false => at.growers.born(&at.group).unwrap_or_default(),
        };
        let mut shares = at.attribution.share_with(&mut changes, &before, pages, batch, born);
        at.growers.convict(&changes, &shares);
        if at.growers.fill_huge() {
            shares.found(&found, outside);
        }
        let unexplained = shares.unexplained >= UNEXPLAINED;
        if (unexplained || at.growers.len() == 0) && at.growers.may_scan(SCAN / 10)
            || at.growers.may_scan(if first { SCAN / 100 } else { SCAN })
        {
            let costs = |pages| self.core.costs(pages, batch);
            let few = if at.growers.len() == 0 { FEW } else { 0 };
            at.growers.scan(&at.group, unexplained, few, batch, costs)?;
            if at.growers.strangers() > 0 && !std::mem::replace(&mut self.told_strangers, true) {
                self.tell(ThrottleEvent::Strangers(at.growers.strangers()));
            }
        }
        at.elsewhere = at.growers.len() == 0 && at.growers.strangers() > 0;
        self.core.growing(&at.growers.growing());
        self.core.waiting(at.growers.waiting());
        let mut levels = self.levels.now(usage);
        let reclaimable = self.levels.reclaimable();
        for (level, reclaimable) in levels.iter_mut().zip(reclaimable).skip(1) {
            level.usage = level.usage.saturating_sub(reclaimable);
        }
        let now = self.start.elapsed();
        let window = when.saturating_duration_since(at.thawed_at);
        self.core.slept_on(window);
        let due = self.core.window(now, &levels, reclaimable[0], &shares.grown);
        at.growers.account(window, &shares.grown, |grown| self.core.costs(grown.pages, grown.unit));
        if at.elsewhere || at.group.container_state()? != State::Thawed {
            return Ok(Pulse::Paused);
        }
        if state == State::Thawed {
            at.pulser.order(Order::Open(self.terms(Duration::ZERO)?));
            return Ok(Pulse::Due);
        }
        if state == State::Freezing {
            self.core.not_frozen();
            self.publish();
            return Ok(Pulse::Unfrozen);
        }
        log::trace!(
            "pulse {pulse} after {window:?}: usage {usage}, grown {grown} leaked {leaked}, {} growers, due {due:?}, {shares:?}",
            at.growers.len(),
        );
        if nobody && due == Duration::ZERO {
            // Who grew was not known: for as long as the real-time thread made it.
            return Ok(Pulse::Due);
        }
        let due = at.trial.length(now, due, at.growers.has_untried());
        let terms = self.terms(due)?;
        at.pulser.order(Order::ThawAt(pulse, when + due, terms));
        at.pulser.watch(at.growers.processes());
        at.growers.sift(&at.group)?;
        at.growers.give_back_idle(&at.group)?;
        // Of a process another thread may be the one that is left.
        at.pulser.watch(at.growers.processes());
        Ok(Pulse::Due)
    }

    /// A pulse goes on: usage may be down again.
    fn watch_pulse(&mut self, at: &mut Near, pulse: u64, when: Instant) -> Result<()> {
        let usage = self.memory.usage()?;
        // All growers are frozen: somebody else is one too.
        let grown = usage.saturating_sub(at.frozen_at);
        if at.growers.may_scan(LOOK) {
            let seen = at.strange.look(self.start.elapsed(), grown, || at.growers.filled());
            if seen != Seen::Nothing {
                let batch = self.core.curve().batch();
                let costs = |pages| self.core.costs(pages, batch);
                at.growers.scan(&at.group, seen == Seen::Somebody, 0, batch, costs)?;
            }
            if seen == Seen::Somebody {
                at.found.extend(at.growers.found());
                at.frozen_at = usage;
            }
        }
        if when.elapsed() >= TRIED && !std::mem::replace(&mut at.let_go, true) {
            at.growers.give_back_waiting(&at.group)?;
        }
        let levels = self.levels.now(usage);
        let effective = self.effective(&levels);
        let mut pairs = levels.iter().zip(effective);
        let over = pairs.any(|(level, high)| high.is_some_and(|high| level.usage > high));
        if !over || when.elapsed() > LONGEST {
            let terms = self.terms(LONGEST)?;
            at.pulser.order(Order::ThawAt(pulse, Instant::now(), terms));
        }
        Ok(())
    }

    /// Thaws for so long: a window may be too short for a task that waits for a disk.
    fn let_run(&mut self, at: &mut Near, patience: Duration) -> Result<Option<Woken>> {
        if self.settle(at) == Woken::Stop {
            return Ok(Some(Woken::Stop));
        }
        std::thread::sleep(patience);
        at.pulser.order(Order::Open(self.terms(Duration::ZERO)?));
        Ok(None)
    }

    /// A pulse is over. True: throttling is.
    fn thawed(
        &mut self,
        at: &mut Near,
        when: Instant,
        frozen: Duration,
        late: Duration,
    ) -> Result<bool> {
        let levels = self.levels.now(self.memory.usage()?);
        let then = self.core.pulsed(self.start.elapsed(), frozen, &levels);
        self.publish();
        let since = when.checked_sub(frozen).unwrap_or(when);
        self.tell(ThrottleEvent::Pulse { since, frozen, late });
        at.growers.paid(frozen);
        at.thawed_at = when;
        let Some(then) = then else { return Ok(false) };
        let level = self.levels.get(self.core.decisive());
        let cause = level.map_or(Cause::NoProgress, |of| cause(&*of.memory, of.high));
        self.tell(ThrottleEvent::WayOut(then, cause, self.core.stalled()));
        if then == Then::Oom
            && let Some(pid) = at.growers.largest().and_then(|pid| i32::try_from(pid).ok())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(then != Then::Notify)
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

fn has_swap() -> bool {
    nix::sys::sysinfo::sysinfo().is_ok_and(|info| info.swap_total() > 0)
}

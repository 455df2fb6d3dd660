//! The OOM hold (v1, opt-in): the kernel's OOM killer is held off a container for so long at most.
//!
//! `oom_kill_disable` has to be set before memory runs out, so a container that asked for it has it set
//! while it is enforced. It is on a lease: the journal has a deadline that is put off every
//! [`RENEW`], and whoever does not put it off in time is taken for dead by the guardian, which lets the
//! killer loose. The price while it is set, whether memory runs out or not: at the limit, everything
//! but a page fault fails with ENOMEM instead of waiting (law 3).
//!
//! A freeze, for a look before the kill, is a hold in which everybody is stopped and no limit is raised.

use crate::core::Now;
use cgroupfs::Bytes;
use std::time::Duration;

/// How often the lease is renewed.
pub const RENEW: Duration = Duration::from_secs(2);

/// For how long it is renewed.
pub const LEASE: Duration = Duration::from_secs(6);

/// How often a container that is held is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A raised limit is given so long to let somebody go on; then it was not enough, and filled up again.
const RAISED: Duration = Duration::from_millis(40);

/// After a hold is over the killer is left alone for so long at least.
const REST: Duration = Duration::from_secs(1);

/// What `memory.oom_control` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OomControl {
    /// The killer is held off.
    pub disabled: bool,
    /// Tasks wait for memory.
    pub under_oom: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldAction {
    /// Write down the lease, then set `oom_kill_disable`.
    Disable(Now),
    /// Write down the new end of the lease.
    Renew(Now),
    /// Set `oom_kill_disable` back, then strike the lease out.
    Enable,
    /// See whether the limit may be raised.
    Raise,
    /// Stop everybody in it, so long at most.
    Freeze(Duration),
    /// They go on.
    Thaw,
    /// Tell people.
    Tell(HoldEvent),
}

/// What people are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldEvent {
    /// Memory ran out; the killer is held off until then.
    Held(Duration),
    /// Memory ran out; everybody is stopped, and the killer held off, for so long at most.
    Frozen(Duration),
    /// The limit is this now.
    Raised(Bytes),
    /// There is memory again, and nobody was killed.
    Recovered,
    /// The time is up: the killer works.
    Released,
    /// Somebody else has set `oom_kill_disable`, or set it back: theirs stands.
    Foreign,
    /// There are more than so many groups beneath it: of those that are made meanwhile not all are looked at.
    Crowded(usize),
}

impl HoldEvent {
    /// For programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            HoldEvent::Held(_) => "oom_held",
            HoldEvent::Frozen(_) => "oom_frozen",
            HoldEvent::Raised(_) => "limit_raised",
            HoldEvent::Recovered => "oom_recovered",
            HoldEvent::Released => "oom_released",
            HoldEvent::Foreign => "oom_hold_foreign",
            HoldEvent::Crowded(_) => "oom_hold_crowded",
        }
    }

    /// For people.
    pub fn message(self) -> String {
        match self {
            HoldEvent::Held(longest) => {
                format!(
                    "out of memory: the OOM killer is held off for {} s at most",
                    longest.as_secs()
                )
            }
            HoldEvent::Frozen(longest) => {
                format!(
                    "out of memory: stopped for a look, with the OOM killer held off, for {} s at most: see \
                     /proc/PID of its processes; 'cgctl set ID oom=kill' ends it",
                    longest.as_secs()
                )
            }
            HoldEvent::Raised(limit) => {
                format!(
                    "the limit is raised to {limit}, as hold_limit allows: declared from now on"
                )
            }
            HoldEvent::Recovered => "there is memory again".into(),
            HoldEvent::Released => "the time is up: the OOM killer works".into(),
            HoldEvent::Foreign => {
                "somebody else writes memory.oom_control: theirs stands, and nothing is held".into()
            }
            HoldEvent::Crowded(most) => format!(
                "it has more than {most} groups beneath it: those that are made while the OOM killer is held off \
                 may keep oom_kill_disable, which the kernel copies; 'echo 0 > memory.oom_control' there"
            ),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not set by us: to be set at the next look.
    Off,
    /// Somebody else's.
    Foreign,
    Armed,
    Holding {
        until: Now,
        /// When the limit may be raised once more.
        raise: Now,
    },
    Resting {
        until: Now,
    },
}

/// One container's hold.
#[derive(Debug)]
pub struct Hold {
    longest: Duration,
    freezes: bool,
    state: State,
    lease: Now,
    next: Now,
}

impl Hold {
    /// For so long at most. The first look is due at once.
    pub const fn new(longest: Duration) -> Hold {
        Hold { longest, freezes: false, state: State::Off, lease: Now::ZERO, next: Now::ZERO }
    }

    /// The same, with everybody stopped meanwhile.
    pub const fn freezing(longest: Duration) -> Hold {
        Hold { freezes: true, ..Hold::new(longest) }
    }

    /// Whether everybody is stopped meanwhile.
    pub const fn freezes(&self) -> bool {
        self.freezes
    }

    /// How long it holds.
    pub const fn longest(&self) -> Duration {
        self.longest
    }

    /// When the next look is due.
    pub const fn deadline(&self) -> Now {
        self.next
    }

    /// Whether `oom_kill_disable` is set by us.
    pub const fn is_set(&self) -> bool {
        matches!(self.state, State::Armed | State::Holding { .. })
    }

    /// The file was read: at a signal, or as it was due.
    pub fn looked(&mut self, now: Now, file: OomControl, out: &mut Vec<HoldAction>) {
        let (held, before) = (self.is_holding(), out.len());
        self.transition(now, file, out);
        if self.freezes && held && !self.is_holding() {
            // Whoever is chosen by the killer is to be able to die.
            out.insert(before, HoldAction::Thaw);
        }
    }

    const fn is_holding(&self) -> bool {
        matches!(self.state, State::Holding { .. })
    }

    fn transition(&mut self, now: Now, file: OomControl, out: &mut Vec<HoldAction>) {
        if self.is_set() && !file.disabled {
            // By the guardian, if the lease had run out.
            if now < self.lease {
                self.state = State::Foreign;
                out.push(HoldAction::Enable);
                out.push(HoldAction::Tell(HoldEvent::Foreign));
            } else {
                self.state = State::Resting { until: now + REST };
                out.push(HoldAction::Enable);
            }
        }
        match self.state {
            State::Off if file.disabled => {
                self.state = State::Foreign;
                out.push(HoldAction::Tell(HoldEvent::Foreign));
            }
            State::Off => {
                self.state = State::Armed;
                self.lease = now + LEASE;
                out.push(HoldAction::Disable(self.lease));
            }
            State::Armed if file.under_oom => {
                self.state = State::Holding { until: now + self.longest, raise: now + RAISED };
                if self.freezes {
                    out.push(HoldAction::Freeze(self.longest));
                    out.push(HoldAction::Tell(HoldEvent::Frozen(self.longest)));
                } else {
                    out.push(HoldAction::Tell(HoldEvent::Held(self.longest)));
                    out.push(HoldAction::Raise);
                }
            }
            State::Holding { .. } if !file.under_oom => {
                self.state = State::Armed;
                out.push(HoldAction::Tell(HoldEvent::Recovered));
            }
            State::Holding { until, .. } if now >= until => {
                self.state = State::Resting { until: now + REST };
                out.push(HoldAction::Enable);
                out.push(HoldAction::Tell(HoldEvent::Released));
            }
            // It may have gone on, and filled what it got, between two looks.
            State::Holding { until, raise } if now >= raise && !self.freezes => {
                self.state = State::Holding { until, raise: now + RAISED };
                out.push(HoldAction::Raise);
            }
            // Once nobody waits any more, the next one is held again.
            State::Resting { until } if now >= until && !file.under_oom => {
                self.state = State::Off;
            }
            State::Foreign | State::Armed | State::Holding { .. } | State::Resting { .. } => {}
        }
        if self.is_set() && now + RENEW + RENEW >= self.lease && self.lease != now + LEASE {
            self.lease = now + LEASE;
            out.push(HoldAction::Renew(self.lease));
        }
        self.next = match self.state {
            State::Off => now,
            State::Foreign => Now::MAX,
            State::Armed => now + RENEW,
            State::Holding { until, .. } => until.min(now + LOOK),
            State::Resting { until } => until.max(now + LOOK * 5),
        };
    }

    /// The kernel refused to have it set.
    pub fn refused(&mut self) {
        self.state = State::Foreign;
        self.next = Now::MAX;
    }

    /// It ends: `oom_kill_disable` goes back if it was set by us.
    pub fn end(self) -> Option<HoldAction> {
        self.is_set().then_some(HoldAction::Enable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A kernel's file, and a hold over it.
    struct Bed {
        hold: Hold,
        now: Now,
        file: OomControl,
        /// The lease that is written down.
        lease: Option<Now>,
        frozen: bool,
        /// What is to be had by raises, and what it takes.
        raises: u32,
        wanted: u32,
        told: Vec<HoldEvent>,
    }

    impl Bed {
        fn new() -> Bed {
            let file = OomControl { disabled: false, under_oom: false };
            let hold = Hold::new(30 * SECOND);
            let (raises, wanted) = (0, u32::MAX);
            let (frozen, told) = (false, Vec::new());
            Bed { hold, now: SECOND, file, lease: None, told, frozen, raises, wanted }
        }

        fn look(&mut self) {
            let mut out = Vec::new();
            self.hold.looked(self.now, self.file, &mut out);
            for action in out {
                match action {
                    HoldAction::Disable(lease) => {
                        self.lease = Some(lease);
                        self.file.disabled = true;
                    }
                    HoldAction::Renew(lease) => {
                        assert!(self.lease.is_some_and(|old| lease > old));
                        self.lease = Some(lease);
                    }
                    HoldAction::Freeze(longest) => {
                        assert!(self.hold.freezes() && !self.frozen && longest == 30 * SECOND);
                        self.frozen = true;
                    }
                    HoldAction::Thaw => assert!(std::mem::take(&mut self.frozen)),
                    HoldAction::Enable => {
                        // Nobody is stopped who may be chosen.
                        assert!(!self.frozen);
                        self.file.disabled = false;
                        self.lease = None;
                    }
                    HoldAction::Raise => {
                        self.raises += 1;
                        self.file.under_oom &= self.raises < self.wanted;
                    }
                    HoldAction::Tell(event) => self.told.push(event),
                }
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.hold.deadline() <= end {
                self.now = self.now.max(self.hold.deadline());
                self.look();
                assert_eq!(self.lease.is_some(), self.hold.is_set());
                assert!(self.lease.is_none_or(|lease| lease > self.now + RENEW));
            }
            self.now = end;
        }
    }

    #[test]
    fn memory_that_runs_out_is_held_until_the_time_is_up() {
        let mut bed = Bed::new();
        bed.run(10 * SECOND);
        assert!(bed.file.disabled && bed.told.is_empty());
        bed.file.under_oom = true;
        bed.look();
        bed.run(29 * SECOND);
        assert!(bed.file.disabled);
        bed.run(2 * SECOND);
        assert!(!bed.file.disabled);
        assert_eq!(bed.told, [HoldEvent::Held(30 * SECOND), HoldEvent::Released]);
        // Not again before the killer has done its work.
        bed.run(10 * SECOND);
        assert!(!bed.file.disabled);
        bed.file.under_oom = false;
        bed.run(10 * SECOND);
        assert!(bed.file.disabled);
    }

    #[test]
    fn memory_that_comes_in_time_ends_it() {
        let mut bed = Bed::new();
        bed.run(SECOND);
        bed.file.under_oom = true;
        bed.look();
        bed.run(SECOND);
        bed.file.under_oom = false;
        bed.run(60 * SECOND);
        assert_eq!(bed.told, [HoldEvent::Held(30 * SECOND), HoldEvent::Recovered]);
        assert!(bed.file.disabled);
    }

    #[test]
    fn a_freeze_is_over_before_the_killer_works_and_raises_nothing() {
        let mut bed = Bed { hold: Hold::freezing(30 * SECOND), ..Bed::new() };
        bed.run(SECOND);
        bed.file.under_oom = true;
        bed.look();
        bed.run(29 * SECOND);
        assert!(bed.frozen && bed.file.disabled && bed.raises == 0);
        bed.run(2 * SECOND);
        assert!(!bed.frozen && !bed.file.disabled);
        assert_eq!(bed.told, [HoldEvent::Frozen(30 * SECOND), HoldEvent::Released]);
    }

    #[test]
    fn what_is_filled_between_two_looks_is_raised_again() {
        let mut bed = Bed::new();
        bed.wanted = 4;
        bed.run(SECOND);
        bed.file.under_oom = true;
        bed.look();
        bed.run(SECOND);
        assert_eq!((bed.raises, bed.file.under_oom), (4, false));
        assert_eq!(bed.told, [HoldEvent::Held(30 * SECOND), HoldEvent::Recovered]);
    }

    #[test]
    fn somebody_elses_value_stands() {
        let mut bed = Bed::new();
        bed.file.disabled = true;
        bed.run(SECOND);
        assert_eq!((bed.told.as_slice(), bed.lease), ([HoldEvent::Foreign].as_slice(), None));
        assert_eq!(bed.hold.end(), None);
        let mut bed = Bed::new();
        bed.run(SECOND);
        bed.file.disabled = false;
        bed.run(60 * SECOND);
        assert_eq!(
            (bed.file.disabled, bed.told.as_slice()),
            (false, [HoldEvent::Foreign].as_slice())
        );
    }

    #[test]
    fn after_the_guardian_it_is_set_again() {
        let mut bed = Bed::new();
        bed.run(SECOND);
        // Stopped for longer than the lease: the guardian let the killer loose.
        bed.now += 20 * SECOND;
        bed.file.disabled = false;
        bed.look();
        assert!(!bed.hold.is_set());
        bed.run(5 * SECOND);
        assert!(bed.file.disabled && bed.told.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_never_set_without_a_lease_and_never_longer_under_oom_than_asked(
            steps in proptest::collection::vec((0u64..4000, 0u8..4), 1..80), freezes: bool
        ) {
            let mut bed = Bed::new();
            if freezes {
                bed.hold = Hold::freezing(30 * SECOND);
            }
            let mut since = None;
            for (ms, what) in steps {
                match what {
                    0 => bed.file.under_oom = true,
                    1 => bed.file.under_oom = false,
                    2 => bed.file.disabled = false,
                    _ => {}
                }
                bed.look();
                bed.run(Duration::from_millis(ms));
                prop_assert!(!bed.frozen || bed.hold.is_holding());
                let held = bed.file.under_oom && bed.hold.is_set();
                since = held.then(|| since.unwrap_or(bed.now));
                if let Some(since) = since {
                    prop_assert!(bed.now <= since + 30 * SECOND + 4 * SECOND);
                }
            }
        }
    }
}

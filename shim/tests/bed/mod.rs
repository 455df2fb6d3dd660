//! The core over a model host in virtual time: a test bed that does what the driver does.

// Each binary uses some of it.
#![allow(dead_code, clippy::unwrap_used)]

use cgroupfs::files::{ControlDir, Decimal};
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, ReclaimFile, Version};
use cgroupfs::{Bytes, Limit};
use cgroupfs_model::{
    Actor, Config, EventFd, GroupId, Hierarchy, Host, Load, PassVerdict, Verdict,
};
use cgshim::core::{
    Action, Capabilities, Container, Event, Job, Notice, Now, Outcome, Report, Strategy, Survey,
    WatermarkSpec,
};
use nix::errno::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const DECLARED: Limit = Limit::Bytes(Bytes::mib(256));
pub(crate) const TICK: Duration = Duration::from_millis(1);
pub(crate) const OPERATOR: Actor = Actor(9);

/// Pages of so many MiB.
pub(crate) const fn mib(n: u64) -> u64 {
    n * 256
}

/// Usage, looked at every [`LOOK`] from the moment on that it first gets above `above`.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    above: Bytes,
    next: Duration,
    sum: f64,
    number: f64,
}

/// How often usage is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(5);

impl Looks {
    pub(crate) fn above(above: Bytes) -> Looks {
        Looks { above, ..Looks::default() }
    }

    pub(crate) fn at(&mut self, now: Duration, usage: Bytes) {
        if now >= self.next && (self.number > 0.0 || usage > self.above) {
            self.next = now + LOOK;
            self.sum += usage.0 as f64;
            self.number += 1.0;
        }
    }

    /// Bytes.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.number
    }
}

/// A container under 256 MiB on a model host, and the engine's core over it.
pub(crate) struct Bed {
    pub(crate) host: Host,
    pub(crate) group: GroupId,
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) core: Container,
    pub(crate) can: Capabilities,
    pub(crate) timer: Option<Now>,
    pub(crate) threshold: Option<EventFd>,
    pub(crate) forgotten: bool,
    pub(crate) notices: Vec<Notice>,
    /// The lowest value that the daemon wrote to a limit, and the floor of the job in flight.
    pub(crate) lowest: Arc<AtomicU64>,
    pub(crate) floors: Arc<Mutex<Vec<(u64, u64)>>>,
    pub(crate) floor: Arc<AtomicU64>,
    /// Another writer's value, to be written in the next window.
    pub(crate) intruder: Option<&'static str>,
    /// From a lower to its restore: longer than is usual.
    pub(crate) window: Duration,
    /// Usage as time goes by, inside of the engine's writes too.
    pub(crate) looks: Arc<Mutex<Looks>>,
    /// What it takes the kernel to swap a page out.
    pub(crate) swap_out: Duration,
}

pub(crate) fn group_on(host: &Host, version: Version, loads: &[Load]) -> GroupId {
    let mut state = host.lock();
    let group = state.mkdir(host.root(Hierarchy::Memory), "a").unwrap();
    let file = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    state.write(OPERATOR, group, file, b"256M").unwrap();
    for load in loads {
        state.spawn(group, *load);
    }
    group
}

impl Bed {
    pub(crate) fn new(config: Config, loads: &[Load]) -> Bed {
        Bed::with_limit(config, DECLARED, loads)
    }

    pub(crate) fn with_limit(config: Config, limit: Limit, loads: &[Load]) -> Bed {
        let version = config.version;
        let host = Host::new(config);
        let group = group_on(&host, version, loads);
        let dir: Arc<dyn ControlDir> = host.dir(group);
        let v1 = version == Version::V1;
        let can = Capabilities {
            threshold_event: v1,
            threshold_slack: Bytes(if v1 { (128 + 64) * 4096 * 2 } else { 0 }),
            limit_step: v1,
            force_empty: v1,
            memory_reclaim: dir.has("memory.reclaim"),
            high_step: !v1,
        };
        let memory: Arc<dyn Memory> = match version {
            Version::V1 => Arc::new(MemoryV1::open(dir).unwrap()),
            Version::V2 => Arc::new(MemoryV2::open(dir).unwrap()),
        };
        let (lowest, floor) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicU64::new(0)));
        let floors = Arc::new(Mutex::new(Vec::new()));
        let (low, at, seen) = (lowest.clone(), floor.clone(), floors.clone());
        host.on_write(move |_, write| {
            if write.actor == Actor(0)
                && matches!(write.file, "memory.limit_in_bytes" | "memory.max")
                && let Some(value) = cgroupfs::files::parse_u64(write.value)
            {
                low.fetch_min(value, Ordering::SeqCst);
                seen.lock().unwrap().push((value, at.load(Ordering::SeqCst)));
            }
            Verdict::Make
        });
        if limit != DECLARED {
            memory.set_limit(limit).unwrap();
            lowest.store(u64::MAX, Ordering::SeqCst);
            floors.lock().unwrap().clear();
        }
        let core = Container::new(WatermarkSpec::Default, limit, Limit::Max, can, 7);
        let mut bed = Bed {
            host,
            group,
            memory,
            core,
            can,
            timer: None,
            threshold: None,
            forgotten: false,
            notices: Vec::new(),
            lowest,
            floors,
            floor,
            intruder: None,
            window: Duration::from_micros(500),
            looks: Arc::default(),
            swap_out: Duration::from_micros(8),
        };
        bed.send(Event::Usage(Bytes(0)));
        bed
    }

    pub(crate) fn now(&self) -> Now {
        self.host.lock().now()
    }

    pub(crate) fn usage(&self) -> Bytes {
        self.memory.usage().unwrap()
    }

    /// Virtual time passes; no write is in flight at the end of each tick.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.host.advance(TICK);
            self.looks.lock().unwrap().at(self.now(), self.usage());
            let crossed =
                self.threshold.is_some_and(|eventfd| self.host.lock().take_signals(eventfd) > 0);
            if crossed {
                self.send(Event::Crossed(self.usage()));
            } else if self.timer.is_some_and(|at| at <= self.now()) {
                self.timer = None;
                self.send(Event::Usage(self.usage()));
            }
            assert_eq!(self.memory.limit().unwrap(), self.core.declared(), "the declared limit");
        }
    }

    pub(crate) fn send(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            self.core.handle(self.now(), event, &mut actions);
            for action in actions {
                match action {
                    Action::Arm(at) => self.arm(at),
                    Action::Timer(at) => self.timer = at,
                    Action::Survey => events.push(Event::Surveyed(Box::new(self.survey()))),
                    Action::Reclaim(job) => events.push(Event::Done(self.reclaim(&job))),
                    Action::Tell(notice) => self.notices.push(notice),
                    Action::Cancel | Action::Restore(_) => {}
                    Action::Forget => self.forgotten = true,
                }
            }
        }
    }

    pub(crate) fn arm(&mut self, at: Option<Bytes>) {
        let mut state = self.host.lock();
        if let Some(old) = self.threshold.take() {
            state.close(old);
        }
        if let Some(at) = at.filter(|_| self.can.threshold_event) {
            let eventfd = state.eventfd();
            let fd = state.control_fd(self.group, "memory.usage_in_bytes");
            let line = format!("{} {fd} {}", eventfd.0, at.0);
            state.write(OPERATOR, self.group, "cgroup.event_control", line.as_bytes()).unwrap();
            self.threshold = Some(eventfd);
        }
    }

    pub(crate) fn survey(&self) -> Survey {
        let free = {
            let mut state = self.host.lock();
            let used = state.swap_used();
            state.config_mut().swap - used
        };
        Survey {
            usage: self.usage(),
            limit: self.memory.limit().unwrap(),
            stat: self.memory.stat().unwrap(),
            swap: self.memory.swap_rules().unwrap(),
            host_swap_free: Bytes(free * 4096),
            direct_reclaim: self.memory.counters().unwrap().direct_reclaim(),
        }
    }

    /// As `driver/reclaim.rs` does it: look before each write, lower, restore, judge by bytes.
    pub(crate) fn reclaim(&mut self, job: &Job) -> Report {
        let (start, before) = (self.now(), self.usage());
        self.floor.store(job.floor.0, Ordering::SeqCst);
        let (mut freed, mut steps) = (Bytes(0), 0);
        let outcome = loop {
            let usage = self.usage();
            if usage <= job.target {
                break Outcome::Reached;
            }
            if self.now() >= start + job.deadline {
                break Outcome::Deadline;
            }
            steps += 1;
            let written = match job.strategy {
                Strategy::LimitStep => match self.step(job, usage, start + job.deadline) {
                    Ok(written) => written,
                    Err(outcome) => break outcome,
                },
                Strategy::MemoryReclaim => {
                    let want = usage.saturating_sub(job.target).min(job.step);
                    let knob = self.memory.reclaim_file(ReclaimFile::Reclaim).unwrap();
                    knob.raw().write(Decimal::new(want.0).as_bytes())
                }
                Strategy::ForceEmpty => {
                    let target = job.target.0 / 4096;
                    self.host.on_pass(move |state, group, _| match state.charged(group).1 {
                        usage if usage <= target => PassVerdict::Signal,
                        _ => PassVerdict::GoOn,
                    });
                    let knob = self.memory.reclaim_file(ReclaimFile::ForceEmpty).unwrap();
                    let written = knob.raw().write(b"0");
                    self.host.on_pass(|_, _, _| PassVerdict::GoOn);
                    written
                }
                Strategy::HighStep => panic!("the model of 6.1 has memory.reclaim"),
            };
            let after = self.usage();
            let fits = written.is_ok() && job.strategy == Strategy::LimitStep;
            let value = usage.saturating_sub(job.step).max(job.target).max(job.floor);
            let went = usage.saturating_sub(if fits { after.min(value) } else { after });
            freed = freed.saturating_add(went);
            self.host.advance(self.window);
            match written {
                Err(Errno::EBUSY | Errno::EAGAIN) if went < Bytes::kib(128) => {
                    break Outcome::Exhausted;
                }
                Ok(()) if job.strategy == Strategy::ForceEmpty => break Outcome::Exhausted,
                Ok(()) | Err(Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => {}
                Err(errno) => break Outcome::Failed(errno as i32),
            }
        };
        Report {
            id: job.id,
            strategy: job.strategy,
            outcome,
            before,
            after: self.usage(),
            freed,
            direct_reclaim: self.memory.counters().unwrap().direct_reclaim(),
            steps,
            cpu: Duration::ZERO,
            wall: self.now() - start,
        }
    }

    /// Time goes on while the kernel reclaims, and the group's tasks with it: 8 µs for a page that is
    /// swapped out (measured on 6.18 over zram) unless told otherwise, 1 µs for a pass over clean cache.
    fn passes_take_time(&self, until: Now) {
        let (mut swapped, swap_out) = (self.host.lock().swap_used(), self.swap_out);
        let (group, looks) = (self.group, self.looks.clone());
        self.host.on_pass(move |state, _, _| {
            let now = state.swap_used();
            let pages = u32::try_from(now.saturating_sub(swapped)).unwrap_or(0);
            swapped = now;
            state.advance(Duration::from_micros(1) + swap_out * pages);
            looks.lock().unwrap().at(state.now(), Bytes(state.charged(group).1 * 4096));
            // The driver interrupts a write that is still at it by then.
            if state.now() >= until { PassVerdict::Signal } else { PassVerdict::GoOn }
        });
    }

    pub(crate) fn step(
        &mut self,
        job: &Job,
        usage: Bytes,
        until: Now,
    ) -> Result<Result<(), Errno>, Outcome> {
        let knob = self.memory.reclaim_file(ReclaimFile::Limit).unwrap();
        let standing = self.memory.limit().unwrap();
        if standing != job.declared {
            return Err(Outcome::Foreign(standing));
        }
        let value = usage.saturating_sub(job.step).max(job.target).max(job.floor);
        let value = Bytes(value.0.next_multiple_of(4096));
        if value >= usage || Limit::Bytes(value) >= standing {
            return Err(Outcome::Exhausted);
        }
        self.passes_take_time(until);
        let lowered = knob.raw().write(Decimal::new(value.0).as_bytes());
        self.host.on_pass(|_, _, _| PassVerdict::GoOn);
        if lowered.is_ok() {
            self.host.advance(self.window);
            if let Some(value) = self.intruder.take() {
                let file = "memory.limit_in_bytes";
                let mut state = self.host.lock();
                state.write(OPERATOR, self.group, file, value.as_bytes()).unwrap();
            }
            let standing = self.memory.limit().unwrap();
            if standing != Limit::Bytes(value) {
                return Err(Outcome::Foreign(standing));
            }
            self.memory.set_limit(job.declared).unwrap();
        }
        Ok(lowered)
    }
}

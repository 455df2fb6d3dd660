//! The core over the model kernel, in virtual time: the laws, for each load, with and without it.
#![allow(clippy::unwrap_used)]

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

const DECLARED: Limit = Limit::Bytes(Bytes::mib(256));
const TICK: Duration = Duration::from_millis(1);
const OPERATOR: Actor = Actor(9);

/// Pages of so many MiB.
const fn mib(n: u64) -> u64 {
    n * 256
}

/// A container under 256 MiB on a model host, and the engine's core over it.
struct Bed {
    host: Host,
    group: GroupId,
    memory: Arc<dyn Memory>,
    core: Container,
    can: Capabilities,
    timer: Option<Now>,
    threshold: Option<EventFd>,
    forgotten: bool,
    notices: Vec<Notice>,
    /// The lowest value that the daemon wrote to a limit, and the floor of the job in flight.
    lowest: Arc<AtomicU64>,
    floors: Arc<Mutex<Vec<(u64, u64)>>>,
    floor: Arc<AtomicU64>,
    /// Another writer's value, to be written in the next window.
    intruder: Option<&'static str>,
    /// From a lower to its restore: longer than is usual.
    window: Duration,
}

fn group_on(host: &Host, version: Version, loads: &[Load]) -> GroupId {
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
    fn new(config: Config, loads: &[Load]) -> Bed {
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
        let core = Container::new(WatermarkSpec::Default, DECLARED, Limit::Max, can, 7);
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
        };
        bed.send(Event::Usage(Bytes(0)));
        bed
    }

    fn now(&self) -> Now {
        self.host.lock().now()
    }

    fn usage(&self) -> Bytes {
        self.memory.usage().unwrap()
    }

    /// Virtual time passes; no write is in flight at the end of each tick.
    fn run(&mut self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.host.advance(TICK);
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

    fn send(&mut self, event: Event) {
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

    fn arm(&mut self, at: Option<Bytes>) {
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

    fn survey(&self) -> Survey {
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
    fn reclaim(&mut self, job: &Job) -> Report {
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
                Strategy::LimitStep => match self.step(job, usage) {
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
            let went = usage.saturating_sub(self.usage());
            freed = freed.saturating_add(went);
            self.host.advance(TICK);
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

    fn step(&mut self, job: &Job, usage: Bytes) -> Result<Result<(), Errno>, Outcome> {
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
        let lowered = knob.raw().write(Decimal::new(value.0).as_bytes());
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

fn loads() -> Vec<(&'static str, Vec<Load>)> {
    vec![
        ("anon", vec![Load::anon(mib(200), mib(200))]),
        ("anon over the limit", vec![Load::anon(mib(100), mib(400))]),
        ("stream", vec![Load::stream(mib(400))]),
        ("stream and anon", vec![Load::stream(mib(200)), Load::anon(mib(40), mib(150))]),
        ("dirty", vec![Load::dirty(mib(200))]),
        ("circles", vec![Load::circles(mib(400), mib(240))]),
        ("hold", vec![Load::hold()]),
    ]
}

fn configs() -> Vec<Config> {
    let mut all = Vec::new();
    for preset in [Config::v1_6_18(), Config::v1_5_10(), Config::v2_6_1()] {
        for swap in [0, mib(1024)] {
            all.push(Config { swap, pages_per_pass: 8, ..preset.clone() });
        }
    }
    all
}

const TIME: Duration = Duration::from_secs(5);

#[test]
fn no_load_is_killed_with_the_engine_that_is_not_killed_without() {
    for config in configs() {
        for (name, loads) in loads() {
            let alone = Host::new(config.clone());
            group_on(&alone, config.version, &loads);
            alone.advance(TIME);
            let mut bed = Bed::new(config.clone(), &loads);
            // The declared limit is looked at after every tick.
            bed.run(TIME);
            let (with, without) = (bed.host.lock().oom_kills(), alone.lock().oom_kills());
            assert!(with <= without, "{name}: {with} {without} {config:?}");
        }
    }
}

#[test]
fn stepped_values_are_never_under_the_floor() {
    for config in configs().into_iter().filter(|config| config.version == Version::V1) {
        for (name, loads) in loads() {
            let mut bed = Bed::new(config.clone(), &loads);
            bed.run(TIME);
            for (value, floor) in bed.floors.lock().unwrap().iter() {
                assert!(value >= floor, "{name}: {value} {floor}");
            }
        }
    }
}

#[test]
fn a_stream_meets_its_limit_far_less_often_with_the_engine() {
    for config in [Config::v1_6_18(), Config::v2_6_1()] {
        let loads = [Load::stream(mib(100))];
        let alone = Host::new(config.clone());
        group_on(&alone, config.version, &loads);
        alone.advance(TIME);
        let mut bed = Bed::new(config.clone(), &loads);
        // A charge that meets the lowered limit counts too: here the window is as it is measured.
        bed.window = Duration::from_micros(20);
        bed.run(TIME);
        let (with, without) = (bed.host.lock().direct_reclaims(), alone.lock().direct_reclaims());
        assert!(with * 10 < without, "{with} {without} {:?}", bed.core.totals());
        assert!(bed.core.totals().freed > Bytes::mib(100));
    }
}

#[test]
fn an_idle_group_is_left_alone() {
    let mut bed = Bed::new(Config::v1_6_18(), &[Load::hold()]);
    bed.run(TIME);
    assert_eq!(bed.core.totals().rounds, 0);
    assert_eq!(bed.lowest.load(Ordering::SeqCst), u64::MAX);
}

#[test]
fn a_foreign_write_wins() {
    for config in [Config::v1_6_18(), Config::v2_6_1()] {
        let mut bed = Bed::new(config.clone(), &[Load::stream(mib(200))]);
        bed.run(TIME);
        let file = match config.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        bed.host.lock().write(OPERATOR, bed.group, file, b"192M").unwrap();
        let now = Limit::Bytes(Bytes::mib(192));
        bed.send(Event::LimitChanged(now));
        assert_eq!(bed.core.declared(), now);
        bed.run(TIME);
        assert_eq!(bed.memory.limit().unwrap(), now);
        assert!(bed.notices.contains(&Notice::Adopted(DECLARED, now)));
    }
}

#[test]
fn a_foreign_write_in_the_window_of_a_step_is_left_standing_and_adopted() {
    let mut bed = Bed::new(Config::v1_6_18(), &[Load::stream(mib(200))]);
    bed.intruder = Some("240M");
    bed.run(Duration::from_secs(3));
    assert_eq!(bed.intruder, None, "no step was made");
    assert_eq!(bed.core.declared(), Limit::Bytes(Bytes::mib(240)));
    assert_eq!(bed.memory.limit().unwrap(), bed.core.declared());
}

#[test]
fn release_leaves_the_declared_limit() {
    let mut bed = Bed::new(Config::v1_6_18(), &[Load::stream(mib(200))]);
    bed.run(TIME);
    bed.send(Event::Release);
    assert!(bed.forgotten);
    assert_eq!(bed.memory.limit().unwrap(), DECLARED);
}

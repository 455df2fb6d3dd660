//! Crashes at every boundary, over the model kernel: whatever the worker, the throttle or the OOM hold
//! was about, after a restore from the journal nothing of ours stands, and nothing that was announced is
//! missing.
//!
//! The worker's own code runs here ([`reclaim::execute`]), on model files. At a write drawn by lot its
//! process is killed, before the write or after it; what the journal holds at that instant is what the
//! next process finds.

#![allow(clippy::unwrap_used)]

use super::attention::Attention;
use super::journaled::{Journaled, record_of};
use super::reclaim::{self, At, Stop};
use super::{Policy, sys};
use crate::core::{
    Action, Capabilities, Container, Event, Now, Outcome, Survey, Totals, WatermarkSpec,
};
use crate::guardian::{FREEZER_CHILD, Groups, restore_all};
use crate::journal::{Deadline, Freeze, FreezerKind, HighMark, Journal, Place};
use cgroupfs::files::{Access, ControlDir, ControlFile};
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, Version};
use cgroupfs::{Bytes, Limit};
use cgroupfs_model::{Actor, Config, GroupId, Hierarchy, Host, Load, Verdict};
use nix::errno::Errno;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DAEMON: Actor = Actor(0);
const GUARDIAN: Actor = Actor(1);
const OPERATOR: Actor = Actor(9);

const DECLARED: u64 = 64 << 20;
const SWAPPINESS: u64 = 60;

/// Histories of one run of the test. `CGSHIM_TEST_HISTORIES` says otherwise.
const HISTORIES: u64 = 1_000;

struct Lot(u64);

impl Lot {
    fn draw(&mut self, of: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % of
    }
}

/// When the daemon is killed, and what the journal held then.
#[derive(Default)]
struct Crash {
    writes: u64,
    at: u64,
    after: bool,
    found: Option<Vec<u64>>,
    /// memsw is lowered to this by somebody before the restore of a step.
    memsw: Option<u64>,
}

struct World {
    host: Host,
    group: GroupId,
    child: GroupId,
    /// The groups beneath it in the order in which they were made, and whose `oom_kill_disable` is the operator's: they
    /// have no inodes here, but places in this order, from 1.
    beneath: Vec<(GroupId, bool)>,
    memory: Arc<dyn Memory>,
    journal: Arc<Journal>,
    journaled: Journaled,
    core: Container,
    crash: Arc<Mutex<Crash>>,
    declared: u64,
    high: Option<u64>,
    /// A high of ours that is to stay.
    ours: Option<Limit>,
    swap: u64,
    announced: (Totals, u64),
    timer: Option<Now>,
}

/// The files of the model, for a restore.
struct Model {
    host: Host,
    memory: GroupId,
    child: GroupId,
    beneath: Vec<(GroupId, bool)>,
}

impl Model {
    fn open(&self, group: GroupId, file: &str) -> Result<Box<dyn ControlFile>, Errno> {
        let dir = self.host.dir_as(group, GUARDIAN);
        dir.open(file, Access::ReadWrite).map_err(|error| error.errno().unwrap_or(Errno::ENOENT))
    }
}

struct Boxed(Box<dyn ControlFile>);

impl ControlFile for Boxed {
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        self.0.read(buf)
    }
    fn write(&self, value: &[u8]) -> Result<(), Errno> {
        self.0.write(value)
    }
}

impl Groups for Model {
    type File = Boxed;
    fn memory(&self, place: &Place, file: &str) -> Result<Boxed, Errno> {
        assert_eq!(place.path.as_str(), "a");
        self.open(self.memory, file).map(Boxed)
    }
    fn frozen_child(&self, path: &str, _: Option<u64>, file: &str) -> Result<Boxed, Errno> {
        assert_eq!(path, "a");
        self.open(self.child, file).map(Boxed)
    }
    fn beneath(
        &self,
        _: &Place,
        inode: u64,
        file: &str,
        each: &mut dyn FnMut(Boxed) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let seen = usize::try_from(inode).unwrap();
        self.beneath
            .iter()
            .skip(seen)
            .try_for_each(|(group, _)| each(Boxed(self.open(*group, file)?)))
    }
}

impl World {
    fn new(lot: &mut Lot) -> World {
        let config = match lot.draw(5) {
            0 | 1 => Config::v1_6_18(),
            2 => Config::v1_5_10(),
            3 => Config::v2_5_10(),
            _ => Config::v1_el7(),
        };
        let v1 = config.version == Version::V1;
        let swap = if lot.draw(2) == 0 { 0 } else { 1 << 16 };
        let host = Host::new(Config { swap, pages_per_pass: lot.draw(6), ..config });
        let (group, child) = {
            let mut state = host.lock();
            let group = state.mkdir(host.root(Hierarchy::Memory), "a").unwrap();
            let container = state.mkdir(host.root(Hierarchy::Freezer), "a").unwrap();
            let child = state.mkdir(container, FREEZER_CHILD).unwrap();
            let limit = DECLARED.to_string();
            let mut set = |file, value: &str| state.write(OPERATOR, group, file, value.as_bytes());
            if v1 {
                set("memory.limit_in_bytes", &limit).unwrap();
                set("memory.swappiness", &SWAPPINESS.to_string()).unwrap();
            } else {
                set("memory.max", &limit).unwrap();
            }
            (group, child)
        };
        let high = (!v1 && lot.draw(2) == 0).then_some(DECLARED - (2 << 20));
        if v1 && swap > 0 && lot.draw(2) == 0 {
            // memsw == limit: reclaimed from with swappiness at 0.
            let limit = DECLARED.to_string();
            let mut state = host.lock();
            state.write(OPERATOR, group, "memory.memsw.limit_in_bytes", limit.as_bytes()).unwrap();
        }
        if let Some(high) = high {
            let mut state = host.lock();
            state.write(OPERATOR, group, "memory.high", high.to_string().as_bytes()).unwrap();
        }
        {
            let mut state = host.lock();
            state.spawn(group, Load::stream(256 * (50 + lot.draw(400))));
            if lot.draw(2) == 0 {
                state.spawn(group, Load::anon(256 * (10 + lot.draw(60)), 256 * 20));
            }
        }
        let dir: Arc<dyn ControlDir> = host.dir_as(group, DAEMON);
        let memory: Arc<dyn Memory> = match v1 {
            true => Arc::new(MemoryV1::open(dir.clone()).unwrap()),
            false => Arc::new(MemoryV2::open(dir.clone()).unwrap()),
        };
        let journal = Arc::new(Journal::private().unwrap());
        let watermarks = WatermarkSpec::Ratio { high: 7000, low: 5000 };
        let limit_of_high = high.map_or(Limit::Max, |high| Limit::Bytes(Bytes(high)));
        let policy = Policy { watermarks, high: limit_of_high };
        let record = record_of("a", 1, &*memory, policy);
        let journaled = Journaled::insert(&journal, record).unwrap();
        let can = Capabilities {
            threshold_event: false,
            threshold_slack: Bytes(0),
            limit_step: v1,
            // Without signals between its passes it has no end in the model.
            force_empty: false,
            memory_reclaim: false,
            high_step: !v1,
        };
        let declared = Limit::Bytes(Bytes(DECLARED));
        let core = Container::new(watermarks, declared, limit_of_high, can, lot.draw(1 << 20));
        let crash = Arc::new(Mutex::new(Crash {
            at: 1 + lot.draw(24),
            after: lot.draw(2) == 0,
            ..Crash::default()
        }));
        let (shared, words) = (crash.clone(), journal.clone());
        host.on_write(move |state, write| {
            if write.actor != DAEMON {
                return Verdict::Make;
            }
            let mut crash = shared.lock().unwrap();
            crash.writes += 1;
            let raises = write.file == "memory.limit_in_bytes" && crash.writes.is_multiple_of(2);
            if raises && let Some(memsw) = crash.memsw.take() {
                let memsw = memsw.to_string();
                // Refused where the limit is above it: then nothing is to be bounded.
                let file = "memory.memsw.limit_in_bytes";
                let _ = state.write(OPERATOR, write.group, file, memsw.as_bytes());
            }
            if crash.writes != crash.at {
                return Verdict::Make;
            }
            crash.found = Some(words.words());
            if crash.after { Verdict::KillAfter } else { Verdict::KillBefore }
        });
        World {
            host,
            group,
            child,
            beneath: Vec::new(),
            memory,
            journal,
            journaled,
            core,
            crash,
            declared: DECLARED,
            high,
            ours: None,
            swap,
            announced: (Totals::default(), 0),
            timer: Some(Now::ZERO),
        }
    }

    fn crashed(&self) -> bool {
        self.crash.lock().unwrap().found.is_some()
    }

    fn now(&self) -> Now {
        self.host.lock().now()
    }

    fn v1(&self) -> bool {
        self.memory.version() == Version::V1
    }

    fn survey(&self) -> Option<Survey> {
        let used = self.host.lock().swap_used();
        Some(Survey {
            usage: self.memory.usage().ok()?,
            limit: self.memory.limit().ok()?,
            stat: self.memory.stat().ok()?,
            swap: self.memory.swap_rules().ok()?,
            host_swap_free: Bytes((self.swap - used) * 4096),
            direct_reclaim: self.memory.counters().ok()?.direct_reclaim(),
        })
    }

    /// As the engine does it: the core decides, the journal has it, then it is done and told.
    fn send(&mut self, event: Event, attention: &mut Attention, me: sys::Thread) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            self.core.handle(self.now(), event, &mut actions);
            self.journaled.keep(&self.core);
            self.announced.0 = self.core.totals();
            for action in actions {
                match action {
                    Action::Timer(at) => self.timer = at,
                    Action::Survey => match self.survey() {
                        Some(survey) => events.push(Event::Surveyed(Box::new(survey))),
                        None => return,
                    },
                    Action::Reclaim(job) => {
                        let slot = self.journaled.slot();
                        let stop = Stop::default();
                        let mut at = At { stop: &stop, slot: Some(&slot), me, attention };
                        let report = reclaim::execute(&*self.memory, &job, &mut at);
                        if self.crashed() {
                            return;
                        }
                        assert!(!matches!(report.outcome, Outcome::Failed(_)), "{report:?}");
                        events.push(Event::Done(report));
                    }
                    _ => {}
                }
            }
        }
    }

    /// A kill that the kernel counted: in the journal, then announced.
    fn kill_announced(&mut self, kills: u64) {
        self.announced.1 += 1;
        // Crashed before it was in the journal it was not announced either.
        self.journaled.killed(Some(kills), 1);
    }

    /// As the throttle does it: a pulse.
    fn pulse(&self) {
        let slot = self.journaled.slot();
        let write = |value: &[u8]| {
            let dir = self.host.dir_as(self.child, DAEMON);
            dir.open("freezer.state", Access::ReadWrite).is_ok_and(|file| file.write(value).is_ok())
        };
        let deadline = Deadline::after(Duration::from_millis(50));
        slot.begin_freeze(Freeze { kind: FreezerKind::V1Child, deadline });
        if write(b"FROZEN") && !self.crashed() && write(b"THAWED") && !self.crashed() {
            slot.end_freeze();
        }
    }

    /// As the OOM hold does it, while groups are made beneath: the kernel copies the flag into them.
    fn hold(&mut self, lot: &mut Lot) {
        let slot = self.journaled.slot();
        let deadline = || Deadline::after(Duration::from_secs(30));
        slot.end_hold();
        let mut theirs: Vec<bool> =
            self.beneath.iter().map(|(group, _)| self.held(*group)).collect();
        slot.see_to_beneath(Some(self.beneath.len() as u64));
        slot.begin_hold(deadline());
        if !self.enable(self.group, b"1") {
            return;
        }
        for _ in 0..lot.draw(4) {
            for _ in 0..lot.draw(3) {
                self.make_beneath(lot);
            }
            if lot.draw(3) == 0 {
                continue;
            }
            slot.begin_hold(deadline());
            let newest = self.beneath.len() as u64;
            if !self.enable_beneath(&mut theirs) {
                return;
            }
            slot.see_to_beneath(Some(newest));
            // From now on it is the operator's.
            if let Some(one) = self.beneath.len().checked_sub(1).filter(|_| lot.draw(4) == 0)
                && theirs.get(one) == Some(&true)
            {
                let (group, set) = &mut self.beneath[one];
                let file = "memory.oom_control";
                *set = self.host.lock().write(OPERATOR, *group, file, b"1").is_ok();
            }
        }
        if self.enable(self.group, b"0") && self.enable_beneath(&mut theirs) {
            slot.end_hold();
        }
    }

    /// In the container, or in a group there whose killer works.
    fn make_beneath(&mut self, lot: &mut Lot) {
        let within = match self.beneath.last() {
            Some((last, false)) if lot.draw(2) == 0 => *last,
            _ => self.group,
        };
        let name = format!("b{}", self.beneath.len());
        if self.beneath.len() < 24
            && let Ok(made) = self.host.lock().mkdir(within, &name)
        {
            self.beneath.push((made, false));
        }
    }

    /// The flag is taken from each group once; false if that was the end.
    fn enable_beneath(&self, theirs: &mut Vec<bool>) -> bool {
        theirs.resize(self.beneath.len(), false);
        let mut groups = self.beneath.iter().zip(theirs);
        groups.all(|((group, _), taken)| {
            !self.held(*group) || std::mem::replace(taken, true) || self.enable(*group, b"0")
        })
    }

    fn held(&self, group: GroupId) -> bool {
        self.read(group, "memory.oom_control").starts_with("oom_kill_disable 1")
    }

    /// Written by the daemon, if it is still there.
    fn enable(&self, group: GroupId, value: &[u8]) -> bool {
        let dir = self.host.dir_as(group, DAEMON);
        let file = dir.open("memory.oom_control", Access::ReadWrite);
        file.is_ok_and(|file| file.write(value).is_ok()) && !self.crashed()
    }

    /// As the guard of a native `memory.high` does it: another one of ours, or what was there before.
    fn native(&mut self, ours: Option<Limit>) {
        let slot = self.journaled.slot();
        let before = self.high.map_or(Limit::Max, |high| Limit::Bytes(Bytes(high)));
        let written = ours.unwrap_or(before);
        let last = self.ours.unwrap_or(before);
        slot.begin_high(HighMark { before, written, last });
        let dir = self.host.dir_as(self.group, DAEMON);
        let file = dir.open("memory.high", Access::ReadWrite).unwrap();
        if file.write(written.to_v2().as_bytes()).is_ok() && !self.crashed() {
            self.ours = ours;
            if ours.is_none() {
                slot.end_high();
            }
        }
    }

    fn declare(&mut self, bytes: u64) {
        let value = bytes.to_string();
        let file = if self.v1() { "memory.limit_in_bytes" } else { "memory.max" };
        let done = self.host.lock().write(OPERATOR, self.group, file, value.as_bytes());
        if done.is_ok() {
            self.declared = bytes;
        }
    }

    fn read(&self, group: GroupId, file: &str) -> String {
        self.host.lock().read(group, file).unwrap()
    }
}

/// One life: work, whatever else happens, a crash, and the next process. Whether something stood.
fn history(seed: u64) -> bool {
    let me = sys::become_interruptible();
    let mut attention = Attention::new();
    let lot = &mut Lot(seed);
    let mut world = World::new(lot);
    for _ in 0..400 {
        match lot.draw(64) {
            0 => world.declare(DECLARED - (lot.draw(2) << 20)),
            1 if world.v1() => world.pulse(),
            2 if world.v1() => world.hold(lot),
            7 if world.v1() => world.make_beneath(lot),
            3 if world.v1() => {
                world.crash.lock().unwrap().memsw = Some(DECLARED - (4 << 20));
            }
            5 if !world.v1() => {
                let ours = Limit::Bytes(Bytes(DECLARED - (3 << 20) - (lot.draw(8) << 20)));
                world.native(Some(ours));
            }
            6 if !world.v1() => world.native(None),
            4 => {
                let kills = world.announced.1 + 1;
                world.kill_announced(kills);
            }
            _ => {}
        }
        if world.crashed() {
            break;
        }
        world.host.advance(Duration::from_millis(5));
        if let Ok(limit) = world.memory.limit()
            && limit != world.core.declared()
        {
            world.send(Event::LimitChanged(limit), &mut attention, me);
        }
        if world.timer.is_some_and(|at| at <= world.now()) {
            world.timer = None;
            let usage = world.memory.usage().unwrap();
            world.send(Event::Usage(usage), &mut attention, me);
        }
        if world.crashed() {
            break;
        }
    }
    let found = world.crash.lock().unwrap().found.take().unwrap_or_else(|| world.journal.words());
    // The next process has what was in the file when the last was killed.
    let journal = Journal::private().unwrap();
    journal.set_words(&found);
    let (memory, child, beneath) = (world.group, world.child, world.beneath.clone());
    let model = Model { host: world.host.clone(), memory, child, beneath };
    let restored = restore_all(&journal, &model, &mut |_, _| {});
    let say = format!("seed {seed}: {restored:?}, {:?}", world.host.lock().config_mut().version);
    assert_eq!(restored.failed, 0, "{say}");
    let limit =
        world.read(world.group, if world.v1() { "memory.limit_in_bytes" } else { "memory.max" });
    let limit: u64 = limit.trim().parse().unwrap();
    if world.v1() {
        let memsw: u64 =
            world.read(world.group, "memory.memsw.limit_in_bytes").trim().parse().unwrap();
        assert_eq!(limit, world.declared.min(memsw), "{say}");
        assert_eq!(
            world.read(world.group, "memory.swappiness").trim(),
            SWAPPINESS.to_string(),
            "{say}"
        );
        assert_eq!(world.read(world.child, "freezer.state").trim(), "THAWED", "{say}");
        let oom = world.read(world.group, "memory.oom_control");
        assert!(oom.starts_with("oom_kill_disable 0"), "{say}: {oom}");
        for (n, (group, operators)) in world.beneath.iter().enumerate() {
            assert_eq!(world.held(*group), *operators, "{say}: beneath, {n}");
        }
    } else {
        assert_eq!(limit, world.declared, "{say}");
        let high = world.read(world.group, "memory.high");
        let expected = world.high.map_or("max".into(), |high| high.to_string());
        assert_eq!(high.trim(), expected, "{say}");
    }
    let record = journal.view().slots().next().unwrap().record().unwrap();
    assert!(record.counters.totals.rounds >= world.announced.0.rounds, "{say}");
    assert!(record.counters.totals.freed >= world.announced.0.freed, "{say}");
    assert_eq!(record.counters.oom_kills, world.announced.1, "{say}");
    // Once is enough.
    let again = restore_all(&journal, &model, &mut |_, _| {});
    assert_eq!(again, crate::guardian::Restored::default(), "{say}");
    restored != crate::guardian::Restored::default()
}

#[test]
fn a_crash_at_any_boundary_leaves_nothing_of_ours_and_loses_nothing_that_was_announced() {
    let histories = std::env::var("CGSHIM_TEST_HISTORIES").ok().and_then(|n| n.parse().ok());
    let histories = histories.unwrap_or(HISTORIES);
    // On a thread of its own: signals are blocked for good there.
    let stood = std::thread::spawn(move || (0..histories).filter(|seed| history(*seed)).count());
    let stood = stood.join().unwrap();
    println!("{histories} histories, in {stood} of them something stood");
    assert!(stood as u64 >= histories / 10, "the histories show nothing: {stood}");
}

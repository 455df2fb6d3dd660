//! Enforcers that are killed and stopped between a change to the kernel and its undoing, over real groups
//! under load: what they leave.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Limit, MemoryHierarchy};
use cgshim::driver::{Engine, Policy};
use cgshim::guardian::{Guardian, Kernel, restore_all};
use cgshim::journal::{Deadline, Journal, Reader, RunDir};
use common::{DiskFile, Ground, Load, alone, memory, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Limit = Limit::Bytes(Bytes::mib(96));
const SECOND: Duration = Duration::from_secs(1);

/// In which every limit is to be back, from the kill or stop on.
const BAR: Duration = Duration::from_millis(100);

/// Not a test: what [`Enforcer`] starts. As a daemon does it: lock, journal, restore, guardian, engine.
#[test]
fn enforcer_child() {
    let Some(group) = std::env::var_os("CGSHIM_TEST_ENFORCE").map(PathBuf::from) else { return };
    let run_dir = std::env::var_os("CGSHIM_TEST_RUN_DIR").map(PathBuf::from).unwrap();
    let hierarchy = MemoryHierarchy::find().unwrap();
    let group = Arc::new(hierarchy.open(&group).unwrap());
    let kernel = Kernel::find().unwrap();
    let run_dir = RunDir::lock(&run_dir, 5 * SECOND).unwrap();
    let (journal, mut opened) = Journal::open(&run_dir).unwrap();
    restore_all(&journal, &kernel, &mut |_, _| {});
    let journal = Arc::new(journal);
    let _guardian = Guardian::start(&journal, Some(&run_dir), &kernel).unwrap();
    let mut engine = Engine::new(1, journal).unwrap();
    let policy = Policy { watermarks: "50%:40%".parse().unwrap(), high: Limit::Max };
    match opened.found.pop() {
        Some(found) => engine.resume(group, policy, found).unwrap(),
        None => engine.register(group, policy).unwrap(),
    };
    let mut happened = Vec::new();
    loop {
        engine.turn(None, &mut happened).unwrap();
        happened.clear();
    }
}

/// A process that enforces on a group, with a fault in it.
struct Enforcer {
    child: Child,
    log: PathBuf,
}

impl Enforcer {
    fn start(bed: &Bed, fault: &str) -> Enforcer {
        let log = bed.run_dir.path().join("faults");
        let _ = std::fs::remove_file(&log);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "enforcer_child", "--nocapture", "--test-threads", "1"])
            .env("CGSHIM_TEST_ENFORCE", bed.group.path())
            .env("CGSHIM_TEST_RUN_DIR", bed.run_dir.path())
            .env("CGSHIM_FAULT", fault)
            .env("CGSHIM_FAULT_LOG", &log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Enforcer { child, log }
    }

    /// When the faults happened so far.
    fn faults(&self) -> Vec<Deadline> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter_map(|line| line.parse().ok()).map(Deadline).collect()
    }

    /// Waits for the nth fault.
    fn fault(&self, n: usize) -> Deadline {
        let start = Instant::now();
        loop {
            if let Some(at) = self.faults().get(n - 1) {
                return *at;
            }
            assert!(start.elapsed() < 20 * SECOND, "no fault number {n}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The guardian that it forked.
    fn guardian(&self) -> Option<i32> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with("cgshim-guardian"))
        })
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A group under load.
struct Bed {
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    run_dir: tempfile::TempDir,
    _load: Load,
    _file: DiskFile,
    _ground: Ground,
}

impl Bed {
    /// `None`, having said so, where no limit is stepped.
    fn new(test: &str) -> Option<Bed> {
        let ground = Ground::new(test)?;
        if !ground.v1() {
            skip(test, "v2 steps no limit");
            return None;
        }
        let file = DiskFile::new(Bytes::mib(128));
        let group = ground.group("g");
        let memory = memory(&group);
        memory.set_limit(LIMIT).unwrap();
        let mut load = Load::in_group(&group);
        load.stream(&file, Bytes::mib(600));
        let run_dir = tempfile::tempdir().unwrap();
        Some(Bed { group, memory, run_dir, _load: load, _file: file, _ground: ground })
    }

    fn limit(&self) -> Limit {
        self.memory.limit().unwrap()
    }

    /// How long after `since` the declared limit is back, and that it stays.
    fn back_after(&self, since: Deadline) -> Duration {
        let start = Instant::now();
        while self.limit() != LIMIT {
            assert!(start.elapsed() < 5 * SECOND, "never restored: {}", self.limit());
            std::thread::sleep(Duration::from_micros(100));
        }
        Duration::from_nanos(Deadline::now().0.saturating_sub(since.0))
    }
}

/// Says what was measured.
fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{what}: {} times, back after {median:?} in the median, {worst:?} at worst",
        times.len()
    );
    worst
}

fn times(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn killed_between_lower_and_restore_the_limit_is_back_within_100_ms() {
    let test = "killed_between_lower_and_restore_the_limit_is_back_within_100_ms";
    let Some(bed) = Bed::new(test) else { return };
    let _alone = alone();
    let mut seen = Vec::new();
    for run in 0..times("CGSHIM_TEST_KILLS", 200) {
        let mut enforcer = Enforcer::start(&bed, &format!("kill:lowered:{}", run % 7 + 1));
        let at = enforcer.fault(1);
        seen.push(bed.back_after(at));
        enforcer.child.wait().unwrap();
        // And nothing of the dead one's comes after that.
        assert_eq!(bed.limit(), LIMIT);
    }
    assert!(report("killed", seen) < BAR);
}

#[test]
fn stopped_between_lower_and_restore_the_limit_is_back_within_100_ms_and_it_goes_on() {
    let test = "stopped_between_lower_and_restore_the_limit_is_back_within_100_ms_and_it_goes_on";
    let Some(bed) = Bed::new(test) else { return };
    let _alone = alone();
    let mut seen = Vec::new();
    let enforcer = Enforcer::start(&bed, "stop:lowered:*2");
    for run in 0..times("CGSHIM_TEST_STOPS", 200) {
        let at = enforcer.fault(run + 1);
        seen.push(bed.back_after(at));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(bed.limit(), LIMIT);
        // It takes what the guardian did for what it is: no foreign limit, no pause.
        enforcer.signal(Signal::SIGCONT);
    }
    assert!(report("stopped", seen) < BAR);
    let records = Reader::open(bed.run_dir.path()).unwrap().records();
    assert_eq!(records[0].0.terms.declared, LIMIT);
}

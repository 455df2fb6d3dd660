//! Enforcers that are killed and stopped between a change to the kernel and its undoing, over real groups
//! under load: what they leave.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod rounds;

use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Memory, Version};
use cgroupfs::{Bytes, Cgroup, Limit, MemoryHierarchy};
use cgshim::core::Notice;
use cgshim::driver::{Engine, Happened, Opened, Policy};
use cgshim::guardian::{Guardian, Kernel, Restored, restore, restore_all};
use cgshim::journal::{Deadline, Journal, Reader, RunDir};
use common::{DiskFile, Ground, Load, MIB, alone, guardian_of, memory, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rounds::{BAR, BAR_AFTER_THE_LAST, Faults, back_after, bar, report, times};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Limit = Limit::Bytes(Bytes::mib(96));
const SECOND: Duration = Duration::from_secs(1);

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
        Some(found) => engine.resume(Opened::open(group).unwrap(), policy, found).unwrap(),
        None => engine.register(group, policy).unwrap(),
    };
    let mut happened = Vec::new();
    let mut notices =
        File::options().append(true).create(true).open(notices(run_dir.path())).unwrap();
    loop {
        engine.turn(None, &mut happened).unwrap();
        for event in happened.drain(..) {
            if let Happened::Notice(_, _, Notice::Adopted(from, to)) = event {
                writeln!(notices, "{from} {to}").unwrap();
            }
        }
    }
}

/// Not a test: holds the OOM killer of a group off, for 300 ms at the most, and then does nothing at all.
#[test]
fn holder_child() {
    let Some(group) = std::env::var_os("CGSHIM_TEST_HOLD").map(PathBuf::from) else { return };
    let run_dir = std::env::var_os("CGSHIM_TEST_RUN_DIR").map(PathBuf::from).unwrap();
    let group = Arc::new(MemoryHierarchy::find().unwrap().open(&group).unwrap());
    let run_dir = RunDir::lock(&run_dir, 5 * SECOND).unwrap();
    let journal = Arc::new(Journal::open(&run_dir).unwrap().0);
    let _guardian = Guardian::start(&journal, Some(&run_dir), &Kernel::find().unwrap()).unwrap();
    let policy = Policy { watermarks: "50%:40%".parse().unwrap(), high: Limit::Max };
    let opened = Opened::open(group.clone()).unwrap();
    let record = Engine::new(1, journal.clone()).unwrap().record_of(&opened, policy);
    let slot = journal.insert(&record).unwrap();
    slot.begin_hold(Deadline::after(HOLD));
    std::fs::write(group.path().join("memory.oom_control"), "1").unwrap();
    loop {
        std::thread::park();
    }
}

/// How long it may be held off.
const HOLD: Duration = Duration::from_millis(300);

/// Where it writes what it adopts.
fn notices(run_dir: &Path) -> PathBuf {
    run_dir.join("notices")
}

/// A process that enforces on a group, with a fault in it.
struct Enforcer {
    child: Child,
    faults: Faults,
}

impl Enforcer {
    fn start(bed: &Bed, fault: &str) -> Enforcer {
        let faults = Faults::in_dir(bed.run_dir.path());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "enforcer_child", "--nocapture", "--test-threads", "1"])
            .env("CGSHIM_TEST_ENFORCE", bed.group.path())
            .env("CGSHIM_TEST_RUN_DIR", bed.run_dir.path())
            .env("CGSHIM_FAULT", fault)
            .env("CGSHIM_FAULT_LOG", faults.log())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Enforcer { child, faults }
    }

    /// Waits for the nth fault.
    fn fault(&self, n: usize) -> Deadline {
        self.faults.nth(n)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The guardian that it forked.
    fn guardian(&self) -> Option<Pid> {
        guardian_of(self.child.id())
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
    load: Load,
    file: DiskFile,
    _ground: Ground,
}

impl Bed {
    /// `None` where nothing can be left: v2 steps no limit where it has `memory.reclaim`. Where it has not,
    /// `memory.high` is stepped.
    fn new(test: &str) -> Option<Bed> {
        let ground = Ground::new(test)?;
        if !ground.v1() && ground.dir.has("memory.reclaim") {
            return None;
        }
        // What is measured is the guardian, not how long this thread waits for a CPU among niced builds.
        // SAFETY: no preconditions; 0 is the calling thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -5) };
        let file = DiskFile::new(Bytes::mib(128));
        let group = ground.group("g");
        let memory = memory(&group);
        memory.set_limit(LIMIT).unwrap();
        if !ground.v1() {
            memory.set_high(LIMIT).unwrap();
        }
        let mut load = Load::in_group(&group);
        load.stream(&file, Bytes::mib(600));
        // As a run directory is: on tmpfs. On a disk, stores to the journal wait for its writeback.
        let run_dir = tempfile::tempdir_in("/dev/shm").unwrap();
        Some(Bed { group, memory, run_dir, load, file, _ground: ground })
    }

    /// With memsw, and a swappiness of its own.
    fn v1(&self) -> bool {
        self.memory.version() == Version::V1
    }

    /// What stands in the file that is stepped.
    fn limit(&self) -> Limit {
        if self.v1() { self.memory.limit() } else { self.memory.high() }.unwrap()
    }

    /// What enforcers said they adopted.
    fn adopted(&self) -> Vec<String> {
        let notices = std::fs::read_to_string(notices(self.run_dir.path())).unwrap_or_default();
        notices.lines().map(str::to_owned).collect()
    }

    fn try_set(&self, file: &str, value: u64) -> std::io::Result<()> {
        std::fs::write(self.group.path().join(file), value.to_string())
    }

    fn set(&self, file: &str, value: u64) {
        self.try_set(file, value).unwrap();
    }

    fn get(&self, file: &str) -> u64 {
        let text = std::fs::read_to_string(self.group.path().join(file)).unwrap();
        text.trim().parse().unwrap()
    }

    /// `cgshimd --restore`.
    fn restore(&self) -> Restored {
        restore(self.run_dir.path(), &Kernel::find().unwrap(), &mut |_, _| {}).unwrap().0
    }

    /// How long after `since` the declared limit is back.
    fn back_after(&self, since: Deadline) -> Duration {
        back_after(since, || self.limit() == LIMIT, || self.limit().to_string())
    }
}

#[test]
fn killed_between_lower_and_restore_the_limit_is_back_within_100_ms() {
    let test = "killed_between_lower_and_restore_the_limit_is_back_within_100_ms";
    let _alone = alone();
    let Some(bed) = Bed::new(test) else { return };
    let mut seen = Vec::new();
    for run in 0..times("CGSHIM_TEST_KILLS", 60) {
        let mut enforcer = Enforcer::start(&bed, &format!("kill:lowered:{}", run % 7 + 1));
        let at = enforcer.fault(1);
        seen.push(bed.back_after(at));
        enforcer.child.wait().unwrap();
        // And nothing of the dead one's comes after that.
        assert_eq!(bed.limit(), LIMIT);
    }
    assert!(report("killed", seen) < bar("CGSHIM_TEST_KILLS", BAR));
}

#[test]
fn stopped_between_lower_and_restore_the_limit_is_back_within_100_ms_and_it_goes_on() {
    let test = "stopped_between_lower_and_restore_the_limit_is_back_within_100_ms_and_it_goes_on";
    let _alone = alone();
    let Some(bed) = Bed::new(test) else { return };
    let mut seen = Vec::new();
    let mut enforcer = Enforcer::start(&bed, "stop:lowered:*2");
    let mut of_this = 0;
    for _ in 0..times("CGSHIM_TEST_STOPS", 60) {
        of_this += 1;
        let at = match enforcer.faults.nth_within(of_this, 3 * SECOND) {
            Some(at) => at,
            // It stands aside for longer: what was read again and again for so long looks in use, or an
            // OOM came in a window that was held open. Another knows nothing of that.
            None => {
                drop(enforcer);
                enforcer = Enforcer::start(&bed, "stop:lowered:*2");
                of_this = 1;
                enforcer.fault(1)
            }
        };
        seen.push(bed.back_after(at));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(bed.limit(), LIMIT);
        // It takes what the guardian did for what it is: no foreign limit, no pause.
        enforcer.signal(Signal::SIGCONT);
    }
    assert!(report("stopped", seen) < bar("CGSHIM_TEST_STOPS", BAR));
    let records = Reader::open(bed.run_dir.path()).unwrap().records();
    assert_eq!(records[0].0.terms.declared, LIMIT);
}

/// Stops it between lower and restore, and kills guardian and enforcer: the limit stays lowered.
fn killed_with_its_guardian(bed: &Bed) {
    let mut enforcer = Enforcer::start(bed, "stop:lowered:2");
    enforcer.fault(1);
    kill(enforcer.guardian().unwrap(), Signal::SIGKILL).unwrap();
    enforcer.signal(Signal::SIGKILL);
    enforcer.child.wait().unwrap();
}

#[test]
fn killed_with_its_guardian_the_limit_is_back_after_restore_and_after_a_start() {
    let test = "killed_with_its_guardian_the_limit_is_back_after_restore_and_after_a_start";
    let _alone = alone();
    let Some(bed) = Bed::new(test) else { return };
    let (mut by_restore, mut by_start) = (0, 0);
    for run in 0..100 {
        if run >= 10 && by_restore > 0 && by_start > 0 {
            break;
        }
        killed_with_its_guardian(&bed);
        // The guardian may have been quicker.
        let lowered = bed.limit() != LIMIT;
        if run % 2 == 0 {
            by_restore += u32::from(lowered);
            assert_eq!(bed.restore().limits, u32::from(lowered));
            assert_eq!(bed.limit(), LIMIT);
            assert_eq!(bed.restore(), Restored::default());
        } else {
            by_start += u32::from(lowered);
            let enforcer = Enforcer::start(&bed, "kill:lowered:100000");
            until("the declared limit is back", 20 * SECOND, || {
                Reader::open(bed.run_dir.path()).unwrap().writer() == enforcer.child.id() as i32
                    && bed.limit() == LIMIT
            });
            // What stood was not taken for the declared limit.
            std::thread::sleep(Duration::from_millis(20));
            let records = Reader::open(bed.run_dir.path()).unwrap().records();
            assert_eq!(records[0].0.terms.declared, LIMIT);
        }
    }
    println!("left lowered: {by_restore} by restore, {by_start} by a start");
    assert!(by_restore > 0 && by_start > 0, "nothing was tested");
    assert_eq!(bed.adopted(), [""; 0]);
}

#[test]
fn while_it_lives_nobody_restores_from_outside() {
    let _alone = alone();
    let Some(bed) = Bed::new("while_it_lives_nobody_restores_from_outside") else { return };
    let enforcer = Enforcer::start(&bed, "kill:lowered:100000");
    until("it is at work", 10 * SECOND, || enforcer.guardian().is_some());
    let kernel = Kernel::find().unwrap();
    let error = restore(bed.run_dir.path(), &kernel, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains(&enforcer.child.id().to_string()), "{error}");
}

#[test]
fn where_memsw_was_lowered_in_the_window_the_most_that_the_kernel_takes_is_set_and_told_once() {
    let test =
        "where_memsw_was_lowered_in_the_window_the_most_that_the_kernel_takes_is_set_and_told_once";
    let _alone = alone();
    let Some(bed) = Bed::new(test).filter(Bed::v1) else { return };
    const MEMSW: &str = "memory.memsw.limit_in_bytes";
    if !bed.group.has(MEMSW) {
        return skip(test, "swap is not accounted here (swapaccount=1)");
    }
    let memsw = Limit::Bytes(Bytes::mib(80));
    // The worker finds it, the guardian of a stopped one does, and that of a dead one.
    for (fault, signal) in [
        ("sleep-20:lowered:1", None),
        ("stop:lowered:1", Some(Signal::SIGCONT)),
        ("stop:lowered:1", Some(Signal::SIGKILL)),
    ] {
        bed.set(MEMSW, 96 * MIB);
        bed.memory.set_limit(LIMIT).unwrap();
        let _ = std::fs::remove_file(notices(bed.run_dir.path()));
        let mut enforcer = Enforcer::start(&bed, fault);
        enforcer.fault(1);
        // EINVAL: we come too late, the limit is back.
        while bed.try_set(MEMSW, 80 * MIB).is_err() {
            drop(enforcer);
            enforcer = Enforcer::start(&bed, fault);
            enforcer.fault(1);
        }
        if signal == Some(Signal::SIGKILL) {
            enforcer.signal(Signal::SIGKILL);
        }
        until("the most that there is", 20 * SECOND, || bed.limit() == memsw);
        if signal == Some(Signal::SIGCONT) {
            enforcer.signal(Signal::SIGCONT);
        }
        let declared = || Reader::open(bed.run_dir.path()).unwrap().records()[0].0.terms.declared;
        until("adopted", 20 * SECOND, || declared() == memsw);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(bed.limit(), memsw);
        // A dead one tells nobody: its guardian does, on standard error.
        let told = usize::from(signal != Some(Signal::SIGKILL));
        assert_eq!(bed.adopted().len(), told, "{fault} {signal:?}");
        drop(enforcer);
        std::fs::remove_file(bed.run_dir.path().join("journal")).unwrap();
    }
}

#[test]
fn swappiness_is_put_back_too() {
    let _alone = alone();
    let Some(bed) = Bed::new("swappiness_is_put_back_too").filter(Bed::v1) else { return };
    const MEMSW: &str = "memory.memsw.limit_in_bytes";
    if !bed.group.has(MEMSW) || !common::host_has_swap() {
        return skip("swappiness_is_put_back_too", "no swap is on (ci/with-swap gives some)");
    }
    bed.set("memory.swappiness", 37);
    bed.set(MEMSW, 96 * MIB);
    for fault in ["kill:swappiness:1", "stop:swappiness:1", "kill:lowered:1"] {
        let enforcer = Enforcer::start(&bed, fault);
        enforcer.fault(1);
        until("swappiness is what it was", 20 * SECOND, || bed.get("memory.swappiness") == 37);
        until("the limit is", 20 * SECOND, || bed.limit() == LIMIT);
        drop(enforcer);
    }
}

#[test]
fn an_oom_killer_that_was_held_off_works_again_after_a_kill_and_at_its_deadline() {
    let test = "an_oom_killer_that_was_held_off_works_again_after_a_kill_and_at_its_deadline";
    let Some(ground) = Ground::new(test) else { return };
    if !ground.v1() {
        return;
    }
    let _alone = alone();
    let group = ground.group("g");
    let held = || {
        let control = std::fs::read_to_string(group.path().join("memory.oom_control")).unwrap();
        control.contains("oom_kill_disable 1")
    };
    for signal in [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCONT] {
        let run_dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder_child", "--nocapture", "--test-threads", "1"])
            .env("CGSHIM_TEST_HOLD", group.path())
            .env("CGSHIM_TEST_RUN_DIR", run_dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("it is held off", 10 * SECOND, &held);
        let start = Instant::now();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        // Killed: at once. Stopped, or alive and forgetful: when its time is up.
        let bar = bar("CGSHIM_TEST_HOLDS", BAR);
        let most = if signal == Signal::SIGKILL { bar } else { HOLD + bar };
        while held() {
            assert!(start.elapsed() < most, "{signal}: still held off");
            std::thread::sleep(Duration::from_micros(200));
        }
        println!("{signal}: on again after {:?}", start.elapsed());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn random_kills_and_stops_under_clean_and_dirty_loads_leave_the_declared_limit() {
    let test = "random_kills_and_stops_under_clean_and_dirty_loads_leave_the_declared_limit";
    let _alone = alone();
    let Some(mut bed) = Bed::new(test) else { return };
    let writer = bed.file.0.clone();
    let kills = times("CGSHIM_TEST_RANDOM", 30);
    let (mut seen, mut gone_for) = (Vec::new(), Vec::new());
    for run in 0..kills {
        if run == kills / 2 {
            // From here on a writer, at disk speed, beside the reader.
            bed.load.tell(&format!("dirty {} {}", Bytes::mib(200).0, writer.display())).unwrap();
        }
        let mut enforcer = Enforcer::start(&bed, "kill:lowered:100000");
        until("it is at work", 10 * SECOND, || enforcer.guardian().is_some());
        std::thread::sleep(Duration::from_micros(run as u64 * 7919 % 60_000));
        let at = Deadline::now();
        if run % 3 == 0 {
            enforcer.signal(Signal::SIGSTOP);
            seen.push(bed.back_after(at));
            enforcer.signal(Signal::SIGCONT);
        }
        let at = Deadline::now();
        enforcer.signal(Signal::SIGKILL);
        seen.push(bed.back_after(at));
        // A worker that waits for the disk is gone later, and may have lowered the limit by then.
        enforcer.child.wait().unwrap();
        let gone = Deadline::now();
        gone_for.push(bed.back_after(gone));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(bed.limit(), LIMIT, "run {run}");
    }
    assert!(report("at random", seen) < bar("CGSHIM_TEST_RANDOM", BAR));
    assert!(
        report("after the last thread", gone_for) < bar("CGSHIM_TEST_RANDOM", BAR_AFTER_THE_LAST)
    );
}

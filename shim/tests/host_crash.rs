//! The daemon itself, with several containers under load, killed and stopped: between a lower and its restore, at
//! random, in the middle of a pulse. What it leaves, and how soon that is what was declared.
//!
//! `host_guardian` is the same for the engine alone, one container at a time.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;
mod rounds;

use cgroupfs::freezer::Freezer;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Limit};
use cgshim::journal::{Deadline, Reader};
use common::{DiskFile, Ground, Load, alone, memory, skip, until};
use daemons::{Daemon, RunDir, known};
use nix::sys::signal::Signal;
use rounds::{BAR, BAR_AFTER_THE_LAST, Faults, back_after, bar, passed, report, times};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Limit = Limit::Bytes(Bytes::mib(96));
const SECOND: Duration = Duration::from_secs(1);

/// What the daemon allows a thaw of its own to be late by: 40 ms.
const LATE: u64 = 40_000_000;

struct Container {
    memory: Arc<dyn Memory>,
    load: Load,
}

/// Containers under a daemon's policy: readers, and one that grows.
struct Bed {
    containers: Vec<Container>,
    run_dir: RunDir,
    /// One each: cache is charged to who reads first.
    files: Vec<DiskFile>,
    _ground: Ground,
}

impl Bed {
    /// `None` where nothing can be left: v2 steps no limit where it has `memory.reclaim`.
    fn new(test: &str) -> Option<Bed> {
        let ground = Ground::new(test)?;
        if !ground.v1() {
            return None;
        }
        // What is measured is the guardian, not how long this thread waits for a CPU among the loads.
        // SAFETY: no preconditions; 0 is the calling thread.
        unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, -5) };
        let files = vec![
            DiskFile::new(Bytes::mib(128)),
            DiskFile::new(Bytes::mib(128)),
            DiskFile::new(Bytes::mib(128)),
        ];
        let containers: Vec<Container> = (0..3)
            .map(|n| {
                let group = ground.group(&format!("c{n}"));
                let memory = memory(&group);
                memory.set_limit(LIMIT).unwrap();
                Container { load: Load::in_group(&group), memory }
            })
            .collect();
        let run_dir = RunDir::new("[defaults]\nwatermark = '50%:40%'\n");
        let daemon = run_dir.serve();
        let mut bed = Bed { containers, run_dir, files, _ground: ground };
        for n in 0..bed.containers.len() {
            let pid = bed.containers[n].load.pid();
            daemon.register(&known(&bed._ground, &format!("c{n}"), pid)).unwrap();
        }
        daemon.stop();
        // One that reads fast, one that reads slowly, one that has some memory besides.
        for (n, mib) in [500, 150, 200].into_iter().enumerate() {
            bed.containers[n].load.stream(&bed.files[n], Bytes::mib(mib));
        }
        assert!(bed.containers[2].load.anon(Bytes::mib(24)));
        Some(bed)
    }

    /// From here on one that writes, at disk speed.
    fn dirty(&mut self) {
        let path = self.files[1].0.display().to_string();
        self.containers[1].load.tell(&format!("dirty {} {path}", Bytes::mib(200).0)).unwrap();
    }

    /// Goes on with the containers that the journal has; a fault is in it.
    fn faulty(&self, fault: &str) -> Faulty {
        let faults = Faults::in_dir(&self.run_dir.path());
        let environment = [
            ("CGSHIM_FAULT", fault),
            ("CGSHIM_FAULT_LOG", faults.log().to_str().unwrap()),
            ("CGSHIM_LOG", "debug"),
        ];
        Faulty { daemon: self.run_dir.start_with(&environment), faults }
    }

    fn limits(&self) -> Vec<Limit> {
        self.containers.iter().map(|container| container.memory.limit().unwrap()).collect()
    }

    /// How long after `since` every declared limit is back.
    fn back_after(&self, since: Deadline) -> Duration {
        back_after(since, || self.limits() == [LIMIT; 3], || format!("{:?}", self.limits()))
    }

    /// The same of a daemon that is stopped: its threads in the kernel go on, and may lower another limit yet. When
    /// one was seen lowered last; looks for as long as they may be.
    fn back_for_good_after(&self, since: Deadline) -> Duration {
        let mut last = Duration::ZERO;
        loop {
            let at = passed(since);
            let standing = self.limits();
            if standing != [LIMIT; 3] {
                last = at;
            } else if at >= BAR {
                return last;
            }
            assert!(at < 20 * SECOND, "never restored: {standing:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The journal has not taken a stepped value for a declared one.
    fn assert_declared(&self) {
        let records = Reader::open(&self.run_dir.path()).unwrap().records();
        assert_eq!(records.len(), 3);
        for (record, _) in records {
            assert_eq!(record.terms.declared, LIMIT, "{}", record.identity.id);
        }
    }
}

struct Faulty {
    daemon: Daemon,
    faults: Faults,
}

#[test]
fn a_daemon_killed_between_lower_and_restore_leaves_every_declared_limit() {
    let test = "a_daemon_killed_between_lower_and_restore_leaves_every_declared_limit";
    let Some(bed) = Bed::new(test) else { return };
    let _alone = alone();
    let (mut seen, mut gone_for) = (Vec::new(), Vec::new());
    for run in 0..times("CGSHIM_TEST_KILLS", 20) {
        let mut faulty = bed.faulty(&format!("kill:lowered:{}", run % 7 + 1));
        let at = faulty.faults.nth(1);
        seen.push(bed.back_after(at));
        // What its other threads were about in the kernel comes to an end, and is undone.
        faulty.daemon.child.wait().unwrap();
        let gone = Deadline::now();
        gone_for.push(bed.back_after(gone));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(bed.limits(), [LIMIT; 3], "run {run}");
    }
    assert!(report("the daemon killed", seen) < bar("CGSHIM_TEST_KILLS", BAR));
    assert!(
        report("after the last thread", gone_for) < bar("CGSHIM_TEST_KILLS", BAR_AFTER_THE_LAST)
    );
    bed.assert_declared();
}

#[test]
fn a_daemon_stopped_between_lower_and_restore_leaves_every_declared_limit() {
    let test = "a_daemon_stopped_between_lower_and_restore_leaves_every_declared_limit";
    let Some(bed) = Bed::new(test) else { return };
    let _alone = alone();
    let mut seen = Vec::new();
    let mut faulty = bed.faulty("stop:lowered:*2");
    let mut of_this = 0;
    for _ in 0..times("CGSHIM_TEST_STOPS", 20) {
        of_this += 1;
        let at = faulty.faults.nth_within(of_this, 3 * SECOND).unwrap_or_else(|| {
            // It stands aside for longer: what was read again and again for so long looks in use. Another
            // knows nothing of that.
            faulty = bed.faulty("stop:lowered:*2");
            of_this = 1;
            faulty.faults.nth(1)
        });
        seen.push(bed.back_for_good_after(at));
        faulty.daemon.signal(Signal::SIGCONT);
    }
    assert!(report("the daemon stopped", seen) < bar("CGSHIM_TEST_STOPS", BAR));
    bed.assert_declared();
}

#[test]
fn a_daemon_killed_and_stopped_at_random_leaves_every_declared_limit() {
    let test = "a_daemon_killed_and_stopped_at_random_leaves_every_declared_limit";
    let Some(mut bed) = Bed::new(test) else { return };
    let _alone = alone();
    let kills = times("CGSHIM_TEST_RANDOM", 24);
    let (mut seen, mut late, mut gone_for) = (Vec::new(), 0, Vec::new());
    for run in 0..kills {
        if run == kills / 2 {
            bed.dirty();
        }
        let mut daemon = bed.run_dir.start();
        daemon.until_it_answers();
        std::thread::sleep(Duration::from_micros(run as u64 * 7919 % 60_000));
        if run % 3 == 0 {
            let at = Deadline::now();
            daemon.signal(Signal::SIGSTOP);
            seen.push(bed.back_after(at));
            daemon.signal(Signal::SIGCONT);
        }
        let at = Deadline::now();
        daemon.signal(Signal::SIGKILL);
        let back = bed.back_after(at);
        // A worker that waits for the disk is gone later, and may have lowered a limit by then.
        daemon.child.wait().unwrap();
        let gone = Deadline::now();
        gone_for.push(bed.back_after(gone));
        match back < BAR {
            true => seen.push(back),
            // Allowed only where it was the last thread that took the time.
            false => late += 1,
        }
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(bed.limits(), [LIMIT; 3], "run {run}");
    }
    println!("{late} of {kills} later than {BAR:?}, as a thread waited for the disk");
    assert!(report("at random", seen) < bar("CGSHIM_TEST_RANDOM", BAR));
    assert!(
        report("after the last thread", gone_for) < bar("CGSHIM_TEST_RANDOM", BAR_AFTER_THE_LAST)
    );
    bed.assert_declared();
}

/// The init of a container exits while a step has its limit lowered, which would have it emptied; and then the
/// daemon is killed. What undoes the step is still in the journal: emptying takes no lowered limit for the declared.
#[test]
fn an_exit_in_the_window_of_a_step_does_not_make_its_value_the_declared_one() {
    let test = "an_exit_in_the_window_of_a_step_does_not_make_its_value_the_declared_one";
    let Some(mut bed) = Bed::new(test) else { return };
    let _alone = alone();
    let mut seen = Vec::new();
    while !bed.containers.is_empty() {
        // The guardian undoes it after 30 ms.
        let mut faulty = bed.faulty("sleep-200:lowered:1");
        faulty.faults.nth(1);
        let lowered = |at: &Container| at.memory.limit().unwrap() != LIMIT;
        let Some(n) = bed.containers.iter().position(lowered) else { continue };
        let Container { memory, load } = bed.containers.remove(n);
        drop(load);
        // What emptying does is done within 5 ms.
        std::thread::sleep(Duration::from_millis(6));
        let at = Deadline::now();
        faulty.daemon.signal(Signal::SIGKILL);
        let standing = || memory.limit().unwrap();
        seen.push(back_after(at, || standing() == LIMIT, || standing().to_string()));
        faulty.daemon.child.wait().unwrap();
        assert_eq!(memory.limit().unwrap(), LIMIT);
    }
    assert!(bed.run_dir.log().contains("NotOurTurn"), "it was never about to be emptied");
    assert!(report("killed after an exit in the window", seen) < bar("CGSHIM_TEST_KILLS", BAR));
}

/// Nobody is left but who comes after: `--restore`, and the next start.
#[test]
fn with_the_guardian_killed_too_restore_and_the_next_start_bring_every_limit_back() {
    let test = "with_the_guardian_killed_too_restore_and_the_next_start_bring_every_limit_back";
    let Some(bed) = Bed::new(test) else { return };
    let _alone = alone();
    let (mut by_restore, mut by_start) = (0, 0);
    for run in 0..100 {
        if run >= 12 && by_restore > 0 && by_start > 0 {
            break;
        }
        let faulty = bed.faulty("stop:lowered:2");
        faulty.faults.nth(1);
        nix::sys::signal::kill(faulty.daemon.guardian().unwrap(), Signal::SIGKILL).unwrap();
        faulty.daemon.kill();
        // The guardian may have been quicker.
        let lowered = bed.limits() != [LIMIT; 3];
        if run % 2 == 0 {
            by_restore += u32::from(lowered);
            assert!(bed.run_dir.command().arg("--restore").status().unwrap().success());
            assert_eq!(bed.limits(), [LIMIT; 3], "after --restore");
        } else {
            by_start += u32::from(lowered);
            let daemon = bed.run_dir.serve();
            assert_eq!(daemon.list().len(), 3, "all are gone on with");
            daemon.stop();
            assert_eq!(bed.limits(), [LIMIT; 3], "after a start");
        }
    }
    println!("left lowered: {by_restore} by restore, {by_start} by a start");
    assert!(by_restore > 0 && by_start > 0, "nothing was tested");
    bed.assert_declared();
}

/// A daemon's configuration, with an emulated memory.high for all.
const HIGH: &str =
    "[defaults]\nhigh = '64M'\nthrottle = 'on'\nwatermark = 'off'\nway_out = 'never'\n";

/// Where memory.high is emulated, with the mount point of the freezer.
fn with_a_freezer(test: &'static str) -> Option<(Ground, PathBuf)> {
    let ground = Ground::new(test)?;
    if !ground.v1() {
        return None;
    }
    match Freezer::find() {
        Ok(freezer) => Some((ground, freezer.mount_point)),
        Err(error) => {
            skip(test, &error.to_string());
            None
        }
    }
}

/// In the middle of a pulse of the emulated memory.high, with the tasks frozen.
#[test]
fn a_daemon_killed_or_stopped_in_a_pulse_leaves_nobody_frozen() {
    let test = "a_daemon_killed_or_stopped_in_a_pulse_leaves_nobody_frozen";
    let Some((ground, mount)) = with_a_freezer(test) else { return };
    let _alone = alone();
    let run_dir = RunDir::new(HIGH);
    let group = ground.group("g");
    common::without_swap(&group);
    memory(&group).set_limit(Limit::Bytes(Bytes::mib(2048))).unwrap();
    // The container's first process; others grow in it.
    let init = Load::in_group(&group);
    run_dir.serve().register(&known(&ground, "a", init.pid())).unwrap();
    // Fast enough to be frozen at once. Before it comes to its end another takes its place.
    const MOST: Bytes = Bytes::mib(1400);
    let another = || {
        let mut load = Load::in_group(&group);
        assert!(load.anon(Bytes::mib(72)));
        load.grow_pages(Bytes::mib(20), MOST);
        load
    };
    let mut load = another();
    // By the journal, which allows for what a thaw of the daemon's own may be late by.
    let due = || {
        let records = Reader::open(&run_dir.path()).unwrap().records();
        assert_eq!(records.len(), 1);
        records[0].1.freeze.map(|freeze| Deadline(freeze.deadline.0.saturating_sub(LATE)))
    };
    let name = |daemon: u32| format!("cgshim-{daemon}-{}", group.inode());
    let frozen = |daemon: &Daemon| {
        let state = fs::read_to_string(mount.join(name(daemon.child.id())).join("freezer.state"));
        state.is_ok_and(|state| state.trim() == "FROZEN")
    };
    let (mut seen, mut stopped, mut daemons) = (Vec::new(), Vec::new(), Vec::new());
    const TIMES: &str = "CGSHIM_TEST_PULSES";
    let bar = bar(TIMES, BAR);
    for run in 0..times(TIMES, 20) {
        if load.done() + 600 * common::MIB > MOST.0 {
            load = another();
        }
        let daemon = run_dir.start();
        let start = Instant::now();
        while !frozen(&daemon) {
            assert!(start.elapsed() < 30 * SECOND, "run {run}: never frozen: {}", run_dir.log());
            std::thread::sleep(Duration::from_micros(50));
        }
        let at = Instant::now();
        let signal = if run % 2 == 0 { Signal::SIGKILL } else { Signal::SIGSTOP };
        daemon.signal(signal);
        let due = due();
        // Frozen tasks touch no memory: what it has done goes on only once it is thawed.
        while frozen(&daemon) {
            assert!(at.elapsed() < 30 * SECOND, "run {run}: still frozen: {}", run_dir.log());
            std::thread::sleep(Duration::from_micros(50));
        }
        match signal {
            Signal::SIGKILL => seen.push(at.elapsed()),
            _ => {
                let thawed = Deadline::now().0;
                // Unless it was over just then.
                if let Some(due) = due {
                    stopped.push(Duration::from_nanos(thawed.saturating_sub(due.0)));
                }
                // And no pulse is longer than 2 s.
                assert!(at.elapsed() < 2 * (SECOND + bar), "run {run}: {:?}", at.elapsed());
            }
        }
        let before = load.done();
        until("it goes on", 30 * SECOND, || load.done() > before);
        daemons.push(daemon.child.id());
    }
    assert!(report("killed in a pulse", seen) < bar);
    assert!(report("stopped in a pulse, from when it was due to end", stopped) < bar);
    // Its tasks gone, the groups that they were frozen in go too.
    drop((load, init));
    let left = || daemons.iter().filter(|pid| mount.join(name(**pid)).exists()).count();
    // The guardian, or the next daemon, may have been there first.
    println!("{} of {} groups are left", left(), daemons.len());
    assert!(run_dir.command().arg("--restore").status().unwrap().success());
    assert_eq!(left(), 0);
}

/// A container with a small high is ready long before it: its tasks are in a group of ours while they do nothing yet. A dead
/// daemon's they stay in, thawed, until the next one takes them over.
#[test]
fn what_a_daemon_left_that_was_killed_before_high_was_reached_is_taken_over() {
    let test = "what_a_daemon_left_that_was_killed_before_high_was_reached_is_taken_over";
    let Some((ground, mount)) = with_a_freezer(test) else { return };
    let _alone = alone();
    let run_dir = RunDir::new(HIGH);
    let group = ground.group("g");
    common::without_swap(&group);
    let mut load = Load::in_group(&group);
    run_dir.serve().register(&known(&ground, "a", load.pid())).unwrap();
    let tid = load.pid().to_string();
    let ours = |daemon: u32| mount.join(format!("cgshim-{daemon}-{}", group.inode()));
    let has_it = |daemon: u32| {
        let tasks = fs::read_to_string(ours(daemon).join("tasks")).unwrap_or_default();
        tasks.lines().any(|task| task == tid)
    };
    let at_home = || {
        let tasks = fs::read_to_string(mount.join("tasks")).unwrap();
        tasks.lines().any(|task| task == tid)
    };
    assert!(load.anon(Bytes::mib(4)));
    let mut before = None;
    for run in 0..times("CGSHIM_TEST_EARLY", 6) {
        let daemon = run_dir.start();
        let pid = daemon.child.id();
        until("moved", 30 * SECOND, || has_it(pid));
        if let Some(before) = before.replace(pid) {
            until("the group of the daemon before is gone", 30 * SECOND, || !ours(before).exists());
        }
        daemon.signal(Signal::SIGKILL);
        drop(daemon);
        if run % 2 == 1 {
            assert!(run_dir.command().arg("--restore").status().unwrap().success());
        }
        let state = fs::read_to_string(ours(pid).join("freezer.state")).unwrap();
        assert_eq!(state.trim(), "THAWED", "run {run}: {}", run_dir.log());
        assert!(load.anon(Bytes::mib(5)), "run {run}");
    }
    // One that ends of its own accord gives it back.
    let daemon = run_dir.serve();
    let pid = daemon.child.id();
    until("moved once more", 30 * SECOND, || has_it(pid));
    daemon.stop();
    assert!(at_home(), "{}", run_dir.log());
    let left = before.into_iter().chain([pid]).filter(|pid| ours(*pid).exists()).count();
    assert_eq!(left, 0, "{}", run_dir.log());
}

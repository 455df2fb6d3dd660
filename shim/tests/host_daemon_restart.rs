//! Starts and ends of the daemon: what it cannot start with, what one leaves to the next, and what none may lose.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgroupfs::{Bytes, Limit};
use cgshim::api::SOCKET;
use common::{DiskFile, Ground, Load, LowestLimit, alone, memory, until, without_swap};
use daemons::{Daemon, LIMIT, RunDir, container, known, program, refused, restored};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine needs now and then; not what is promised.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn one_daemon_a_run_directory_and_what_a_dead_one_left_is_in_nobodys_way() {
    let test = "one_daemon_a_run_directory_and_what_a_dead_one_left_is_in_nobodys_way";
    if Ground::new(test).is_none() {
        return;
    }
    let mut daemon = Daemon::with_config("");
    let run = daemon.run_dir();
    let (code, said) = refused(&run, None);
    assert_eq!(code, Some(1), "{said}");
    let pid = format!("pid {}", daemon.child.id());
    assert!(said.contains(&pid) && said.contains("--run-dir"), "{said}");
    // Killed: its socket stays behind, and is replaced.
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(run.join(SOCKET).exists());
    let mut daemon = daemon.dir.serve();
    assert_eq!(daemon.end(), Some(0));
    assert!(!run.join(SOCKET).exists());
    // What is no socket is not removed.
    fs::write(run.join(SOCKET), "mine").unwrap();
    let (code, said) = refused(&run, None);
    assert_eq!(code, Some(1));
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(run.join(SOCKET)).unwrap(), "mine");
    fs::remove_file(run.join(SOCKET)).unwrap();
    // Somebody else's socket, who answers.
    let listener = std::os::unix::net::UnixListener::bind(run.join(SOCKET)).unwrap();
    assert!(refused(&run, None).1.contains("another daemon answers"));
    drop(listener);
}

#[test]
fn what_it_cannot_start_with_is_named_with_the_way_out() {
    if Ground::new("what_it_cannot_start_with_is_named_with_the_way_out").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    for (content, part) in [
        ("[defaults]\nhigh = '80 percent'\n", "config.toml:2:8: "),
        ("[defaults]\nhihg = '80%'\n", "config.toml:2:1: "),
        ("a\n\u{0}", "config.toml:1:2: "),
    ] {
        let config = dir.path().join("config.toml");
        fs::write(&config, content).unwrap();
        let (code, said) = refused(&run, Some(&config));
        assert_eq!(code, Some(1));
        assert!(said.contains(part), "{said}");
    }
    let (_, said) = refused(&run, Some(&dir.path().join("none.toml")));
    assert!(said.contains("none.toml") && said.contains("--config"), "{said}");
    // One that is there, and cannot be read.
    fs::create_dir(dir.path().join("dir.toml")).unwrap();
    let (code, said) = refused(&run, Some(&dir.path().join("dir.toml")));
    assert!(code == Some(1) && said.contains("dir.toml"), "{said}");
    fs::write(dir.path().join("file"), "").unwrap();
    let (code, said) = refused(&dir.path().join("file/run"), None);
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot use the run directory"), "{said}");
    // Full: found at the start, not at the first registration.
    let full = Path::new("/dev/full");
    if full.exists() {
        let run = dir.path().join("full");
        fs::create_dir(&run).unwrap();
        std::os::unix::fs::symlink(full, run.join("cgshimd.lock")).unwrap();
        let (code, said) = refused(&run, None);
        assert_eq!(code, Some(1));
        assert!(said.contains("cgshimd.lock"), "{said}");
    }
    assert_eq!(
        program(&run, None).arg("--frob").stderr(Stdio::null()).status().unwrap().code(),
        Some(2)
    );
}

/// A run directory on a tmpfs of its own, which can be full.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(at: &Path) -> SmallFileSystem {
        fs::create_dir(at).unwrap();
        mount(Some("small"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        SmallFileSystem(at.into())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.filler()).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn on_a_full_run_directory_nothing_is_stepped_that_could_not_be_restored() {
    let test = "on_a_full_run_directory_nothing_is_stepped_that_could_not_be_restored";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let dir = RunDir::new("[defaults]\nwatermark = '50%:40%'\n");
    let small = SmallFileSystem::mount(&dir.path());
    // From the start: named, with the way out.
    small.fill();
    let (code, said) = refused(&small.0, None);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("No space left") && said.contains("free some"), "{said}");
    small.make_room();

    let mut daemon = dir.serve();
    let (before, idle) = container(&ground, "before", LIMIT);
    daemon.register(&known(&ground, "before", idle.pid())).unwrap();
    small.fill();
    // It is taken in, and watched; its limit stays as it is, and people are told why.
    let (group, mut load) = container(&ground, "g", LIMIT);
    let file = DiskFile::new(Bytes::mib(128));
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    let lowest = LowestLimit::watch(memory(&group));
    load.stream(&file, Bytes::mib(300));
    until("it would step", PATIENCE, || {
        let log = daemon.log();
        log.contains("No space left") && log.contains("journal")
    });
    std::thread::sleep(SECOND / 2);
    assert_eq!(daemon.list().len(), 2);
    if ground.v1() {
        assert_eq!(lowest.seen(), LIMIT, "stepped without a place in the journal");
    }
    // What has its place keeps it, and a restore needs no room.
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    let (code, said) = restored(&small.0);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(memory(&before).limit().unwrap(), LIMIT);
    small.make_room();
    daemon = dir.serve();
    assert!(daemon.list().iter().any(|view| view.id == "before"));
    // With room again, it is enforced like any other.
    daemon.release("a").unwrap();
    daemon.register(&known(&ground, "a", load.pid())).unwrap();
    until("it is at work", PATIENCE, || daemon.stat("a").reclaim.rounds > 0);
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(memory(&group).limit().unwrap(), LIMIT);
}

#[test]
fn stopped_in_the_middle_of_its_work_it_leaves_every_declared_limit() {
    let test = "stopped_in_the_middle_of_its_work_it_leaves_every_declared_limit";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let (group, mut load) = container(&ground, "g", LIMIT);
    let file = DiskFile::new(Bytes::mib(128));
    load.stream(&file, Bytes::mib(300));
    for run in 0..10 {
        let mut daemon = Daemon::with_config("[defaults]\nwatermark = '50%:40%'\n");
        daemon.register(&known(&ground, "a", load.pid())).unwrap();
        until("it is at work", PATIENCE, || daemon.stat("a").reclaim.rounds > 0);
        std::thread::sleep(Duration::from_micros(run * 1733));
        assert_eq!(daemon.end(), Some(0), "run {run}");
        assert_eq!(memory(&group).limit().unwrap(), LIMIT, "run {run}");
    }
    assert!(load.is_alive());
}

#[test]
fn a_restart_loses_no_container_no_term_and_no_count() {
    let Some(ground) = Ground::new("a_restart_loses_no_container_no_term_and_no_count") else {
        return;
    };
    let _alone = alone();
    // Not throttled: memory is to be filled up to the limit at once.
    let config = "[defaults]\nhigh = '90%'\nthrottle = 'off'\n";
    let mut daemon = Daemon::with_config(config);
    let (group, mut load) = container(&ground, "g", Limit::Bytes(Bytes::mib(32)));
    without_swap(&group);
    let (_gone, other) = container(&ground, "gone", LIMIT);
    let mut asked = known(&ground, "a", load.pid());
    asked.annotations = [("io.cgshim.high".to_owned(), "50%".to_owned())].into();
    asked.oom_score_adj = Some(-997);
    let first = daemon.register(&asked).unwrap();
    daemon.register(&known(&ground, "b", other.pid())).unwrap();
    daemon.set("a", "watermark", "70%:60%").unwrap();
    let killed = |load: &mut Load| {
        assert!(!load.anon(Bytes::mib(64)), "it outlived 64 of 32 MiB");
        *load = Load::in_group(&group);
    };
    killed(&mut load);
    until("it is counted", PATIENCE, || daemon.stat("a").oom_kills == 1);
    let before = daemon.stat("a");
    for (run, way) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        daemon.signal(way);
        daemon.child.wait().unwrap();
        // Nobody looks, and two are killed.
        killed(&mut load);
        killed(&mut load);
        if run == 0 {
            drop(Load::in_group(&group));
        }
        daemon = daemon.dir.serve();
        let view = daemon.stat("a");
        assert_eq!((&view.class, &view.source), (&before.class, &before.source));
        assert_eq!(
            (view.high_bytes, view.wmark_high_bytes),
            (before.high_bytes, before.wmark_high_bytes)
        );
        assert_eq!(
            (view.since_ms, view.inode, view.pid),
            (before.since_ms, before.inode, before.pid)
        );
        assert!(view.generation > first);
        let kills = 1 + 2 * (run as u64 + 1);
        until("what was killed meanwhile is counted", PATIENCE, || {
            daemon.stat("a").oom_kills == kills
        });
        let announced = || {
            let told = daemon.events().into_iter().filter(|event| event.event == "oom_kill");
            told.filter_map(|event| event.detail["kills"].as_u64()).sum::<u64>()
        };
        until("and announced", PATIENCE, || announced() == 2);
        assert!(daemon.list().iter().any(|view| view.id == "b"));
    }
    // Gone while nobody looked.
    daemon.signal(Signal::SIGKILL);
    daemon.child.wait().unwrap();
    drop(other);
    ground.dir.remove_child("gone", PATIENCE).unwrap();
    daemon = daemon.dir.serve();
    assert!(daemon.log().contains("container b is not gone on with"));
    assert_eq!(daemon.list().len(), 1);
    // Released is released, after a restart too.
    daemon.release("a").unwrap();
    daemon = daemon.next_after(Signal::SIGKILL);
    assert!(daemon.list().is_empty());
    assert_eq!(fs::read_dir(daemon.run_dir().join("containers")).unwrap().count(), 0);
}

/// As an update, or a downgrade, finds it: what the journal alone knew is said to be so, what else is known goes on.
#[test]
fn a_journal_of_another_version_is_moved_aside_and_no_container_is_lost() {
    let test = "a_journal_of_another_version_is_moved_aside_and_no_container_is_lost";
    let Some(ground) = Ground::new(test) else { return };
    let mut daemon = Daemon::with_config("");
    let (group, load) = container(&ground, "g", LIMIT);
    let mut asked = known(&ground, "a", load.pid());
    asked.annotations = [("io.cgshim.high".to_owned(), "50%".to_owned())].into();
    let generation = daemon.register(&asked).unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let run = daemon.run_dir();
    until("its guardian is gone", PATIENCE, || {
        cgshim::journal::RunDir::lock(&run, Duration::ZERO).is_ok()
    });
    let journal = fs::File::options().write(true).open(run.join("journal")).unwrap();
    // The second word of the header is the layout.
    std::os::unix::fs::FileExt::write_all_at(&journal, &99u64.to_le_bytes(), 8).unwrap();
    drop(journal);
    let daemon = daemon.dir.serve();
    let log = daemon.log();
    assert!(log.contains("layout 99") && log.contains("journal.layout-99"), "{log}");
    assert!(run.join("journal.layout-99").exists());
    let view = daemon.stat("a");
    assert_eq!(view.high_bytes, Some(48 << 20));
    assert!(view.generation > generation);
    assert_eq!(memory(&group).limit().unwrap(), LIMIT);
}

#[test]
fn a_restore_from_outside_leaves_a_living_daemon_alone() {
    if Ground::new("a_restore_from_outside_leaves_a_living_daemon_alone").is_none() {
        return;
    }
    let mut daemon = Daemon::with_config("");
    let run = daemon.run_dir();
    let (code, said) = restored(&run);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("nothing to restore"), "{said}");
    assert_eq!(daemon.end(), Some(0));
    let (code, said) = restored(&run);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("0 limits restored"), "{said}");
}

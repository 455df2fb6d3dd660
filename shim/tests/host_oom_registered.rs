//! Containers that are killed, and whose group is removed, as soon as their registration is answered, before a `cgshimd`
//! that can read neither the kernel log nor a tracepoint: what it has not opened by then it never hears of.
//!
//! `CGSHIM_OOM_TIMES` kills, fewer without it, beside `CGSHIM_OOM_HOGS` busy loops.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Limit};
use cgshim::core::oom::{Cause, Record};
use common::{Ground, Load, alone, bar, memory, skip, without_swap};
use daemons::{Daemon, RunDir, known};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn asked(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A daemon in a mount namespace of its own, where `/dev/kmsg` is a socket, which nobody can open, and tracefs is empty.
fn blind() -> nix::Result<Daemon> {
    let dir = RunDir::new("");
    let socket = dir.home().join("no-log");
    let _listener = UnixListener::bind(&socket).unwrap();
    let child = std::thread::scope(|scope| {
        // The namespace is this thread's, and of whoever it starts.
        let started = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(&socket), "/dev/kmsg", none, MsFlags::MS_BIND, none)?;
            for place in ["/sys/kernel/tracing", "/sys/kernel/debug"] {
                if Path::new(place).is_dir() {
                    mount(Some("none"), place, Some("tmpfs"), MsFlags::empty(), none)?;
                }
            }
            Ok(dir.command().spawn().unwrap())
        });
        started.join().unwrap()
    })?;
    let daemon = Daemon { child, dir };
    daemon.until_it_answers();
    Ok(daemon)
}

/// Keeps CPUs busy until it is dropped, and ends with this process.
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn new() -> Hogs {
        let end = Arc::new(AtomicBool::new(false));
        for _ in 0..asked("CGSHIM_OOM_HOGS", 0) {
            let end = end.clone();
            std::thread::spawn(move || while !end.load(Ordering::Relaxed) {});
        }
        Hogs(end)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Registers one, kills it at once, and removes its group as soon as that can be: its directory, and how long the answer
/// took.
fn register_and_kill(ground: &Ground, daemon: &Daemon, name: &str) -> (PathBuf, Duration) {
    let group = ground.group(name);
    let directory = group.path().to_path_buf();
    without_swap(&group);
    memory(&group).set_limit(Limit::Bytes(Bytes::mib(8))).unwrap();
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(4)));
    let who = known(ground, name, load.pid());
    drop(group);
    let start = Instant::now();
    daemon.register(&who).unwrap();
    let took = start.elapsed();
    assert!(!load.anon(Bytes::mib(8)));
    loop {
        match fs::remove_dir(&directory) {
            Ok(()) => return (directory, took),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                assert!(start.elapsed() < 60 * SECOND, "{error}");
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// So many, `threads` at a time: their directories, and how long their answers took, the shortest first.
fn kills(
    ground: &Ground,
    daemon: &Daemon,
    all: u64,
    threads: u64,
) -> (Vec<PathBuf>, Vec<Duration>) {
    let (next, done) = (AtomicU64::new(0), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= all {
                        return;
                    }
                    let killed = register_and_kill(ground, daemon, &format!("c{threads}-{n}"));
                    done.lock().unwrap().push(killed);
                }
            });
        }
    });
    let (directories, mut took): (Vec<_>, Vec<_>) = done.into_inner().unwrap().into_iter().unzip();
    took.sort_unstable();
    (directories, took)
}

/// The records of a daemon once there are `n`, or `patience` is over.
fn records(daemon: &Daemon, n: usize, patience: Duration) -> Vec<Record> {
    let start = Instant::now();
    loop {
        let records = cgshim::oom::all(&daemon.run_dir()).unwrap();
        let settled = records.iter().filter(|record| record.settled).count();
        if settled >= n || start.elapsed() > patience {
            return records;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_container_killed_and_removed_right_after_its_registration_is_on_record_without_the_log() {
    let test =
        "a_container_killed_and_removed_right_after_its_registration_is_on_record_without_the_log";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let _hogs = Hogs::new();
    for threads in [1, 8] {
        let daemon = match blind() {
            Ok(daemon) => daemon,
            Err(errno) => return skip(test, &format!("no mount namespace: {errno}")),
        };
        let (directories, took) = kills(&ground, &daemon, asked("CGSHIM_OOM_TIMES", 40), threads);
        let n = directories.len();
        let records = records(&daemon, n, bar(5 * SECOND));
        let of = |directory: &PathBuf| {
            let directory = directory.display().to_string();
            records.iter().filter(move |record| record.cgroup == directory).collect::<Vec<_>>()
        };
        let lost = directories.iter().filter(|directory| of(directory).is_empty()).count();
        let unread = records.iter().filter(|record| record.kills == 0).count();
        let _ = writeln!(
            std::io::stderr(),
            "{n} kills, {threads} at a time: {lost} are not on record, {unread} without their counter; answered in \
             {:.1?}, {:.1?}, {:.1?} (p50, p99, longest)",
            took[n / 2],
            took[n * 99 / 100],
            took[n - 1]
        );
        for directory in &directories {
            let mine = of(directory);
            // The counter is all that v2 has to tell, at most once in 10 ms, and it goes with the group.
            if mine.is_empty() && !ground.v1() {
                continue;
            }
            let [record] = mine[..] else { panic!("{}: {mine:#?}", directory.display()) };
            assert_eq!(record.cause, Cause::OwnLimit, "{record:#?}");
            assert_eq!(record.victim, None, "{record:#?}");
        }
        assert_eq!(records.len(), n - lost, "and no other");
    }
}

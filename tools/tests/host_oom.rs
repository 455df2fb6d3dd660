//! Real OOM kills in number: none is missed, however soon its group is removed, and what the records say of those whose
//! log is not to be had, or is hostile. `CGSHIM_OOM_TIMES` kills, fewer without it.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;
mod oom_bed;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Cgroup};
use cgshim::core::oom::{Cause, From, Record};
use cgshim::driver::oom::OomOptions;
use cgshim::oom::{Found, all, find};
use common::{Ground, Load, alone, skip};
use oom_bed::{SECOND, Watching, go, greedy, limit, remove, victim};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the tests that say so repeat: as often as the environment says, less without.
fn times(default: u64) -> u64 {
    let asked = std::env::var("CGSHIM_OOM_TIMES").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(default)
}

/// Kills, each in a group of its own that is removed at once, `threads` at a time. Records and pids.
fn kill_and_remove(
    ground: &Ground,
    watching: &Watching,
    all: u64,
    threads: u64,
) -> (Vec<Record>, Vec<(String, i32)>) {
    let next = AtomicU64::new(0);
    let killed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= all {
                        return;
                    }
                    let name = format!("k{n}");
                    let group = ground.group(&name);
                    limit(&group, Bytes::mib(8));
                    let mut child = greedy(&group);
                    let pid = child.id();
                    watching.add(&group, Some(pid));
                    go(&mut child);
                    child.wait().unwrap();
                    let path = group.path().display().to_string();
                    drop(group);
                    remove(ground, &name);
                    killed.lock().unwrap().push((path, i32::try_from(pid).unwrap()));
                }
            });
        }
    });
    let records = watching.records(usize::try_from(all).unwrap(), 3 * SECOND);
    (records, killed.into_inner().unwrap())
}

fn each_has_its_record(records: &[Record], killed: &[(String, i32)], log: bool) {
    assert_eq!(records.len(), killed.len());
    let mut wrong = Vec::new();
    for (path, pid) in killed {
        let mine: Vec<&Record> = records.iter().filter(|record| record.cgroup == *path).collect();
        let right = mine.len() == 1
            && mine[0].cause == Cause::OwnLimit
            && victim(mine[0]) == log.then_some(*pid);
        if !right {
            wrong.push((path, pid, mine));
        }
    }
    assert!(wrong.is_empty(), "{} of {} wrong: {:#?}", wrong.len(), killed.len(), wrong.first());
}

#[test]
fn kills_whose_group_is_removed_at_once_are_all_on_record() {
    let Some(ground) = Ground::new("kills_whose_group_is_removed_at_once_are_all_on_record") else {
        return;
    };
    let _alone = alone();
    for threads in [1, 8] {
        let watching = Watching::new();
        let (records, killed) = kill_and_remove(&ground, &watching, times(40), threads);
        each_has_its_record(&records, &killed, watching.sees_the_log());
        let on_disk = all(watching.run_dir()).unwrap();
        assert_eq!(on_disk.len(), records.len().min(cgshim::oom::MOST_RECORDS));
    }
}

#[test]
fn without_the_log_they_are_on_record_with_no_victim() {
    let Some(ground) = Ground::new("without_the_log_they_are_on_record_with_no_victim") else {
        return;
    };
    let _alone = alone();
    for threads in [1, 8] {
        let watching = Watching::blind();
        let (records, mut killed) = kill_and_remove(&ground, &watching, times(40), threads);
        if !ground.v1() {
            // The counter is all that v2 tells, at most once in 10 ms, and it goes with the group. What is on
            // record is right all the same.
            killed.retain(|(path, _)| records.iter().any(|record| record.cgroup == *path));
        }
        each_has_its_record(&records, &killed, false);
    }
}

/// A process that is in `group` from its start, and exits once its standard input is closed.
fn short(group: &Cgroup) -> Child {
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg("echo $$ > \"$0\" && echo && read -r go")
        .arg(group.path().join("cgroup.procs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    child
}

#[test]
fn clean_exits_with_removal_right_after_leave_no_record() {
    let Some(ground) = Ground::new("clean_exits_with_removal_right_after_leave_no_record") else {
        return;
    };
    let _alone = alone();
    let watching = Watching::new();
    let (exits, next) = (times(40) * 10, AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= exits {
                        return;
                    }
                    let name = format!("e{n}");
                    let group = ground.group(&name);
                    let mut child = short(&group);
                    watching.add(&group, Some(child.id()));
                    drop(child.stdin.take());
                    assert!(!child.wait().unwrap().success());
                    drop(group);
                    remove(&ground, &name);
                }
            });
        }
    });
    assert_eq!(watching.records(1, 3 * SECOND), []);
    assert_eq!(all(watching.run_dir()).unwrap(), []);
}

/// Has this thread measure at real-time priority, not its children: at a normal one it would wait for a tick now and
/// then, while a dying process gives back its memory. Without `chrt` it does.
fn real_time() {
    let tid = nix::unistd::gettid().to_string();
    let _ = Command::new("chrt").args(["-R", "-f", "-p", "1", &tid]).status();
}

/// Keeps CPUs busy until it is dropped: as many as `CGSHIM_OOM_HOGS` says, none without.
struct Hogs(Arc<std::sync::atomic::AtomicBool>);

impl Hogs {
    fn new() -> Hogs {
        let asked = std::env::var("CGSHIM_OOM_HOGS").ok().and_then(|text| text.parse().ok());
        let end = Arc::new(std::sync::atomic::AtomicBool::new(false));
        for _ in 0..asked.unwrap_or(0) {
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

#[test]
fn a_record_is_readable_within_milliseconds_of_its_kill() {
    let Some(ground) = Ground::new("a_record_is_readable_within_milliseconds_of_its_kill") else {
        return;
    };
    let _alone = alone();
    let watching = Watching::new();
    let _hogs = Hogs::new();
    real_time();
    let dir = cgshim::oom::directory(watching.run_dir());
    let mut late: Vec<Duration> = Vec::new();
    for n in 0..times(40) {
        let name = format!("l{n}");
        let group = ground.group(&name);
        let files = limit(&group, Bytes::mib(8));
        let mut child = greedy(&group);
        // Names begin with the time, and a file has its name once it is whole.
        let newest = || {
            let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with("oom-")).max()
        };
        // The last one's record is settled by then.
        assert_eq!(watching.records(usize::from(n > 0), 5 * SECOND).len(), usize::from(n > 0));
        let before = newest();
        watching.add(&group, Some(child.id()));
        go(&mut child);
        // The counter, as close as another process can see it.
        let rose = loop {
            match files.counters() {
                Ok(counters) if counters.oom_kill.unwrap_or(0) > 0 => break Instant::now(),
                Ok(_) => std::thread::sleep(Duration::from_micros(50)),
                Err(error) => panic!("{error}"),
            }
        };
        let seen = loop {
            if newest() != before {
                break Instant::now();
            }
            assert!(rose.elapsed() < 60 * SECOND, "no record after a minute");
            std::thread::sleep(Duration::from_micros(50));
        };
        late.push(seen - rose);
        child.wait().unwrap();
        drop((files, group));
        remove(&ground, &name);
    }
    late.sort_unstable();
    let at = |share: usize| late[(late.len() * share / 100).min(late.len() - 1)];
    use std::io::Write;
    let _ = writeln!(
        std::io::stderr(),
        "kill to readable record: p50 {:?}, p90 {:?}, p99 {:?}, worst {:?} of {}",
        at(50),
        at(90),
        at(99),
        late[late.len() - 1],
        late.len()
    );
    // The promise is 5 ms at p99; a test machine may be busy with other tests, and v2 tells of events at most
    // once in 10 ms.
    let emulated = std::env::var_os("CGSHIM_LANE").is_some();
    assert!(at(50) < Duration::from_millis(if emulated { 200 } else { 20 }), "{late:?}");
}

/// tracefs at a place of the test's own.
struct Tracefs(tempfile::TempDir);

impl Tracefs {
    fn mount() -> nix::Result<Tracefs> {
        let dir = tempfile::tempdir().unwrap();
        nix::mount::mount(
            Some("none"),
            dir.path(),
            Some("tracefs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?;
        Ok(Tracefs(dir))
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn where_the_log_cannot_be_read_the_tracepoint_names_the_victim() {
    let test = "where_the_log_cannot_be_read_the_tracepoint_names_the_victim";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let tracefs = match Tracefs::mount() {
        Ok(tracefs) if tracefs.0.path().join("events/oom/mark_victim").is_dir() => tracefs,
        Ok(_) => return skip(test, "this kernel has no oom:mark_victim"),
        Err(errno) => return skip(test, &format!("no tracefs: {errno}")),
    };
    let places = vec![tracefs.0.path().to_path_buf()];
    let log = PathBuf::from("/nonexistent/kmsg");
    let watching = Watching::with(OomOptions { log, tracefs: places, ..OomOptions::default() });
    assert!(watching.watch.sources().tracepoint && !watching.sees_the_log());
    let group = ground.group("c");
    limit(&group, Bytes::mib(32));
    let mut init = Load::in_group(&group);
    let mut child = Load::in_group(&group);
    watching.add(&group, Some(init.pid()));
    assert!(!child.anon(Bytes::mib(64)));
    let record = watching.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
    assert_eq!(victim(&record), Some(i32::try_from(child.pid()).unwrap()), "{record:#?}");
    assert_eq!(record.from["victim"], From::Tracepoint);
    assert!(init.is_alive());
    // Nothing of ours stays there.
    drop(watching);
    let mut left = std::fs::read_dir(tracefs.0.path().join("instances")).unwrap();
    let own = format!("cgshim-{}", std::process::id());
    assert!(left.all(|entry| entry.unwrap().file_name() != *own));
}

#[test]
fn a_victim_whose_name_is_hostile_bytes_comes_out_escaped() {
    let Some(ground) = Ground::new("a_victim_whose_name_is_hostile_bytes_comes_out_escaped") else {
        return;
    };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    limit(&group, Bytes::mib(16));
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(
            "echo $$ > \"$0\" && printf 'a) t\\033[2J\\n\\377,x=' > /proc/$$/comm && read -r go; \
             s=0123456789abcdef; while :; do s=$s$s; done",
        )
        .arg(group.path().join("cgroup.procs"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    watching.add(&group, Some(child.id()));
    std::thread::sleep(SECOND / 2);
    go(&mut child);
    assert!(!child.wait().unwrap().success());
    let record = watching.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
    if watching.sees_the_log() {
        let victim = record.victim.unwrap();
        assert_eq!(victim.pid, i32::try_from(child.id()).unwrap());
        assert_eq!(victim.comm.as_deref(), Some(r"a) t\x1b[2J\x0a\xff,x="));
    }
}

#[test]
fn a_log_in_flood_hides_no_kill_and_what_was_lost_is_not_guessed() {
    let test = "a_log_in_flood_hides_no_kill_and_what_was_lost_is_not_guessed";
    let Some(ground) = Ground::new(test) else { return };
    let limits = Path::new("/proc/sys/kernel/printk_devkmsg");
    if std::env::var_os("CGSHIM_LANE").is_none() {
        return skip(test, "a machine's log is for all that run on it: only in a virtual machine");
    }
    let _ = std::fs::write(limits, "on");
    if !std::fs::read(limits).is_ok_and(|what| what.trim_ascii() == b"on") {
        return skip(test, "printk_devkmsg is not on, and cannot be switched on");
    }
    let _alone = alone();
    let watching = Watching::new();
    let end = std::sync::atomic::AtomicBool::new(false);
    let (records, pids) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let line = format!("<7>{}", "flood ".repeat(60));
            while !end.load(Ordering::Relaxed) {
                let _ = std::fs::write("/dev/kmsg", &line);
            }
        });
        let mut pids = Vec::new();
        for n in 0..8 {
            let group = ground.group(&format!("f{n}"));
            limit(&group, Bytes::mib(8));
            let mut child = greedy(&group);
            watching.add(&group, Some(child.id()));
            go(&mut child);
            child.wait().unwrap();
            pids.push((group.path().display().to_string(), i32::try_from(child.id()).unwrap()));
        }
        let records = watching.records(8, 20 * SECOND);
        end.store(true, Ordering::Relaxed);
        (records, pids)
    });
    for (path, pid) in &pids {
        let mine: Vec<&Record> = records.iter().filter(|record| record.cgroup == *path).collect();
        let [record] = mine[..] else { panic!("{path}: {records:#?}") };
        assert_eq!((record.kills, record.cause), (1, Cause::OwnLimit), "{record:#?}");
        assert!(victim(record).is_none_or(|victim| victim == *pid), "{record:#?}");
        assert_eq!(victim(record).is_none(), !record.unknown.is_empty(), "{record:#?}");
    }
}

#[test]
fn a_clock_is_needed_by_nobody_and_ids_are_found_until_they_expire() {
    let Some(ground) =
        Ground::new("a_clock_is_needed_by_nobody_and_ids_are_found_until_they_expire")
    else {
        return;
    };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("named-c");
    limit(&group, Bytes::mib(32));
    let mut load = Load::in_group(&group);
    watching.add(&group, Some(load.pid()));
    assert!(!load.anon(Bytes::mib(64)));
    let record = watching.only();
    assert_eq!(record.from["kills"], From::OomKill);
    let own = group.path().display().to_string();
    for word in [&*record.id, "named-c", "name", &own] {
        assert!(matches!(find(watching.run_dir(), word).unwrap(), Found::Records(_)), "{word}");
    }
    assert!(matches!(find(watching.run_dir(), "other").unwrap(), Found::Unknown));
}

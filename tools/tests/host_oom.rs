//! Real OOM kills, and what is put on record of them.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::core::oom::{Cause, From, Record};
use cgshim::driver::oom::{Deeds, Identity, OomOptions, OomWatch, Told};
use cgshim::oom::{Found, all, find};
use common::{Ground, Load, alone, memory, skip, without_swap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A watch with a store of its own.
struct Watching {
    watch: OomWatch,
    run_dir: tempfile::TempDir,
    keys: AtomicU64,
}

impl Watching {
    fn new() -> Watching {
        Watching::with(OomOptions::default())
    }

    /// One that can read neither the kernel log nor a tracepoint.
    fn blind() -> Watching {
        let log = PathBuf::from("/nonexistent/kmsg");
        Watching::with(OomOptions { log, tracefs: Vec::new(), ..OomOptions::default() })
    }

    fn with(options: OomOptions) -> Watching {
        let run_dir = tempfile::tempdir().unwrap();
        let run_dir_path = Some(run_dir.path().to_path_buf());
        let watch = OomWatch::start(OomOptions { run_dir: run_dir_path, ..options }).unwrap();
        Watching { watch, run_dir, keys: AtomicU64::new(1) }
    }

    fn sees_the_log(&self) -> bool {
        self.watch.sources().log.is_ok()
    }

    fn add(&self, group: &Arc<Cgroup>, init: Option<u32>) -> u64 {
        let key = self.keys.fetch_add(1, Ordering::SeqCst);
        let init = init.map(|pid| i32::try_from(pid).unwrap());
        let identity = Identity { init, ..Identity::default() };
        self.watch.watch(key, group.clone(), None, identity, Arc::new(Deeds::default()));
        key
    }

    /// The records that are told of within `patience`, once `n` are there.
    fn records(&self, n: usize, patience: Duration) -> Vec<Record> {
        let (start, mut records) = (Instant::now(), Vec::new());
        while records.len() < n {
            let left = patience.saturating_sub(start.elapsed());
            match self.watch.next(left) {
                Some(Told::Record(_, record)) => records.push(*record),
                Some(_) => {}
                None => break,
            }
        }
        records
    }

    /// The only one; nothing more comes.
    fn only(&self) -> Record {
        let mut records = self.records(1, 10 * SECOND);
        records.extend(self.records(1, SECOND / 2));
        assert_eq!(records.len(), 1, "{records:#?}");
        let record = records.remove(0);
        // Any process finds the same on disk.
        match find(self.run_dir.path(), &record.id).unwrap() {
            Found::Records(found) => assert_eq!(found, std::slice::from_ref(&record)),
            other => panic!("{other:?}"),
        }
        record
    }

    fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn limit(group: &Arc<Cgroup>, size: Bytes) -> Arc<dyn Memory> {
    let memory = memory(group);
    without_swap(group);
    memory.set_limit(Limit::Bytes(size)).unwrap();
    memory
}

/// The path that the kernel log has for a group.
fn path_of(ground: &Ground, group: &Cgroup) -> String {
    let relative = group.path().strip_prefix(&ground.hierarchy.mount_point).unwrap();
    format!("/{}", relative.display())
}

fn victim(record: &Record) -> Option<i32> {
    record.victim.as_ref().map(|victim| victim.pid)
}

/// A process that fills more than it may, in `group` from its start; once it is told to go.
fn greedy(group: &Cgroup) -> Child {
    let procs = group.path().join("cgroup.procs");
    Command::new("/bin/sh")
        .arg("-c")
        .arg("echo $$ > \"$0\" && read -r go && exec \"$@\"")
        .arg(procs)
        .arg(cgctl::memload())
        .args(["anon", "--size", "256M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Tells it to go. By then the watch has its container: it takes orders at once, at real-time priority.
fn go(child: &mut Child) {
    use std::io::Write;
    std::thread::sleep(Duration::from_millis(10));
    match child.stdin.take().unwrap().write_all(b"go\n") {
        Ok(()) => {}
        // In a storm anybody is killed, also who has yet to be told.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}"),
    }
}

/// Removes a group whose last process has just exited.
fn remove(ground: &Ground, name: &str) {
    ground.dir.remove_child(name, 5 * SECOND).unwrap();
}

#[test]
fn a_child_is_killed_and_init_lives() {
    let Some(ground) = Ground::new("a_child_is_killed_and_init_lives") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    limit(&group, Bytes::mib(64));
    let mut init = Load::in_group(&group);
    let mut child = Load::in_group(&group);
    watching.add(&group, Some(init.pid()));
    assert!(!child.anon(Bytes::mib(96)));
    let record = watching.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
    assert_eq!(record.limit_cgroup, Some(path_of(&ground, &group)));
    assert_eq!(record.init_survived, Some(true));
    assert_eq!(record.generation, group.inode());
    assert_eq!(record.limit_in_force_bytes, Some(64 << 20));
    // v2 tells of it when it happens, and on a busy machine what was there is gone by then: the record says so.
    if ground.v1() || record.from["usage_bytes"] == From::FilesBefore {
        let usage = record.usage_bytes.unwrap();
        assert!(usage > 32 << 20 && usage <= 64 << 20, "{usage}");
        assert!(record.breakdown.anon_bytes.unwrap() > 32 << 20, "{:?}", record.breakdown);
    } else {
        assert_eq!(record.from["usage_bytes"], From::FilesAfter);
    }
    if watching.sees_the_log() {
        assert_eq!(victim(&record), Some(i32::try_from(child.pid()).unwrap()));
        assert!(record.unknown.is_empty(), "{:?}", record.unknown);
    }
    assert!(init.is_alive());
}

#[test]
fn init_itself_is_killed() {
    let Some(ground) = Ground::new("init_itself_is_killed") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    limit(&group, Bytes::mib(48));
    let mut init = Load::in_group(&group);
    watching.add(&group, Some(init.pid()));
    assert!(!init.anon(Bytes::mib(96)));
    let record = watching.only();
    assert_eq!((record.cause, record.init_survived), (Cause::OwnLimit, Some(false)));
    if watching.sees_the_log() {
        assert_eq!(victim(&record), Some(i32::try_from(init.pid()).unwrap()));
    }
}

#[test]
fn the_limit_of_the_group_above_is_named_and_an_idle_sibling_has_no_record() {
    let test = "the_limit_of_the_group_above_is_named_and_an_idle_sibling_has_no_record";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    for watching in [Watching::new(), Watching::blind()] {
        let pod = Arc::new({
            let made = ground.dir.create_child("pod").unwrap();
            ground.hierarchy.enable_memory(made.path()).unwrap()
        });
        limit(&pod, Bytes::mib(48));
        let (a, b) =
            (Arc::new(pod.create_child("a").unwrap()), Arc::new(pod.create_child("b").unwrap()));
        without_swap(&a);
        let mut idle = Load::in_group(&b);
        let mut load = Load::in_group(&a);
        watching.add(&a, Some(load.pid()));
        watching.add(&b, Some(idle.pid()));
        assert!(!load.anon(Bytes::mib(96)));
        let record = watching.only();
        assert_eq!(record.cgroup, a.path().display().to_string());
        assert_eq!(record.cause, Cause::AncestorLimit, "{record:#?}");
        assert_eq!(record.limit_cgroup, Some(path_of(&ground, &pod)));
        assert_eq!(record.ancestor_limit_bytes, Some(48 << 20));
        match watching.sees_the_log() {
            true => assert_eq!(victim(&record), Some(i32::try_from(load.pid()).unwrap())),
            // By what the kernel told of the groups alone; who it was nobody guesses.
            false => assert_eq!((victim(&record), record.unknown.len()), (None, 1)),
        }
        assert!(idle.is_alive());
        drop((load, idle));
        pod.remove_child("a", 5 * SECOND).unwrap();
        pod.remove_child("b", 5 * SECOND).unwrap();
        drop(pod);
        remove(&ground, "pod");
    }
}

#[test]
fn two_groups_at_once_each_have_their_own_victim() {
    let Some(ground) = Ground::new("two_groups_at_once_each_have_their_own_victim") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let groups = [ground.group("a"), ground.group("b")];
    let mut loads: Vec<Load> = groups
        .iter()
        .map(|group| {
            limit(group, Bytes::mib(48));
            let load = Load::in_group(group);
            watching.add(group, Some(load.pid()));
            load
        })
        .collect();
    std::thread::scope(|scope| {
        for load in &mut loads {
            scope.spawn(|| assert!(!load.anon(Bytes::mib(96))));
        }
    });
    let records = watching.records(2, 10 * SECOND);
    assert_eq!(records.len(), 2);
    for (group, load) in groups.iter().zip(&loads) {
        let own = group.path().display().to_string();
        let record = records.iter().find(|record| record.cgroup == own).unwrap();
        assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
        if watching.sees_the_log() {
            assert_eq!(victim(record), Some(i32::try_from(load.pid()).unwrap()));
        }
    }
}

#[test]
fn a_kill_in_a_group_beneath_is_the_containers() {
    let Some(ground) = Ground::new("a_kill_in_a_group_beneath_is_the_containers") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let made = ground.dir.create_child("c").unwrap();
    let group = Arc::new(ground.hierarchy.enable_memory(made.path()).unwrap());
    let inner = Arc::new(group.create_child("inner").unwrap());
    limit(&inner, Bytes::mib(32));
    watching.add(&group, None);
    let mut load = Load::in_group(&inner);
    assert!(!load.anon(Bytes::mib(64)));
    let record = watching.only();
    assert_eq!((record.cgroup, record.kills), (group.path().display().to_string(), 1));
    if watching.sees_the_log() {
        assert_eq!(record.cause, Cause::OwnLimit);
        assert_eq!(record.limit_cgroup, Some(path_of(&ground, &inner)));
        assert_eq!(record.victim.unwrap().pid, i32::try_from(load.pid()).unwrap());
    }
}

#[test]
fn tmpfs_that_fills_the_limit_is_seen_in_the_breakdown() {
    let Some(ground) = Ground::new("tmpfs_that_fills_the_limit_is_seen_in_the_breakdown") else {
        return;
    };
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return skip("tmpfs_that_fills_the_limit_is_seen_in_the_breakdown", "no /dev/shm");
    }
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    limit(&group, Bytes::mib(48));
    let file = shm.join(format!("cgshim-test-{}", std::process::id()));
    let mut init = Load::in_group(&group);
    watching.add(&group, Some(init.pid()));
    let mut writer = Command::new("/bin/sh")
        .arg("-c")
        .arg("echo $$ > \"$0\" && exec dd if=/dev/zero of=\"$1\" bs=64k count=1536")
        .arg(group.path().join("cgroup.procs"))
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let records = watching.records(1, 20 * SECOND);
    // tmpfs does not go with its writer: until the file is deleted more may die.
    std::fs::remove_file(&file).unwrap();
    let _ = writer.kill();
    let _ = writer.wait();
    let record = &records[0];
    assert_eq!(record.cause, Cause::OwnLimit);
    assert!(record.breakdown.shmem_bytes.unwrap() > 16 << 20, "{:?}", record.breakdown);
    let _ = init.is_alive();
}

#[test]
fn a_storm_of_kills_is_counted_to_the_last() {
    let Some(ground) = Ground::new("a_storm_of_kills_is_counted_to_the_last") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    let files = limit(&group, Bytes::mib(24));
    let key = watching.add(&group, None);
    for _ in 0..3 {
        let mut storm: Vec<Child> = (0..8).map(|_| greedy(&group)).collect();
        storm.iter_mut().for_each(go);
        for mut child in storm {
            child.wait().unwrap();
        }
    }
    std::thread::sleep(SECOND);
    let counted = files.counters().unwrap().oom_kill.unwrap();
    watching.watch.unwatch(key);
    let records = watching.records(1000, 2 * SECOND);
    let kills: u64 = records.iter().map(|record| record.kills).sum();
    assert_eq!(kills, counted);
    assert!(kills >= 24 || records.iter().all(|record| record.cause == Cause::OwnLimit), "{kills}");
    if watching.sees_the_log() {
        let mut victims: Vec<i32> = records.iter().filter_map(victim).collect();
        assert_eq!(victims.len(), records.len(), "a victim is not known");
        victims.sort_unstable();
        victims.dedup();
        assert_eq!(victims.len(), records.len(), "a victim is named twice");
    }
}

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
    let dir = cgshim::oom::directory(watching.run_dir());
    let mut late: Vec<Duration> = Vec::new();
    for n in 0..times(40) {
        let name = format!("l{n}");
        let group = ground.group(&name);
        let files = limit(&group, Bytes::mib(8));
        let mut child = greedy(&group);
        let mine = group.path().display().to_string();
        // Listing a thousand records would take as long as what is measured: the directory's time of change
        // says when it is worth it.
        let changed = || std::fs::metadata(&dir).unwrap().modified().unwrap();
        // The last one's record is settled by then, and changes the directory no more.
        assert_eq!(watching.records(usize::from(n > 0), 5 * SECOND).len(), usize::from(n > 0));
        let before = changed();
        let on_disk = || {
            changed() != before
                && all(watching.run_dir()).unwrap().iter().any(|record| record.cgroup == mine)
        };
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
            let now = Instant::now();
            if changed() != before {
                break now;
            }
            assert!(rose.elapsed() < 5 * SECOND, "no record after 5 s");
            std::thread::sleep(Duration::from_micros(50));
        };
        assert!(on_disk(), "the directory changed for something else");
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
    assert!(at(50) < Duration::from_millis(if emulated { 200 } else { 5 }), "{late:?}");
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
    if std::env::var_os("CGSHIM_LANE").is_none() || std::fs::write(limits, "on").is_err() {
        return skip(test, "a machine's log is for all that run on it: only in a virtual machine");
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

//! A disk that does not answer, beneath the dirty page cache of containers above their highs: whoever writes it back
//! waits in the kernel, where no signal reaches. cgroup v1, where that is a worker of ours.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgroupfs::{Bytes, Limit};
use common::{DiskFile, Ground, Load, alone, bar, memory, skip, until, without_swap};
use daemons::{Daemon, RunDir, container, known};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nix::unistd::{SysconfVar, sysconf};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine needs now and then; not what is promised.
const PATIENCE: Duration = Duration::from_secs(30);
const LIMIT: Limit = Limit::Bytes(Bytes::mib(128));

/// A file system whose disk is a file in another one: when that is frozen, the disk does not answer. Thawed and taken
/// down when dropped, and by a process of its own, should this one be killed.
struct Disk {
    home: tempfile::TempDir,
    keeper: Child,
}

impl Disk {
    /// `None`, having said so, where there is no such thing.
    fn new(test: &str) -> Option<Disk> {
        let home = tempfile::tempdir_in(common::data_dir()).unwrap();
        let keeper = command("sh")
            .args(["-c", KEEPER, "sh", &std::process::id().to_string()])
            .arg(home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let disk = Disk { home, keeper };
        let made = disk
            .make("outer", disk.home.path(), 320)
            .and_then(|()| disk.make("inner", &disk.at("outer"), 256));
        match made {
            Ok(()) => Some(disk),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// An ext4 of so many MiB in a file in `dir`, mounted at `name`.
    fn make(&self, name: &str, dir: &Path, mib: u64) -> Result<(), String> {
        let image = dir.join("image");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).map_err(|e| e.to_string())?;
        fs::create_dir(self.at(name)).unwrap();
        let run = |command: &mut Command| match command.output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("{command:?}: {error}")),
        };
        run(command("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image))?;
        run(command("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(self.at(name)))
    }

    /// The disk answers no more, or again.
    fn freeze(&self, frozen: bool) -> bool {
        let mut command = command("fsfreeze");
        command.arg(if frozen { "-f" } else { "-u" }).arg(self.at("outer"));
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

/// In place of a test that is killed, or takes far too long.
const KEEPER: &str = "trap '' HUP INT TERM
    n=0; while [ $n -lt 90 ] && kill -0 $1; do sleep 1; n=$((n + 1)); done
    fsfreeze -u $2/outer; umount -l $2/inner; umount -l $2/outer; rm -rf $2";

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.freeze(false);
        let here = |path: &Path| fs::metadata(path).map_or(0, |found| found.dev());
        for mount in [self.at("inner"), self.at("outer")] {
            let start = Instant::now();
            while mount.exists() && here(&mount) != here(self.home.path()) {
                let _ = command("umount").arg(&mount).stderr(Stdio::null()).status();
                if start.elapsed() > 10 * SECOND {
                    // The keeper sees to it.
                    return;
                }
                std::thread::sleep(SECOND / 50);
            }
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A program of the system administrator's.
fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", path + ":/usr/sbin:/sbin").stdin(Stdio::null());
    command
}

/// CPU time of a process.
fn cpu(daemon: &Daemon) -> Duration {
    let pid = daemon.child.id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let hertz = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as u64;
    Duration::from_millis(ticks * 1000 / hertz)
}

/// Threads of it that wait where no signal reaches, and have done so for a while: none of them has run meanwhile.
fn waiting(daemon: &Daemon) -> usize {
    let look = || -> BTreeSet<(PathBuf, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().flatten();
        let status = |path: PathBuf| Some((fs::read_to_string(path.join("status")).ok()?, path));
        let all = tasks.filter_map(|task| status(task.path()));
        let waiting = all.filter(|(status, _)| status.contains("State:\tD"));
        waiting
            .map(|(status, path)| (path, status.split("voluntary").nth(1).unwrap().into()))
            .collect()
    };
    let before = look();
    std::thread::sleep(SECOND / 4);
    before.intersection(&look()).count()
}

/// A daemon, two containers that write to a disk which does not answer any more, and two that have nothing to do with
/// it. The daemon's workers, of which there are two, wait for the disk. Loads first.
struct Stuck {
    writers: [Load; 2],
    reader: Load,
    grower: Load,
    daemon: Daemon,
    disk: Disk,
    file: DiskFile,
    ground: Ground,
}

impl Drop for Stuck {
    /// Before anybody is waited for.
    fn drop(&mut self) {
        self.disk.freeze(false);
    }
}

impl Stuck {
    fn new(test: &str) -> Option<Stuck> {
        let ground = Ground::new(test)?;
        if !ground.v1() {
            skip(test, "v2 has memory.high: nothing is written back by us");
            return None;
        }
        let disk = Disk::new(test)?;
        let config =
            "[daemon]\nworkers = 2\n[defaults]\nhigh = '48M'\nthrottle = 'on'\nway_out = 'never'\n";
        let daemon = RunDir::new(config).serve();
        let file = DiskFile::sparse(Bytes::mib(256));
        let load = |id: &str| {
            let (group, load) = container(&ground, id, LIMIT);
            without_swap(&group);
            daemon.register(&known(&ground, id, load.pid())).unwrap();
            load
        };
        let [a, b, reader, grower] = ["a", "b", "reader", "grower"].map(load);
        let mut stuck = Stuck { writers: [a, b], reader, grower, daemon, disk, file, ground };
        stuck.begin();
        Some(stuck)
    }

    fn begin(&mut self) {
        self.reader.stream(&self.file, Bytes::mib(200));
        self.grower.grow(Bytes::mib(40), Bytes::mib(120));
        let rounds = || self.daemon.stat("reader").reclaim.rounds;
        until("the reader is reclaimed from", PATIENCE, || rounds() > 3);
        assert!(self.disk.freeze(true));
        for (load, name) in self.writers.iter_mut().zip(["a", "b"]) {
            let path = self.disk.at("inner").join(name);
            load.tell(&format!("dirty {} {}", 40 << 20, path.display())).unwrap();
        }
        until("both workers wait for the disk", PATIENCE, || waiting(&self.daemon) >= 2);
    }

    fn pulses(&self, id: &str) -> u64 {
        self.daemon.stat(id).throttled.map_or(0, |throttled| throttled.pulses)
    }

    /// Nobody waits for the disk, which answers again.
    fn thaw(&self) {
        assert!(self.disk.freeze(false));
    }
}

#[test]
fn others_are_reclaimed_from_throttled_and_listed_while_containers_wait_for_a_disk() {
    let test = "others_are_reclaimed_from_throttled_and_listed_while_containers_wait_for_a_disk";
    let _alone = alone();
    let Some(mut at) = Stuck::new(test) else { return };
    until("the grower is throttled", PATIENCE, || at.pulses("grower") > 0);
    let spent = cpu(&at.daemon);
    std::thread::sleep(2 * SECOND);
    let spent = cpu(&at.daemon) - spent;
    println!("{spent:?} of CPU in 2 s while workers waited for the disk");
    assert!(spent < SECOND / 2, "{spent:?}");
    for _ in 0..3 {
        let rounds = at.daemon.stat("reader").reclaim.rounds;
        let pulses = at.pulses("grower");
        // A job may take 100 ms, a pulse 2 s.
        until("a round", bar(SECOND / 2), || at.daemon.stat("reader").reclaim.rounds > rounds);
        until("a pulse", bar(3 * SECOND), || at.pulses("grower") > pulses);
        let asked = Instant::now();
        assert_eq!(at.daemon.list().len(), 4);
        assert!(asked.elapsed() < bar(SECOND / 4), "{:?}", asked.elapsed());
        assert!(waiting(&at.daemon) >= 2);
    }
    // Who is killed dies with the disk's answer at the latest, and leaves nothing that cannot be removed.
    for load in &at.writers {
        kill(Pid::from_raw(load.pid() as i32), Signal::SIGKILL).unwrap();
    }
    at.thaw();
    for (name, load) in ["a", "b"].into_iter().zip(&mut at.writers) {
        until("it is dead", PATIENCE, || !load.is_alive());
        at.ground.dir.remove_child(name, 10 * SECOND).unwrap();
    }
    until("they are forgotten", PATIENCE, || at.daemon.list().len() == 2);
    until("no worker waits", PATIENCE, || waiting(&at.daemon) == 0);
    assert!(at.reader.is_alive() && at.grower.is_alive());
    assert_eq!(at.daemon.end(), Some(0));
}

#[test]
fn a_daemon_that_is_stopped_while_its_workers_wait_for_a_disk_has_let_go_of_all_within_its_time() {
    let test = "a_daemon_that_is_stopped_while_its_workers_wait_for_a_disk_has_let_go_of_all_within_its_time";
    let _alone = alone();
    let Some(mut at) = Stuck::new(test) else { return };
    at.daemon.signal(Signal::SIGTERM);
    // What systemd grants it (shim/dist).
    until("it has let go", 10 * SECOND, || at.daemon.log().contains("stopped"));
    let stat = || fs::read_to_string(format!("/proc/{}/stat", at.daemon.child.id())).unwrap();
    until("nothing of it is left but what waits", SECOND, || stat().contains(") Z "));
    for name in ["a", "b", "reader", "grower"] {
        let group = at.ground.dir.child(name).unwrap();
        assert_eq!(memory(&Arc::new(group)).limit().unwrap(), LIMIT, "{name}");
    }
    // Nobody is throttled any more.
    let grown = Arc::new(at.ground.dir.child("grower").unwrap());
    until("the grower has all it wants", 10 * SECOND, || {
        memory(&grown).usage().unwrap() > Bytes::mib(110)
    });
    at.thaw();
    let mut status = None;
    until("it is gone", PATIENCE, || {
        status = at.daemon.child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
    let again = at.daemon.dir.serve();
    assert!(again.list().len() <= 4);
    again.stop();
}

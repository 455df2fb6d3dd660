//! What short containers leave behind, with runc, this machine's disk, and a live neighbour in the same group: how many
//! dying groups there are, what the sweep takes from the neighbour, and what `rmdir` has to wait for.
//!
//! `CGSHIM_DYING_TIMES` containers of each kind, fewer without it.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::{Bytes, Cgroup};
use cgshim::api::client::Client;
use cgshim::api::message::{Register, Registered, Request};
use common::{DiskFile, Ground, Load, MIB, alone, data_dir, kill_members, memory, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// What each container reads or writes.
const SHARE: Bytes = Bytes::mib(4);

/// The neighbour's page cache.
const NEIGHBOUR: Bytes = Bytes::mib(300);

fn times(default: u64) -> u64 {
    let asked = std::env::var("CGSHIM_DYING_TIMES").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(default)
}

/// The program under test, or another build of it: for figures.
fn program(variable: &str, built: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| built.into(), PathBuf::from)
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Dying memory groups of the host: those the kernel counts, less the directories.
fn dying(mount_point: &Path) -> i64 {
    fn directories(dir: &Path) -> i64 {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        1 + below.map(|entry| directories(&entry.path())).sum::<i64>()
    }
    let table = fs::read_to_string("/proc/cgroups").unwrap();
    let line = table.lines().find(|line| line.starts_with("memory")).unwrap();
    let counted: i64 = line.split_whitespace().nth(2).unwrap().parse().unwrap();
    counted - directories(mount_point)
}

fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
}

/// A machine with runc, a directory on its disk, and a neighbour.
struct Bed {
    ground: Ground,
    dir: tempfile::TempDir,
    data: tempfile::TempDir,
    runc: PathBuf,
    live: Arc<Cgroup>,
    _neighbour: (Load, DiskFile),
}

impl Bed {
    fn new(test: &'static str) -> Option<Bed> {
        let (Some(runc), Some(busybox)) = (find_program("runc"), find_program("busybox")) else {
            skip(test, "no runc, or no busybox, here (ci/deps installs them)");
            return None;
        };
        let ground = Ground::new(test)?;
        if !ground.v1() {
            skip(test, "which groups are dying is counted as v1 does it");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir_in(data_dir()).unwrap();
        let root = dir.path().join("rootfs");
        for inside in ["bin", "proc", "data"] {
            fs::create_dir_all(root.join(inside)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "dd"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(dir.path().join("config.toml"), "").unwrap();
        let file = DiskFile::new(NEIGHBOUR);
        let live = ground.group("live");
        let mut load = Load::in_group(&live);
        load.read(&file, NEIGHBOUR);
        Some(Bed { ground, dir, data, runc, live, _neighbour: (load, file) })
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn daemon(&self) -> Daemon {
        let child = Command::new(program("CGSHIMD", env!("CARGO_BIN_EXE_cgshimd")))
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .arg("--run-dir")
            .arg(self.run_dir())
            .env("CGSHIM_LOG", "debug")
            .stderr(File::create(self.dir.path().join("log")).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        until("the daemon answers", 10 * SECOND, || {
            Client::connect(&self.run_dir(), SECOND)
                .is_ok_and(|mut client| client.ask::<Value>(Request::Ping {}).is_ok())
        });
        daemon
    }

    fn cgroup(&self, id: &str) -> String {
        let own = self.ground.path().strip_prefix(&self.ground.hierarchy.mount_point).unwrap();
        format!("/{}/{id}", own.display())
    }

    /// What is charged to a group by those beneath it that are no more, in bytes: the dying hold it.
    fn held(group: &Path) -> u64 {
        let usage = |dir: &Path| {
            let content = fs::read_to_string(dir.join("memory.usage_in_bytes")).unwrap_or_default();
            content.trim().parse().unwrap_or(0_u64)
        };
        let entries = fs::read_dir(group).unwrap().flatten();
        let live = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let live: u64 = live.map(|entry| usage(&entry.path())).sum();
        usage(group).saturating_sub(live)
    }

    /// Runs a container under `parent` to its end.
    fn run(&self, parent: &Path, id: &str, hooked: bool, write: bool) {
        let file = self.data.path().join(id);
        let command = if write {
            format!("dd if=/dev/zero of=/data/{id} bs=65536 count={} 2>/dev/null", SHARE.0 >> 16)
        } else {
            let mut out = File::create(&file).unwrap();
            out.write_all(&vec![7; SHARE.0 as usize]).unwrap();
            out.sync_all().unwrap();
            nix::fcntl::posix_fadvise(
                &out,
                0,
                0,
                nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            )
            .unwrap();
            format!("cat /data/{id} > /dev/null")
        };
        let hook = |stage: &str| {
            json!([{"path": program("CGSHIM_HOOK", env!("CARGO_BIN_EXE_cgshim-hook")),
                    "args": ["cgshim-hook", "--run-dir", self.run_dir(), stage]}])
        };
        let hooks = match hooked {
            true => json!({"createRuntime": hook("createRuntime"), "poststop": hook("poststop")}),
            false => json!({}),
        };
        let parent = parent.strip_prefix(&self.ground.hierarchy.mount_point).unwrap();
        let cgroup = format!("/{}/{id}", parent.display());
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": ["/bin/sh", "-c", command], "env": ["PATH=/bin"],
            },
            "root": {"path": self.dir.path().join("rootfs")},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "none", "source": self.data.path(), "options": ["bind"]},
            ],
            "hooks": hooks,
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}],
                "resources": {"memory": {"limit": 256 * MIB}},
            },
        });
        fs::write(self.dir.path().join("config.json"), spec.to_string()).unwrap();
        let output = Command::new(&self.runc)
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(["run", "--bundle"])
            .arg(self.dir.path())
            .arg(id)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// What `n` containers leave charged to their parent, in bytes: when the last has ended, and the least within a
    /// minute from then. How many groups are dying is told beside it: the kernel counts the whole host's, and others
    /// come and go.
    fn leaves(&self, n: u64, hooked: bool, write: bool) -> (u64, u64) {
        let kind = if write { "write" } else { "read" };
        let with = if hooked { "with" } else { "without" };
        let mount = &self.ground.hierarchy.mount_point;
        let usage = || memory(&self.live).usage().unwrap().0;
        // The controls apart, so that no sweep of the daemon's is for what was there before it.
        let dir = self.ground.path().join(if hooked { "" } else { "without" });
        let (before, had, held) = (dying(mount), usage(), Self::held(&dir));
        let start = Instant::now();
        for index in 0..n {
            self.run(&dir, &format!("{kind}-{with}-{index}"), hooked, write);
        }
        let took = start.elapsed();
        let count = dying(mount) - before;
        let at_end = Self::held(&dir).saturating_sub(held);
        let (mut later, mut count_later) = (at_end, count);
        let bar = (n / 100).max(n.min(20) / 2);
        let end = Instant::now();
        while hooked && later > bar * SHARE.0 && end.elapsed() < 60 * SECOND {
            std::thread::sleep(SECOND / 2);
            later = later.min(Self::held(&dir).saturating_sub(held));
            count_later = count_later.min(dying(mount) - before);
        }
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        say(&format!(
            "{n} containers that each {kind} 4 MiB, {with} cgshim: {:.1} MiB held by {count} dying at the end \
             ({took:.1?}), {:.1} MiB by {count_later} after {:.1?}; the neighbour has {:.1} MiB less",
            mib(at_end),
            mib(later),
            end.elapsed(),
            mib(had.saturating_sub(usage()))
        ));
        (at_end, later)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        common::remove_what_runtimes_left(&self.ground, &self.cgroup("x"));
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        let _ = self.0.wait();
    }
}

#[test]
fn short_containers_leave_next_to_no_dying_groups_and_a_neighbour_keeps_its_cache() {
    let test = "short_containers_leave_next_to_no_dying_groups_and_a_neighbour_keeps_its_cache";
    let _alone = alone();
    let Some(bed) = Bed::new(test) else { return };
    let n = times(20);
    let half = n / 2 * SHARE.0;
    let controls = bed.ground.group("without");
    // That there is something to be done.
    let without = (0..5).any(|_| bed.leaves(n.div_ceil(4), false, false).0 >= half / 4);
    assert!(without, "without cgshim they leave nothing");
    // It is not for the daemon to sweep, and the kernel takes a moment to be rid of them.
    fs::write(cgroupfs::files::ControlDir::path(&*controls).join("memory.force_empty"), "0")
        .unwrap();
    std::thread::sleep(SECOND);
    let daemon = bed.daemon();
    let had = memory(&bed.live).usage().unwrap().0;
    // The promise is 1 of 100 for reads and 10 of 100 for writes on an idle host; this one may be busy with other
    // tests, where a runtime may be quicker than we are. What was written is swept once it is on the disk.
    let (at_end, later) = bed.leaves(n, true, false);
    let share = |bytes: u64| bytes / SHARE.0;
    assert!(
        at_end.max(later) <= half,
        "what {} and {} of {n} read is held: {}",
        share(at_end),
        share(later),
        bed.log()
    );
    let kept = memory(&bed.live).usage().unwrap().0;
    let (_, later) = bed.leaves(n, true, true);
    // No sweep goes on that has cost the neighbour what the dead held, which is seen only about.
    let paid = kept.saturating_sub(memory(&bed.live).usage().unwrap().0) >= half;
    assert!(later <= half || paid, "what {} of {n} wrote is held: {}", share(later), bed.log());
    // At most as much as all of them held, and a slice.
    let most = 2 * n * SHARE.0 + 32 * MIB;
    let lost = had.saturating_sub(memory(&bed.live).usage().unwrap().0);
    assert!(lost <= most, "the neighbour lost {lost} bytes: {}", bed.log());
    drop(daemon);
}

/// A container of one shell, which does `command` once it is told to, in the directory of the bed's data.
fn shell(bed: &Bed, name: &str, command: &str, daemon: bool) -> (Child, PathBuf) {
    let group = bed.ground.group(name);
    memory(&group).set_limit(cgroupfs::Limit::Bytes(Bytes::mib(64))).unwrap();
    let path = cgroupfs::files::ControlDir::path(&*group).to_path_buf();
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("echo $$ > \"$0\"; {command}; read -r go")])
        .arg(path.join("cgroup.procs"))
        .current_dir(bed.data.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
    if daemon {
        let mut client = Client::connect(&bed.run_dir(), 10 * SECOND).unwrap();
        let asked = Register {
            id: name.into(),
            pid: i32::try_from(child.id()).unwrap(),
            cgroup: bed.cgroup(name),
            ..Register::default()
        };
        client.ask::<Registered>(Request::Register(asked)).unwrap();
    }
    (child, path)
}

/// From the end of its only process until its group is removed, as a runtime would.
fn rmdir(mut child: Child, group: &Path) -> Duration {
    child.wait().unwrap();
    let start = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return start.elapsed(),
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                assert!(start.elapsed() < 10 * SECOND, "{error}");
                std::thread::sleep(Duration::from_micros(50));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn those_that_are_emptied_cost_a_neighbour_next_to_nothing() {
    let test = "those_that_are_emptied_cost_a_neighbour_next_to_nothing";
    let _alone = alone();
    let Some(bed) = Bed::new(test) else { return };
    let _daemon = bed.daemon();
    let had = memory(&bed.live).usage().unwrap().0;
    let small = DiskFile::new(SHARE);
    let command = format!("cat {} > /dev/null; echo ok", small.0.display());
    // Enough to have CPUs give back their charges of them, by a write to the file that empties this group.
    for index in 0..50 {
        small.drop_cache();
        let (mut child, group) = shell(&bed, &format!("emptied-{index}"), &command, true);
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        child.wait().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        rmdir(child, &group);
    }
    // And five seconds after the last.
    std::thread::sleep(6 * SECOND);
    let lost = had.saturating_sub(memory(&bed.live).usage().unwrap().0);
    say(&format!("the neighbour has {:.1} MiB less", lost as f64 / MIB as f64));
    assert!(lost <= 16 * MIB, "the neighbour lost {lost} bytes: {}", bed.log());
}

/// p50, p99 and worst.
fn quantiles(mut all: Vec<Duration>) -> [Duration; 3] {
    all.sort_unstable();
    [all[all.len() / 2], all[all.len() * 99 / 100], all[all.len() - 1]]
}

#[test]
fn rmdir_does_not_wait_for_us_at_an_exit_or_during_reclaim() {
    let test = "rmdir_does_not_wait_for_us_at_an_exit_or_during_reclaim";
    let _alone = alone();
    let Some(bed) = Bed::new(test) else { return };
    let _daemon = bed.daemon();
    let file = DiskFile::new(Bytes::mib(128));
    let big = file.0.display();
    let small = DiskFile::new(SHARE);
    let cases = [
        ("at its exit", format!("cat {} > /dev/null; echo ok", small.0.display())),
        ("during reclaim", format!("echo ok; while :; do cat {big} > /dev/null; done")),
    ];
    for (what, command) in cases {
        let mut took = [Vec::new(), Vec::new()];
        for index in 0..2 * times(20) {
            let with = index % 2 == 1;
            small.drop_cache();
            let (mut child, group) = shell(&bed, &format!("rmdir-{index}"), &command, with);
            if what == "at its exit" {
                child.stdin.take().unwrap().write_all(b"go\n").unwrap();
            } else {
                std::thread::sleep(Duration::from_millis(30));
                // What the shell started would outlive it.
                let start = Instant::now();
                while kill_members(&group) {
                    assert!(start.elapsed() < 10 * SECOND, "they are not gone");
                }
            }
            took[usize::from(with)].push(rmdir(child, &group));
        }
        let [without, with] = took.map(quantiles);
        say(&format!(
            "rmdir {what}: without {without:.1?}, with {with:.1?} (p50, p99, worst of {})",
            times(20)
        ));
        // The bars are 10 ms at p99 and 30 ms at worst; a test machine may be busy with other tests.
        let more = with[0].saturating_sub(without[0]);
        assert!(more < Duration::from_millis(50), "{what}: {more:?} more at p50: {}", bed.log());
        assert!(with[2] < 2 * SECOND, "{what}: {:?}: {}", with[2], bed.log());
    }
}

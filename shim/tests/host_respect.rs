//! Exec, pause, resume and kill of a container that is throttled meanwhile behave as if it were not.
//!
//! `CGSHIM_TEST_RESPECT` says how often each is tried; unset, a few times.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::freezer::Freezer;
use cgroupfs::procfs::TaskStat;
use cgroupfs::{Bytes, Cgroup};
use cgshim::core::throttle::{Then, WayOut};
use cgshim::driver::throttle::{ThrottleConfig, Throttler};
use common::{Ground, alone, skip, until};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const HIGH: Bytes = Bytes::mib(48);

fn times() -> usize {
    std::env::var("CGSHIM_TEST_RESPECT").map_or(4, |n| n.parse().unwrap())
}

/// Where runc runs containers of busybox.
struct Host {
    ground: Ground,
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.exists())
}

impl Host {
    fn new(test: &str) -> Option<Host> {
        let (Some(_), Some(busybox)) = (find("runc"), find("busybox")) else {
            skip(test, "no runc, or no busybox here (ci/deps installs them)");
            return None;
        };
        let alone = alone();
        let ground = Ground::new(test)?;
        if !ground.v1() || Freezer::find().is_err() {
            skip(test, "v2 has memory.high, or there is no freezer: nothing is emulated");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for inside in ["bin", "proc", "dev"] {
            fs::create_dir_all(root.join(inside)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in ["sh", "echo", "tail", "sleep"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        Some(Host { ground, dir, _alone: alone })
    }

    fn runc(&self, words: &[&str]) -> Output {
        let state = self.dir.path().join("state");
        let mut command = Command::new("runc");
        command.arg("--root").arg(state).args(words).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// A container whose second process fills memory, throttled.
    fn throttled(&self, id: &str) -> Container<'_> {
        let own = self.ground.path().strip_prefix(&self.ground.hierarchy.mount_point).unwrap();
        let cgroup = format!("/{}/{id}", own.display());
        let bundle = self.dir.path().join(id);
        fs::create_dir(&bundle).unwrap();
        let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
                // tail keeps all of a line that never ends.
                "args": ["/bin/sh", "-c", "tail /dev/zero & exec sleep 1000"],
            },
            "root": {"path": self.dir.path().join("rootfs")},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["bind"]},
            ],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": namespaces,
                "resources": {"memory": {"limit": 2u64 << 30, "swappiness": 0}},
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        // The group before the container: with the throttle on it from the start.
        let group = Arc::new(self.ground.dir.create_child(id).unwrap());
        let way_out = WayOut { budget: None, then: Then::Release };
        let config = ThrottleConfig { way_out, ..ThrottleConfig::new(group.clone(), HIGH) };
        let throttler = Throttler::start(config).unwrap();
        let container = Container { host: self, id: id.into(), throttler: Some(throttler), group };
        // Its output is its own: whoever keeps ours open keeps us.
        let state = self.dir.path().join("state");
        let mut command = Command::new("runc");
        command.arg("--root").arg(state).args(["run", "--detach", "--bundle"]).arg(&bundle).arg(id);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        until("pulses", 20 * SECOND, || container.throttler().totals().pulses > 2);
        container
    }
}

struct Container<'a> {
    host: &'a Host,
    id: String,
    throttler: Option<Throttler>,
    group: Arc<Cgroup>,
}

impl Container<'_> {
    fn throttler(&self) -> &Throttler {
        self.throttler.as_ref().unwrap()
    }

    fn runc(&self, words: &[&str]) -> Output {
        self.host.runc(words)
    }

    fn does(&self, words: &[&str]) -> String {
        let output = self.runc(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn state(&self) -> serde_json::Value {
        serde_json::from_str(&self.does(&["state", &self.id])).unwrap()
    }

    fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Waits until a pulse is on; the file that says so.
    fn in_a_pulse(&self) -> PathBuf {
        let freezer = Freezer::find().unwrap();
        let pid = self.state()["pid"].as_u64().unwrap();
        // The first process may be among those that are frozen.
        let home = freezer.path_of(u32::try_from(pid).unwrap()).unwrap();
        let home = if home.ends_with("cgshim") { home.parent().unwrap().into() } else { home };
        let file = home.join("cgshim/freezer.state");
        until("a pulse", 10 * SECOND, || {
            fs::read_to_string(&file).is_ok_and(|state| state.trim() == "FROZEN")
        });
        file
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.throttler.take();
        self.runc(&["delete", "--force", &self.id]);
        let mut way = self.group.path().to_path_buf();
        let mount = &self.host.ground.hierarchy.mount_point;
        let relative = way.strip_prefix(mount).unwrap().to_path_buf();
        // runc makes the path in every hierarchy, and removes its last part alone.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            way = hierarchy.path().join(&relative);
            while way.pop() && way.starts_with(hierarchy.path()) && !way.starts_with(mount) {
                if way == hierarchy.path() || fs::remove_dir(&way).is_err() {
                    break;
                }
            }
        }
    }
}

#[test]
fn pause_and_resume_do_what_they_say() {
    let Some(host) = Host::new("pause_and_resume_do_what_they_say") else { return };
    let container = host.throttled("c");
    for _ in 0..times() {
        container.in_a_pulse();
        container.does(&["pause", "c"]);
        assert_eq!(container.status(), "paused");
        container.does(&["resume", "c"]);
        assert_eq!(container.status(), "running");
    }
}

#[test]
fn exec_works_in_the_middle_of_a_pulse() {
    let Some(host) = Host::new("exec_works_in_the_middle_of_a_pulse") else { return };
    let container = host.throttled("c");
    let mut took = Vec::new();
    for _ in 0..times() {
        container.in_a_pulse();
        let start = Instant::now();
        assert_eq!(container.does(&["exec", "c", "echo", "here"]), "here\n");
        took.push(start.elapsed());
    }
    took.sort();
    println!("exec: {:?} in the median, {:?} at worst", took[took.len() / 2], took.last().unwrap());
    // It is not frozen: a pulse here is half a second and more.
    assert!(took[took.len() / 2] < SECOND / 2, "{took:?}");
}

/// When it was seen, from outside, that processes of a container had been killed, were thawed, and were dead.
#[derive(Debug)]
struct Death {
    killed: Instant,
    thawed: Instant,
    dead: Instant,
    /// Each of them, in the order of their ids.
    each: Vec<Instant>,
}

impl Death {
    /// Looks all the time, at real-time priority where that is allowed.
    fn watch(all: Vec<Pid>, state: PathBuf) -> JoinHandle<Death> {
        std::thread::spawn(move || {
            let param = nix::libc::sched_param { sched_priority: 1 };
            // SAFETY: the structure outlives the call; 0 is this thread.
            unsafe { nix::libc::sched_setscheduler(0, nix::libc::SCHED_FIFO, &raw const param) };
            let (start, mut killed, mut thawed) = (Instant::now(), None, None);
            let (mut last, mut each) = (start, vec![None; all.len()]);
            loop {
                assert!(start.elapsed() < 30 * SECOND, "alive");
                let stats: Vec<_> = all.iter().map(|pid| stat(*pid)).collect();
                let now = Instant::now();
                let before = std::mem::replace(&mut last, now);
                let is_dead = |stat: &Option<TaskStat>| stat.is_none_or(|stat| stat.state == b'Z');
                if stats.iter().any(|stat| is_dead(stat) || stat.is_some_and(|stat| stat.killed()))
                {
                    // At the last look they had not been.
                    killed.get_or_insert(before);
                }
                let frozen = fs::read_to_string(&state).is_ok_and(|state| state.trim() == "FROZEN");
                if !frozen && killed.is_some() {
                    thawed.get_or_insert(now);
                }
                for (at, stat) in each.iter_mut().zip(&stats) {
                    if is_dead(stat) {
                        at.get_or_insert(now);
                    }
                }
                if each.iter().all(Option::is_some) {
                    let [killed, thawed] = [killed, thawed].map(|at| at.unwrap_or(now));
                    let each = each.into_iter().flatten().collect();
                    return Death { killed, thawed, dead: now, each };
                }
                std::thread::sleep(Duration::from_micros(250));
            }
        })
    }

    fn took(&self) -> Duration {
        self.dead - self.killed
    }
}

fn stat(pid: Pid) -> Option<TaskStat> {
    TaskStat::parse(&fs::read(format!("/proc/{pid}/task/{pid}/stat")).ok()?)
}

#[test]
fn a_container_that_is_killed_in_a_pulse_is_dead_at_once() {
    let Some(host) = Host::new("a_container_that_is_killed_in_a_pulse_is_dead_at_once") else {
        return;
    };
    let (mut deaths, mut for_them) = (Vec::new(), 0);
    for n in 0..times() {
        let id = format!("c{n}");
        let container = host.throttled(&id);
        let procs = fs::read_to_string(container.group.path().join("cgroup.procs")).unwrap();
        let all: Vec<Pid> = procs.lines().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect();
        let state = container.in_a_pulse();
        let death = Death::watch(all, state);
        container.does(&["kill", &id, "KILL"]);
        deaths.push(death.join().unwrap());
        // The manager counts a little later than the real-time thread thaws.
        std::thread::sleep(Duration::from_millis(20));
        for_them += container.throttler().totals().killed;
        until("stopped", 30 * SECOND, || container.status() == "stopped");
        container.does(&["delete", &id]);
    }
    deaths.sort_by_key(Death::took);
    for death in &deaths {
        println!(
            "killed, thawed after {:.1?}, dead after {:.1?}: {:.1?}",
            death.thawed - death.killed,
            death.took(),
            death.each.iter().map(|at| *at - death.killed).collect::<Vec<_>>()
        );
    }
    let took: Vec<Duration> = deaths.iter().map(Death::took).collect();
    println!(
        "dead: {:.1?} in the median, {:.1?} in the 99th percentile, {:.1?} at worst",
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1]
    );
    let bar = match std::env::var_os("CGSHIM_TEST_RESPECT") {
        Some(_) => Duration::from_millis(30),
        // On a machine that does other things too.
        None => 20 * SECOND,
    };
    assert!(took[took.len() - 1] < bar, "{took:.1?}");
    println!("pulses cut short for it: {for_them}");
    assert!(for_them > 0, "each died when its pulse was over");
}

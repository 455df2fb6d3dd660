//! Exec, pause, resume and kill of a container that is throttled meanwhile behave as if it were not.
//!
//! `CGSHIM_TEST_RESPECT` says how often each is tried; unset, a few times.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::freezer::Freezer;
use cgroupfs::{Bytes, Cgroup};
use cgshim::core::throttle::{Then, WayOut};
use cgshim::driver::throttle::{ThrottleConfig, Throttler};
use common::{Ground, alone, skip, until};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, MutexGuard};
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

    /// Waits until a pulse is on.
    fn in_a_pulse(&self) {
        let freezer = Freezer::find().unwrap();
        let pid = self.state()["pid"].as_u64().unwrap();
        // The first process may be among those that are frozen.
        let home = freezer.path_of(u32::try_from(pid).unwrap()).unwrap();
        let home = if home.ends_with("cgshim") { home.parent().unwrap().into() } else { home };
        let file = home.join("cgshim/freezer.state");
        until("a pulse", 10 * SECOND, || {
            fs::read_to_string(&file).is_ok_and(|state| state.trim() == "FROZEN")
        });
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

fn is_dead(pid: Pid) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
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

#[test]
fn a_container_that_is_killed_in_a_pulse_is_dead_at_once() {
    let Some(host) = Host::new("a_container_that_is_killed_in_a_pulse_is_dead_at_once") else {
        return;
    };
    let mut took = Vec::new();
    for n in 0..times() {
        let id = format!("c{n}");
        let container = host.throttled(&id);
        let procs = fs::read_to_string(container.group.path().join("cgroup.procs")).unwrap();
        let all: Vec<Pid> = procs.lines().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect();
        container.in_a_pulse();
        container.does(&["kill", &id, "KILL"]);
        let start = Instant::now();
        until("all are dead", 5 * SECOND, || all.iter().all(|pid| is_dead(*pid)));
        took.push(start.elapsed());
        until("stopped", 5 * SECOND, || container.status() == "stopped");
        container.does(&["delete", &id]);
    }
    took.sort();
    println!("dead: {:?} in the median, {:?} at worst", took[took.len() / 2], took.last().unwrap());
    assert!(took[took.len() / 2] < Duration::from_millis(30), "{took:?}");
}

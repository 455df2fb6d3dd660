//! Containers of the runtimes on this machine: each one's program, before it does anything else, asks, and is found
//! registered with its policy; when it has ended it is not listed any more. With the daemon itself, in a run
//! directory of the test's own.
//!
//! `debian_runtimes` of the tools is the same in a virtual machine, with the unit and the files installed.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Limit};
use cgshim::api::client::Client;
use cgshim::api::message::{Listed, Register, Registered, Release, Request, View};
use cgshim::oci::inject::{self, Entry};
use common::{DiskFile, Ground, Load, alone, memory, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: u64 = 64 << 20;
/// By the annotation `io.cgshim.high` of 75 %.
const HIGH: u64 = 48 << 20;

/// Waits for the host before it does anything, and ends when told to.
const PROGRAM: &str = "echo first > /ask/out; read word < /ask/in; echo $word";

/// A machine with the runtimes a test needs.
struct Host {
    name: &'static str,
    ground: Ground,
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    /// `None`, having said so, where one of `programs` is missing.
    fn new(name: &'static str, programs: &[&str]) -> Option<Host> {
        for program in programs {
            if find_program(program).is_none() {
                skip(name, &format!("no {program} here (ci/deps installs it)"));
                return None;
            }
        }
        let busybox = find_program("busybox");
        let is_static = |path: &PathBuf| {
            let bytes = fs::read(path).unwrap();
            !bytes[..4096].windows(9).any(|window| window == b"/ld-linux")
        };
        let Some(busybox) = busybox.filter(is_static) else {
            skip(name, "no static busybox here (ci/deps installs it)");
            return None;
        };
        let alone = alone();
        let ground = Ground::new(name)?;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for inside in ["bin", "proc", "dev", "sys", "ask"] {
            fs::create_dir_all(root.join(inside)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in ["sh", "echo", "cat"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::create_dir(dir.path().join("ask")).unwrap();
        for fifo in ["in", "out"] {
            mkfifo(&dir.path().join("ask").join(fifo), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        fs::write(dir.path().join("config.toml"), "").unwrap();
        Some(Host { name, ground, dir, _alone: alone })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// The test's group as runtimes name it, and a container's in it.
    fn cgroup(&self, id: &str) -> String {
        let own = self.ground.dir.path();
        let own = own.strip_prefix(&self.ground.hierarchy.mount_point).unwrap();
        format!("/{}/{id}", own.display())
    }

    fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    fn daemon_with(&self, environment: &[(&str, &str)]) -> Daemon {
        let child = Command::new(env!("CARGO_BIN_EXE_cgshimd"))
            .envs(environment.iter().copied())
            .args(["--config".as_ref(), self.path("config.toml").as_os_str()])
            .args(["--run-dir".as_ref(), self.run_dir().as_os_str()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        until("the daemon answers", 5 * SECOND, || self.try_listed().is_some());
        daemon
    }

    fn try_listed(&self) -> Option<Vec<View>> {
        let mut client = Client::connect(&self.run_dir(), 5 * SECOND).ok()?;
        let listed: Listed = client.ask(Request::List { ended: false }).ok()?;
        Some(listed.containers)
    }

    fn listed(&self, id: &str) -> Option<View> {
        self.try_listed().unwrap().into_iter().find(|view| view.id == id)
    }

    fn hook(&self) -> Entry {
        Entry { path: env!("CARGO_BIN_EXE_cgshim-hook").into(), run_dir: Some(self.run_dir()) }
    }

    /// A bundle for a container of [`PROGRAM`] under [`LIMIT`], without hooks.
    fn bundle(&self, id: &str, annotations: Value) -> PathBuf {
        let bundle = self.path(id);
        fs::create_dir(&bundle).unwrap();
        let namespace = |kind: &str| json!({ "type": kind });
        let mut namespaces = ["pid", "ipc", "uts", "mount"].map(namespace).to_vec();
        namespaces.push(json!({"type": "network"}));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": ["/bin/sh", "-c", PROGRAM],
                "env": ["PATH=/bin"],
            },
            "root": {"path": self.path("rootfs")},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/ask", "type": "none", "source": self.path("ask"), "options": ["bind"]},
            ],
            "annotations": annotations,
            "linux": {
                "cgroupsPath": self.cgroup(id),
                "namespaces": namespaces,
                "resources": {"memory": {"limit": LIMIT}},
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    fn injected(&self, id: &str) -> PathBuf {
        let bundle = self.bundle(id, json!({"io.cgshim.high": "75%"}));
        assert!(inject::inject(&bundle.join("config.json"), &self.hook()).unwrap());
        bundle
    }

    /// A command that starts a container. crun refuses hosts where a controller may be in the unified tree of
    /// a hybrid layout, so it does not get to see that.
    fn command(&self, runtime: &str, program: &Path) -> Command {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let mut command = match runtime == "crun" && unified.exists() {
            true => {
                let mut command = Command::new("unshare");
                command.args([
                    "--mount",
                    "sh",
                    "-c",
                    "umount /sys/fs/cgroup/unified && exec \"$@\"",
                    "sh",
                ]);
                command.arg(program);
                command
            }
            false => Command::new(program),
        };
        command
            .env("CGSHIM_RUN_DIR", self.run_dir())
            .env("CGSHIM_HOOK", env!("CARGO_BIN_EXE_cgshim-hook"))
            .env("CGSHIM_RUNTIME", runtime)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `RUNTIME run` of a bundle, by itself or by the wrapper.
    fn run(&self, runtime: &str, program: &Path, bundle: &Path, id: &str) -> Command {
        let mut command = self.command(runtime, program);
        command.arg("--root").arg(self.path("state")).args(["run", "--bundle"]).arg(bundle).arg(id);
        command
    }

    /// Starts a container and holds it to the claim of this file. `id` is known only once podman has made it.
    fn assert_listed_first(&self, mut command: Command, id: impl Fn() -> String) {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut container = Container { child: Some(child) };
        self.first_word(&mut container);
        let id = id();
        // Its program has got no further than to its first word.
        let view = self.listed(&id);
        let view =
            view.unwrap_or_else(|| panic!("{id} is not registered: {:?}", self.try_listed()));
        assert_eq!((view.limit_bytes, view.high_bytes), (Some(LIMIT), Some(HIGH)), "{view:?}");
        assert_eq!(view.source, "hook");
        let output = self.end(container);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "go", "{output:?}");
        until("what has ended is not listed", 2 * SECOND, || self.listed(&id).is_none());
        let spool = fs::read_dir(self.run_dir().join("spool")).unwrap().count();
        assert_eq!(spool, 0, "nothing waits in the spool");
    }

    /// Waits for the first word of a container's program.
    fn first_word(&self, container: &mut Container) {
        // Read and written, so that opening waits for nobody.
        let mut out = fifo(&self.path("ask/out"));
        let start = Instant::now();
        let mut word = [0; 6];
        while out.read(&mut word).is_err() {
            let ended = container.child.as_mut().unwrap().try_wait().unwrap();
            if ended.is_some() || start.elapsed() > 30 * SECOND {
                panic!("{}: no word from the container: {:?}", self.name, container.wait());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(&word, b"first\n");
    }

    /// Tells the program to end, and waits for its runtime.
    fn end(&self, mut container: Container) -> Output {
        let mut fifo = fifo(&self.path("ask/in"));
        fifo.write_all(b"go\n").unwrap();
        container.wait()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        common::remove_what_runtimes_left(&self.ground, &self.cgroup("x"));
    }
}

fn fifo(path: &Path) -> File {
    let flags = nix::libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A runtime that is running a container.
struct Container {
    child: Option<Child>,
}

impl Container {
    fn wait(&mut self) -> Output {
        let child = self.child.take().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || send.send(child.wait_with_output()));
        receive.recv_timeout(30 * SECOND).map(Result::unwrap).unwrap_or_else(|_| {
            let _ = kill(pid, Signal::SIGKILL);
            panic!("the runtime never ends")
        })
    }
}

struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

// --- runc and crun

fn by_hand(name: &'static str, runtime: &str) {
    let Some(host) = Host::new(name, &[runtime]) else { return };
    let _daemon = host.daemon();
    let bundle = host.injected("web");
    let program = find_program(runtime).unwrap();
    host.assert_listed_first(host.run(runtime, &program, &bundle, "web"), || "web".into());
}

#[test]
fn runc_with_an_injected_hook() {
    by_hand("runc_with_an_injected_hook", "runc");
}

#[test]
fn crun_with_an_injected_hook() {
    by_hand("crun_with_an_injected_hook", "crun");
}

#[test]
fn the_wrapper_in_place_of_runc_and_crun() {
    let Some(host) = Host::new("the_wrapper_in_place_of_runc_and_crun", &["runc", "crun"]) else {
        return;
    };
    let _daemon = host.daemon();
    let wrapper = Path::new(env!("CARGO_BIN_EXE_cgshim-runtime"));
    for runtime in ["runc", "crun"] {
        let bundle = host.bundle(runtime, json!({"io.cgshim.high": "75%"}));
        host.assert_listed_first(host.run(runtime, wrapper, &bundle, runtime), || runtime.into());
    }
}

// --- podman

#[test]
fn podman_with_hooks_d() {
    let Some(host) = Host::new("podman_with_hooks_d", &["podman", "conmon", "runc", "crun"]) else {
        return;
    };
    let _daemon = host.daemon();
    let hooks = host.path("hooks.d");
    fs::create_dir(&hooks).unwrap();
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/hooks.d");
    for entry in fs::read_dir(dist).unwrap() {
        let path = entry.unwrap().path();
        let mut hook: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        hook["hook"]["path"] = json!(host.hook().path);
        let args = hook["hook"]["args"].as_array_mut().unwrap();
        args.insert(1, json!("--run-dir"));
        args.insert(2, json!(host.run_dir()));
        fs::write(hooks.join(path.file_name().unwrap()), hook.to_string()).unwrap();
    }
    for runtime in ["runc", "crun"] {
        let mut command = host.command(runtime, &find_program("podman").unwrap());
        for (option, name) in [("root", "root"), ("runroot", "runroot"), ("tmpdir", "tmp")] {
            command.arg(format!("--{option}")).arg(host.path(&format!("{runtime}-{name}")));
        }
        let id = host.path(&format!("{runtime}.id"));
        command
            .args(["--storage-driver", "vfs", "--events-backend", "file", "--log-level", "error"])
            .args(["--cgroup-manager", "cgroupfs", "--runtime", runtime, "--hooks-dir"])
            .arg(&hooks)
            .args(["run", "--rm", "--network", "none", "--memory", "64m", "--cidfile"])
            .arg(&id)
            .args(["--ulimit", "nofile=256:256", "--ulimit", "nproc=256:256"])
            .args(["--security-opt", "seccomp=unconfined", "--annotation", "io.cgshim.high=75%"])
            .args(["--cgroup-parent", &host.cgroup(runtime)])
            .args(["--volume", &format!("{}:/ask", host.path("ask").display()), "--rootfs"])
            .arg(host.path("rootfs"))
            .args(["/bin/sh", "-c", PROGRAM]);
        host.assert_listed_first(command, || fs::read_to_string(&id).unwrap().trim().into());
    }
}

// --- containerd

/// A containerd of the test's own.
struct Containerd(Child, PathBuf);

impl Containerd {
    fn start(host: &Host) -> Containerd {
        let socket = host.path("containerd.sock");
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{1}\"\n",
            host.path("containerd").display(),
            socket.display()
        );
        fs::write(host.path("containerd.toml"), config).unwrap();
        let log = File::create(host.path("containerd.log")).unwrap();
        let mut command = host.command("runc", &find_program("containerd").unwrap());
        command.arg("--config").arg(host.path("containerd.toml"));
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let containerd = Containerd(child, socket);
        until("containerd listens", 20 * SECOND, || containerd.1.exists());
        containerd
    }

    fn ctr(&self, host: &Host) -> Command {
        let mut command = host.command("runc", &find_program("ctr").unwrap());
        command.arg("--address").arg(&self.1).args(["run", "--rm"]);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn containerd_with_a_bundle_that_has_the_hook() {
    let name = "containerd_with_a_bundle_that_has_the_hook";
    let Some(host) = Host::new(name, &["containerd", "ctr", "runc"]) else { return };
    let _daemon = host.daemon();
    let containerd = Containerd::start(&host);
    let bundle = host.injected("web");
    let mut command = containerd.ctr(&host);
    command.arg("--config").arg(bundle.join("config.json")).arg("web");
    host.assert_listed_first(command, || "web".into());
}

#[test]
fn containerd_with_the_wrapper_as_its_binary() {
    let name = "containerd_with_the_wrapper_as_its_binary";
    let Some(host) = Host::new(name, &["containerd", "ctr", "runc"]) else { return };
    let _daemon = host.daemon();
    let containerd = Containerd::start(&host);
    let mut command = containerd.ctr(&host);
    command
        .args(["--runc-binary", env!("CARGO_BIN_EXE_cgshim-runtime"), "--memory-limit"])
        .arg(LIMIT.to_string())
        .args(["--annotation", "io.cgshim.high=75%", "--cgroup", &host.cgroup("web"), "--mount"])
        .arg(format!("type=bind,src={},dst=/ask,options=rbind", host.path("ask").display()))
        .arg("--rootfs")
        .arg(host.path("rootfs"))
        .args(["web", "/bin/sh", "-c", PROGRAM]);
    host.assert_listed_first(command, || "web".into());
}

/// When it holds, as closely as another process can see it.
fn seen(what: &str, holds: impl Fn() -> bool) -> Instant {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < 10 * SECOND, "{what}: not in 10 s");
        std::thread::sleep(Duration::from_micros(100));
    }
    Instant::now()
}

/// Has a child of its own killed for every word it is told.
const VICTIMS: &str = "echo first > /ask/out; while read word < /ask/in && [ $word = go ]; do \
                       busybox head -c 200000000 /dev/zero | busybox tail -n 1; done";

#[test]
fn an_oom_is_on_record_as_soon_as_containerd_tells_of_it() {
    let name = "an_oom_is_on_record_as_soon_as_containerd_tells_of_it";
    let Some(host) = Host::new(name, &["containerd", "ctr", "runc"]) else { return };
    fs::write(host.path("config.toml"), "[defaults]\nhigh = 'max'\nthrottle = 'off'\n").unwrap();
    let _daemon = host.daemon();
    let containerd = Containerd::start(&host);
    let bundle = host.bundle("web", json!({}));
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["args"][2] = json!(VICTIMS);
    // Where there is swap they would fill that first.
    spec["linux"]["resources"]["memory"]["swappiness"] = json!(0);
    fs::write(&config, spec.to_string()).unwrap();
    assert!(inject::inject(&config, &host.hook()).unwrap());

    let mut events = host.command("runc", &find_program("ctr").unwrap());
    let mut events = events.arg("--address").arg(&containerd.1).arg("events").spawn().unwrap();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let (send, theirs) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok).filter(|line| line.contains("/tasks/oom")) {
            let _ = send.send((Instant::now(), line));
        }
    });

    let mut command = containerd.ctr(&host);
    let child = command.arg("--config").arg(&config).arg("web").spawn().unwrap();
    let mut container = Container { child: Some(child) };
    host.first_word(&mut container);
    let files = memory(&Arc::new(host.ground.dir.child("web").unwrap()));
    let kills = || files.counters().unwrap().oom_kill.unwrap();
    // A file has its name once it is whole.
    let records = || {
        let names = fs::read_dir(cgshim::oom::directory(&host.run_dir())).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("oom-")).count()
    };
    let times = std::env::var("CGSHIM_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let mut orders = fifo(&host.path("ask/in"));
    let (mut ours, mut told) = (Vec::new(), Vec::new());
    for n in 0..times {
        assert_eq!((kills(), records() as u64), (n, n));
        orders.write_all(b"go\n").unwrap();
        let rose = seen("somebody is killed", || kills() > n);
        ours.push(seen("it is on record", || records() as u64 > n) - rose);
        let (at, _) = theirs.recv_timeout(5 * SECOND).expect("containerd tells of it");
        // From before the kill, most of the time: it tells that memory has run out.
        told.push(at.saturating_duration_since(rose));
        // And as often as that was signalled.
        std::thread::sleep(SECOND / 2);
        while theirs.try_recv().is_ok() {}
    }
    orders.write_all(b"end\n").unwrap();
    container.wait();
    let _ = events.kill();
    let _ = events.wait();
    for (who, times) in [("on record", &mut ours), ("told by containerd", &mut told)] {
        times.sort_unstable();
        let (middle, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{who}: {middle:?} in the median, {worst:?} at worst, of {}", times.len());
    }
    // Others may be at work here; by hand it is a few milliseconds.
    assert!(ours[ours.len() / 2] < Duration::from_millis(100), "{ours:?}");
}

// --- without a daemon that answers

#[test]
fn a_container_that_started_without_a_daemon_is_adopted_within_a_second() {
    let name = "a_container_that_started_without_a_daemon_is_adopted_within_a_second";
    let Some(host) = Host::new(name, &["runc"]) else { return };
    let bundle = host.injected("web");
    let runc = find_program("runc").unwrap();
    let start = Instant::now();
    let child = host.run("runc", &runc, &bundle, "web").spawn().unwrap();
    let mut container = Container { child: Some(child) };
    host.first_word(&mut container);
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());

    let _daemon = host.daemon();
    until("it is adopted", SECOND, || host.listed("web").is_some());
    assert_eq!(host.listed("web").unwrap().high_bytes, Some(HIGH));
    assert!(host.end(container).status.success());
    until("what has ended is not listed", 2 * SECOND, || host.listed("web").is_none());
}

#[test]
fn a_stopped_daemon_keeps_no_container_from_starting() {
    let Some(host) = Host::new("a_stopped_daemon_keeps_no_container_from_starting", &["runc"])
    else {
        return;
    };
    let daemon = host.daemon();
    let bundle = host.injected("web");
    daemon.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let child = host.run("runc", &find_program("runc").unwrap(), &bundle, "web").spawn().unwrap();
    let mut container = Container { child: Some(child) };
    host.first_word(&mut container);
    let took = start.elapsed();
    assert!(took < 2 * SECOND, "runc and a hook of a second at the most: {took:?}");
    daemon.signal(Signal::SIGCONT);
    // Both by the socket, where it waited, and by the spool: one container all the same.
    until("it is registered", 2 * SECOND, || host.listed("web").is_some());
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(host.try_listed().unwrap().len(), 1);
    assert!(host.end(container).status.success());
    until("what has ended is not listed", 2 * SECOND, || host.listed("web").is_none());
}

#[test]
fn runc_shows_why_a_strict_container_does_not_start() {
    let Some(host) = Host::new("runc_shows_why_a_strict_container_does_not_start", &["runc"])
    else {
        return;
    };
    let bundle = host.bundle("web", json!({"io.cgshim.strict": "true"}));
    inject::inject(&bundle.join("config.json"), &host.hook()).unwrap();
    let runc = find_program("runc").unwrap();
    let output = host.run("runc", &runc, &bundle, "web").output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("web: not registered, and io.cgshim.strict is true"), "{said}");
    let _daemon = host.daemon();
    assert!(host.listed("web").is_none(), "nothing of it was left for later");
}

// --- while it is at work

/// An operator's `runc update` at any moment of the daemon's steps, whose windows a fault keeps open for longer than
/// half of the time: 100 of 100 stand, by hand with CGSHIM_TEST_UPDATES=100.
#[test]
fn what_runc_update_sets_during_stepping_stands() {
    let Some(host) = Host::new("what_runc_update_sets_during_stepping_stands", &["runc"]) else {
        return;
    };
    if !host.ground.v1() {
        return;
    }
    fs::write(host.path("config.toml"), "[defaults]\nwatermark = '50%:40%'\n").unwrap();
    let log = host.path("faults");
    let daemon = host.daemon_with(&[
        ("CGSHIM_FAULT", "sleep-3:lowered:*1"),
        ("CGSHIM_FAULT_LOG", log.to_str().unwrap()),
    ]);
    let bundle = host.injected("web");
    let runc = find_program("runc").unwrap();
    let child = host.run("runc", &runc, &bundle, "web").spawn().unwrap();
    let mut container = Container { child: Some(child) };
    host.first_word(&mut container);
    let pid = host.listed("web").unwrap().pid.unwrap();
    let group = Arc::new(host.ground.dir.child("web").unwrap());
    let memory = memory(&group);
    let file = DiskFile::new(Bytes::mib(128));
    let mut load = Load::in_group(&group);
    load.stream(&file, Bytes::mib(600));

    let ask = |request| {
        let mut client = Client::connect(&host.run_dir(), 5 * SECOND).unwrap();
        client.ask::<Registered>(request).unwrap()
    };
    let rounds = std::env::var("CGSHIM_TEST_UPDATES").ok().and_then(|n| n.parse().ok());
    let rounds: u64 = rounds.unwrap_or(15);
    let mut lost = Vec::new();
    for round in 0..rounds {
        // Whoever has set a limit is left in peace for half a minute: registered anew, it is stepped at once.
        ask(Request::Release(Release { id: "web".into(), ..Release::default() }));
        let cgroup = host.cgroup("web");
        ask(Request::Register(Register { id: "web".into(), pid, cgroup, ..Register::default() }));
        until("it is stepped", 20 * SECOND, || host.listed("web").unwrap().reclaim.rounds > 0);
        std::thread::sleep(Duration::from_micros(round * 1373 % 20_000));
        let value = (66 + round % 16) << 20;
        let mut update = host.command("runc", &runc);
        update.arg("--root").arg(host.path("state"));
        let output =
            update.args(["update", "--memory", &value.to_string(), "web"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        // Longer than a step, and than it takes the guardian to restore one.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            let standing = memory.limit().unwrap();
            if standing != Limit::Bytes(Bytes(value)) {
                lost.push(format!("round {round}: {value} set, {standing} stands"));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(host.listed("web").unwrap().limit_bytes, Some(value), "adopted");
    }
    let windows = fs::read_to_string(&log).unwrap().lines().count();
    println!(
        "{} of {rounds} updates stand; {windows} windows held open",
        rounds - lost.len() as u64
    );
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(windows as u64 >= rounds, "it was not stepped");
    drop(load);
    assert!(host.end(container).status.success());
    drop(daemon);
}

/// What the hook adds to a container's start, with the daemon's own work at registration in it: by turns with
/// and without, the medians.
#[test]
fn the_hook_adds_little_to_a_start() {
    let Some(host) = Host::new("the_hook_adds_little_to_a_start", &["runc"]) else { return };
    let _daemon = host.daemon();
    let runc = find_program("runc").unwrap();
    let bundles = ["without", "with"].map(|id| {
        let bundle = host.bundle(id, json!({}));
        let config = bundle.join("config.json");
        let ends = fs::read_to_string(&config).unwrap().replace(&format!("\"{PROGRAM}\""), "\":\"");
        fs::write(&config, ends).unwrap();
        (id, bundle, Vec::new())
    });
    assert!(inject::inject(&bundles[1].1.join("config.json"), &host.hook()).unwrap());
    let mut bundles = bundles;
    for _ in 0..20 {
        for (id, bundle, times) in &mut bundles {
            let start = Instant::now();
            let output = host.run("runc", &runc, bundle, id).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            times.push(start.elapsed());
        }
    }
    let [without, with] = bundles.map(|(_, _, mut times)| {
        times.sort();
        times[times.len() / 2]
    });
    let _ = writeln!(std::io::stderr(), "runc run: {without:?} without the hook, {with:?} with it");
    assert!(with < 2 * without + Duration::from_millis(20), "{without:?} without, {with:?} with");
}

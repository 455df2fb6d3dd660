//! Containers of the runtimes on this machine, whose program waits for the host before it does anything; the daemon
//! and containerd, in directories of the test's own.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use crate::common::{self, Ground, alone, skip, until};
use cgroupfs::files::ControlDir;
use cgshim::api::client::Client;
use cgshim::api::message::{Listed, Request, View};
use cgshim::oci::inject::{self, Entry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine needs now and then; not what is promised.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const LIMIT: u64 = 64 << 20;
/// By the annotation `io.cgshim.high` of 75 %.
pub(crate) const HIGH: u64 = 48 << 20;

/// Waits for the host before it does anything, and ends when told to.
pub(crate) const PROGRAM: &str = "echo first > /ask/out; read word < /ask/in; echo $word";

/// A machine with the runtimes a test needs.
pub(crate) struct Host {
    name: &'static str,
    pub(crate) ground: Ground,
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    /// `None`, having said so, where one of `programs` is missing.
    pub(crate) fn new(name: &'static str, programs: &[&str]) -> Option<Host> {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// The test's group as runtimes name it, and a container's in it.
    pub(crate) fn cgroup(&self, id: &str) -> String {
        let own = self.ground.dir.path();
        let own = own.strip_prefix(&self.ground.hierarchy.mount_point).unwrap();
        format!("/{}/{id}", own.display())
    }

    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    pub(crate) fn daemon_with(&self, environment: &[(&str, &str)]) -> Daemon {
        let child = Command::new(env!("CARGO_BIN_EXE_cgshimd"))
            .envs(environment.iter().copied())
            .args(["--config".as_ref(), self.path("config.toml").as_os_str()])
            .args(["--run-dir".as_ref(), self.run_dir().as_os_str()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        until("the daemon answers", PATIENCE, || self.try_listed().is_some());
        daemon
    }

    pub(crate) fn try_listed(&self) -> Option<Vec<View>> {
        let mut client = Client::connect(&self.run_dir(), PATIENCE).ok()?;
        let listed: Listed = client.ask(Request::List { ended: false }).ok()?;
        Some(listed.containers)
    }

    pub(crate) fn listed(&self, id: &str) -> Option<View> {
        self.try_listed().unwrap().into_iter().find(|view| view.id == id)
    }

    pub(crate) fn hook(&self) -> Entry {
        Entry { path: env!("CARGO_BIN_EXE_cgshim-hook").into(), run_dir: Some(self.run_dir()) }
    }

    /// A bundle for a container of [`PROGRAM`] under [`LIMIT`], without hooks.
    pub(crate) fn bundle(&self, id: &str, annotations: Value) -> PathBuf {
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

    pub(crate) fn injected(&self, id: &str) -> PathBuf {
        let bundle = self.bundle(id, json!({"io.cgshim.high": "75%"}));
        assert!(inject::inject(&bundle.join("config.json"), &self.hook()).unwrap());
        bundle
    }

    /// A command that starts a container. crun refuses hosts where a controller may be in the unified tree of
    /// a hybrid layout, so it does not get to see that.
    pub(crate) fn command(&self, runtime: &str, program: &Path) -> Command {
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
    pub(crate) fn run(&self, runtime: &str, program: &Path, bundle: &Path, id: &str) -> Command {
        let mut command = self.command(runtime, program);
        command.arg("--root").arg(self.path("state")).args(["run", "--bundle"]).arg(bundle).arg(id);
        command
    }

    /// Starts a container and holds it to the claim of this file. `id` is known only once podman has made it.
    pub(crate) fn assert_listed_first(&self, mut command: Command, id: impl Fn() -> String) {
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
    pub(crate) fn first_word(&self, container: &mut Container) {
        // Read and written, so that opening waits for nobody.
        let mut out = fifo(&self.path("ask/out"));
        let start = Instant::now();
        let mut word = [0; 6];
        while out.read(&mut word).is_err() {
            let ended = container.child.as_mut().unwrap().try_wait().unwrap();
            if ended.is_some() || start.elapsed() > PATIENCE {
                panic!("{}: no word from the container: {:?}", self.name, container.wait());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(&word, b"first\n");
    }

    /// Tells the program to end, and waits for its runtime.
    pub(crate) fn end(&self, mut container: Container) -> Output {
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

pub(crate) fn fifo(path: &Path) -> File {
    let flags = nix::libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A runtime that is running a container.
pub(crate) struct Container {
    pub(crate) child: Option<Child>,
}

impl Container {
    pub(crate) fn wait(&mut self) -> Output {
        let child = self.child.take().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || send.send(child.wait_with_output()));
        receive.recv_timeout(PATIENCE).map(Result::unwrap).unwrap_or_else(|_| {
            let _ = kill(pid, Signal::SIGKILL);
            panic!("the runtime never ends")
        })
    }
}

pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn signal(&self, signal: Signal) {
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

/// A containerd of the test's own, and a namespace: runc keeps what it knows of all containerds' containers by namespace
/// and id in one place, and who ends late must not delete another one's container.
pub(crate) struct Containerd {
    child: Child,
    socket: PathBuf,
    namespace: String,
}

impl Containerd {
    pub(crate) fn start(host: &Host) -> Containerd {
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
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let namespace = format!("cgshim-test-{}-{number}", std::process::id());
        let containerd = Containerd { child, socket, namespace };
        let listens = || UnixStream::connect(&containerd.socket).is_ok();
        until("containerd listens", PATIENCE, listens);
        containerd
    }

    /// `ctr` with some words.
    pub(crate) fn ctr(&self, host: &Host, words: &[&str]) -> Command {
        let mut command = host.command("runc", &find_program("ctr").unwrap());
        command.arg("--address").arg(&self.socket).args(["--namespace", &self.namespace]);
        command.args(words);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        // Empty by now; who ends late is in nobody's way.
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
    }
}

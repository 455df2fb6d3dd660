//! A hook as a runtime starts it: on a process in a group of its own, with a bundle that says so, before a daemon
//! of the test's own.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use crate::common::{Ground, Load};
use cgroupfs::files::ControlDir;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

/// One of our programs: where Cargo put it, or in `/bin` of the machines of the kernel matrix.
pub(crate) fn program(built: &str) -> PathBuf {
    let built = PathBuf::from(built);
    if built.exists() { built } else { Path::new("/bin").join(built.file_name().unwrap()) }
}

pub(crate) fn hook_program() -> PathBuf {
    program(env!("CARGO_BIN_EXE_cgshim-hook"))
}

/// A process in a group of its own, a bundle that says so, and a run directory.
pub(crate) struct Container {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) load: Load,
    pub(crate) cgroup: String,
}

impl Container {
    pub(crate) fn new(ground: &Ground, annotations: &Value) -> Container {
        let group = ground.group("web");
        let load = Load::in_group(&group);
        let cgroup = group.path().strip_prefix(&ground.hierarchy.mount_point).unwrap();
        let cgroup = format!("/{}", cgroup.display());
        let dir = tempfile::tempdir().unwrap();
        let spec = json!({
            "linux": {"cgroupsPath": cgroup},
            "process": {"oomScoreAdj": -997},
            "annotations": annotations,
        });
        fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        Container { dir, load, cgroup }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn state(&self) -> Value {
        json!({"ociVersion": "1.0.2", "id": "web", "status": "creating", "pid": self.load.pid(),
               "bundle": self.dir.path(), "annotations": {"io.cgshim.high": "90%", "other": "x"}})
    }

    pub(crate) fn hook(&self, stage: &str) -> Output {
        hook(&self.run_dir(), stage, &self.state().to_string())
    }

    /// What lies in the spool: by file name.
    pub(crate) fn spooled(&self) -> Vec<(String, Value)> {
        let Ok(files) = fs::read_dir(self.run_dir().join("spool")) else { return Vec::new() };
        files
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, serde_json::from_str(&text).unwrap())
            })
            .collect()
    }

    /// The request that registers it, but for the daemon-independent details checked here.
    pub(crate) fn assert_registers(&self, request: &Value) {
        let mut request = request.clone();
        let fields = request.as_object_mut().unwrap();
        assert!(fields.remove("start_time").unwrap().as_u64().unwrap() > 0);
        let expected = json!({
            "schema": 1, "op": "register", "id": "web", "pid": self.load.pid(),
            "cgroup": self.cgroup, "bundle": self.dir.path(), "oom_score_adj": -997,
            "annotations": {"io.cgshim.high": "90%", "io.cgshim.class": "burstable"},
            "runtime": null,
        });
        assert_eq!(request, expected);
    }
}

pub(crate) fn hook(run_dir: &Path, stage: &str, state: &str) -> Output {
    let mut child = Command::new(hook_program())
        .arg("--run-dir")
        .arg(run_dir)
        .arg(stage)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(state.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A daemon that notes every request and answers it.
pub(crate) struct Daemon(Arc<Mutex<Vec<Value>>>);

impl Daemon {
    pub(crate) fn start(run_dir: &Path, reply: &'static str) -> Daemon {
        fs::create_dir_all(run_dir).unwrap();
        let listener = UnixListener::bind(run_dir.join("cgshim.sock")).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut line = String::new();
                // A hook that gives up has said nothing.
                if stream.read_line(&mut line).unwrap() == 0 {
                    continue;
                }
                notes.lock().unwrap().push(serde_json::from_str(&line).unwrap());
                let _ = writeln!(stream.get_mut(), "{reply}");
            }
        });
        Daemon(heard)
    }

    pub(crate) fn heard(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) const YES: &str = r#"{"schema":1,"ok":true,"generation":7,"more":[1]}"#;

/// Connections to a daemon that accepts none, until no more fit.
pub(crate) fn fill_backlog(socket: &Path) -> Vec<UnixStream> {
    let queue: Vec<UnixStream> =
        std::iter::from_fn(|| connect_at_once(socket)).take(10_000).collect();
    assert!(queue.len() < 10_000, "it is never full");
    queue
}

/// A connection to `socket`, unless its backlog is full.
fn connect_at_once(socket: &Path) -> Option<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream =
        nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    match connect(stream.as_raw_fd(), &UnixAddr::new(socket).unwrap()) {
        Ok(()) => Some(stream.into()),
        Err(nix::errno::Errno::EAGAIN) => None,
        Err(errno) => panic!("{errno}"),
    }
}

//! What the tests named `debian_*` stand on: a whole Debian with systemd and the container runtimes, as
//! `ci/vm/tests debian-v2-6.1` boots it. They install cgshim into it, and change it as they please: it is
//! gone afterwards. Nowhere else do they do anything.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// The containers' declared limit, and `memory.high` by their annotation `io.cgshim.high` of 75 %.
pub(crate) const LIMIT: u64 = 64 * MIB;
pub(crate) const HIGH: u64 = 48 * MIB;

const ROOTFS: &str = "/srv/rootfs";
const UNIT: &str = "/usr/lib/systemd/system/cgshimd.service";
/// Files of `shim/dist`, brought by `ci/vm/tests`.
const DIST: &str = "/usr/share/cgshim/dist";

/// The machine with cgshim installed and its daemon running, one test at a time.
///
/// # Panics
/// Not in a virtual machine of `ci/vm/tests`: these tests would install a daemon on somebody's host.
pub(crate) fn machine() -> MutexGuard<'static, bool> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let lane = std::env::var("CGSHIM_LANE").unwrap_or_default();
    assert!(lane.starts_with("debian-"), "these tests run by: ci/vm/tests debian-v2-6.1");
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        install();
        *installed = true;
    }
    sh("systemctl reset-failed cgshimd; systemctl start cgshimd");
    installed
}

fn install() {
    let rootfs = Path::new(ROOTFS);
    for dir in ["bin", "proc", "sys", "dev", "tmp", "run/cgshim", "data"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for program in ["cgctl", "memload"] {
        fs::copy(Path::new("/usr/bin").join(program), rootfs.join("bin").join(program)).unwrap();
    }
    for applet in ["sh", "sleep", "cat", "echo", "true"] {
        let _ = symlink("busybox", rootfs.join("bin").join(applet));
    }
    fs::copy(format!("{DIST}/systemd/cgshimd.service"), UNIT).unwrap();
    let hooks = Path::new("/usr/libexec/oci/hooks.d");
    fs::create_dir_all(hooks).unwrap();
    let _ = symlink("/usr/bin/cgshim-hook", hooks.join("cgshim-hook"));
    sh("systemctl daemon-reload");
}

/// Whether the memory controller is on v1 here.
pub(crate) fn v1() -> bool {
    Path::new("/sys/fs/cgroup/memory").is_dir()
}

/// Runs a command line and returns what it wrote to standard output.
///
/// # Panics
/// It failed, or took more than a minute and a half.
pub(crate) fn sh(line: &str) -> String {
    let output = try_sh(line);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// Runs a command line.
pub(crate) fn try_sh(line: &str) -> Output {
    // Emulated machines are slow, but a runtime that hangs must not take the other tests with it.
    Command::new("timeout")
        .args(["-k", "5", "90", "sh", "-c", line])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Waits until something holds, `patience` at most.
pub(crate) fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < patience, "never within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// A property of a unit, as `systemctl show` has it.
pub(crate) fn property(unit: &str, name: &str) -> String {
    sh(&format!("systemctl show -P {name} {unit}")).trim().to_owned()
}

/// The daemon's containers.
pub(crate) fn ps() -> Vec<Value> {
    containers(&sh("cgctl ps --json"))
}

/// The containers in what `cgctl ps --json` wrote.
pub(crate) fn containers(json: &str) -> Vec<Value> {
    let answer: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));
    answer["containers"].as_array().unwrap_or_else(|| panic!("no containers: {json}")).clone()
}

/// One container of a list.
pub(crate) fn find<'a>(containers: &'a [Value], id: &str) -> Option<&'a Value> {
    containers.iter().find(|container| container["id"] == id)
}

/// The declared limit in a container's group, as the kernel has it now.
pub(crate) fn limit_of(container: &Value) -> u64 {
    let file = if v1() { "memory.limit_in_bytes" } else { "memory.max" };
    let path = Path::new(container["cgroup"].as_str().unwrap()).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().parse().unwrap()
}

/// A bundle for a container of busybox under [`LIMIT`] that can reach the daemon.
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
}

impl Bundle {
    /// Without hooks. `cgroups_path` is the specification's, in either of its forms.
    pub(crate) fn new(id: &str, cgroups_path: &str, program: &[&str]) -> Bundle {
        let path = Path::new("/srv/bundles").join(id);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        sh(&format!("cd {} && runc spec", path.display()));
        let config = path.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(program);
        spec["root"] = json!({ "path": ROOTFS, "readonly": false });
        spec["annotations"] = json!({ "io.cgshim.high": "75%" });
        spec["linux"]["cgroupsPath"] = json!(cgroups_path);
        spec["linux"]["resources"]["memory"] = json!({ "limit": LIMIT });
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/run/cgshim", "source": "/run/cgshim", "type": "none",
            "options": ["rbind", "ro"] }));
        fs::write(config, spec.to_string()).unwrap();
        Bundle { id: id.into(), path }
    }

    /// With the hooks that `cgctl hook inject` brings in.
    pub(crate) fn injected(id: &str, cgroups_path: &str, program: &[&str]) -> Bundle {
        let bundle = Bundle::new(id, cgroups_path, program);
        sh(&format!("cgctl hook inject {}", bundle.path.display()));
        bundle
    }
}

/// The program of a container that asks, before all else, who is under policy.
pub(crate) const LISTS_ITSELF: [&str; 3] = ["/bin/cgctl", "ps", "--json"];

/// Holds a container of [`LISTS_ITSELF`] to its claim: in `output`, written by its very program, it is
/// registered, with its policy; now that it has ended it is no longer listed.
pub(crate) fn assert_listed_itself(what: &str, id: &str, output: &Output) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{stdout}{stderr}", output.status);
    let listed = containers(&stdout);
    let own = find(&listed, id);
    let own = own.unwrap_or_else(|| panic!("{what}: {id} was not registered: {stdout}{stderr}"));
    assert_eq!(own["limit_bytes"], LIMIT, "{what}: {own}");
    assert_eq!(own["high_bytes"], HIGH, "{what}: {own}");
    assert_eq!(own["ended_ms"], Value::Null, "{what}: {own}");
    let took = until("what has ended is not listed", 5 * SECOND, || find(&ps(), id).is_none());
    println!("{what}: registered with its policy, gone {} ms after the runtime", took.as_millis());
}

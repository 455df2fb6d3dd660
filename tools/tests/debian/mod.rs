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
    // Whatever the test before left: its containers, its faults.
    sh("runc list -q | xargs -r -n 1 runc delete --force");
    fault(None);
    sh("systemctl start cgshimd");
    installed
}

/// Starts the daemon with this `CGSHIM_FAULT` from now on, or without.
pub(crate) fn fault(fault: Option<&str>) {
    let dir = Path::new("/etc/systemd/system/cgshimd.service.d");
    let file = dir.join("fault.conf");
    match fault {
        Some(fault) => {
            fs::create_dir_all(dir).unwrap();
            let log = "Environment=CGSHIM_FAULT_LOG=/run/cgshim/faults";
            fs::write(file, format!("[Service]\nEnvironment=CGSHIM_FAULT={fault}\n{log}\n"))
                .unwrap();
        }
        None if !file.exists() => return,
        None => fs::remove_file(file).unwrap(),
    }
    let _ = fs::remove_file("/run/cgshim/faults");
    sh("systemctl daemon-reload");
}

/// How many faults there were since [`fault`] asked for them.
pub(crate) fn faults() -> usize {
    fs::read_to_string("/run/cgshim/faults").unwrap_or_default().lines().count()
}

fn install() {
    let rootfs = Path::new(ROOTFS);
    for dir in ["bin", "proc", "sys", "dev", "tmp", "run/cgshim", "data"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    // Holes: reading them fills the page cache, and costs an emulated machine next to nothing.
    fs::File::create(rootfs.join("data/stream")).unwrap().set_len(1 << 30).unwrap();
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

/// Waits until something holds: `patience` at most with `CGSHIM_TEST_STRICT=1`, else a minute and a half at least.
pub(crate) fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let strict = std::env::var_os("CGSHIM_TEST_STRICT").is_some();
    let patience = if strict { patience } else { patience.max(90 * SECOND) };
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

/// Streams a file at a pace that background reclaim keeps up with.
pub(crate) const STREAMS: [&str; 6] =
    ["/bin/memload", "read", "--file=/data/stream", "--size=1G", "--rate=24M", "--chunk=64K"];

/// A container of runc that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) id: String,
}

impl Running {
    /// Registered when this returns: by its hook, or where the machine was too slow for that by the spool.
    pub(crate) fn new(id: &str, program: &[&str]) -> Running {
        let bundle = Bundle::injected(id, &format!("/cgshim-test/{id}"), program);
        sh(&format!("runc run --detach --bundle {} {id} >/dev/null 2>&1", bundle.path.display()));
        let running = Running { id: id.into() };
        until(&format!("{id} is registered"), 15 * SECOND, || running.view().is_some());
        running
    }

    /// As the daemon lists it.
    pub(crate) fn view(&self) -> Option<Value> {
        find(&ps(), &self.id).cloned()
    }

    /// A file of its memory controller.
    pub(crate) fn file(&self, name: &str) -> String {
        let root = if v1() { "/sys/fs/cgroup/memory" } else { "/sys/fs/cgroup" };
        let path = format!("{root}/cgshim-test/{}/{name}", self.id);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_owned()
    }

    /// Its limit, as the kernel has it now.
    pub(crate) fn limit(&self) -> u64 {
        self.file(if v1() { "memory.limit_in_bytes" } else { "memory.max" }).parse().unwrap()
    }

    /// What was reclaimed from it so far, since the daemon's start or longer.
    pub(crate) fn freed(&self) -> u64 {
        self.view().and_then(|view| view["reclaim"]["freed_bytes"].as_u64()).unwrap_or(0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        try_sh(&format!("runc delete --force {}", self.id));
    }
}

/// A bundle for a container of busybox under [`LIMIT`] that can reach the daemon.
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
}

impl Bundle {
    /// Without hooks. `cgroups_path` is the specification's, in either of its forms. What lists itself
    /// has [`HIGH`].
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
        spec["annotations"] = json!({});
        if program == LISTS_ITSELF {
            spec["annotations"] = json!({ "io.cgshim.high": "75%" });
        }
        spec["linux"]["cgroupsPath"] = json!(cgroups_path);
        // No swap: what grows is killed.
        spec["linux"]["resources"]["memory"] = json!({ "limit": LIMIT, "swap": LIMIT });
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/run/cgshim", "source": "/run/cgshim", "type": "none",
            "options": ["rbind", "ro"] }));
        fs::write(config, spec.to_string()).unwrap();
        Bundle { id: id.into(), path }
    }

    /// With one more annotation.
    pub(crate) fn annotate(&self, key: &str, value: &str) {
        let config = self.path.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["annotations"][key] = json!(value);
        fs::write(config, spec.to_string()).unwrap();
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
    let took = until("what has ended is not listed", 15 * SECOND, || find(&ps(), id).is_none());
    println!("{what}: registered with its policy, gone {} ms after the runtime", took.as_millis());
}

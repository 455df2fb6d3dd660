//! `cgctl demo --quick` on a real kernel: both sides of each load, the picture, and nothing left behind.

// The helpers below fail the test that called them.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn cgctl() -> Command {
    let program = std::env::var("CGCTL").unwrap_or_else(|_| env!("CARGO_BIN_EXE_cgctl").into());
    let mut command = Command::new(program);
    command.arg("demo").stdin(Stdio::null());
    command
}

/// The demo needs to make cgroups. Where it may not: says so, and why.
fn may_run(test: &str) -> bool {
    let reason = if !nix::unistd::geteuid().is_root() {
        "not root".to_owned()
    } else {
        match cgroupfs::MemoryHierarchy::find().and_then(|found| {
            let parent = found.parent_for_new()?;
            let name = format!("demo-test-{}-{test}", std::process::id());
            parent.create_child(&name)?;
            parent.remove_child(&name, Duration::from_secs(1))
        }) {
            Ok(()) => return true,
            Err(error) => error.to_string(),
        }
    };
    skip(test, &reason);
    false
}

fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

/// Where a file's pages are cache of a disk, as far as the test can know.
fn data_dir() -> PathBuf {
    std::env::var_os("CGSHIM_DATA").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// Groups of a demo with this process id, anywhere in the hierarchy.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    fn walk(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy() == name {
                    found.push(entry.path());
                }
                walk(&entry.path(), name, found);
            }
        }
    }
    let mut found = Vec::new();
    let hierarchy = cgroupfs::MemoryHierarchy::find().unwrap();
    walk(&hierarchy.mount_point, &format!("demo-{pid}"), &mut found);
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_quick_demo_measures_both_sides_and_leaves_nothing_but_the_picture() {
    if !may_run("a_quick_demo_measures_both_sides_and_leaves_nothing_but_the_picture") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let swaps = std::fs::read("/proc/swaps").map(|swaps| text(&swaps).lines().count()).ok();
    let child = cgctl()
        .args(["--quick", "--json", "--svg", "demo.svg", "--dir"])
        .arg(data_dir())
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let said = text(&stderr);
    // A host without swap and without a disk has nothing to show; then it must say so.
    if !status.success() && said.contains("no load of the demo can run here") {
        assert_eq!(status.code(), Some(1), "{said}");
        let reason = "neither swap nor a disk here, and no load can do without both";
        skip("a_quick_demo_measures_both_sides_and_leaves_nothing_but_the_picture", reason);
        return;
    }
    assert!(status.success(), "{status}: {said}");
    let json: Value = serde_json::from_str(&text(&stdout)).unwrap();
    assert_eq!(json["schema"], 1);
    let scenarios = json["scenarios"].as_array().unwrap();
    let skipped = json["skipped"].as_array().unwrap();
    assert_eq!(scenarios.len() + skipped.len(), 3, "{json}");
    assert!(!scenarios.is_empty(), "{said}");
    for scenario in scenarios {
        for side in ["off", "on"] {
            let side = &scenario[side];
            assert!(side["bytes"].as_u64().unwrap() > 0, "{json}");
            assert!(side["allocation"]["samples"].as_u64().unwrap() > 0, "{json}");
            assert!(side["allocation"]["p999_ms"].as_f64().unwrap() > 0.0, "{json}");
            assert_eq!(side["oom_kills"], 0, "{json}");
            assert_eq!(side["failed_ops"], 0, "{json}");
        }
        assert_eq!(
            scenario["off"]["rounds"], 0,
            "the engine was at work with the engine off: {json}"
        );
    }
    let picture = std::fs::read_to_string(dir.path().join("demo.svg")).unwrap();
    let document = roxmltree::Document::parse(&picture).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(groups_of(pid), Vec::<PathBuf>::new());
    let now = std::fs::read("/proc/swaps").map(|swaps| text(&swaps).lines().count()).ok();
    assert_eq!(now, swaps);
}

#[test]
fn a_signal_ends_the_demo_with_its_code_and_the_groups_are_gone() {
    if !may_run("a_signal_ends_the_demo_with_its_code_and_the_groups_are_gone") {
        return;
    }
    use nix::sys::signal::{Signal, kill};
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = cgctl()
            .arg("--dir")
            .arg(data_dir())
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while groups_of(child.id()).is_empty() && start.elapsed() < Duration::from_secs(20) {
            if child.try_wait().unwrap().is_some() {
                let test = "a_signal_ends_the_demo_with_its_code_and_the_groups_are_gone";
                skip(test, "no load of the demo can run here");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{signal}");
        assert_eq!(groups_of(child.id()), Vec::<PathBuf>::new(), "{signal}");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "{signal}: files are left");
    }
}

#[test]
fn what_cannot_be_made_is_named_with_the_way_out() {
    if !may_run("what_cannot_be_made_is_named_with_the_way_out") {
        return;
    }
    let output = cgctl().args(["--parent", "/no/such/group"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("no/such/group") && said.contains("make it first"), "{said}");
}

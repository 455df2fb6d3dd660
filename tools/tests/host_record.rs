//! `cgctl record` of a real group, and the recording read back.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgctl::cgctl_line;
use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, Version};
use cgroupfs::probe::Capabilities;
use cgroupfs::recording::Recording;
use cgroupfs::{Bytes, Limit};
use common::{Ground, Load, memory};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn open(recording: Arc<Recording>) -> Arc<dyn Memory> {
    match recording.version() {
        Version::V1 => Arc::new(MemoryV1::open(recording).unwrap()),
        Version::V2 => Arc::new(MemoryV2::open(recording).unwrap()),
    }
}

/// Every file beneath `dir`, as text.
fn texts(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(texts(&entry.path())),
            false => found.push(fs::read_to_string(entry.path()).unwrap()),
        }
    }
    found
}

#[test]
fn a_recording_of_a_group_reads_back_as_the_group() {
    let Some(ground) = Ground::new("a_recording_of_a_group_reads_back_as_the_group") else {
        return;
    };
    let group = ground.group("a-name-nobody-is-told");
    let live = memory(&group);
    live.set_limit(Limit::Bytes(Bytes::mib(64))).unwrap();
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(8)));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("recording");
    let line = format!("record {} -o {} --json", group.path().display(), out.display());
    let ran = cgctl_line(&line);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let summary = ran.object();
    assert!(summary["files"]["read"].as_u64().unwrap() >= 10, "{summary}");
    assert_eq!(summary["hierarchy"], live.version().as_str());

    let recording = Arc::new(Recording::load(&out).unwrap());
    for entry in fs::read_dir(group.path()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert_eq!(recording.has(&name), entry.file_type().unwrap().is_file(), "{name}");
    }
    let read = open(recording.clone());
    assert_eq!(read.limit().unwrap(), live.limit().unwrap());
    assert!(read.usage().unwrap().0.abs_diff(live.usage().unwrap().0) <= 2 << 20);
    let anon = |memory: &Arc<dyn Memory>| memory.stat().unwrap().anon.unwrap();
    assert!(anon(&read).0.abs_diff(anon(&live).0) <= 2 << 20, "{} {}", anon(&read), anon(&live));
    assert_eq!(
        read.swap_rules().unwrap().swaps_at_limit,
        live.swap_rules().unwrap().swaps_at_limit
    );
    // The same features as this kernel is probed for, with the same answers.
    let (there, here) = (Capabilities::of_recording(recording), Capabilities::probe().unwrap());
    let answers = |found: &Capabilities| -> Vec<_> {
        found.features.iter().map(|feature| (feature.name, feature.support)).collect()
    };
    assert_eq!(answers(&there), answers(&here));

    // Nothing in it names a process or the group.
    let about = fs::read_to_string(out.join("about")).unwrap();
    assert!(about.contains("\nprocesses 1\n"), "{about}");
    let pid = load.pid().to_string();
    for text in texts(&out) {
        assert!(!text.contains("a-name-nobody-is-told"), "{text}");
        assert!(!text.lines().any(|line| line == pid), "{text}");
    }

    // A second one does not write over the first.
    cgctl_line(&line).assert_failed(1, &["not empty", "-o"]);
}

#[test]
fn what_is_no_group_or_cannot_be_written_is_said() {
    let Some(ground) = Ground::new("what_is_no_group_or_cannot_be_written_is_said") else { return };
    let group = ground.group("empty");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("missing/recording");
    let named = format!("record {} -o {}", group.path().display(), out.display());
    cgctl_line(&named).assert_failed(1, &["cannot write", "missing/recording"]);
    let out = dir.path().join("recording");
    let none = format!("record {}/none -o {}", group.path().display(), out.display());
    cgctl_line(&none).assert_failed(1, &["none"]);
    assert!(!out.exists());
}

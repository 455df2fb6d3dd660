//! `cgctl dying`: what a removed group leaves is found under its parent, and emptied.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgroupfs::Bytes;
use common::{DiskFile, Ground, Load, alone, until};
use serde_json::Value;

const SECOND: std::time::Duration = std::time::Duration::from_secs(1);
const SHARE: Bytes = Bytes::mib(8);

/// What `cgctl dying --json` says, and how much it finds held under a group.
fn dying(ground: &Ground, arguments: &[&str]) -> (Value, u64) {
    let output = cgctl::cgctl().arg("dying").args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let own = ground.path().display().to_string();
    let parents = found["parents"].as_array().unwrap().clone();
    let mine = parents.iter().find(|parent| parent["cgroup"] == *own);
    (found, mine.map_or(0, |parent| parent["held_bytes"].as_u64().unwrap()))
}

#[test]
fn what_a_removed_group_holds_is_shown_under_its_parent_and_reaped() {
    let test = "what_a_removed_group_holds_is_shown_under_its_parent_and_reaped";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let file = DiskFile::new(SHARE);
    let group = ground.group("short");
    let mut load = Load::in_group(&group);
    load.read(&file, SHARE);
    drop((load, group));
    ground.dir.remove_child("short", 5 * SECOND).unwrap();
    let (found, held) = dying(&ground, &[]);
    assert_eq!(found["schema"], 1);
    assert!(found["dying"].as_u64().is_none_or(|n| n > 0), "{found}");
    if found["use_hierarchy_0"] == true {
        // A child's memory is not its parent's there: nothing is seen from above, which is said.
        return;
    }
    assert!(held >= SHARE.0 / 2, "{held}: {found}");
    let (reaped, _) = dying(&ground, &["--reap"]);
    assert!(reaped["reaped"]["freed_bytes"].as_u64().unwrap() >= SHARE.0 / 2, "{reaped}");
    until("nothing is held any more", 5 * SECOND, || dying(&ground, &[]).1 < 1 << 20);
}

//! What `cgctl caps` says of each lane of the kernel matrix, against what is recorded in `testdata/caps/`.
//!
//! A difference is either a kernel that is not what it was, or a change of ours: look, then record anew with
//! `ci/vm/caps LANE`.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgctl::cgctl_line;
use serde_json::{Map, Value, json};
use std::io::Write;

/// `testdata/caps/lanes.json`: an object by lane, each as [`normal`] makes it.
const RECORDED: &str = include_str!("../../testdata/caps/lanes.json");
const LANES: &str = include_str!("../../ci/vm/lanes");

fn recorded() -> Map<String, Value> {
    serde_json::from_str(RECORDED).unwrap()
}

/// `cgctl caps --json` without what differs from one boot, host or point release to the next.
fn normal(caps: &Value) -> Value {
    let kernel = caps["kernel"].as_str().unwrap();
    let release: Vec<&str> = kernel.split(['.', '-', '+', '~']).take(2).collect();
    let mut features = Map::new();
    for feature in caps["features"].as_array().unwrap() {
        let text = |key: &str| feature[key].as_str().unwrap();
        let line = format!("{}: {}", text("support"), without_sizes(text("why")));
        assert!(features.insert(text("name").into(), line.into()).is_none(), "twice: {feature}");
    }
    json!({
        "kernel": release.join("."),
        "hierarchy": caps["hierarchy"],
        "mount_point": caps["mount_point"],
        "features": features,
    })
}

/// `511.9 MiB free` as `SIZE free`.
fn without_sizes(why: &str) -> String {
    let words: Vec<&str> = why.split(' ').collect();
    let mut kept: Vec<&str> = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let unit = words.get(at + 1).is_some_and(|next| next.ends_with("iB") || *next == "B");
        match (word.parse::<f64>().is_ok() && unit, kept.last()) {
            (true, _) => kept.push("SIZE"),
            (false, Some(&"SIZE")) if word.ends_with('B') => {}
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

#[test]
fn a_lane_offers_what_is_recorded_of_it() {
    let ran = cgctl_line("caps --json");
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let found = normal(&ran.object());
    let names = |caps: &Value| -> Vec<String> {
        caps["features"].as_object().unwrap().keys().cloned().collect()
    };
    let Ok(lane) = std::env::var("CGSHIM_LANE") else {
        // Somebody's host: nobody knows what it has, but every feature is spoken of.
        for (lane, recorded) in recorded() {
            assert_eq!(names(&found), names(&recorded), "here and in {lane}");
        }
        for line in found["features"].as_object().unwrap().values() {
            let support = line.as_str().unwrap().split(':').next().unwrap();
            assert!(["native", "vendor", "emulated", "absent"].contains(&support), "{line}");
        }
        return;
    };
    // Past libtest, for `ci/vm/caps`.
    writeln!(std::io::stderr(), "CAPS {lane} {found}").unwrap();
    let all = recorded();
    let Some(recorded) = all.get(&lane) else {
        panic!("{lane} is not in testdata/caps/lanes.json: record it with ci/vm/caps {lane}");
    };
    let lines = |caps: &Value| -> Vec<String> {
        let pretty = serde_json::to_string_pretty(caps).unwrap();
        pretty.lines().map(str::to_owned).collect()
    };
    let (found, recorded) = (lines(&found), lines(recorded));
    let added =
        found.iter().filter(|line| !recorded.contains(line)).map(|line| format!("+ {line}"));
    let gone = recorded.iter().filter(|line| !found.contains(line)).map(|line| format!("- {line}"));
    let differences: Vec<String> = gone.chain(added).collect();
    assert!(
        differences.is_empty(),
        "{lane} is not as recorded (if that is right: ci/vm/caps {lane}):\n{}",
        differences.join("\n")
    );
}

#[test]
fn every_lane_is_recorded_and_nothing_else() {
    let mut lanes: Vec<&str> = LANES
        .lines()
        .filter_map(|line| line.strip_prefix("lane "))
        // A whole Debian on a kernel of the others, for what needs a system around it.
        .filter(|line| !line.starts_with("debian-"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    lanes.sort_unstable();
    let mut recorded: Vec<String> = recorded().keys().cloned().collect();
    recorded.sort_unstable();
    assert_eq!(recorded, lanes, "ci/vm/caps LANE records one; what is gone, remove by hand");
}

#[test]
fn sizes_and_point_releases_are_not_compared() {
    let caps = json!({
        "kernel": "6.1.0-41-cloud-amd64", "hierarchy": "v2", "mount_point": "/sys/fs/cgroup",
        "features": [{"name": "swap", "support": "native", "why": "511.9 MiB free, zram among it"}],
    });
    let normal = normal(&caps);
    assert_eq!(normal["kernel"], "6.1");
    assert_eq!(normal["features"]["swap"], "native: SIZE free, zram among it");
}

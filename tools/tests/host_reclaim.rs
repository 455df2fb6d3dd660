//! `cgctl reclaim`, `stat` and `caps` on real groups.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgctl::cgctl_line;
use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Limit};
use common::{DiskFile, Ground, Load, LowestLimit, MIB, alone, mem_total, memory, without_swap};
use serde_json::Value;

fn number(object: &Value, pointer: &str) -> u64 {
    object.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {object}"))
}

#[test]
fn reclaim_takes_what_was_asked_for_and_at_most_four_percent_more() {
    let test = "reclaim_takes_what_was_asked_for_and_at_most_four_percent_more";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    // 100 of 400 MiB where there is room for that, a quarter of it in small machines.
    let (size, asked) = if mem_total() >= Bytes::mib(1500) { (400, 100) } else { (100, 25) };
    let group = ground.group("cache");
    let memory = memory(&group);
    let limit = Limit::Bytes(Bytes::mib(size + 128));
    memory.set_limit(limit).unwrap();
    let file = DiskFile::new(Bytes::mib(size));
    let mut load = Load::in_group(&group);
    load.read(&file, Bytes::mib(size));
    let lowest = LowestLimit::watch(memory.clone());
    for run in 0..30 {
        // Up to its size again: what is cached still is only looked up.
        load.read(&file, Bytes::mib(size));
        let before = memory.usage().unwrap();
        assert!(before >= Bytes::mib(size * 9 / 10), "run {run}: {before}");
        let ran = cgctl_line(&format!("reclaim {} {asked}M --json", group.path().display()));
        assert_eq!(ran.code(), Some(0), "run {run}: {ran:?}");
        let after = memory.usage().unwrap();
        let result = ran.object();
        for (what, freed) in [
            ("reported", number(&result, "/freed_bytes")),
            ("gone", before.saturating_sub(after).0),
        ] {
            // Usage is off by the stock of each CPU: 64 pages.
            let least = asked * MIB - if what == "gone" { MIB } else { 0 };
            assert!(
                (least..=asked * MIB * 104 / 100).contains(&freed),
                "run {run}: {what} {freed} of {asked} MiB: {result}"
            );
        }
        assert_eq!(result["declared_limit_restored"], true);
        assert_eq!(memory.limit().unwrap(), limit, "run {run}");
    }
    let lowest = lowest.seen();
    assert!(
        lowest >= Limit::Bytes(Bytes::mib(size * 9 / 10 - asked)).page_floor(),
        "stepped to {lowest}"
    );
    assert!(load.is_alive());
}

#[test]
fn reclaim_of_more_than_there_is_says_why_and_leaves_the_rest() {
    let test = "reclaim_of_more_than_there_is_says_why_and_leaves_the_rest";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let group = ground.group("mixed");
    let memory = memory(&group);
    memory.set_limit(Limit::Bytes(Bytes::mib(160))).unwrap();
    without_swap(&group);
    let file = DiskFile::new(Bytes::mib(64));
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(48)));
    load.read(&file, Bytes::mib(64));
    let lowest = LowestLimit::watch(memory.clone());
    let ran = cgctl_line(&format!("reclaim {} 100M --json", group.path().display()));
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let result = ran.object();
    let why = result["stopped_because"].as_str().unwrap();
    assert!(why.contains("cannot be reclaimed"), "{why}");
    let freed = number(&result, "/freed_bytes");
    assert!((24 * MIB..=68 * MIB).contains(&freed), "{result}");
    assert!(lowest.seen() >= Limit::Bytes(Bytes::mib(48)));
    assert_eq!(memory.limit().unwrap(), Limit::Bytes(Bytes::mib(160)));
    assert!(load.is_alive());
    assert_eq!(memory.counters().unwrap().oom_kill.unwrap_or(0), 0);
}

#[test]
fn a_group_with_less_in_use_than_asked_for_is_a_failure_that_says_so() {
    let test = "a_group_with_less_in_use_than_asked_for_is_a_failure_that_says_so";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("empty");
    let ran = cgctl_line(&format!("reclaim {} 1M", group.path().display()));
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert!(ran.stderr.contains("no more than that is in use"), "{ran:?}");
}

#[test]
fn an_ended_group_is_emptied_without_a_margin() {
    let Some(ground) = Ground::new("an_ended_group_is_emptied_without_a_margin") else { return };
    let _alone = alone();
    let group = ground.group("ended");
    let memory = memory(&group);
    memory.set_limit(Limit::Bytes(Bytes::mib(128))).unwrap();
    let file = DiskFile::new(Bytes::mib(32));
    let mut load = Load::in_group(&group);
    load.read(&file, Bytes::mib(32));
    drop(load);
    let ran = cgctl_line(&format!("reclaim {} 28M --json", group.path().display()));
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert!(number(&ran.object(), "/freed_bytes") >= 28 * MIB, "{ran:?}");
}

#[test]
fn a_group_is_found_by_name_by_path_and_by_directory() {
    let Some(ground) = Ground::new("a_group_is_found_by_name_by_path_and_by_directory") else {
        return;
    };
    let name = format!("cgshim-find-{}", std::process::id());
    let group = ground.group(&name);
    memory(&group).set_limit(Limit::Bytes(Bytes::mib(64))).unwrap();
    let mount = &ground.hierarchy.mount_point;
    let in_hierarchy = format!("/{}", group.path().strip_prefix(mount).unwrap().display());
    for text in [&name[..], &in_hierarchy, group.path().to_str().unwrap()] {
        let ran = cgctl_line(&format!("stat {text} --json"));
        assert_eq!(ran.code(), Some(0), "{text}: {ran:?}");
        let stat = ran.object();
        assert_eq!(stat["schema"], 1);
        assert_eq!(stat["name"], name);
        assert_eq!(stat["cgroup"], group.path().to_str().unwrap());
        assert_eq!(stat["limit_bytes"], 64 * MIB);
        assert!(stat["usage_bytes"].is_u64() && stat["processes"] == 0, "{stat}");
    }
    // Two of a name: which one is asked back.
    let twin = ground.group("twin");
    twin.create_child(&name).unwrap();
    let ran = cgctl_line(&format!("stat {name}"));
    assert_ne!(ran.code(), Some(0), "{ran:?}");
    assert!(ran.stderr.contains(&format!("twin/{name}")), "{ran:?}");
    // A table for people, without its header on demand.
    let table = cgctl_line(&format!("stat {in_hierarchy}"));
    assert!(table.stdout.contains("USAGE") && table.stdout.contains("64"), "{table:?}");
    let bare = cgctl_line(&format!("stat {in_hierarchy} --no-headers"));
    assert!(!bare.stdout.contains("USAGE") && bare.stdout.lines().count() == 1, "{bare:?}");
}

#[test]
fn caps_names_each_feature_with_how_and_why() {
    let Some(ground) = Ground::new("caps_names_each_feature_with_how_and_why") else { return };
    // From inside a group of ours: it probes next to its own.
    let group = ground.group("asking");
    let procs = group.path().join("cgroup.procs");
    let cgctl = cgctl::cgctl();
    let ask = |words: &str| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "echo $$ >$0 && exec $1 caps $2"]).arg(&procs);
        command.arg(cgctl.get_program()).arg(words);
        cgctl::finish(command)
    };
    let ran = ask("--json");
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let caps = ran.object();
    assert_eq!(
        (&caps["schema"], &caps["hierarchy"]),
        (&1.into(), &if ground.v1() { "v1" } else { "v2" }.into())
    );
    for feature in caps["features"].as_array().unwrap() {
        let support = feature["support"].as_str().unwrap();
        assert!(["native", "vendor", "emulated", "absent"].contains(&support), "{feature}");
        assert!(!feature["why"].as_str().unwrap().is_empty(), "{feature}");
    }
    let table = ask("");
    assert!(table.stdout.contains("memory_controller"), "{table:?}");
    assert_eq!(ground.groups(), ["asking"]);
    assert_eq!(group.children().unwrap(), [""; 0]);
}

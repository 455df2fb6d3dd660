//! OOMs of each kind, and their cause, scope and victim on record: what every kernel has to pass.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;
mod oom_bed;

use cgroupfs::Bytes;
use cgroupfs::files::ControlDir;
use cgshim::core::oom::{Cause, From};
use common::{Ground, Load, alone, skip, without_swap};
use oom_bed::{SECOND, Watching, go, greedy, limit, path_of, remove, victim};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

#[test]
fn a_child_is_killed_and_init_lives() {
    let Some(ground) = Ground::new("a_child_is_killed_and_init_lives") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    limit(&group, Bytes::mib(64));
    let mut init = Load::in_group(&group);
    let mut child = Load::in_group(&group);
    watching.add(&group, Some(init.pid()));
    assert!(!child.anon(Bytes::mib(96)));
    let record = watching.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
    assert_eq!(record.limit_cgroup, Some(path_of(&ground, &group)));
    assert_eq!(record.init_survived, Some(true));
    assert_eq!(record.generation, group.inode());
    assert_eq!(record.limit_in_force_bytes, Some(64 << 20));
    // v2 tells of it when it happens, and on a busy or an emulated machine what was there is gone by then: the
    // record says so.
    let emulated = std::env::var_os("CGSHIM_LANE").is_some();
    if (ground.v1() && !emulated) || record.from["usage_bytes"] == From::FilesBefore {
        let usage = record.usage_bytes.unwrap();
        assert!(usage > 32 << 20 && usage <= 64 << 20, "{usage}");
        assert!(record.breakdown.anon_bytes.unwrap() > 32 << 20, "{:?}", record.breakdown);
    } else {
        assert_eq!(record.from["usage_bytes"], From::FilesAfter);
    }
    if watching.sees_the_log() {
        assert_eq!(victim(&record), Some(i32::try_from(child.pid()).unwrap()));
        assert!(record.unknown.is_empty(), "{:?}", record.unknown);
    }
    assert!(init.is_alive());
}

#[test]
fn init_itself_is_killed() {
    let Some(ground) = Ground::new("init_itself_is_killed") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    limit(&group, Bytes::mib(48));
    let mut init = Load::in_group(&group);
    watching.add(&group, Some(init.pid()));
    assert!(!init.anon(Bytes::mib(96)));
    let record = watching.only();
    assert_eq!((record.cause, record.init_survived), (Cause::OwnLimit, Some(false)));
    if watching.sees_the_log() {
        assert_eq!(victim(&record), Some(i32::try_from(init.pid()).unwrap()));
    }
}

#[test]
fn the_limit_of_the_group_above_is_named_and_an_idle_sibling_has_no_record() {
    let test = "the_limit_of_the_group_above_is_named_and_an_idle_sibling_has_no_record";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    for watching in [Watching::new(), Watching::blind()] {
        let pod = Arc::new({
            let made = ground.dir.create_child("pod").unwrap();
            ground.hierarchy.enable_memory(made.path()).unwrap()
        });
        limit(&pod, Bytes::mib(48));
        let (a, b) =
            (Arc::new(pod.create_child("a").unwrap()), Arc::new(pod.create_child("b").unwrap()));
        without_swap(&a);
        let mut idle = Load::in_group(&b);
        let mut load = Load::in_group(&a);
        watching.add(&a, Some(load.pid()));
        watching.add(&b, Some(idle.pid()));
        let flat = std::fs::read(pod.path().join("memory.use_hierarchy"));
        if flat.is_ok_and(|flat| flat.trim_ascii() == b"0") {
            // v1 of 5.10 as it is without systemd: limits of groups above do not count.
            assert!(load.anon(Bytes::mib(96)));
            return assert_eq!(watching.records(1, SECOND), []);
        }
        assert!(!load.anon(Bytes::mib(96)));
        let record = watching.only();
        assert_eq!(record.cgroup, a.path().display().to_string());
        assert_eq!(record.cause, Cause::AncestorLimit, "{record:#?}");
        assert_eq!(record.limit_cgroup, Some(path_of(&ground, &pod)));
        assert_eq!(record.ancestor_limit_bytes, Some(48 << 20));
        match watching.sees_the_log() {
            true => assert_eq!(victim(&record), Some(i32::try_from(load.pid()).unwrap())),
            // By what the kernel told of the groups alone; who it was nobody guesses.
            false => assert_eq!((victim(&record), record.unknown.len()), (None, 1)),
        }
        assert!(idle.is_alive());
        drop((load, idle));
        pod.remove_child("a", 5 * SECOND).unwrap();
        pod.remove_child("b", 5 * SECOND).unwrap();
        drop(pod);
        remove(&ground, "pod");
    }
}

#[test]
fn of_a_young_container_in_a_group_with_a_limit_the_cause_is_known_however_soon_it_is_gone() {
    let test =
        "of_a_young_container_in_a_group_with_a_limit_the_cause_is_known_however_soon_it_is_gone";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let watching = Watching::new();
    let made = ground.dir.create_child("pod").unwrap();
    let pod = Arc::new(ground.hierarchy.enable_memory(made.path()).unwrap());
    // Of which nothing is ever missing.
    limit(&pod, Bytes::mib(256));
    // Of more than ten kills in five seconds the log does not say whose limit it was.
    let kills = 24;
    for n in 0..kills {
        let name = format!("c{n}");
        let group = Arc::new(pod.create_child(&name).unwrap());
        limit(&group, Bytes::mib(16));
        let mut load = Load::in_group(&group);
        assert!(load.anon(Bytes::mib(8)));
        watching.add(&group, Some(load.pid()));
        watching.has_opened(1);
        drop(group);
        assert!(!load.anon(Bytes::mib(16)));
        drop(load);
        pod.remove_child(&name, 5 * SECOND).unwrap();
    }
    let records = watching.records(kills, 10 * SECOND);
    assert!(records.len() == kills || !watching.sees_the_log(), "{} on record", records.len());
    for record in &records {
        assert_eq!(record.cause, Cause::OwnLimit, "{record:#?}");
        assert_eq!(
            record.limit_cgroup.as_deref(),
            record
                .cgroup
                .split("/pod/")
                .nth(1)
                .map(|name| { format!("{}/{name}", path_of(&ground, &pod)) })
                .as_deref()
        );
    }
    drop(pod);
    remove(&ground, "pod");
}

#[test]
fn a_container_without_a_limit_deep_beneath_one_is_killed_for_that() {
    let test = "a_container_without_a_limit_deep_beneath_one_is_killed_for_that";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let enabled = |parent: &cgroupfs::Cgroup, name: &str| {
        let made = parent.create_child(name).unwrap();
        Arc::new(ground.hierarchy.enable_memory(made.path()).unwrap())
    };
    let pod = enabled(&ground.dir, "pod");
    limit(&pod, Bytes::mib(48));
    let mut levels = vec![pod.clone()];
    for n in 0..12 {
        levels.push(enabled(levels.last().unwrap(), &format!("level-{n}")));
    }
    for watching in [Watching::new(), Watching::blind()] {
        let group = Arc::new(levels.last().unwrap().create_child("c").unwrap());
        without_swap(&group);
        let mut load = Load::in_group(&group);
        watching.add(&group, Some(load.pid()));
        let flat = std::fs::read(pod.path().join("memory.use_hierarchy"));
        if flat.is_ok_and(|flat| flat.trim_ascii() == b"0") {
            // Limits of groups above do not count.
            break;
        }
        assert!(!load.anon(Bytes::mib(96)));
        let record = watching.only();
        assert_eq!(record.cause, Cause::AncestorLimit, "{record:#?}");
        assert_eq!(record.limit_cgroup, Some(path_of(&ground, &pod)));
        assert_eq!(
            (record.limit_in_force_bytes, record.ancestor_limit_bytes),
            (None, Some(48 << 20))
        );
        drop((load, group));
        levels.last().unwrap().remove_child("c", 5 * SECOND).unwrap();
    }
}

#[test]
fn two_groups_at_once_each_have_their_own_victim() {
    let Some(ground) = Ground::new("two_groups_at_once_each_have_their_own_victim") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let groups = [ground.group("a"), ground.group("b")];
    let mut loads: Vec<Load> = groups
        .iter()
        .map(|group| {
            limit(group, Bytes::mib(48));
            let load = Load::in_group(group);
            watching.add(group, Some(load.pid()));
            load
        })
        .collect();
    std::thread::scope(|scope| {
        for load in &mut loads {
            scope.spawn(|| assert!(!load.anon(Bytes::mib(96))));
        }
    });
    let records = watching.records(2, 10 * SECOND);
    assert_eq!(records.len(), 2);
    for (group, load) in groups.iter().zip(&loads) {
        let own = group.path().display().to_string();
        let record = records.iter().find(|record| record.cgroup == own).unwrap();
        assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
        if watching.sees_the_log() {
            assert_eq!(victim(record), Some(i32::try_from(load.pid()).unwrap()));
        }
    }
}

#[test]
fn a_kill_in_a_group_beneath_is_the_containers() {
    let Some(ground) = Ground::new("a_kill_in_a_group_beneath_is_the_containers") else { return };
    let _alone = alone();
    // Of more than ten kills in five seconds the log does not name the group: those of tests before this one are to
    // be past, as nothing else tells whose limit it was.
    std::thread::sleep(6 * SECOND);
    let watching = Watching::new();
    let made = ground.dir.create_child("c").unwrap();
    let group = Arc::new(ground.hierarchy.enable_memory(made.path()).unwrap());
    let inner = Arc::new(group.create_child("inner").unwrap());
    limit(&inner, Bytes::mib(32));
    watching.add(&group, None);
    let mut load = Load::in_group(&inner);
    assert!(!load.anon(Bytes::mib(64)));
    let record = watching.only();
    assert_eq!((record.cgroup, record.kills), (group.path().display().to_string(), 1));
    if watching.sees_the_log() {
        assert_eq!(record.cause, Cause::OwnLimit);
        assert_eq!(record.limit_cgroup, Some(path_of(&ground, &inner)));
        assert_eq!(record.victim.unwrap().pid, i32::try_from(load.pid()).unwrap());
    }
}

#[test]
fn tmpfs_that_fills_the_limit_is_seen_in_the_breakdown() {
    let Some(ground) = Ground::new("tmpfs_that_fills_the_limit_is_seen_in_the_breakdown") else {
        return;
    };
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return skip("tmpfs_that_fills_the_limit_is_seen_in_the_breakdown", "no /dev/shm");
    }
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    limit(&group, Bytes::mib(48));
    let file = shm.join(format!("cgshim-test-{}", std::process::id()));
    let mut init = Load::in_group(&group);
    watching.add(&group, Some(init.pid()));
    let mut writer = Command::new("/bin/sh")
        .arg("-c")
        .arg("echo $$ > \"$0\" && exec dd if=/dev/zero of=\"$1\" bs=64k count=1536")
        .arg(group.path().join("cgroup.procs"))
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let records = watching.records(1, 20 * SECOND);
    // tmpfs does not go with its writer: until the file is deleted more may die.
    std::fs::remove_file(&file).unwrap();
    let _ = writer.kill();
    let _ = writer.wait();
    let record = &records[0];
    assert_eq!(record.cause, Cause::OwnLimit);
    assert!(record.breakdown.shmem_bytes.unwrap() > 16 << 20, "{:?}", record.breakdown);
    let _ = init.is_alive();
}

#[test]
fn a_storm_of_kills_is_counted_to_the_last() {
    let Some(ground) = Ground::new("a_storm_of_kills_is_counted_to_the_last") else { return };
    let _alone = alone();
    let watching = Watching::new();
    let group = ground.group("c");
    let files = limit(&group, Bytes::mib(24));
    let key = watching.add(&group, None);
    // An emulated machine takes seconds for eight.
    let rounds = if std::env::var_os("CGSHIM_LANE").is_some() { 1 } else { 3 };
    for _ in 0..rounds {
        let mut storm: Vec<Child> = (0..8).map(|_| greedy(&group)).collect();
        storm.iter_mut().for_each(go);
        for mut child in storm {
            child.wait().unwrap();
        }
    }
    std::thread::sleep(SECOND);
    let counted = files.counters().unwrap().oom_kill.unwrap();
    watching.watch.unwatch(key);
    let records = watching.records(1000, 2 * SECOND);
    let kills: u64 = records.iter().map(|record| record.kills).sum();
    assert_eq!(kills, counted);
    assert!(
        kills >= rounds * 8 || records.iter().all(|record| record.cause == Cause::OwnLimit),
        "{kills}"
    );
    if watching.sees_the_log() {
        let mut victims: Vec<i32> = records.iter().filter_map(victim).collect();
        assert_eq!(victims.len(), records.len(), "a victim is not known");
        victims.sort_unstable();
        victims.dedup();
        assert_eq!(victims.len(), records.len(), "a victim is named twice");
    }
}

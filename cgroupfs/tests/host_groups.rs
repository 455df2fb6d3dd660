//! Cgroups on the kernel at hand: made, opened, listed, removed, and gone.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::events::{Modified, Notification};
use cgroupfs::files::{Access, ControlDir};
use cgroupfs::memory::ReclaimFile;
use cgroupfs::{Bytes, Cgroup, Error, Limit, Op};
use common::{Ground, Load, memory};
use nix::errno::Errno;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn a_group_is_made_found_and_removed() {
    let Some(ground) = Ground::new("a_group_is_made_found_and_removed") else { return };
    let made = ground.dir.create_child("web").unwrap();
    assert_eq!(ground.dir.child("web").unwrap().inode(), made.inode());
    assert_eq!(ground.hierarchy.open(made.path()).unwrap().inode(), made.inode());
    assert_eq!(ground.groups(), ["web"]);
    assert!(made.has("cgroup.procs") && !made.is_gone());
    ground.dir.remove_child("web", Duration::from_secs(1)).unwrap();
    assert!(made.is_gone());
    assert_eq!(ground.groups(), [""; 0]);
    // Gone already is what was asked for.
    ground.dir.remove_child("web", Duration::ZERO).unwrap();
}

#[test]
fn a_name_that_is_taken_is_refused_with_its_path_and_the_way_out() {
    let test = "a_name_that_is_taken_is_refused_with_its_path_and_the_way_out";
    let Some(ground) = Ground::new(test) else { return };
    let first = ground.group("web");
    let error = ground.dir.create_child("web").unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EEXIST));
    let message = error.to_string();
    for part in [first.path().to_str().unwrap(), "create", "EEXIST", "choose another name"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}

#[test]
fn a_path_never_leads_out_of_the_hierarchy() {
    let Some(ground) = Ground::new("a_path_never_leads_out_of_the_hierarchy") else { return };
    for bad in ["a/../../..", "../.."] {
        let opened = Cgroup::open(&ground.hierarchy.mount_point, Path::new(bad));
        assert!(matches!(opened, Err(Error::BadName { .. })), "{bad}: {opened:?}");
    }
    for bad in ["..", "a/b", "", "memory.stat", "a\nb"] {
        assert!(matches!(ground.dir.create_child(bad), Err(Error::BadName { .. })), "{bad:?}");
        assert!(matches!(ground.dir.child(bad), Err(Error::BadName { .. })), "{bad:?}");
    }
    let outside = ground.hierarchy.open(Path::new("/proc")).unwrap_err().to_string();
    assert!(outside.contains("/proc") && outside.contains("not under"), "{outside}");
}

#[test]
fn a_busy_group_is_not_removed_and_the_wait_is_bounded() {
    let test = "a_busy_group_is_not_removed_and_the_wait_is_bounded";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("busy");
    let load = Load::in_group(&group);
    assert_eq!(group.procs().unwrap(), [load.pid() as i32]);
    let start = Instant::now();
    let error = ground.dir.remove_child("busy", Duration::from_millis(200)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(
        matches!(error, Error::Refused { op: Op::Remove, errno: Errno::EBUSY, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("still has processes"), "{error}");
    drop(load);
    ground.dir.remove_child("busy", Duration::from_secs(5)).unwrap();
    assert!(group.is_gone());
}

#[test]
fn a_file_that_this_kernel_lacks_is_absent_and_not_vanished() {
    let test = "a_file_that_this_kernel_lacks_is_absent_and_not_vanished";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("here");
    assert!(!group.has("memory.nonesuch"));
    let error = group.open_fd("memory.nonesuch", Access::Read).unwrap_err();
    assert!(error.is_absent() && error.to_string().contains("memory.nonesuch"), "{error}");
}

#[test]
fn whatever_is_asked_of_a_vanished_group_says_so() {
    let Some(ground) = Ground::new("whatever_is_asked_of_a_vanished_group_says_so") else { return };
    let group = ground.group("gone");
    let memory = memory(&group);
    ground.dir.remove_child("gone", Duration::from_secs(5)).unwrap();
    // Another group of that name is no substitute.
    let other = ground.group("gone");
    assert_ne!(other.inode(), group.inode());

    let limit = Limit::Bytes(Bytes::mib(64));
    let mut answers = vec![
        ("usage", memory.usage().err()),
        ("limit", memory.limit().err()),
        ("set_limit", memory.set_limit(limit).err()),
        ("set_limits", memory.set_limits(limit, None).err()),
        ("set_limits with swap", memory.set_limits(limit, Some(limit)).err()),
        ("high", memory.high().err()),
        ("set_high", memory.set_high(limit).err()),
        ("stat", memory.stat().err()),
        ("peak", memory.peak().err()),
        ("counters", memory.counters().err()),
        ("swap_usage", memory.swap_usage().err()),
        ("swap_rules", memory.swap_rules().err()),
        ("procs", group.procs().err()),
        ("children", group.children().err()),
        ("create_child", group.create_child("x").err()),
        ("child", group.child("x").err()),
        ("open", group.open_fd("memory.stat", Access::Read).err()),
    ];
    for file in [
        ReclaimFile::Limit,
        ReclaimFile::ForceEmpty,
        ReclaimFile::Reclaim,
        ReclaimFile::High,
        ReclaimFile::Swappiness,
    ] {
        answers.push(("reclaim_file", memory.reclaim_file(file).err()));
    }
    if ground.v1() {
        answers.push(("limit_bound", memory.limit_bound().err()));
        answers.push(("threshold", Notification::usage_threshold(&group, Bytes::mib(1)).err()));
        answers.push(("oom", Notification::oom(&group).err()));
    }
    for (what, error) in answers {
        assert!(error.as_ref().is_some_and(Error::is_vanished), "{what}: {error:?}");
    }
    let text = memory.usage().unwrap_err().to_string();
    assert!(text.contains("gone") && text.contains("removed"), "{text}");
}

#[test]
fn a_watch_on_a_vanished_group_says_so() {
    let Some(ground) = Ground::new("a_watch_on_a_vanished_group_says_so") else { return };
    let group = ground.group("gone");
    ground.dir.remove_child("gone", Duration::from_secs(5)).unwrap();
    let error = Modified::watch(&group, "cgroup.procs").err();
    assert!(error.as_ref().is_some_and(Error::is_vanished), "{error:?}");
}

#[test]
fn a_watch_is_on_this_group_and_not_on_a_later_one_of_its_name() {
    let test = "a_watch_is_on_this_group_and_not_on_a_later_one_of_its_name";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("twice");
    ground.dir.remove_child("twice", Duration::from_secs(5)).unwrap();
    let _later = ground.group("twice");
    let error = Modified::watch(&group, "cgroup.procs").err();
    assert!(error.as_ref().is_some_and(Error::is_vanished), "{error:?}");
}

#[test]
fn a_new_group_goes_as_near_to_our_own_as_the_kernel_allows() {
    let test = "a_new_group_goes_as_near_to_our_own_as_the_kernel_allows";
    let Some(ground) = Ground::new(test) else { return };
    let (own, parent) = (&ground.hierarchy.own, ground.hierarchy.parent_for_new().unwrap());
    assert!(own.starts_with(parent.path()), "{own:?} {parent:?}");
    assert!(!ground.v1() || own == parent.path());
}

#[test]
fn probing_leaves_nothing_behind() {
    let Some(ground) = Ground::new("probing_leaves_nothing_behind") else { return };
    // From within a group of ours, as a probe makes its group next to its own.
    let group = ground.group("prober");
    let mut load = Load::in_group(&group);
    let answer = load.tell("probe").unwrap();
    assert!(answer.ends_with(" features"), "{answer}");
    assert_eq!(group.children().unwrap(), [""; 0]);
    assert_eq!(ground.groups(), ["prober"]);
    let _: Arc<Cgroup> = group;
}

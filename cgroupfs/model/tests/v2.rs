//! Claims about v2: `memory.max`, `memory.high`, `memory.reclaim`, protection, `subtree_control`.

#![allow(clippy::unwrap_used)]

mod common;

use cgroupfs_model::{Config, Hierarchy, Host, Kind, Load, Via};
use common::{Bed, bed, mib};
use nix::errno::Errno;
use std::time::Duration;

fn v2() -> Config {
    Config { swap: 0, ..Config::v2_6_1() }
}

#[test]
fn memory_max_is_stored_first_then_reclaims_then_kills() {
    let bed = bed(v2());
    bed.charge(Kind::File, mib(40));
    bed.charge(Kind::Anon, mib(40));
    bed.max(50).unwrap();
    assert_eq!(bed.host.lock().oom_kills(), 0);
    bed.max(30).unwrap();
    assert_eq!(bed.size("memory.max"), mib(30));
    assert!(bed.host.lock().task(bed.task).unwrap().oom_killed);
    assert_eq!(bed.key("memory.events", "oom_kill"), 1);
}

#[test]
fn memory_reclaim_frees_what_is_asked_and_is_eagain_when_short() {
    let bed = bed(v2());
    bed.charge(Kind::File, mib(100));
    bed.write("memory.reclaim", "40M").unwrap();
    let usage = bed.size("memory.current");
    assert!(usage <= mib(60) + 64 && usage + 64 >= mib(60), "{usage}");
    assert_eq!(bed.write("memory.reclaim", "100M"), Err(Errno::EAGAIN));
    assert_eq!(bed.size("memory.current"), 0);
}

#[test]
fn memory_reclaim_is_eintr_after_partial_progress() {
    let bed = bed(v2());
    bed.charge(Kind::File, mib(100));
    bed.host.lock().signal_after(100);
    assert_eq!(bed.write("memory.reclaim", "40M"), Err(Errno::EINTR));
    assert!(bed.size("memory.current") < mib(90));
}

/// Usage of so many growers at memset speed over `high` = 100 MiB after so many seconds, in MiB.
fn climb(growers: usize, seconds: u64) -> f64 {
    let host = Host::new(v2());
    let group = host.lock().mkdir(host.root(Hierarchy::Memory), "a").unwrap();
    let actor = cgroupfs_model::Actor(0);
    host.lock().write(actor, group, "memory.high", b"100M").unwrap();
    for _ in 0..growers {
        host.lock().spawn(group, Load::anon(mib(1000), u64::MAX));
    }
    host.advance(Duration::from_secs(seconds));
    host.lock().charged(group).1 as f64 / 256.0
}

#[test]
fn memory_high_slows_growers_along_the_kernels_own_curve() {
    // Measured on native v2 6.1: one grower 104/109/112/114 after 2/10/21/31 s, four 109/117/122/127
    // after 2/10/20/30.
    for (growers, seconds, measured) in [
        (1, 2, 104.0),
        (1, 10, 109.0),
        (1, 21, 112.0),
        (1, 31, 114.0),
        (4, 10, 117.0),
        (4, 30, 127.0),
    ] {
        let usage = climb(growers, seconds);
        assert!((usage - measured).abs() < 3.0, "{growers} after {seconds}: {usage} {measured}");
    }
}

#[test]
fn up_to_one_and_a_quarter_percent_over_high_nobody_sleeps() {
    let bed = bed(v2());
    bed.write("memory.high", "100M").unwrap();
    bed.host.lock().set_load(bed.task, Load::anon(mib(1000), mib(101)));
    bed.host.advance(Duration::from_secs(1));
    assert_eq!(bed.host.lock().throttled(), Duration::ZERO);
    assert!(bed.key("memory.events", "high") > 0);
}

#[test]
fn kernel_4_19_reclaims_over_high_but_never_sleeps() {
    let bed = bed(Config { high_sleeps: false, ..v2() });
    bed.write("memory.high", "10M").unwrap();
    bed.host.lock().set_load(bed.task, Load::anon(mib(100), mib(50)));
    bed.host.advance(Duration::from_secs(2));
    assert_eq!(bed.host.lock().charged(bed.group).0, mib(50));
}

#[test]
fn a_write_of_high_reclaims_in_the_writer() {
    let bed = bed(v2());
    bed.charge(Kind::File, mib(100));
    bed.write("memory.high", "30M").unwrap();
    assert!(bed.size("memory.current") <= mib(30));
}

fn parent_with_two(config: Config) -> (Bed, cgroupfs_model::GroupId, cgroupfs_model::GroupId) {
    let bed = bed(config);
    bed.host.lock().kill(bed.task);
    bed.write("cgroup.subtree_control", "+memory").unwrap();
    let (one, two) = {
        let mut state = bed.host.lock();
        (state.mkdir(bed.group, "one").unwrap(), state.mkdir(bed.group, "two").unwrap())
    };
    for group in [one, two] {
        let mut state = bed.host.lock();
        let task = state.spawn(group, Load::hold());
        state.allocate(task, Kind::File, Via::Syscall, mib(40));
    }
    (bed, one, two)
}

#[test]
fn memory_low_sends_reclaim_elsewhere_first_and_min_always() {
    let (bed, one, two) = parent_with_two(v2());
    bed.write_to(one, "memory.low", "50M").unwrap();
    bed.write("memory.reclaim", "30M").unwrap();
    assert!(bed.host.lock().charged(one).0 == mib(40));
    bed.write("memory.reclaim", "30M").unwrap();
    assert!(bed.host.lock().charged(one).0 < mib(40));
    bed.write_to(two, "memory.min", "50M").unwrap();
    let before = bed.host.lock().charged(two).0;
    let _ = bed.write("memory.reclaim", "80M");
    assert_eq!(bed.host.lock().charged(two).0, before);
}

#[test]
fn events_count_up_to_the_root_and_local_ones_do_not() {
    let (bed, one, _) = parent_with_two(v2());
    bed.write_to(one, "memory.max", "41M").unwrap();
    let task = bed.host.lock().spawn(one, Load::hold());
    bed.host.lock().allocate(task, Kind::Anon, Via::Fault, mib(60));
    assert_eq!(bed.key("memory.events", "oom_kill"), 1);
    assert_eq!(bed.key("memory.events.local", "oom_kill"), 0);
    assert!(bed.read_of(one, "memory.events.local").contains("oom_kill 1"));
}

#[test]
fn oom_group_kills_the_whole_group() {
    let bed = bed(v2());
    let other = bed.host.lock().spawn(bed.group, Load::hold());
    bed.max(32).unwrap();
    bed.write("memory.oom.group", 1).unwrap();
    bed.charge(Kind::Anon, mib(40));
    assert!(bed.host.lock().task(other).unwrap().oom_killed);
    assert_eq!(bed.key("memory.events", "oom_kill"), 2);
}

#[test]
fn swap_max_bounds_reclaim_and_kernel_alike() {
    let bed = bed(Config::v2_6_1());
    bed.write("memory.swap.max", "10M").unwrap();
    bed.charge(Kind::Anon, mib(40));
    assert_eq!(bed.write("memory.reclaim", "20M"), Err(Errno::EAGAIN));
    assert_eq!(bed.size("memory.swap.current"), mib(10));
}

#[test]
fn subtree_control_is_ebusy_with_processes_and_gives_children_their_files() {
    let bed = bed(v2());
    let child = bed.host.lock().mkdir(bed.group, "b").unwrap();
    assert_eq!(bed.host.lock().read(child, "memory.max"), Err(Errno::ENOENT));
    assert_eq!(bed.write("cgroup.subtree_control", "+memory"), Err(Errno::EBUSY));
    bed.write_to(child, "cgroup.procs", 1).unwrap();
    bed.write("cgroup.subtree_control", "+memory").unwrap();
    assert_eq!(bed.read_of(child, "memory.max"), "max");
    assert_eq!(bed.write("cgroup.procs", 1), Err(Errno::EBUSY));
}

#[test]
fn frozen_v2_tasks_are_killable() {
    let bed = bed(v2());
    bed.write("cgroup.freeze", 1).unwrap();
    assert_eq!(bed.key("cgroup.events", "frozen"), 1);
    bed.host.lock().kill(bed.task);
    assert_eq!(bed.key("cgroup.events", "populated"), 0);
}

#[test]
fn kernel_5_10_has_neither_reclaim_nor_peak() {
    let bed = bed(Config::v2_5_10());
    for file in ["memory.reclaim", "memory.peak"] {
        assert_eq!(bed.host.lock().read(bed.group, file), Err(Errno::ENOENT));
    }
}

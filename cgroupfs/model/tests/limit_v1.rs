//! Claims about `memory.limit_in_bytes` and `memory.force_empty` (`mem_cgroup_resize_max`,
//! `mem_cgroup_force_empty`).

mod common;

use cgroupfs_model::{Actor, Config, Hierarchy, Kind, Load, PassVerdict};
use common::{bed, mib};
use nix::errno::Errno;
use std::time::Duration;

fn no_swap() -> Config {
    Config { swap: 0, ..Config::v1_6_18() }
}

#[test]
fn a_limit_write_below_anon_without_swap_is_ebusy_and_changes_nothing() {
    let bed = bed(no_swap());
    bed.limit(256).unwrap();
    bed.charge(Kind::Anon, mib(90));
    assert_eq!(bed.limit(60), Err(Errno::EBUSY));
    assert_eq!(bed.size("memory.limit_in_bytes"), mib(256));
    assert!(bed.size("memory.usage_in_bytes") >= mib(90));
}

#[test]
fn a_limit_write_takes_clean_cache_and_stands_exactly() {
    let bed = bed(no_swap());
    bed.limit(256).unwrap();
    bed.charge(Kind::File, mib(200));
    bed.limit(50).unwrap();
    assert_eq!(bed.size("memory.limit_in_bytes"), mib(50));
    let usage = bed.size("memory.usage_in_bytes");
    assert!(usage <= mib(50) && usage + 32 >= mib(50), "{usage}");
}

#[test]
fn a_limit_write_swaps_as_swappiness_allows() {
    let bed = bed(Config::v1_6_18());
    bed.charge(Kind::Anon, mib(90));
    bed.write("memory.swappiness", 0).unwrap();
    assert_eq!(bed.limit(60), Err(Errno::EBUSY));
    bed.write("memory.swappiness", 60).unwrap();
    bed.limit(60).unwrap();
    assert!(bed.key("memory.stat", "total_swap") >= 30 << 20);
}

#[test]
fn a_signal_between_passes_is_eintr_and_the_limit_is_unchanged_but_what_was_freed_stays_freed() {
    let bed = bed(no_swap());
    bed.limit(256).unwrap();
    bed.charge(Kind::File, mib(200));
    bed.host.lock().signal_after(10);
    assert_eq!(bed.limit(50), Err(Errno::EINTR));
    assert_eq!(bed.size("memory.limit_in_bytes"), mib(256));
    let usage = bed.size("memory.usage_in_bytes");
    assert!(usage < mib(200) && usage > mib(190), "{usage}");
}

#[test]
fn a_raise_with_a_signal_pending_does_nothing() {
    let bed = bed(no_swap());
    bed.limit(64).unwrap();
    bed.host.lock().signal_after(0);
    assert_eq!(bed.limit(128), Err(Errno::EINTR));
    assert_eq!(bed.size("memory.limit_in_bytes"), mib(64));
    bed.limit(128).unwrap();
}

#[test]
fn a_limit_above_memsw_is_einval() {
    let bed = bed(no_swap());
    bed.limit(64).unwrap();
    bed.write("memory.memsw.limit_in_bytes", 100u64 << 20).unwrap();
    assert_eq!(bed.limit(101), Err(Errno::EINVAL));
    assert_eq!(bed.write("memory.memsw.limit_in_bytes", 63u64 << 20), Err(Errno::EINVAL));
    bed.limit(100).unwrap();
}

#[test]
fn restoring_the_old_limit_is_einval_if_memsw_was_lowered_meanwhile() {
    let bed = bed(no_swap());
    bed.limit(200).unwrap();
    bed.write("memory.memsw.limit_in_bytes", 200u64 << 20).unwrap();
    bed.limit(100).unwrap();
    bed.write("memory.memsw.limit_in_bytes", 120u64 << 20).unwrap();
    assert_eq!(bed.limit(200), Err(Errno::EINVAL));
    bed.limit(120).unwrap();
}

#[test]
fn a_limit_write_goes_on_as_long_as_there_is_progress_even_if_the_group_refills() {
    let bed = bed(Config { pages_per_pass: 40, pass_limit: 5_000, ..no_swap() });
    bed.limit(64).unwrap();
    bed.charge(Kind::File, mib(64));
    bed.host.lock().set_load(bed.task, Load::stream(1));
    assert_eq!(bed.limit(32), Err(Errno::EINTR));
    assert!(bed.host.lock().passes() >= 5_000);
    assert_eq!(bed.size("memory.limit_in_bytes"), mib(64));
}

#[test]
fn el7_gives_up_on_a_group_that_refills() {
    let config = Config { pages_per_pass: 40, pass_limit: 5_000, swap: 0, ..Config::v1_el7() };
    let bed = bed(config);
    bed.limit(64).unwrap();
    bed.charge(Kind::File, mib(63));
    bed.host.lock().set_load(bed.task, Load::stream(1));
    assert_eq!(bed.limit(32), Err(Errno::EBUSY));
    assert!(bed.host.lock().passes() < 100);
}

#[test]
fn a_slower_group_lets_the_write_through_and_the_limit_holds_it_from_then_on() {
    let bed = bed(Config { pages_per_pass: 8, ..no_swap() });
    bed.limit(64).unwrap();
    bed.charge(Kind::File, mib(64));
    bed.host.lock().set_load(bed.task, Load::stream(1));
    bed.limit(32).unwrap();
    assert!(bed.size("memory.usage_in_bytes") <= mib(32));
}

#[test]
fn a_grower_in_the_window_of_a_tight_step_is_killed_under_a_limit_it_never_reached() {
    let bed = bed(no_swap());
    bed.limit(1024).unwrap();
    bed.charge(Kind::Anon, mib(86));
    bed.charge(Kind::File, mib(10));
    bed.host.lock().set_load(bed.task, Load::anon(mib(1000), u64::MAX));
    bed.limit(90).unwrap();
    bed.host.advance(Duration::from_millis(10));
    let _ = bed.limit(1024);
    assert!(bed.host.lock().task(bed.task).unwrap().oom_killed);
    assert_eq!(bed.key("memory.oom_control", "oom_kill"), 1);
}

#[test]
fn values_are_floored_to_a_page_and_minus_one_is_none() {
    let bed = bed(no_swap());
    bed.write("memory.limit_in_bytes", (1 << 20) + 4095).unwrap();
    assert_eq!(bed.read("memory.limit_in_bytes"), (1 << 20).to_string());
    bed.write("memory.limit_in_bytes", -1).unwrap();
    assert_eq!(bed.read("memory.limit_in_bytes"), "9223372036854771712");
    bed.write("memory.limit_in_bytes", "64M").unwrap();
    assert_eq!(bed.size("memory.limit_in_bytes"), mib(64));
    for junk in ["-2", "max", "1x", "0x10", "\u{e9}"] {
        assert_eq!(bed.write("memory.limit_in_bytes", junk), Err(Errno::EINVAL), "{junk}");
    }
}

#[test]
fn the_root_takes_no_limit_and_no_force_empty() {
    let bed = bed(no_swap());
    let root = bed.host.root(Hierarchy::Memory);
    for file in ["memory.limit_in_bytes", "memory.force_empty"] {
        assert_eq!(bed.write_to(root, file, "4096"), Err(Errno::EINVAL));
    }
}

#[test]
fn force_empty_has_no_target_and_succeeds_even_if_not_empty() {
    let bed = bed(no_swap());
    bed.charge(Kind::File, mib(50));
    bed.charge(Kind::Anon, mib(20));
    bed.write("memory.force_empty", 0).unwrap();
    assert_eq!(bed.size("memory.usage_in_bytes"), mib(20));
}

#[test]
fn force_empty_stops_at_a_signal_with_the_rest_still_there() {
    let bed = bed(no_swap());
    bed.charge(Kind::File, mib(200));
    let group = bed.group;
    bed.host.on_pass(move |state, _, _| {
        if state.charged(group).1 <= mib(100) { PassVerdict::Signal } else { PassVerdict::GoOn }
    });
    assert_eq!(bed.write("memory.force_empty", 0), Err(Errno::EINTR));
    let usage = bed.size("memory.usage_in_bytes");
    assert!(usage <= mib(100) && usage + 32 >= mib(100), "{usage}");
}

#[test]
fn memsw_equal_to_limit_swaps_in_force_empty_but_never_at_the_limit() {
    let bed = bed(Config::v1_6_18());
    bed.limit(100).unwrap();
    bed.write("memory.memsw.limit_in_bytes", 100u64 << 20).unwrap();
    bed.charge(Kind::Anon, mib(101));
    assert_eq!(bed.key("memory.stat", "total_swap"), 0);
    assert!(bed.host.lock().task(bed.task).unwrap().oom_killed);
    let task = bed.host.lock().spawn(bed.group, Load::hold());
    let fault = cgroupfs_model::Via::Fault;
    bed.host.lock().allocate(task, Kind::Anon, fault, mib(90));
    bed.write("memory.force_empty", 0).unwrap();
    assert_eq!(bed.key("memory.stat", "total_swap"), 90 << 20);
}

#[test]
fn a_memsw_write_never_swaps() {
    let bed = bed(Config::v1_6_18());
    bed.charge(Kind::Anon, mib(90));
    bed.limit(90).unwrap_or(());
    assert_eq!(bed.write("memory.memsw.limit_in_bytes", 60u64 << 20), Err(Errno::EINVAL));
    bed.write("memory.limit_in_bytes", -1).unwrap();
    assert_eq!(bed.key("memory.stat", "total_swap"), 0);
}

#[test]
fn el7_force_empty_of_a_group_with_tasks_is_ebusy() {
    let bed = bed(Config::v1_el7());
    assert_eq!(bed.write("memory.force_empty", 0), Err(Errno::EBUSY));
    bed.host.lock().kill(bed.task);
    bed.write("memory.force_empty", 0).unwrap();
}

#[test]
fn use_hierarchy_0_neither_counts_nor_reclaims_children_in_the_parent() {
    let bed = bed(Config { swap: 0, ..Config::v1_5_10() });
    let child = bed.host.lock().mkdir(bed.group, "b").unwrap();
    bed.write_to(child, "cgroup.procs", 1).unwrap();
    bed.charge(Kind::File, mib(50));
    assert_eq!(bed.size("memory.usage_in_bytes"), 0);
    bed.write("memory.force_empty", 0).unwrap();
    assert!(bed.read_of(child, "memory.usage_in_bytes").parse::<u64>().unwrap() >= 50 << 20);
    assert_eq!(bed.write("memory.use_hierarchy", 1), Err(Errno::EBUSY));
}

#[test]
fn use_hierarchy_1_does_both() {
    let bed = bed(Config { swap: 0, ..Config::v1_5_10() });
    bed.write("memory.use_hierarchy", 1).unwrap();
    let child = bed.host.lock().mkdir(bed.group, "b").unwrap();
    bed.write_to(child, "cgroup.procs", 1).unwrap();
    bed.charge(Kind::File, mib(50));
    assert!(bed.size("memory.usage_in_bytes") >= mib(50));
    bed.write("memory.force_empty", 0).unwrap();
    assert_eq!(bed.read_of(child, "memory.usage_in_bytes"), "0");
}

#[test]
fn v1_reclaim_waits_for_writeback_in_the_writer() {
    let bed = bed(no_swap());
    bed.charge(Kind::Dirty, mib(50));
    bed.limit(20).unwrap();
    assert!(bed.host.lock().waited_pages() >= mib(29));
}

#[test]
fn a_foreign_write_between_two_passes_is_seen() {
    let bed = bed(no_swap());
    bed.limit(256).unwrap();
    bed.charge(Kind::File, mib(200));
    bed.host.on_pass(|state, group, pass| {
        if pass == 5 {
            state.write(Actor(9), group, "memory.memsw.limit_in_bytes", b"256M").unwrap();
        }
        PassVerdict::GoOn
    });
    bed.limit(100).unwrap();
    assert_eq!(bed.limit(257), Err(Errno::EINVAL));
}

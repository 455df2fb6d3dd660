//! `memory.limit_in_bytes` and `memory.force_empty` where no kernel of ours can be made to show it: groups
//! that refill between two passes, el7, the root. The rest is in the conformance suite.

mod common;

use cgroupfs_model::{Actor, Config, Hierarchy, Kind, Load, PassVerdict};
use common::{bed, mib};
use nix::errno::Errno;

fn no_swap() -> Config {
    Config { swap: 0, ..Config::v1_6_18() }
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
fn the_root_takes_no_limit_and_no_force_empty() {
    let bed = bed(no_swap());
    let root = bed.host.root(Hierarchy::Memory);
    for file in ["memory.limit_in_bytes", "memory.force_empty"] {
        assert_eq!(bed.write_to(root, file, "4096"), Err(Errno::EINVAL));
    }
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

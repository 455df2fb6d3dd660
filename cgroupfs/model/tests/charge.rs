//! Claims about charging: counters, fuzz, OOM, events (`try_charge_memcg`, `mem_cgroup_oom_synchronize`).

mod common;

use cgroupfs_model::{Config, Denied, Kind, Load, TaskState, Via};
use common::{bed, mib};
use nix::errno::Errno;
use std::time::Duration;

fn v1() -> Config {
    Config { swap: 0, ..Config::v1_6_18() }
}

#[test]
fn usage_includes_stocks_of_up_to_a_batch_a_cpu() {
    let bed = bed(v1());
    bed.charge(Kind::Anon, 1);
    assert_eq!(bed.size("memory.usage_in_bytes"), 64);
    assert_eq!(bed.host.lock().charged(bed.group), (1, 64));
}

#[test]
fn direct_reclaim_takes_cache_at_the_limit_and_failcnt_tells() {
    let bed = bed(v1());
    bed.limit(64).unwrap();
    assert_eq!(bed.charge(Kind::File, mib(200)), (mib(200), None));
    assert!(bed.size("memory.usage_in_bytes") <= mib(64));
    assert!(bed.read("memory.failcnt").parse::<u64>().unwrap() > 100);
    assert!(bed.size("memory.max_usage_in_bytes") <= mib(64));
    bed.write("memory.failcnt", 0).unwrap();
    assert_eq!(bed.read("memory.failcnt"), "0");
}

#[test]
fn with_memsw_equal_to_limit_failcnt_stays_0_on_6_18() {
    let bed = bed(v1());
    bed.limit(64).unwrap();
    bed.write("memory.memsw.limit_in_bytes", 64u64 << 20).unwrap();
    bed.charge(Kind::File, mib(100));
    assert_eq!(bed.read("memory.failcnt"), "0");
    assert_eq!(bed.read("memory.memsw.failcnt"), "0");
}

#[test]
fn the_killer_takes_the_largest_task_and_counts_in_the_victims_own_group_only() {
    let bed = bed(v1());
    let child = bed.host.lock().mkdir(bed.group, "b").unwrap();
    let sibling = bed.host.lock().mkdir(bed.group, "c").unwrap();
    let eventfd = {
        let mut state = bed.host.lock();
        let eventfd = state.eventfd();
        let fd = state.control_fd(sibling, "memory.oom_control");
        state
            .write(
                cgroupfs_model::Actor(0),
                sibling,
                "cgroup.event_control",
                format!("{} {fd}", eventfd.0).as_bytes(),
            )
            .unwrap();
        eventfd
    };
    bed.limit(64).unwrap();
    bed.charge(Kind::Anon, mib(10));
    let big = bed.host.lock().spawn(child, Load::hold());
    let denied = bed.host.lock().allocate(big, Kind::Anon, Via::Fault, mib(60)).1;
    assert_eq!(denied, Some(Denied::Killed));
    assert_eq!(bed.key("memory.oom_control", "oom_kill"), 0);
    assert!(bed.read_of(child, "memory.oom_control").contains("oom_kill 1"));
    assert_ne!(bed.read("memory.failcnt"), "0");
    assert_eq!(bed.read_of(child, "memory.failcnt"), "0");
    // An empty sibling's eventfd fired too.
    assert_eq!(bed.host.lock().take_signals(eventfd), 1);
    assert_eq!(bed.host.lock().task(bed.task).unwrap().state, TaskState::Running);
}

#[test]
fn with_the_killer_disabled_faults_block_syscalls_get_enomem_and_copies_efault() {
    let bed = bed(v1());
    bed.limit(64).unwrap();
    bed.write("memory.oom_control", 1).unwrap();
    bed.charge(Kind::Anon, mib(64));
    let allocate = |via| bed.host.lock().allocate(bed.task, Kind::Anon, via, 64).1;
    assert_eq!(allocate(Via::Syscall), Some(Denied::Errno(Errno::ENOMEM)));
    assert_eq!(allocate(Via::Copy), Some(Denied::Errno(Errno::EFAULT)));
    assert_eq!(bed.key("memory.oom_control", "under_oom"), 0);
    assert_eq!(allocate(Via::Fault), Some(Denied::Blocked));
    assert_eq!(bed.key("memory.oom_control", "under_oom"), 1);
    assert_eq!(bed.host.lock().oom_kills(), 0);
}

#[test]
fn a_blocked_fault_goes_on_at_a_raise_but_not_at_an_equal_value() {
    let bed = bed(v1());
    bed.limit(64).unwrap();
    bed.write("memory.oom_control", 1).unwrap();
    bed.host.lock().set_load(bed.task, Load::anon(mib(100), mib(80)));
    bed.host.advance(Duration::from_secs(1));
    let state = || bed.host.lock().task(bed.task).unwrap().state;
    assert_eq!(state(), TaskState::OomBlocked(bed.group));
    bed.limit(64).unwrap();
    assert_eq!(state(), TaskState::OomBlocked(bed.group));
    bed.limit(100).unwrap();
    assert_eq!(state(), TaskState::Running);
    bed.host.advance(Duration::from_secs(1));
    assert_eq!(bed.host.lock().task(bed.task).unwrap().done, mib(80));
}

#[test]
fn el7_syscalls_get_enomem_with_the_killer_enabled() {
    let bed = bed(Config { swap: 0, ..Config::v1_el7() });
    bed.limit(64).unwrap();
    let (charged, denied) = bed.host.lock().allocate(bed.task, Kind::Shmem, Via::Syscall, mib(70));
    assert!(charged <= mib(64));
    assert_eq!(denied, Some(Denied::Errno(Errno::ENOMEM)));
    assert_eq!(bed.host.lock().oom_kills(), 0);
}

#[test]
fn thresholds_tell_in_both_directions_within_128_page_events_but_not_at_registration() {
    let bed = bed(v1());
    bed.charge(Kind::File, mib(20));
    let eventfd = {
        let mut state = bed.host.lock();
        let eventfd = state.eventfd();
        let fd = state.control_fd(bed.group, "memory.usage_in_bytes");
        let line = format!("{} {fd} {}", eventfd.0, 10 << 20);
        let actor = cgroupfs_model::Actor(0);
        state.write(actor, bed.group, "cgroup.event_control", line.as_bytes()).unwrap();
        eventfd
    };
    assert_eq!(bed.host.lock().take_signals(eventfd), 0);
    bed.write("memory.force_empty", 0).unwrap();
    assert_eq!(bed.host.lock().take_signals(eventfd), 1);
    bed.charge(Kind::File, mib(10) - 128);
    assert_eq!(bed.host.lock().take_signals(eventfd), 0);
    bed.charge(Kind::File, 256);
    assert_eq!(bed.host.lock().take_signals(eventfd), 1);
    // Kernel memory alone triggers no look.
    bed.write("memory.force_empty", 0).unwrap();
    bed.host.lock().take_signals(eventfd);
    bed.charge(Kind::Kernel, mib(20));
    assert_eq!(bed.host.lock().take_signals(eventfd), 0);
    bed.host.lock().close(eventfd);
    bed.charge(Kind::File, mib(20));
    assert_eq!(bed.host.lock().take_signals(eventfd), 0);
}

#[test]
fn a_stream_in_circles_over_more_than_the_limit_refaults() {
    let bed = bed(v1());
    bed.limit(64).unwrap();
    bed.host.lock().set_load(bed.task, Load::circles(mib(200), mib(100)));
    bed.host.advance(Duration::from_secs(2));
    assert!(bed.key("memory.stat", "total_workingset_refault_file") >= mib(250));
}

#[test]
fn anon_in_use_is_swapped_in_again() {
    let bed = bed(Config::v1_6_18());
    bed.limit(64).unwrap();
    bed.host.lock().set_load(bed.task, Load::anon(mib(100), mib(100)).again());
    bed.host.advance(Duration::from_secs(3));
    assert!(bed.key("memory.stat", "total_workingset_refault_anon") > 0);
    assert!(bed.key("memory.stat", "total_swap") >= 36 << 20);
    assert_eq!(bed.host.lock().oom_kills(), 0);
}

#[test]
fn a_task_that_moves_leaves_its_charges_behind() {
    let bed = bed(v1());
    bed.charge(Kind::Anon, mib(20));
    let other = bed.host.lock().mkdir(bed.host.root(cgroupfs_model::Hierarchy::Memory), "b");
    bed.write_to(other.unwrap(), "cgroup.procs", 1).unwrap();
    assert_eq!(bed.size("memory.usage_in_bytes"), mib(20));
    bed.host.lock().kill(bed.task);
    assert_eq!(bed.host.lock().charged(bed.group).0, 0);
}

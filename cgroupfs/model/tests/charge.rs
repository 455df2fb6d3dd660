//! Charging, to the page: stocks, refaults, el7. The rest is in the conformance suite.

mod common;

use cgroupfs_model::{Config, Denied, Kind, Load, Via};
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
fn el7_syscalls_get_enomem_with_the_killer_enabled() {
    let bed = bed(Config { swap: 0, ..Config::v1_el7() });
    bed.limit(64).unwrap();
    let (charged, denied) = bed.host.lock().allocate(bed.task, Kind::Shmem, Via::Syscall, mib(70));
    assert!(charged <= mib(64));
    assert_eq!(denied, Some(Denied::Errno(Errno::ENOMEM)));
    assert_eq!(bed.host.lock().oom_kills(), 0);
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

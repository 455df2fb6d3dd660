//! `memory.high` of v2 to the kernel's own figures. What holds on every kernel is in the conformance suite.

#![allow(clippy::unwrap_used)]

mod common;

use cgroupfs_model::{Config, Hierarchy, Host, Load};
use common::{bed, mib};
use std::time::Duration;

fn v2() -> Config {
    Config { swap: 0, ..Config::v2_6_1() }
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

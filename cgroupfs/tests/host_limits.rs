//! Limits, usage and counters of the memory controller on the kernel at hand.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::ReclaimFile;
use cgroupfs::{Bytes, Cgroup, Error, Limit};
use common::{DiskFile, Ground, Load, MIB, memory, without_swap};
use nix::errno::Errno;
use std::sync::Arc;

fn mib(n: u64) -> Limit {
    Limit::Bytes(Bytes::mib(n))
}

/// What may be swapped on top of the limit, or both together on v1.
fn swap_limit(group: &Arc<Cgroup>, v1: bool) -> Option<Limit> {
    let dir: Arc<dyn ControlDir> = group.clone();
    match v1 {
        true => {
            let knob = Knob::open(&dir, "memory.memsw.limit_in_bytes", Access::Read).ok()?;
            Some(Limit::from_v1(knob.read_u64().unwrap()))
        }
        false => {
            Some(Knob::open(&dir, "memory.swap.max", Access::Read).ok()?.read_limit_v2().unwrap())
        }
    }
}

#[test]
fn limit_and_swap_limit_go_up_and_down_in_one_call() {
    let test = "limit_and_swap_limit_go_up_and_down_in_one_call";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("g");
    let memory = memory(&group);
    if swap_limit(&group, ground.v1()).is_none() {
        return common::skip(test, "this kernel does not account swap");
    }
    // Each one needs another order of writes on v1: limit ≤ memsw holds at every moment.
    for (limit, swap) in [(64, 0), (128, 64), (256, 0), (32, 300), (512, 1), (16, 0), (64, 64)] {
        memory.set_limits(mib(limit), Some(mib(swap))).unwrap();
        assert_eq!(memory.limit().unwrap(), mib(limit));
        let together = if ground.v1() { limit + swap } else { swap };
        assert_eq!(swap_limit(&group, ground.v1()), Some(mib(together)), "{limit} + {swap}");
        assert_eq!(memory.swap_rules().unwrap().swaps_at_limit, swap > 0, "{limit} + {swap}");
    }
    memory.set_limits(Limit::Max, Some(Limit::Max)).unwrap();
    assert_eq!(memory.limit().unwrap(), Limit::Max);
    assert_eq!(swap_limit(&group, ground.v1()), Some(Limit::Max));
    memory.set_limits(mib(64), None).unwrap();
    assert_eq!(swap_limit(&group, ground.v1()), Some(Limit::Max), "swap is left as it was");
}

#[test]
fn a_limit_above_memsw_is_refused_on_v1_with_the_reason() {
    let test = "a_limit_above_memsw_is_refused_on_v1_with_the_reason";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("g");
    if !ground.v1() || !group.has("memory.memsw.limit_in_bytes") {
        return;
    }
    let memory = memory(&group);
    memory.set_limits(mib(64), Some(mib(0))).unwrap();
    assert_eq!(memory.limit_bound().unwrap(), mib(64));
    let error = memory.set_limit(mib(65)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL));
    for part in ["memory.limit_in_bytes", "68157440", "memory.memsw.limit_in_bytes"] {
        assert!(error.to_string().contains(part), "no {part:?} in {error}");
    }
    assert_eq!(memory.limit().unwrap(), mib(64));
}

#[test]
fn a_limit_is_rounded_down_to_a_page_as_we_round_it() {
    let Some(ground) = Ground::new("a_limit_is_rounded_down_to_a_page_as_we_round_it") else {
        return;
    };
    let memory = memory(&ground.group("g"));
    for bytes in [64 * MIB + 1, 64 * MIB - 1, 12_345_678] {
        let limit = Limit::Bytes(Bytes(bytes));
        memory.set_limit(limit).unwrap();
        assert_eq!(memory.limit().unwrap(), limit.page_floor());
    }
}

#[test]
fn usage_peak_and_stat_show_what_a_process_has() {
    let Some(ground) = Ground::new("usage_peak_and_stat_show_what_a_process_has") else { return };
    let group = ground.group("g");
    let memory = memory(&group);
    without_swap(&group);
    assert!(memory.usage().unwrap() < Bytes::mib(4));
    let file = DiskFile::new(Bytes::mib(32));
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(64)));
    load.read(&file, Bytes::mib(32));

    let (usage, stat) = (memory.usage().unwrap(), memory.stat().unwrap());
    let within = |what: &str, bytes: Option<Bytes>, least: u64, most: u64| {
        let bytes = bytes.unwrap_or_else(|| panic!("no {what}"));
        assert!((Bytes::mib(least)..=Bytes::mib(most)).contains(&bytes), "{what}: {bytes}");
    };
    within("usage", Some(usage), 95, 120);
    // Statistics lag by up to 64 pages a CPU and counter.
    within("anon", stat.anon, 60, 75);
    within("file", stat.file, 31, 40);
    within(
        "clean file on the LRU",
        stat.inactive_file.zip(stat.active_file).map(|(a, b)| Bytes(a.0 + b.0)),
        31,
        40,
    );
    assert!(stat.dirty.is_none_or(|dirty| dirty < Bytes::mib(1)), "{:?}", stat.dirty);
    match memory.peak() {
        Ok(peak) => assert!(peak >= usage, "{peak} {usage}"),
        // v2 before 6.1.
        Err(error) => assert!(error.is_absent(), "{error}"),
    }

    load.free();
    let after = memory.usage().unwrap();
    assert!(after <= usage.saturating_sub(Bytes::mib(60)), "{usage} → {after}");
    assert!(memory.peak().is_err() || memory.peak().unwrap() >= usage);
    let counters = memory.counters().unwrap();
    assert_eq!((counters.direct_reclaim(), counters.oom_kill.unwrap_or(0)), (0, 0));
}

#[test]
fn charges_that_hit_the_limit_are_counted_and_kill_nobody_where_cache_can_go() {
    let test = "charges_that_hit_the_limit_are_counted_and_kill_nobody_where_cache_can_go";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("g");
    let memory = memory(&group);
    memory.set_limit(mib(24)).unwrap();
    let file = DiskFile::new(Bytes::mib(64));
    let mut load = Load::in_group(&group);
    load.read(&file, Bytes::mib(64));
    let counters = memory.counters().unwrap();
    assert!(counters.direct_reclaim() > 0, "{counters:?}");
    assert_eq!(counters.oom_kill.unwrap_or(0), 0, "{counters:?}");
    assert!(memory.usage().unwrap() <= Bytes::mib(24));
    assert!(load.is_alive());
}

#[test]
fn a_limit_under_what_cannot_be_reclaimed_is_refused_on_v1_and_changes_nothing() {
    let test = "a_limit_under_what_cannot_be_reclaimed_is_refused_on_v1_and_changes_nothing";
    let Some(ground) = Ground::new(test) else { return };
    if !ground.v1() {
        // v2 stores it first, and kills.
        return;
    }
    let group = ground.group("g");
    let memory = memory(&group);
    memory.set_limit(mib(128)).unwrap();
    without_swap(&group);
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(64)));
    for _ in 0..20 {
        let error = memory.set_limit(mib(32)).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EBUSY), "{error}");
        assert!(matches!(&error, Error::Refused { value: Some(value), .. } if value == "33554432"));
        assert!(error.to_string().contains("cgctl reclaim"), "{error}");
        assert_eq!(memory.limit().unwrap(), mib(128));
    }
    assert!(load.is_alive());
    assert_eq!(memory.counters().unwrap().oom_kill.unwrap_or(0), 0);
}

#[test]
fn a_limit_write_reclaims_clean_cache_down_to_it() {
    let Some(ground) = Ground::new("a_limit_write_reclaims_clean_cache_down_to_it") else { return };
    let group = ground.group("g");
    let memory = memory(&group);
    memory.set_limit(mib(128)).unwrap();
    let file = DiskFile::new(Bytes::mib(64));
    let mut load = Load::in_group(&group);
    load.read(&file, Bytes::mib(64));
    assert!(memory.usage().unwrap() > Bytes::mib(60));
    memory.set_limit(mib(32)).unwrap();
    assert!(memory.usage().unwrap() <= Bytes::mib(32));
    memory.set_limit(mib(128)).unwrap();
    assert!(load.is_alive());
}

#[test]
fn force_empty_takes_the_cache_and_leaves_the_limit_and_locked_in_memory() {
    let test = "force_empty_takes_the_cache_and_leaves_the_limit_and_locked_in_memory";
    let Some(ground) = Ground::new(test) else { return };
    let group = ground.group("g");
    let memory = memory(&group);
    let force_empty = memory.reclaim_file(ReclaimFile::ForceEmpty);
    if !ground.v1() {
        assert!(force_empty.is_err_and(|error| error.is_absent()));
        return;
    }
    memory.set_limit(mib(128)).unwrap();
    without_swap(&group);
    let file = DiskFile::new(Bytes::mib(48));
    let mut load = Load::in_group(&group);
    assert!(load.anon(Bytes::mib(32)));
    load.read(&file, Bytes::mib(48));
    assert!(memory.usage().unwrap() > Bytes::mib(78));
    // Success, although not everything could go.
    force_empty.unwrap().write("0").unwrap();
    let usage = memory.usage().unwrap();
    assert!((Bytes::mib(30)..Bytes::mib(50)).contains(&usage), "{usage}");
    assert_eq!(memory.limit().unwrap(), mib(128));
    assert!(load.is_alive());
}

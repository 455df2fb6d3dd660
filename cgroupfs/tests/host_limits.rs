//! Limits on the kernel at hand, where it is our own order of writes that counts. What the kernel does is in
//! the conformance suite.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;

use cgroupfs::events::Notification;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::{Bytes, Cgroup, Limit};
use common::{Ground, memory};
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
fn v2_has_no_usage_event() {
    let Some(ground) = Ground::new("v2_has_no_usage_event") else { return };
    let group = ground.group("g");
    let watch = Notification::usage_threshold(&group, Bytes::mib(32));
    assert_eq!(watch.is_ok(), ground.v1(), "{watch:?}");
}

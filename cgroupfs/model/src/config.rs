//! What a host is like: its hardware, and how its kernel differs from others.

use crate::mutation::Mutation;
use cgroupfs::memory::Version;
use std::time::Duration;

/// A host and its kernel. Start from a preset and change fields.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which interface the memory controller has.
    pub version: Version,
    /// CPUs: per-CPU stocks and threshold checks are kept for each.
    pub cpus: usize,
    /// Bytes a page.
    pub page_size: u64,
    /// Swap, in pages.
    pub swap: u64,
    /// `MEMCG_CHARGE_BATCH`: pages charged at once, the rest kept in a stock (64 from 6.1, 32 before).
    pub batch: u64,
    /// v1: a new hierarchy's `memory.use_hierarchy`; 0 in 5.10, fixed at 1 from 5.15.
    pub use_hierarchy: bool,
    /// v1: whether `memory.use_hierarchy` can be changed.
    pub use_hierarchy_fixed: bool,
    /// v1: whether swap is accounted (`memory.memsw.*` exist); v2: `memory.swap.*`.
    pub swapaccount: bool,
    /// Whether `memory.reclaim` exists (v2 from 5.19; some vendors' v1).
    pub memory_reclaim: bool,
    /// Whether one pass of a `memory.reclaim` write is all that was asked for (6.1), not 32 pages or a
    /// quarter of it: then no signal ends the write early.
    pub reclaim_in_one_pass: bool,
    /// Whether `memory.peak` exists (v2 from 6.1).
    pub memory_peak: bool,
    /// v2: whether a task over `memory.high` sleeps (not in 4.19).
    pub high_sleeps: bool,
    /// v1: highest `memory.swappiness`.
    pub swappiness_max: u64,
    /// `MAX_RECLAIM_RETRIES`: fruitless passes before giving up (5 to 5.4, 16 from 5.10).
    pub retries: u32,
    /// el7: passes of a limit write are bounded; `None` from 4.17: any progress goes on.
    pub bounded_resize: Option<u32>,
    /// el7: `memory.force_empty` of a group with tasks or children is EBUSY.
    pub force_empty_busy: bool,
    /// What `memory.force_empty` waits after each fruitless pass: up to 100 ms through 5.15
    /// (`congestion_wait`), nothing in 6.1.
    pub fruitless_wait: Duration,
    /// Whether `memory.memsw.failcnt` counts (not in 6.18).
    pub memsw_failcnt: bool,
    /// el7: charges by system call get ENOMEM at the limit even with the killer enabled.
    pub syscalls_enomem: bool,
    /// Pages that the disk writes a second.
    pub disk_rate: u64,
    /// Jiffies a second.
    pub hz: u64,
    /// Memory cgroup ids (16 bits): mkdir fails when dying groups hold them all.
    pub ids: usize,
    /// Pages that each runnable task of a group may charge between two passes of a write that
    /// reclaims from it, and once between a successful limit write and what follows.
    pub pages_per_pass: u64,
    /// After so many passes of one write a signal comes: what loops for ever must end in a test.
    pub pass_limit: u64,
    /// How long a task runs on after `FROZEN` was written.
    pub freeze_latency: Duration,
    /// For what is left to chance: which CPU a task runs on.
    pub seed: u64,
    /// The one rule that this kernel breaks, to see who notices.
    pub mutation: Option<Mutation>,
}

impl Config {
    /// 6.18 with the v1 hierarchy: 2 CPUs, 1 GiB of swap.
    pub fn v1_6_18() -> Config {
        Config {
            version: Version::V1,
            cpus: 2,
            page_size: 4096,
            swap: 1 << 18,
            batch: 64,
            use_hierarchy: true,
            use_hierarchy_fixed: true,
            swapaccount: true,
            memory_reclaim: false,
            reclaim_in_one_pass: false,
            memory_peak: false,
            high_sleeps: true,
            swappiness_max: 200,
            retries: 16,
            bounded_resize: None,
            force_empty_busy: false,
            fruitless_wait: Duration::ZERO,
            memsw_failcnt: false,
            syscalls_enomem: false,
            disk_rate: 25_600,
            hz: 250,
            ids: 65_535,
            pages_per_pass: 0,
            pass_limit: 100_000,
            freeze_latency: Duration::ZERO,
            seed: 1,
            mutation: None,
        }
    }

    /// 6.1 with the v1 hierarchy.
    pub fn v1_6_1() -> Config {
        Config { memsw_failcnt: true, ..Config::v1_6_18() }
    }

    /// 5.10 with the v1 hierarchy: `use_hierarchy` 0, batches of 32 pages.
    pub fn v1_5_10() -> Config {
        Config {
            batch: 32,
            use_hierarchy: false,
            use_hierarchy_fixed: false,
            swappiness_max: 100,
            fruitless_wait: Duration::from_millis(100),
            ..Config::v1_6_1()
        }
    }

    /// 3.10 of el7: bounded limit writes, ENOMEM for system calls, EBUSY from `force_empty`.
    pub fn v1_el7() -> Config {
        Config {
            retries: 5,
            bounded_resize: Some(5),
            force_empty_busy: true,
            syscalls_enomem: true,
            ..Config::v1_5_10()
        }
    }

    /// 5.10 with the v2 hierarchy: no `memory.reclaim`, no `memory.peak`, batches of 32 pages.
    pub fn v2_5_10() -> Config {
        Config { batch: 32, memory_reclaim: false, memory_peak: false, ..Config::v2_6_1() }
    }

    /// 6.1 with the v2 hierarchy.
    pub fn v2_6_1() -> Config {
        Config {
            version: Version::V2,
            memory_reclaim: true,
            reclaim_in_one_pass: true,
            memory_peak: true,
            ..Config::v1_6_18()
        }
    }

    /// 6.12 and later with the v2 hierarchy.
    pub fn v2_6_12() -> Config {
        Config { reclaim_in_one_pass: false, ..Config::v2_6_1() }
    }

    pub(crate) fn v1(&self) -> bool {
        self.version == Version::V1
    }
}

//! The memory controller of one cgroup, v1 and v2 behind one trait.
//!
//! `v1.rs` and `v2.rs` mirror each other: a method per control file, named after what it holds.

pub mod stat;
mod v1;
mod v2;

pub use stat::MemoryStat;
pub use v1::MemoryV1;
pub use v2::MemoryV2;

use crate::error::Result;
use crate::files::{ControlDir, Knob};
use crate::units::{Bytes, Limit};

/// Which interface a memory controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `memory.limit_in_bytes` and friends.
    V1,
    /// `memory.max` and friends.
    V2,
}

impl Version {
    /// As JSON and people have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V1 => "v1",
            Version::V2 => "v2",
        }
    }
}

/// What the kernel would do with this group's anonymous memory, by the group's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwapRules {
    /// Whether the kernel itself would swap when the group reaches its limit. False with
    /// `memsw.limit == limit`, with swappiness 0 (v1), with `memory.swap.max` 0 (v2).
    pub swaps_at_limit: bool,
    /// Whether a limit, `force_empty` or `memory.reclaim` write may swap all the same. On v1 that is so
    /// with `memsw.limit == limit`: measured on 6.18, 90 of 90 MiB.
    pub reclaim_may_swap: bool,
    /// How much more swap the group's own limits allow. [`Limit::Max`] where only the host's free swap
    /// bounds it.
    pub room: Limit,
}

/// Counters that say how the group met its limits. `None` where this kernel keeps none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// v1 `memory.failcnt`: charges that hit the limit. On 6.18 it stays 0 with memsw == limit.
    pub failcnt: Option<u64>,
    /// v2 `memory.events` `high`: reclaim passes of tasks over `memory.high`.
    pub high: Option<u64>,
    /// v2 `memory.events` `max`: charges that hit `memory.max`.
    pub max: Option<u64>,
    /// v2 `memory.events` `oom`: times the limit could not be held.
    pub oom: Option<u64>,
    /// Tasks killed: v1 `memory.oom_control` `oom_kill` (4.13+; the victim's own group only), v2
    /// `memory.events` `oom_kill` (the subtree).
    pub oom_kill: Option<u64>,
}

impl Counters {
    /// Events of direct reclaim: charges that found no room and made their task reclaim. The cheap
    /// sign that the background was too late.
    pub fn direct_reclaim(&self) -> u64 {
        self.failcnt.unwrap_or(0) + self.high.unwrap_or(0) + self.max.unwrap_or(0)
    }
}

/// A control file that reclaims when written. Opened anew for each user: writes on one open file
/// serialise on its mutex, and an emergency raise must not wait for the shrink it undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReclaimFile {
    /// v1 `memory.limit_in_bytes`, v2 `memory.max`.
    Limit,
    /// v1 `memory.force_empty`.
    ForceEmpty,
    /// v2 `memory.reclaim` (5.19+), and v1 of kernels that carry it there.
    Reclaim,
    /// `memory.high`: v2, and v1 of kernels that carry it there.
    High,
    /// v1 `memory.swappiness`.
    Swappiness,
}

/// The memory controller of one cgroup.
///
/// Errors everywhere: [`crate::Error::Vanished`] once the group is removed, `Absent` where this kernel
/// has no such file, `Refused` with the errno otherwise.
pub trait Memory: Send + Sync {
    /// The group's directory.
    fn dir(&self) -> &dyn ControlDir;
    /// v1 or v2.
    fn version(&self) -> Version;
    /// What is charged now. v1 `memory.usage_in_bytes` and v2 `memory.current` include the per-CPU
    /// stock, so they are off by up to 64 pages a CPU (32 before 6.1).
    fn usage(&self) -> Result<Bytes>;
    /// The limit in force now: v1 `memory.limit_in_bytes`, v2 `memory.max`. It is the declared one
    /// unless a step is in flight.
    fn limit(&self) -> Result<Limit>;
    /// Sets the limit. v1 reclaims first and answers EBUSY if usage stays above; v2 stores it first,
    /// then reclaims, then kills.
    fn set_limit(&self, limit: Limit) -> Result<()>;
    /// The highest value that [`Memory::set_limit`] is taken for now: memsw on v1 (above it: EINVAL).
    fn limit_bound(&self) -> Result<Limit>;
    /// Sets the limit and how much swap may be used on top of it, in the order the kernel demands.
    /// `swap` of `None` leaves swap as it is.
    fn set_limits(&self, limit: Limit, swap: Option<Limit>) -> Result<()>;
    /// `memory.high`; `Absent` on v1 but for vendor kernels.
    fn high(&self) -> Result<Limit>;
    /// Sets `memory.high`; reclaims in the caller's context.
    fn set_high(&self, high: Limit) -> Result<()>;
    /// `memory.stat`, the whole subtree (`total_*` on v1). Keep it off hot paths: it may flush the
    /// statistics of the whole tree (5.15, 6.1).
    fn stat(&self) -> Result<MemoryStat>;
    /// The highest usage so far: v1 `memory.max_usage_in_bytes`, v2 `memory.peak` (6.1+).
    fn peak(&self) -> Result<Bytes>;
    /// The counters, from `memory.failcnt` and `memory.oom_control`, or from `memory.events`.
    fn counters(&self) -> Result<Counters>;
    /// Swap in use by the group: v1 `swap` of `memory.stat`, v2 `memory.swap.current`; `None` where
    /// swap is not accounted.
    fn swap_usage(&self) -> Result<Option<Bytes>>;
    /// What may be swapped, see [`SwapRules`].
    fn swap_rules(&self) -> Result<SwapRules>;
    /// Opens a file that reclaims, on a descriptor of its own.
    fn reclaim_file(&self, file: ReclaimFile) -> Result<Knob>;
}

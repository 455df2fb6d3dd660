//! Turns the core's actions into kernel calls, and the kernel's events into events of the core.
//!
//! One event loop ([`Engine::turn`], `engine.rs`) and a few workers. The loop never makes a write that
//! reclaims: it waits, reads usage (`watch.rs`), raises and cancels (`flight.rs`). Workers do what may
//! block (`worker.rs`, `reclaim.rs`).

mod arm;
mod asked;
mod attention;
mod cpus;
#[cfg(test)]
mod crash;
mod engine;
mod fault;
mod flight;
mod group_kill;
mod hold;
mod journaled;
mod native;
mod once;
pub mod oom;
mod opened;
mod reclaim;
mod sys;
pub mod throttle;
mod throttling;
mod watch;
mod witness;
mod worker;

pub use engine::Engine;
pub use hold::OomHold;
pub use once::{Once, empty, enter, reclaim_once};
pub use opened::Opened;
pub use reclaim::Stop;
pub use sys::is_process;

use crate::core::oom::hold::HoldEvent;
use crate::core::{Capabilities, Notice, Now, Report, Totals, WatermarkSpec};
use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, Version};
use cgroupfs::{Bytes, Cgroup, Limit, Result};
use std::sync::{Arc, OnceLock};
use throttle::ThrottleEvent;

/// What a container is to be held to.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Background reclaim between these.
    pub watermarks: WatermarkSpec,
    /// `memory.high`, [`Limit::Max`] for none.
    pub high: Limit,
}

/// Names a container of this engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

/// What a turn of the loop brought.
#[derive(Debug)]
pub enum Happened {
    /// A descriptor that the caller added is readable.
    Fd(u64),
    /// Usage was read: for whoever draws.
    Usage(Key, Now, Bytes),
    /// A round of reclaim ended.
    Round(Key, Now, Report),
    /// What became of a container that is held at its OOMs.
    Hold(Key, Now, HoldEvent),
    /// To be told to people.
    Notice(Key, Now, Notice),
    /// So many tasks were killed since the last time, seen at this usage.
    OomKill(Key, Now, u64, Bytes),
    /// The OOM watch has this container's files open, and hears its signals.
    OomsWatched(Key),
    /// An OOM, with all that is known of it. Written to the store before, if there is one.
    Oom(Key, Box<crate::core::oom::Record>),
    /// No more of those will come of this container.
    OomsRecorded(Key),
    /// What [`Engine::reclaim`] came to.
    Asked(Key, Now, Once),
    /// What the container's throttle did, or has to tell.
    Throttle(Key, Now, ThrottleEvent),
    /// The group is gone, or its release is complete: the container is forgotten.
    Forgotten(Key, Totals),
}

/// What the control files of a memory cgroup offer.
pub fn capabilities(memory: &dyn Memory) -> Capabilities {
    let dir = memory.dir();
    let v1 = memory.version() == Version::V1;
    Capabilities {
        threshold_event: v1 && dir.has("cgroup.event_control"),
        threshold_slack: if v1 { threshold_slack() } else { Bytes(0) },
        limit_step: v1,
        force_empty: v1 && dir.has("memory.force_empty"),
        memory_reclaim: dir.has("memory.reclaim"),
        high_step: !v1 && dir.has("memory.high"),
    }
}

/// 128 page events (`THRESHOLDS_EVENTS_TARGET`) and 64 pages of stock a CPU; few CPUs charge one group
/// at once.
fn threshold_slack() -> Bytes {
    // Asked once: it reads a dozen files of our own group's.
    static CPUS: OnceLock<u64> = OnceLock::new();
    let cpus =
        CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
    Bytes((128 + 64) * cgroupfs::units::page_size() * (*cpus).min(8))
}

/// Opens the memory controller of `group`, whichever version it is.
pub fn open_memory(group: &Arc<Cgroup>) -> Result<Arc<dyn Memory>> {
    let dir: Arc<dyn ControlDir> = group.clone();
    if group.has("memory.limit_in_bytes") {
        Ok(Arc::new(MemoryV1::open(dir)?))
    } else {
        Ok(Arc::new(MemoryV2::open(dir)?))
    }
}

//! One group: its counters, its pages, its settings.

use crate::events::Registration;
use crate::lru::Lru;
use std::path::PathBuf;
use std::time::Duration;

/// Names a group; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub(crate) usize);

/// Which tree a group is in. On v2 there is one; the freezer is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// The memory controller's tree.
    Memory,
    /// The v1 freezer's tree.
    Freezer,
}

/// `struct page_counter`, in pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counter {
    pub(crate) usage: u64,
    pub(crate) limit: u64,
    pub(crate) peak: u64,
    pub(crate) failcnt: u64,
}

/// v2 `memory.events`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MemoryEvents {
    pub(crate) low: u64,
    pub(crate) high: u64,
    pub(crate) max: u64,
    pub(crate) oom: u64,
    pub(crate) oom_kill: u64,
    pub(crate) oom_group_kill: u64,
}

/// Counts of `memory.stat`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) pgfault: u64,
    pub(crate) pgmajfault: u64,
    pub(crate) refault_file: u64,
    pub(crate) refault_anon: u64,
    pub(crate) pgscan: u64,
    pub(crate) pgsteal: u64,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) parent: Option<GroupId>,
    /// Living and dying ones.
    pub(crate) children: Vec<GroupId>,
    /// rmdir was done; pages may pin it still.
    pub(crate) removed: bool,
    /// Nothing pins it any more.
    pub(crate) freed: bool,
    /// Writes in flight: `kernfs_get_active`.
    pub(crate) active: u32,
    pub(crate) lru: Lru,
    pub(crate) kernel: u64,
    pub(crate) memory: Counter,
    pub(crate) memsw: Counter,
    pub(crate) swap: Counter,
    /// Charged ahead, by CPU.
    pub(crate) stock: Vec<u64>,
    /// Page events since the last look at thresholds, by CPU.
    pub(crate) page_events: Vec<u64>,
    pub(crate) counts: Counts,
    pub(crate) registrations: Vec<Registration>,
    pub(crate) use_hierarchy: bool,
    pub(crate) swappiness: u64,
    pub(crate) oom_kill_disable: bool,
    pub(crate) under_oom: bool,
    /// v1: victims of this very group.
    pub(crate) oom_kill: u64,
    pub(crate) high: u64,
    pub(crate) low: u64,
    pub(crate) min: u64,
    pub(crate) oom_group: bool,
    pub(crate) events: MemoryEvents,
    pub(crate) events_local: MemoryEvents,
    /// v2: the memory controller is given to the children.
    pub(crate) subtree_memory: bool,
    /// When a freeze of this group takes effect, if one was asked for.
    pub(crate) frozen_at: Option<Duration>,
}

impl Group {
    /// What is charged to this group itself.
    pub(crate) fn charged(&self) -> u64 {
        self.lru.resident() + self.kernel
    }

    /// Charged ahead and not used.
    pub(crate) fn stocked(&self) -> u64 {
        self.stock.iter().sum()
    }
}

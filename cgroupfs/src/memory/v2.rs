//! cgroup v2: `Documentation/admin-guide/cgroup-v2.rst`, `mm/memcontrol.c`.

use super::{Counters, Memory, MemoryStat, ReclaimFile, SwapRules, Version};
use crate::error::{Error, Result};
use crate::files::{Access, ControlDir, Knob};
use crate::flat;
use crate::units::{Bytes, Limit};
use std::sync::Arc;

/// The memory controller of a v2 cgroup.
pub struct MemoryV2 {
    dir: Arc<dyn ControlDir>,
    current: Knob,
    max: Knob,
    stat: Knob,
    events: Knob,
}

impl MemoryV2 {
    /// Opens the control files. [`Error::Absent`] for a directory without the memory controller (the
    /// root, or a group whose parent does not enable it).
    pub fn open(dir: Arc<dyn ControlDir>) -> Result<MemoryV2> {
        let max = Knob::open(&dir, "memory.max", Access::ReadWrite)
            .or_else(|_| Knob::open(&dir, "memory.max", Access::Read))?;
        Ok(MemoryV2 {
            current: Knob::open(&dir, "memory.current", Access::Read)?,
            max,
            stat: Knob::open(&dir, "memory.stat", Access::Read)?,
            events: Knob::open(&dir, "memory.events", Access::Read)?,
            dir,
        })
    }

    /// `memory.swap.max`; `None` where swap is not accounted.
    pub fn swap_max(&self) -> Result<Option<Limit>> {
        match Knob::open(&self.dir, "memory.swap.max", Access::Read) {
            Ok(knob) => Ok(Some(knob.read_limit_v2()?)),
            Err(Error::Absent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Memory for MemoryV2 {
    fn dir(&self) -> &dyn ControlDir {
        &*self.dir
    }

    fn version(&self) -> Version {
        Version::V2
    }

    fn usage(&self) -> Result<Bytes> {
        self.current.read_u64().map(Bytes)
    }

    fn limit(&self) -> Result<Limit> {
        self.max.read_limit_v2()
    }

    fn set_limit(&self, limit: Limit) -> Result<()> {
        self.max.write(&limit.to_v2())
    }

    fn limit_bound(&self) -> Result<Limit> {
        Ok(Limit::Max)
    }

    /// Swap first: with `memory.max` first the group could swap in between.
    fn set_limits(&self, limit: Limit, swap: Option<Limit>) -> Result<()> {
        if let Some(swap) = swap {
            match Knob::open(&self.dir, "memory.swap.max", Access::Write) {
                Ok(knob) => knob.write(&swap.to_v2())?,
                Err(Error::Absent { .. }) if swap == Limit::Max => {}
                Err(error) => return Err(error),
            }
        }
        self.set_limit(limit)
    }

    fn high(&self) -> Result<Limit> {
        Knob::open(&self.dir, "memory.high", Access::Read)?.read_limit_v2()
    }

    fn set_high(&self, high: Limit) -> Result<()> {
        Knob::open(&self.dir, "memory.high", Access::Write)?.write(&high.to_v2())
    }

    fn stat(&self) -> Result<MemoryStat> {
        Ok(MemoryStat::parse_v2(&self.stat.read()?))
    }

    fn peak(&self) -> Result<Bytes> {
        Knob::open(&self.dir, "memory.peak", Access::Read)?.read_u64().map(Bytes)
    }

    fn counters(&self) -> Result<Counters> {
        let events = self.events.read()?;
        let mut counters = Counters::default();
        for (key, value) in flat::entries(&events) {
            match key {
                "high" => counters.high = Some(value),
                "max" => counters.max = Some(value),
                "oom" => counters.oom = Some(value),
                "oom_kill" => counters.oom_kill = Some(value),
                _ => {}
            }
        }
        Ok(counters)
    }

    fn swap_usage(&self) -> Result<Option<Bytes>> {
        match Knob::open(&self.dir, "memory.swap.current", Access::Read) {
            Ok(knob) => Ok(Some(Bytes(knob.read_u64()?))),
            Err(Error::Absent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `memory.swap.max` bounds the kernel and `memory.reclaim` alike (`mem_cgroup_get_nr_swap_pages`).
    fn swap_rules(&self) -> Result<SwapRules> {
        let room = match self.swap_max()? {
            Some(Limit::Bytes(max)) => {
                Limit::Bytes(max.saturating_sub(self.swap_usage()?.unwrap_or_default()))
            }
            Some(Limit::Max) | None => Limit::Max,
        };
        let swaps = room != Limit::Bytes(Bytes(0));
        Ok(SwapRules { swaps_at_limit: swaps, reclaim_may_swap: swaps, room })
    }

    fn reclaim_file(&self, file: ReclaimFile) -> Result<Knob> {
        let (name, access) = match file {
            ReclaimFile::Limit => ("memory.max", Access::ReadWrite),
            ReclaimFile::Reclaim => ("memory.reclaim", Access::Write),
            ReclaimFile::High => ("memory.high", Access::ReadWrite),
            ReclaimFile::ForceEmpty => ("memory.force_empty", Access::Write),
            ReclaimFile::Swappiness => ("memory.swappiness", Access::ReadWrite),
        };
        Knob::open(&self.dir, name, access)
    }
}

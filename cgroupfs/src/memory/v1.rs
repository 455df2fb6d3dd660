//! cgroup v1: `Documentation/admin-guide/cgroup-v1/memory.rst`, `mm/memcontrol-v1.c`.

use super::{Counters, Memory, MemoryStat, ReclaimFile, SwapRules, Version};
use crate::error::{Error, Result};
use crate::files::{Access, ControlDir, Knob};
use crate::flat;
use crate::units::{Bytes, Limit};
use std::sync::Arc;

/// The memory controller of a v1 cgroup. Usage, limit and statistics are kept open: the group may be
/// gone milliseconds after the event that makes us look.
pub struct MemoryV1 {
    dir: Arc<dyn ControlDir>,
    usage: Knob,
    limit: Knob,
    stat: Knob,
    failcnt: Knob,
    oom_control: Knob,
}

impl MemoryV1 {
    /// Opens the control files. [`Error::Absent`] for a directory that is not a memory cgroup.
    pub fn open(dir: Arc<dyn ControlDir>) -> Result<MemoryV1> {
        // A limit that we may read but not write is enough for `stat`.
        let limit = Knob::open(&dir, "memory.limit_in_bytes", Access::ReadWrite)
            .or_else(|_| Knob::open(&dir, "memory.limit_in_bytes", Access::Read))?;
        Ok(MemoryV1 {
            usage: Knob::open(&dir, "memory.usage_in_bytes", Access::Read)?,
            limit,
            stat: Knob::open(&dir, "memory.stat", Access::Read)?,
            failcnt: Knob::open(&dir, "memory.failcnt", Access::Read)?,
            oom_control: Knob::open(&dir, "memory.oom_control", Access::Read)?,
            dir,
        })
    }

    /// `memory.memsw.limit_in_bytes`: memory and swap together. `None` where swap is not accounted
    /// (`swapaccount=0`, or a kernel without `CONFIG_SWAP`).
    pub fn memsw_limit(&self) -> Result<Option<Limit>> {
        match Knob::open(&self.dir, "memory.memsw.limit_in_bytes", Access::Read) {
            Ok(knob) => Ok(Some(Limit::from_v1(knob.read_u64()?))),
            Err(Error::Absent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `memory.swappiness`, 0 to 100 (200 from 5.8).
    pub fn swappiness(&self) -> Result<u64> {
        Knob::open(&self.dir, "memory.swappiness", Access::Read)?.read_u64()
    }

    fn set_memsw(&self, limit: Limit) -> Result<()> {
        Knob::open(&self.dir, "memory.memsw.limit_in_bytes", Access::Write)?.write(&limit.to_v1())
    }
}

impl Memory for MemoryV1 {
    fn dir(&self) -> &dyn ControlDir {
        &*self.dir
    }

    fn version(&self) -> Version {
        Version::V1
    }

    fn usage(&self) -> Result<Bytes> {
        self.usage.read_u64().map(Bytes)
    }

    fn limit(&self) -> Result<Limit> {
        self.limit.read_u64().map(Limit::from_v1)
    }

    fn set_limit(&self, limit: Limit) -> Result<()> {
        self.limit.write(&limit.to_v1())
    }

    fn limit_bound(&self) -> Result<Limit> {
        Ok(self.memsw_limit()?.unwrap_or(Limit::Max))
    }

    /// `mem_cgroup_resize_max` keeps limit ≤ memsw at every moment (EINVAL): raise memsw first, lower
    /// the limit first.
    fn set_limits(&self, limit: Limit, swap: Option<Limit>) -> Result<()> {
        let Some(swap) = swap else {
            return self.set_limit(limit);
        };
        let memsw = match (limit, swap) {
            (Limit::Bytes(limit), Limit::Bytes(swap)) => Limit::Bytes(limit.saturating_add(swap)),
            _ => Limit::Max,
        };
        match self.memsw_limit()? {
            Some(current) if limit > current => {
                self.set_memsw(memsw)?;
                self.set_limit(limit)
            }
            Some(current) => {
                self.set_limit(limit)?;
                if current == memsw.page_floor() { Ok(()) } else { self.set_memsw(memsw) }
            }
            None if swap == Limit::Max => self.set_limit(limit),
            None => Err(Error::Absent {
                path: self.dir.path().join("memory.memsw.limit_in_bytes"),
                why: "swap is not accounted on this kernel (boot with swapaccount=1), so no swap \
                      limit can be set",
            }),
        }
    }

    fn high(&self) -> Result<Limit> {
        Knob::open(&self.dir, "memory.high", Access::Read)?.read_limit_v2()
    }

    fn set_high(&self, high: Limit) -> Result<()> {
        Knob::open(&self.dir, "memory.high", Access::Write)?.write(&high.to_v2())
    }

    fn stat(&self) -> Result<MemoryStat> {
        Ok(MemoryStat::parse_v1(&self.stat.read()?))
    }

    fn peak(&self) -> Result<Bytes> {
        Knob::open(&self.dir, "memory.max_usage_in_bytes", Access::Read)?.read_u64().map(Bytes)
    }

    fn counters(&self) -> Result<Counters> {
        let oom_control = self.oom_control.read()?;
        let oom_kill = flat::get(&oom_control, "oom_kill");
        Ok(Counters { failcnt: Some(self.failcnt.read_u64()?), oom_kill, ..Counters::default() })
    }

    fn swap_usage(&self) -> Result<Option<Bytes>> {
        Ok(self.stat()?.swap)
    }

    fn swap_rules(&self) -> Result<SwapRules> {
        let swappiness = self.swappiness()?;
        let tight = match self.memsw_limit()? {
            Some(memsw) => memsw != Limit::Max && memsw <= self.limit()?,
            None => false,
        };
        Ok(SwapRules {
            swaps_at_limit: swappiness > 0 && !tight,
            reclaim_may_swap: swappiness > 0,
            // Swapping out does not change memsw usage, so memsw bounds nothing here.
            room: Limit::Max,
        })
    }

    fn reclaim_file(&self, file: ReclaimFile) -> Result<Knob> {
        let (name, access) = match file {
            ReclaimFile::Limit => ("memory.limit_in_bytes", Access::ReadWrite),
            ReclaimFile::ForceEmpty => ("memory.force_empty", Access::Write),
            ReclaimFile::Reclaim => ("memory.reclaim", Access::Write),
            ReclaimFile::High => ("memory.high", Access::ReadWrite),
            ReclaimFile::Swappiness => ("memory.swappiness", Access::ReadWrite),
        };
        Knob::open(&self.dir, name, access)
    }
}

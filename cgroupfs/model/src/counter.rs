//! Page counters and the per-CPU stock (`mm/page_counter.c`, `consume_stock`, `refill_stock`).

use crate::group::GroupId;
use crate::host::State;
use crate::mutation::Mutation;

/// Which counter had no room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Over {
    /// Whose.
    pub(crate) group: GroupId,
    /// Not if it was memsw: swapping does not lower that.
    pub(crate) may_swap: bool,
}

impl State {
    /// Where this group's charges go on to: nowhere if the parent has `use_hierarchy` 0.
    pub(crate) fn counter_parent(&self, id: GroupId) -> Option<GroupId> {
        if self.broken(Mutation::ChildrenDoNotCount) {
            return None;
        }
        let flat = |parent: &GroupId| !self.group(*parent).use_hierarchy;
        let parent = self.group(id).parent?;
        (!flat(&parent) || self.broken(Mutation::FlatIsHierarchical)).then_some(parent)
    }

    /// The group and the ancestors that its charges count into.
    pub(crate) fn chain(&self, id: GroupId) -> Vec<GroupId> {
        std::iter::successors(Some(id), |id| self.counter_parent(*id)).collect()
    }

    fn memsw_counted(&self) -> bool {
        self.config.v1() && self.config.swapaccount
    }

    /// Charges all counters up to the root or none: memsw first, then memory, as `try_charge_memcg`
    /// does. `failcnt` rises where there was no room; from 6.18 memsw keeps none.
    pub(crate) fn charge_counters(&mut self, id: GroupId, pages: u64) -> Result<(), Over> {
        let chain = self.chain(id);
        let memory_first = self.broken(Mutation::TightMemswCountsFailures);
        if self.memsw_counted() && !memory_first {
            for group in &chain {
                let counts = self.config.memsw_failcnt;
                let memsw = &mut self.group_mut(*group).memsw;
                if memsw.usage + pages > memsw.limit {
                    memsw.failcnt += u64::from(counts);
                    let may_swap = self.broken(Mutation::TightMemswSwaps);
                    return Err(Over { group: *group, may_swap });
                }
            }
        }
        for group in &chain {
            let memory = self.group(*group).memory;
            if memory.usage + pages > memory.limit && !self.broken(Mutation::ChargesIgnoreTheLimit)
            {
                let counts = match self.broken(Mutation::FailuresAreCountedAtTheCharger) {
                    true => id,
                    false => *group,
                };
                let counted = !self.broken(Mutation::FailuresAreNotCounted);
                self.group_mut(counts).memory.failcnt += u64::from(counted);
                return Err(Over { group: *group, may_swap: true });
            }
        }
        self.charge_anyway(id, pages);
        Ok(())
    }

    /// `page_counter_charge`: whatever the limits say.
    pub(crate) fn charge_anyway(&mut self, id: GroupId, pages: u64) {
        let memsw_counted = self.memsw_counted();
        for group in self.chain(id) {
            let group = self.group_mut(group);
            group.memory.usage += pages;
            group.memory.peak = group.memory.peak.max(group.memory.usage);
            if memsw_counted {
                group.memsw.usage += pages;
                group.memsw.peak = group.memsw.peak.max(group.memsw.usage);
            }
        }
    }

    /// Takes pages off the memory counters, and off memsw unless they went to swap.
    pub(crate) fn uncharge(&mut self, id: GroupId, pages: u64, swapped: bool) {
        let swapped = swapped && !self.broken(Mutation::SwappingLowersMemsw);
        let memsw = self.memsw_counted() && !swapped;
        for group in self.chain(id) {
            let group = self.group_mut(group);
            group.memory.usage -= pages;
            if memsw {
                group.memsw.usage -= pages;
            }
        }
    }

    /// Takes pages off one group's own counters only: they stay its ancestors'.
    pub(crate) fn uncharge_one(&mut self, id: GroupId, pages: u64) {
        let memsw = self.memsw_counted();
        let group = self.group_mut(id);
        group.memory.usage -= pages;
        if memsw {
            group.memsw.usage -= pages;
        }
    }

    /// Swap entries come (+) into use by a group.
    pub(crate) fn charge_swap(&mut self, id: GroupId, pages: u64) {
        self.swap_used += pages;
        for group in self.chain(id) {
            self.group_mut(group).swap.usage += pages;
        }
    }

    /// Swap entries are freed; `freed` if the page is gone for good, not swapped in.
    pub(crate) fn uncharge_swap(&mut self, id: GroupId, pages: u64) {
        self.swap_used -= pages;
        let memsw = self.memsw_counted();
        for group in self.chain(id) {
            let group = self.group_mut(group);
            group.swap.usage -= pages;
            if memsw {
                // Saturating for the kernel that took it off when the page was swapped out.
                group.memsw.usage = group.memsw.usage.saturating_sub(pages);
            }
        }
    }

    /// How much more a group may swap: the host's free swap, and on v2 `memory.swap.max` up to the root
    /// (`mem_cgroup_get_nr_swap_pages`).
    pub(crate) fn swap_room(&self, id: GroupId) -> u64 {
        let free = self.config.swap.saturating_sub(self.swap_used);
        if self.config.v1() || self.broken(Mutation::SwapMaxIsIgnored) {
            return free;
        }
        let own = self.chain(id).into_iter().map(|group| {
            let swap = self.group(group).swap;
            swap.limit.saturating_sub(swap.usage)
        });
        own.fold(free, u64::min)
    }

    /// The highest usage so far.
    pub(crate) fn peak(&self, id: GroupId) -> u64 {
        let memory = self.group(id).memory;
        if self.broken(Mutation::PeakFollowsUsage) { memory.usage } else { memory.peak }
    }

    /// `consume_stock`: whether the CPU holds enough that was charged ahead.
    pub(crate) fn consume_stock(&mut self, id: GroupId, cpu: usize, pages: u64) -> bool {
        let stock = &mut self.group_mut(id).stock[cpu];
        let enough = *stock >= pages;
        if enough {
            *stock -= pages;
        }
        enough
    }

    /// `drain_all_stock`: of the group and all below it.
    pub(crate) fn drain_all_stock(&mut self, root: GroupId) {
        for id in self.subtree(root) {
            self.drain_stock(id);
        }
    }

    pub(crate) fn drain_stock(&mut self, id: GroupId) {
        let stocked = self.group(id).stocked();
        self.group_mut(id).stock.fill(0);
        self.uncharge(id, stocked, false);
    }
}

//! v1 files: `mm/memcontrol-v1.c`, `kernel/cgroup/legacy_freezer.c`.

use crate::group::GroupId;
use crate::host::State;
use crate::mutation::Mutation;
use crate::parse::{integer, pages};
use crate::reclaim::PASS;
use nix::errno::Errno;
use std::time::Duration;

pub(crate) const FILES: &[&str] = &[
    "memory.usage_in_bytes",
    "memory.limit_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.failcnt",
    "memory.memsw.usage_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.memsw.max_usage_in_bytes",
    "memory.memsw.failcnt",
    "memory.force_empty",
    "memory.reclaim",
    "memory.oom_control",
    "memory.stat",
    "memory.swappiness",
    "memory.use_hierarchy",
    "memory.kmem.usage_in_bytes",
    "cgroup.procs",
    "cgroup.event_control",
];

/// HZ/10.
const FRUITLESS_WAIT: Duration = Duration::from_millis(100);

pub(crate) const FREEZER_FILES: &[&str] =
    &["freezer.state", "freezer.self_freezing", "freezer.parent_freezing", "cgroup.procs"];

impl State {
    pub(crate) fn has_v1(&self, id: GroupId, name: &str) -> bool {
        let root = self.group(id).parent.is_none();
        match name {
            "memory.reclaim" => self.config.memory_reclaim,
            _ if name.starts_with("memory.memsw.") => self.config.swapaccount,
            _ if name.starts_with("freezer.") => !root,
            _ => true,
        }
    }

    pub(crate) fn read_v1(&self, id: GroupId, name: &str) -> Result<String, Errno> {
        let group = self.group(id);
        let bytes = |pages: u64| Ok(format!("{}\n", pages * self.config.page_size));
        let number = |number: u64| Ok(format!("{number}\n"));
        match name {
            "memory.usage_in_bytes" => bytes(group.memory.usage),
            "memory.limit_in_bytes" => bytes(group.memory.limit),
            "memory.max_usage_in_bytes" => bytes(self.peak(id)),
            "memory.failcnt" => number(group.memory.failcnt),
            "memory.memsw.usage_in_bytes" => bytes(group.memsw.usage),
            "memory.memsw.limit_in_bytes" => bytes(group.memsw.limit),
            "memory.memsw.max_usage_in_bytes" => bytes(group.memsw.peak),
            "memory.memsw.failcnt" => number(group.memsw.failcnt),
            "memory.oom_control" => Ok(format!(
                "oom_kill_disable {}\nunder_oom {}\noom_kill {}\n",
                u8::from(group.oom_kill_disable),
                u8::from(group.under_oom),
                group.oom_kill
            )),
            "memory.stat" => Ok(self.stat_v1(id)),
            "memory.swappiness" => number(group.swappiness),
            "memory.use_hierarchy" => number(u64::from(group.use_hierarchy)),
            "memory.kmem.usage_in_bytes" => {
                bytes(self.subtree(id).into_iter().map(|id| self.group(id).kernel).sum())
            }
            "cgroup.procs" => Ok(self.procs(id)),
            "freezer.state" => Ok(format!("{}\n", self.freezer_state(id))),
            "freezer.self_freezing" => number(u64::from(group.frozen_at.is_some())),
            "freezer.parent_freezing" => {
                number(u64::from(group.parent.is_some_and(|parent| self.freezing(parent))))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn write_v1(&mut self, id: GroupId, name: &str, value: &str) -> Result<(), Errno> {
        let root = self.group(id).parent.is_none();
        match name {
            "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes" => {
                if root {
                    return Err(Errno::EINVAL);
                }
                let limit = self.limit_v1(value)?;
                self.resize(id, limit, name == "memory.memsw.limit_in_bytes")
            }
            "memory.max_usage_in_bytes" => {
                let memory = &mut self.group_mut(id).memory;
                memory.peak = memory.usage;
                Ok(())
            }
            "memory.memsw.max_usage_in_bytes" => {
                let memsw = &mut self.group_mut(id).memsw;
                memsw.peak = memsw.usage;
                Ok(())
            }
            "memory.failcnt" => {
                if !self.broken(Mutation::FailcntIsNotReset) {
                    self.group_mut(id).memory.failcnt = 0;
                }
                Ok(())
            }
            "memory.memsw.failcnt" => {
                self.group_mut(id).memsw.failcnt = 0;
                Ok(())
            }
            "memory.force_empty" => self.force_empty(id),
            "memory.reclaim" => self.reclaim_bytes(id, value),
            "memory.oom_control" => match (root, value) {
                (false, "0") => {
                    self.group_mut(id).oom_kill_disable = false;
                    if !self.broken(Mutation::ArmingDoesNotWake) {
                        self.oom_recover(id);
                    }
                    Ok(())
                }
                (false, "1") => {
                    self.group_mut(id).oom_kill_disable = true;
                    Ok(())
                }
                _ => Err(Errno::EINVAL),
            },
            "memory.swappiness" => {
                let swappiness = integer(value)?;
                if swappiness > self.config.swappiness_max {
                    return Err(Errno::EINVAL);
                }
                self.group_mut(id).swappiness = swappiness;
                Ok(())
            }
            "memory.use_hierarchy" => self.set_use_hierarchy(id, value),
            "cgroup.procs" => self.attach(id, value),
            "cgroup.event_control" => self.register(id, value),
            "freezer.state" => match value {
                "FROZEN" => self.set_freezer(id, true),
                "THAWED" => self.set_freezer(id, false),
                _ => Err(Errno::EINVAL),
            },
            _ => Err(Errno::EINVAL),
        }
    }

    /// `mem_cgroup_resize_max`: signal → EINTR; limit > memsw → EINVAL; stored once usage fits; one drain
    /// of the stocks; a pass; nothing reclaimed → EBUSY. Any progress goes on, without bound from 4.17.
    /// memsw writes never swap.
    fn resize(&mut self, id: GroupId, limit: u64, memsw: bool) -> Result<(), Errno> {
        let mut drained = false;
        let mut pass = 0;
        let groups = u32::try_from(self.subtree(id).len()).unwrap_or(u32::MAX);
        let mut left = self.config.bounded_resize.map(|retries| retries.saturating_mul(groups));
        let mut lowest = counter_usage(self, id, memsw);
        let found = self.group(id).memory.limit;
        loop {
            if self.between_passes(id, pass) && !self.resize_ignores_signals(id, limit) {
                if self.broken(Mutation::InterruptedLimitWriteStays) {
                    self.group_mut(id).memory.limit = limit;
                }
                return Err(Errno::EINTR);
            }
            let heeds = self.broken(Mutation::ShrinkHeedsTheRaise);
            if heeds && self.group(id).memory.limit > found {
                return Ok(());
            }
            let group = self.group(id);
            let wrong = match memsw {
                true => {
                    group.memory.limit > limit && !self.broken(Mutation::MemswBelowLimitIsTaken)
                }
                false => {
                    self.config.swapaccount
                        && limit > group.memsw.limit
                        && !self.broken(Mutation::LimitAboveMemswIsTaken)
                }
            };
            if wrong {
                return Err(Errno::EINVAL);
            }
            let group = self.group_mut(id);
            let counter = if memsw { &mut group.memsw } else { &mut group.memory };
            if counter.usage <= limit {
                let raised = limit > counter.limit;
                counter.limit = limit;
                let wakes = match raised {
                    true => !self.broken(Mutation::RaiseDoesNotWake),
                    false => self.broken(Mutation::EqualLimitWakes),
                };
                if wakes {
                    self.oom_recover(id);
                }
                // What the group does before its writer gets to run again.
                self.run_beside(id);
                return Ok(());
            }
            if !drained {
                self.drain_all_stock(id);
                drained = true;
                continue;
            }
            pass += 1;
            let progress = self.resize_pass(id, memsw) > 0;
            match &mut left {
                None if progress => {}
                None => return self.resize_is_busy(id, limit),
                // el7: the retries last as long as usage goes down from one pass to the next.
                Some(left) => {
                    let usage = counter_usage(self, id, memsw);
                    if usage < lowest {
                        lowest = usage;
                    } else if *left == 0 {
                        return Err(Errno::EBUSY);
                    } else {
                        *left -= 1;
                    }
                }
            }
        }
    }

    /// `mem_cgroup_force_empty`: no target; passes while anything is charged and retries last; success
    /// even if not empty; EINTR between passes. Swaps whatever memsw says.
    fn force_empty(&mut self, id: GroupId) -> Result<(), Errno> {
        let group = self.group(id);
        if group.parent.is_none() {
            return Err(Errno::EINVAL);
        }
        let children = group.children.iter().any(|child| !self.group(*child).removed);
        if self.config.force_empty_busy && (children || self.populated(id, false)) {
            return Err(Errno::EBUSY);
        }
        self.drain_all_stock(id);
        let may_swap = !self.broken(Mutation::ForceEmptyHonoursMemsw)
            || self.group(id).memsw.limit > self.group(id).memory.limit;
        let mut retries = self.config.retries;
        let mut pass = 0;
        while retries > 0 && self.group(id).memory.usage > 0 {
            if self.between_passes(id, pass) && !self.broken(Mutation::ForceEmptyIgnoresSignals) {
                return Err(Errno::EINTR);
            }
            pass += 1;
            if self.reclaim_pass(id, PASS, may_swap) == 0 {
                retries -= 1;
                let waits = self.broken(Mutation::ForceEmptyWaits);
                let wait = if waits { FRUITLESS_WAIT } else { self.config.fruitless_wait };
                self.advance(wait);
            }
        }
        if self.broken(Mutation::ForceEmptyTakesTheLimit) {
            self.group_mut(id).memory.limit = 0;
        }
        match retries == 0 && self.broken(Mutation::ForceEmptyIsBusy) {
            true => Err(Errno::EBUSY),
            false => Ok(()),
        }
    }

    /// A v1 limit as it is written, in pages.
    fn limit_v1(&self, value: &str) -> Result<u64, Errno> {
        if self.broken(Mutation::MinusOneIsRefused) && value == "-1" {
            return Err(Errno::EINVAL);
        }
        let size = self.config.page_size;
        let odd = value.parse::<u64>().is_ok_and(|bytes| bytes % size != 0);
        match pages(value, "-1", size) {
            Err(_) if self.broken(Mutation::JunkIsZero) => Ok(0),
            Ok(pages) if odd && self.broken(Mutation::LimitsAreRoundedUp) => Ok(pages + 1),
            other => other,
        }
    }

    fn resize_ignores_signals(&self, id: GroupId, limit: u64) -> bool {
        self.broken(Mutation::LimitWriteIgnoresSignals)
            || self.broken(Mutation::RaiseIgnoresSignals) && limit >= self.group(id).memory.limit
    }

    /// A pass of a limit write: the number of pages freed.
    fn resize_pass(&mut self, id: GroupId, memsw: bool) -> u64 {
        if self.broken(Mutation::LimitWriteReclaimsNothing) {
            return 0;
        }
        let want = if self.broken(Mutation::LimitWriteOvershoots) { PASS * 1024 } else { PASS };
        let may_swap = match memsw {
            true => self.broken(Mutation::MemswWriteSwaps),
            false => !self.broken(Mutation::LimitWriteNeverSwaps),
        };
        self.reclaim_pass(id, want, may_swap)
    }

    /// Nothing could be reclaimed: EBUSY, and the limit is as it was.
    fn resize_is_busy(&mut self, id: GroupId, limit: u64) -> Result<(), Errno> {
        let ignores = self.broken(Mutation::LimitWriteIgnoresAnon);
        if ignores || self.broken(Mutation::FailedLimitWriteStays) {
            self.group_mut(id).memory.limit = limit;
        }
        if ignores { Ok(()) } else { Err(Errno::EBUSY) }
    }

    /// `mem_cgroup_hierarchy_write` of 5.10: EINVAL under a parent that has it, EBUSY with children.
    fn set_use_hierarchy(&mut self, id: GroupId, value: &str) -> Result<(), Errno> {
        let wanted = match value {
            "0" => false,
            "1" => true,
            _ => return Err(Errno::EINVAL),
        };
        let group = self.group(id);
        if group.use_hierarchy == wanted {
            return Ok(());
        }
        let above = group.parent.is_some_and(|parent| self.group(parent).use_hierarchy);
        if self.config.use_hierarchy_fixed || above {
            return Err(Errno::EINVAL);
        }
        if !group.children.is_empty() {
            return Err(Errno::EBUSY);
        }
        self.group_mut(id).use_hierarchy = wanted;
        Ok(())
    }
}

fn counter_usage(state: &State, id: GroupId, memsw: bool) -> u64 {
    let group = state.group(id);
    if memsw { group.memsw.usage } else { group.memory.usage }
}

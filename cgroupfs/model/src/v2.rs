//! v2 files: `mm/memcontrol.c`, `kernel/cgroup/cgroup.c`.

use crate::group::{GroupId, MemoryEvents};
use crate::host::State;
use crate::mutation::Mutation;
use crate::parse::{no_limit, pages};
use crate::reclaim::PASS;
use nix::errno::Errno;

pub(crate) const FILES: &[&str] = &[
    "memory.current",
    "memory.peak",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.reclaim",
    "memory.events",
    "memory.events.local",
    "memory.stat",
    "memory.oom.group",
    "memory.swap.current",
    "memory.swap.max",
    "cgroup.procs",
    "cgroup.events",
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.stat",
    "cgroup.controllers",
    "cgroup.subtree_control",
];

impl State {
    pub(crate) fn has_v2(&self, id: GroupId, name: &str) -> bool {
        let parent = self.group(id).parent;
        let given = parent.is_none_or(|parent| self.group(parent).subtree_memory);
        match name {
            "memory.stat" | "memory.reclaim" | "memory.peak" if !given => false,
            "memory.stat" => true,
            "memory.reclaim" => self.config.memory_reclaim,
            "memory.peak" => parent.is_some() && self.config.memory_peak,
            "cgroup.events" | "cgroup.freeze" | "cgroup.kill" => parent.is_some(),
            _ if name.starts_with("memory.swap.") => {
                parent.is_some() && given && self.config.swapaccount
            }
            _ if name.starts_with("memory.") => parent.is_some() && given,
            _ => true,
        }
    }

    pub(crate) fn read_v2(&self, id: GroupId, name: &str) -> Result<String, Errno> {
        let group = self.group(id);
        let bytes = |pages: u64| Ok(format!("{}\n", pages * self.config.page_size));
        let limit = |pages: u64| match pages == no_limit(self.config.page_size) {
            true => Ok("max\n".to_owned()),
            false => bytes(pages),
        };
        match name {
            "memory.current" => bytes(group.memory.usage),
            "memory.peak" => bytes(self.peak(id)),
            "memory.min" => limit(group.min),
            "memory.low" => limit(group.low),
            "memory.high" => limit(group.high),
            "memory.max" => limit(group.memory.limit),
            "memory.events" => Ok(events(&group.events)),
            "memory.events.local" if self.broken(Mutation::LocalEventsCountAll) => {
                Ok(events(&group.events))
            }
            "memory.events.local" => Ok(events(&group.events_local)),
            "memory.stat" => Ok(self.stat_v2(id)),
            "memory.oom.group" => Ok(format!("{}\n", u8::from(group.oom_group))),
            "memory.swap.current" => bytes(group.swap.usage),
            "memory.swap.max" => limit(group.swap.limit),
            "cgroup.procs" => Ok(self.procs(id)),
            "cgroup.events" => Ok(format!(
                "populated {}\nfrozen {}\n",
                u8::from(self.populated(id, true)),
                u8::from(self.freezer_state(id) == "FROZEN")
            )),
            "cgroup.freeze" => Ok(format!("{}\n", u8::from(group.frozen_at.is_some()))),
            "cgroup.stat" => {
                let below = self.subtree(id);
                let living = below.iter().filter(|id| !self.group(**id).removed).count() - 1;
                Ok(format!(
                    "nr_descendants {living}\nnr_dying_descendants {}\n",
                    below.len() - 1 - living
                ))
            }
            "cgroup.controllers" => {
                let given = group.parent.is_none_or(|parent| self.group(parent).subtree_memory);
                Ok(if given { "memory\n" } else { "\n" }.to_owned())
            }
            "cgroup.subtree_control" => {
                Ok(if group.subtree_memory { "memory\n" } else { "\n" }.to_owned())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn write_v2(&mut self, id: GroupId, name: &str, value: &str) -> Result<(), Errno> {
        let size = |value: &str| pages(value, "max", self.config.page_size);
        match name {
            "memory.min" => {
                let pages = size(value)?;
                self.group_mut(id).min = pages;
            }
            "memory.low" => {
                let pages = size(value)?;
                self.group_mut(id).low = pages;
            }
            "memory.high" => {
                let pages = size(value)?;
                self.set_high(id, pages);
            }
            "memory.max" => {
                let pages = size(value)?;
                return self.set_max(id, pages);
            }
            "memory.swap.max" => {
                let pages = size(value)?;
                self.group_mut(id).swap.limit = pages;
            }
            "memory.reclaim" => return self.reclaim_bytes(id, value),
            "memory.oom.group" => self.group_mut(id).oom_group = flag(value)?,
            "cgroup.freeze" => return self.set_freezer(id, flag(value)?),
            "cgroup.kill" => {
                if !flag(value)? {
                    return Err(Errno::ERANGE);
                }
                let groups = match self.broken(Mutation::KillStaysInTheGroup) {
                    true => vec![id],
                    false => self.subtree(id),
                };
                for task in 0..self.tasks.len() {
                    if groups.contains(&self.tasks[task].memory) && !self.tasks[task].dead() {
                        self.exit_task(task);
                    }
                }
            }
            "cgroup.procs" => {
                // No internal processes (cgroup_migrate_vet_dst).
                let group = self.group(id);
                if group.parent.is_some() && group.subtree_memory {
                    return Err(Errno::EBUSY);
                }
                return self.attach(id, value);
            }
            "cgroup.subtree_control" => return self.set_subtree(id, value),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// `memory_high_write`: stored first, then reclaim in the writer while there is progress. A signal
    /// ends it; that is no error.
    fn set_high(&mut self, id: GroupId, high: u64) {
        self.group_mut(id).high = high;
        if self.broken(Mutation::HighWriteReclaimsNothing) {
            return;
        }
        let mut drained = false;
        let mut retries = self.config.retries;
        let mut pass = 0;
        while self.group(id).memory.usage > high {
            if self.between_passes(id, pass) {
                return;
            }
            if !drained {
                self.drain_all_stock(id);
                drained = true;
                continue;
            }
            pass += 1;
            if self.reclaim_pass(id, PASS, true) == 0 {
                if retries == 0 {
                    break;
                }
                retries -= 1;
            }
        }
        if self.broken(Mutation::HighWriteKills) && self.group(id).memory.usage > high {
            self.out_of_memory(id);
        }
        self.run_beside(id);
    }

    /// `memory_max_write`: stored first, then reclaim, then OOM kills until it fits or nobody is left.
    fn set_max(&mut self, id: GroupId, max: u64) -> Result<(), Errno> {
        if self.broken(Mutation::MaxIsBusy) && self.group(id).memory.usage > max {
            return Err(Errno::EBUSY);
        }
        self.group_mut(id).memory.limit = max;
        let mut drained = false;
        let mut retries = self.config.retries;
        let mut pass = 0;
        while self.group(id).memory.usage > max {
            if self.between_passes(id, pass) {
                return Ok(());
            }
            if !drained {
                self.drain_all_stock(id);
                drained = true;
                continue;
            }
            pass += 1;
            if retries > 0 {
                if self.reclaim_pass(id, PASS, true) == 0 {
                    retries -= 1;
                }
                continue;
            }
            if self.broken(Mutation::MaxKillsNobody) || !self.out_of_memory(id) {
                break;
            }
        }
        self.run_beside(id);
        Ok(())
    }

    /// `memory_reclaim`: so many bytes in passes; EAGAIN if short, EINTR after partial progress.
    pub(crate) fn reclaim_bytes(&mut self, id: GroupId, value: &str) -> Result<(), Errno> {
        let more = if self.broken(Mutation::ReclaimTakesMore) { 4 } else { 1 };
        let want = pages(value, "", self.config.page_size)? * more;
        let mut freed = 0;
        let mut retries = self.config.retries;
        let mut pass = 0;
        let mut drained = false;
        while freed < want {
            if self.between_passes(id, pass) && !self.broken(Mutation::ReclaimIgnoresSignals) {
                return Err(Errno::EINTR);
            }
            pass += 1;
            let left = want - freed;
            let pass_size = if self.config.reclaim_in_one_pass { left } else { PASS.min(left) };
            let got = self.reclaim_pass(id, pass_size, true);
            freed += got;
            if got == 0 {
                if !drained {
                    self.drain_all_stock(id);
                    drained = true;
                }
                if retries == 0 {
                    return match self.broken(Mutation::ShortReclaimIsFine) {
                        true => Ok(()),
                        false => Err(Errno::EAGAIN),
                    };
                }
                retries -= 1;
            }
        }
        Ok(())
    }

    /// EBUSY for a group with processes of its own, or whose children have it in use further down.
    fn set_subtree(&mut self, id: GroupId, value: &str) -> Result<(), Errno> {
        for word in value.split_ascii_whitespace() {
            let on = match word {
                "+memory" => true,
                "-memory" => false,
                _ => return Err(Errno::EINVAL),
            };
            let root = self.group(id).parent.is_none();
            let given = self.group(id).parent.is_none_or(|up| self.group(up).subtree_memory);
            if on && !given {
                return Err(Errno::ENOENT);
            }
            let lax = self.broken(Mutation::SubtreeControlIgnoresTasks);
            if on && !root && !lax && self.populated(id, false) {
                return Err(Errno::EBUSY);
            }
            let in_use =
                self.group(id).children.iter().any(|child| self.group(*child).subtree_memory);
            if !on && in_use {
                return Err(Errno::EBUSY);
            }
            self.group_mut(id).subtree_memory = on;
        }
        Ok(())
    }
}

fn flag(value: &str) -> Result<bool, Errno> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}

fn events(events: &MemoryEvents) -> String {
    format!(
        "low {}\nhigh {}\nmax {}\noom {}\noom_kill {}\noom_group_kill {}\n",
        events.low, events.high, events.max, events.oom, events.oom_kill, events.oom_group_kill
    )
}

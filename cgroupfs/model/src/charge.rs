//! Charging: room, direct reclaim, the OOM killer, or an error (`try_charge_memcg`); then
//! `memory.high` on the way back to user mode (`mem_cgroup_handle_over_high`).

use crate::group::GroupId;
use crate::host::State;
use crate::mutation::Mutation;
use crate::reclaim::PASS;
use crate::task::TaskState;
use nix::errno::Errno;
use std::time::Duration;

/// On whose behalf the kernel charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// A page fault in user mode: the only path that blocks with the killer disabled.
    Fault,
    /// A system call: ENOMEM.
    Syscall,
    /// `copy_to_user` of a system call faults a page in: EFAULT, or a short count.
    Copy,
}

/// Why a charge did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The system call failed.
    Errno(Errno),
    /// The task waits for memory, with the killer disabled.
    Blocked,
    /// The task was killed.
    Killed,
}

impl State {
    /// Charges `pages` for a task to its group.
    pub(crate) fn try_charge(&mut self, task: usize, pages: u64, via: Via) -> Result<(), Denied> {
        let id = self.tasks[task].memory;
        let cpu = self.cpu_of(task);
        if self.consume_stock(id, cpu, pages) {
            return Ok(());
        }
        let ahead = if self.broken(Mutation::StocksAreLarge) { 4096 } else { self.config.batch };
        let mut batch = pages.max(ahead);
        let mut retries = self.config.retries;
        let mut drained = false;
        loop {
            let over = match self.charge_counters(id, batch) {
                Ok(()) => break,
                Err(over) => over,
            };
            if batch > pages {
                batch = pages;
                continue;
            }
            self.event(over.group, |events| events.max += 1);
            self.direct_reclaims += 1;
            let freed = match self.broken(Mutation::KillsBeforeReclaim) {
                true => 0,
                false => self.reclaim_pass(over.group, pages, over.may_swap),
            };
            if self.margin(over.group) >= pages {
                continue;
            }
            if !drained {
                self.drain_all_stock(over.group);
                drained = true;
                continue;
            }
            if freed > 0 && pages <= 8 {
                continue;
            }
            if retries > 0 {
                retries -= 1;
                continue;
            }
            let v1 = self.config.v1();
            if v1 && self.config.syscalls_enomem && via != Via::Fault {
                return Err(errno_of(via));
            }
            let disabled = self.group(over.group).oom_kill_disable;
            if v1 && disabled && !self.broken(Mutation::DisabledKillerKills) {
                let waits = match via {
                    Via::Fault => !self.broken(Mutation::DisabledFaultsFail),
                    Via::Syscall => self.broken(Mutation::DisabledSyscallsWait),
                    Via::Copy => self.broken(Mutation::DisabledCopiesWait),
                };
                if !waits {
                    return Err(errno_of(via));
                }
                self.oom_block(task, over.group);
                return Err(Denied::Blocked);
            }
            if !self.out_of_memory(over.group) {
                return Err(errno_of(via));
            }
            if self.tasks[task].dead() {
                return Err(Denied::Killed);
            }
            retries = self.config.retries;
        }
        self.group_mut(id).stock[cpu] += batch - pages;
        let over_high =
            self.chain(id).into_iter().any(|id| self.group(id).memory.usage > self.group(id).high);
        if over_high && !self.config.v1() {
            self.tasks[task].over_high += batch;
        }
        Ok(())
    }

    /// `mem_cgroup_margin`: room up to the limit, of memory and memsw.
    fn margin(&self, id: GroupId) -> u64 {
        let group = self.group(id);
        let memory = group.memory.limit.saturating_sub(group.memory.usage);
        if self.config.v1() && self.config.swapaccount {
            memory.min(group.memsw.limit.saturating_sub(group.memsw.usage))
        } else {
            memory
        }
    }

    /// A task that charged over `memory.high` reclaims while that makes progress, 16 fruitless passes at
    /// most, and then sleeps by how far it is over (5.10+; 4.19 never sleeps).
    pub(crate) fn return_to_user(&mut self, task: usize) {
        let charged = std::mem::take(&mut self.tasks[task].over_high);
        if charged == 0 || self.tasks[task].dead() {
            return;
        }
        let id = self.tasks[task].memory;
        let mut fruitless = self.config.retries;
        let mut want = charged;
        loop {
            let mut freed = 0;
            for id in self.chain(id) {
                if self.group(id).memory.usage > self.group(id).high {
                    if !self.broken(Mutation::HighIsNotCounted) {
                        self.event(id, |events| events.high += 1);
                    }
                    freed += self.reclaim_pass(id, want, true);
                }
            }
            let sleep = self.penalty(id, charged);
            let at_once = self.broken(Mutation::HighSleepsAtOnce);
            let sleep = if at_once { sleep + Duration::from_secs(2) } else { sleep };
            let sleeps = self.config.high_sleeps && !self.broken(Mutation::HighNeverSleeps);
            if !sleeps || sleep <= Duration::from_millis(10) {
                return;
            }
            if freed == 0 && fruitless == 0 {
                self.throttled += sleep;
                self.tasks[task].state = TaskState::Sleeping(self.now + sleep);
                return;
            }
            fruitless -= u32::from(freed == 0);
            want = PASS;
        }
    }

    /// `calculate_high_delay`: `overage = ((usage − high) << 20) / high`, the highest up to the root;
    /// `overage² · HZ >> 34` jiffies a batch of pages; 2 s at most.
    pub(crate) fn penalty(&self, id: GroupId, charged: u64) -> Duration {
        let hz = u128::from(self.config.hz);
        let overage = self
            .chain(id)
            .into_iter()
            .map(|id| {
                let group = self.group(id);
                let over = group.memory.usage.saturating_sub(group.high);
                (u128::from(over) << 20) / u128::from(group.high.max(1))
            })
            .max()
            .unwrap_or(0);
        let penalty = (overage.saturating_mul(overage).saturating_mul(hz)) >> 34;
        let jiffies = penalty.saturating_mul(u128::from(charged)) / u128::from(self.config.batch);
        let jiffies = u64::try_from(jiffies.min(2 * hz)).unwrap_or(0);
        Duration::from_micros(jiffies * 1_000_000 / self.config.hz.max(1))
    }
}

fn errno_of(via: Via) -> Denied {
    Denied::Errno(match via {
        Via::Copy => Errno::EFAULT,
        Via::Fault | Via::Syscall => Errno::ENOMEM,
    })
}

//! Tasks: what they charge, how fast, and what has become of them.

use crate::charge::{Denied, Via};
use crate::group::GroupId;
use crate::host::State;
use crate::lru::take;
use crate::mutation::Mutation;
use std::collections::BTreeMap;
use std::time::Duration;

/// Names a task; its pid in `cgroup.procs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// What is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anonymous memory.
    Anon,
    /// Locked anonymous memory.
    Mlocked,
    /// Page cache of a file that is read.
    File,
    /// Page cache of a file that is written.
    Dirty,
    /// Shared memory, tmpfs.
    Shmem,
    /// Kernel memory.
    Kernel,
}

/// A program: so many pages a second of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// What it charges.
    pub kind: Kind,
    /// How.
    pub via: Via,
    /// Pages a second.
    pub rate: u64,
    /// It stops growing here (pages).
    pub total: u64,
    /// Then it goes on to use what it has: swaps in, reads again. Else it holds.
    pub again: bool,
}

impl Load {
    /// Does nothing.
    pub fn hold() -> Load {
        Load { kind: Kind::Anon, via: Via::Fault, rate: 0, total: 0, again: false }
    }

    /// Grows anonymous memory by page fault, to `total` pages.
    pub fn anon(rate: u64, total: u64) -> Load {
        Load { kind: Kind::Anon, via: Via::Fault, rate, total, again: false }
    }

    /// Reads a file that never ends.
    pub fn stream(rate: u64) -> Load {
        Load { kind: Kind::File, via: Via::Syscall, rate, total: u64::MAX, again: false }
    }

    /// Reads a file of so many pages in circles.
    pub fn circles(rate: u64, pages: u64) -> Load {
        Load { kind: Kind::File, via: Via::Syscall, rate, total: pages, again: true }
    }

    /// Writes a file that never ends.
    pub fn dirty(rate: u64) -> Load {
        Load { kind: Kind::Dirty, via: Via::Syscall, rate, total: u64::MAX, again: false }
    }

    /// Writes to tmpfs, to `total` pages.
    pub fn tmpfs(rate: u64, total: u64) -> Load {
        Load { kind: Kind::Shmem, via: Via::Syscall, rate, total, again: false }
    }

    /// The same load, going on to use what it has.
    pub fn again(self) -> Load {
        Load { again: true, ..self }
    }
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// It runs.
    Running,
    /// It sleeps off its debt of `memory.high`.
    Sleeping(Duration),
    /// It waits for memory of this group, with the killer disabled.
    OomBlocked(GroupId),
    /// It is gone.
    Dead,
}

/// Pages that go when the task goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Owned {
    pub(crate) anon: u64,
    pub(crate) mlocked: u64,
    pub(crate) kernel: u64,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) memory: GroupId,
    pub(crate) freezer: GroupId,
    pub(crate) load: Load,
    pub(crate) state: TaskState,
    /// By the group charged: v1 leaves old charges behind when a task moves.
    pub(crate) owned: BTreeMap<GroupId, Owned>,
    pub(crate) cpu: usize,
    pub(crate) carry: u128,
    pub(crate) over_high: u64,
    pub(crate) pending_kill: bool,
    pub(crate) oom_killed: bool,
    pub(crate) done: u64,
    pub(crate) errors: u64,
}

impl Task {
    pub(crate) fn dead(&self) -> bool {
        self.state == TaskState::Dead
    }

    /// For `oom_badness`: what killing it would free.
    pub(crate) fn size(&self) -> u64 {
        self.owned.values().map(|owned| owned.anon + owned.mlocked + owned.kernel).sum()
    }
}

/// A task as a test sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskView {
    /// Where it is.
    pub state: TaskState,
    /// Whether the OOM killer took it.
    pub oom_killed: bool,
    /// A SIGKILL that it has not died of yet (`ShdPnd`).
    pub pending_kill: bool,
    /// It stands still: its group, or one above, is frozen.
    pub frozen: bool,
    /// Pages charged, read or used so far.
    pub done: u64,
    /// ENOMEM and EFAULT so far.
    pub errors: u64,
    /// Anonymous and kernel pages it owns, swapped ones included.
    pub size: u64,
}

impl State {
    pub(crate) fn cpu_of(&self, task: usize) -> usize {
        self.tasks[task].cpu % self.config.cpus.max(1)
    }

    /// Lets a task go on by up to `pages`, if it can run.
    pub(crate) fn run_task(&mut self, task: usize, pages: u64) {
        for _ in 0..pages {
            if self.tasks[task].state != TaskState::Running || self.stands_still(task) {
                return;
            }
            let load = self.tasks[task].load;
            let grown = self.tasks[task].done < load.total;
            let result = if grown {
                self.charge_page(task, load.kind, load.via)
            } else if load.again {
                self.use_page(task, load)
            } else {
                return;
            };
            match result {
                Ok(true) => self.tasks[task].done += 1,
                Ok(false) => return,
                Err(Denied::Errno(_)) => self.tasks[task].errors += 1,
                Err(Denied::Blocked | Denied::Killed) => return,
            }
            self.return_to_user(task);
        }
    }

    /// Charges one page; false where the writer of a file is made to wait for the disk
    /// (`balance_dirty_pages`: by group on v2 only, at a fifth of its limit).
    fn charge_page(&mut self, task: usize, kind: Kind, via: Via) -> Result<bool, Denied> {
        let id = self.tasks[task].memory;
        if kind == Kind::Dirty && !self.config.v1() {
            let group = self.group(id);
            if (group.lru.dirty + group.lru.writeback).saturating_mul(5) > group.memory.limit {
                return Ok(false);
            }
        }
        self.try_charge(task, 1, via)?;
        let owned = self.tasks[task].owned.entry(id).or_default();
        match kind {
            Kind::Anon => owned.anon += 1,
            Kind::Mlocked => owned.mlocked += 1,
            Kind::Kernel => owned.kernel += 1,
            Kind::File | Kind::Dirty | Kind::Shmem => {}
        }
        let group = self.group_mut(id);
        group.counts.pgfault += u64::from(via == Via::Fault);
        match kind {
            // Fresh pages start on the inactive list since 5.9; it makes no odds here.
            Kind::Anon => group.lru.inactive_anon += 1,
            Kind::Mlocked => group.lru.mlocked += 1,
            Kind::File => group.lru.inactive_file += 1,
            Kind::Dirty => group.lru.dirty += 1,
            Kind::Shmem => group.lru.shmem += 1,
            Kind::Kernel => group.kernel += 1,
        }
        if kind != Kind::Kernel || self.broken(Mutation::KernelMemoryIsAPageEvent) {
            let cpu = self.cpu_of(task);
            self.page_event(id, cpu, 1);
        }
        Ok(true)
    }

    /// Uses a page that the task had before: a hit activates it, a miss reads or swaps it in.
    fn use_page(&mut self, task: usize, load: Load) -> Result<bool, Denied> {
        let id = self.tasks[task].memory;
        match load.kind {
            Kind::File => {
                let lru = &mut self.group_mut(id).lru;
                if lru.file() >= load.total {
                    lru.active_file += take(&mut lru.inactive_file, 1);
                    return Ok(true);
                }
                self.charge_page(task, Kind::File, load.via)?;
                self.group_mut(id).counts.refault_file += 1;
            }
            Kind::Anon => {
                let lru = self.group(id).lru;
                // One page in so many is swapped out.
                let turn = self.tasks[task].done % (lru.anon() + lru.swapped_anon).max(1);
                if turn >= lru.swapped_anon {
                    let lru = &mut self.group_mut(id).lru;
                    lru.active_anon += take(&mut lru.inactive_anon, 1);
                    return Ok(true);
                }
                self.try_charge(task, 1, Via::Fault)?;
                let group = self.group_mut(id);
                if take(&mut group.lru.swapped_anon, 1) == 0 {
                    // Another task was killed for that charge, and what was in swap went with it.
                    self.uncharge(id, 1, false);
                    return Ok(true);
                }
                group.lru.active_anon += 1;
                group.counts.refault_anon += 1;
                group.counts.pgmajfault += 1;
                self.uncharge_swap(id, 1);
                let cpu = self.cpu_of(task);
                self.page_event(id, cpu, 1);
            }
            _ => {}
        }
        Ok(true)
    }

    /// Charges pages for a task now. The number charged, and why no more were.
    pub fn allocate(
        &mut self,
        task: TaskId,
        kind: Kind,
        via: Via,
        pages: u64,
    ) -> (u64, Option<Denied>) {
        let Some(index) = self.index(task) else { return (0, Some(Denied::Killed)) };
        for done in 0..pages {
            if self.tasks[index].dead() {
                return (done, Some(Denied::Killed));
            }
            match self.charge_page(index, kind, via) {
                Ok(true) => self.return_to_user(index),
                Ok(false) => return (done, None),
                Err(denied) => return (done, Some(denied)),
            }
        }
        (pages, None)
    }

    /// A task gives back its own memory, and lives on.
    pub fn free(&mut self, task: TaskId) {
        if let Some(index) = self.index(task) {
            self.release(index);
        }
    }

    /// The task's own memory is freed; page cache and shared memory stay.
    pub(crate) fn exit_task(&mut self, task: usize) {
        self.tasks[task].state = TaskState::Dead;
        self.tasks[task].pending_kill = false;
        self.release(task);
    }

    fn release(&mut self, task: usize) {
        for (id, owned) in std::mem::take(&mut self.tasks[task].owned) {
            let group = self.group_mut(id);
            let mut resident = take(&mut group.lru.inactive_anon, owned.anon);
            resident += take(&mut group.lru.active_anon, owned.anon - resident);
            let swapped = take(&mut group.lru.swapped_anon, owned.anon - resident);
            let mlocked = take(&mut group.lru.mlocked, owned.mlocked);
            let kernel = take(&mut group.kernel, owned.kernel);
            self.uncharge(id, resident + mlocked + kernel, false);
            self.uncharge_swap(id, swapped);
            self.page_event(id, 0, resident + mlocked);
            self.oom_recover(id);
            self.free_if_empty(id);
        }
    }

    pub(crate) fn index(&self, task: TaskId) -> Option<usize> {
        let index = usize::try_from(task.0.checked_sub(1)?).ok()?;
        (index < self.tasks.len()).then_some(index)
    }
}

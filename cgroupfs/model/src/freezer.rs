//! The freezer: v1 `freezer.state`, v2 `cgroup.freeze`.

use crate::group::GroupId;
use crate::host::State;
use crate::mutation::Mutation;
use crate::task::TaskState;
use nix::errno::Errno;

impl State {
    /// Whether the group or one above it is being frozen.
    pub(crate) fn freezing(&self, id: GroupId) -> bool {
        self.ancestors(id).any(|id| self.group(id).frozen_at.is_some())
    }

    /// Whether a task stands still. One that waits for memory (D state) does not get there.
    pub(crate) fn frozen(&self, task: usize) -> bool {
        let task = &self.tasks[task];
        let home = if self.config.v1() { task.freezer } else { task.memory };
        let due = |id| self.group(id).frozen_at.is_some_and(|at| at <= self.now);
        let reach = if self.broken(Mutation::FreezingStaysInTheGroup) { 1 } else { usize::MAX };
        let waits = matches!(task.state, TaskState::OomBlocked(_));
        (!waits || self.broken(Mutation::WaiterFreezes))
            && self.ancestors(home).take(reach).any(due)
    }

    /// Whether a task charges nothing because it is frozen.
    pub(crate) fn stands_still(&self, task: usize) -> bool {
        self.frozen(task) && !self.broken(Mutation::FrozenTasksRun)
    }

    fn ancestors(&self, id: GroupId) -> impl Iterator<Item = GroupId> + '_ {
        std::iter::successors(Some(id), |id| self.group(*id).parent)
    }

    /// `freezer_read`: FREEZING until every task of the subtree stands still.
    pub(crate) fn freezer_state(&self, id: GroupId) -> &'static str {
        let shows = self.broken(Mutation::FreezingShowsAbove);
        let below = shows && self.subtree(id).iter().any(|id| self.group(*id).frozen_at.is_some());
        if !self.freezing(id) && !below {
            return "THAWED";
        }
        let groups = self.subtree(id);
        let moving = (0..self.tasks.len()).any(|task| {
            let home = match self.config.v1() {
                true => self.tasks[task].freezer,
                false => self.tasks[task].memory,
            };
            !self.tasks[task].dead() && groups.contains(&home) && !self.frozen(task)
        });
        if moving { "FREEZING" } else { "FROZEN" }
    }

    /// `freezer_write`. A thaw lets a pending SIGKILL through.
    pub(crate) fn set_freezer(&mut self, id: GroupId, frozen: bool) -> Result<(), Errno> {
        if self.group(id).parent.is_none() {
            return Err(Errno::EINVAL);
        }
        let at = self.now + self.config.freeze_latency;
        let group = self.group_mut(id);
        group.frozen_at = match frozen {
            true => group.frozen_at.or(Some(at)),
            false => None,
        };
        self.deliver_kills();
        Ok(())
    }

    /// Pending SIGKILLs reach tasks that are not frozen.
    pub(crate) fn deliver_kills(&mut self) {
        for task in 0..self.tasks.len() {
            if self.tasks[task].pending_kill && !self.frozen(task) {
                self.exit_task(task);
            }
        }
    }
}

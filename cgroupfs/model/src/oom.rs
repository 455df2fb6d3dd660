//! Out of memory: who is killed, who blocks, who is told (`mem_cgroup_out_of_memory`,
//! `mem_cgroup_oom_synchronize`).

use crate::events::Watched;
use crate::group::GroupId;
use crate::host::State;
use crate::mutation::Mutation;
use crate::task::TaskState;

impl State {
    /// Kills the largest task below `over`; false if there is none. v1 tells the eventfds of `over` and
    /// its descendants first; `oom_kill` rises in the victim's own group only (v1), or up to the root
    /// (v2).
    pub(crate) fn out_of_memory(&mut self, over: GroupId) -> bool {
        self.oom_notify(over);
        self.event(over, |events| events.oom += 1);
        let groups = self.subtree(over);
        let victim = (0..self.tasks.len())
            .filter(|task| {
                let task = &self.tasks[*task];
                !task.dead() && groups.contains(&task.memory)
            })
            .max_by_key(|task| self.tasks[*task].size());
        let Some(victim) = victim else { return false };
        let home = self.tasks[victim].memory;
        // oom.group: the topmost group up to `over` that has it (mem_cgroup_get_oom_group).
        let up: Vec<_> =
            std::iter::successors(Some(home), |id| self.group(*id).parent.filter(|_| *id != over))
                .collect();
        let whole = up.into_iter().rfind(|id| self.group(*id).oom_group);
        let whole = whole.filter(|_| !self.broken(Mutation::OomGroupIsIgnored));
        let victims: Vec<usize> = match whole.filter(|_| !self.config.v1()) {
            None => vec![victim],
            Some(whole) => {
                self.event(whole, |events| events.oom_group_kill += 1);
                let groups = self.subtree(whole);
                (0..self.tasks.len())
                    .filter(|task| groups.contains(&self.tasks[*task].memory))
                    .filter(|task| !self.tasks[*task].dead())
                    .collect()
            }
        };
        for victim in victims {
            let home = self.tasks[victim].memory;
            let counts = match self.broken(Mutation::KillsAreCountedAtTheLimit) {
                true => over,
                false => home,
            };
            if !self.broken(Mutation::KillsAreNotCounted) {
                self.group_mut(counts).oom_kill += 1;
                self.event(counts, |events| events.oom_kill += 1);
            }
            self.oom_kills += 1;
            self.tasks[victim].oom_killed = true;
            // The reaper takes its memory even if it is frozen or blocked.
            self.exit_task(victim);
        }
        true
    }

    /// Counts a `memory.events` event here and up to the root.
    pub(crate) fn event(&mut self, id: GroupId, count: fn(&mut crate::group::MemoryEvents)) {
        count(&mut self.group_mut(id).events_local);
        let mut chain = self.chain(id);
        if self.broken(Mutation::EventsStayLocal) {
            chain.truncate(1);
        }
        for id in chain {
            count(&mut self.group_mut(id).events);
            if !self.broken(Mutation::KillsAreNotTold) {
                self.file_modified(id, "memory.events");
            }
        }
    }

    /// Signals the OOM eventfds of `over` and all below it: empty siblings' too.
    pub(crate) fn oom_notify(&mut self, over: GroupId) {
        let mut groups = self.subtree(over);
        if self.broken(Mutation::KillsAreNotTold) {
            groups.clear();
        }
        if self.broken(Mutation::OomSparesDescendants) {
            groups.truncate(1);
        }
        for id in groups {
            let told: Vec<_> = self
                .group(id)
                .registrations
                .iter()
                .filter(|registration| registration.watched == Watched::Oom)
                .map(|registration| registration.eventfd)
                .collect();
            for eventfd in told {
                self.signal(eventfd);
            }
        }
    }

    /// A task that cannot be killed out of it waits: one signal an episode at most.
    pub(crate) fn oom_block(&mut self, task: usize, over: GroupId) {
        self.tasks[task].state = TaskState::OomBlocked(over);
        if !self.group(over).under_oom {
            self.group_mut(over).under_oom = true;
            self.oom_notify(over);
        }
    }

    /// `memcg_oom_recover`: waiters of the group and its ancestors try again.
    pub(crate) fn oom_recover(&mut self, id: GroupId) {
        for id in self.chain(id) {
            if self.group(id).under_oom {
                self.group_mut(id).under_oom = false;
                for task in &mut self.tasks {
                    if task.state == TaskState::OomBlocked(id) {
                        task.state = TaskState::Running;
                    }
                }
            }
        }
    }
}

//! Reclaim: one pass over a group and those below it (`try_to_free_mem_cgroup_pages`).

use crate::faults::PassVerdict;
use crate::group::GroupId;
use crate::host::State;
use crate::mutation::Mutation;

/// `SWAP_CLUSTER_MAX`: pages a pass.
pub(crate) const PASS: u64 = 32;

impl State {
    /// One pass: about [`PASS`] pages (`want` if that is more), from the subtree as far as counters are
    /// hierarchical, starting with another group each time (`mem_cgroup_iter`). The number freed.
    pub(crate) fn reclaim_pass(&mut self, root: GroupId, want: u64, may_swap: bool) -> u64 {
        let want = want.max(PASS);
        let mut groups: Vec<_> = self
            .subtree(root)
            .into_iter()
            .filter(|id| *id == root || self.chain(*id).contains(&root))
            .filter(|id| *id == root || !self.broken(Mutation::ChildrenAreNotReclaimed))
            .filter(|id| !self.group(*id).removed || !self.broken(Mutation::DyingAreNotReclaimed))
            .collect();
        if groups.is_empty() {
            return 0;
        }
        self.cursor = self.cursor.wrapping_add(1);
        let start = self.cursor % groups.len();
        groups.rotate_left(start);
        let mut freed = 0;
        // memory.low gives way when there is nothing else; memory.min never does (mem_cgroup_below_low).
        for low_gives_way in [false, true] {
            for id in &groups {
                if freed >= want {
                    return freed;
                }
                if *id != root && self.protected(*id, low_gives_way) {
                    continue;
                }
                freed += self.shrink(*id, want - freed, may_swap);
            }
            if freed > 0 {
                break;
            }
        }
        freed
    }

    fn protected(&mut self, id: GroupId, low_gives_way: bool) -> bool {
        let group = self.group(id);
        let usage = group.memory.usage;
        if usage > 0 && usage <= group.min {
            return !self.broken(Mutation::MinGivesWay);
        }
        if usage == 0 || usage > group.low || self.broken(Mutation::LowIsIgnored) {
            return false;
        }
        if self.broken(Mutation::LowNeverGivesWay) {
            return true;
        }
        if low_gives_way {
            self.group_mut(id).events_local.low += 1;
            for id in self.chain(id) {
                self.group_mut(id).events.low += 1;
            }
        }
        !low_gives_way
    }

    /// `shrink_lruvec` of one group: page cache that was read once first; anonymous memory in proportion
    /// to swappiness once that is short; 0 never scans it (`get_scan_count`).
    fn shrink(&mut self, id: GroupId, want: u64, may_swap: bool) -> u64 {
        let swappiness = match self.config.v1() {
            true if self.broken(Mutation::SwappinessZeroSwaps) => 60,
            true => self.group(id).swappiness,
            false => 60,
        };
        let room = if may_swap && swappiness > 0 { self.swap_room(id) } else { 0 };
        let group = self.group_mut(id);
        let share = if group.lru.inactive_file >= want {
            0
        } else {
            (want * swappiness).div_ceil(200).min(want)
        };
        let swapped = group.lru.swap_out(share.min(room));
        let mut dropped = group.lru.drop_clean(want - swapped);
        let more = (want - swapped - dropped).min(room - swapped);
        let swapped = swapped + group.lru.swap_out(more);
        let short = want - swapped - dropped;
        let mut waited = 0;
        if short > 0 {
            // The flushers are woken. v1 has no dirty throttling of its own, so reclaim waits for what is
            // being written, uninterruptibly (shrink_folio_list).
            group.lru.start_writeback(short);
            if self.config.v1() {
                let group = self.group_mut(id);
                waited = group.lru.end_writeback(short);
                dropped += group.lru.drop_clean(waited);
            }
        }
        let freed = swapped + dropped;
        let group = self.group_mut(id);
        group.counts.pgscan += want;
        group.counts.pgsteal += freed;
        self.waited_pages += waited;
        if freed > 0 {
            self.charge_swap(id, swapped);
            self.uncharge(id, swapped, true);
            self.uncharge(id, dropped, false);
            self.page_event(id, 0, freed);
            self.oom_recover(id);
            self.free_if_empty(id);
        }
        freed
    }

    /// Between two passes of a write that reclaims from `id`: the harness's hook, the group's tasks,
    /// a signal. True: a signal is pending.
    pub(crate) fn between_passes(&mut self, id: GroupId, pass: u64) -> bool {
        self.passes += 1;
        let verdict = match self.on_pass.take() {
            Some(mut hook) => {
                let verdict = hook(self, id, pass);
                self.on_pass.get_or_insert(hook);
                verdict
            }
            None => PassVerdict::GoOn,
        };
        let signal = match &mut self.signal_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if signal {
            self.signal_after = None;
        }
        if verdict == PassVerdict::Signal || signal || pass >= self.config.pass_limit {
            return true;
        }
        if pass > 0 {
            self.run_beside(id);
        }
        false
    }

    /// The tasks of the group run on other CPUs meanwhile.
    pub(crate) fn run_beside(&mut self, id: GroupId) {
        let pages = self.config.pages_per_pass;
        if pages == 0 || self.beside {
            return;
        }
        self.beside = true;
        let groups = self.subtree(id);
        for task in 0..self.tasks.len() {
            if groups.contains(&self.tasks[task].memory) {
                self.run_task(task, pages);
            }
        }
        self.beside = false;
    }
}

//! `memory.stat`: `memcg1_stat_format`, `memory_stat_format`.

use crate::group::{Counts, GroupId};
use crate::host::State;
use crate::lru::Lru;
use crate::mutation::Mutation;

#[derive(Default)]
struct Sum {
    lru: Lru,
    kernel: u64,
    counts: Counts,
}

impl State {
    fn sum(&self, groups: impl IntoIterator<Item = GroupId>) -> Sum {
        let mut sum = Sum::default();
        for id in groups {
            let group = self.group(id);
            let (to, from) = (&mut sum.lru, &group.lru);
            to.inactive_file += from.inactive_file;
            to.active_file += from.active_file;
            to.dirty += from.dirty;
            to.writeback += from.writeback;
            to.inactive_anon += from.inactive_anon;
            to.active_anon += from.active_anon;
            to.shmem += from.shmem;
            to.mlocked += from.mlocked;
            to.swapped_anon += from.swapped_anon;
            to.swapped_shmem += from.swapped_shmem;
            if self.broken(Mutation::DirtyIsNotShown) {
                to.inactive_file +=
                    std::mem::take(&mut to.dirty) + std::mem::take(&mut to.writeback);
            }
            if self.broken(Mutation::LockedIsEvictable) {
                to.inactive_anon += std::mem::take(&mut to.mlocked);
            }
            sum.kernel += group.kernel;
            let (to, from) = (&mut sum.counts, &group.counts);
            to.pgfault += from.pgfault;
            to.pgmajfault += from.pgmajfault;
            to.refault_file += from.refault_file;
            to.refault_anon += from.refault_anon;
            to.pgscan += from.pgscan;
            to.pgsteal += from.pgsteal;
        }
        sum
    }

    /// Own values, the hierarchical limits, then `total_*` of the subtree (the group's own with
    /// `use_hierarchy` 0).
    pub(crate) fn stat_v1(&self, id: GroupId) -> String {
        let mut content = String::new();
        self.lines_v1(&self.sum([id]), "", &mut content);
        let chain = self.chain(id);
        let page = self.config.page_size;
        let lowest = chain.iter().map(|id| self.group(*id).memory.limit).min().unwrap_or(0);
        content.push_str(&format!("hierarchical_memory_limit {}\n", lowest * page));
        if self.config.swapaccount {
            let lowest = chain.iter().map(|id| self.group(*id).memsw.limit).min().unwrap_or(0);
            content.push_str(&format!("hierarchical_memsw_limit {}\n", lowest * page));
        }
        let below = self.subtree(id).into_iter().filter(|below| self.chain(*below).contains(&id));
        self.lines_v1(&self.sum(below), "total_", &mut content);
        content
    }

    fn lines_v1(&self, sum: &Sum, prefix: &str, content: &mut String) {
        let page = self.config.page_size;
        let lru = &sum.lru;
        let mut line = |key: &str, value: u64| {
            content.push_str(&format!("{prefix}{key} {value}\n"));
        };
        line("cache", (lru.file() + lru.shmem) * page);
        line("rss", (lru.anon() + lru.mlocked) * page);
        line("rss_huge", 0);
        line("shmem", lru.shmem * page);
        line("mapped_file", 0);
        line("dirty", lru.dirty * page);
        line("writeback", lru.writeback * page);
        line("workingset_refault_anon", sum.counts.refault_anon);
        line("workingset_refault_file", sum.counts.refault_file);
        if self.config.swapaccount {
            line("swap", lru.swapped() * page);
        }
        line("pgfault", sum.counts.pgfault);
        line("pgmajfault", sum.counts.pgmajfault);
        let misplaced = if self.broken(Mutation::ShmemIsOnFileLists) { lru.shmem } else { 0 };
        line("inactive_anon", (lru.inactive_anon + lru.shmem - misplaced) * page);
        line("active_anon", lru.active_anon * page);
        line("inactive_file", (lru.inactive_file + lru.dirty + lru.writeback + misplaced) * page);
        line("active_file", lru.active_file * page);
        line("unevictable", lru.mlocked * page);
    }

    /// The subtree's.
    pub(crate) fn stat_v2(&self, id: GroupId) -> String {
        let sum = self.sum(self.subtree(id));
        let page = self.config.page_size;
        let lru = &sum.lru;
        let lines = [
            ("anon", (lru.anon() + lru.mlocked) * page),
            ("file", (lru.file() + lru.shmem) * page),
            ("kernel", sum.kernel * page),
            ("shmem", lru.shmem * page),
            ("file_mapped", 0),
            ("file_dirty", lru.dirty * page),
            ("file_writeback", lru.writeback * page),
            ("inactive_anon", (lru.inactive_anon + lru.shmem) * page),
            ("active_anon", lru.active_anon * page),
            ("inactive_file", (lru.inactive_file + lru.dirty + lru.writeback) * page),
            ("active_file", lru.active_file * page),
            ("unevictable", lru.mlocked * page),
            ("workingset_refault_anon", sum.counts.refault_anon),
            ("workingset_refault_file", sum.counts.refault_file),
            ("pgscan", sum.counts.pgscan),
            ("pgsteal", sum.counts.pgsteal),
            ("pgfault", sum.counts.pgfault),
            ("pgmajfault", sum.counts.pgmajfault),
        ];
        lines.iter().map(|(key, value)| format!("{key} {value}\n")).collect()
    }
}

//! `memory.stat`: what a cgroup's memory is made of, under one name for each thing on v1 and v2.

use crate::flat;
use crate::units::{Bytes, Limit};

/// What is charged to a cgroup and its descendants, and what reclaim has done. `None`: this version or
/// this kernel does not print it. Doc lines give the key as `v1 / v2`; `–` where a version has none.
///
/// Sizes are in bytes. Counts are events, or pages for refaults and scans, from the cgroup's making on.
/// Reading the file may flush statistics of the whole tree (5.15, 6.1): keep it off hot paths. Source:
/// `memcg1_stat_format()` and `memory_stat_format()`; Documentation/admin-guide/cgroup-v1/memory.rst and
/// cgroup-v2.rst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStat {
    /// `rss / anon`: anonymous memory, huge pages and swap cache included. Shared memory and tmpfs are
    /// not in it on either version, although they are on the anon LRUs.
    pub anon: Option<Bytes>,
    /// `cache / file`: page cache; `shmem` included.
    pub file: Option<Bytes>,
    /// `shmem / shmem` (not el7): tmpfs and shared memory; swappable, not droppable.
    pub shmem: Option<Bytes>,
    /// `mapped_file / file_mapped`: the part of `file` that is mapped.
    pub mapped_file: Option<Bytes>,
    /// `dirty / file_dirty` (not el7): waits to be written.
    pub dirty: Option<Bytes>,
    /// `writeback / file_writeback` (not el7): is being written.
    pub writeback: Option<Bytes>,
    /// `swap / –`: swapped out. v2 has `memory.swap.current` instead, which its reader fills in.
    pub swap: Option<Bytes>,
    /// `swapcached / swapcached`: in memory and in swap both.
    pub swapcached: Option<Bytes>,
    /// `inactive_anon / inactive_anon`: LRU of anon, shmem and swap cache.
    pub inactive_anon: Option<Bytes>,
    /// `active_anon / active_anon`.
    pub active_anon: Option<Bytes>,
    /// `inactive_file / inactive_file`: LRU of page cache without shmem.
    pub inactive_file: Option<Bytes>,
    /// `active_file / active_file`.
    pub active_file: Option<Bytes>,
    /// `unevictable / unevictable`: mlocked and the like; reclaim passes it by.
    pub unevictable: Option<Bytes>,
    /// `– / slab_reclaimable`: dentries, inodes.
    pub slab_reclaimable: Option<Bytes>,
    /// `– / slab_unreclaimable`.
    pub slab_unreclaimable: Option<Bytes>,
    /// `– / kernel` (5.18): all kernel memory but `sock`. v1: `memory.kmem.usage_in_bytes`, which its
    /// reader fills in where the file is there.
    pub kernel: Option<Bytes>,
    /// `– / kernel_stack`.
    pub kernel_stack: Option<Bytes>,
    /// `– / pagetables` (5.11).
    pub pagetables: Option<Bytes>,
    /// `– / percpu` (5.9).
    pub percpu: Option<Bytes>,
    /// `– / sock`: network buffers.
    pub sock: Option<Bytes>,
    /// `rss_huge / anon_thp`: the part of `anon` in huge pages.
    pub thp: Option<Bytes>,
    /// `workingset_refault_anon`, on recent v1 too: pages swapped in soon after they were taken.
    pub workingset_refault_anon: Option<u64>,
    /// `workingset_refault_file`: pages read again soon after they were taken. Kernels before 5.9
    /// tracked file pages only and say `workingset_refault`.
    pub workingset_refault_file: Option<u64>,
    /// `– / workingset_activate_anon`: refaults that went straight to the active list.
    pub workingset_activate_anon: Option<u64>,
    /// `– / workingset_activate_file`; `workingset_activate` before 5.9.
    pub workingset_activate_file: Option<u64>,
    /// `pgfault / pgfault`: page faults.
    pub pgfault: Option<u64>,
    /// `pgmajfault / pgmajfault`: page faults that had to wait for a disk.
    pub pgmajfault: Option<u64>,
    /// `– / pgscan`: pages looked at by reclaim; the sum of `pgscan_*` where there is no total.
    pub pgscan: Option<u64>,
    /// `– / pgsteal`: pages taken by reclaim; the sum of `pgsteal_*` where there is no total.
    pub pgsteal: Option<u64>,
    /// `hierarchical_memory_limit / –`: the lowest limit up to the root. Shows a stepped limit too.
    pub hierarchical_memory_limit: Option<Limit>,
    /// `hierarchical_memsw_limit / –`: the same with swap.
    pub hierarchical_memsw_limit: Option<Limit>,
}

impl MemoryStat {
    /// Parses a v1 file. `total_*` (with the descendants) is preferred, the plain key (the cgroup's
    /// own) is taken where that is missing. With `use_hierarchy` 0 both are the cgroup's own. Unknown
    /// keys and junk are skipped; of duplicates the last wins.
    pub fn parse_v1(content: &[u8]) -> MemoryStat {
        let mut stat = MemoryStat::default();
        for (key, value) in flat::entries(content) {
            stat.set_v1(key, value);
        }
        for (key, value) in flat::entries(content) {
            if let Some(key) = key.strip_prefix("total_") {
                stat.set_v1(key, value);
            }
        }
        stat
    }

    /// Parses a v2 file; it always includes the descendants. Unknown keys and junk are skipped; of
    /// duplicates the last wins.
    pub fn parse_v2(content: &[u8]) -> MemoryStat {
        let mut stat = MemoryStat::default();
        let (mut scan, mut steal) = (None, None);
        for (key, value) in flat::entries(content) {
            if key.starts_with("pgscan_") {
                add(&mut scan, value);
            } else if key.starts_with("pgsteal_") {
                add(&mut steal, value);
            } else {
                stat.set_v2(key, value);
            }
        }
        stat.pgscan = stat.pgscan.or(scan);
        stat.pgsteal = stat.pgsteal.or(steal);
        stat
    }

    /// What dropping page cache can free at most: both file LRUs. Less is free at once where it is
    /// dirty: see [`MemoryStat::clean_file`]. Shmem is not in it: that is on the anon LRUs.
    pub fn reclaimable_file(&self) -> Option<Bytes> {
        Some(self.inactive_file?.saturating_add(self.active_file?))
    }

    /// What swapping can free at most: both anon LRUs, shmem included.
    pub fn swappable(&self) -> Option<Bytes> {
        Some(self.inactive_anon?.saturating_add(self.active_anon?))
    }

    /// Page cache that must be written, or is being written, before it can be dropped. `None` on el7,
    /// which does not tell.
    pub fn dirty_or_writeback(&self) -> Option<Bytes> {
        Some(self.dirty?.saturating_add(self.writeback?))
    }

    /// Page cache that can be dropped at once: the file LRUs less what is dirty or under writeback.
    /// `None` where either is not known.
    pub fn clean_file(&self) -> Option<Bytes> {
        Some(self.reclaimable_file()?.saturating_sub(self.dirty_or_writeback()?))
    }

    /// All LRUs: what the group's usage is but for kernel memory and pages in flight.
    pub fn on_lru(&self) -> Option<Bytes> {
        let lru = self.swappable()?.saturating_add(self.reclaimable_file()?);
        Some(lru.saturating_add(self.unevictable.unwrap_or_default()))
    }

    /// Kernel memory without `sock`: `kernel`, or before 5.18 the sum of the parts that are printed.
    /// `None` where there is none of them (v1).
    pub fn kernel_or_parts(&self) -> Option<Bytes> {
        let parts = [
            self.slab_reclaimable,
            self.slab_unreclaimable,
            self.kernel_stack,
            self.pagetables,
            self.percpu,
        ];
        let sum = parts.into_iter().flatten().reduce(Bytes::saturating_add);
        self.kernel.or(sum)
    }

    fn set_v1(&mut self, key: &str, value: u64) {
        match key {
            "rss" => self.anon = Some(Bytes(value)),
            "cache" => self.file = Some(Bytes(value)),
            "mapped_file" => self.mapped_file = Some(Bytes(value)),
            "dirty" => self.dirty = Some(Bytes(value)),
            "writeback" => self.writeback = Some(Bytes(value)),
            "swap" => self.swap = Some(Bytes(value)),
            "rss_huge" => self.thp = Some(Bytes(value)),
            "hierarchical_memory_limit" => {
                self.hierarchical_memory_limit = Some(Limit::from_v1(value));
            }
            "hierarchical_memsw_limit" => {
                self.hierarchical_memsw_limit = Some(Limit::from_v1(value));
            }
            _ => self.set_common(key, value),
        }
    }

    fn set_v2(&mut self, key: &str, value: u64) {
        match key {
            "anon" => self.anon = Some(Bytes(value)),
            "file" => self.file = Some(Bytes(value)),
            "file_mapped" => self.mapped_file = Some(Bytes(value)),
            "file_dirty" => self.dirty = Some(Bytes(value)),
            "file_writeback" => self.writeback = Some(Bytes(value)),
            "anon_thp" => self.thp = Some(Bytes(value)),
            "slab_reclaimable" => self.slab_reclaimable = Some(Bytes(value)),
            "slab_unreclaimable" => self.slab_unreclaimable = Some(Bytes(value)),
            "kernel" => self.kernel = Some(Bytes(value)),
            "kernel_stack" => self.kernel_stack = Some(Bytes(value)),
            "pagetables" => self.pagetables = Some(Bytes(value)),
            "percpu" => self.percpu = Some(Bytes(value)),
            "sock" => self.sock = Some(Bytes(value)),
            "pgscan" => self.pgscan = Some(value),
            "pgsteal" => self.pgsteal = Some(value),
            _ => self.set_common(key, value),
        }
    }

    /// The keys that mean the same in both versions.
    fn set_common(&mut self, key: &str, value: u64) {
        match key {
            "shmem" => self.shmem = Some(Bytes(value)),
            "swapcached" => self.swapcached = Some(Bytes(value)),
            "inactive_anon" => self.inactive_anon = Some(Bytes(value)),
            "active_anon" => self.active_anon = Some(Bytes(value)),
            "inactive_file" => self.inactive_file = Some(Bytes(value)),
            "active_file" => self.active_file = Some(Bytes(value)),
            "unevictable" => self.unevictable = Some(Bytes(value)),
            "workingset_refault_anon" => self.workingset_refault_anon = Some(value),
            "workingset_refault_file" | "workingset_refault" => {
                self.workingset_refault_file = Some(value);
            }
            "workingset_activate_anon" => self.workingset_activate_anon = Some(value),
            "workingset_activate_file" | "workingset_activate" => {
                self.workingset_activate_file = Some(value);
            }
            "pgfault" => self.pgfault = Some(value),
            "pgmajfault" => self.pgmajfault = Some(value),
            _ => {}
        }
    }
}

fn add(sum: &mut Option<u64>, value: u64) {
    *sum = Some(sum.unwrap_or(0).saturating_add(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    fn sample(name: &str) -> MemoryStat {
        let content = samples::read(&format!("memory.stat/{name}"));
        if name.starts_with("v1") {
            MemoryStat::parse_v1(&content)
        } else {
            MemoryStat::parse_v2(&content)
        }
    }

    #[test]
    fn v1_totals_win_over_the_groups_own_wherever_they_stand() {
        let stat = MemoryStat::parse_v1(b"total_rss 30\nrss 10\ncache 5\nrss 20\ntotal_cache 7\n");
        assert_eq!((stat.anon, stat.file), (Some(Bytes(30)), Some(Bytes(7))));
        let own = MemoryStat::parse_v1(b"rss 10\ncache 5\n");
        assert_eq!((own.anon, own.file), (Some(Bytes(10)), Some(Bytes(5))));
    }

    #[test]
    fn every_recorded_kernel_tells_anon_file_and_its_lrus() {
        for name in samples::names("memory.stat") {
            let stat = sample(name.rsplit('/').next().unwrap());
            for (what, value) in [
                ("anon", stat.anon),
                ("file", stat.file),
                ("mapped_file", stat.mapped_file),
                ("reclaimable_file", stat.reclaimable_file()),
                ("swappable", stat.swappable()),
                ("unevictable", stat.unevictable),
                ("on_lru", stat.on_lru()),
            ] {
                assert!(value.is_some(), "{name}: {what}");
            }
            assert!(stat.pgfault.is_some() && stat.pgmajfault.is_some(), "{name}");
        }
    }

    #[test]
    fn el7_tells_nothing_of_dirty_or_shared_memory() {
        let stat = sample("v1-3.10-el7");
        assert_eq!((stat.dirty, stat.shmem, stat.dirty_or_writeback()), (None, None, None));
        assert_eq!(stat.clean_file(), None);
        assert_eq!(stat.hierarchical_memory_limit, Some(Limit::Bytes(Bytes::mib(512))));
        assert_eq!(stat.hierarchical_memsw_limit, Some(Limit::Max));
        assert_eq!(stat.anon, Some(Bytes(106_057_728)));
    }

    #[test]
    fn the_root_of_this_machine_counts_its_children_and_has_no_limit() {
        let stat = sample("v1-6.18-root");
        assert!(stat.anon > Some(Bytes(7_598_080)), "the root's own rss: {stat:?}");
        assert_eq!(stat.hierarchical_memory_limit, Some(Limit::Max));
        assert!(stat.workingset_refault_file.is_some());
        assert_eq!((stat.kernel, stat.pgscan, stat.kernel_or_parts()), (None, None, None));
    }

    #[test]
    fn v1_5_10_has_dirty_and_writeback_in_bytes() {
        let stat = sample("v1-5.10");
        assert_eq!(stat.dirty_or_writeback(), Some(Bytes(1_622_016 + 270_336)));
        let file = stat.reclaimable_file().unwrap();
        assert_eq!(stat.clean_file(), Some(Bytes(file.0 - 1_622_016 - 270_336)));
    }

    #[test]
    fn v2_before_5_9_calls_file_refaults_plain_refaults() {
        let stat = sample("v2-4.19");
        assert_eq!(stat.workingset_refault_file, Some(1320));
        assert_eq!(stat.workingset_refault_anon, None);
        assert_eq!(stat.workingset_activate_file, Some(330));
        assert_eq!(stat.kernel, None);
        // slab_reclaimable + slab_unreclaimable + kernel_stack
        assert_eq!(stat.kernel_or_parts(), Some(Bytes(2_027_520 + 811_008 + 368_640)));
    }

    #[test]
    fn v2_6_1_and_6_12_tell_kernel_memory_and_reclaim() {
        for name in ["v2-6.1", "v2-6.12"] {
            let stat = sample(name);
            assert_eq!(stat.kernel_or_parts(), stat.kernel, "{name}");
            assert!(stat.kernel.is_some() && stat.percpu.is_some(), "{name}");
            assert!(stat.pgscan >= stat.pgsteal && stat.pgsteal.is_some(), "{name}");
            assert!(stat.thp.is_some() && stat.swapcached.is_some(), "{name}");
            assert_eq!(stat.swap, None, "{name}");
        }
    }

    #[test]
    fn split_scan_counts_are_summed_only_where_there_is_no_total() {
        let split = MemoryStat::parse_v2(b"pgscan_kswapd 10\npgscan_direct 5\npgsteal_direct 3\n");
        assert_eq!((split.pgscan, split.pgsteal), (Some(15), Some(3)));
        let total = MemoryStat::parse_v2(b"pgscan 16\npgscan_kswapd 10\npgscan_direct 5\n");
        assert_eq!(total.pgscan, Some(16));
        let most = MemoryStat::parse_v2(b"pgscan_a 18446744073709551615\npgscan_b 1\n");
        assert_eq!(most.pgscan, Some(u64::MAX));
    }

    #[test]
    fn one_versions_keys_mean_nothing_in_the_other() {
        assert_eq!(MemoryStat::parse_v1(b"anon 1\nfile 1\npgscan 1\n"), MemoryStat::default());
        assert_eq!(MemoryStat::parse_v2(b"rss 1\ncache 1\ntotal_rss 1\n"), MemoryStat::default());
    }

    fn exercise(content: &[u8]) {
        for stat in [MemoryStat::parse_v1(content), MemoryStat::parse_v2(content)] {
            let _ = (stat.clean_file(), stat.on_lru(), stat.kernel_or_parts());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..400)) {
            exercise(&content);
        }

        #[test]
        fn mutated_samples_never_panic(
            content in prop::sample::select(samples::names("memory.stat"))
                .prop_flat_map(|name| samples::mutated(&name)),
        ) {
            exercise(&content);
        }

        #[test]
        fn helpers_never_overflow(a in any::<u64>(), b in any::<u64>(), c in any::<u64>()) {
            let content = format!(
                "inactive_file {a}\nactive_file {b}\nfile_dirty {c}\nfile_writeback {a}\n\
                 inactive_anon {b}\nactive_anon {c}\nunevictable {a}\nslab_reclaimable {b}\n\
                 kernel_stack {c}\n"
            );
            exercise(content.as_bytes());
        }
    }
}

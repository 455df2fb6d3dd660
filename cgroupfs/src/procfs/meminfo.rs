//! `/proc/meminfo`: the node's memory.

use super::slurp;
use crate::error::Result;
use crate::flat;
use crate::units::{Bytes, KIB};
use std::path::Path;

/// The node's memory, in bytes (the file prints KiB and calls them kB). `None`: this kernel prints no
/// such line. Source: `meminfo_proc_show()`, Documentation/filesystems/proc.rst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meminfo {
    /// `MemTotal`: usable memory; what the kernel holds back for itself is already off.
    pub total: Option<Bytes>,
    /// `MemFree`: in no use at all.
    pub free: Option<Bytes>,
    /// `MemAvailable` (3.14, and el7): the kernel's estimate of what can be had without swapping.
    pub available: Option<Bytes>,
    /// `Buffers`: page cache of block devices.
    pub buffers: Option<Bytes>,
    /// `Cached`: page cache without `buffers` and `swap_cached`; tmpfs and shared memory included.
    pub cached: Option<Bytes>,
    /// `SwapCached`: in memory and in swap both.
    pub swap_cached: Option<Bytes>,
    /// `SwapTotal`.
    pub swap_total: Option<Bytes>,
    /// `SwapFree`.
    pub swap_free: Option<Bytes>,
    /// `Dirty`: waits to be written to disk.
    pub dirty: Option<Bytes>,
    /// `Writeback`: is being written to disk.
    pub writeback: Option<Bytes>,
    /// `AnonPages`: anonymous memory mapped by processes.
    pub anon: Option<Bytes>,
    /// `Mapped`: page cache mapped by processes.
    pub mapped: Option<Bytes>,
    /// `Shmem`: tmpfs and shared memory; part of `cached`, and on the anon LRUs.
    pub shmem: Option<Bytes>,
    /// `Active(anon)`.
    pub active_anon: Option<Bytes>,
    /// `Inactive(anon)`.
    pub inactive_anon: Option<Bytes>,
    /// `Active(file)`.
    pub active_file: Option<Bytes>,
    /// `Inactive(file)`.
    pub inactive_file: Option<Bytes>,
    /// `Unevictable`.
    pub unevictable: Option<Bytes>,
    /// `Mlocked`: part of `unevictable`.
    pub mlocked: Option<Bytes>,
    /// `SReclaimable`: slab that shrinkers can free.
    pub slab_reclaimable: Option<Bytes>,
    /// `SUnreclaim`: slab that nothing can free.
    pub slab_unreclaimable: Option<Bytes>,
    /// `KernelStack`.
    pub kernel_stack: Option<Bytes>,
    /// `PageTables`.
    pub page_tables: Option<Bytes>,
    /// `AnonHugePages`: the part of `anon` in huge pages.
    pub anon_huge: Option<Bytes>,
}

impl Meminfo {
    /// Reads `/proc/meminfo`.
    ///
    /// # Errors
    /// `Absent` without procfs; `Refused` with the errno otherwise.
    pub fn read() -> Result<Meminfo> {
        slurp(Path::new("/proc/meminfo"), "procfs is not mounted").map(|c| Meminfo::parse(&c))
    }

    /// Takes the lines it knows; of duplicates the last. A number above 2⁶⁴ bytes counts as missing.
    pub fn parse(content: &[u8]) -> Meminfo {
        let mut info = Meminfo::default();
        for (key, kib) in flat::entries(content) {
            if let (Some(field), Some(bytes)) = (info.field(key), kib.checked_mul(KIB)) {
                *field = Some(Bytes(bytes));
            }
        }
        info
    }

    /// Swap in use: `swap_total − swap_free`.
    pub fn swap_used(&self) -> Option<Bytes> {
        Some(self.swap_total?.saturating_sub(self.swap_free?))
    }

    fn field(&mut self, key: &str) -> Option<&mut Option<Bytes>> {
        Some(match key {
            "MemTotal" => &mut self.total,
            "MemFree" => &mut self.free,
            "MemAvailable" => &mut self.available,
            "Buffers" => &mut self.buffers,
            "Cached" => &mut self.cached,
            "SwapCached" => &mut self.swap_cached,
            "SwapTotal" => &mut self.swap_total,
            "SwapFree" => &mut self.swap_free,
            "Dirty" => &mut self.dirty,
            "Writeback" => &mut self.writeback,
            "AnonPages" => &mut self.anon,
            "Mapped" => &mut self.mapped,
            "Shmem" => &mut self.shmem,
            "Active(anon)" => &mut self.active_anon,
            "Inactive(anon)" => &mut self.inactive_anon,
            "Active(file)" => &mut self.active_file,
            "Inactive(file)" => &mut self.inactive_file,
            "Unevictable" => &mut self.unevictable,
            "Mlocked" => &mut self.mlocked,
            "SReclaimable" => &mut self.slab_reclaimable,
            "SUnreclaim" => &mut self.slab_unreclaimable,
            "KernelStack" => &mut self.kernel_stack,
            "PageTables" => &mut self.page_tables,
            "AnonHugePages" => &mut self.anon_huge,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    #[test]
    fn kilobytes_become_bytes() {
        let info = Meminfo::parse(&samples::read("proc/host-6.18/meminfo"));
        assert_eq!(info.total, Some(Bytes::kib(24_684_096)));
        assert!(info.available > info.free);
        assert_eq!(info.swap_total, Some(Bytes(0)));
        assert_eq!(info.swap_used(), Some(Bytes(0)));
        assert!(info.active_file.is_some() && info.mlocked.is_some());
    }

    #[test]
    fn a_number_that_overflows_counts_as_missing() {
        let info = Meminfo::parse(b"MemTotal: 18446744073709551615 kB\nMemFree: 2 kB\n");
        assert_eq!((info.total, info.free), (None, Some(Bytes(2048))));
        assert_eq!(info.swap_used(), None);
    }

    proptest! {
        #[test]
        fn a_mutated_sample_never_panics(
            content in samples::mutated("proc/host-6.18/meminfo"),
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            Meminfo::parse(&content);
            Meminfo::parse(&bytes);
        }
    }
}

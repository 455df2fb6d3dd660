//! `/proc/zoneinfo`: free memory against the watermarks that wake kswapd and start direct reclaim.

use super::slurp;
use crate::error::Result;
use crate::flat::{lines, number, words};
use crate::units::{Bytes, page_size};
use std::path::Path;

/// One memory zone of one NUMA node. Sizes are in bytes (the file prints pages).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// The NUMA node.
    pub node: u32,
    /// `DMA`, `DMA32`, `Normal`, `Movable`, ...
    pub name: String,
    /// Free.
    pub free: Bytes,
    /// Under this, allocations reclaim in their own context.
    pub min: Bytes,
    /// Under this, kswapd is woken.
    pub low: Bytes,
    /// kswapd sleeps again above this.
    pub high: Bytes,
    /// Handed to the page allocator; zero for a zone that is empty.
    pub managed: Bytes,
}

/// The zones of the node. Source: `zoneinfo_show_print()` in mm/vmstat.c; watermarks as in
/// Documentation/admin-guide/sysctl/vm.rst (`min_free_kbytes`, `watermark_scale_factor`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zoneinfo {
    /// In file order, the ones that print all five numbers.
    pub zones: Vec<Zone>,
}

impl Zoneinfo {
    /// Reads `/proc/zoneinfo`.
    ///
    /// # Errors
    /// `Absent` without procfs; `Refused` with the errno otherwise.
    pub fn read() -> Result<Zoneinfo> {
        slurp(Path::new("/proc/zoneinfo"), "procfs is not mounted").map(|c| Zoneinfo::parse(&c))
    }

    /// Takes each `Node N, zone NAME` section that has `pages free`, `min`, `low`, `high` and
    /// `managed`, each at its first line in the section; drops the others.
    pub fn parse(content: &[u8]) -> Zoneinfo {
        let mut zones = Vec::new();
        let mut section: Option<Section<'_>> = None;
        for line in lines(content) {
            if let Some(next) = Section::open(line) {
                zones.extend(section.take().and_then(Section::close));
                section = Some(next);
            } else if let Some(section) = &mut section {
                section.line(line);
            }
        }
        zones.extend(section.and_then(Section::close));
        Zoneinfo { zones }
    }

    /// Free memory of the zones that hold any.
    pub fn free(&self) -> Bytes {
        self.sum(|zone| zone.free)
    }

    /// Sum of the `min` watermarks. Empty zones are left out of all four sums: recent kernels print 32
    /// pages there, which nothing ever tests.
    pub fn min_watermarks(&self) -> Bytes {
        self.sum(|zone| zone.min)
    }

    /// Sum of the `low` watermarks: with [`Zoneinfo::free`] under it, kswapd is at work.
    pub fn low_watermarks(&self) -> Bytes {
        self.sum(|zone| zone.low)
    }

    /// Sum of the `high` watermarks: where kswapd stops.
    pub fn high_watermarks(&self) -> Bytes {
        self.sum(|zone| zone.high)
    }

    fn sum(&self, of: impl Fn(&Zone) -> Bytes) -> Bytes {
        let managed = self.zones.iter().filter(|zone| zone.managed.0 > 0);
        managed.fold(Bytes(0), |sum, zone| sum.saturating_add(of(zone)))
    }
}

/// A zone's lines so far, in pages.
struct Section<'a> {
    node: u32,
    name: &'a str,
    free: Option<u64>,
    min: Option<u64>,
    low: Option<u64>,
    high: Option<u64>,
    managed: Option<u64>,
}

impl<'a> Section<'a> {
    /// `Node 0, zone   Normal`
    fn open(line: &'a [u8]) -> Option<Section<'a>> {
        let mut words = words(line);
        let (b"Node", node, b"zone", name, None) =
            (words.next()?, words.next()?, words.next()?, words.next()?, words.next())
        else {
            return None;
        };
        let node = u32::try_from(number(node.strip_suffix(b",")?)?).ok()?;
        let name = std::str::from_utf8(name).ok()?;
        Some(Section { node, name, free: None, min: None, low: None, high: None, managed: None })
    }

    fn line(&mut self, line: &[u8]) {
        let mut words = words(line);
        let mut first = words.next();
        if first == Some(b"pages") {
            // Only `free` shares its line with the heading.
            first = words.next().filter(|word| *word == b"free");
        }
        // The per-CPU lines below have a colon (`high: 6605`), and so are other words.
        let field = match first {
            Some(b"free") => &mut self.free,
            Some(b"min") => &mut self.min,
            Some(b"low") => &mut self.low,
            Some(b"high") => &mut self.high,
            Some(b"managed") => &mut self.managed,
            _ => return,
        };
        if let (None, Some(pages), None) = (&field, words.next().and_then(number), words.next()) {
            *field = Some(pages);
        }
    }

    fn close(self) -> Option<Zone> {
        let bytes = |pages: Option<u64>| pages?.checked_mul(page_size()).map(Bytes);
        Some(Zone {
            node: self.node,
            name: self.name.to_string(),
            free: bytes(self.free)?,
            min: bytes(self.min)?,
            low: bytes(self.low)?,
            high: bytes(self.high)?,
            managed: bytes(self.managed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    const EL7: &[u8] = b"Node 0, zone      DMA\n  pages free     3977\n        min      63\n        \
        low      78\n        high     94\n        scanned  0\n        spanned  4095\n        \
        present  3998\n        managed  3977\n    nr_free_pages 3977\n        protection: (0, 2827)\n  \
        pagesets\n    cpu: 0\n              count: 0\n              high:  0\n              batch: 1\n  \
        all_unreclaimable: 1\n  start_pfn:         1\nNode 1, zone   Normal\n  pages free     100\n        \
        min      10\n        low      12\n        high     15\n        managed  900\n";

    #[test]
    fn pages_become_bytes_and_per_cpu_marks_are_not_watermarks() {
        let info = Zoneinfo::parse(&samples::read("proc/host-6.18/zoneinfo"));
        let names: Vec<_> = info.zones.iter().map(|zone| zone.name.as_str()).collect();
        assert_eq!(names, ["DMA", "DMA32", "Normal", "Movable", "Device"]);
        let normal = &info.zones[2];
        assert_eq!(normal.low, Bytes(9663 * page_size()));
        assert_eq!(normal.high, Bytes(11595 * page_size()));
        assert_eq!(normal.managed, Bytes(655_360 * page_size()));
    }

    #[test]
    fn an_empty_zone_counts_into_no_sum() {
        let info = Zoneinfo::parse(&samples::read("proc/host-6.18/zoneinfo"));
        // Movable prints low 32 and manages nothing.
        assert_eq!(info.zones[3].low, Bytes(32 * page_size()));
        assert_eq!(info.low_watermarks(), Bytes((56 + 11397 + 9663) * page_size()));
    }

    #[test]
    fn an_el7_file_with_two_nodes_reads() {
        let info = Zoneinfo::parse(EL7);
        assert_eq!(info.zones.iter().map(|zone| zone.node).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(info.min_watermarks(), Bytes(73 * page_size()));
        assert_eq!(info.high_watermarks(), Bytes(109 * page_size()));
        assert_eq!(info.free(), Bytes(4077 * page_size()));
    }

    #[test]
    fn a_zone_cut_short_is_dropped_not_guessed() {
        let cut = EL7.len() - "        managed  900\n".len();
        assert_eq!(Zoneinfo::parse(&EL7[..cut]).zones.len(), 1);
    }

    proptest! {
        #[test]
        fn a_mutated_sample_never_panics_and_zones_are_bounded_by_lines(
            content in samples::mutated("proc/host-6.18/zoneinfo"),
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let info = Zoneinfo::parse(&content);
            prop_assert!(info.zones.len() * 6 <= lines(&content).count());
            let _ = (info.low_watermarks(), info.high_watermarks());
            Zoneinfo::parse(&bytes);
        }
    }
}

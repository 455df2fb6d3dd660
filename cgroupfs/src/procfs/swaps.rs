//! `/proc/swaps`: the swap devices.

use super::slurp;
use crate::error::Result;
use crate::flat::{lines, number, words};
use crate::octal;
use crate::units::{Bytes, KIB};
use std::path::{Path, PathBuf};

/// One swap device or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// The device or file. The kernel appends ` (deleted)` to a file that was removed.
    pub path: PathBuf,
    /// Whether it is a block device (`partition`), not a file.
    pub device: bool,
    /// Its size.
    pub size: Bytes,
    /// What is in use.
    pub used: Bytes,
    /// Higher is used first; negative where the kernel chose.
    pub priority: i32,
}

/// The swap devices of the node. Source: `swap_show()` in mm/swapfile.c.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swaps {
    /// In file order.
    pub devices: Vec<Swap>,
}

impl Swap {
    /// Whether it is a zram device: swap that costs memory in turn.
    pub fn is_zram(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix("zram").is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    }
}

impl Swaps {
    /// Reads `/proc/swaps`.
    ///
    /// # Errors
    /// `Absent` where the kernel has no swap (`CONFIG_SWAP`); `Refused` with the errno otherwise.
    pub fn read() -> Result<Swaps> {
        slurp(Path::new("/proc/swaps"), "the kernel was built without swap")
            .map(|content| Swaps::parse(&content))
    }

    /// Takes the lines that are swap devices; the heading is not.
    pub fn parse(content: &[u8]) -> Swaps {
        Swaps { devices: lines(content).filter_map(device).collect() }
    }

    /// Size of all devices together.
    pub fn size(&self) -> Bytes {
        self.devices.iter().fold(Bytes(0), |sum, swap| sum.saturating_add(swap.size))
    }

    /// What is free on all devices together.
    pub fn free(&self) -> Bytes {
        self.devices
            .iter()
            .fold(Bytes(0), |sum, swap| sum.saturating_add(swap.size.saturating_sub(swap.used)))
    }

    /// Whether any device is zram.
    pub fn any_zram(&self) -> bool {
        self.devices.iter().any(Swap::is_zram)
    }
}

/// `/dev/zram0    partition    524284    1024    -2`
fn device(line: &[u8]) -> Option<Swap> {
    let mut words = words(line);
    let path = octal::path(words.next()?)?;
    let device = words.next()? == b"partition";
    let mut kib = || number(words.next()?)?.checked_mul(KIB).map(Bytes);
    let (size, used) = (kib()?, kib()?);
    let priority = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    words.next().is_none().then_some(Swap { path, device, size, used, priority })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    #[test]
    fn a_host_without_swap_has_a_heading_only() {
        assert_eq!(Swaps::parse(&samples::read("proc/host-6.18/swaps")), Swaps::default());
    }

    #[test]
    fn devices_files_and_zram_are_told_apart() {
        let swaps = Swaps::parse(&samples::read("proc/swaps-three"));
        assert_eq!(swaps.devices.len(), 3);
        let [disk, file, zram] = &swaps.devices[..] else { panic!("{swaps:?}") };
        assert_eq!((disk.device, disk.priority), (true, -2));
        assert_eq!((disk.size, disk.used), (Bytes::kib(2_097_148), Bytes::kib(1024)));
        assert_eq!((file.device, file.path.as_path()), (false, Path::new("/var/swap file")));
        assert_eq!((zram.is_zram(), zram.priority), (true, 100));
        assert!(swaps.any_zram() && !disk.is_zram() && !file.is_zram());
        assert_eq!(swaps.free(), swaps.size().saturating_sub(Bytes::kib(1024 + 4096)));
    }

    #[test]
    fn a_name_like_zram_is_not_zram() {
        for (path, zram) in [("/dev/zram0", true), ("/dev/zram", false), ("/zram0/file", false)] {
            let swaps = Swaps::parse(format!("{path} partition 8 0 -2\n").as_bytes());
            assert_eq!(swaps.any_zram(), zram, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_mutated_sample_never_panics(
            content in samples::mutated("proc/swaps-three"),
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let swaps = Swaps::parse(&content);
            prop_assert!(swaps.devices.len() <= lines(&content).count());
            prop_assert!(swaps.free() <= swaps.size());
            Swaps::parse(&bytes);
        }
    }
}

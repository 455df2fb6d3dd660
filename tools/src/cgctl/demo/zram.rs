//! Swap for the time of the demo: a zram device, undone on every way out that code can see.

use crate::cgctl::error::{FAILED, Failure};
use crate::sys;
use cgroupfs::Bytes;
use cgroupfs::units::page_size;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Before any swap that is there already: a disk's would make another demo.
const PRIORITY: u16 = 1000;

/// A zram device that the kernel swaps to. Dropping it undoes what was done.
pub(super) struct Zram {
    /// `zram0`.
    name: String,
    swapping: bool,
    loaded_module: bool,
}

impl Zram {
    /// Sets it up. Nothing is left behind if that fails.
    pub(super) fn set_up(size: Bytes) -> Result<Zram, Failure> {
        let failed = |what: String| Failure::new(FAILED, format!("--zram {size}: {what}"));
        let mut devices = devices();
        let mut loaded_module = false;
        if devices.is_empty() {
            loaded_module = modprobe(&["zram"]);
            devices = self::devices();
        }
        let Some(name) = devices.first().cloned() else {
            return Err(failed(
                "this kernel has no zram device, and 'modprobe zram' gives none; a swap file does as \
                 well, see swapon(8)"
                    .into(),
            ));
        };
        if let Some(used) = devices.iter().find(|name| in_use(name)) {
            return Err(failed(format!(
                "/dev/{used} is in use already, and is left alone; run the demo without --zram"
            )));
        }
        let mut zram = Zram { name, swapping: false, loaded_module };
        let device = zram.device();
        let refused = |what: &str, error: io::Error| failed(format!("cannot {what}: {error}"));
        fs::write(zram.sys("disksize"), size.0.to_string()).map_err(|error| {
            // EINVAL is also a compressor that is not there; the kernel log names it.
            refused(&format!("set the size of {} (see dmesg)", device.display()), error)
        })?;
        write_header(&device, size)
            .map_err(|error| refused(&format!("write to {}", device.display()), error))?;
        sys::swapon(&zram.device_text(), PRIORITY)
            .map_err(|error| refused(&format!("swap on {}", device.display()), error))?;
        zram.swapping = true;
        Ok(zram)
    }

    /// `/dev/zram0`.
    pub(super) fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    fn device_text(&self) -> CString {
        // A name from /sys/block has no NUL in it.
        CString::new(format!("/dev/{}", self.name)).unwrap_or_default()
    }

    fn sys(&self, file: &str) -> PathBuf {
        Path::new("/sys/block").join(&self.name).join(file)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        if self.swapping
            && let Err(error) = sys::swapoff(&self.device_text())
        {
            log::error!(
                "cannot end swapping on /dev/{0}: {error}; by hand: swapoff /dev/{0} && echo 1 > \
                 /sys/block/{0}/reset",
                self.name
            );
            return;
        }
        // Whoever probes new block devices (udev) may have it open for a moment.
        let mut result = Ok(());
        for _ in 0..50 {
            result = fs::write(self.sys("reset"), "1");
            if result.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        if let Err(error) = result {
            log::error!(
                "cannot reset /dev/{0}: {error}; by hand: echo 1 > /sys/block/{0}/reset",
                self.name
            );
        } else if self.loaded_module {
            modprobe(&["-r", "zram"]);
        }
    }
}

/// The zram devices there are, in order.
fn devices() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("zram"))
        .collect();
    names.sort();
    names
}

/// Whether a device has been given a size: from then on it holds somebody's data.
fn in_use(name: &str) -> bool {
    let size = fs::read_to_string(Path::new("/sys/block").join(name).join("disksize"));
    size.map_or(true, |size| size.trim() != "0")
}

fn modprobe(arguments: &[&str]) -> bool {
    Command::new("modprobe")
        .args(arguments)
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What mkswap(8) writes (`union swap_header` in include/linux/swap.h): version 1, the last page, and a
/// signature at the end of the first page.
fn write_header(device: &Path, size: Bytes) -> io::Result<()> {
    let mut file = File::options().write(true).open(device)?;
    let last_page = u32::try_from(size.0 / page_size()).unwrap_or(u32::MAX).saturating_sub(1);
    let mut header = vec![0; page_size() as usize];
    header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    let end = header.len();
    header[end - 10..].copy_from_slice(b"SWAPSPACE2");
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_one_that_mkswap_writes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_header(file.path(), Bytes::mib(1)).unwrap();
        let header = fs::read(file.path()).unwrap();
        assert_eq!(header.len() as u64, page_size());
        assert_eq!(header[1024..1028], 1u32.to_ne_bytes());
        assert_eq!(header[1028..1032], ((1 << 20) / page_size() as u32 - 1).to_ne_bytes());
        assert!(header.ends_with(b"SWAPSPACE2"));
    }
}

//! The file that the stream reads: made once, without a name, so that nothing stays behind.

use super::Signals;
use crate::cgctl::error::{FAILED, Failure};
use crate::memload::scratch_file;
use cgroupfs::Bytes;
use nix::sys::signal::Signal;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Why there is none.
pub(super) enum NoFile {
    /// The load is skipped.
    Skip(String),
    /// The demo was told to end meanwhile.
    Told(Signal),
}

/// A file of `size` bytes in `dir`, on its disk.
pub(super) fn make(dir: &Path, size: Bytes, signals: &Signals) -> Result<File, NoFile> {
    let skip = |why: String| NoFile::Skip(format!("--dir {}: {why}", dir.display()));
    let mut file =
        scratch_file(dir).map_err(|error| skip(format!("cannot create a file there: {error}")))?;
    // ramfs, which an initramfs may be, has no constant in nix.
    const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
    if let Ok(fs) = fstatfs(&file)
        && (fs.filesystem_type() == TMPFS_MAGIC || fs.filesystem_type() == RAMFS_MAGIC)
    {
        return Err(skip("it is in memory, where a file's pages are no cache of a disk".into()));
    }
    if let Ok(fs) = fstatvfs(&file) {
        let free = Bytes(fs.blocks_available().saturating_mul(fs.fragment_size()));
        if free < Bytes(size.0 + size.0 / 4) {
            return Err(skip(format!("{free} are free there, and the file takes {size}")));
        }
    }
    let failed = |error: std::io::Error| skip(format!("cannot write a file of {size}: {error}"));
    let mut block = noise();
    let mut left = size.0;
    while left > 0 {
        if let Some(signal) = signals.told() {
            return Err(NoFile::Told(signal));
        }
        let part = left.min(block.len() as u64);
        block[..8].copy_from_slice(&left.to_ne_bytes());
        file.write_all(&block[..part as usize]).map_err(failed)?;
        left -= part;
    }
    file.sync_data().map_err(failed)?;
    Ok(file)
}

/// How the load, a child of ours, gets at it: it has no other name.
pub(super) fn path(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// Bytes that do not compress, should the file system try (xorshift64).
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; 1 << 20];
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_ne_bytes());
    }
    block
}

/// A file in memory for the load's JSON.
pub(super) fn memory() -> Result<File, Failure> {
    nix::sys::memfd::memfd_create(c"memload", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .map_err(|errno| {
            Failure::new(FAILED, format!("cannot make a file in memory: {}", errno.desc()))
        })
}

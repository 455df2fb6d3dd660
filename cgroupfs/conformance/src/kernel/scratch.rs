//! Files whose page cache is charged to who reads or writes them.

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// A sparse file to read and a file to write, on a disk: `$CGSHIM_DATA`, or `/var/tmp`. Removed when
/// dropped.
pub struct Scratch {
    pub(super) sparse: PathBuf,
    pub(super) dirty: PathBuf,
}

/// More than any claim reads.
const SIZE: u64 = 1 << 30;

impl Scratch {
    /// Makes both.
    pub fn new() -> io::Result<Scratch> {
        let dir = std::env::var_os("CGSHIM_DATA").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let name = |what: &str| dir.join(format!("cgshim-{what}-{}", std::process::id()));
        let scratch = Scratch { sparse: name("sparse"), dirty: name("dirty") };
        File::create(&scratch.sparse)?.set_len(SIZE)?;
        File::create(&scratch.dirty)?;
        Ok(scratch)
    }

    /// None of them cached, whoever is charged with it.
    pub(super) fn reset(&self) {
        if let Ok(file) = File::open(&self.sparse) {
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        let _ = File::create(&self.dirty);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.sparse);
        let _ = std::fs::remove_file(&self.dirty);
    }
}

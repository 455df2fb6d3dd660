//! Files for the loads that need one. None ever has a name, so that nothing stays behind, however
//! the process ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::args::Plan;
use super::{Failure, Fill, sys};

/// A new file in `dir` without a name: O_TMPFILE, or where the file system lacks it, created and
/// unlinked at once.
pub(crate) fn create(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        Err(error) if lacks_tmpfile(&error) => {}
        result => return result,
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!(".memload-{}-{number}", std::process::id()));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// EOPNOTSUPP from file systems without O_TMPFILE (NFS, 9p, FUSE, overlayfs before 6.3); EISDIR from
/// kernels that do not know the flag (before 3.11).
fn lacks_tmpfile(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR))
}

/// The same, with the failure as a person wants to read it.
pub(crate) fn create_for(plan: &Plan) -> Result<File, Failure> {
    create(&plan.dir).map_err(|cause| dir_failure(plan, "cannot create a file there", &cause))
}

/// A file of `plan.size` bytes, written to disk, with none of it in the page cache any more.
pub(crate) fn written(plan: &Plan, fill: &mut Fill) -> Result<File, Failure> {
    let mut file = create_for(plan)?;
    let write_failure = |cause| {
        let what = format!("cannot write a file of {} there", cgroupfs::units::Bytes(plan.size));
        dir_failure(plan, &what, &cause)
    };
    let mut block = vec![0; 1 << 20];
    fill.fill(&mut block);
    let mut left = plan.size;
    while left > 0 && !sys::stop_requested() {
        fill.stamp(&mut block);
        let part = usize::try_from(left).unwrap_or(block.len()).min(block.len());
        file.write_all(&block[..part]).map_err(write_failure)?;
        left -= part as u64;
    }
    // Only clean pages can be dropped from the cache.
    file.sync_data().map_err(write_failure)?;
    posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|errno| write_failure(errno.into()))?;
    Ok(file)
}

/// A file that is there already, of `size` bytes at least, with as little of it in the page cache as the
/// kernel lets go.
pub(crate) fn existing(path: &Path, size: u64) -> Result<File, Failure> {
    let failure = |cause: io::Error| {
        Failure::Failed(format!("--file {}: cannot read it: {cause}", path.display()))
    };
    let file = File::open(path).map_err(failure)?;
    let length = file.metadata().map_err(failure)?.len();
    if length < size {
        return Err(Failure::Usage(format!(
            "--file {}: it has {length} bytes, less than --size {size}",
            path.display()
        )));
    }
    posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|errno| failure(errno.into()))?;
    Ok(file)
}

fn dir_failure(plan: &Plan, what: &str, cause: &io::Error) -> Failure {
    Failure::Failed(format!("--dir {}: {what}: {cause}", plan.dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_read_as_far_as_it_goes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        assert!(existing(file.path(), 8192).is_ok());
        let short = existing(file.path(), 8193).unwrap_err().to_string();
        assert!(short.contains("8192 bytes, less than --size 8193"), "{short}");
        let missing = existing(&file.path().join("none"), 1).unwrap_err().to_string();
        assert!(missing.contains("cannot read it"), "{missing}");
    }

    #[test]
    fn a_scratch_file_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = create(dir.path()).unwrap();
        file.write_all(b"x").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = create(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}

//! The run directory, and who may write in it.

use super::JournalError;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A run directory that is ours alone: the daemon's and its guardian's, or that of whoever restores.
///
/// The lock is of the open file (`F_OFD_SETLK`): a forked guardian has a share in it, so it is free
/// only once both are gone, and then whatever happened to them.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    lock: File,
}

impl RunDir {
    /// Makes the directory if need be, and locks it. A guardian that is about to end is waited for,
    /// `patience` at most.
    ///
    /// [`JournalError::Locked`] names the process that has it.
    pub fn lock(path: &Path, patience: Duration) -> Result<RunDir, JournalError> {
        let failed = |what| move |error| JournalError::Io { what, path: path.to_path_buf(), error };
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("make"))?;
        let name = path.join("lock");
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&name)
            .map_err(failed("open the lock of"))?;
        let start = Instant::now();
        loop {
            match try_lock(&lock) {
                Ok(()) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let pid = holder(&lock);
                    if start.elapsed() >= patience || pid.is_some_and(is_alive) {
                        return Err(JournalError::Locked { path: path.to_path_buf(), pid });
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(errno) => return Err(failed("lock")(io::Error::from(errno))),
            }
        }
        // Only for the message of those who come after: the lock itself is what counts.
        let pid = format!("{}\n", std::process::id());
        let _ = lock.set_len(0).and_then(|()| lock.write_all_at(pid.as_bytes(), 0));
        Ok(RunDir { path: path.to_path_buf(), lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is in memory. On a disk, a store to the journal may wait for its writeback, and a lowered
    /// limit with it.
    pub fn is_in_memory(&self) -> bool {
        fstatfs(&self.lock).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC)
    }

    /// Whether somebody has the directory locked now.
    pub fn is_locked(path: &Path) -> bool {
        let Ok(lock) = File::options().read(true).write(true).open(path.join("lock")) else {
            return false;
        };
        try_lock(&lock).is_err()
    }
}

impl AsFd for RunDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

fn try_lock(file: &File) -> nix::Result<()> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(|_| ())
}

fn holder(lock: &File) -> Option<i32> {
    let mut buf = [0; 16];
    let n = lock.read_at(&mut buf, 0).ok()?;
    i32::try_from(cgroupfs::files::parse_u64(&buf[..n])?).ok()
}

fn is_alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

//! One daemon a run directory.

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The lock's name in the run directory.
const LOCK: &str = "cgshimd.lock";

/// Held as long as this lives. A POSIX lock: a process that is forked does not have it, so that one that
/// outlives us does not keep a successor out.
pub(super) struct Lock(#[allow(dead_code)] File);

/// Why it cannot be had. Complete for a person.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error(
        "another cgshimd (pid {pid}) runs on {}: stop it first, or give this one a --run-dir of its own",
        path.display()
    )]
    Held {
        /// The run directory.
        path: PathBuf,
        /// Whose it is.
        pid: i32,
    },
    /// The system refused.
    #[error("cannot lock {}: {why}{}", path.display(), super::way_out(why))]
    Refused {
        /// The lock file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
}

impl Lock {
    pub(super) fn take(run_dir: &Path) -> Result<Lock, LockError> {
        let path = run_dir.join(LOCK);
        let refused = |why| LockError::Refused { path: path.clone(), why };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(refused)?;
        let wanted = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        if fcntl(&file, FcntlArg::F_SETLK(&wanted)).is_err() {
            let mut holder = wanted;
            let asked = fcntl(&file, FcntlArg::F_GETLK(&mut holder));
            asked.map_err(|errno| refused(errno.into()))?;
            return Err(LockError::Held { path: run_dir.into(), pid: holder.l_pid });
        }
        // For people who look; a full file system is found here, and not at the first registration.
        file.set_len(0).map_err(refused)?;
        writeln!(file, "{}", std::process::id()).map_err(refused)?;
        Ok(Lock(file))
    }
}

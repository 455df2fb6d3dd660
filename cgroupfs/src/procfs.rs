//! The files of `/proc` that tell how the node is: memory, zones, swap, pressure, controllers.
//!
//! Each has a pure `parse(&[u8])`, which takes what it knows and skips the rest, and a `read()`.

mod cgroups;
mod meminfo;
mod psi;
mod stopped;
mod swaps;
mod task;
mod zoneinfo;

pub use cgroups::{Controller, Controllers};
pub use meminfo::Meminfo;
pub use psi::{Psi, Stall};
pub use stopped::Stopped;
pub use swaps::{Swap, Swaps};
pub use task::{
    Task, TaskStat, faults_of_process, process_of, ran, ran_and_slept, starttime, transferred,
};
pub use zoneinfo::{Zone, Zoneinfo};

use crate::error::{Error, Op, Result};
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// More than any of these files is on a real host: 100,000 mounts (the kernel's default maximum,
/// `fs.mount-max`) of 300 bytes make 30 MB.
const MOST: u64 = 64 << 20;

/// The content of `path`. Missing, or refused because the feature is off (`EOPNOTSUPP`, PSI with
/// `psi=0`) or the process gone (`ESRCH`): [`Error::Absent`] with `why`. Larger than 64 MiB:
/// [`Error::Parse`]. Any other errno: [`Error::Refused`].
pub(crate) fn slurp(path: &Path, why: &'static str) -> Result<Vec<u8>> {
    let fail = |op, error: io::Error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH | Errno::EOPNOTSUPP => {
            Error::Absent { path: path.into(), why }
        }
        Errno::UnknownErrno => Error::refused(op, path, Errno::EIO),
        errno => Error::refused(op, path, errno),
    };
    let file = File::open(path).map_err(|error| fail(Op::Open, error))?;
    // These files say that they are empty: room at once for what most hold, and one read takes it.
    let mut content = Vec::with_capacity(4096);
    file.take(MOST + 1).read_to_end(&mut content).map_err(|error| fail(Op::Read, error))?;
    if content.len() as u64 > MOST {
        return Err(Error::parse(path, "at most 64 MiB", &content));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_absent_not_an_error_of_reading() {
        let error = slurp(Path::new("/proc/no-such-file"), "no such kernel").unwrap_err();
        assert!(error.is_absent(), "{error}");
        assert!(error.to_string().contains("/proc/no-such-file"), "{error}");
    }

    #[test]
    fn a_directory_is_refused_with_its_errno() {
        let error = slurp(Path::new("/proc"), "").unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EISDIR));
    }

    #[test]
    fn the_files_of_this_machine_read() {
        assert!(Meminfo::read().unwrap().total.is_some());
        assert!(Zoneinfo::read().unwrap().low_watermarks().0 > 0);
        for result in
            [Swaps::read().map(drop), Psi::read().map(drop), Controllers::read().map(drop)]
        {
            assert!(result.is_ok() || result.is_err_and(|error| error.is_absent()));
        }
    }
}

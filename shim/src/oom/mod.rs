//! OOM records on disk: a file each in the run directory, so that any process can read them while the
//! daemon lives, and after it died.
//!
//! Touches that one directory and nothing else.

mod name;
mod read;
mod write;

pub use read::{Found, all, find};
pub use write::Store;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Records that are kept at most.
pub const MOST_RECORDS: usize = 1000;

/// How long a record is kept at most.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// Where records are, under the run directory.
pub fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("oom")
}

/// The file of the record of this id.
pub fn file(run_dir: &Path, id: &str) -> PathBuf {
    directory(run_dir).join(format!("{id}.json"))
}

/// ms since boot, suspended time included: `CLOCK_BOOTTIME`. What records are dated and expire by; the
/// clock on the wall may jump.
pub fn boot_ms() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(|time| time.tv_sec().unsigned_abs() * 1000 + time.tv_nsec().unsigned_abs() / 1_000_000)
        .unwrap_or(0)
}

/// A name in the list of those whose records are gone: FNV-1a, as the list must mean the same to every
/// version that reads it.
fn fingerprint(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Lengths of the prefixes of container ids that are known after their records are gone: what docker shows, what crictl
/// does, and what people type.
const SHORT_IDS: [usize; 3] = [12, 13, 8];

/// The directory name of a cgroup.
fn last_component(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

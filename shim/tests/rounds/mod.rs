//! Rounds of kills and stops: how many, when each fault happened, and how soon what was declared stood again.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use cgshim::journal::Deadline;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// In which every limit is to be back, from the kill or stop on.
pub(crate) const BAR: Duration = Duration::from_millis(100);

/// The same from the end of the last thread on, where one waits for the disk.
pub(crate) const BAR_AFTER_THE_LAST: Duration = Duration::from_millis(50);

/// What a run has to hold: `strict` where it is asked for by hand, with `name` in the environment as for [`times`].
/// On a machine that does other things too a guardian waits for a CPU like anybody else: that it acts, then.
pub(crate) fn bar(name: &str, strict: Duration) -> Duration {
    if std::env::var_os(name).is_some() { strict } else { ON_ANY_MACHINE }
}

/// Longer than anybody waits for a CPU.
const ON_ANY_MACHINE: Duration = Duration::from_secs(10);

/// How often; by hand `CGSHIM_TEST_KILLS=200 CGSHIM_TEST_STOPS=200 CGSHIM_TEST_RANDOM=500`. A sixth of the default in
/// an emulated machine, where each takes a second or more.
pub(crate) fn times(name: &str, default: usize) -> usize {
    let emulated = std::env::var_os("CGSHIM_LANE").is_some();
    let default = if emulated { default.div_ceil(6) } else { default };
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Where a process writes when the faults in it happen (`CGSHIM_FAULT_LOG`).
pub(crate) struct Faults(PathBuf);

impl Faults {
    /// None happened yet.
    pub(crate) fn in_dir(dir: &Path) -> Faults {
        let log = dir.join("faults");
        let _ = std::fs::remove_file(&log);
        Faults(log)
    }

    pub(crate) fn log(&self) -> &Path {
        &self.0
    }

    /// When the nth happened, waiting for it.
    pub(crate) fn nth_within(&self, n: usize, patience: Duration) -> Option<Deadline> {
        let start = Instant::now();
        loop {
            let log = std::fs::read_to_string(&self.0).unwrap_or_default();
            let mut faults = log.lines().filter_map(|line| line.parse().ok()).map(Deadline);
            if let Some(at) = faults.nth(n - 1) {
                return Some(at);
            }
            if start.elapsed() > patience {
                return None;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The same, of one that must come.
    pub(crate) fn nth(&self, n: usize) -> Deadline {
        let patience = Duration::from_secs(30);
        self.nth_within(n, patience).unwrap_or_else(|| panic!("no fault number {n}"))
    }
}

/// How long ago.
pub(crate) fn passed(since: Deadline) -> Duration {
    Duration::from_nanos(Deadline::now().0.saturating_sub(since.0))
}

/// How long after `since` all is back; `standing` says what stands instead.
pub(crate) fn back_after(
    since: Deadline,
    is_back: impl Fn() -> bool,
    standing: impl Fn() -> String,
) -> Duration {
    let start = Instant::now();
    while !is_back() {
        assert!(start.elapsed() < 2 * ON_ANY_MACHINE, "never restored: {}", standing());
        std::thread::sleep(Duration::from_micros(100));
    }
    passed(since)
}

/// Says what was measured; the worst.
pub(crate) fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let [median, p99, worst] =
        [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|n| times[n]);
    println!(
        "{what}: {} times, back after {median:.1?} in the median, {p99:.1?} in the 99th percentile, \
         {worst:.1?} at worst",
        times.len()
    );
    worst
}

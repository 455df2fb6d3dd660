//! Containers as runtimes make them, with a memory and a freezer group, for throttles on cgroup v1.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use super::common::{Ground, Load, memory, skip, until, without_swap};
use cgroupfs::freezer::Freezer;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup};
use cgshim::core::throttle::{Then, WayOut};
use cgshim::driver::throttle::{ThrottleConfig, Throttler};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// Throttled for as long as it lasts.
pub(crate) const ENDLESS: WayOut = WayOut { budget: None, then: Then::Release };

/// Where the freezer hierarchy is mounted; `None`, having said so, where high is not emulated.
pub(crate) fn emulated(test: &str, ground: &Ground) -> Option<PathBuf> {
    if !ground.v1() {
        skip(test, "v2 has memory.high: nothing is emulated");
        return None;
    }
    match Freezer::find() {
        Ok(freezer) => Some(freezer.mount_point),
        Err(error) => {
            skip(test, &error.to_string());
            None
        }
    }
}

/// One of them; thawed and removed when dropped.
pub(crate) struct FreezerDir(pub(crate) PathBuf);

impl FreezerDir {
    pub(crate) fn new(mount: &Path, name: &str) -> FreezerDir {
        let path = mount.join(format!("cgshim-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        FreezerDir(path)
    }

    /// One in it.
    pub(crate) fn child(&self, name: &str) -> FreezerDir {
        let path = self.0.join(name);
        std::fs::create_dir(&path).unwrap();
        FreezerDir(path)
    }

    /// Moves a process in.
    pub(crate) fn take(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("freezer.state")
    }

    pub(crate) fn says(&self) -> String {
        std::fs::read_to_string(self.state()).unwrap().trim().to_owned()
    }
}

impl Drop for FreezerDir {
    fn drop(&mut self) {
        let _ = std::fs::write(self.state(), "THAWED");
        let start = Instant::now();
        while self.0.exists()
            && std::fs::remove_dir(&self.0).is_err()
            && start.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Thaws it when dropped: frozen tasks do not die.
pub(crate) struct Thaw<'a>(pub(crate) &'a FreezerDir);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.state(), "THAWED");
    }
}

/// A container with a load in it. The load is dropped first: frozen in a group of ours it goes only when that is gone.
pub(crate) struct Container {
    pub(crate) load: Load,
    pub(crate) freezer: FreezerDir,
    pub(crate) group: Arc<Cgroup>,
    pub(crate) memory: Arc<dyn Memory>,
}

/// One in a group of its own; to be dropped before the ground. `None`, having said so, where the kernel has its own
/// `memory.high`.
pub(crate) fn container(test: &str) -> Option<(Ground, Container)> {
    // RUST_LOG=trace shows each pulse.
    let _ = env_logger::try_init();
    let ground = Ground::new(test)?;
    let mount = emulated(test, &ground)?;
    let group = ground.group("g");
    let freezer = FreezerDir::new(&mount, &group.inode().to_string());
    Some((ground, Container::new(group, freezer)))
}

impl Container {
    pub(crate) fn new(group: Arc<Cgroup>, freezer: FreezerDir) -> Container {
        without_swap(&group);
        let load = Load::in_group(&group);
        freezer.take(load.pid());
        Container { load, freezer, memory: memory(&group), group }
    }

    pub(crate) fn usage(&self) -> Bytes {
        self.memory.usage().unwrap()
    }

    /// For a throttle without end.
    pub(crate) fn config(&self, high: Bytes) -> ThrottleConfig {
        ThrottleConfig { way_out: ENDLESS, ..ThrottleConfig::new(self.group.clone(), high) }
    }

    /// Our group in its freezer group.
    pub(crate) fn ours(&self) -> PathBuf {
        self.freezer.0.join("cgshim")
    }

    /// Our group, and who is in it; `None` where it is not there.
    pub(crate) fn held(&self) -> Option<(u64, BTreeSet<u32>)> {
        let tasks = std::fs::read_to_string(self.ours().join("tasks")).ok()?;
        let inode = std::fs::metadata(self.ours()).ok()?.ino();
        Some((inode, tasks.lines().map(|tid| tid.parse().unwrap()).collect()))
    }

    /// Whether some of its tasks are in our group.
    pub(crate) fn is_ours(&self) -> bool {
        self.held().is_some_and(|(_, tids)| !tids.is_empty())
    }

    /// By our group, never by its own.
    pub(crate) fn is_frozen(&self) -> bool {
        let state = std::fs::read_to_string(self.ours().join("freezer.state"));
        state.is_ok_and(|state| state.trim() == "FROZEN")
    }

    /// Groups of ours in its freezer group.
    pub(crate) fn groups_of_ours(&self) -> usize {
        let entries = std::fs::read_dir(&self.freezer.0).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("cgshim")).count()
    }

    /// All of its threads are where its runtime put them.
    pub(crate) fn is_home(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.load.pid())).unwrap();
        let tids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok());
        let freezer = Freezer::find().unwrap();
        tids.collect::<Vec<u32>>()
            .into_iter()
            .all(|tid| freezer.path_of(tid).is_ok_and(|path| path == self.freezer.0))
    }

    /// It is throttled, or still is: frozen again.
    pub(crate) fn is_throttled_on(&self, throttler: &Throttler) {
        let before = throttler.totals().pulses;
        until("pulses", 20 * SECOND, || throttler.totals().pulses > before + 1);
        assert!(!throttler.is_over());
    }

    /// It grows by what would take minutes above high.
    pub(crate) fn grows_freely(&self, by: Bytes) {
        let most = self.usage().saturating_add(by);
        until("it grows freely", 20 * SECOND, || self.usage() > most);
    }
}

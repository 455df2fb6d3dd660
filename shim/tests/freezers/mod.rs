//! Freezer groups as runtimes make them for containers.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use super::common::{Ground, skip};
use cgroupfs::freezer::Freezer;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

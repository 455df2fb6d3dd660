//! Whether a registration is true: the process is there, is the one that was meant, is in that group, and
//! the group is one beneath the hierarchy's root.

use crate::api::message::{Register, check_id};
use crate::driver::is_process;
use cgroupfs::memory::Version;
use cgroupfs::{Cgroup, Membership, MemoryHierarchy, Mounts, procfs};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};
use std::sync::Arc;

/// Longest path of a group: PATH_MAX.
const MOST_PATH: usize = 4096;

/// The hierarchy as the daemon sees it.
pub(super) struct Host {
    pub(super) hierarchy: MemoryHierarchy,
    mounts: Mounts,
    root: u64,
}

/// A group that was found to be what was said.
pub(super) struct Verified {
    pub(super) group: Arc<Cgroup>,
    /// Its path in the hierarchy.
    pub(super) path: String,
    /// When the process that was said to be in it began, 0 if none was.
    pub(super) started: u64,
}

impl Host {
    pub(super) fn find() -> cgroupfs::Result<Host> {
        let hierarchy = MemoryHierarchy::find()?;
        let root = hierarchy.open(&hierarchy.mount_point)?.inode();
        Ok(Host { hierarchy, mounts: Mounts::read()?, root })
    }

    /// Verifies it; what is wrong otherwise.
    pub(super) fn verify(&self, asked: &Register) -> Result<Verified, String> {
        check_id(&asked.id).map_err(|error| error.to_string())?;
        check_path(&asked.cgroup)?;
        let pid = u32::try_from(asked.pid).ok().filter(|pid| *pid > 0);
        let Some(pid) = pid else { return Err(format!("{} is no process id", asked.pid)) };
        let gone = || format!("process {pid} is gone");
        let membership = Membership::read(pid).map_err(|_| gone())?;
        if is_process(asked.pid) != Some(true) {
            let process = procfs::process_of(pid).ok_or_else(gone)?;
            if process != pid {
                return Err(format!(
                    "{pid} is no process id but that of a thread of process {process}"
                ));
            }
        }
        let started = procfs::starttime(pid).ok_or_else(gone)?;
        if let Some(expected) = asked.start_time.filter(|expected| *expected != started) {
            return Err(format!(
                "process {pid} is another one by now: started at {started}, not {expected}"
            ));
        }
        let found = match self.hierarchy.version {
            Version::V1 => membership.path("memory"),
            Version::V2 => membership.unified(),
        };
        let cgroup = Path::new(&asked.cgroup);
        match found {
            Some(found) if found == cgroup => {}
            // v1 shows "/" for a process that is exiting.
            Some(found) => {
                return Err(format!(
                    "process {pid} is in {}, not in {}",
                    found.display(),
                    cgroup.display()
                ));
            }
            None => return Err(format!("process {pid} is in no group with a memory controller")),
        }
        Ok(Verified { started, ..self.open(&asked.cgroup)? })
    }

    /// Opens the group that `/proc/PID/cgroup` calls `path`; never the root.
    pub(super) fn open(&self, path: &str) -> Result<Verified, String> {
        check_path(path)?;
        let located = match self.hierarchy.version {
            Version::V1 => self.mounts.locate_v1("memory", Path::new(path)),
            Version::V2 => self.mounts.locate_v2(Path::new(path)),
        };
        let directory = located
            .filter(|directory| directory.starts_with(&self.hierarchy.mount_point))
            .ok_or_else(|| format!("{path} is outside of what is mounted here"))?;
        self.open_directory(&directory)
    }

    /// Opens the group at this path in the hierarchy; never the root.
    pub(super) fn open_relative(&self, path: &str) -> Result<Verified, String> {
        check_path(path)?;
        self.open_directory(&self.hierarchy.mount_point.join(path.trim_start_matches('/')))
    }

    fn open_directory(&self, directory: &Path) -> Result<Verified, String> {
        let group = self.hierarchy.open(directory).map_err(|error| error.to_string())?;
        if group.inode() == self.root {
            return Err("the root group is no container".into());
        }
        // Names a group, and is no more than that.
        let relative = directory.strip_prefix(&self.hierarchy.mount_point).unwrap_or(directory);
        let path = format!("/{}", relative.to_string_lossy());
        Ok(Verified { group: Arc::new(group), path, started: 0 })
    }

    /// Whether the group at that directory is (still) the one with this inode.
    pub(super) fn still_there(&self, directory: &Path, inode: u64) -> bool {
        std::fs::symlink_metadata(directory).is_ok_and(|found| found.ino() == inode)
    }
}

fn check_path(path: &str) -> Result<(), String> {
    let bad = |why| {
        let shown: String = path.escape_default().take(120).collect();
        Err(format!("'{shown}' is no cgroup path: {why}"))
    };
    if path.len() > MOST_PATH {
        return bad("it is longer than 4096 bytes");
    }
    if !path.starts_with('/') {
        return bad("it does not begin with '/'");
    }
    if path.chars().any(char::is_control) {
        return bad("it has control characters");
    }
    let names = Path::new(path).components();
    if names.skip(1).any(|name| !matches!(name, Component::Normal(_))) {
        return bad("it has '..'");
    }
    Ok(())
}

/// `process.oomScoreAdj` as the kernel has it, for groups nobody registered.
pub(super) fn oom_score_adj(pid: i32) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_out_or_are_none_are_refused() {
        for path in ["", "a", "/../x", "/a/../../x", "/a\n", &format!("/{}", "x/".repeat(3000))] {
            assert!(check_path(path).is_err(), "{path}");
        }
        check_path("/a/b..c/d").unwrap();
    }
}

//! What the kernel log calls a group.

use cgroupfs::memory::Version;
use cgroupfs::{MemoryHierarchy, Mounts};
use std::path::{Component, Path, PathBuf};

/// The hierarchy, and which group of it is at its mount point: `/` but in a container with a bind mount
/// of its own.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) hierarchy: MemoryHierarchy,
    root: PathBuf,
}

impl Host {
    pub(super) fn find() -> cgroupfs::Result<Host> {
        let hierarchy = MemoryHierarchy::find()?;
        let mounts = Mounts::read()?;
        let root = match hierarchy.version {
            Version::V1 => mounts.v1("memory").map(|mount| mount.root.clone()),
            Version::V2 => mounts.v2().map(|mount| mount.root.clone()),
        };
        Ok(Host { hierarchy, root: root.unwrap_or_else(|| "/".into()) })
    }

    /// The path that the log has for the group at `directory`.
    pub(super) fn path(&self, directory: &Path) -> String {
        kernel_path(&self.root, &self.hierarchy.mount_point, directory)
    }

    /// The directories of the groups that the one at `directory` is in, from its parent upwards, without
    /// the mount point: the root has no limit.
    pub(super) fn ancestors(&self, directory: &Path) -> Vec<PathBuf> {
        directory
            .ancestors()
            .skip(1)
            .take_while(|path| path.starts_with(&self.hierarchy.mount_point))
            .filter(|path| *path != self.hierarchy.mount_point)
            .map(Path::to_path_buf)
            .collect()
    }

    /// What is mounted here is the root of the hierarchy, and not a group that is one for this cgroup namespace alone:
    /// a file that the root alone has (v1), or does not (`CFTYPE_ONLY_ON_ROOT`, `CFTYPE_NOT_ON_ROOT`).
    pub(super) fn has_the_root(&self) -> bool {
        let has = |file: &str| self.hierarchy.mount_point.join(file).exists();
        match self.hierarchy.version {
            Version::V1 => has("cgroup.sane_behavior"),
            // 4.14+, before memory.events.local.
            Version::V2 => !has("cgroup.type") && !has("memory.events"),
        }
    }
}

/// The path from the hierarchy's root of the group at `directory`, given what is mounted at `mount_point`.
/// A root outside of our cgroup namespace (`/..`) has no name that the log could be compared with; what is
/// left then is the path from the mount point.
pub fn kernel_path(root: &Path, mount_point: &Path, directory: &Path) -> String {
    let relative = directory.strip_prefix(mount_point).unwrap_or(directory);
    let outside = root.components().any(|part| part == Component::ParentDir);
    let mut path = if outside { PathBuf::from("/") } else { root.to_path_buf() };
    path.push(relative);
    let path = path.to_string_lossy().into_owned();
    if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_from_the_root_of_the_hierarchy() {
        let name = |root: &str, dir: &str| {
            kernel_path(Path::new(root), Path::new("/sys/fs/cgroup/memory"), Path::new(dir))
        };
        assert_eq!(name("/", "/sys/fs/cgroup/memory/a/b"), "/a/b");
        assert_eq!(name("/", "/sys/fs/cgroup/memory"), "/");
        assert_eq!(name("/docker/1", "/sys/fs/cgroup/memory/a"), "/docker/1/a");
        assert_eq!(name("/..", "/sys/fs/cgroup/memory/a"), "/a");
    }
}

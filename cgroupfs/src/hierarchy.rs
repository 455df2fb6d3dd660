//! Where the memory controller is mounted, which group we are in, and where a group of ours can go.

use crate::dir::Cgroup;
use crate::error::{Error, Result};
use crate::files::{Access, ControlDir, Knob};
use crate::membership::Membership;
use crate::memory::Version;
use crate::mounts::{Mode, Mounts};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The hierarchy that has the memory controller, as seen from this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryHierarchy {
    /// v1 or v2.
    pub version: Version,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The directory of the group this process is in; the mount point where that group is outside of
    /// what is mounted (a foreign cgroup namespace).
    pub own: PathBuf,
}

impl MemoryHierarchy {
    /// Finds it: a v1 mount with `memory`, else the unified hierarchy if that has the controller (on
    /// hybrid hosts only one of them can).
    ///
    /// [`Error::NoController`] says what is mounted instead, and the way out.
    pub fn find() -> Result<MemoryHierarchy> {
        let mounts = Mounts::read()?;
        let membership = Membership::of_self()?;
        MemoryHierarchy::among(&mounts, &membership)
    }

    fn among(mounts: &Mounts, membership: &Membership) -> Result<MemoryHierarchy> {
        if let Some(mount) = mounts.v1("memory") {
            let own = membership.path("memory").and_then(|path| mounts.locate_v1("memory", path));
            return Ok(MemoryHierarchy {
                version: Version::V1,
                own: own.unwrap_or_else(|| mount.mount_point.clone()),
                mount_point: mount.mount_point.clone(),
            });
        }
        let Some(mount) = mounts.v2() else {
            let why = match mounts.mode() {
                Mode::None => {
                    "no cgroup file system is mounted; mount one with 'mount -t cgroup2 none \
                     /sys/fs/cgroup', or v1 with 'mount -t cgroup -o memory none \
                     /sys/fs/cgroup/memory'"
                }
                _ => {
                    "cgroup v1 is mounted, but not its memory controller; mount it with 'mount -t \
                     cgroup -o memory none /sys/fs/cgroup/memory' (or boot without \
                     cgroup_disable=memory)"
                }
            };
            return Err(Error::NoController { controller: "memory", why: why.into() });
        };
        let controllers = read_words(&mount.mount_point, "cgroup.controllers")?;
        if !controllers.iter().any(|name| name == "memory") {
            return Err(Error::NoController {
                controller: "memory",
                why: format!(
                    "the unified hierarchy at {} does not have it (it has: {}); if it is on cgroup v1, \
                     mount that with 'mount -t cgroup -o memory none /sys/fs/cgroup/memory', else boot \
                     without cgroup_disable=memory",
                    mount.mount_point.display(),
                    if controllers.is_empty() { "none".into() } else { controllers.join(" ") },
                ),
            });
        }
        let own = membership.unified().and_then(|path| mounts.locate_v2(path));
        Ok(MemoryHierarchy {
            version: Version::V2,
            own: own.unwrap_or_else(|| mount.mount_point.clone()),
            mount_point: mount.mount_point.clone(),
        })
    }

    /// Opens the group whose directory is `path`, which must lie in this hierarchy.
    pub fn open(&self, path: &Path) -> Result<Cgroup> {
        Cgroup::open_absolute(&self.mount_point, path)
    }

    /// The group under which a new group with a memory controller of its own can be made: as near to
    /// our own as can be, so that the limits above us go on holding.
    ///
    /// On v1 that is our own group. On v2 a group with processes gives no controllers to children, so
    /// it is the nearest ancestor that does (`cgroup.subtree_control`) or that can be told to.
    pub fn parent_for_new(&self) -> Result<Cgroup> {
        if self.version == Version::V1 {
            return self.open(&self.own);
        }
        let mut refused = None;
        for path in self.own.ancestors() {
            if !path.starts_with(&self.mount_point) {
                break;
            }
            match self.enable_memory(path) {
                Ok(group) => return Ok(group),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| Error::NoController {
            controller: "memory",
            why: format!("{} is outside of the hierarchy", self.own.display()),
        }))
    }

    /// Opens the v2 group at `path` and sees that its children have the memory controller.
    pub fn enable_memory(&self, path: &Path) -> Result<Cgroup> {
        let group = self.open(path)?;
        if self.version == Version::V1
            || read_words(path, "cgroup.subtree_control")?.iter().any(|name| name == "memory")
        {
            return Ok(group);
        }
        let group = Arc::new(group);
        let dir: Arc<dyn ControlDir> = group.clone();
        Knob::open(&dir, "cgroup.subtree_control", Access::Write)?.write("+memory")?;
        drop(dir);
        Arc::into_inner(group).map_or_else(|| self.open(path), Ok)
    }
}

fn read_words(dir: &Path, file: &str) -> Result<Vec<String>> {
    let path = dir.join(file);
    let content = std::fs::read_to_string(&path).map_err(|error| {
        Error::refused(
            crate::Op::Read,
            path,
            nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        )
    })?;
    Ok(content.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(mountinfo: &str, cgroup: &str) -> Result<MemoryHierarchy> {
        MemoryHierarchy::among(
            &Mounts::parse(mountinfo.as_bytes()),
            &Membership::parse(cgroup.as_bytes()),
        )
    }

    #[test]
    fn hybrid_hosts_have_memory_on_v1() {
        let found = find(
            "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "4:memory:/a/b\n0::/x\n",
        )
        .unwrap();
        assert_eq!(found.version, Version::V1);
        assert_eq!(found.own, Path::new("/sys/fs/cgroup/memory/a/b"));
    }

    #[test]
    fn without_a_memory_controller_the_way_out_is_named() {
        for (mountinfo, part) in [
            ("", "no cgroup file system is mounted"),
            ("35 31 0:32 / /c/cpu rw - cgroup cgroup rw,cpu\n", "not its memory controller"),
        ] {
            let message = find(mountinfo, "").unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("mount -t cgroup"), "{message}");
        }
    }
}

//! Which cgroups a process is in: `/proc/PID/cgroup`, and where those are in this mount namespace.

use crate::error::Result;
use crate::flat::{lines, number};
use crate::procfs::slurp;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// One line: the group of the process in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The hierarchy's id; 0 for v2. `/proc/cgroups` shows the same ids.
    pub hierarchy: u32,
    /// Controllers of a v1 hierarchy (`cpu`, `cpuacct`), or its name (`name=systemd`); empty for v2.
    pub controllers: Vec<String>,
    /// The group, relative to the reader's cgroup namespace: `/..` at its start leads above that.
    pub path: PathBuf,
    /// The group was removed (its process is a zombie, or is about to be one). Its path may by now be
    /// that of another group, made later. Only v2 tells.
    pub deleted: bool,
}

/// The groups of a process, in file order.
///
/// v1 shows `/` for a process that is exiting, whatever its group was (`proc_cgroup_show()`): a `/`
/// found for a process that was elsewhere a moment ago is no move.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// One for each hierarchy.
    pub groups: Vec<Group>,
}

impl Membership {
    /// Reads `/proc/PID/cgroup`.
    ///
    /// # Errors
    /// `Absent` where there is no such process (any more); `Refused` with the errno otherwise.
    pub fn read(pid: u32) -> Result<Membership> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        slurp(&path, "there is no such process, or it has ended").map(|c| Membership::parse(&c))
    }

    /// Reads `/proc/self/cgroup`: the groups of this process.
    ///
    /// # Errors
    /// `Absent` without procfs or cgroups; `Refused` with the errno otherwise.
    pub fn of_self() -> Result<Membership> {
        let path = Path::new("/proc/self/cgroup");
        slurp(path, "procfs is not mounted, or the kernel has no cgroups")
            .map(|c| Membership::parse(&c))
    }

    /// Takes each line of the shape `ID:CONTROLLERS:/PATH`; skips others. Paths may hold colons, and
    /// bytes that are not UTF-8, but no newline: the kernel refuses those. Source: cgroups(7).
    pub fn parse(content: &[u8]) -> Membership {
        Membership { groups: lines(content).filter_map(group).take(MOST_GROUPS).collect() }
    }

    /// The group in the v1 hierarchy with `controller` (or `name=...`). `None` where that controller
    /// is in no v1 hierarchy; see then [`Membership::unified`].
    pub fn path(&self, controller: &str) -> Option<&Path> {
        let has = |group: &&Group| group.controllers.iter().any(|name| name == controller);
        self.groups.iter().find(has).map(|group| group.path.as_path())
    }

    /// The group in the v2 hierarchy, unless it was removed.
    pub fn unified(&self) -> Option<&Path> {
        self.unified_group().filter(|group| !group.deleted).map(|group| group.path.as_path())
    }

    /// The v2 line, removed or not.
    pub fn unified_group(&self) -> Option<&Group> {
        self.groups.iter().find(|group| group.hierarchy == 0 && group.controllers.is_empty())
    }
}

/// More hierarchies than anybody mounts: what a file of nothing but `0::/` may cost stays bounded.
const MOST_GROUPS: usize = 1024;

/// More than there are controllers (`CGROUP_SUBSYS_COUNT` is at most 16).
const MOST_CONTROLLERS: usize = 32;

fn group(line: &[u8]) -> Option<Group> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let hierarchy = u32::try_from(number(fields.next()?)?).ok()?;
    let controllers = std::str::from_utf8(fields.next()?).ok()?;
    let path = fields.next()?;
    let names = controllers.split(',').filter(|name| !name.is_empty());
    let controllers: Vec<_> = names.take(MOST_CONTROLLERS).map(str::to_string).collect();
    // Only v2 appends this; a v1 group may really have such a name (as may, alas, a v2 one).
    let unified = hierarchy == 0 && controllers.is_empty();
    let alive = path.strip_suffix(b" (deleted)").filter(|_| unified);
    let deleted = alive.is_some();
    let path = PathBuf::from(OsStr::from_bytes(alive.unwrap_or(path)));
    path.is_absolute().then_some(Group { hierarchy, controllers, path, deleted })
}

/// The directory, in this mount namespace, of the group that `/proc/PID/cgroup` calls `cgroup_path`,
/// given a mount of its hierarchy (`mount_root` and `mount_point` as mountinfo has them).
///
/// The mount root is taken off the path, component by component, and the rest goes onto the mount
/// point. Both paths are relative to the reader's cgroup namespace: where they lead above it, with
/// `/..`, both must do so by as many levels, as the names of the levels between are not known.
///
/// `None` where the mount does not show the group, where that cannot be told, and for paths the kernel
/// does not print (relative, `..` after a name). The result is never outside of `mount_point`. Source:
/// cgroup_namespaces(7), `kernfs_path_from_node()`.
pub fn resolve(mount_root: &Path, mount_point: &Path, cgroup_path: &Path) -> Option<PathBuf> {
    let (root_ups, root) = split(mount_root)?;
    let (path_ups, path) = split(cgroup_path)?;
    let (point_ups, _) = split(mount_point)?;
    if root_ups != path_ups || point_ups != 0 {
        return None;
    }
    let rest = path.strip_prefix(root).ok()?;
    // `join("")` would append a slash.
    Some(if rest.as_os_str().is_empty() { mount_point.into() } else { mount_point.join(rest) })
}

/// An absolute path as (how many `..` it starts with, the names after that).
fn split(path: &Path) -> Option<(usize, &Path)> {
    let mut components = path.components();
    (components.next()? == Component::RootDir).then_some(())?;
    let mut ups = 0;
    let mut names = components.clone();
    while components.next() == Some(Component::ParentDir) {
        ups += 1;
        names = components.clone();
    }
    let names = names.as_path();
    names.components().all(|name| matches!(name, Component::Normal(_))).then_some((ups, names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::Mounts;
    use crate::samples;
    use proptest::prelude::*;

    fn sample(name: &str) -> Membership {
        Membership::parse(&samples::read(&format!("self-cgroup/{name}")))
    }

    fn at(root: &str, point: &str, path: &str) -> Option<PathBuf> {
        resolve(Path::new(root), Path::new(point), Path::new(path))
    }

    #[test]
    fn each_hierarchy_has_its_own_path() {
        let own = Membership::parse(&samples::read("proc/host-6.18/self-cgroup"));
        assert_eq!(own.path("memory"), Some(Path::new("/workload/abc")));
        assert_eq!(own.path("freezer"), Some(Path::new("/")));
        assert_eq!(own.path("name=systemd"), Some(Path::new("/")));
        assert_eq!(own.path("hugetlb"), None);
        assert_eq!(own.unified(), Some(Path::new("/")));
        assert_eq!(own.groups.len(), 10);
    }

    #[test]
    fn co_mounted_controllers_are_each_found() {
        let own = sample("v1-el7");
        assert_eq!(own.path("cpu"), own.path("cpuacct"));
        assert_eq!(own.path("memory"), Some(Path::new("/user.slice")));
        assert_eq!(own.unified(), None);
    }

    #[test]
    fn colons_in_a_path_belong_to_it() {
        // As containerd names them with the systemd driver and an old runc.
        let own = Membership::parse(b"4:memory:/system.slice/cri:containerd:0a1b\n0::/a:b\n");
        assert_eq!(own.path("memory"), Some(Path::new("/system.slice/cri:containerd:0a1b")));
        assert_eq!(own.unified(), Some(Path::new("/a:b")));
    }

    #[test]
    fn a_removed_v2_group_is_never_handed_out_as_a_path() {
        let gone = Membership::parse(b"0::/docker/abc (deleted)\n");
        assert_eq!(gone.unified(), None);
        let group = gone.unified_group().unwrap();
        assert_eq!((group.path.to_str(), group.deleted), (Some("/docker/abc"), true));
        // v1 never appends it: there it is part of a name.
        let odd = Membership::parse(b"4:memory:/x (deleted)\n");
        assert_eq!(odd.path("memory"), Some(Path::new("/x (deleted)")));
        assert!(!odd.groups[0].deleted);
    }

    #[test]
    fn lines_of_another_shape_are_skipped() {
        let own =
            Membership::parse(b"\nx:memory:/a\n4:memory\n4:memory:a\n-1::/\n99999999999::/\n");
        assert_eq!(own, Membership::default());
    }

    #[test]
    fn the_groups_of_each_sampled_host_are_found_in_its_mounts() {
        for (name, controller, dir) in [
            ("v1-el7", "memory", "/sys/fs/cgroup/memory/user.slice"),
            ("hybrid-debian-11", "memory", "/sys/fs/cgroup/memory/system.slice/ssh.service"),
            ("docker-v1", "memory", "/sys/fs/cgroup/memory"),
        ] {
            let mounts = Mounts::parse(&samples::read(&format!("mountinfo/{name}")));
            let path = sample(name);
            let found = mounts.locate_v1(controller, path.path(controller).unwrap());
            assert_eq!(found, Some(dir.into()), "{name}");
        }
        for (name, dir) in [
            ("v2-systemd", "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"),
            ("hybrid-debian-11", "/sys/fs/cgroup/unified/system.slice/ssh.service"),
            ("private-cgroupns-v2", "/sys/fs/cgroup"),
        ] {
            let mounts = Mounts::parse(&samples::read(&format!("mountinfo/{name}")));
            let found = mounts.locate_v2(sample(name).unified().unwrap());
            assert_eq!(found, Some(dir.into()), "{name}");
        }
    }

    #[test]
    fn the_mount_root_comes_off_by_whole_components() {
        assert_eq!(at("/", "/m", "/a/b"), Some("/m/a/b".into()));
        assert_eq!(at("/", "/m", "/").unwrap().as_os_str(), "/m");
        assert_eq!(at("/docker/1", "/m", "/docker/1/x"), Some("/m/x".into()));
        assert_eq!(at("/docker/1", "/m", "/docker/1").unwrap().as_os_str(), "/m");
        assert_eq!(at("/docker/1", "/m", "/docker/12"), None);
        assert_eq!(at("/docker/1", "/m", "/docker"), None);
    }

    #[test]
    fn a_path_above_the_namespace_resolves_only_in_a_mount_as_far_above() {
        assert_eq!(at("/..", "/m", "/../sub2"), Some("/m/sub2".into()));
        assert_eq!(at("/..", "/m", "/.."), Some("/m".into()));
        assert_eq!(at("/../../x", "/m", "/../../x/y"), Some("/m/y".into()));
        // The group at the namespace's root is below the mount, but its name is not known.
        assert_eq!(at("/..", "/m", "/"), None);
        assert_eq!(at("/..", "/m", "/a"), None);
        assert_eq!(at("/", "/m", "/.."), None);
        assert_eq!(at("/..", "/m", "/../.."), None);
    }

    #[test]
    fn a_path_that_climbs_or_is_relative_resolves_to_nothing() {
        for path in ["/a/../../../etc", "/a/..", "a", "", "../a", "."] {
            assert_eq!(at("/", "/m", path), None, "{path}");
            assert_eq!(at(path, "/m", "/"), None, "{path}");
        }
        for point in ["m", "", "/../m", "/a/../m"] {
            assert_eq!(at("/", point, "/a"), None, "{point}");
        }
    }

    fn check(content: &[u8]) -> std::result::Result<(), TestCaseError> {
        let own = Membership::parse(content);
        prop_assert!(own.groups.len() <= lines(content).count());
        let held: usize = own
            .groups
            .iter()
            .map(|g| {
                g.path.as_os_str().len() + g.controllers.iter().map(String::len).sum::<usize>()
            })
            .sum();
        prop_assert!(held <= content.len());
        for group in &own.groups {
            if let Some(dir) = resolve(Path::new("/"), Path::new("/m"), &group.path) {
                stays_inside(&dir, Path::new("/m"))?;
            }
        }
        Ok(())
    }

    fn stays_inside(dir: &Path, point: &Path) -> std::result::Result<(), TestCaseError> {
        let rest = dir.strip_prefix(point).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(rest.components().all(|c| matches!(c, Component::Normal(_))), "{dir:?}");
        Ok(())
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..400)) {
            check(&content)?;
        }

        #[test]
        fn mutated_samples_never_panic_nor_escape(
            content in prop::sample::select(samples::names("self-cgroup"))
                .prop_flat_map(|name| samples::mutated(&name)),
        ) {
            check(&content)?;
        }

        #[test]
        fn no_path_leaves_the_mount_point(
            root in "(/?(\\.\\.|\\.|[ab ]{0,2})){0,4}",
            path in "(/?(\\.\\.|\\.|[ab ]{0,2})){0,5}",
        ) {
            let point = Path::new("/sys/fs/cgroup");
            if let Some(dir) = resolve(Path::new(&root), point, Path::new(&path)) {
                stays_inside(&dir, point)?;
            }
        }

        #[test]
        fn what_is_below_the_root_is_found_again(
            root in "(/[a-c]{1,3}){0,3}",
            below in "(/[a-c]{1,3}){0,3}",
            ups in 0usize..3,
        ) {
            let up = "/..".repeat(ups);
            let root_path = format!("/{up}{root}");
            let path = format!("/{up}{root}{below}");
            prop_assert_eq!(at(&root_path, "/m", &path), Some(PathBuf::from(format!("/m{below}"))));
        }
    }
}

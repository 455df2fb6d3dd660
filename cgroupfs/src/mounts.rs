//! Where the cgroup hierarchies are mounted: `/proc/self/mountinfo`.

use crate::error::Result;
use crate::flat::{lines, number};
use crate::membership;
use crate::octal;
use crate::procfs::slurp;
use std::path::{Path, PathBuf};

/// A mount of a v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Mount {
    /// The controllers of the hierarchy, co-mounted ones together (`cpu`, `cpuacct`); a hierarchy
    /// without controllers has its name (`name=systemd`).
    pub controllers: Vec<String>,
    /// Which cgroup of the hierarchy is at the mount point: `/` for all of it, `/docker/ID` for a bind
    /// mount; relative to the cgroup namespace of the reader, so `/..` where it is above that.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// The mount or its file system is read-only.
    pub read_only: bool,
}

/// A mount of the v2 hierarchy. Fields as in [`V1Mount`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V2Mount {
    /// Which cgroup is at the mount point.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// The mount or its file system is read-only.
    pub read_only: bool,
}

/// How this host has its cgroups. Hierarchies that only have a name (`name=systemd`) hold no
/// controller and do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// v1 hierarchies only.
    V1,
    /// The unified hierarchy only.
    V2,
    /// Both: systemd's hybrid layout, where v2 mostly has no controllers. Ask for the controller.
    Hybrid,
    /// No controller is mounted.
    None,
}

/// The cgroup mounts that a path lookup can reach, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Mounts of v1 hierarchies.
    pub v1: Vec<V1Mount>,
    /// Mounts of the v2 hierarchy.
    pub v2: Vec<V2Mount>,
    /// Lines that did not parse. The kernel prints none; more than zero is worth a warning.
    pub skipped: usize,
}

impl Mounts {
    /// Reads `/proc/self/mountinfo`: the mounts as this process sees them.
    ///
    /// # Errors
    /// `Absent` without procfs; `Parse` above 64 MiB; `Refused` with the errno otherwise.
    pub fn read() -> Result<Mounts> {
        slurp(Path::new("/proc/self/mountinfo"), "procfs is not mounted").map(|c| Mounts::parse(&c))
    }

    /// Takes the mounts of type `cgroup` and `cgroup2` that nothing hides: neither a later mount on
    /// the same mount point nor one on a directory above it. Lines that do not parse are skipped and
    /// counted. Source: proc_pid_mountinfo(5), `show_mountinfo()` in fs/proc_namespace.c.
    pub fn parse(content: &[u8]) -> Mounts {
        let mut mounts = Mounts::default();
        let mut all = Vec::new();
        for line in lines(content) {
            match Line::parse(line) {
                Some(line) => all.push(line),
                None => mounts.skipped += 1,
            }
        }
        let tree = Tree::new(&all);
        for (index, line) in all.iter().enumerate() {
            if !matches!(line.fs_type, b"cgroup" | b"cgroup2") || !tree.reaches(index) {
                continue;
            }
            let (Some(root), Some(mount_point)) = (octal::path(line.root), line.usable_point())
            else {
                mounts.skipped += 1;
                continue;
            };
            let read_only =
                has_option(line.options, b"ro") || has_option(line.super_options, b"ro");
            if line.fs_type == b"cgroup2" {
                mounts.v2.push(V2Mount { root, mount_point, read_only });
            } else {
                let controllers = controllers(line.super_options);
                mounts.v1.push(V1Mount { controllers, root, mount_point, read_only });
            }
        }
        mounts
    }

    /// The best mount of the v1 hierarchy with `controller` (or `name=...`): of several, the one that
    /// shows most of it (shortest root), then one that can be written to, then the first.
    pub fn v1(&self, controller: &str) -> Option<&V1Mount> {
        self.v1_all(controller).min_by_key(|mount| rank(&mount.root, mount.read_only))
    }

    /// The best mount of the v2 hierarchy, chosen as [`Mounts::v1`] does.
    pub fn v2(&self) -> Option<&V2Mount> {
        self.v2.iter().min_by_key(|mount| rank(&mount.root, mount.read_only))
    }

    /// Where the v1 group `cgroup_path` (as in `/proc/PID/cgroup`) of `controller` is: in the best
    /// mount that shows it. `None` where none does.
    pub fn locate_v1(&self, controller: &str, cgroup_path: &Path) -> Option<PathBuf> {
        let mounts = self.v1_all(controller);
        locate(mounts.map(|m| (&*m.root, &*m.mount_point, m.read_only)), cgroup_path)
    }

    /// Where the v2 group `cgroup_path` is, as [`Mounts::locate_v1`].
    pub fn locate_v2(&self, cgroup_path: &Path) -> Option<PathBuf> {
        locate(self.v2.iter().map(|m| (&*m.root, &*m.mount_point, m.read_only)), cgroup_path)
    }

    /// How this host has its cgroups.
    pub fn mode(&self) -> Mode {
        let is_controller = |name: &String| !name.starts_with("name=");
        let v1 = self.v1.iter().any(|mount| mount.controllers.iter().any(is_controller));
        match (v1, !self.v2.is_empty()) {
            (true, true) => Mode::Hybrid,
            (true, false) => Mode::V1,
            (false, true) => Mode::V2,
            (false, false) => Mode::None,
        }
    }

    fn v1_all(&self, controller: &str) -> impl Iterator<Item = &V1Mount> {
        self.v1.iter().filter(move |mount| mount.controllers.iter().any(|name| name == controller))
    }
}

/// Smaller is better; `min_by_key` keeps the first of equals. `/..` ranks after `/`: it shows more, but
/// the paths of this namespace do not resolve in it.
fn rank(root: &Path, read_only: bool) -> (usize, bool) {
    (root.components().count(), read_only)
}

/// The directory of `cgroup_path` in the best of `mounts` (root, mount point, read-only) that shows it.
fn locate<'a>(
    mounts: impl Iterator<Item = (&'a Path, &'a Path, bool)>,
    cgroup_path: &Path,
) -> Option<PathBuf> {
    mounts
        .filter_map(|(root, point, read_only)| {
            let dir = membership::resolve(root, point, cgroup_path)?;
            Some((rank(root, read_only), dir))
        })
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, dir)| dir)
}

/// A line of mountinfo, borrowed, escapes and all.
struct Line<'a> {
    id: u64,
    parent: u64,
    root: &'a [u8],
    mount_point: &'a [u8],
    options: &'a [u8],
    fs_type: &'a [u8],
    super_options: &'a [u8],
}

impl<'a> Line<'a> {
    /// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
    /// Exactly one blank between fields: the source may be empty.
    fn parse(line: &'a [u8]) -> Option<Line<'a>> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
        let _device = fields.next()?;
        let (root, mount_point, options) = (fields.next()?, fields.next()?, fields.next()?);
        fields.by_ref().find(|field| *field == b"-")?;
        let (fs_type, _source, super_options) = (fields.next()?, fields.next()?, fields.next()?);
        mount_point.starts_with(b"/").then_some(Line {
            id,
            parent,
            root,
            mount_point,
            options,
            fs_type,
            super_options,
        })
    }

    /// The mount point, unless its directory was removed: the kernel then appends `//deleted`.
    fn usable_point(&self) -> Option<PathBuf> {
        if self.mount_point.ends_with(b"//deleted") {
            return None;
        }
        octal::path(self.mount_point)
    }
}

/// The mounts as a tree by parent id, to look paths up in. Ids are unique in what the kernel prints; of
/// lines with an id seen before, only the first is in the tree, so that it has no cycle.
struct Tree<'a> {
    /// (parent's index, mount point, own index), sorted. The parent of those whose parent is not
    /// listed (the first one, or one outside of our chroot) is `TOP`.
    children: Vec<(usize, &'a [u8], usize)>,
    lines: &'a [Line<'a>],
}

const TOP: usize = usize::MAX;

impl<'a> Tree<'a> {
    fn new(lines: &'a [Line<'a>]) -> Tree<'a> {
        let mut ids: Vec<(u64, usize)> =
            lines.iter().enumerate().map(|(index, line)| (line.id, index)).collect();
        ids.sort_unstable();
        ids.dedup_by_key(|(id, _)| *id);
        let index_of = |id: u64| {
            let at = ids.binary_search_by_key(&id, |(id, _)| *id).ok()?;
            Some(ids[at].1)
        };
        let mut children: Vec<_> = ids
            .iter()
            .map(|&(_, index)| {
                let line = &lines[index];
                let parent = index_of(line.parent).filter(|parent| *parent != index);
                (parent.unwrap_or(TOP), line.mount_point, index)
            })
            .collect();
        children.sort_unstable();
        Tree { children, lines }
    }

    /// Whether looking up the mount point of `lines[index]` ends in that mount: walks down from the
    /// top as `path_lookup` does, into whatever is mounted on each directory on the way.
    fn reaches(&self, index: usize) -> bool {
        let target = self.lines[index].mount_point;
        let (mut mount, mut done) = (TOP, 0);
        'walk: loop {
            for end in prefix_ends(target).filter(|end| *end >= done) {
                if let Some(child) = self.mounted_on(mount, &target[..end]) {
                    (mount, done) = (child, end);
                    continue 'walk;
                }
            }
            return mount == index;
        }
    }

    /// The mount on directory `point` of `mount`; the latest if there are several.
    fn mounted_on(&self, mount: usize, point: &[u8]) -> Option<usize> {
        let after = self.children.partition_point(|child| (child.0, child.1) <= (mount, point));
        let child = self.children.get(after.checked_sub(1)?)?;
        ((child.0, child.1) == (mount, point)).then_some(child.2)
    }
}

/// Where the directories on the way to `path` end: `/`, `/a`, `/a/b` for `/a/b`.
fn prefix_ends(path: &[u8]) -> impl Iterator<Item = usize> {
    let root = std::iter::once(1);
    let inner = (1..path.len()).filter(|at| path[*at] == b'/');
    let whole = (path.len() > 1).then_some(path.len());
    root.chain(inner).chain(whole)
}

fn has_option(options: &[u8], option: &[u8]) -> bool {
    split_options(options).any(|found| found == option)
}

/// More than there are controllers (`CGROUP_SUBSYS_COUNT` is at most 16).
const MOST_CONTROLLERS: usize = 32;

/// Of the options of a v1 superblock, those that are controllers, and its name. Source:
/// `cgroup1_show_options()`. What is not known as an option is a controller: vendors add their own.
fn controllers(super_options: &[u8]) -> Vec<String> {
    split_options(super_options)
        .filter_map(|option| std::str::from_utf8(option).ok())
        .filter(|option| option.starts_with("name=") || is_controller(option))
        .take(MOST_CONTROLLERS)
        .map(str::to_string)
        .collect()
}

fn is_controller(option: &str) -> bool {
    const OPTIONS: [&str; 14] = [
        "rw",
        "ro",
        "sync",
        "dirsync",
        "mand",
        "lazytime",
        "noprefix",
        "xattr",
        "cpuset_v2_mode",
        "favordynmods",
        "clone_children",
        "seclabel",
        "none",
        "all",
    ];
    !option.is_empty()
        && !OPTIONS.contains(&option)
        && option.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Options are separated by commas; a quoted one (`context="a:b:c1,c2"`, SELinux) may hold some.
fn split_options(options: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    options.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    fn sample(name: &str) -> Mounts {
        Mounts::parse(&samples::read(&format!("mountinfo/{name}")))
    }

    fn point(mount: Option<&V1Mount>) -> &str {
        mount.unwrap().mount_point.to_str().unwrap()
    }

    #[test]
    fn this_machines_hierarchies_are_found_one_controller_each() {
        let mounts = Mounts::parse(&samples::read("proc/host-6.18/mountinfo"));
        assert_eq!(mounts.mode(), Mode::Hybrid);
        assert_eq!(point(mounts.v1("memory")), "/sys/fs/cgroup/memory");
        assert_eq!(point(mounts.v1("name=systemd")), "/sys/fs/cgroup/systemd");
        assert_eq!(mounts.v2().unwrap().mount_point, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!((mounts.v1.len(), mounts.skipped), (9, 0));
    }

    #[test]
    fn a_pure_v2_host_has_one_hierarchy() {
        let mounts = sample("v2-systemd");
        assert_eq!((mounts.mode(), mounts.v1.len()), (Mode::V2, 0));
        let v2 = mounts.v2().unwrap();
        assert_eq!(v2.mount_point, Path::new("/sys/fs/cgroup"));
        assert!(!v2.read_only);
    }

    #[test]
    fn co_mounted_controllers_share_a_mount() {
        let mounts = sample("v1-el7");
        assert_eq!(mounts.mode(), Mode::V1);
        assert_eq!(mounts.v1("cpu").unwrap().controllers, ["cpuacct", "cpu"]);
        assert_eq!(mounts.v1("cpu"), mounts.v1("cpuacct"));
        // xattr, release_agent and seclabel are options, not controllers.
        assert_eq!(mounts.v1("name=systemd").unwrap().controllers, ["name=systemd"]);
        assert_eq!(mounts.v1("memory").unwrap().controllers, ["memory"]);
        assert_eq!(mounts.v1("xattr"), None);
        assert_eq!(mounts.v1("seclabel"), None);
    }

    #[test]
    fn a_hybrid_debian_has_memory_in_v1_and_a_bare_v2() {
        let mounts = sample("hybrid-debian-11");
        assert_eq!(mounts.mode(), Mode::Hybrid);
        assert_eq!(point(mounts.v1("memory")), "/sys/fs/cgroup/memory");
        assert_eq!(mounts.v2().unwrap().mount_point, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mounts.v1("net_prio"), mounts.v1("net_cls"));
    }

    #[test]
    fn a_bind_mounted_hierarchy_shows_the_containers_group_at_its_root() {
        let mounts = sample("docker-v1");
        let memory = mounts.v1("memory").unwrap();
        assert!(memory.root.starts_with("/docker"));
        assert!(memory.read_only);
        let group = memory.root.join("worker");
        assert_eq!(
            mounts.locate_v1("memory", &group),
            Some(PathBuf::from("/sys/fs/cgroup/memory/worker"))
        );
        assert_eq!(mounts.locate_v1("memory", Path::new("/docker/other")), None);
    }

    #[test]
    fn a_private_cgroup_namespace_shows_its_own_group_as_the_root() {
        let mounts = sample("private-cgroupns-v2");
        assert_eq!(mounts.v2().unwrap().root, Path::new("/"));
        assert!(mounts.v2().unwrap().read_only);
        assert_eq!(mounts.locate_v2(Path::new("/")), Some("/sys/fs/cgroup".into()));
        assert_eq!(mounts.locate_v2(Path::new("/../other")), None);
    }

    #[test]
    fn an_inherited_mount_above_the_namespace_does_not_place_our_own_groups() {
        let mounts = sample("unshared-cgroupns-v1");
        assert_eq!(mounts.v1("freezer").unwrap().root, Path::new("/.."));
        assert_eq!(mounts.locate_v1("freezer", Path::new("/")), None);
        assert_eq!(
            mounts.locate_v1("freezer", Path::new("/../sub2")),
            Some("/sys/fs/cgroup/freezer/sub2".into())
        );
    }

    #[test]
    fn a_renamed_mount_point_with_blanks_is_decoded() {
        let mounts = sample("renamed");
        assert_eq!(point(mounts.v1("memory")), "/srv/my cgroups/mem\\ory");
        assert_eq!(mounts.mode(), Mode::V1);
    }

    #[test]
    fn a_mount_hidden_by_a_later_one_is_not_used() {
        let mounts = Mounts::parse(
            b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
              2 1 0:5 /old /mem rw - cgroup cgroup rw,memory\n\
              3 2 0:5 /new /mem rw - cgroup cgroup rw,memory\n",
        );
        assert_eq!(mounts.v1.len(), 1);
        assert_eq!(mounts.v1("memory").unwrap().root, Path::new("/new"));
    }

    #[test]
    fn a_mount_hidden_by_one_on_a_directory_above_is_not_used() {
        let below = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     2 1 0:4 / /cg rw - tmpfs tmpfs rw\n\
                     3 2 0:5 / /cg/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(Mounts::parse(below.as_bytes()).v1.len(), 1);
        for cover in ["9 2 0:9 / /cg rw - tmpfs tmpfs rw\n", "9 1 0:9 / / rw - tmpfs tmpfs rw\n"] {
            assert_eq!(Mounts::parse(format!("{below}{cover}").as_bytes()).v1.len(), 0, "{cover}");
        }
        // A directory that merely starts with the same letters covers nothing.
        let beside = "9 2 0:9 / /cg/mem rw - tmpfs tmpfs rw\n";
        assert_eq!(Mounts::parse(format!("{below}{beside}").as_bytes()).v1.len(), 1);
    }

    #[test]
    fn the_widest_mount_wins_then_a_writable_one_then_the_first() {
        let order = |lines: &[&str]| {
            let head = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n";
            let mounts = Mounts::parse(format!("{head}{}\n", lines.join("\n")).as_bytes());
            mounts.v1("memory").unwrap().mount_point.clone()
        };
        let narrow = "2 1 0:5 /a /narrow rw - cgroup cgroup rw,memory";
        let ro = "3 1 0:5 / /ro ro,nosuid - cgroup cgroup rw,memory";
        let super_ro = "4 1 0:5 / /super_ro rw - cgroup cgroup ro,memory";
        let rw = "5 1 0:5 / /rw rw shared:7 master:1 - cgroup cgroup rw,memory";
        let rw2 = "6 1 0:5 / /rw2 rw - cgroup cgroup rw,memory";
        assert_eq!(order(&[narrow, ro, super_ro, rw, rw2]), Path::new("/rw"));
        assert_eq!(order(&[narrow, ro, super_ro]), Path::new("/ro"));
        assert_eq!(order(&[rw2, rw]), Path::new("/rw2"));
        assert_eq!(order(&[narrow]), Path::new("/narrow"));
    }

    #[test]
    fn an_empty_source_and_quoted_commas_do_not_shift_the_fields() {
        let mounts = Mounts::parse(
            b"2 1 0:5 / /m rw - cgroup  rw,context=\"u:r:t:s0:c1,cpu\",memory,release_agent=/x\n",
        );
        assert_eq!(mounts.v1("memory").unwrap().controllers, ["memory"]);
    }

    #[test]
    fn a_removed_mount_point_and_lines_that_do_not_parse_are_counted() {
        let mounts = Mounts::parse(
            b"2 1 0:5 / /m//deleted rw - cgroup cgroup rw,memory\n\
              x 1 0:5 / /m rw - cgroup cgroup rw,memory\n\
              3 1 0:5 / /m rw cgroup cgroup rw,memory\n\
              4 1 0:5 / m rw - cgroup cgroup rw,memory\n\
              5 1 0:5 / /m rw - cgroup2\n",
        );
        assert_eq!((mounts.v1.len(), mounts.v2.len(), mounts.skipped), (0, 0, 5));
        assert_eq!(mounts.mode(), Mode::None);
    }

    #[test]
    fn a_name_alone_makes_no_v1_host() {
        let mounts = Mounts::parse(
            b"2 1 0:5 / /s rw - cgroup cgroup rw,xattr,name=systemd\n\
              3 1 0:6 / /u rw - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(mounts.mode(), Mode::V2);
    }

    #[test]
    fn ids_that_repeat_or_form_a_circle_end_the_walk() {
        let mounts = Mounts::parse(
            b"1 9 0:1 / / rw - cgroup cgroup rw,a1\n2 1 0:1 / / rw - cgroup cgroup rw,a2\n\
              1 2 0:1 / / rw - cgroup cgroup rw,a3\n5 6 0:1 / / rw - cgroup cgroup rw,a4\n\
              6 5 0:1 / / rw - cgroup cgroup rw,a5\n7 7 0:1 / /x rw - cgroup cgroup rw,a6\n",
        );
        assert_eq!(mounts.v1.len(), 1);
        assert!(mounts.v1("a2").is_some());
    }

    #[test]
    fn thirty_thousand_mounts_parse_in_a_moment() {
        let mut content = String::from("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n");
        for id in 2..30_000 {
            let line =
                format!("{id} 1 0:5 / /run/c{id}/rootfs/sys/m rw - cgroup cgroup rw,memory\n");
            content.push_str(&line);
        }
        let started = std::time::Instant::now();
        assert_eq!(Mounts::parse(content.as_bytes()).v1.len(), 29_998);
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    fn held(mounts: &Mounts) -> usize {
        let v1: usize = mounts
            .v1
            .iter()
            .map(|m| {
                m.root.as_os_str().len()
                    + m.mount_point.as_os_str().len()
                    + m.controllers.iter().map(String::len).sum::<usize>()
            })
            .sum();
        let v2: usize = mounts
            .v2
            .iter()
            .map(|m| m.root.as_os_str().len() + m.mount_point.as_os_str().len())
            .sum();
        v1 + v2
    }

    fn check(content: &[u8]) -> std::result::Result<(), TestCaseError> {
        let mounts = Mounts::parse(content);
        let count = mounts.v1.len() + mounts.v2.len() + mounts.skipped;
        prop_assert!(count <= lines(content).count());
        prop_assert!(held(&mounts) <= content.len());
        prop_assert!(mounts.v1.iter().all(|m| m.controllers.len() <= MOST_CONTROLLERS));
        let points = mounts.v1.iter().map(|m| &m.mount_point);
        for point in points.chain(mounts.v2.iter().map(|m| &m.mount_point)) {
            prop_assert!(point.is_absolute());
        }
        let _ = (mounts.v1("memory"), mounts.v2(), mounts.mode());
        let _ = mounts.locate_v1("memory", Path::new("/a"));
        Ok(())
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..800)) {
            check(&content)?;
        }

        #[test]
        fn any_small_tree_of_mounts_ends_the_walk(
            rows in prop::collection::vec((0u8..8, 0u8..8, "(/|(/[ab]){1,3})"), 0..12),
        ) {
            let content: String = rows
                .iter()
                .map(|(id, up, at)| format!("{id} {up} 0:1 / {at} rw - cgroup c rw,memory\n"))
                .collect();
            check(content.as_bytes())?;
            // One path shows one mount.
            let mut points: Vec<_> =
                Mounts::parse(content.as_bytes()).v1.into_iter().map(|m| m.mount_point).collect();
            let count = points.len();
            points.sort();
            points.dedup();
            prop_assert_eq!(points.len(), count);
        }

        #[test]
        fn mutated_samples_never_panic(
            content in prop::sample::select(samples::names("mountinfo"))
                .prop_flat_map(|name| samples::mutated(&name)),
        ) {
            check(&content)?;
        }
    }
}

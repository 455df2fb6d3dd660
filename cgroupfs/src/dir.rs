//! A cgroup's directory on the kernel's file system, held by a descriptor.
//!
//! Identity is the directory's inode together with the path: a group of the same name made later is
//! another group. Paths are resolved with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//! RESOLVE_NO_MAGICLINKS)` from the mount point, so that neither `..` nor a link leads out of the
//! hierarchy; before Linux 5.6 (ENOSYS) the path is walked component by component with `O_NOFOLLOW`.

use crate::error::{Error, Op, Result};
use crate::files::{Access, ControlDir, ControlFile, Knob};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, faccessat, unlinkat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A cgroup, open.
#[derive(Debug)]
pub struct Cgroup {
    fd: OwnedFd,
    path: PathBuf,
    inode: u64,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC).union(OFlag::O_RDONLY);

impl Cgroup {
    /// Opens the group whose directory is `path`, as [`Cgroup::open`] does; [`Error::BadName`] where that is not beneath
    /// `mount_point`.
    pub(crate) fn open_absolute(mount_point: &Path, path: &Path) -> Result<Cgroup> {
        let relative = path.strip_prefix(mount_point).map_err(|_| Error::BadName {
            name: path.display().to_string(),
            what: "path",
            why: format!("it is not under {}", mount_point.display()),
        })?;
        Cgroup::open(mount_point, relative)
    }

    /// Opens the group at `relative` beneath the hierarchy mounted at `mount_point`.
    ///
    /// [`Error::BadName`] for a path with `..`; [`Error::Vanished`] where there is no such group;
    /// [`Error::Refused`] with ELOOP or EXDEV where a link or the path would lead out.
    pub fn open(mount_point: &Path, relative: &Path) -> Result<Cgroup> {
        let mount = open(mount_point, DIRECTORY, Mode::empty())
            .map_err(|errno| Error::refused(Op::Open, mount_point, errno))?;
        let relative = relative.strip_prefix("/").unwrap_or(relative);
        let path = mount_point.join(relative);
        if relative
            .components()
            .any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return Err(Error::BadName {
                name: relative.display().to_string(),
                what: "path",
                why: "'..' would lead out of the hierarchy".into(),
            });
        }
        let fd = if relative.as_os_str().is_empty() {
            mount
        } else {
            open_beneath(mount.as_fd(), relative).map_err(|errno| match errno {
                Errno::ENOENT | Errno::ENODEV => Error::Vanished { path: path.clone() },
                errno => Error::refused(Op::Open, &path, errno),
            })?
        };
        Cgroup::from_fd(fd, path)
    }

    fn from_fd(fd: OwnedFd, path: PathBuf) -> Result<Cgroup> {
        let stat = fstat(&fd).map_err(|errno| Error::refused(Op::Open, &path, errno))?;
        Ok(Cgroup { fd, path, inode: stat.st_ino })
    }

    /// The inode of the directory: with the path and the boot id it names this group and no other.
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// The directory descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a control file as a plain descriptor, for registering events on it.
    pub fn open_fd(&self, file: &str, access: Access) -> Result<OwnedFd> {
        let flags = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::Write => OFlag::O_WRONLY,
            Access::ReadWrite => OFlag::O_RDWR,
        };
        openat(&self.fd, file, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(|errno| self.error(Op::Open, file, None, errno))
    }

    /// Opens the child group `name`.
    pub fn child(&self, name: &str) -> Result<Cgroup> {
        check_name(name)?;
        let path = self.path.join(name);
        let fd = open_beneath(self.fd.as_fd(), Path::new(name)).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENODEV => Error::Vanished { path: path.clone() },
            errno => Error::refused(Op::Open, &path, errno),
        })?;
        Cgroup::from_fd(fd, path)
    }

    /// Makes the child group `name` and opens it.
    pub fn create_child(&self, name: &str) -> Result<Cgroup> {
        check_name(name)?;
        nix::sys::stat::mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)).map_err(
            |errno| {
                if errno == Errno::ENOENT || errno == Errno::ENODEV {
                    return Error::Vanished { path: self.path.clone() };
                }
                Error::refused(Op::Create, self.path.join(name), errno)
            },
        )?;
        self.child(name)
    }

    /// Removes the child group `name`; one that is gone already is fine. A process that has just
    /// exited, or an offline css still being torn down, keeps the directory busy for an instant, so
    /// EBUSY is retried with doubling pauses (1 ms to 50 ms) until `patience` is over.
    pub fn remove_child(&self, name: &str, patience: Duration) -> Result<()> {
        check_name(name)?;
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EBUSY) if start.elapsed() + pause <= patience => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(errno) => {
                    return Err(Error::refused(Op::Remove, self.path.join(name), errno));
                }
            }
        }
    }

    /// The processes in this group (not in its children), by pid in the reader's pid namespace.
    pub fn procs(self: &Arc<Cgroup>) -> Result<Vec<i32>> {
        let dir: Arc<dyn ControlDir> = self.clone();
        let content = Knob::open(&dir, "cgroup.procs", Access::Read)?.read()?;
        Ok(content
            .split(|byte| *byte == b'\n')
            .filter_map(crate::files::parse_u64)
            .filter_map(|pid| i32::try_from(pid).ok())
            .collect())
    }

    /// The names of the child groups.
    pub fn children(&self) -> Result<Vec<String>> {
        let error = |errno| self.error(Op::Read, "", None, errno);
        let mut dir =
            nix::dir::Dir::openat(&self.fd, ".", DIRECTORY, Mode::empty()).map_err(error)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(error)?;
            if entry.file_type() != Some(nix::dir::Type::Directory) {
                continue;
            }
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        // A removed directory lists as an empty one.
        if names.is_empty() && self.is_gone() {
            return Err(Error::Vanished { path: self.path.clone() });
        }
        Ok(names)
    }
}

impl ControlDir for Cgroup {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, file: &str, access: Access) -> Result<Box<dyn ControlFile>> {
        Ok(Box::new(KernelFile(self.open_fd(file, access)?)))
    }

    fn has(&self, file: &str) -> bool {
        faccessat(&self.fd, file, nix::unistd::AccessFlags::F_OK, AtFlags::empty()).is_ok()
    }

    fn is_gone(&self) -> bool {
        !self.has("cgroup.procs")
    }
}

/// A control file of the kernel's, open.
#[derive(Debug)]
pub struct KernelFile(OwnedFd);

impl From<OwnedFd> for KernelFile {
    fn from(fd: OwnedFd) -> KernelFile {
        KernelFile(fd)
    }
}

impl ControlFile for KernelFile {
    fn read(&self, buf: &mut [u8]) -> std::result::Result<usize, Errno> {
        let mut filled = 0;
        while filled < buf.len() {
            let offset = i64::try_from(filled).map_err(|_| Errno::EFBIG)?;
            match nix::sys::uio::pread(&self.0, &mut buf[filled..], offset)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(filled)
    }

    fn read_line(&self, buf: &mut [u8]) -> std::result::Result<usize, Errno> {
        nix::sys::uio::pread(&self.0, buf, 0)
    }

    fn write(&self, value: &[u8]) -> std::result::Result<(), Errno> {
        // At offset 0: kernfs ignores the offset of v1 files, but appending is not what is meant.
        nix::sys::uio::pwrite(&self.0, value, 0).map(|_| ())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

/// Whether `name` can be a cgroup's directory name: one path component, printable, and not a name the
/// kernel keeps for control files (`cgroup.`, `memory.` and so on would collide with them).
pub fn check_name(name: &str) -> Result<()> {
    let bad = |why: &str| {
        Err(Error::BadName {
            name: name.escape_default().take(80).collect(),
            what: "name",
            why: why.to_owned(),
        })
    };
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.contains('/') {
        return bad("it contains '/'; give one directory name, not a path");
    }
    if name == "." || name == ".." {
        return bad("it is a reference to a directory, not a name");
    }
    if name.len() > 200 {
        return bad("it is longer than 200 bytes");
    }
    if name.chars().any(char::is_control) {
        return bad("it contains control characters");
    }
    if ["cgroup.", "memory.", "tasks", "notify_on_release", "release_agent"]
        .iter()
        .any(|taken| name.starts_with(taken))
    {
        return bad("the kernel has control files of that name");
    }
    Ok(())
}

/// Opens the directory at `relative` beneath `dir`, by no link and no `..` (the module's documentation).
/// Does not allocate for paths under 1024 bytes.
pub fn open_beneath(dir: BorrowedFd<'_>, relative: &Path) -> std::result::Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(DIRECTORY).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    loop {
        match openat2(dir, relative, how) {
            // EAGAIN: a rename raced with the resolution (openat2(2)).
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Before Linux 5.6, or refused by a seccomp filter that does not know the call.
            Err(Errno::ENOSYS | Errno::EPERM) => return walk_beneath(dir, relative),
            result => return result,
        }
    }
}

/// Whether this kernel (and the seccomp filter we may be under) has `openat2`.
pub fn has_openat2() -> bool {
    let how = OpenHow::new().flags(DIRECTORY);
    openat2(nix::fcntl::AT_FDCWD, ".", how).is_ok()
}

fn walk_beneath(dir: BorrowedFd<'_>, relative: &Path) -> std::result::Result<OwnedFd, Errno> {
    let mut current = openat(dir, ".", DIRECTORY, Mode::empty())?;
    for part in relative.components() {
        let name: &OsStr = match part {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            _ => return Err(Errno::EXDEV),
        };
        current = openat(&current, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_or_control_files_are_refused() {
        for name in ["", "a/b", "..", ".", "x\n", "memory.stat", &"x".repeat(201)] {
            assert!(matches!(check_name(name), Err(Error::BadName { .. })), "{name:?}");
        }
        for name in ["web-1", "a..b", "job 7", "ünïcode"] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn a_link_never_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/out")).unwrap();
        let root = open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        for resolve in [open_beneath, walk_beneath] {
            assert!(resolve(root.as_fd(), Path::new("a/b")).is_ok());
            for path in ["a/out", "a/out/etc", "../x"] {
                assert!(resolve(root.as_fd(), Path::new(path)).is_err(), "{path}");
            }
        }
        assert!(matches!(
            Cgroup::open(dir.path(), Path::new("a/../..")),
            Err(Error::BadName { .. })
        ));
        assert!(matches!(
            Cgroup::open(dir.path(), Path::new("nothing")),
            Err(Error::Vanished { .. })
        ));
    }
}

//! The control files that a restore needs: the kernel's, or a model's.

use super::restore::FREEZER_CHILD;
use super::sys;
use crate::journal::Place;
use cgroupfs::dir::{KernelFile, open_beneath};
use cgroupfs::files::ControlFile;
use cgroupfs::freezer::Freezer;
use cgroupfs::{Error, MemoryHierarchy, Op, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Groups in groups that are looked at beneath a container.
const MOST_DEEP: usize = 32;

/// Where the groups of a journal are.
///
/// Errors: ESTALE where at that path there is another group by now, ENOENT where there is none.
pub trait Groups {
    /// A control file.
    type File: ControlFile;
    /// Opens a file of a container's group in the memory hierarchy, for reading and writing.
    fn memory(&self, place: &Place, file: &str) -> std::result::Result<Self::File, Errno>;
    /// Opens a file of our group in the freezer hierarchy: the one at `path` if its inode is known, else
    /// [`FREEZER_CHILD`] under the one at `path`.
    fn frozen_child(
        &self,
        path: &str,
        inode: Option<u64>,
        file: &str,
    ) -> std::result::Result<Self::File, Errno>;
    /// Opens a file of each group beneath a container's in the memory hierarchy whose inode is higher than `inode`, for
    /// reading and writing; `each` sees it before the groups beneath that one are looked for.
    fn beneath(
        &self,
        _place: &Place,
        _inode: u64,
        _file: &str,
        _each: &mut dyn FnMut(Self::File) -> std::result::Result<(), Errno>,
    ) -> std::result::Result<(), Errno> {
        Ok(())
    }
    /// Removes our group at `path` in the freezer hierarchy, if it is the one with this inode and nobody is in it.
    fn remove_frozen_child(&self, _path: &str, _inode: u64) {}
}

/// This host's hierarchies, held open.
#[derive(Debug)]
pub struct Kernel {
    memory: OwnedFd,
    freezer: Option<OwnedFd>,
}

impl Kernel {
    /// Finds them.
    pub fn find() -> Result<Kernel> {
        let hierarchy = MemoryHierarchy::find()?;
        let freezer = Freezer::find().ok().and_then(|freezer| hold(&freezer.mount_point).ok());
        Ok(Kernel { memory: hold(&hierarchy.mount_point)?, freezer })
    }

    /// Another of the same, on descriptors of its own.
    pub fn try_clone(&self) -> std::io::Result<Kernel> {
        Ok(Kernel {
            memory: self.memory.try_clone()?,
            freezer: self.freezer.as_ref().map(OwnedFd::try_clone).transpose()?,
        })
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.memory), self.freezer.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }
}

fn hold(mount_point: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    open(mount_point, flags, Mode::empty())
        .map_err(|errno| Error::refused(Op::Open, mount_point, errno))
}

fn group(
    mount: BorrowedFd<'_>,
    path: &str,
    inode: Option<u64>,
) -> std::result::Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let dir = open_beneath(mount, Path::new(path))?;
    if inode.is_some_and(|inode| fstat(&dir).is_ok_and(|stat| stat.st_ino != inode)) {
        return Err(Errno::ESTALE);
    }
    Ok(dir)
}

fn control(dir: &OwnedFd, file: &str) -> std::result::Result<KernelFile, Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    openat(dir, file, flags, Mode::empty()).map(KernelFile::from)
}

impl Groups for Kernel {
    type File = KernelFile;

    fn memory(&self, place: &Place, file: &str) -> std::result::Result<KernelFile, Errno> {
        control(&group(self.memory.as_fd(), place.path.as_str(), Some(place.inode))?, file)
    }

    fn beneath(
        &self,
        place: &Place,
        inode: u64,
        file: &str,
        each: &mut dyn FnMut(KernelFile) -> std::result::Result<(), Errno>,
    ) -> std::result::Result<(), Errno> {
        let dir = group(self.memory.as_fd(), place.path.as_str(), Some(place.inode))?;
        sys::walk(&dir, MOST_DEEP, &mut |child| {
            if fstat(child)?.st_ino > inode { each(control(child, file)?) } else { Ok(()) }
        })
    }

    fn frozen_child(
        &self,
        path: &str,
        inode: Option<u64>,
        file: &str,
    ) -> std::result::Result<KernelFile, Errno> {
        let mount = self.freezer.as_ref().ok_or(Errno::ENOENT)?;
        let dir = group(mount.as_fd(), path, inode)?;
        match inode {
            Some(_) => control(&dir, file),
            None => control(&open_beneath(dir.as_fd(), Path::new(FREEZER_CHILD))?, file),
        }
    }

    fn remove_frozen_child(&self, path: &str, inode: u64) {
        let Some(mount) = &self.freezer else { return };
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        // The container's own group is not ours to remove, whatever the journal says.
        if !name.starts_with(FREEZER_CHILD) || group(mount.as_fd(), path, Some(inode)).is_err() {
            return;
        }
        if let Ok(above) = group(mount.as_fd(), above, None) {
            let _ = unlinkat(&above, name, UnlinkatFlags::RemoveDir);
        }
    }
}

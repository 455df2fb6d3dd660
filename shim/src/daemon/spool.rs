//! The spool: requests of hooks that found no daemon, a file for each container, put there by rename.
//!
//! Read at start and when a file comes. Each is taken once and removed, whatever comes of it; what is no
//! request of ours is refused by its name.

use crate::api::message::{self, Request};
use crate::api::{MOST_REQUEST, SPOOL};
use crate::oci::spool::escape;
use inotify::{Inotify, WatchMask};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Files taken at a time: the loop has other work.
const MOST_A_TURN: usize = 256;

/// The file that is being read: one that a daemon died over is read again.
const TAKEN: &str = ".taken";

/// The directory, watched.
pub(super) struct Spool {
    path: PathBuf,
    dir: OwnedFd,
    inotify: Inotify,
}

impl Spool {
    /// Makes it if need be, for root alone.
    pub(super) fn open(run_dir: &Path) -> io::Result<Spool> {
        let path = run_dir.join(SPOOL);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = open(&path, flags, Mode::empty())?;
        let inotify = Inotify::init()?;
        inotify.watches().add(&path, WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE)?;
        Ok(Spool { path, dir, inotify })
    }

    /// Readable when a file came.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Takes the requests that are there; true if there may be more.
    pub(super) fn take(&mut self, requests: &mut Vec<Request>) -> bool {
        let mut buffer = [0; 4096];
        while self.inotify.read_events(&mut buffer).is_ok_and(|events| events.count() > 0) {}
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => {
                log::warn!("cannot read {}: {error}", self.path.display());
                return false;
            }
        };
        if fstatat(&self.dir, TAKEN, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
            self.take_one(None, requests);
        }
        let mut taken = 0;
        for entry in entries.flatten() {
            let name = entry.file_name();
            // One that is not ready yet, or a directory, which we could not remove: let be.
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if taken >= MOST_A_TURN {
                return true;
            }
            taken += 1;
            // Out of the way first: a newer request for that container may take its place meanwhile.
            let file = format!("{stem}.json");
            match renameat(&self.dir, file.as_str(), &self.dir, TAKEN) {
                Ok(()) => self.take_one(Some(stem), requests),
                Err(Errno::ENOENT) => {}
                Err(errno) => log::warn!("cannot take {}: {errno}", self.path.join(file).display()),
            }
        }
        false
    }

    fn take_one(&self, stem: Option<&str>, requests: &mut Vec<Request>) {
        match self.read(stem) {
            Ok(request) => requests.push(request),
            Err(why) => {
                let shown: String = stem.unwrap_or(TAKEN).escape_default().take(100).collect();
                log::warn!("spool file {shown}.json is refused: {why}");
            }
        }
        if let Err(errno) = unlinkat(&self.dir, TAKEN, UnlinkatFlags::NoRemoveDir) {
            log::warn!("cannot remove {}: {errno}", self.path.join(TAKEN).display());
        }
    }

    fn read(&self, stem: Option<&str>) -> Result<Request, String> {
        // Neither a link nor a device is followed or waited for.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, TAKEN, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ELOOP => "it is a symbolic link".to_owned(),
            errno => errno.to_string(),
        })?;
        let found = fstat(&file).map_err(|errno| errno.to_string())?;
        if found.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err("it is not a regular file".into());
        }
        if found.st_uid != 0 && found.st_uid != nix::unistd::geteuid().as_raw() {
            return Err(format!("it is owned by uid {}", found.st_uid));
        }
        let mut content = Vec::new();
        File::from(file)
            .take(MOST_REQUEST as u64 + 1)
            .read_to_end(&mut content)
            .map_err(|error| error.to_string())?;
        if content.len() > MOST_REQUEST {
            return Err(format!("it is longer than {MOST_REQUEST} bytes"));
        }
        let request = message::parse(&content).map_err(|error| error.to_string())?;
        let id = match &request {
            Request::Register(register) => &register.id,
            Request::Release(release) => &release.id,
            _ => return Err("it is neither a registration nor a release".into()),
        };
        if stem.is_some_and(|stem| escape(id) != stem) {
            return Err("its name is not that of the container in it".into());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn whole_requests_are_taken_once_and_what_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path()).unwrap();
        let at = |name: &str| dir.path().join(SPOOL).join(name);
        let release = |id: &str| format!("{{\"schema\":1,\"op\":\"release\",\"id\":\"{id}\"}}");
        std::fs::write(at("a%2Bb.json"), release("a+b")).unwrap();
        std::fs::write(at("other.json"), release("c")).unwrap();
        std::fs::write(at("list.json"), r#"{"schema":1,"op":"list"}"#).unwrap();
        std::fs::write(at("long.json"), " ".repeat(MOST_REQUEST + 1)).unwrap();
        std::fs::write(at("empty.json"), "").unwrap();
        std::fs::write(at(".tmp-1"), "half of it").unwrap();
        symlink("/etc/passwd", at("link.json")).unwrap();
        nix::unistd::mkfifo(&at("fifo.json"), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(at("dir.json")).unwrap();
        // What a daemon died over.
        std::fs::write(at(".taken"), release("x")).unwrap();
        let mut requests = Vec::new();
        assert!(!spool.take(&mut requests));
        assert_eq!(requests.len(), 2);
        assert!(matches!(&requests.remove(0), Request::Release(taken) if taken.id == "x"));
        let Request::Release(only) = &requests[0] else { panic!("{requests:?}") };
        assert_eq!((requests.len(), only.id.as_str()), (1, "a+b"));
        let mut left: Vec<_> =
            at("").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".tmp-1", "dir.json"]);
        assert!(Path::new("/etc/passwd").exists());
        requests.clear();
        spool.take(&mut requests);
        assert!(requests.is_empty());
    }

    #[test]
    fn a_full_spool_is_taken_piece_by_piece() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path()).unwrap();
        for n in 0..MOST_A_TURN + 10 {
            let line = format!("{{\"schema\":1,\"op\":\"release\",\"id\":\"c{n}\"}}");
            std::fs::write(dir.path().join(SPOOL).join(format!("c{n}.json")), line).unwrap();
        }
        let mut requests = Vec::new();
        assert!(spool.take(&mut requests));
        assert!(!spool.take(&mut requests));
        assert_eq!(requests.len(), MOST_A_TURN + 10);
    }

    #[test]
    fn ids_become_file_names_and_no_others() {
        assert_eq!(escape("3f2a-web_1.x"), "3f2a-web_1.x");
        assert_eq!(escape(".."), "..");
        assert_eq!(escape("a/b c"), "a%2Fb%20c");
        assert_eq!(escape("é"), "%C3%A9");
    }
}

//! The task of a claim, on a real kernel: this program, started again. It takes orders from standard
//! input and answers on standard output, a line each.

use crate::{Filled, Kind};
use cgroupfs::Bytes;
use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MlockAllFlags, mlockall};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

/// Set in the environment of the program when it is to be a task.
pub(super) const ENVIRONMENT: &str = "CGSHIM_CONFORMANCE_TASK";

/// What is read or written at once: a multiple of a page, and what a pipe takes.
const CHUNK: usize = 64 << 10;
const PIPE: usize = 1 << 20;

/// Is a task if the environment says so, and does not come back then. To be called first in `main`.
pub fn be_a_task() {
    if std::env::var_os(ENVIRONMENT).is_none() {
        return;
    }
    let mut task = Holding::default();
    // What the first answer needs is there before the limit is tight.
    task.buffer = vec![1; CHUNK];
    let _ = write!(std::io::sink(), "{}", answer(Filled::Refused(Bytes(1), Errno::ENOMEM)));
    let mut output = std::io::stdout();
    for order in std::io::stdin().lines() {
        let Ok(order) = order else { break };
        let came = task
            .perform(&order)
            .unwrap_or_else(|(done, errno)| Filled::Refused(Bytes(done as u64), errno));
        if writeln!(output, "{}", answer(came)).and_then(|()| output.flush()).is_err() {
            break;
        }
    }
    std::process::exit(0);
}

/// An order as [`be_a_task`] takes it: kind, size, and for files where in which one.
pub(super) fn order(kind: Kind, size: Bytes, offset: u64, path: &str) -> String {
    format!("{kind:?} {} {offset} {path}", size.0)
}

/// The order to give all anonymous memory back.
pub(super) const FREE: &str = "Free 0 0 -";

fn answer(came: Filled) -> String {
    match came {
        Filled::Refused(done, errno) => format!("refused {} {}", done.0, errno as i32),
        _ => "all".into(),
    }
}

/// What an answer says; `None` for anything else.
pub(super) fn parse_answer(line: &str) -> Option<Filled> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["all"] => Some(Filled::All),
        ["refused", done, errno] => {
            let errno = Errno::from_raw(errno.parse().ok()?);
            Some(Filled::Refused(Bytes(done.parse().ok()?), errno))
        }
        _ => None,
    }
}

#[derive(Default)]
struct Holding {
    buffer: Vec<u8>,
    anon: Vec<Vec<u8>>,
    files: Vec<File>,
    pipes: Vec<(OwnedFd, OwnedFd)>,
}

/// So many bytes, and then an errno.
type Short = (usize, Errno);

impl Holding {
    fn perform(&mut self, order: &str) -> Result<Filled, Short> {
        let words: Vec<&str> = order.splitn(4, ' ').collect();
        let (Some(kind), Some(path)) = (words.first(), words.get(3)) else {
            return Err((0, Errno::EINVAL));
        };
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok());
        let (Some(size), Some(offset)) = (number(1), number(2)) else {
            return Err((0, Errno::EINVAL));
        };
        let size = usize::try_from(size).map_err(|_| (0, Errno::EFBIG))?;
        match *kind {
            "Anon" => self.anon.push(vec![1; size]),
            "Mlocked" => {
                mlockall(MlockAllFlags::MCL_FUTURE).map_err(|errno| (0, errno))?;
                self.anon.push(vec![1; size]);
            }
            "Copied" => self.copied(size)?,
            "File" => self.file(size, offset, path)?,
            "Dirty" => self.dirty(size, offset, path)?,
            "Shmem" => self.shmem(size)?,
            "Kernel" => self.kernel(size)?,
            "Free" => self.anon.clear(),
            _ => return Err((0, Errno::EINVAL)),
        }
        Ok(Filled::All)
    }

    /// Zeroes read into pages that nobody has touched.
    fn copied(&mut self, size: usize) -> Result<(), Short> {
        let mut zero = File::open("/dev/zero").map_err(|error| (0, errno(&error)))?;
        self.anon.push(vec![0; size]);
        let Some(fresh) = self.anon.last_mut() else { return Ok(()) };
        let mut done = 0;
        while done < size {
            let end = (done + CHUNK).min(size);
            done += zero.read(&mut fresh[done..end]).map_err(|error| (done, errno(&error)))?;
        }
        Ok(())
    }

    fn file(&mut self, size: usize, offset: u64, path: &str) -> Result<(), Short> {
        let mut file = File::open(path).map_err(|error| (0, errno(&error)))?;
        // No read-ahead: it would charge more than is read.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
        file.seek(SeekFrom::Start(offset)).map_err(|error| (0, errno(&error)))?;
        let mut done = 0;
        while done < size {
            let want = CHUNK.min(size - done);
            match file.read(&mut self.buffer[..want]).map_err(|error| (done, errno(&error)))? {
                0 => return Err((done, Errno::ENODATA)),
                n => done += n,
            }
        }
        Ok(())
    }

    fn dirty(&mut self, size: usize, offset: u64, path: &str) -> Result<(), Short> {
        let mut file =
            OpenOptions::new().write(true).open(path).map_err(|error| (0, errno(&error)))?;
        file.seek(SeekFrom::Start(offset)).map_err(|error| (0, errno(&error)))?;
        self.write_to(&mut file, size)
    }

    fn shmem(&mut self, size: usize) -> Result<(), Short> {
        let file = memfd_create("cgshim", MFdFlags::MFD_CLOEXEC).map_err(|errno| (0, errno))?;
        let mut file = File::from(file);
        let written = self.write_to(&mut file, size);
        self.files.push(file);
        written
    }

    fn write_to(&self, file: &mut File, size: usize) -> Result<(), Short> {
        let mut done = 0;
        while done < size {
            let want = CHUNK.min(size - done);
            done += file.write(&self.buffer[..want]).map_err(|error| (done, errno(&error)))?;
        }
        Ok(())
    }

    /// Pipes of 1 MiB, each filled.
    fn kernel(&mut self, size: usize) -> Result<(), Short> {
        let mut done = 0;
        while done < size {
            let (reader, writer) =
                nix::unistd::pipe2(OFlag::O_NONBLOCK).map_err(|errno| (done, errno))?;
            let enlarge = nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE as i32);
            nix::fcntl::fcntl(&writer, enlarge).map_err(|errno| (done, errno))?;
            let mut filled = 0;
            while filled < PIPE && done < size {
                match nix::unistd::write(&writer, &self.buffer) {
                    Ok(n) => (filled, done) = (filled + n, done + n),
                    Err(Errno::EAGAIN) => break,
                    Err(errno) => return Err((done, errno)),
                }
            }
            self.pipes.push((reader, writer));
        }
        Ok(())
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

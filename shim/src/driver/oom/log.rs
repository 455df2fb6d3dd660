//! Who was killed: the kernel log, else the `oom:mark_victim` tracepoint.

use crate::core::oom::From;
use cgroupfs::kmsg::oom::{Killed, Lines, mark_victim};
use cgroupfs::kmsg::{Kmsg, Read};
use cgroupfs::{Error, Op, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Records read between two looks at everything else: a flood must not keep the thread from them.
const MOST_AT_ONCE: usize = 512;

/// Either.
pub(super) enum Log {
    /// The log.
    Kmsg(Kmsg, Lines),
    /// The tracepoint.
    Trace(Trace),
}

/// What reading brought.
#[derive(Debug, Default)]
pub(super) struct Brought {
    pub(super) kills: Vec<Killed>,
    /// Lines were lost.
    pub(super) lost: bool,
    /// There is more.
    pub(super) more: bool,
}

impl Log {
    pub(super) fn kmsg(path: &Path) -> Result<Log> {
        Ok(Log::Kmsg(Kmsg::open_at(path)?, Lines::default()))
    }

    pub(super) fn trace(places: &[PathBuf]) -> Result<Log> {
        let mut refused =
            Error::Absent { path: "events/oom/mark_victim".into(), why: "tracefs is not mounted" };
        for place in places {
            match Trace::start(place) {
                Ok(trace) => return Ok(Log::Trace(trace)),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    pub(super) fn from(&self) -> From {
        match self {
            Log::Kmsg(..) => From::KernelLog,
            Log::Trace(_) => From::Tracepoint,
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Log::Kmsg(kmsg, _) => kmsg.as_fd(),
            Log::Trace(trace) => trace.pipe.as_fd(),
        }
    }

    /// Reads what is there.
    pub(super) fn read(&mut self) -> Result<Brought> {
        let mut brought = Brought::default();
        match self {
            Log::Kmsg(kmsg, lines) => {
                for _ in 0..MOST_AT_ONCE {
                    match kmsg.read()? {
                        Read::Record(record) => brought.kills.extend(lines.line(&record.text)),
                        Read::Other => {}
                        Read::Lost => {
                            lines.lost();
                            brought.lost = true;
                        }
                        Read::Nothing => return Ok(brought),
                    }
                }
                brought.more = true;
            }
            Log::Trace(trace) => trace.read(&mut brought)?,
        }
        Ok(brought)
    }
}

/// An instance of our own, removed when dropped: nobody else's tracing is touched.
pub(super) struct Trace {
    instance: PathBuf,
    pipe: OwnedFd,
    rest: Vec<u8>,
}

impl Trace {
    fn start(tracefs: &Path) -> Result<Trace> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error: std::io::Error| {
                Error::refused(Op::Write, path, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
            }
        };
        let instance = tracefs.join("instances").join(format!("cgshim-{}", std::process::id()));
        // Of a process that had our pid before.
        let _ = std::fs::remove_dir(&instance);
        std::fs::create_dir(&instance).map_err(failed(&instance))?;
        let remove = Remove(&instance);
        // The least there is; and readers are woken for every event, not for half a buffer (5.0+).
        let _ = std::fs::write(instance.join("buffer_size_kb"), "16");
        let _ = std::fs::write(instance.join("buffer_percent"), "0");
        let enable = instance.join("events/oom/mark_victim/enable");
        std::fs::write(&enable, "1").map_err(failed(&enable))?;
        let path = instance.join("trace_pipe");
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let pipe = open(&path, flags, Mode::empty())
            .map_err(|errno| Error::refused(Op::Open, path, errno))?;
        std::mem::forget(remove);
        Ok(Trace { instance, pipe, rest: Vec::new() })
    }

    fn read(&mut self, brought: &mut Brought) -> Result<()> {
        let mut buf = [0; 4096];
        for _ in 0..16 {
            match nix::unistd::read(&self.pipe, &mut buf) {
                Ok(0) | Err(Errno::EAGAIN) => return Ok(()),
                Ok(n) => self.rest.extend(buf.get(..n).unwrap_or_default()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::refused(Op::Read, &self.instance, errno)),
            }
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                brought.lost |= line.windows(4).any(|window| window == b"LOST");
                brought.kills.extend(mark_victim(line.trim_ascii_end()));
            }
            // A line is never that long.
            if self.rest.len() > 65_536 {
                self.rest.clear();
            }
        }
        brought.more = true;
        Ok(())
    }
}

struct Remove<'a>(&'a Path);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(self.0);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = std::fs::write(self.instance.join("events/oom/mark_victim/enable"), "0");
        // Busy as long as the pipe is open.
        if let Ok(null) = open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            self.pipe = null;
        }
        if let Err(error) = std::fs::remove_dir(&self.instance) {
            ::log::debug!("{}: {error}", self.instance.display());
        }
    }
}

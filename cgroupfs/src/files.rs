//! Control files as the rest of the crate sees them: a directory that opens files, and files that are
//! read whole and written in one `write(2)`. The kernel's directories implement it ([`crate::Cgroup`]);
//! so does the model kernel used in tests.

use crate::error::{Error, Op, Result};
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// Longest content read from any control file. `memory.stat` is under 4 KiB, `cgroup.procs` of a fork
/// bomb may be more: what is beyond is not read.
pub const MAX_FILE: usize = 1 << 20;

/// What a control file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Writing only (`memory.force_empty` and `memory.reclaim` have no read side).
    Write,
    /// Both.
    ReadWrite,
}

/// One open control file. Calls return the bare errno: callers on hot paths must not allocate, and
/// those that report add the path ([`ControlDir::path`]).
pub trait ControlFile: Send + Sync {
    /// Reads the content from its start into `buf`; the number of bytes read.
    fn read(&self, buf: &mut [u8]) -> std::result::Result<usize, Errno>;
    /// The same of a file with one short line, in one call.
    fn read_line(&self, buf: &mut [u8]) -> std::result::Result<usize, Errno> {
        self.read(buf)
    }
    /// Writes `value` in one call. May block in reclaim; EINTR when a signal came first.
    fn write(&self, value: &[u8]) -> std::result::Result<(), Errno>;
    /// The descriptor behind it, where there is one: for watching it.
    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

/// A cgroup's directory.
pub trait ControlDir: Send + Sync {
    /// For messages: where it is (or was).
    fn path(&self) -> &Path;
    /// Opens a control file. [`Error::Absent`] if this kernel has none of that name,
    /// [`Error::Vanished`] if the group is gone.
    fn open(&self, file: &str, access: Access) -> Result<Box<dyn ControlFile>>;
    /// Whether the group has a file of that name now.
    fn has(&self, file: &str) -> bool;
    /// Whether the group was removed.
    fn is_gone(&self) -> bool;

    /// Turns an errno into an error with path and value; ENODEV and ENOENT of a removed group become
    /// [`Error::Vanished`].
    fn error(&self, op: Op, file: &str, value: Option<&str>, errno: Errno) -> Error {
        if matches!(errno, Errno::ENODEV | Errno::ENOENT) && self.is_gone() {
            return Error::Vanished { path: self.path().to_path_buf() };
        }
        if errno == Errno::ENOENT && op == Op::Open {
            return Error::Absent {
                path: self.path().join(file),
                why: "this kernel, or this configuration of it, does not have the file",
            };
        }
        Error::Refused { op, path: self.path().join(file), value: value.map(str::to_owned), errno }
    }
}

/// An open control file with its name, for code that reports errors.
pub struct Knob {
    file: Box<dyn ControlFile>,
    name: &'static str,
    dir: std::sync::Arc<dyn ControlDir>,
}

impl Knob {
    /// Opens `name` in `dir`.
    pub fn open(
        dir: &std::sync::Arc<dyn ControlDir>,
        name: &'static str,
        access: Access,
    ) -> Result<Knob> {
        let file = dir.open(name, access)?;
        Ok(Knob { file, name, dir: dir.clone() })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }

    /// The file without the reporting: for loops that must not allocate.
    pub fn raw(&self) -> &dyn ControlFile {
        &*self.file
    }

    /// An error of this file for `errno`.
    pub fn error(&self, op: Op, value: Option<&str>, errno: Errno) -> Error {
        self.dir.error(op, self.name, value, errno)
    }

    /// Writes `value`, going on after EINTR.
    pub fn write(&self, value: &str) -> Result<()> {
        loop {
            match self.file.write(value.as_bytes()) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(self.error(Op::Write, Some(value), errno)),
            }
        }
    }

    /// Reads the whole content, up to [`MAX_FILE`].
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut buf = vec![0; 4096];
        loop {
            match self.file.read(&mut buf) {
                Ok(n) if n < buf.len() || n >= MAX_FILE => {
                    buf.truncate(n);
                    return Ok(buf);
                }
                Ok(n) => buf.resize((n * 4).min(MAX_FILE), 0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.error(Op::Read, None, errno)),
            }
        }
    }

    fn read_short(&self, buf: &mut [u8]) -> Result<usize> {
        loop {
            match self.file.read_line(buf) {
                Ok(n) => return Ok(n),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.error(Op::Read, None, errno)),
            }
        }
    }

    /// Reads one number (a trailing newline is fine) without allocating.
    pub fn read_u64(&self) -> Result<u64> {
        let mut buf = [0; 64];
        let n = self.read_short(&mut buf)?;
        parse_u64(&buf[..n]).ok_or_else(|| Error::parse(self.path(), "a number", &buf[..n]))
    }

    /// Reads a v2 limit: a number or `max`.
    pub fn read_limit_v2(&self) -> Result<crate::Limit> {
        let mut buf = [0; 64];
        let n = self.read_short(&mut buf)?;
        if buf[..n].trim_ascii() == b"max" {
            return Ok(crate::Limit::Max);
        }
        parse_u64(&buf[..n])
            .map(|n| crate::Limit::Bytes(crate::Bytes(n)))
            .ok_or_else(|| Error::parse(self.path(), "a number or 'max'", &buf[..n]))
    }
}

/// One unsigned number, white space around it allowed; `None` for anything else.
pub fn parse_u64(content: &[u8]) -> Option<u64> {
    let digits = content.trim_ascii();
    if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A number as text, without allocating: for writes between a lower and its restore.
#[derive(Debug, Clone, Copy)]
pub struct Decimal {
    buf: [u8; 20],
    start: usize,
}

impl Decimal {
    /// The digits of `n`.
    pub fn new(mut n: u64) -> Decimal {
        let mut buf = [0; 20];
        let mut start = buf.len();
        loop {
            start -= 1;
            buf[start] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                return Decimal { buf, start };
            }
        }
    }

    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decimal_is_to_string(n: u64) {
            let decimal = Decimal::new(n);
            let text = n.to_string();
            prop_assert_eq!(decimal.as_bytes(), text.as_bytes());
        }

        #[test]
        fn any_content_parses_or_not_but_never_panics(content: Vec<u8>) {
            let _ = parse_u64(&content);
        }
    }
}

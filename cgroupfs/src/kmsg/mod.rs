//! The kernel log, `/dev/kmsg` (`Documentation/ABI/testing/dev-kmsg`), and what it says about OOM kills
//! ([`oom`]).
//!
//! One `read(2)` returns one record: `prefix;text\n`, then ` KEY=value` lines. Bytes of the text that are
//! not printable ASCII come as `\xNN`, so a hostile command name cannot start a line of its own. Records
//! that processes wrote to the device have a facility of their own and are not taken for the kernel's.

pub mod oom;

use crate::error::{Error, Op, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek, read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A record is at most this long (`CONSOLE_EXT_LOG_MAX`; `PRINTK_MESSAGE_MAX` is less). A shorter buffer
/// gets EINVAL.
const RECORD_MAX: usize = 8192;

/// One record of the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number: consecutive, so that a gap tells of lost ones.
    pub sequence: u64,
    /// When it was logged, in µs of the kernel's `local_clock()`: near `CLOCK_MONOTONIC`, but not it.
    pub at_us: u64,
    /// The first line of its text, unescaped. Bytes may be anything.
    pub text: Vec<u8>,
}

/// What a read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// A record of the kernel's.
    Record(Record),
    /// Something that is not the kernel's own, or has no form that we know.
    Other,
    /// Records were overwritten before they were read (EPIPE).
    Lost,
    /// There is no more for now.
    Nothing,
}

/// The log, read from its end on.
#[derive(Debug)]
pub struct Kmsg {
    fd: OwnedFd,
    buf: Vec<u8>,
}

impl Kmsg {
    /// Opens the log; what is in it already is skipped.
    ///
    /// [`Error::Refused`] with EPERM where `kernel.dmesg_restrict` wants CAP_SYSLOG, EACCES or ENOENT
    /// where the device is not for us (most containers).
    pub fn open() -> Result<Kmsg> {
        Kmsg::open_at(Path::new("/dev/kmsg"))
    }

    /// The same for another path: what is there must behave like the device.
    pub fn open_at(path: &Path) -> Result<Kmsg> {
        let refused = |op| move |errno| Error::refused(op, path, errno);
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(refused(Op::Open))?;
        lseek(&fd, 0, Whence::SeekEnd).map_err(refused(Op::Read))?;
        Ok(Kmsg { fd, buf: vec![0; RECORD_MAX] })
    }

    /// The next record, without waiting.
    pub fn read(&mut self) -> Result<Read> {
        loop {
            match read(&self.fd, &mut self.buf) {
                Ok(0) => return Ok(Read::Nothing),
                Ok(n) => {
                    let content = self.buf.get(..n).unwrap_or_default();
                    return Ok(match parse(content) {
                        Some((true, record)) => Read::Record(record),
                        _ => Read::Other,
                    });
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Read::Nothing),
                // The position is moved to the oldest record that is left.
                Err(Errno::EPIPE) => return Ok(Read::Lost),
                // Longer than any record may be: skipped by the kernel only when read whole.
                Err(Errno::EINVAL) if self.buf.len() < RECORD_MAX * 8 => {
                    let longer = self.buf.len() * 2;
                    self.buf.resize(longer, 0);
                }
                Err(errno) => return Err(Error::refused(Op::Read, "/dev/kmsg", errno)),
            }
        }
    }
}

impl AsFd for Kmsg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Parses what one read returned: whether it is the kernel's own (facility 0), and the record. `None` for
/// what is no record.
pub fn parse(content: &[u8]) -> Option<(bool, Record)> {
    let semicolon = content.iter().position(|byte| *byte == b';')?;
    let (prefix, rest) = (content.get(..semicolon)?, content.get(semicolon + 1..)?);
    let mut fields = prefix.split(|byte| *byte == b',');
    let priority = crate::files::parse_u64(fields.next()?)?;
    let sequence = crate::files::parse_u64(fields.next()?)?;
    let at_us = crate::files::parse_u64(fields.next()?)?;
    let line = rest.split(|byte| *byte == b'\n').next()?;
    // The lower three bits are the level, the rest the facility; only the kernel can log as 0.
    Some((priority >> 3 == 0, Record { sequence, at_us, text: unescape(line) }))
}

/// Undoes `\xNN`. What is no such escape stands for itself.
fn unescape(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&first, after)) = rest.split_first() {
        if let (b'\\', [b'x', high, low, tail @ ..]) = (first, after)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = tail;
        } else {
            out.push(first);
            rest = after;
        }
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_has_number_time_and_text() {
        let (kernel, record) =
            parse(b"6,339,5140900,-;NET: Registered\n SUBSYSTEM=x\n DEVICE=y\n").unwrap();
        assert!(kernel);
        assert_eq!((record.sequence, record.at_us), (339, 5_140_900));
        assert_eq!(record.text, b"NET: Registered");
        // With CONFIG_PRINTK_CALLER there is one field more.
        assert!(parse(b"3,1,2,-,caller=T1;x\n").unwrap().0);
    }

    #[test]
    fn what_a_process_wrote_is_not_the_kernels() {
        let (kernel, _) = parse(b"12,340,5140900,-;Killed process 1 (x)\n").unwrap();
        assert!(!kernel);
    }

    #[test]
    fn escaped_bytes_come_back_and_others_stay() {
        let (_, record) = parse(br"3,1,2,-;a\x0ab\x5cx41\x4 \xzz").unwrap();
        assert_eq!(record.text, b"a\nb\\x41\\x4 \\xzz");
    }

    #[test]
    fn the_log_of_this_machine_opens_or_says_why_not() {
        match Kmsg::open() {
            Ok(mut log) => assert!(log.read().is_ok()),
            Err(error) => assert!(error.errno().is_some(), "{error}"),
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some((_, record)) = parse(&content) {
                prop_assert!(record.text.len() <= content.len());
            }
        }

        #[test]
        fn the_kernels_escaping_is_undone(text in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut line = b"3,1,2,-;".to_vec();
            for byte in &text {
                // msg_print_ext_body()
                match byte {
                    b' '..=b'~' if *byte != b'\\' => line.push(*byte),
                    byte => line.extend(format!("\\x{byte:02x}").bytes()),
                }
            }
            line.push(b'\n');
            prop_assert_eq!(parse(&line).unwrap().1.text, text);
        }
    }
}

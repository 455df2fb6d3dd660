//! How `cgctl` fails: a message for a person, and the documented exit code.

use std::path::PathBuf;

/// What was asked for could not be done.
pub(crate) const FAILED: u8 = 1;
/// It was asked for wrongly.
pub(crate) const USAGE: u8 = 2;
/// `run`: cgctl itself failed.
pub(crate) const RUN_FAILED: u8 = 125;
/// `run`: the command cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// `run`: there is no such command.
pub(crate) const NOT_FOUND: u8 = 127;

/// Why a command of `cgctl` ends without having done its job.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What is printed after `cgctl: `.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(USAGE, message)
    }

    /// With another exit code.
    pub(crate) fn code(self, code: u8) -> Failure {
        Failure { code, ..self }
    }
}

impl From<cgroupfs::Error> for Failure {
    fn from(error: cgroupfs::Error) -> Failure {
        Failure::new(FAILED, error.to_string())
    }
}

/// A file that could not be written.
pub(crate) fn cannot_write(path: PathBuf, error: &std::io::Error) -> Failure {
    Failure::new(FAILED, format!("cannot write {}: {error}", path.display()))
}

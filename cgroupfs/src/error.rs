//! What can go wrong with a cgroup file. Every error names the path.

use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What was being done when the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `open(2)` or `openat2(2)`.
    Open,
    /// `read(2)`.
    Read,
    /// `write(2)` of a value.
    Write,
    /// `mkdir(2)` of a cgroup.
    Create,
    /// `rmdir(2)` of a cgroup.
    Remove,
    /// Registering for events (eventfd, inotify).
    Watch,
}

impl Op {
    const fn verb(self) -> &'static str {
        match self {
            Op::Open => "open",
            Op::Read => "read",
            Op::Write => "write",
            Op::Create => "create",
            Op::Remove => "remove",
            Op::Watch => "watch",
        }
    }
}

/// An error from the kernel's cgroup files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel refused: which operation, on what, with which value, and its errno.
    #[error("cannot {} {}{}: {} ({errno:?}){}", op.verb(), path.display(),
            value.as_ref().map(|v| format!(" with '{v}'")).unwrap_or_default(),
            errno.desc(), way_out(*op, path, *errno))]
    Refused {
        /// What was being done.
        op: Op,
        /// The file or directory.
        path: PathBuf,
        /// What was written, for writes.
        value: Option<String>,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The cgroup is gone (ENOENT or ENODEV with its directory removed). Terminal: never retried.
    #[error("cgroup {} is gone: it was removed", path.display())]
    Vanished {
        /// Where it was.
        path: PathBuf,
    },
    /// The cgroup is there but this kernel, or this configuration, has no such file.
    #[error("{} does not exist here: {why}", path.display())]
    Absent {
        /// The missing file.
        path: PathBuf,
        /// What that means.
        why: &'static str,
    },
    /// The file held something that does not parse.
    #[error("cannot make sense of {}: {what} (found '{found}')", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// The start of what was there.
        found: String,
    },
    /// The name or path is not one of a cgroup.
    #[error("'{name}' is not a cgroup {what}: {why}")]
    BadName {
        /// What was given.
        name: String,
        /// "name" or "path".
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No hierarchy with this controller is mounted, or it is not usable here.
    #[error("no {controller} controller is usable here: {why}")]
    NoController {
        /// The controller.
        controller: &'static str,
        /// What was looked for, what was found, and the way out.
        why: String,
    },
}

/// The way out of the refusals that people meet; empty where there is nothing to add.
fn way_out(op: Op, path: &Path, errno: Errno) -> &'static str {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match (op, errno) {
        (_, Errno::EACCES | Errno::EPERM | Errno::EROFS) => {
            "; this needs root, and a cgroup file system mounted read-write"
        }
        (Op::Write, Errno::EBUSY) if file.contains("limit") => {
            "; more is in use and could not be reclaimed: free some with 'cgctl reclaim', or choose \
             a higher limit"
        }
        (Op::Write, Errno::EBUSY) if file == "cgroup.subtree_control" => {
            "; the group has processes of its own, and v2 gives controllers only to the children of \
             groups without"
        }
        (Op::Write, Errno::EINVAL) if file.contains("limit") => {
            "; on v1 memory.limit_in_bytes must not be above memory.memsw.limit_in_bytes"
        }
        (Op::Remove, Errno::EBUSY) => "; it still has processes or child groups",
        (Op::Create, Errno::EEXIST) => "; choose another name, or remove the old one with rmdir",
        (Op::Create, Errno::ENOMEM | Errno::ENOSPC) => {
            "; the host may be out of memory cgroup ids (dying ones hold them)"
        }
        _ => "",
    }
}

impl Error {
    /// A refusal of `op` on `path`.
    pub fn refused(op: Op, path: impl Into<PathBuf>, errno: Errno) -> Error {
        Error::Refused { op, path: path.into(), value: None, errno }
    }

    /// The kernel's errno, where it was the kernel that refused.
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the cgroup is gone for good (law 5: terminal, no retry).
    pub const fn is_vanished(&self) -> bool {
        matches!(self, Error::Vanished { .. })
    }

    /// Whether a kernel without the feature is the cause.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Error::Absent { .. })
    }

    /// A parse failure at `path`, keeping the start of what was there, escaped.
    pub fn parse(path: impl Into<PathBuf>, what: &'static str, found: &[u8]) -> Error {
        let head = &found[..found.len().min(80)];
        Error::Parse { path: path.into(), what, found: head.escape_ascii().to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_limit_names_path_value_cause_and_way_out() {
        let error = Error::Refused {
            op: Op::Write,
            path: "/a/b/memory.limit_in_bytes".into(),
            value: Some("67108864".into()),
            errno: Errno::EBUSY,
        };
        let text = error.to_string();
        for part in ["/a/b/memory.limit_in_bytes", "67108864", "EBUSY", "cgctl reclaim"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn hostile_content_is_escaped_in_messages() {
        let text = Error::parse("/x", "a number", b"\x1b[2J\xff").to_string();
        assert!(text.is_ascii() && !text.contains('\x1b'), "{text}");
    }
}

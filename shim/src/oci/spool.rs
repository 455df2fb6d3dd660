//! The spool: what hooks could not tell a daemon, one file for each container, until one reads it.
//!
//! `<run directory>/spool/<id>.json` holds the latest request for an id, as the socket would have got
//! it. Ids are escaped: bytes other than letters, digits, `_`, `.` and `-` are `%XX`.

use crate::api::SPOOL;
use std::fmt::Write as _;
use std::fs::{DirBuilder, OpenOptions, remove_file, rename};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where an id's intent is.
pub fn path(run_dir: &Path, id: &str) -> PathBuf {
    run_dir.join(SPOOL).join(format!("{}.json", escape(id)))
}

/// An id as a file name.
pub fn escape(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' => name.push(byte.into()),
            _ => {
                let _ = write!(name, "%{byte:02X}");
            }
        }
    }
    name
}

/// The id of a file name of the spool: what [`escape`] made it from.
pub fn unescape(name: &str) -> Option<String> {
    let mut id = Vec::with_capacity(name.len());
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            id.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        id.push(digit(bytes.next()?)? << 4 | digit(bytes.next()?)?);
    }
    String::from_utf8(id).ok()
}

/// Leaves a registration for the daemon to find, in place of any earlier request for that container.
///
/// # Errors
/// The spool cannot be made or written: its path, and why.
pub fn register(run_dir: &Path, id: &str, line: &[u8]) -> io::Result<()> {
    let path = path(run_dir, id);
    write(&run_dir.join(SPOOL), &path, line)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Leaves a release. If no daemon has seen the container's registration yet, takes that back instead, and leaves
/// nothing.
///
/// # Errors
/// As [`register`].
pub fn release(run_dir: &Path, id: &str, line: &[u8]) -> io::Result<()> {
    match holds_register(&path(run_dir, id)) {
        true => forget(run_dir, id),
        false => register(run_dir, id, line),
    }
}

/// Takes back an intent that the daemon has meanwhile been told.
///
/// # Errors
/// It is there and cannot be removed.
pub fn forget(run_dir: &Path, id: &str) -> io::Result<()> {
    match remove_file(path(run_dir, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write(dir: &Path, path: &Path, line: &[u8]) -> io::Result<()> {
    // Not `.json`: the daemon does not look at it.
    let unfinished = dir.join(format!(".{}.tmp", std::process::id()));
    let open = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(&unfinished)
    };
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(run_dir) = dir.parent() {
                make(run_dir, 0o755)?;
            }
            make(dir, 0o700)?;
            open()?
        }
        // Left by a hook of our number that was killed.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove_file(&unfinished)?;
            open()?
        }
        opened => opened?,
    };
    let done = file.write_all(line).and_then(|()| rename(&unfinished, path));
    if done.is_err() {
        let _ = remove_file(&unfinished);
    }
    done
}

fn make(dir: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn holds_register(path: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Op<'a> {
        op: &'a str,
    }
    let text = super::spec::read_straight(path, 1 << 20).unwrap_or_default();
    serde_json::from_slice::<Op<'_>>(&text).is_ok_and(|intent| intent.op == "register")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_cannot_leave_the_spool() {
        let run = Path::new("/r");
        for (id, name) in [
            ("web-1_a.B", "web-1_a.B.json"),
            ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd.json"),
            ("..", "...json"),
            ("a\n\0b+", "a%0A%00b%2B.json"),
            ("é", "%C3%A9.json"),
        ] {
            assert_eq!(path(run, id), run.join("spool").join(name));
        }
    }

    #[test]
    fn the_latest_intent_stands_and_a_release_takes_a_registration_back() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let (coming, going) = ("{\"op\":\"register\"}\n", "{\"op\":\"release\"}\n");
        let spooled = || -> Vec<String> {
            let files = std::fs::read_dir(run.join(SPOOL)).unwrap();
            files.map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap()).collect()
        };
        release(&run, "a", going.as_bytes()).unwrap();
        assert_eq!(spooled(), [going]);
        register(&run, "a", coming.as_bytes()).unwrap();
        assert_eq!(spooled(), [coming]);
        release(&run, "a", going.as_bytes()).unwrap();
        assert!(spooled().is_empty());
    }

    proptest! {
        #[test]
        fn escaping_is_undone(id in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
            let name = escape(&id);
            prop_assert!(!name.contains('/'));
            prop_assert_eq!(unescape(&name), Some(id));
        }
    }
}

//! A group's control files, recorded: what a kernel that is not at hand had in them.
//!
//! A recording is a directory, made by `cgctl record` or by hand:
//!
//! | file | what |
//! |---|---|
//! | `about` | `KEY VALUE` a line: `form 1`, `recorded_by`, `kernel`, `machine`, `hierarchy` (`v1`, `v2`), `openat2` (`yes`, `no`), `processes`, `threads`, `children` |
//! | `files` | `NAME MODE RESULT` a line, for each control file: MODE in octal; RESULT is `read BYTES`, `errno NUMBER NAME` where reading failed, `write-only`, or `left-out` |
//! | `group/NAME` | the content of those with `read` |
//! | `proc/` | of the host: `cgroups`, `mountinfo`, `swaps`, `meminfo`, `zoneinfo`, `pressure-memory`, as far as it has them |
//!
//! [`Recording`] is such a directory as a [`ControlDir`]: read-only, so that parsers, [`crate::memory`] and
//! [`crate::probe`] run over it as over a group.

use crate::error::{Error, Op, Result};
use crate::files::{Access, ControlDir, ControlFile, MAX_FILE};
use crate::flat::{lines, number, words};
use crate::memory::Version;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More control files than any kernel has in a directory.
const MOST_FILES: usize = 4096;

/// What became of one control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was read; so many bytes.
    Read(usize),
    /// Reading it failed.
    Refused(Errno),
    /// It has no read side.
    WriteOnly,
    /// Its content was not recorded: it says more about the host than about the kernel.
    LeftOut,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Read(bytes) => write!(f, "read {bytes}"),
            Outcome::Refused(errno) => write!(f, "errno {} {errno:?}", *errno as i32),
            Outcome::WriteOnly => f.write_str("write-only"),
            Outcome::LeftOut => f.write_str("left-out"),
        }
    }
}

/// A line of `files`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The control file's name.
    pub name: String,
    /// Its permission bits.
    pub mode: u32,
    /// What became of it.
    pub outcome: Outcome,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:04o} {}", self.name, self.mode, self.outcome)
    }
}

/// The lines of `files`; those of another shape, or whose name is a path, are skipped.
pub fn index(content: &[u8]) -> Vec<Line> {
    lines(content).filter_map(index_line).take(MOST_FILES).collect()
}

fn index_line(line: &[u8]) -> Option<Line> {
    let mut words = words(line);
    let name = std::str::from_utf8(words.next()?).ok()?;
    let mode = u32::from_str_radix(std::str::from_utf8(words.next()?).ok()?, 8).ok()?;
    let outcome = match words.next()? {
        b"read" => Outcome::Read(usize::try_from(number(words.next()?)?).ok()?),
        b"errno" => {
            let errno = Errno::from_raw(i32::try_from(number(words.next()?)?).ok()?);
            words.next();
            Outcome::Refused(errno)
        }
        b"write-only" => Outcome::WriteOnly,
        b"left-out" => Outcome::LeftOut,
        _ => return None,
    };
    let plain = !name.contains('/') && name != "." && name != ".." && name.len() <= 255;
    (plain && words.next().is_none()).then(|| Line { name: name.into(), mode, outcome })
}

/// A recording, loaded.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    version: Version,
    kernel: String,
    openat2: bool,
    files: BTreeMap<String, Content>,
    proc: BTreeMap<String, Vec<u8>>,
}

type Content = std::result::Result<Arc<[u8]>, Errno>;

impl Recording {
    /// Loads the recording in directory `path`.
    ///
    /// [`Error::Absent`] where there is none; [`Error::Parse`] for one that does not say which hierarchy it
    /// is of, or whose files are not as long as it says; `Refused` with the errno otherwise.
    pub fn load(path: &Path) -> Result<Recording> {
        let about = slurp(&path.join("about"))?;
        let fact = |key: &str| {
            let text = String::from_utf8_lossy(&about);
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned))
        };
        let version = match fact("hierarchy").as_deref() {
            Some("v1") => Version::V1,
            Some("v2") => Version::V2,
            _ => return Err(Error::parse(path.join("about"), "hierarchy v1 or v2", &about)),
        };
        let mut files = BTreeMap::new();
        for line in index(&slurp(&path.join("files"))?) {
            let content: Content = match line.outcome {
                Outcome::Read(bytes) => {
                    let from = path.join("group").join(&line.name);
                    let content = slurp(&from)?;
                    if content.len() != bytes {
                        return Err(Error::parse(from, "as many bytes as files says", &content));
                    }
                    Ok(content.into())
                }
                Outcome::Refused(errno) => Err(errno),
                // What the kernel answers to a read of a file without a read side.
                Outcome::WriteOnly => Err(Errno::EINVAL),
                Outcome::LeftOut => Err(Errno::ENODATA),
            };
            files.insert(line.name, content);
        }
        let mut proc = BTreeMap::new();
        for name in PROC_FILES {
            match slurp(&path.join("proc").join(name)) {
                Ok(content) => drop(proc.insert(name.to_owned(), content)),
                Err(Error::Absent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Recording {
            path: path.to_path_buf(),
            version,
            kernel: fact("kernel").unwrap_or_default(),
            openat2: fact("openat2").is_some_and(|yes| yes == "yes"),
            files,
            proc,
        })
    }

    /// Of which hierarchy the group is.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The kernel's release.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Whether that kernel had `openat2(2)`.
    pub const fn openat2(&self) -> bool {
        self.openat2
    }

    /// A file of `/proc` of that host, one of [`PROC_FILES`].
    pub fn proc(&self, name: &str) -> Option<&[u8]> {
        self.proc.get(name).map(Vec::as_slice)
    }

    /// The control files' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

/// What a recording has of `/proc`.
pub const PROC_FILES: [&str; 6] =
    ["cgroups", "mountinfo", "swaps", "meminfo", "zoneinfo", "pressure-memory"];

impl ControlDir for Recording {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, file: &str, access: Access) -> Result<Box<dyn ControlFile>> {
        let Some(content) = self.files.get(file) else {
            return Err(self.error(Op::Open, file, None, Errno::ENOENT));
        };
        match access {
            Access::Read => Ok(Box::new(RecordedFile(content.clone()))),
            Access::Write | Access::ReadWrite => {
                Err(self.error(Op::Open, file, None, Errno::EROFS))
            }
        }
    }

    fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    fn is_gone(&self) -> bool {
        false
    }
}

struct RecordedFile(Content);

impl ControlFile for RecordedFile {
    fn read(&self, buf: &mut [u8]) -> std::result::Result<usize, Errno> {
        let content = self.0.as_ref().map_err(|errno| *errno)?;
        let length = content.len().min(buf.len());
        buf[..length].copy_from_slice(&content[..length]);
        Ok(length)
    }

    fn write(&self, _value: &[u8]) -> std::result::Result<(), Errno> {
        Err(Errno::EROFS)
    }
}

/// A plain file, up to [`MAX_FILE`]: somebody else made it, so no link and no device is followed.
fn slurp(path: &Path) -> Result<Vec<u8>> {
    let fail = |error: std::io::Error| match Errno::from_raw(
        error.raw_os_error().unwrap_or(Errno::EIO as i32),
    ) {
        Errno::ENOENT => Error::Absent { path: path.into(), why: "it belongs to a recording" },
        errno => Error::refused(Op::Read, path, errno),
    };
    if !fs::symlink_metadata(path).map_err(fail)?.is_file() {
        return Err(Error::refused(Op::Read, path, Errno::EINVAL));
    }
    let mut content = Vec::new();
    let file = fs::File::open(path).map_err(fail)?;
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() > MAX_FILE {
        return Err(Error::parse(path, "at most 1 MiB", &content));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Knob;
    use crate::memory::{Memory, MemoryV1};
    use crate::probe::{Capabilities, Support};
    use crate::{Bytes, Limit};

    fn recordings() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings")
    }

    fn load(name: &str) -> Recording {
        Recording::load(&recordings().join(name)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn support(found: &Capabilities, name: &str) -> Support {
        found.features.iter().find(|feature| feature.name == name).unwrap().support
    }

    #[test]
    fn every_recording_loads_and_is_probed_in_full() {
        let mut seen = 0;
        for entry in fs::read_dir(recordings()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let found = Capabilities::of_recording(Arc::new(load(&name)));
            assert!(found.features.len() >= 16, "{name}");
            seen += 1;
        }
        assert!(seen >= 3, "{seen}");
    }

    #[test]
    fn what_a_vendor_added_to_v1_is_said_to_be_the_vendors() {
        let alibaba = Capabilities::of_recording(Arc::new(load("alibaba-v1-by-hand")));
        for name in ["background_reclaim", "memory_high", "memory_min_low"] {
            assert_eq!(support(&alibaba, name), Support::Vendor, "{name}");
        }
        assert_eq!(support(&alibaba, "byte_targeted_reclaim"), Support::Emulated);
        let openeuler = Capabilities::of_recording(Arc::new(load("openeuler-v1-by-hand")));
        for name in ["background_reclaim", "byte_targeted_reclaim", "memory_high", "memory_min_low"]
        {
            assert_eq!(support(&openeuler, name), Support::Vendor, "{name}");
        }
    }

    #[test]
    fn no_recording_of_a_mainline_kernel_has_a_vendor_in_it() {
        let found = Capabilities::of_recording(Arc::new(load("host-6.18-v1")));
        assert!(found.features.iter().all(|feature| feature.support != Support::Vendor));
        assert_eq!(support(&found, "background_reclaim"), Support::Emulated);
        assert_eq!(support(&found, "freezer"), Support::Native);
    }

    #[test]
    fn the_memory_controller_reads_from_a_recording_and_writes_nothing() {
        let memory = MemoryV1::open(Arc::new(load("host-6.18-v1"))).unwrap();
        assert_eq!(memory.limit().unwrap(), Limit::Bytes(Bytes::mib(64)));
        assert!(memory.usage().unwrap() > Bytes::mib(8));
        assert!(memory.stat().unwrap().file.is_some());
        assert!(memory.counters().unwrap().oom_kill.is_some());
        assert!(memory.set_limit(Limit::Max).is_err());
    }

    #[test]
    fn an_errno_is_read_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("about"), "form 1\nhierarchy v1\n").unwrap();
        let line = Line {
            name: "memory.kmem.slabinfo".into(),
            mode: 0o444,
            outcome: Outcome::Refused(Errno::EOPNOTSUPP),
        };
        assert_eq!(line.to_string(), "memory.kmem.slabinfo 0444 errno 95 EOPNOTSUPP");
        fs::write(dir.path().join("files"), format!("{line}\n")).unwrap();
        let recording: Arc<dyn ControlDir> = Arc::new(Recording::load(dir.path()).unwrap());
        let knob = Knob::open(&recording, "memory.kmem.slabinfo", Access::Read).unwrap();
        assert_eq!(knob.read().unwrap_err().errno(), Some(Errno::EOPNOTSUPP));
        assert!(Knob::open(&recording, "memory.high", Access::Read).is_err_and(|e| e.is_absent()));
    }

    #[test]
    fn a_recording_reads_nothing_that_is_not_in_it() {
        assert_eq!(index(b"../about 0444 read 1\na/b 0444 read 1\n.. 0444 read 1\n"), []);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("about"), "hierarchy v1\n").unwrap();
        fs::write(dir.path().join("files"), "memory.stat 0444 read 5\n").unwrap();
        fs::create_dir(dir.path().join("group")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("group/memory.stat")).unwrap();
        assert!(Recording::load(dir.path()).is_err());
        fs::remove_file(dir.path().join("group/memory.stat")).unwrap();
        fs::write(dir.path().join("group/memory.stat"), "rss 1\nshort").unwrap();
        assert!(matches!(Recording::load(dir.path()), Err(Error::Parse { .. })));
    }
}

//! What is fuzzed: one row of [`TARGETS`] for each parser. A new parser is one more row.

use cgroupfs::error::{Op, Result};
use cgroupfs::files::{Access, ControlDir, ControlFile, Knob};
use cgroupfs::memory::{Memory, MemoryStat, MemoryV1, MemoryV2, Version};
use cgroupfs::procfs::{Controllers, Meminfo, Psi, Swaps, TaskStat, Zoneinfo};
use cgroupfs::{Bytes, Limit, Membership, Mounts, membership};
use cgshim::api::SPOOL;
use cgshim::core::{WatermarkSpec, Watermarks};
use cgshim::daemon::config::Config;
use cgshim::journal::{Counters, Deadline, Identity, Journal, Reader, Record, RunDir, Terms};
use cgshim::oci::inject::{Entry, edited};
use cgshim::oci::runtime::Invocation;
use cgshim::oci::{Spec, State, json, spool};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// What a parser may hold for each byte of its input, unless its row says otherwise.
pub(crate) const PER_BYTE: usize = 32;

/// A parser, and files to begin with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Its name; `testdata/hostile/NAME/` is in its corpus.
    pub(crate) name: &'static str,
    /// Files and directories of `testdata/` that are good input for it.
    pub(crate) corpus: &'static [&'static str],
    /// What it may hold for each byte of its input.
    pub(crate) per_byte: usize,
    /// Parses, and asserts what has to hold of any result.
    pub(crate) parse: fn(&[u8]),
}

const fn target(name: &'static str, corpus: &'static [&'static str], parse: fn(&[u8])) -> Target {
    Target { name, corpus, per_byte: PER_BYTE, parse }
}

/// Every parser of the project that reads what it did not write.
#[rustfmt::skip]
pub(crate) const TARGETS: &[Target] = &[
    // --- cgroupfs
    target("flat", &["memory.stat", "proc/host-6.18/vmstat", "proc/host-6.18/memory.oom_control"], flat),
    target("memory.stat-v1", &["memory.stat"], |input| used(MemoryStat::parse_v1(input))),
    target("memory.stat-v2", &["memory.stat"], |input| used(MemoryStat::parse_v2(input))),
    target("number", &[], number),
    target("files-v1", &["memory.stat", "proc/host-6.18/memory.oom_control"], files_v1),
    target("files-v2", &["memory.stat"], files_v2),
    target("mountinfo", &["mountinfo", "proc/host-6.18/mountinfo"], mountinfo),
    target("self-cgroup", &["self-cgroup", "proc/host-6.18/self-cgroup"], self_cgroup),
    target("octal", &["proc/swaps-three"], octal),
    target("meminfo", &["proc/host-6.18/meminfo"], |input| used(Meminfo::parse(input).swap_used())),
    target("zoneinfo", &["proc/host-6.18/zoneinfo"], zoneinfo),
    target("swaps", &["proc/swaps-three", "proc/host-6.18/swaps"], swaps),
    target("pressure", &["proc/host-6.18/pressure-memory"], pressure),
    target("cgroups", &["proc/host-6.18/cgroups"], |input| used(Controllers::parse(input))),
    target("recording", &["recordings/host-6.18-v1/files"], recording),
    target("size", &[], |input| text(input, size)),
    target("group-name", &[], |input| text(input, |name| used(cgroupfs::dir::check_name(name)))),
    target("kmsg", &[], kmsg),
    target("task-stat", &[], |input| used(TaskStat::parse(input))),
    // --- the engine
    target("watermark", &[], |input| text(input, watermark)),
    // --- what runtimes, operators and whoever has the socket say
    target("oci-state", &["oci/state"], |input| used(State::parse(input, &mut Vec::new()))),
    target("oci-spec", &["oci/spec"], |input| used(Spec::parse(input, &mut Vec::new()))),
    target("oci-edit", &["oci/spec"], |input| text(input, oci_edit)),
    target("request", &[], request),
    // An empty word is one byte of input and an OsString of 24 in a vector that doubles.
    Target { per_byte: 128, ..target("runtime-argv", &[], runtime_argv) },
    target("spool-name", &[], |input| text(input, spool_name)),
    // --- what a writer of another time left
    target("journal", &[], journal),
    // The operator's own file, 1 MiB at most; a tree of TOML has some 100 bytes for a bracket.
    Target { per_byte: 256, ..target("config", &[], |input| used(Config::parse(Path::new("fuzz.toml"), input))) },
    // --- the tools
    target("cgctl-values", &[], |input| text(input, tools::cgctl::parse_values)),
    target("memload-values", &[], |input| text(input, tools::memload::parse_values)),
];

impl Target {
    /// Reads the corpus: what is named, and what is hostile.
    pub(crate) fn corpus(&self, testdata: &Path) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        for name in self.corpus {
            collect(testdata, Path::new(name), &mut found);
        }
        collect(testdata, &Path::new("hostile").join(self.name), &mut found);
        found.sort();
        found
    }
}

fn collect(testdata: &Path, name: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    let path = testdata.join(name);
    for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
        collect(testdata, &name.join(entry.file_name()), found);
    }
    if let Ok(content) = fs::read(&path) {
        found.push((name.display().to_string(), content));
    }
}

/// Keeps the compiler from leaving out what makes `result`.
fn used<T>(result: T) {
    std::hint::black_box(result);
}

/// Command lines and configuration are text: other bytes never get that far.
fn text(input: &[u8], parse: fn(&str)) {
    parse(&String::from_utf8_lossy(input));
}

fn flat(input: &[u8]) {
    let lines = input.split(|byte| *byte == b'\n').count();
    assert!(cgroupfs::flat::entries(input).count() <= lines);
    used(cgroupfs::flat::get(input, "oom_kill"));
}

fn number(input: &[u8]) {
    if let Some(number) = cgroupfs::files::parse_u64(input) {
        let digits = String::from_utf8_lossy(input.trim_ascii()).into_owned();
        assert_eq!(digits.trim_start_matches('0'), number.to_string().trim_start_matches('0'));
        used(Limit::from_v1(number));
    }
}

fn mountinfo(input: &[u8]) {
    let mounts = Mounts::parse(input);
    for path in ["/", "/docker/0a1b", "/../x"] {
        for found in
            [mounts.locate_v1("memory", Path::new(path)), mounts.locate_v2(Path::new(path))]
        {
            assert!(found.is_none_or(|path| path.is_absolute()));
        }
    }
    for controller in ["memory", "freezer", "name=systemd"] {
        assert!(mounts.v1(controller).is_none_or(|mount| mount.mount_point.is_absolute()));
    }
    used((mounts.v2(), mounts.mode()));
}

fn self_cgroup(input: &[u8]) {
    let own = Membership::parse(input);
    let point = Path::new("/sys/fs/cgroup/memory");
    for path in [own.path("memory"), own.unified()].into_iter().flatten() {
        for root in ["/", "/docker", "/.."] {
            let Some(found) = membership::resolve(Path::new(root), point, path) else { continue };
            let beneath = found.strip_prefix(point).expect("beneath the mount point");
            assert!(beneath.components().all(|part| matches!(part, Component::Normal(_))));
        }
    }
    let path = Path::new(OsStr::from_bytes(input));
    used(membership::resolve(path, point, path));
    used(membership::resolve(Path::new("/"), path, path));
}

/// The escapes, by the one column of `/proc/swaps` that has them.
fn octal(input: &[u8]) {
    let swaps = Swaps::parse(&[b"/", input, b" partition 1 1 1\n"].concat());
    assert!(swaps.devices.iter().all(|swap| swap.path.as_os_str().len() <= input.len() + 1));
}

fn zoneinfo(input: &[u8]) {
    let zones = Zoneinfo::parse(input);
    used((zones.free(), zones.min_watermarks(), zones.low_watermarks(), zones.high_watermarks()));
}

fn recording(input: &[u8]) {
    for line in cgroupfs::recording::index(input) {
        assert!(!line.name.contains('/'));
        used(line.to_string());
    }
}

fn swaps(input: &[u8]) {
    let swaps = Swaps::parse(input);
    used(swaps.any_zram());
    assert!(swaps.free() <= swaps.size());
}

fn pressure(input: &[u8]) {
    let psi = Psi::parse(input);
    for stall in [psi.some, psi.full].into_iter().flatten() {
        for average in [stall.avg10, stall.avg60, stall.avg300] {
            assert!(average >= 0.0 && average.is_finite());
        }
    }
}

fn size(text: &str) {
    if let Ok(bytes) = text.parse::<Bytes>() {
        assert!(bytes.0 <= 1 << 62);
        used((bytes.to_string(), bytes.page_floor()));
    }
    if let Ok(limit) = text.parse::<Limit>() {
        used((limit.to_v1(), limit.to_v2()));
    }
}

fn watermark(text: &str) {
    let Ok(spec) = text.parse::<WatermarkSpec>() else { return };
    for limit in [0, 1, 4096, 256 << 20, 1 << 62, u64::MAX] {
        if let Some(marks) = Watermarks::of(spec, Limit::Bytes(Bytes(limit)), Limit::Max) {
            assert!(marks.low <= marks.high && marks.high.0 <= limit, "{marks:?} of {limit}");
        }
    }
}

fn kmsg(input: &[u8]) {
    used(cgroupfs::kmsg::parse(input));
    used(cgroupfs::kmsg::oom::mark_victim(input));
    let mut lines = cgroupfs::kmsg::oom::Lines::default();
    for line in input.split(|byte| *byte == b'\n') {
        used(lines.line(line));
    }
}

/// An edit of what is JSON leaves JSON, and a second one changes nothing.
fn oci_edit(text: &str) {
    used(json::document(text));
    let entry = Entry { path: "/usr/libexec/cgshim-hook".into(), run_dir: None };
    if let Ok(Some(with)) = edited(text, &entry) {
        assert!(json::document(&with).is_ok(), "{with}");
        assert!(matches!(edited(&with, &entry), Ok(None)), "{with}");
    }
}

fn request(input: &[u8]) {
    used(cgshim::api::message::parse(input));
    text(input, |id| used(cgshim::api::message::check_id(id)));
}

/// A command line for the runtime, a word a line. Only one that makes a container has a configuration.
fn runtime_argv(input: &[u8]) {
    let words = input.split(|byte| *byte == b'\n').map(|word| OsStr::from_bytes(word).to_owned());
    let words: Vec<_> = words.collect();
    let makes = words.iter().any(|word| word == "create" || word == "run" || word == "restore");
    let found = Invocation::parse(&words);
    assert!(makes || found.config.is_none(), "{found:?}");
}

/// Whatever the name of a file in the spool, the id it stands for leads to no file elsewhere.
fn spool_name(name: &str) {
    const NAME_MAX: usize = 255;
    if name.len() > NAME_MAX {
        return;
    }
    let Some(id) = spool::unescape(name) else { return };
    let path = spool::path(Path::new("/run"), &id);
    assert_eq!(path.parent(), Some(Path::new("/run").join(SPOOL).as_path()), "{}", path.display());
    assert_eq!(spool::unescape(&spool::escape(&id)), Some(id));
}

/// A journal in which other hands wrote: two of each three bytes of input say where, the third what.
fn journal(input: &[u8]) {
    thread_local! {
        static OURS: OneJournal = OneJournal::new().expect("a journal in a new directory");
    }
    OURS.with(|journal| {
        journal.write(input);
        if let Ok(reader) = Reader::open(journal.dir.path()) {
            used((reader.records(), reader.writer()));
        }
    });
}

/// A journal with a few containers in it.
struct OneJournal {
    dir: TempDir,
    file: fs::File,
    whole: Vec<u8>,
}

impl OneJournal {
    fn new() -> std::result::Result<OneJournal, Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let run_dir = RunDir::lock(dir.path(), Duration::ZERO)?;
        let (journal, _) = Journal::open(&run_dir)?;
        for n in 0..4 {
            let identity = Identity {
                id: format!("container-{n}"),
                path: format!("kubepods/{n}"),
                version: Version::V1,
                inode: n,
                pid: 1,
                start_time: n,
            };
            let terms = Terms::of(Limit::Bytes(Bytes::mib(n)));
            let slot =
                journal.insert(&Record { identity, terms, counters: Counters::default() })?;
            slot.begin_hold(Deadline::now());
        }
        let file = fs::File::options().read(true).write(true).open(journal.path())?;
        // The header and the containers.
        let mut whole = vec![0; 4096 + 4 * 3072];
        file.read_exact_at(&mut whole, 0)?;
        Ok(OneJournal { dir, file, whole })
    }

    /// Puts `input`'s bytes where it says, in what is whole otherwise.
    fn write(&self, input: &[u8]) {
        let mut bytes = self.whole.clone();
        for change in input.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
            bytes[at % self.whole.len()] = change[2];
        }
        self.file.write_all_at(&bytes, 0).expect("a write to a file of ours");
    }
}

/// A group whose files all hold the input.
#[derive(Clone)]
struct Group(Arc<Vec<u8>>);

impl ControlDir for Group {
    fn path(&self) -> &Path {
        Path::new("/fuzz")
    }
    fn open(&self, _file: &str, _access: Access) -> Result<Box<dyn ControlFile>> {
        Ok(Box::new(self.clone()))
    }
    fn has(&self, _file: &str) -> bool {
        true
    }
    fn is_gone(&self) -> bool {
        false
    }
}

type Errno<T> = std::result::Result<T, nix::errno::Errno>;

impl ControlFile for Group {
    fn read(&self, buf: &mut [u8]) -> Errno<usize> {
        let length = self.0.len().min(buf.len());
        buf[..length].copy_from_slice(&self.0[..length]);
        Ok(length)
    }
    fn write(&self, _value: &[u8]) -> Errno<()> {
        Ok(())
    }
}

fn files_v1(input: &[u8]) {
    let dir: Arc<dyn ControlDir> = Arc::new(Group(Arc::new(input.to_vec())));
    memory(&MemoryV1::open(dir.clone()).expect("every file is there"));
    let knob = Knob::open(&dir, "memory.stat", Access::Read).expect("every file is there");
    assert_eq!(knob.read().expect("it can be read"), input);
    assert!(knob.error(Op::Read, None, nix::errno::Errno::EIO).to_string().contains("/fuzz"));
}

fn files_v2(input: &[u8]) {
    memory(
        &MemoryV2::open(Arc::new(Group(Arc::new(input.to_vec())))).expect("every file is there"),
    );
}

fn memory(memory: &dyn Memory) {
    // A message must quote no more than a line's worth of what does not parse.
    let short = |error: cgroupfs::Error| assert!(error.to_string().len() < 1000, "{error}");
    used(memory.usage().map_err(short));
    used(memory.limit().map_err(short));
    used(memory.high().map_err(short));
    used(memory.peak().map_err(short));
    used(memory.stat().map_err(short));
    used(memory.counters().map_err(short));
    used(memory.swap_usage().map_err(short));
    used(memory.swap_rules().map_err(short));
    used(memory.limit_bound().map_err(short));
}

//! What the host tests of all crates share: a cgroup of the test's own, loads in it, files to read.
//!
//! Host tests run on the machine at hand and in every virtual machine of `ci/vm/tests`, on v1 and v2,
//! and touch no group but those made here: `cgshim-test-PID` right under the mount point, with one group
//! in it for each test. Both go when the tests end, a panic included.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

mod fill;

use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, ReclaimFile, Version};
use cgroupfs::{Bytes, Cgroup, Limit, MemoryHierarchy};
use fill::{grow, grow_huge, page_by_page};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) const MIB: u64 = 1 << 20;

/// Says that `test` did not run, in the form that `ci/test` collects. Past libtest, which swallows
/// `eprintln!` of tests that pass.
pub(crate) fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

/// One at a time within a binary: for what measures time, or needs the disk.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether figures are to be held that only a machine without other work can hold: `CGSHIM_TEST_STRICT=1`, by hand.
pub(crate) fn strict() -> bool {
    std::env::var_os("CGSHIM_TEST_STRICT").is_some()
}

/// What something that takes `strictly` so long may take: on a machine that does other things too, which a test
/// cannot know, ten times that, and a few seconds in any case.
pub(crate) fn bar(strictly: Duration) -> Duration {
    if strict() { strictly } else { (10 * strictly).max(Duration::from_secs(5)) }
}

/// Waits until something holds: `patience` at most if [`strict`], else a minute at least.
pub(crate) fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let patience = if strict() { patience } else { patience.max(Duration::from_secs(60)) };
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < patience, "never within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether `fd` becomes readable within `patience`.
pub(crate) fn readable(fd: impl AsFd, patience: Duration) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(patience).unwrap()).unwrap() > 0
}

/// `MemTotal`: sizes follow the machine's.
pub(crate) fn mem_total() -> Bytes {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let kib = meminfo.split_whitespace().nth(1).unwrap();
    Bytes::kib(kib.parse().unwrap())
}

/// Whether any swap is on.
pub(crate) fn host_has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

/// A cgroup for one test.
pub(crate) struct Ground {
    pub(crate) hierarchy: MemoryHierarchy,
    pub(crate) dir: Arc<Cgroup>,
    name: String,
}

/// How many tests use the parent group now: the last one removes it.
static GROUNDS: Mutex<u32> = Mutex::new(0);

fn parent_name() -> String {
    format!("cgshim-test-{}", std::process::id())
}

impl Ground {
    /// `None`, having said so, where this machine cannot run the test.
    pub(crate) fn new(test: &str) -> Option<Ground> {
        if !nix::unistd::geteuid().is_root() {
            skip(test, "making cgroups needs root");
            return None;
        }
        let hierarchy = match MemoryHierarchy::find() {
            Ok(hierarchy) => hierarchy,
            Err(error) => {
                skip(test, &error.to_string());
                return None;
            }
        };
        let mut grounds = GROUNDS.lock().unwrap_or_else(PoisonError::into_inner);
        let root = hierarchy.enable_memory(&hierarchy.mount_point).unwrap();
        if *grounds == 0 {
            root.create_child(&parent_name()).unwrap();
        }
        *grounds += 1;
        let parent = hierarchy.enable_memory(&hierarchy.mount_point.join(parent_name())).unwrap();
        parent.create_child(test).unwrap();
        let path = hierarchy.mount_point.join(parent_name()).join(test);
        let dir = Arc::new(hierarchy.enable_memory(&path).unwrap());
        Some(Ground { hierarchy, dir, name: test.into() })
    }

    pub(crate) fn v1(&self) -> bool {
        self.hierarchy.version == Version::V1
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new group in it.
    pub(crate) fn group(&self, name: &str) -> Arc<Cgroup> {
        Arc::new(self.dir.create_child(name).unwrap())
    }

    /// The groups in it now.
    pub(crate) fn groups(&self) -> Vec<String> {
        self.dir.children().unwrap()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let mut grounds = GROUNDS.lock().unwrap_or_else(PoisonError::into_inner);
        let mount = &self.hierarchy.mount_point;
        let removed = remove_tree(&mount.join(parent_name()).join(&self.name));
        *grounds -= 1;
        if *grounds == 0 {
            let _ = remove_tree(&mount.join(parent_name()));
        }
        if let Err(error) = removed
            && !std::thread::panicking()
        {
            panic!("{error}");
        }
    }
}

/// Kills what is in a group, as `runc kill --all` does: false if nobody was.
pub(crate) fn kill_members(dir: &Path) -> bool {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    !procs.is_empty()
}

/// Kills what is in a group and below, and removes it, trying for 10 s.
fn remove_tree(dir: &Path) -> Result<(), String> {
    let start = Instant::now();
    loop {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path())?;
            }
        }
        kill_members(dir);
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if start.elapsed() > Duration::from_secs(10) => {
                return Err(format!("{} stays: {error}", dir.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The memory controller of a group.
pub(crate) fn memory(group: &Arc<Cgroup>) -> Arc<dyn Memory> {
    let dir: Arc<dyn ControlDir> = group.clone();
    match group.has("memory.limit_in_bytes") {
        true => Arc::new(MemoryV1::open(dir).unwrap()),
        false => Arc::new(MemoryV2::open(dir).unwrap()),
    }
}

/// Keeps a group from swapping, whatever the host has: swappiness 0 on v1, `memory.swap.max` 0 on v2.
pub(crate) fn without_swap(group: &Arc<Cgroup>) {
    let memory = memory(group);
    match memory.version() {
        Version::V1 => memory.reclaim_file(ReclaimFile::Swappiness).unwrap().write("0").unwrap(),
        Version::V2 => {
            let dir: Arc<dyn ControlDir> = group.clone();
            if let Ok(knob) = Knob::open(&dir, "memory.swap.max", Access::Write) {
                knob.write("0").unwrap();
            }
        }
    }
}

/// Moves a process into a group.
pub(crate) fn join(group: &Cgroup, pid: u32) {
    fs::write(group.path().join("cgroup.procs"), pid.to_string()).unwrap();
}

/// Where files are whose page cache can be reclaimed: not on tmpfs.
pub(crate) fn data_dir() -> PathBuf {
    std::env::var_os("CGSHIM_DATA").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// A file on a disk, none of it cached; removed when dropped.
pub(crate) struct DiskFile(pub(crate) PathBuf);

impl DiskFile {
    pub(crate) fn new(size: Bytes) -> DiskFile {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let file =
            DiskFile(data_dir().join(format!("cgshim-test-{}-{number}", std::process::id())));
        let mut out = File::create(&file.0).unwrap();
        let chunk: Vec<u8> = (0..MIB).map(|i| (i * 31 % 251) as u8).collect();
        for _ in 0..size.0.div_ceil(MIB) {
            out.write_all(&chunk).unwrap();
        }
        out.set_len(size.0).unwrap();
        drop(out);
        file.drop_cache();
        file
    }

    /// A file of holes: its page cache costs no reading from the disk.
    pub(crate) fn sparse(size: Bytes) -> DiskFile {
        let file = DiskFile::new(Bytes(0));
        File::options().write(true).open(&file.0).unwrap().set_len(size.0).unwrap();
        file
    }

    /// Drops its clean cache, whoever is charged with it.
    pub(crate) fn drop_cache(&self) {
        let file = File::open(&self.0).unwrap();
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A process in a group that does what it is told: this program, started again as [`load_child`].
pub(crate) struct Load {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStderr>,
}

/// The guardian process that this one forked.
pub(crate) fn guardian_of(parent: u32) -> Option<Pid> {
    let ours = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(')') else { return false };
        name.ends_with("(cgshim-guardian")
            && rest.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    };
    let names = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).find(ours).map(Pid::from_raw)
}

impl Load {
    pub(crate) fn in_group(group: &Cgroup) -> Load {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "common::load_child", "--nocapture", "--test-threads", "1"])
            .env("CGSHIM_TEST_LOAD", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stderr.take().unwrap());
        // From here on it stays with us: dropped, it is killed and reaped.
        let mut load = Load { child, orders, answers };
        load.tell("hello").unwrap();
        join(group, load.pid());
        load
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does one thing; its answer, or `None` once it is dead.
    pub(crate) fn tell(&mut self, order: &str) -> Option<String> {
        self.order(order)?;
        self.answer()
    }

    /// Tells it what to do, and does not wait for its answer.
    pub(crate) fn order(&mut self, order: &str) -> Option<()> {
        writeln!(self.orders, "{order}").ok()
    }

    /// Waits for the answer.
    pub(crate) fn answer(&mut self) -> Option<String> {
        let mut answer = String::new();
        match self.answers.read_line(&mut answer) {
            Ok(n) if n > 0 => Some(answer.trim_end().to_owned()),
            _ => None,
        }
    }

    /// Fills so much anonymous memory and keeps it. False: it did not live to tell.
    #[must_use]
    pub(crate) fn anon(&mut self, size: Bytes) -> bool {
        self.tell(&format!("anon {}", size.0)).is_some()
    }

    /// Reads so much of a file, which charges its page cache to the group.
    pub(crate) fn read(&mut self, file: &DiskFile, size: Bytes) {
        self.tell(&format!("read {} {}", size.0, file.0.display())).unwrap();
    }

    /// Writes so much into a file, and leaves it to the kernel when the disk gets it.
    pub(crate) fn write(&mut self, file: &DiskFile, size: Bytes) {
        self.tell(&format!("write {} {}", size.0, file.0.display())).unwrap();
    }

    /// Reads a file in circles until told otherwise, so many bytes a second.
    pub(crate) fn stream(&mut self, file: &DiskFile, rate: Bytes) {
        self.tell(&format!("stream {} {}", rate.0, file.0.display())).unwrap();
    }

    /// Grows in the background by so many bytes a second (0: as fast as it can), up to `most`.
    pub(crate) fn grow(&mut self, rate: Bytes, most: Bytes) {
        self.tell(&format!("grow {} {}", rate.0, most.0)).unwrap();
    }

    /// As [`Load::grow`], in pieces that huge pages fit into.
    pub(crate) fn grow_huge(&mut self, rate: Bytes, most: Bytes) {
        self.tell(&format!("grow-huge {} {}", rate.0, most.0)).unwrap();
    }

    /// Reads a file a page at a time, without read-ahead, so many bytes a second.
    pub(crate) fn stream_pages(&mut self, file: &DiskFile, rate: Bytes) {
        self.tell(&format!("pages {} {}", rate.0, file.0.display())).unwrap();
    }

    /// Fills anonymous memory up to `size`, so many bytes a second, and never looks at it again.
    pub(crate) fn grow_pages(&mut self, rate: Bytes, size: Bytes) {
        self.tell(&format!("grow-pages {} {}", rate.0, size.0)).unwrap();
    }

    /// Allocates, fills and frees so much, over and over, for so long: how long each took, in microseconds.
    pub(crate) fn allocate(&mut self, size: Bytes, time: Duration) -> Vec<u64> {
        let took = self.tell(&format!("allocate {} {}", size.0, time.as_millis())).unwrap();
        took.split(' ').map(|us| us.parse().unwrap()).collect()
    }

    /// How much [`Load::stream_pages`] or [`Load::grow_pages`] has done, in bytes.
    pub(crate) fn done(&mut self) -> u64 {
        self.tell("done").unwrap().parse().unwrap()
    }

    /// Frees its anonymous memory.
    pub(crate) fn free(&mut self) {
        self.tell("free").unwrap();
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what [`Load`] starts. Takes orders from standard input, answers on standard error
/// (standard output is libtest's).
#[test]
fn load_child() {
    if std::env::var_os("CGSHIM_TEST_LOAD").is_none() {
        return;
    }
    static DONE: AtomicU64 = AtomicU64::new(0);
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut files = Vec::new();
    for order in std::io::stdin().lines() {
        let order = order.unwrap();
        let mut words = order.splitn(3, ' ');
        let word = words.next().unwrap();
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        let answer = match word {
            "hello" => "hello".into(),
            "anon" => {
                let size = usize::try_from(number()).unwrap();
                // Byte by byte, a build without optimisation takes a second for 4 MiB in an emulated machine.
                let pattern: Vec<u8> = (0..16 << 10).map(|i| (i / 64 * 7) as u8).collect();
                let mut filled = Vec::with_capacity(size);
                while filled.len() < size {
                    filled.extend_from_slice(&pattern[..pattern.len().min(size - filled.len())]);
                }
                held.push(filled);
                "ok".into()
            }
            "grow" | "grow-huge" => {
                let huge = word == "grow-huge";
                let (rate, most) = (number(), words.next().unwrap().parse::<u64>().unwrap());
                std::thread::spawn(move || match huge {
                    true => grow_huge(rate, most),
                    false => grow(rate, most),
                });
                "ok".into()
            }
            "allocate" => {
                let (size, time) = (number() as usize, words.next().unwrap().parse().unwrap());
                // Small: what is measured is near high, and this is charged too.
                let (start, mut took) = (Instant::now(), Vec::<u32>::new());
                while start.elapsed() < Duration::from_millis(time) {
                    let before = Instant::now();
                    // Beyond the largest mmap threshold: a mapping of its own, which is gone when it is dropped.
                    let mut fresh = Vec::<u8>::with_capacity(33 << 20);
                    (0..size / 4096).for_each(|_| fresh.extend_from_slice(&[7; 4096]));
                    drop(fresh);
                    took.push(before.elapsed().as_micros() as u32);
                }
                took.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
            }
            "free" => {
                held.clear();
                "ok".into()
            }
            "read" => {
                let size = number();
                let mut file = File::open(words.next().unwrap()).unwrap();
                std::io::copy(&mut (&mut file).take(size), &mut std::io::sink()).unwrap();
                files.push(file);
                "ok".into()
            }
            "write" => {
                let size = number() as usize;
                let mut file = File::create(words.next().unwrap()).unwrap();
                file.write_all(&vec![7; size]).unwrap();
                files.push(file);
                "ok".into()
            }
            "stream" => {
                let rate = number();
                let mut file = File::open(words.next().unwrap()).unwrap();
                std::thread::spawn(move || {
                    let (start, mut done) = (Instant::now(), 0);
                    let mut buffer = vec![0; 256 << 10];
                    loop {
                        match file.read(&mut buffer).unwrap() {
                            0 => file.rewind().unwrap(),
                            n => done += n as u64,
                        }
                        let due = Duration::from_secs_f64(done as f64 / rate as f64);
                        std::thread::sleep(due.saturating_sub(start.elapsed()));
                    }
                });
                "ok".into()
            }
            "done" => DONE.load(Ordering::SeqCst).to_string(),
            "pages" => {
                let rate = number();
                let mut file = File::open(words.next().unwrap()).unwrap();
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    page_by_page(&DONE, rate, || file.read(&mut buffer).unwrap() > 0);
                });
                "ok".into()
            }
            "grow-pages" => {
                let (rate, size) = (number(), words.next().unwrap().parse().unwrap());
                std::thread::spawn(move || {
                    let mut held = Vec::<u8>::with_capacity(size);
                    page_by_page(&DONE, rate, || {
                        // No page is like its neighbour, and it is quick in a debug build.
                        held.extend_from_slice(&[(held.len() >> 12) as u8; 4096]);
                        held.len() < size
                    });
                });
                "ok".into()
            }
            "dirty" => {
                let rate = number();
                let path = words.next().unwrap().to_owned() + ".dirty";
                std::thread::spawn(move || {
                    let mut file = File::create(&path).unwrap();
                    // Gone with this process.
                    fs::remove_file(&path).unwrap();
                    let (start, mut done) = (Instant::now(), 0);
                    let buffer = vec![7; 256 << 10];
                    loop {
                        file.write_all(&buffer).unwrap();
                        done += buffer.len() as u64;
                        if done % (256 * MIB) == 0 {
                            file.rewind().unwrap();
                        }
                        let due = Duration::from_secs_f64(done as f64 / rate as f64);
                        std::thread::sleep(due.saturating_sub(start.elapsed()));
                    }
                });
                "ok".into()
            }
            "probe" => match cgroupfs::probe::Capabilities::probe() {
                Ok(found) => format!("{} features", found.features.len()),
                Err(error) => error.to_string(),
            },
            _ => format!("no order: {order}"),
        };
        writeln!(std::io::stderr(), "{answer}").unwrap();
    }
}

/// Looks at a group's limit all the time, and remembers the lowest.
pub(crate) struct LowestLimit {
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<Limit>>,
}

impl LowestLimit {
    pub(crate) fn watch(memory: Arc<dyn Memory>) -> LowestLimit {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let watcher = std::thread::spawn(move || {
            let mut lowest = Limit::Max;
            // Once at least, however late this thread comes to run.
            loop {
                lowest = lowest.min(memory.limit().unwrap_or(Limit::Max));
                if seen.load(Ordering::SeqCst) {
                    return lowest;
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        LowestLimit { stop, watcher: Some(watcher) }
    }

    pub(crate) fn seen(mut self) -> Limit {
        self.stop.store(true, Ordering::SeqCst);
        self.watcher.take().unwrap().join().unwrap()
    }
}

impl Drop for LowestLimit {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Runtimes make a container's path in every hierarchy, and remove its last part alone: the rest goes with this.
/// `path` is one of a container, as `/proc/PID/cgroup` has it.
pub(crate) fn remove_what_runtimes_left(ground: &Ground, path: &str) {
    let of_tests = path.split('/').nth(1).unwrap();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        if !ground.hierarchy.mount_point.starts_with(hierarchy.path()) {
            remove_groups(&hierarchy.path().join(of_tests));
        }
    }
}

fn remove_groups(dir: &Path) {
    for below in fs::read_dir(dir).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&below.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

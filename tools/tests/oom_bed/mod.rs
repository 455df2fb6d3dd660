//! What the tests of OOM records share: a watch with a store of its own, and who is to be killed.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use crate::cgctl;
use crate::common::{Ground, memory, without_swap};
use cgroupfs::files::ControlDir;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::core::oom::Record;
use cgshim::driver::oom::{Deeds, Identity, OomOptions, OomWatch, Told};
use cgshim::oom::{Found, find};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A watch with a store of its own.
pub(crate) struct Watching {
    pub(crate) watch: OomWatch,
    run_dir: tempfile::TempDir,
    keys: AtomicU64,
    /// Told of while something else was waited for.
    early: Mutex<Vec<Record>>,
}

impl Watching {
    pub(crate) fn new() -> Watching {
        Watching::with(OomOptions::default())
    }

    /// One that can read neither the kernel log nor a tracepoint.
    pub(crate) fn blind() -> Watching {
        let log = PathBuf::from("/nonexistent/kmsg");
        Watching::with(OomOptions { log, tracefs: Vec::new(), ..OomOptions::default() })
    }

    pub(crate) fn with(options: OomOptions) -> Watching {
        // As run directories are: on a disk a record waits for the file system.
        let run_dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let run_dir_path = Some(run_dir.path().to_path_buf());
        let watch = OomWatch::start(OomOptions { run_dir: run_dir_path, ..options }).unwrap();
        Watching { watch, run_dir, keys: AtomicU64::new(1), early: Mutex::default() }
    }

    pub(crate) fn sees_the_log(&self) -> bool {
        self.watch.sources().log.is_ok()
    }

    pub(crate) fn add(&self, group: &Arc<Cgroup>, init: Option<u32>) -> u64 {
        let key = self.keys.fetch_add(1, Ordering::SeqCst);
        let init = init.map(|pid| i32::try_from(pid).unwrap());
        let identity = Identity { init, ..Identity::default() };
        self.watch.watch(key, group.clone(), None, identity, Arc::new(Deeds::default()));
        key
    }

    /// Waits until the watch has `n` groups more open. Records that it tells of meanwhile come with the next ones.
    pub(crate) fn has_opened(&self, mut n: usize) {
        let start = Instant::now();
        while n > 0 {
            match self.watch.next((60 * SECOND).saturating_sub(start.elapsed())) {
                Some(Told::Watching(_)) => n -= 1,
                Some(Told::Record(_, record)) => self.early.lock().unwrap().push(*record),
                Some(_) => {}
                None => panic!("not opened within a minute"),
            }
        }
    }

    /// The records that are told of within `patience`, once `n` are there.
    pub(crate) fn records(&self, n: usize, patience: Duration) -> Vec<Record> {
        let start = Instant::now();
        let mut records = std::mem::take(&mut *self.early.lock().unwrap());
        while records.len() < n {
            let left = patience.saturating_sub(start.elapsed());
            match self.watch.next(left) {
                Some(Told::Record(_, record)) => records.push(*record),
                Some(_) => {}
                None => break,
            }
        }
        records
    }

    /// The only one; nothing more comes.
    pub(crate) fn only(&self) -> Record {
        let mut records = self.records(1, 10 * SECOND);
        records.extend(self.records(1, SECOND / 2));
        assert_eq!(records.len(), 1, "{records:#?}");
        let record = records.remove(0);
        // Any process finds the same on disk.
        match find(self.run_dir.path(), &record.id).unwrap() {
            Found::Records(found) => assert_eq!(found, std::slice::from_ref(&record)),
            other => panic!("{other:?}"),
        }
        record
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn limit(group: &Arc<Cgroup>, size: Bytes) -> Arc<dyn Memory> {
    let memory = memory(group);
    without_swap(group);
    memory.set_limit(Limit::Bytes(size)).unwrap();
    memory
}

/// The path that the kernel log has for a group.
pub(crate) fn path_of(ground: &Ground, group: &Cgroup) -> String {
    let relative = group.path().strip_prefix(&ground.hierarchy.mount_point).unwrap();
    format!("/{}", relative.display())
}

pub(crate) fn victim(record: &Record) -> Option<i32> {
    record.victim.as_ref().map(|victim| victim.pid)
}

/// A process that fills more than it may, in `group` from its start; once it is told to go.
pub(crate) fn greedy(group: &Cgroup) -> Child {
    let procs = group.path().join("cgroup.procs");
    Command::new("/bin/sh")
        .arg("-c")
        .arg("echo $$ > \"$0\" && read -r go && exec \"$@\"")
        .arg(procs)
        .arg(cgctl::memload())
        .args(["anon", "--size", "256M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Tells it to go. By then the watch has its container: it takes orders at once, at real-time priority.
pub(crate) fn go(child: &mut Child) {
    use std::io::Write;
    std::thread::sleep(Duration::from_millis(10));
    match child.stdin.take().unwrap().write_all(b"go\n") {
        Ok(()) => {}
        // In a storm anybody is killed, also who has yet to be told.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}"),
    }
}

/// Removes a group whose last process has just exited.
pub(crate) fn remove(ground: &Ground, name: &str) {
    ground.dir.remove_child(name, 5 * SECOND).unwrap();
}

//! `/proc/PID/task/TID/stat`: what one task (thread) faults in, and whether it is about to die.

use super::slurp;
use super::stopped::Stopped;
use crate::error::{Error, Op, Result};
use crate::flat::words;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// The fields that cgshim needs; numbered as in proc_pid_stat(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskStat {
    /// (3) The state's letter: `R`, `S`, `D`, `T`, `Z`, ...
    pub state: u8,
    /// (10) Minor faults.
    pub minflt: u64,
    /// (12) Major faults.
    pub majflt: u64,
    /// (14) Time in user mode, in clock ticks.
    pub utime: u64,
    /// (15) Time in the kernel, in clock ticks.
    pub stime: u64,
    /// (20) Threads of its process.
    pub num_threads: u64,
    /// (22) When it started, in clock ticks after boot: tells tasks of one id apart.
    pub starttime: u64,
    /// (24) Resident set of its process, in pages. Counted in batches of 32 pages a CPU and more.
    pub rss: u64,
    /// (31) The task's own pending signals, the first 31 of them.
    pub signal: u64,
    /// Page faults of its whole process, by those who ask for them as well ([`Task::stat_beside`]); else 0.
    pub process_faults: u64,
}

/// SIGKILL in a mask of signals.
const SIGKILL: u64 = 1 << 8;

impl TaskStat {
    /// Takes the fields after the name, which may hold anything, `)` and newlines included.
    pub fn parse(content: &[u8]) -> Option<TaskStat> {
        let name_end = content.iter().rposition(|byte| *byte == b')')?;
        let mut fields = words(&content[name_end + 1..]);
        let state = *fields.next()?.first()?;
        // The next is field 4; nth() counts from there.
        let mut at = 4;
        let mut field = |number: usize| {
            let value = fields.nth(number - at)?;
            at = number + 1;
            std::str::from_utf8(value).ok()?.parse::<u64>().ok()
        };
        Some(TaskStat {
            state,
            minflt: field(10)?,
            majflt: field(12)?,
            utime: field(14)?,
            stime: field(15)?,
            num_threads: field(20)?,
            starttime: field(22)?,
            rss: field(24)?,
            signal: field(31)?,
            process_faults: 0,
        })
    }

    /// Whether the task is to die as soon as it runs. A fatal signal to the process puts a SIGKILL on
    /// each of its tasks (`complete_signal()`); a task frozen by the v1 freezer keeps it pending.
    pub const fn killed(&self) -> bool {
        self.signal & SIGKILL != 0
    }

    /// Page faults of both kinds.
    pub const fn faults(&self) -> u64 {
        self.minflt + self.majflt
    }
}

/// A task's `stat`, open: it goes on meaning this task even if its id is used again.
#[derive(Debug)]
pub struct Task {
    fd: OwnedFd,
    tid: u32,
    pid: u32,
}

impl Task {
    /// Opens the task `tid`, of whatever process.
    ///
    /// # Errors
    /// `Absent` where there is no such task (any more); `Refused` with the errno otherwise.
    pub fn open(tid: u32) -> Result<Task> {
        // Of the task itself: /proc/TID/stat would add up its whole process.
        let path = PathBuf::from(format!("/proc/{tid}/task/{tid}/stat"));
        let fd = match open(&path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ESRCH) => {
                return Err(Error::Absent { path, why: "there is no such task (any more)" });
            }
            Err(errno) => return Err(Error::refused(Op::Open, path, errno)),
        };
        let pid = process_of(tid).unwrap_or(tid);
        Ok(Task { fd, tid, pid })
    }

    /// Its id.
    pub const fn tid(&self) -> u32 {
        self.tid
    }

    /// Its process.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Reads it, without allocating. `None` once the task is gone.
    pub fn stat(&self) -> Option<TaskStat> {
        let mut buf = [0; 1024];
        let n = nix::sys::uio::pread(&self.fd, &mut buf, 0).ok()?;
        TaskStat::parse(&buf[..n])
    }

    /// The same with the page faults of its whole process, threads that have ended included. A process is looked at
    /// once as long as `processes` is kept.
    pub fn stat_beside(&self, processes: &mut BTreeMap<u32, u64>) -> Option<TaskStat> {
        let mut stat = self.stat()?;
        stat.process_faults = match stat.num_threads {
            ..=1 => stat.faults(),
            _ => *processes.entry(self.pid).or_insert_with(|| process_faults(self.pid)),
        };
        Some(stat)
    }

    /// Where it is, if it does not run (`/proc/TID/syscall`). [`Stopped::Called`] where the kernel does not tell.
    pub fn stopped(&self) -> Stopped {
        let path = format!("/proc/{}/task/{}/syscall", self.tid, self.tid);
        std::fs::read(path).map_or(Stopped::Called, |said| Stopped::parse(&said))
    }
}

/// CPU time of a task, and how often it slept: of its own accord, or being frozen
/// (`/proc/TID/schedstat`, and `voluntary_ctxt_switches` of its `status`). `None` once it is gone; without
/// `CONFIG_SCHED_INFO` the time is 0.
pub fn ran_and_slept(tid: u32) -> Option<(Duration, u64)> {
    // Of the task itself, as in Task::open().
    let status = std::fs::read(format!("/proc/{tid}/task/{tid}/status")).ok()?;
    let slept = crate::flat::get(&status, "voluntary_ctxt_switches")?;
    Some((ran(tid).unwrap_or_default(), slept))
}

/// CPU time of a task so far (`/proc/TID/schedstat`). `None` once it is gone, and without `CONFIG_SCHED_INFO`.
pub fn ran(tid: u32) -> Option<Duration> {
    let content = std::fs::read(format!("/proc/{tid}/task/{tid}/schedstat")).ok()?;
    let nanos = std::str::from_utf8(words(&content).next()?).ok()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// Bytes that a task has read and written by system calls so far, to and from whatever (`rchar` and `wchar` of
/// `/proc/TID/io`, `add_rchar()`, `add_wchar()`). `None` once it is gone, and without `CONFIG_TASK_IO_ACCOUNTING` or the
/// right to trace it.
pub fn transferred(tid: u32) -> Option<u64> {
    let content = std::fs::read(format!("/proc/{tid}/task/{tid}/io")).ok()?;
    let (read, written) =
        (crate::flat::get(&content, "rchar")?, crate::flat::get(&content, "wchar")?);
    Some(read.saturating_add(written))
}

/// Page faults of a process, all of its threads together; 0 once it is gone.
fn process_faults(pid: u32) -> u64 {
    let stat = slurp(format!("/proc/{pid}/stat").as_ref(), "").ok();
    stat.and_then(|stat| TaskStat::parse(&stat)).map_or(0, |stat| stat.faults())
}

/// When the task started (22), in clock ticks after boot. `None` once it is gone.
pub fn starttime(tid: u32) -> Option<u64> {
    let stat = slurp(format!("/proc/{tid}/stat").as_ref(), "").ok()?;
    Some(TaskStat::parse(&stat)?.starttime)
}

/// The process (`Tgid`) of a task: itself, or, as `/proc` knows the ids of threads too, the one that it is a
/// thread of. `None` once it is gone.
pub fn process_of(tid: u32) -> Option<u32> {
    let status = slurp(format!("/proc/{tid}/status").as_ref(), "").ok()?;
    let tgid = crate::flat::get(&status, "Tgid")?;
    u32::try_from(tgid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_thread_is_told_from_its_process() {
        let own = std::process::id();
        assert_eq!(process_of(own), Some(own));
        let thread = std::thread::spawn(|| {
            let tid = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
            (process_of(tid), starttime(tid))
        });
        let (process, started) = thread.join().unwrap();
        assert_eq!(process, Some(own));
        assert!(started >= starttime(own));
        assert_eq!((process_of(u32::MAX), starttime(u32::MAX)), (None, None));
    }

    #[test]
    fn a_name_full_of_parentheses_does_not_confuse() {
        let line =
            b"4242 (a) R (b) S 1 2 3 4 5 6 70 8 90 10 11 12 13 14 20 0 1 0 555 1000 777 99 1 2 \
                     3 4 5 256 0 0 0 0 0 0 17 1 0 0 0 0 0";
        let stat = TaskStat::parse(line).unwrap();
        assert_eq!(
            stat,
            TaskStat {
                state: b'S',
                minflt: 70,
                majflt: 90,
                utime: 11,
                stime: 12,
                num_threads: 1,
                starttime: 555,
                rss: 777,
                signal: 256,
                process_faults: 0,
            }
        );
        assert!(stat.killed());
    }

    #[test]
    fn our_own_faults_are_counted() {
        let me = Task::open(nix::unistd::gettid().as_raw() as u32).unwrap();
        assert_eq!(me.pid(), std::process::id());
        let before = me.stat().unwrap();
        // More than an allocator keeps for later: its pages are new.
        let filled = vec![1u8; 64 << 20];
        assert!(std::hint::black_box(&filled).iter().all(|byte| *byte == 1));
        let after = me.stat().unwrap();
        assert!(after.faults() > before.faults() && !after.killed());
        assert_eq!(after.starttime, before.starttime);
    }

    #[test]
    fn faults_of_other_threads_are_their_process_s() {
        let (said, fill) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let thread = std::thread::spawn(move || {
            said.0.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            fill.1.recv().unwrap();
        });
        let other = Task::open(said.1.recv().unwrap()).unwrap();
        let at = || other.stat_beside(&mut BTreeMap::new()).unwrap();
        let before = at();
        let filled = vec![1u8; 64 << 20];
        assert!(std::hint::black_box(&filled).iter().all(|byte| *byte == 1));
        let after = at();
        assert!(after.num_threads > 1 && after.faults() == before.faults());
        assert!(after.process_faults > before.process_faults, "{before:?} {after:?}");
        fill.0.send(()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn sleeping_and_running_are_told_apart() {
        let own = nix::unistd::gettid().as_raw() as u32;
        let before = ran_and_slept(own).unwrap();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let slept = ran_and_slept(own).unwrap();
        assert!(slept.1 >= before.1 + 3, "{before:?} {slept:?}");
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let spun = ran_and_slept(own).unwrap();
        // Unless the kernel does not count it.
        assert!(spun.0 > slept.0 || spun.0 == Duration::ZERO, "{slept:?} {spun:?}");
        assert_eq!(ran_and_slept(u32::MAX), None);
    }

    #[test]
    fn what_a_thread_writes_is_counted_for_it_alone() {
        let writes = |bytes: usize| {
            move || {
                let own = nix::unistd::gettid().as_raw() as u32;
                let before = transferred(own)?;
                std::fs::write("/dev/null", vec![1; bytes]).unwrap();
                Some(transferred(own)? - before)
            }
        };
        let threads = [1 << 20, 1 << 10].map(|bytes| std::thread::spawn(writes(bytes)));
        // Reading its own counters counts, too.
        let [much, little] = threads.map(|thread| thread.join().unwrap().unwrap());
        assert!((1 << 20..(1 << 20) + 4096).contains(&much), "{much}");
        assert!((1 << 10..(1 << 10) + 4096).contains(&little), "{little}");
        assert_eq!(transferred(u32::MAX), None);
    }

    #[test]
    fn a_task_that_is_gone_stays_gone() {
        let tid = std::thread::spawn(|| nix::unistd::gettid().as_raw() as u32);
        let tid = tid.join().unwrap();
        // Its id may be in use again only after the whole range was.
        assert!(Task::open(tid).is_err_and(|error| error.is_absent()));
    }

    proptest! {
        #[test]
        fn any_content_parses_or_not_but_never_panics(content: Vec<u8>) {
            let _ = TaskStat::parse(&content);
        }
    }
}

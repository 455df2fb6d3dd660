//! Pages on their way to the lists that reclaim takes from.
//!
//! What was read last is in a batch of the CPU that read it (`struct cpu_fbatches`), up to 31 folios each. Reclaim looks into
//! those of the CPU it runs on only (`shrink_inactive_list()`: `lru_add_drain()`). Measured with runc on 6.18, two CPUs, 4
//! MiB read: one in ten containers changes its CPU meanwhile and leaves some 15 pages on the other, which keep its group.

use crate::driver::sys;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// On so many CPUs pages are looked for.
const MOST_CPUS: usize = 64;

/// More take too long while a runtime is on its way to the `rmdir` (10 us each).
const FEW_CPUS: usize = 8;

/// The CPUs that may have some.
pub(super) struct Cpus {
    all: Vec<Cpu>,
    any: CpuSet,
    file: Option<File>,
}

struct Cpu {
    number: usize,
    set: CpuSet,
}

impl Cpus {
    /// Those this thread may run on; none where there are too many to visit.
    pub(super) fn find() -> Cpus {
        let any = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let mut all = Vec::new();
        for number in (0..CpuSet::count()).filter(|cpu| any.is_set(*cpu).unwrap_or(false)) {
            let mut set = CpuSet::new();
            if set.set(number).is_ok() {
                all.push(Cpu { number, set });
            }
        }
        if all.len() > MOST_CPUS {
            all.clear();
        }
        Cpus { all, any, file: File::open("/proc/self/exe").ok() }
    }

    /// They are visited in less than a tenth of a millisecond.
    pub(super) fn are_few(&self) -> bool {
        self.all.len() <= FEW_CPUS
    }

    /// Has each CPU put its batches on the lists, by being there: the one this thread is on first, and not the `writer`'s,
    /// whose write does that itself.
    pub(super) fn drain(&self, writer: impl Fn() -> Option<usize>) {
        let Some(file) = &self.file else { return };
        let here = sched_getcpu().ok();
        let (near, far): (Vec<_>, Vec<_>) =
            self.all.iter().partition(|cpu| Some(cpu.number) == here);
        for cpu in near.into_iter().chain(far) {
            if Some(cpu.number) != writer() && sched_setaffinity(Pid::from_raw(0), &cpu.set).is_ok()
            {
                // Begins with `lru_add_drain()`, and finds nothing to drop a long way behind the end of the file.
                let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                let _ = posix_fadvise(file, 1 << 40, 4096, advice);
            }
        }
        let _ = sched_setaffinity(Pid::from_raw(0), &self.any);
    }
}

/// A thread at real-time priority that visits the CPUs when a container exits, while another looks and writes: between a
/// first write and a second one for what was on its way the runtime removes the group.
///
/// It hears of the exits itself: waking it would take the writer 16 us.
pub(super) struct Visitor {
    exits: Arc<Epoll>,
    end: EventFd,
    writer: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// The writer is not at it.
const NOWHERE: usize = usize::MAX;

/// What an epoll token stands for.
const END: u64 = 0;
const EXIT: u64 = 1;

impl Visitor {
    /// `None` where no other CPU is to be visited, or too many are.
    pub(super) fn start() -> Option<Visitor> {
        let cpus = Cpus::find();
        if cpus.all.len() < 2 || !cpus.are_few() {
            return None;
        }
        let exits = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()?);
        let end = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok()?;
        exits.add(&end, EpollEvent::new(EpollFlags::EPOLLIN, END)).ok()?;
        let writer = Arc::new(AtomicUsize::new(NOWHERE));
        let (heard, writes) = (exits.clone(), writer.clone());
        let thread = std::thread::Builder::new()
            .name("cgshim-batches".into())
            .stack_size(64 << 10)
            .spawn(move || {
                sys::block_signals();
                // Where that is refused it would come too late, and is a nuisance only.
                if sys::may_be_real_time().is_err() {
                    return;
                }
                let mut events = [EpollEvent::empty(); 16];
                loop {
                    let ready = match heard.wait(&mut events, EpollTimeout::NONE) {
                        // The daemon was stopped, and goes on.
                        Err(Errno::EINTR) => 0,
                        Err(_) => return,
                        Ok(ready) => ready,
                    };
                    if events.iter().take(ready).any(|event| event.data() == END) {
                        return;
                    }
                    cpus.drain(|| Some(writes.load(Ordering::Relaxed)));
                }
            })
            .ok()?;
        Some(Visitor { exits, end, writer, thread: Some(thread) })
    }

    /// It sets out once when the process of `pidfd` exits, unless that is closed before.
    pub(super) fn hears_of(&self, pidfd: BorrowedFd<'_>) {
        let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        if let Err(errno) = self.exits.add(pidfd, EpollEvent::new(once, EXIT)) {
            log::debug!("no CPU is visited at an exit: {errno}");
        }
    }

    /// Runs `write`, which may write. Its CPU is not visited meanwhile.
    pub(super) fn stays_away<T>(&self, write: impl FnOnce() -> T) -> T {
        self.writer.store(sched_getcpu().unwrap_or(NOWHERE), Ordering::Relaxed);
        let result = write();
        self.writer.store(NOWHERE, Ordering::Relaxed);
        result
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.end.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// How often the visitor has been given a CPU.
    fn times_it_ran() -> u64 {
        let named = |task: &std::path::Path| {
            std::fs::read_to_string(task.join("comm"))
                .is_ok_and(|name| name.trim() == "cgshim-batches")
        };
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let task = tasks.map(|task| task.path()).find(|task| named(task));
        let stat = task.and_then(|task| std::fs::read_to_string(task.join("schedstat")).ok());
        stat.unwrap_or_default().split_whitespace().nth(2).map_or(0, |text| text.parse().unwrap())
    }

    #[test]
    fn it_sets_out_at_an_exit() {
        if sys::may_be_real_time().is_err() {
            eprintln!("SKIP it_sets_out_at_an_exit: real-time priority is refused here");
            return;
        }
        let Some(visitor) = Visitor::start() else {
            eprintln!("SKIP it_sets_out_at_an_exit: there is one CPU, or there are too many");
            return;
        };
        let mut child =
            Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pidfd = crate::driver::sys::pidfd_open(child.id().cast_signed()).unwrap();
        visitor.hears_of(pidfd.as_fd());
        std::thread::sleep(Duration::from_millis(20));
        let before = times_it_ran();
        drop(child.stdin.take());
        child.wait().unwrap();
        let exit = Instant::now();
        while times_it_ran() == before {
            assert!(exit.elapsed() < Duration::from_secs(5), "it sits still");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Once: the pidfd stays readable.
        std::thread::sleep(Duration::from_millis(20));
        let after = times_it_ran();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(times_it_ran(), after);
        drop(visitor);
        assert_eq!(times_it_ran(), 0, "it is still there");
    }

    #[test]
    fn all_cpus_are_visited_but_the_writers() {
        let cpus = Cpus::find();
        let asked = std::cell::RefCell::new(0);
        let first = cpus.all.first().map(|cpu| cpu.number);
        let here = sched_getaffinity(Pid::from_raw(0)).unwrap();
        cpus.drain(|| {
            *asked.borrow_mut() += 1;
            first
        });
        assert_eq!(*asked.borrow(), cpus.all.len());
        let after = sched_getaffinity(Pid::from_raw(0)).unwrap();
        assert_eq!(after, here, "it may run where it might before");
    }
}

//! Pages on their way to the lists that reclaim takes from.
//!
//! What was read last is in a batch of the CPU that read it (`struct cpu_fbatches`), up to 31 folios each. Reclaim looks into
//! those of the CPU it runs on only (`shrink_inactive_list()`: `lru_add_drain()`). Measured with runc on 6.18, two CPUs, 4
//! MiB read: one in ten containers changes its CPU meanwhile and leaves some 15 pages on the other, which keep its group.

use crate::driver::cpus::Allowed;
use crate::driver::sys;
use memmap2::MmapMut;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sched::sched_getcpu;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// `statfs(2)`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// The CPUs that may have some.
pub(super) struct Cpus {
    allowed: Allowed,
    /// Our own, unless it is in memory.
    file: Option<File>,
}

impl Cpus {
    /// Those this thread may run on; none where there are too many to visit.
    pub(super) fn find() -> Cpus {
        Cpus { allowed: Allowed::find(), file: own_file() }
    }

    /// They are visited in less than a tenth of a millisecond.
    pub(super) const fn are_few(&self) -> bool {
        self.allowed.are_few()
    }

    /// Has each CPU put its batches on the lists, by being there: the one this thread is on first, and not the `writer`'s,
    /// whose write does that itself.
    pub(super) fn drain(&self, writer: impl Fn() -> Option<usize>) {
        self.allowed.visit(
            |cpu| Some(cpu) != writer(),
            || {
                match &self.file {
                    // Begins with `lru_add_drain()`, and finds nothing to drop a long way behind the end of the file.
                    Some(file) => {
                        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                        let _ = posix_fadvise(file, 1 << 40, 4096, advice);
                    }
                    // A mapping's end begins with it up to 6.7. (Not always: measured on 6.18, with it as well 5 of 400
                    // containers stayed and not 2.)
                    None => drop(MmapMut::map_anon(4096)),
                }
            },
        );
    }
}

/// Our own, of which anybody may say that it is needed no more. Of what is in memory (tmpfs, an initramfs) that does
/// nothing at all (`generic_fadvise()`).
fn own_file() -> Option<File> {
    let file = File::open("/proc/self/exe").ok()?;
    let kind = fstatfs(&file).ok()?.filesystem_type();
    [TMPFS_MAGIC, RAMFS_MAGIC].iter().all(|in_memory| *in_memory != kind).then_some(file)
}

/// A thread at real-time priority that visits the CPUs when a container exits, while another looks and writes: between a
/// first write and a second one for what was on its way the runtime removes the group. It ends a write that takes too
/// long, too: setting a timer for that would take the writer 12 us, and the runtime may be at its `rmdir` after 50.
///
/// It hears of the exits itself: waking it would take the writer 16 us. On the writer's CPU, where it may get just before the
/// write begins, it waits until that sleeps or ends.
pub(super) struct Visitor {
    exits: Arc<Epoll>,
    end: EventFd,
    writer: Arc<Writer>,
    thread: Option<JoinHandle<()>>,
}

/// What the writer and the visitor know of each other.
struct Writer {
    thread: sys::Thread,
    /// The CPU that it writes on, or [`NOWHERE`].
    cpu: AtomicUsize,
    /// When it began, in nanoseconds after `start`.
    began: AtomicU64,
    start: Instant,
    /// The visitor will look at the above once more.
    looked_after: AtomicBool,
}

/// It does not write.
const NOWHERE: usize = usize::MAX;

/// What an epoll token stands for.
const END: u64 = 0;
const EXIT: u64 = 1;

/// Between two looks at a write.
const LOOKS: u8 = 1;

impl Writer {
    fn cpu(&self) -> Option<usize> {
        Some(self.cpu.load(Ordering::SeqCst)).filter(|cpu| *cpu != NOWHERE)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// It has written for longer than `bound`.
    fn is_late(&self, bound: Duration) -> bool {
        let took = self.now().saturating_sub(self.began.load(Ordering::SeqCst));
        self.cpu().is_some() && Duration::from_nanos(took) > bound
    }
}

impl Visitor {
    /// One for writes of the calling thread, which `writer` is, of which none takes longer than `bound`. `None` where no other
    /// CPU is to be visited, or too many are.
    pub(super) fn start(writer: sys::Thread, bound: Duration) -> Option<Visitor> {
        let cpus = Cpus::find();
        if cpus.allowed.len() < 2 || !cpus.are_few() {
            return None;
        }
        let exits = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()?);
        let end = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok()?;
        exits.add(&end, EpollEvent::new(EpollFlags::EPOLLIN, END)).ok()?;
        let writer = Arc::new(Writer {
            thread: writer,
            cpu: AtomicUsize::new(NOWHERE),
            began: AtomicU64::new(0),
            start: Instant::now(),
            looked_after: AtomicBool::new(false),
        });
        let (heard, writes) = (exits.clone(), writer.clone());
        let thread = std::thread::Builder::new()
            .name("cgshim-batches".into())
            .stack_size(64 << 10)
            .spawn(move || {
                sys::block_signals();
                // Where that is refused it would come too late, and is a nuisance only.
                if sys::may_be_real_time().is_ok() {
                    visit(&heard, &cpus, &writes, bound);
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

    /// Runs `write`, whose CPU is not visited meanwhile. It is told whether it is looked after: then it is to be
    /// interruptible, and is interrupted after the bound, again and again, and perhaps once after its end.
    pub(super) fn looks_after<T>(&self, write: impl FnOnce(bool) -> T) -> T {
        let writer = &self.writer;
        writer.began.store(writer.now(), Ordering::SeqCst);
        writer.cpu.store(sched_getcpu().unwrap_or(NOWHERE - 1), Ordering::SeqCst);
        let result = write(writer.looked_after.load(Ordering::SeqCst));
        writer.cpu.store(NOWHERE, Ordering::SeqCst);
        result
    }
}

fn visit(exits: &Epoll, cpus: &Cpus, writer: &Writer, bound: Duration) {
    let mut events = [EpollEvent::empty(); 16];
    loop {
        let looks = writer.looked_after.load(Ordering::SeqCst);
        let timeout = if looks { EpollTimeout::from(LOOKS) } else { EpollTimeout::NONE };
        let ready = match exits.wait(&mut events, timeout) {
            // The daemon was stopped, and goes on.
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(ready) => ready,
        };
        let ended = events.iter().take(ready).any(|event| event.data() == END);
        if ready > 0 && !ended {
            writer.looked_after.store(true, Ordering::SeqCst);
            cpus.drain(|| writer.cpu());
        } else if writer.cpu().is_none() {
            // A write that begins after this store is not looked after; one that began before is seen.
            writer.looked_after.store(false, Ordering::SeqCst);
            if writer.cpu().is_some() {
                writer.looked_after.store(true, Ordering::SeqCst);
            } else if ended {
                return;
            }
        }
        if writer.is_late(bound) {
            sys::interrupt(writer.thread);
        }
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
        let bound = Duration::from_millis(1);
        let Some(visitor) = Visitor::start(sys::become_interruptible(), bound) else {
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
        // A write that hangs is ended, and none is looked after for ever.
        let (hangs, _open) = nix::unistd::pipe().unwrap();
        let read = visitor.looks_after(|looked_after| {
            assert!(looked_after);
            sys::until_interrupted(|| nix::unistd::read(&hangs, &mut [0]))
        });
        assert_eq!(read, Err(Errno::EINTR));
        while visitor.looks_after(|looked_after| looked_after) {
            assert!(exit.elapsed() < Duration::from_secs(5), "it looks on");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Once: the pidfd stays readable.
        let after = times_it_ran();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(times_it_ran(), after);
        drop(visitor);
        assert_eq!(times_it_ran(), 0, "it is still there");
    }
}

//! Kernel events of a cgroup: usage thresholds and OOM by eventfd (v1), `memory.events` by inotify
//! (v2). An event is a hint to look, never a fact: the counters are.

use crate::dir::Cgroup;
use crate::error::{Error, Op, Result};
use crate::files::{Access, ControlDir};
use crate::units::Bytes;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A v1 eventfd registration. Dropping it closes the eventfd, which unregisters.
///
/// Also signalled when the cgroup is removed (`memcg_event_remove`; measured on 6.18): whoever wakes
/// looks whether the group is still there.
#[derive(Debug)]
pub struct Notification(EventFd);

impl Notification {
    /// Wakes when usage crosses `threshold`, in both directions
    /// (`mem_cgroup_usage_register_event`). Nothing is signalled at registration even if usage is
    /// above already, and crossings are noticed every 128 page events a CPU: the waker finds usage
    /// several MiB past it when a task streams (measured on 6.18: 5 MiB in the median, 16 at worst).
    pub fn usage_threshold(group: &Cgroup, threshold: Bytes) -> Result<Notification> {
        Notification::usage_thresholds(&[(group, threshold)])
    }

    /// The same for several groups: whichever crosses its threshold.
    pub fn usage_thresholds(groups: &[(&Cgroup, Bytes)]) -> Result<Notification> {
        let notification = Notification::new()?;
        for (group, threshold) in groups {
            notification.register(group, "memory.usage_in_bytes", &threshold.0.to_string())?;
        }
        Ok(notification)
    }

    /// Wakes when the group, or an ancestor, is out of memory (`mem_cgroup_oom_notify`): before the
    /// kill, several times for one or not at all under contention.
    pub fn oom(group: &Cgroup) -> Result<Notification> {
        let notification = Notification::new()?;
        notification.register(group, "memory.oom_control", "")?;
        Ok(notification)
    }

    fn new() -> Result<Notification> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let eventfd = EventFd::from_flags(flags)
            .map_err(|errno| Error::refused(Op::Watch, "an eventfd", errno))?;
        Ok(Notification(eventfd))
    }

    fn register(&self, group: &Cgroup, file: &str, arguments: &str) -> Result<()> {
        // The kernel takes references of its own; the descriptor of the watched file may be closed.
        let watched = group.open_fd(file, Access::Read)?;
        let control = ControlDir::open(group, "cgroup.event_control", Access::Write)?;
        let line = format!("{} {} {arguments}", self.0.as_fd().as_raw_fd(), watched.as_raw_fd());
        loop {
            match control.write(line.as_bytes()) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(group.error(Op::Watch, file, Some(&line), errno)),
            }
        }
    }

    /// Takes what was signalled; false if nothing was.
    pub fn take(&self) -> bool {
        self.signals() > 0
    }

    /// The same, and how often it was signalled: removal of the group does so once.
    pub fn signals(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }
}

impl AsFd for Notification {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Modifications of control files, by inotify: `memory.events` of v2 notifies of itself
/// (`cgroup_file_notify`, at most once in 10 ms, the last never lost); `memory.limit_in_bytes` of v1
/// when another process writes it.
pub struct Modified(Inotify);

impl Modified {
    /// Watches `file` of `group`.
    pub fn watch(group: &Cgroup, file: &str) -> Result<Modified> {
        // Through our descriptor: at the group's path there may be another group of that name by now.
        let path = format!("/proc/self/fd/{}/{file}", group.fd().as_raw_fd());
        let refused = |error: std::io::Error| {
            group.error(Op::Watch, file, None, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        };
        let inotify = Inotify::init().map_err(refused)?;
        inotify.watches().add(&path, WatchMask::MODIFY).map_err(refused)?;
        Ok(Modified(inotify))
    }

    /// Takes what was signalled; false if nothing was.
    pub fn take(&mut self) -> bool {
        let mut buf = [0; 4096];
        match self.0.read_events(&mut buf) {
            Ok(events) => events.count() > 0,
            Err(_) => false,
        }
    }
}

impl AsFd for Modified {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Modifications of many control files through one inotify instance: a user has 128 of those by default
/// (`fs.inotify.max_user_instances`), and a node has more containers.
pub struct ModifiedSet {
    inotify: Inotify,
    numbers: HashMap<WatchDescriptor, u64>,
}

/// A file watched by a [`ModifiedSet`].
#[derive(Debug, Clone)]
pub struct Watch(WatchDescriptor, u64);

impl ModifiedSet {
    /// An empty one.
    pub fn new() -> Result<ModifiedSet> {
        let inotify = Inotify::init().map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            Error::refused(Op::Watch, "inotify", errno)
        })?;
        Ok(ModifiedSet { inotify, numbers: HashMap::new() })
    }

    /// Watches `file` of `group`; `number` is what [`ModifiedSet::take`] says of it. A file that is
    /// watched already goes by the new number.
    pub fn watch(&mut self, group: &Cgroup, file: &str, number: u64) -> Result<Watch> {
        // Through our descriptor: at the group's path there may be another group of that name by now.
        let path = format!("/proc/self/fd/{}/{file}", group.fd().as_raw_fd());
        let watch = self.inotify.watches().add(&path, WatchMask::MODIFY).map_err(|error| {
            group.error(Op::Watch, file, None, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })?;
        self.numbers.insert(watch.clone(), number);
        Ok(Watch(watch, number))
    }

    /// Watches it no more.
    pub fn forget(&mut self, watch: &Watch) {
        if self.numbers.get(&watch.0) == Some(&watch.1) {
            self.numbers.remove(&watch.0);
            // Gone already if the group is.
            let _ = self.inotify.watches().remove(watch.0.clone());
        }
    }

    /// Takes what was signalled: the numbers of the files that changed, each once; all of them if the
    /// kernel's queue overflowed.
    pub fn take(&mut self) -> Vec<u64> {
        let mut changed = Vec::new();
        let mut buf = [0; 4096];
        while let Ok(events) = self.inotify.read_events(&mut buf) {
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    changed.extend(self.numbers.values());
                } else if event.mask.contains(EventMask::IGNORED) {
                    self.numbers.remove(&event.wd);
                } else {
                    changed.extend(self.numbers.get(&event.wd));
                }
            }
        }
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}

impl AsFd for ModifiedSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

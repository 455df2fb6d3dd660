//! The world of a real kernel: the host's, or a virtual machine's.
//!
//! Groups are made in `cgshim-test-PID` right under the mount point, one for each claim, and are gone
//! when the claim is over. Tasks are this program, started again ([`be_a_task`]). Files to read are
//! sparse: holes have page cache like everything else, and no disk in their way.

mod load;
mod scratch;
mod sys;
mod tasks;

pub use load::be_a_task;
pub use scratch::Scratch;

use crate::{Crossing, Filled, Group, Kind, Overlap, Stop, Task, Watch, Watched, World};
use cgroupfs::events::{Modified, Notification};
use cgroupfs::files::{Access, ControlDir};
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, Version};
use cgroupfs::{Bytes, Cgroup, Error, MemoryHierarchy, Mounts};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::pthread::{pthread_kill, pthread_self};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tasks::Child;

/// The groups, tasks and files of one claim on the kernel at hand.
pub struct KernelWorld<'a> {
    hierarchy: MemoryHierarchy,
    freezer: Option<PathBuf>,
    name: String,
    ground: Group,
    groups: Vec<Arc<Cgroup>>,
    freezers: Vec<Arc<Cgroup>>,
    tasks: Vec<Child>,
    watches: Vec<Told>,
    scratch: &'a Scratch,
    read: u64,
    written: u64,
    start: Instant,
}

enum Told {
    Eventfd(Notification),
    Inotify(Modified),
}

/// Where the groups of this process's claims are.
fn parent_name() -> String {
    format!("cgshim-test-{}", std::process::id())
}

impl<'a> KernelWorld<'a> {
    /// The world of a claim. Errors: no memory controller, or no right to make groups.
    pub fn new(name: &str, scratch: &'a Scratch) -> Result<KernelWorld<'a>, Error> {
        let hierarchy = MemoryHierarchy::find()?;
        let root = hierarchy.enable_memory(&hierarchy.mount_point)?;
        if root.child(&parent_name()).is_err() {
            root.create_child(&parent_name())?;
        }
        let parent = hierarchy.enable_memory(&hierarchy.mount_point.join(parent_name()))?;
        let first = Arc::new(parent.create_child(name)?);
        let ground = open(hierarchy.version, &first, 0)?;
        let freezer = Mounts::read()?.v1("freezer").map(|mount| mount.mount_point.clone());
        scratch.reset();
        Ok(KernelWorld {
            freezer: freezer.filter(|_| hierarchy.version == Version::V1),
            hierarchy,
            name: name.to_owned(),
            groups: vec![first],
            ground,
            freezers: Vec::new(),
            tasks: Vec::new(),
            watches: Vec::new(),
            scratch,
            read: 0,
            written: 0,
            start: Instant::now(),
        })
    }

    /// Which interface the kernel at hand has.
    pub fn version(&self) -> Version {
        self.hierarchy.version
    }

    fn group(&self, key: usize) -> Result<Group, Error> {
        open(self.hierarchy.version, &self.groups[key], key)
    }

    /// Where a claim's freezer groups are.
    fn freezer_ground(&self, mount: &Path) -> Result<Cgroup, Error> {
        let mut at = Cgroup::open(mount, Path::new(""))?;
        for name in [parent_name(), self.name.clone()] {
            at = at.child(&name).or_else(|_| at.create_child(&name))?;
        }
        Ok(at)
    }

    /// Removes what is left, children first. What does not go within 5 s stays, and is said.
    fn clean(&mut self) {
        for freezer in &self.freezers {
            let dir: Arc<dyn ControlDir> = freezer.clone();
            let _ = crate::world::write(&dir, "freezer.state", "THAWED");
        }
        self.tasks.clear();
        self.watches.clear();
        let memory = self.hierarchy.mount_point.join(parent_name());
        for parent in self.freezer.iter().map(|mount| mount.join(parent_name())).chain([memory]) {
            let end = Instant::now() + Duration::from_secs(5);
            let ours = parent.join(&self.name);
            while ours.exists() && !remove_tree(&ours) {
                if Instant::now() > end {
                    let _ = writeln!(std::io::stderr(), "{} stays", ours.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = std::fs::remove_dir(parent);
        }
    }
}

fn open(version: Version, cgroup: &Arc<Cgroup>, key: usize) -> Result<Group, Error> {
    let dir: Arc<dyn ControlDir> = cgroup.clone();
    let memory: Arc<dyn Memory> = match version {
        Version::V1 => Arc::new(MemoryV1::open(dir.clone())?),
        Version::V2 => Arc::new(MemoryV2::open(dir.clone())?),
    };
    Ok(Group { dir, memory, key })
}

fn remove_tree(dir: &Path) -> bool {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    std::fs::remove_dir(dir).is_ok()
}

impl Drop for KernelWorld<'_> {
    fn drop(&mut self) {
        self.clean();
    }
}

impl World for KernelWorld<'_> {
    fn cpus(&self) -> u64 {
        let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
        online.ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(1)
    }

    fn swap_is_on(&self) -> bool {
        cgroupfs::procfs::Swaps::read().is_ok_and(|swaps| swaps.free() >= Bytes::mib(64))
    }

    fn has_freezer(&self) -> bool {
        self.freezer.is_some()
    }

    fn ground(&self) -> Group {
        self.ground.clone()
    }

    fn make(&mut self, parent: &Group, name: &str) -> Result<Group, Error> {
        self.hierarchy.enable_memory(parent.dir.path())?;
        let group = Arc::new(self.groups[parent.key].create_child(name)?);
        self.groups.push(group);
        self.group(self.groups.len() - 1)
    }

    fn remove(&mut self, group: &Group) -> Result<(), Errno> {
        rmdir(group)
    }

    fn make_freezer(
        &mut self,
        parent: Option<&Arc<dyn ControlDir>>,
        name: &str,
    ) -> Result<Arc<dyn ControlDir>, Error> {
        let above = parent.map(|parent| parent.path().to_path_buf());
        let made = match self.freezers.iter().find(|dir| Some(dir.path()) == above.as_deref()) {
            Some(parent) => parent.create_child(name)?,
            None => {
                let mount = self.freezer.clone().unwrap_or_default();
                self.freezer_ground(&mount)?.create_child(name)?
            }
        };
        let made = Arc::new(made);
        self.freezers.push(made.clone());
        Ok(made)
    }

    fn spawn(&mut self, group: &Group) -> Result<Task, Stop> {
        let child = Child::start().map_err(|error| Stop::Fails(format!("no task: {error}")))?;
        let pid = child.pid().to_string();
        self.tasks.push(child);
        group.write("cgroup.procs", &pid)?;
        Ok(Task(self.tasks.len() - 1))
    }

    fn pid(&self, task: Task) -> u32 {
        self.tasks[task.0].pid()
    }

    fn start(&mut self, task: Task, kind: Kind, size: Bytes) -> Result<(), Stop> {
        let (at, path) = match kind {
            Kind::Dirty => (&mut self.written, &self.scratch.dirty),
            _ => (&mut self.read, &self.scratch.sparse),
        };
        let order = load::order(kind, size, *at, &path.display().to_string());
        if matches!(kind, Kind::Dirty | Kind::File) {
            *at += size.0;
        }
        self.tasks[task.0].tell(&order).map_err(|error| Stop::Fails(format!("its task: {error}")))
    }

    fn finish(&mut self, task: Task, patience: Duration) -> Filled {
        self.tasks[task.0].answer(patience)
    }

    fn free(&mut self, task: Task) -> Result<(), Stop> {
        let child = &mut self.tasks[task.0];
        child.tell(load::FREE).map_err(|error| Stop::Fails(format!("its task: {error}")))?;
        match child.answer(Duration::from_secs(60)) {
            Filled::All => Ok(()),
            other => Err(Stop::Fails(format!("freeing: {other:?}"))),
        }
    }

    fn kill(&mut self, task: Task) {
        self.tasks[task.0].kill();
    }

    fn alive(&mut self, task: Task) -> bool {
        self.tasks[task.0].alive()
    }

    fn kill_is_pending(&self, task: Task) -> bool {
        self.tasks[task.0].kill_is_pending()
    }

    fn pass(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn watch(&mut self, group: &Group, watched: Watched) -> Result<Watch, Error> {
        let cgroup = &self.groups[group.key];
        let told = match watched {
            Watched::Threshold(at) => Told::Eventfd(Notification::usage_threshold(cgroup, at)?),
            Watched::Oom => Told::Eventfd(Notification::oom(cgroup)?),
            Watched::Modified(file) => Told::Inotify(Modified::watch(cgroup, file)?),
        };
        self.watches.push(told);
        Ok(Watch(self.watches.len() - 1))
    }

    fn told(&mut self, watch: Watch, patience: Duration) -> bool {
        match &mut self.watches[watch.0] {
            Told::Eventfd(eventfd) => readable(&*eventfd, patience) && eventfd.take(),
            Told::Inotify(inotify) => readable(&*inotify, patience) && inotify.take(),
        }
    }

    fn write_until(
        &mut self,
        group: &Group,
        file: &'static str,
        value: &str,
        below: Bytes,
    ) -> Result<(), Errno> {
        sys::install_handler();
        meanwhile(group, file, value, |writer, done| {
            while !done.load(Ordering::SeqCst) {
                if group.memory.usage().is_ok_and(|usage| usage <= below) {
                    let _ = pthread_kill(writer, sys::INTERRUPT);
                }
            }
        })
        .0
    }

    fn write_signalled(
        &mut self,
        group: &Group,
        file: &'static str,
        from: &str,
        to: &str,
    ) -> Result<(), Errno> {
        sys::install_handler();
        let opened = group.dir.open(file, Access::Write).map_err(|_| Errno::ENOENT)?;
        // Blanks that the kernel strips before it looks for a signal: the longer that takes, the more
        // signals come in time.
        let to = format!("{to:>3900}");
        let end = Instant::now() + Duration::from_secs(10);
        let _signals = sys::Signals::every(Duration::from_micros(61))?;
        loop {
            match opened.write(from.as_bytes()) {
                Err(Errno::EINTR) => continue,
                Err(errno) => break Err(errno),
                Ok(()) => {}
            }
            match opened.write(to.as_bytes()) {
                Ok(()) if Instant::now() < end => {}
                answer => break answer,
            }
        }
    }

    fn write_during(
        &mut self,
        group: &Group,
        file: &'static str,
        first: &str,
        below: Bytes,
        second: &str,
    ) -> Crossing {
        let other = group.dir.open(file, Access::Write);
        let (first, (overlapped, second)) = meanwhile(group, file, first, |_, done| {
            while !done.load(Ordering::SeqCst)
                && group.memory.usage().is_ok_and(|usage| usage > below)
            {}
            let answer = match &other {
                Ok(other) => other.write(second.as_bytes()),
                Err(error) => Err(error.errno().unwrap_or(Errno::ENOENT)),
            };
            (!done.load(Ordering::SeqCst), answer)
        });
        Crossing { overlapped, first, second }
    }

    fn remove_during(
        &mut self,
        group: &Group,
        file: &'static str,
        value: &str,
        below: Bytes,
    ) -> Result<Overlap, Stop> {
        let above = group.dir.path().parent().map(Path::to_path_buf);
        let parent = self.groups.iter().position(|group| Some(group.path()) == above.as_deref());
        let parent = self.group(parent.unwrap_or(0))?;
        let (written, (overlapped, removed, left)) = meanwhile(group, file, value, |_, done| {
            while !done.load(Ordering::SeqCst)
                && group.memory.usage().is_ok_and(|usage| usage > below)
            {}
            let overlapped = !done.load(Ordering::SeqCst);
            let removed = rmdir(group);
            (overlapped, removed, parent.memory.usage())
        });
        removed?;
        // Whether the write ends well is the kernel's business: its group is going.
        let _ = written;
        Ok(Overlap { overlapped, left: left? })
    }
}

/// Writes a file in a thread of its own, and does something else until that is over.
fn meanwhile<T>(
    group: &Group,
    file: &'static str,
    value: &str,
    act: impl FnOnce(nix::sys::pthread::Pthread, &AtomicBool) -> T,
) -> (Result<(), Errno>, T) {
    let opened = group.dir.open(file, Access::Write);
    let done = AtomicBool::new(false);
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _ = send.send(pthread_self());
            let answer = match &opened {
                Ok(opened) => opened.write(value.as_bytes()),
                Err(error) => Err(error.errno().unwrap_or(Errno::ENOENT)),
            };
            done.store(true, Ordering::SeqCst);
            answer
        });
        // The thread is not joined before `act` is over: its handle stays good.
        let thread = receive.recv().unwrap_or_else(|_| pthread_self());
        let came = act(thread, &done);
        (writer.join().unwrap_or(Err(Errno::ECANCELED)), came)
    })
}

/// One rmdir. A task that has just died can hold its group for an instant.
fn rmdir(group: &Group) -> Result<(), Errno> {
    let end = Instant::now() + Duration::from_millis(50);
    loop {
        match std::fs::remove_dir(group.dir.path()) {
            Ok(()) => return Ok(()),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EBUSY if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                errno => return Err(errno),
            },
        }
    }
}

fn readable(fd: impl AsFd, patience: Duration) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, patience).is_ok_and(|ready| ready > 0)
}

//! A kernel with tasks, as a claim sees it: the model's or a real one.

use crate::Stop;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Error};
use nix::errno::Errno;
use std::sync::Arc;
use std::time::Duration;

/// A memory cgroup of the claim's.
#[derive(Clone)]
pub struct Group {
    /// Its control files.
    pub dir: Arc<dyn ControlDir>,
    /// The typed reader over them.
    pub memory: Arc<dyn Memory>,
    /// The world's own name for it.
    pub(crate) key: usize,
}

/// A task of the claim's, by the world's own name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task(pub(crate) usize);

/// A registration for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch(pub(crate) usize);

/// What a task fills memory with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anonymous memory, by page faults in user mode.
    Anon,
    /// The same, locked.
    Mlocked,
    /// Anonymous memory that a system call copies to: `read(2)` into fresh pages.
    Copied,
    /// Page cache of a file that is read with `read(2)`.
    File,
    /// Page cache of a file that is written with `write(2)` and not synced.
    Dirty,
    /// Shared memory, by `write(2)` to a tmpfs file.
    Shmem,
    /// Kernel memory: pipes, filled.
    Kernel,
}

/// How a task fared with what it was told to fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// All of it is there.
    All,
    /// A system call failed after so many bytes.
    Refused(Bytes, Errno),
    /// It has not got there yet.
    NotYet,
    /// It was killed.
    Died,
}

/// What a claim can be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// v1: usage crossing so much.
    Threshold(Bytes),
    /// v1: out of memory.
    Oom,
    /// A control file that was written, or changed by itself (inotify).
    Modified(&'static str),
}

/// What came of a removal attempted while a write to the group was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// The write was still under way when the removal began.
    pub overlapped: bool,
    /// What the parent was charged with when the removal came back.
    pub left: Bytes,
}

/// What came of a second write to a file while a first one was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossing {
    /// The first write was still under way when the second came back.
    pub overlapped: bool,
    /// What the first answered.
    pub first: Result<(), Errno>,
    /// What the second answered.
    pub second: Result<(), Errno>,
}

/// A kernel: groups, tasks that charge them, time, events. Fresh for each claim.
pub trait World {
    /// CPUs: the counting fuzz is per CPU.
    fn cpus(&self) -> u64;
    /// Whether there is swap to be had.
    fn swap_is_on(&self) -> bool;
    /// Whether the v1 freezer is there.
    fn has_freezer(&self) -> bool;
    /// The claim's own group, in which it makes others.
    fn ground(&self) -> Group;
    /// Makes a group; sees to it that the parent gives the memory controller to its children.
    fn make(&mut self, parent: &Group, name: &str) -> Result<Group, Error>;
    /// Removes a group. A task of it that has just died is no obstacle.
    fn remove(&mut self, group: &Group) -> Result<(), Errno>;
    /// Makes a group in the v1 freezer's hierarchy, below another or at the top.
    fn make_freezer(
        &mut self,
        parent: Option<&Arc<dyn ControlDir>>,
        name: &str,
    ) -> Result<Arc<dyn ControlDir>, Error>;

    /// Starts a task that does nothing yet.
    fn spawn(&mut self, group: &Group) -> Result<Task, Stop>;
    /// What `cgroup.procs` calls it.
    fn pid(&self, task: Task) -> u32;
    /// Tells a task to fill so much, and does not wait for it.
    fn start(&mut self, task: Task, kind: Kind, size: Bytes) -> Result<(), Stop>;
    /// Waits for it, so long at most.
    fn finish(&mut self, task: Task, patience: Duration) -> Filled;
    /// Tells a task to give back all its anonymous memory.
    fn free(&mut self, task: Task) -> Result<(), Stop>;
    /// SIGKILL.
    fn kill(&mut self, task: Task);
    /// Whether it lives.
    fn alive(&mut self, task: Task) -> bool;
    /// Whether a SIGKILL waits for it (`ShdPnd` in `/proc/PID/status`).
    fn kill_is_pending(&self, task: Task) -> bool;

    /// Lets time pass.
    fn pass(&mut self, time: Duration);
    /// What time it is, from some moment on.
    fn now(&self) -> Duration;

    /// Registers for events.
    fn watch(&mut self, group: &Group, watched: Watched) -> Result<Watch, Error>;
    /// Whether something was signalled, now or within so long; takes it.
    fn told(&mut self, watch: Watch, patience: Duration) -> bool;

    /// Writes a file while a signal comes as soon as usage is at or below `below`.
    fn write_until(
        &mut self,
        group: &Group,
        file: &'static str,
        value: &str,
        below: Bytes,
    ) -> Result<(), Errno>;
    /// Writes `from`, then `to`, with a signal that comes just before, again and again until it did not
    /// come too late: what the write of `to` answered.
    fn write_signalled(
        &mut self,
        group: &Group,
        file: &'static str,
        from: &str,
        to: &str,
    ) -> Result<(), Errno>;
    /// Writes a file through another descriptor while a write to it is under way: when usage is at or
    /// below `below`. Waits for both.
    fn write_during(
        &mut self,
        group: &Group,
        file: &'static str,
        first: &str,
        below: Bytes,
        second: &str,
    ) -> Crossing;
    /// Removes a group while a write to one of its files is under way: from when usage is at or below
    /// `below`. Waits for both.
    fn remove_during(
        &mut self,
        group: &Group,
        file: &'static str,
        value: &str,
        below: Bytes,
    ) -> Result<Overlap, Stop>;
}

impl Group {
    /// One `write(2)`, whatever comes of it.
    pub fn write(&self, file: &'static str, value: &str) -> Result<(), Errno> {
        write(&self.dir, file, value)
    }

    /// The content of a file.
    pub fn read(&self, file: &'static str) -> Result<String, Stop> {
        read(&self.dir, file)
    }

    /// The one number in a file.
    pub fn number(&self, file: &'static str) -> Result<u64, Stop> {
        let content = self.read(file)?;
        content.trim().parse().map_err(|_| Stop::Fails(format!("{file} holds '{content}'")))
    }

    /// A number of a file by its key.
    pub fn key(&self, file: &'static str, key: &str) -> Result<u64, Stop> {
        let content = self.read(file)?;
        cgroupfs::flat::get(content.as_bytes(), key)
            .ok_or_else(|| Stop::Fails(format!("{file} has no {key}")))
    }
}

/// One `write(2)` of a control file; the errno, ENOENT where there is no such file.
pub(crate) fn write(
    dir: &Arc<dyn ControlDir>,
    file: &'static str,
    value: &str,
) -> Result<(), Errno> {
    let opened = dir.open(file, Access::Write).map_err(|error| match error {
        Error::Vanished { .. } => Errno::ENODEV,
        error => error.errno().unwrap_or(Errno::ENOENT),
    })?;
    opened.write(value.as_bytes())
}

/// The content of a control file.
pub(crate) fn read(dir: &Arc<dyn ControlDir>, file: &'static str) -> Result<String, Stop> {
    let content = Knob::open(dir, file, Access::Read)?.read()?;
    Ok(String::from_utf8_lossy(&content).trim_end().to_owned())
}

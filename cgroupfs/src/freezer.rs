//! The freezer: a child group of ours beneath a container's, whose tasks stop and go on at our word.
//!
//! The container's own `freezer.state` belongs to its runtime, which takes FROZEN there for "paused"
//! (measured: `runc exec` then fails, `runc pause` too). So tasks are moved into a child group, which is
//! frozen instead, and moved back at the end. v1's freezer takes single tasks; where there is no v1
//! freezer, `cgroup.freeze` of the unified hierarchy takes processes.

use crate::dir::Cgroup;
use crate::error::{Error, Op, Result};
use crate::files::{Access, ControlDir, ControlFile, Knob, parse_u64};
use crate::membership::Membership;
use crate::mounts::Mounts;
use nix::errno::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Which freezer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `freezer.state` of cgroup v1.
    V1,
    /// `cgroup.freeze` of the unified hierarchy (5.2 and later).
    Unified,
}

impl Kind {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::V1 => "the v1 freezer",
            Kind::Unified => "cgroup.freeze",
        }
    }
}

/// What a group's freezer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Tasks run.
    Thawed,
    /// Some of them run still.
    Freezing,
    /// None runs.
    Frozen,
}

/// The hierarchy with the freezer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freezer {
    /// Which.
    pub kind: Kind,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    mounts: Mounts,
}

impl Freezer {
    /// Finds it: a v1 freezer, else `cgroup.freeze`.
    ///
    /// [`Error::NoController`] where there is neither, or it is mounted read-only.
    pub fn find() -> Result<Freezer> {
        Freezer::among(Mounts::read()?)
    }

    /// The one that these mounts have: see [`Freezer::find`].
    pub(crate) fn among(mounts: Mounts) -> Result<Freezer> {
        let no = |why: &str| Error::NoController { controller: "freezer", why: why.into() };
        let (kind, mount_point, read_only) = match (mounts.v1("freezer"), mounts.v2()) {
            (Some(v1), _) => (Kind::V1, v1.mount_point.clone(), v1.read_only),
            (None, Some(v2)) => (Kind::Unified, v2.mount_point.clone(), v2.read_only),
            (None, None) => {
                return Err(no(
                    "neither a v1 freezer nor the unified hierarchy is mounted; mount one \
                               with 'mount -t cgroup -o freezer none /sys/fs/cgroup/freezer'",
                ));
            }
        };
        if read_only {
            return Err(no("it is mounted read-only"));
        }
        Ok(Freezer { kind, mount_point, mounts })
    }

    /// The directory of the group that a process (or task) is in.
    ///
    /// # Errors
    /// [`Error::Absent`] once the process is gone; [`Error::NoController`] where its group is not to be
    /// seen from here.
    pub fn path_of(&self, pid: u32) -> Result<PathBuf> {
        let membership = Membership::read(pid)?;
        let found = match self.kind {
            Kind::V1 => {
                membership.path("freezer").and_then(|path| self.mounts.locate_v1("freezer", path))
            }
            Kind::Unified => membership.unified().and_then(|path| self.mounts.locate_v2(path)),
        };
        found.ok_or_else(|| Error::NoController {
            controller: "freezer",
            why: format!("the group of process {pid} is not to be seen from here"),
        })
    }

    /// Opens the group whose directory is `path`.
    pub fn open(&self, path: &Path) -> Result<Cgroup> {
        Cgroup::open_absolute(&self.mount_point, path)
    }
}

/// Freezes and thaws one group. Its file is open: calls neither allocate nor look anything up.
pub struct Switch {
    file: Box<dyn ControlFile>,
    /// Says what it is set to, whatever the groups above it are.
    set: Box<dyn ControlFile>,
    kind: Kind,
}

impl Switch {
    /// Starts to freeze: tasks stop at their next return to user mode.
    pub fn freeze(&self) -> std::result::Result<(), Errno> {
        self.write(match self.kind {
            Kind::V1 => b"FROZEN",
            Kind::Unified => b"1",
        })
    }

    /// Thaws.
    pub fn thaw(&self) -> std::result::Result<(), Errno> {
        self.write(match self.kind {
            Kind::V1 => b"THAWED",
            Kind::Unified => b"0",
        })
    }

    /// Whether it is set to freeze, by whoever wrote that last: a thaw of another thread may be in force before that has
    /// returned. (`freezer.self_freezing`, `cgroup.freeze`: neither waits for a write that goes on.)
    pub fn freezes(&self) -> std::result::Result<bool, Errno> {
        let mut buf = [0; 8];
        let n = self.set.read_line(&mut buf)?;
        Ok(buf[..n].trim_ascii() == b"1")
    }

    fn write(&self, value: &[u8]) -> std::result::Result<(), Errno> {
        loop {
            match self.file.write(value) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }
}

/// A child group of ours, with the tasks that are to be frozen in it.
pub struct FreezerGroup {
    kind: Kind,
    parent: Arc<Cgroup>,
    group: Arc<Cgroup>,
    name: String,
    switch: Switch,
    /// Takes tasks in, and gives them back.
    enter: Box<dyn ControlFile>,
    leave: Box<dyn ControlFile>,
    removed: bool,
}

/// How often tasks are moved out before a group counts as one that cannot be emptied: what forks while
/// it is emptied leaves its child behind.
const EMPTYING_ROUNDS: u32 = 100;

/// How long removal is tried.
const REMOVAL: Duration = Duration::from_millis(500);

impl FreezerGroup {
    /// Makes the child `name` of `parent`. One that is there already is taken over: it was left behind
    /// by somebody who died. It is thawed first.
    pub fn create(kind: Kind, parent: Arc<Cgroup>, name: &str) -> Result<FreezerGroup> {
        let group = match parent.create_child(name) {
            Ok(group) => group,
            Err(Error::Refused { errno: Errno::EEXIST, .. }) => parent.child(name)?,
            Err(error) => return Err(error),
        };
        let group = Arc::new(group);
        let made = FreezerGroup::over(kind, parent.clone(), group, name);
        if made.is_err() {
            let _ = parent.remove_child(name, Duration::ZERO);
        }
        made
    }

    fn over(
        kind: Kind,
        parent: Arc<Cgroup>,
        group: Arc<Cgroup>,
        name: &str,
    ) -> Result<FreezerGroup> {
        let members = match kind {
            Kind::V1 => "tasks",
            Kind::Unified => "cgroup.procs",
        };
        let made = FreezerGroup {
            kind,
            switch: switch(kind, &group)?,
            enter: ControlDir::open(&*group, members, Access::Write)?,
            leave: ControlDir::open(&*parent, members, Access::Write)?,
            parent,
            group,
            name: name.to_owned(),
            removed: false,
        };
        made.thaw()?;
        Ok(made)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.group.path()
    }

    /// The inode of its directory.
    pub fn inode(&self) -> u64 {
        self.group.inode()
    }

    /// Which freezer.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Whoever writes `0` to this moves itself in: a thread (v1), or its process (unified). On v1 that waits for
    /// nobody, as moving a task from outside does (6.0 and later: `cgroup_procs_write_start()` takes no lock
    /// for it).
    pub fn door(&self) -> Result<OwnedFd> {
        self.group.open_fd(self.members(), Access::Write)
    }

    /// Another switch, for a thread of its own.
    pub fn switch(&self) -> Result<Switch> {
        switch(self.kind, &self.group)
    }

    /// Freezes ([`Switch::freeze`]).
    pub fn freeze(&self) -> Result<()> {
        self.switch.freeze().map_err(|errno| self.refused("FROZEN", errno))
    }

    /// Thaws.
    pub fn thaw(&self) -> Result<()> {
        self.switch.thaw().map_err(|errno| self.refused("THAWED", errno))
    }

    /// An error of its state file for `errno`.
    pub fn refused(&self, value: &str, errno: Errno) -> Error {
        let file = match self.kind {
            Kind::V1 => "freezer.state",
            Kind::Unified => "cgroup.freeze",
        };
        self.group.error(Op::Write, file, Some(value), errno)
    }

    /// What it says. On v1 only a read turns FREEZING into FROZEN.
    pub fn state(&self) -> Result<State> {
        state(self.kind, &self.group)
    }

    /// What the container's own group says, its ancestors' freezing included: not THAWED, and its
    /// runtime has paused it. The root has no freezer.
    pub fn container_state(&self) -> Result<State> {
        match state(self.kind, &self.parent) {
            Err(Error::Absent { .. }) => Ok(State::Thawed),
            result => result,
        }
    }

    /// Moves a task in (v1), or its whole process (unified). False: it is gone.
    pub fn take(&self, tid: u32) -> Result<bool> {
        self.moved(&*self.enter, &self.group, tid)
    }

    /// Moves it back into the container's group. False: it is gone.
    pub fn give_back(&self, tid: u32) -> Result<bool> {
        self.moved(&*self.leave, &self.parent, tid)
    }

    fn moved(&self, file: &dyn ControlFile, group: &Cgroup, tid: u32) -> Result<bool> {
        let text = tid.to_string();
        loop {
            match file.write(text.as_bytes()) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                // ESRCH: gone, or about to be. ENODEV is the group, see ControlDir::error().
                Err(Errno::ESRCH) => return Ok(false),
                Err(errno) => {
                    return Err(group.error(Op::Write, self.members(), Some(&text), errno));
                }
            }
        }
    }

    const fn members(&self) -> &'static str {
        match self.kind {
            Kind::V1 => "tasks",
            Kind::Unified => "cgroup.procs",
        }
    }

    /// The tasks (v1) or processes (unified) in it.
    pub fn tasks(&self) -> Result<Vec<u32>> {
        tasks(&self.group, self.members())
    }

    /// Thaws it, moves everybody back until none is left behind, and removes it.
    pub fn remove(mut self) -> Result<()> {
        self.dissolve()
    }

    fn dissolve(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.removed, true) {
            return Ok(());
        }
        match self.thaw() {
            Err(Error::Vanished { .. }) => return Ok(()),
            result => result?,
        }
        for _ in 0..EMPTYING_ROUNDS {
            let left = match self.tasks() {
                Ok(left) => left,
                Err(Error::Vanished { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            if left.is_empty() {
                break;
            }
            for tid in left {
                self.give_back(tid)?;
            }
        }
        self.parent.remove_child(&self.name, REMOVAL)
    }
}

impl Drop for FreezerGroup {
    /// On every way out nothing stays frozen.
    fn drop(&mut self) {
        let _ = self.dissolve();
    }
}

/// The tasks listed in `file` (`tasks`, `cgroup.procs`) of a group.
pub fn tasks(group: &Arc<Cgroup>, file: &'static str) -> Result<Vec<u32>> {
    let dir: Arc<dyn ControlDir> = group.clone();
    let content = Knob::open(&dir, file, Access::Read)?.read()?;
    Ok(content
        .split(|byte| *byte == b'\n')
        .filter_map(parse_u64)
        .filter_map(|tid| u32::try_from(tid).ok())
        .filter(|tid| *tid > 0)
        .collect())
}

fn switch(kind: Kind, group: &Arc<Cgroup>) -> Result<Switch> {
    let (name, set) = match kind {
        Kind::V1 => ("freezer.state", "freezer.self_freezing"),
        Kind::Unified => ("cgroup.freeze", "cgroup.freeze"),
    };
    let open = |name, access| ControlDir::open(&**group, name, access);
    Ok(Switch { file: open(name, Access::Write)?, set: open(set, Access::Read)?, kind })
}

fn state(kind: Kind, group: &Arc<Cgroup>) -> Result<State> {
    let dir: Arc<dyn ControlDir> = group.clone();
    let parse = |content: &[u8]| match content.trim_ascii() {
        b"THAWED" => Some(State::Thawed),
        b"FREEZING" => Some(State::Freezing),
        b"FROZEN" => Some(State::Frozen),
        _ => None,
    };
    match kind {
        Kind::V1 => {
            let knob = Knob::open(&dir, "freezer.state", Access::Read)?;
            let content = knob.read()?;
            parse(&content)
                .ok_or_else(|| Error::parse(knob.path(), "THAWED, FREEZING or FROZEN", &content))
        }
        Kind::Unified => {
            let asked = Knob::open(&dir, "cgroup.freeze", Access::Read)?.read_u64()?;
            let events = Knob::open(&dir, "cgroup.events", Access::Read)?.read()?;
            Ok(match (asked, crate::flat::get(&events, "frozen")) {
                (_, Some(1)) => State::Frozen,
                (1, _) => State::Freezing,
                _ => State::Thawed,
            })
        }
    }
}

/// An empty group that stays frozen while throttling goes on.
///
/// The first group on a host that is frozen flips a static key (`freezer_active`), which patches the
/// kernel's text on all CPUs: 103 µs a write, where 3.5 µs are enough while another group is frozen
/// (measured on 6.18). It holds nobody, so that it does no harm if it is left behind.
pub struct Parked {
    parent: Arc<Cgroup>,
    name: String,
}

impl Parked {
    /// Parks one in our own freezer group. `None` with the unified hierarchy, which has no such cost.
    pub fn new(freezer: &Freezer) -> Result<Option<Parked>> {
        if freezer.kind != Kind::V1 {
            return Ok(None);
        }
        let own = freezer.open(&freezer.path_of(std::process::id())?)?;
        let parent = Arc::new(own);
        let name = format!("cgshim-parked-{}", std::process::id());
        let group = match parent.create_child(&name) {
            Err(Error::Refused { errno: Errno::EEXIST, .. }) => parent.child(&name)?,
            result => result?,
        };
        let parked = Parked { parent, name };
        switch(Kind::V1, &Arc::new(group))?.freeze().map_err(|errno| {
            Error::refused(Op::Write, parked.parent.path().join(&parked.name), errno)
        })?;
        Ok(Some(parked))
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let _ = self.parent.remove_child(&self.name, REMOVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(mountinfo: &str) -> Result<Freezer> {
        Freezer::among(Mounts::parse(mountinfo.as_bytes()))
    }

    #[test]
    fn a_v1_freezer_is_preferred_and_the_unified_one_taken_where_there_is_none() {
        let v1 = "34 31 0:31 / /c/freezer rw - cgroup cgroup rw,freezer\n";
        let v2 = "41 31 0:38 / /c/unified rw - cgroup2 cgroup2 rw\n";
        let both = find(&format!("{v1}{v2}")).unwrap();
        assert_eq!((both.kind, both.mount_point.to_str()), (Kind::V1, Some("/c/freezer")));
        assert_eq!(find(v2).unwrap().kind, Kind::Unified);
    }

    #[test]
    fn without_a_freezer_the_way_out_is_named() {
        for (mountinfo, part) in [
            ("", "mount -t cgroup -o freezer"),
            ("34 31 0:31 / /c/f ro - cgroup cgroup ro,freezer\n", "read-only"),
        ] {
            let message = find(mountinfo).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}

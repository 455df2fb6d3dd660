//! Control files over the model: [`ControlDir`] and [`ControlFile`].

use crate::faults::{Actor, KILLED, Verdict, Write};
use crate::group::{GroupId, Hierarchy};
use crate::host::{Host, State};
use crate::mutation::Mutation;
use crate::{parse, v1, v2};
use cgroupfs::error::{Error, Op};
use cgroupfs::files::{Access, ControlDir, ControlFile};
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// A group's directory, opened by an actor.
pub struct ModelDir {
    host: Host,
    group: GroupId,
    actor: Actor,
    path: PathBuf,
}

impl ModelDir {
    pub(crate) fn new(host: Host, group: GroupId, actor: Actor, path: PathBuf) -> ModelDir {
        ModelDir { host, group, actor, path }
    }

    /// Which group.
    pub fn group(&self) -> GroupId {
        self.group
    }
}

impl ControlDir for ModelDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, file: &str, access: Access) -> Result<Box<dyn ControlFile>, Error> {
        let found = {
            let state = self.host.lock();
            if state.killed.contains(&self.actor) {
                Err(KILLED)
            } else {
                state.find(self.group, file).ok_or(Errno::ENOENT)
            }
        };
        match found {
            Ok(name) => Ok(Box::new(ModelFile {
                host: self.host.clone(),
                group: self.group,
                actor: self.actor,
                name,
                access,
            })),
            Err(errno) => Err(self.error(Op::Open, file, None, errno)),
        }
    }

    fn has(&self, file: &str) -> bool {
        self.host.lock().find(self.group, file).is_some()
    }

    fn is_gone(&self) -> bool {
        self.host.lock().vanished(self.group)
    }
}

struct ModelFile {
    host: Host,
    group: GroupId,
    actor: Actor,
    name: &'static str,
    access: Access,
}

impl ControlFile for ModelFile {
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        if self.access == Access::Write {
            return Err(Errno::EBADF);
        }
        let mut state = self.host.lock();
        if state.killed.contains(&self.actor) {
            return Err(KILLED);
        }
        if state.broken(Mutation::ReadsAreTold) {
            state.file_modified(self.group, self.name);
        }
        let content = state.read(self.group, self.name)?;
        let length = content.len().min(buf.len());
        buf[..length].copy_from_slice(&content.as_bytes()[..length]);
        Ok(length)
    }

    fn write(&self, value: &[u8]) -> Result<(), Errno> {
        if self.access == Access::Read {
            return Err(Errno::EBADF);
        }
        self.host.lock().write(self.actor, self.group, self.name, value)
    }
}

impl State {
    /// The file of that name, if the group has it now.
    pub(crate) fn find(&self, id: GroupId, file: &str) -> Option<&'static str> {
        if self.vanished(id) {
            return None;
        }
        let names = match (self.group(id).hierarchy, self.config.v1()) {
            (Hierarchy::Freezer, _) => v1::FREEZER_FILES,
            (Hierarchy::Memory, true) => v1::FILES,
            (Hierarchy::Memory, false) => v2::FILES,
        };
        let name = names.iter().copied().find(|name| *name == file)?;
        let there = match self.config.v1() {
            true => self.has_v1(id, name),
            false => self.has_v2(id, name),
        };
        there.then_some(name)
    }

    /// A file's content. ENODEV of a removed group, ENOENT where there is no such file, EINVAL where it
    /// has no read side.
    pub fn read(&self, id: GroupId, file: &str) -> Result<String, Errno> {
        if self.vanished(id) {
            return Err(Errno::ENODEV);
        }
        let name = self.find(id, file).ok_or(Errno::ENOENT)?;
        match self.config.v1() {
            true => self.read_v1(id, name),
            false => self.read_v2(id, name),
        }
    }

    /// Writes a file, as `actor`. May reclaim. Errors as for [`State::read`], and the file's own.
    pub fn write(
        &mut self,
        actor: Actor,
        id: GroupId,
        file: &str,
        value: &[u8],
    ) -> Result<(), Errno> {
        if self.killed.contains(&actor) {
            return Err(KILLED);
        }
        let verdict = self.verdict(Write { actor, group: id, file, value });
        match verdict {
            Verdict::Make | Verdict::KillAfter => {}
            Verdict::Fail(errno) => return Err(errno),
            Verdict::KillBefore => {
                self.kill_actor(actor);
                return Err(KILLED);
            }
        }
        if self.vanished(id) {
            return Err(Errno::ENODEV);
        }
        let name = self.find(id, file).ok_or(Errno::ENOENT)?;
        let text = parse::text(value, self.config.page_size)?;
        // What is written in the meantime, by hooks, finds the group active.
        self.group_mut(id).active += 1;
        let result = match self.config.v1() {
            true => self.write_v1(id, name, text),
            false => self.write_v2(id, name, text),
        };
        self.group_mut(id).active -= 1;
        if result.is_ok() && !self.broken(Mutation::WritesAreNotTold) {
            self.file_modified(id, name);
        }
        if verdict == Verdict::KillAfter {
            self.kill_actor(actor);
            return Err(KILLED);
        }
        result
    }

    /// `cgroup.procs`: the living tasks of the group itself.
    pub(crate) fn procs(&self, id: GroupId) -> String {
        let mut content = String::new();
        for (index, task) in self.tasks.iter().enumerate() {
            if !task.dead() && (task.memory == id || task.freezer == id) {
                content.push_str(&format!("{}\n", index + 1));
            }
        }
        content
    }

    /// Whether a group's files are gone.
    pub(crate) fn vanished(&self, id: GroupId) -> bool {
        self.group(id).removed && !self.broken(Mutation::RemovedFilesAnswer)
    }

    /// Moves a task into the group. Charges stay where they are.
    pub(crate) fn attach(&mut self, id: GroupId, value: &str) -> Result<(), Errno> {
        let pid = u32::try_from(parse::integer(value)?).map_err(|_| Errno::ESRCH)?;
        let index = self.index(crate::TaskId(pid)).ok_or(Errno::ESRCH)?;
        if self.tasks[index].dead() {
            return Err(Errno::ESRCH);
        }
        match self.group(id).hierarchy {
            Hierarchy::Memory => {
                if self.broken(Mutation::MovesTakeCharges) {
                    self.exit_task(index);
                    self.tasks[index].state = crate::TaskState::Running;
                }
                self.tasks[index].memory = id;
            }
            Hierarchy::Freezer => self.tasks[index].freezer = id,
        }
        self.deliver_kills();
        Ok(())
    }
}

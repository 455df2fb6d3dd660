//! Killing all that is in a container with the kernel's victim: `memory.oom.group` on v2; on v1, where the kernel kills
//! one of its processes, we kill the others.

use super::engine::Engine;
use super::{Key, sys};
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::Version;
use cgroupfs::{Cgroup, Membership, Result};
use std::sync::Arc;

/// Processes are looked for so often: those that are told to die fork no more, so that few rounds find none.
const ROUNDS: usize = 32;

/// So deep are groups beneath groups looked at.
const DEPTH: usize = 32;

impl Engine {
    /// From now on the kernel kills all of a container together, or no more: `memory.oom.group` (v2, 4.19+). Only what
    /// we set is set back. Nothing on v1.
    ///
    /// It does no harm if it outlives us, as it takes nothing from who lives: so it is not in the journal.
    ///
    /// # Errors
    /// [`cgroupfs::Error::Absent`] on older kernels: [`Engine::kill_all`] is what remains.
    pub fn kill_together(&mut self, key: Key, on: bool) -> Result<()> {
        let Some(enforced) = self.containers.get_mut(&key.0) else { return Ok(()) };
        if enforced.memory.version() == Version::V1 || (!on && !enforced.oom_group) {
            return Ok(());
        }
        let dir: Arc<dyn ControlDir> = enforced.group.clone();
        let file = Knob::open(&dir, "memory.oom.group", Access::ReadWrite)?;
        if (file.read_u64()? > 0) != on {
            file.write(if on { "1" } else { "0" })?;
            enforced.oom_group = on;
        }
        Ok(())
    }

    /// A `memory.oom.group` that is set is ours: who enforced before us had set it.
    pub fn has_been_killed_together(&mut self, key: Key) {
        if let Some(enforced) = self.containers.get_mut(&key.0) {
            enforced.oom_group = enforced.memory.version() == Version::V2;
        }
    }

    /// What we set is set back.
    pub(super) fn end_kill_together(&mut self, key: u64) {
        match self.kill_together(Key(key), false) {
            Err(error) if !error.is_vanished() => log::warn!("{error}"),
            _ => {}
        }
    }

    /// Kills every process in a container and beneath; how many.
    pub fn kill_all(&mut self, key: Key) -> usize {
        let Some(enforced) = self.containers.get(&key.0) else { return 0 };
        let mut killed = 0;
        for _ in 0..ROUNDS {
            match kill_in(&enforced.group, DEPTH) {
                0 => break,
                n => killed += n,
            }
        }
        if let (Some(deeds), true) = (&enforced.deeds, killed > 0) {
            deeds.note("group_killed", None, false);
        }
        killed
    }
}

fn kill_in(group: &Arc<Cgroup>, depth: usize) -> usize {
    let mut killed = 0;
    for pid in group.procs().unwrap_or_default() {
        // Held before it is looked at whose it is: the pid may be another's by now.
        let Ok(pidfd) = sys::pidfd_open(pid) else { continue };
        if is_in(pid, group) && sys::kill(&pidfd).is_ok() {
            killed += 1;
        }
    }
    if depth > 0 {
        for name in group.children().unwrap_or_default() {
            if let Ok(child) = group.child(&name) {
                killed += kill_in(&Arc::new(child), depth - 1);
            }
        }
    }
    killed
}

/// Whether a process that lives is in this group, by the end of its path: what is mounted where does not matter.
fn is_in(pid: i32, group: &Cgroup) -> bool {
    let Ok(membership) =
        u32::try_from(pid).map_or(Err(()), |pid| Membership::read(pid).map_err(drop))
    else {
        return false;
    };
    let path = membership.path("memory").or_else(|| membership.unified());
    path.is_some_and(|path| {
        let relative = path.strip_prefix("/").unwrap_or(path);
        group.path().ends_with(relative) && !relative.as_os_str().is_empty()
    })
}

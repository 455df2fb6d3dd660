//! Killing all that is in a container: `oom = group` on v1, where the kernel kills one of its processes.

use super::engine::Engine;
use super::{Key, sys};
use cgroupfs::{Cgroup, Membership};
use std::sync::Arc;

/// Processes are looked for so often: those that are told to die fork no more, so that few rounds find none.
const ROUNDS: usize = 32;

/// So deep are groups beneath groups looked at.
const DEPTH: usize = 32;

impl Engine {
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
    use cgroupfs::files::ControlDir;
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

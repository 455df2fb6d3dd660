//! The cgroup of one run: made, limited, and removed again whatever happens.

use super::Spec;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, ReclaimFile, Version};
use cgroupfs::{Bytes, Cgroup, Error, Limit, MemoryHierarchy, Result};
use cgshim::core::OomPolicy;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long processes that outlive the command have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long removal is tried: a killed process with much memory takes a while to be gone.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);

/// How long the page cache of the ended group may take to be emptied. What is left keeps the group as
/// a dying one until the kernel reclaims it.
const EMPTYING: Duration = Duration::from_millis(250);

/// The group.
pub(crate) struct RunGroup {
    parent: Cgroup,
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    name: String,
    removed: bool,
}

impl RunGroup {
    /// Makes the group and sets its limits. Nothing is left behind if that fails.
    pub(super) fn create(hierarchy: &MemoryHierarchy, spec: &Spec) -> Result<RunGroup> {
        let parent = parent(hierarchy, spec.parent.as_deref())?;
        warn_of_escape(hierarchy, &parent);
        let group = Arc::new(parent.create_child(&spec.name)?);
        let opened = cgshim::driver::open_memory(&group);
        let memory = match opened {
            Ok(memory) => memory,
            Err(error) => {
                let _ = parent.remove_child(&spec.name, Duration::ZERO);
                return Err(error);
            }
        };
        let made = RunGroup { parent, group, memory, name: spec.name.clone(), removed: false };
        made.configure(spec)?;
        Ok(made)
    }

    fn configure(&self, spec: &Spec) -> Result<()> {
        self.memory.set_limits(spec.limit, spec.swap)?;
        if spec.swap == Some(Limit::Bytes(Bytes(0))) && self.version() == Version::V1 {
            // With memsw == limit the kernel never swaps at the limit; reclaim writes would.
            self.memory.reclaim_file(ReclaimFile::Swappiness)?.write("0")?;
        }
        if spec.high != Limit::Max && spec.throttle {
            match self.memory.set_high(spec.high) {
                // Cgroup v1: the engine throttles.
                Err(Error::Absent { .. }) => {}
                result => result?,
            }
        }
        if spec.oom == OomPolicy::Group && self.version() == Version::V2 {
            let dir: Arc<dyn ControlDir> = self.group.clone();
            Knob::open(&dir, "memory.oom.group", Access::Write)?.write("1")?;
        }
        Ok(())
    }

    pub(super) fn group(&self) -> Arc<Cgroup> {
        self.group.clone()
    }

    pub(super) fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    pub(super) fn version(&self) -> Version {
        self.memory.version()
    }

    pub(super) fn path(&self) -> &Path {
        self.group.path()
    }

    /// Sends `signal` to every process in the group and in groups made beneath it; how many there were.
    pub(super) fn kill_all(&self, signal: Signal) -> usize {
        kill_tree(&self.group, signal, 0)
    }

    /// Ends what outlives the command: the container is its command. SIGTERM, then SIGKILL.
    pub(super) fn kill_leftovers(&self) {
        let left = self.kill_all(Signal::SIGTERM);
        if left == 0 {
            return;
        }
        log::warn!(
            "{left} process{} outlived the command: SIGTERM, then SIGKILL after {} s",
            if left == 1 { "" } else { "es" },
            GRACE.as_secs()
        );
        let start = Instant::now();
        loop {
            // Signal 0 only counts.
            let signal = if start.elapsed() < GRACE { None } else { Some(Signal::SIGKILL) };
            let left = match signal {
                None => count_tree(&self.group, 0),
                Some(signal) => self.kill_all(signal),
            };
            if left == 0 || start.elapsed() > GRACE + REMOVAL_PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Empties the group's page cache, so that no dying group is left, and removes it.
    pub(super) fn remove(&mut self, empty: bool) -> Result<()> {
        if std::mem::replace(&mut self.removed, true) {
            return Ok(());
        }
        if empty {
            cgshim::driver::empty(&self.memory, EMPTYING);
        }
        remove_tree(&self.group, 0);
        self.parent.remove_child(&self.name, REMOVAL_PATIENCE)
    }
}

impl Drop for RunGroup {
    /// On the ways out that are errors: what may be in the group is killed, and the group removed.
    fn drop(&mut self) {
        if !self.removed {
            self.kill_all(Signal::SIGKILL);
            if let Err(error) = self.remove(false) {
                log::warn!("{error}");
            }
        }
    }
}

/// The group that a run makes its own under.
pub(super) fn parent(hierarchy: &MemoryHierarchy, path: Option<&Path>) -> Result<Cgroup> {
    match path {
        None => hierarchy.parent_for_new(),
        Some(path) => {
            let absolute = absolute(hierarchy, path);
            hierarchy.enable_memory(&absolute).map_err(|error| match error {
                Error::Vanished { .. } => Error::BadName {
                    name: path.display().to_string(),
                    what: "path",
                    why: format!(
                        "there is no {}; make it first, or leave out --parent",
                        absolute.display()
                    ),
                },
                error => error,
            })
        }
    }
}

fn absolute(hierarchy: &MemoryHierarchy, path: &Path) -> PathBuf {
    if path.starts_with(&hierarchy.mount_point) {
        path.to_path_buf()
    } else {
        hierarchy.mount_point.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// On v2 a group with processes has no children with controllers, so that the command's group may come to
/// lie beside ours: then a limit of ours does not hold for it. To be said, not to be found out.
fn warn_of_escape(hierarchy: &MemoryHierarchy, parent: &Cgroup) {
    let own = &hierarchy.own;
    if hierarchy.version == Version::V1 || parent.path().starts_with(own) {
        return;
    }
    let limit = std::fs::read_to_string(own.join("memory.max")).unwrap_or_default();
    if !matches!(limit.trim(), "" | "max") {
        log::warn!(
            "the limit of {} ({} bytes) does not hold for the command: its group goes under {}, as \
             cgroup v2 gives no controllers to children of a group with processes; choose with --parent",
            own.display(),
            limit.trim(),
            parent.path().display()
        );
    }
}

/// Groups made beneath ours are ours to end and remove; deeper than this there is something wrong.
const DEEPEST: usize = 64;

fn children(group: &Cgroup) -> Vec<Arc<Cgroup>> {
    let names = group.children().unwrap_or_default();
    names.iter().filter_map(|name| group.child(name).ok()).map(Arc::new).collect()
}

fn kill_tree(group: &Arc<Cgroup>, signal: Signal, depth: usize) -> usize {
    let procs = group.procs().unwrap_or_default();
    for pid in &procs {
        // Gone meanwhile is fine. Pid 0 is a process of another pid namespace: not ours to signal.
        if *pid > 0 {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    }
    let below: usize = match depth {
        DEEPEST => 0,
        _ => children(group).iter().map(|child| kill_tree(child, signal, depth + 1)).sum(),
    };
    procs.len() + below
}

fn count_tree(group: &Arc<Cgroup>, depth: usize) -> usize {
    let below: usize = match depth {
        DEEPEST => 0,
        _ => children(group).iter().map(|child| count_tree(child, depth + 1)).sum(),
    };
    group.procs().unwrap_or_default().len() + below
}

fn remove_tree(group: &Arc<Cgroup>, depth: usize) {
    if depth == DEEPEST {
        return;
    }
    for name in group.children().unwrap_or_default() {
        if let Ok(child) = group.child(&name) {
            remove_tree(&Arc::new(child), depth + 1);
        }
        if let Err(error) = group.remove_child(&name, REMOVAL_PATIENCE) {
            log::warn!("{error}");
        }
    }
}

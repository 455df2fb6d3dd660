//! What the kernel at hand offers, feature by feature. Files are probed, never versions: vendors carry
//! features to old kernels and leave them out of new ones.

use crate::error::Result;
use crate::files::{Access, ControlDir, Knob};
use crate::freezer::Freezer;
use crate::hierarchy::MemoryHierarchy;
use crate::memory::Version;
use crate::mounts::Mounts;
use crate::procfs::{Psi, Swaps};
use crate::recording::Recording;
use std::sync::Arc;
use std::time::Duration;

/// Where a feature comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// The mainline kernel's own.
    Native,
    /// A vendor kernel's.
    Vendor,
    /// cgshim does it with other means.
    Emulated,
    /// Not to be had here.
    Absent,
}

impl Support {
    /// As reports have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Support::Native => "native",
            Support::Vendor => "vendor",
            Support::Emulated => "emulated",
            Support::Absent => "absent",
        }
    }
}

/// One feature and how it is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Its name: stable, for programs.
    pub name: &'static str,
    /// How.
    pub support: Support,
    /// Why, for people.
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The memory controller's hierarchy.
    pub hierarchy: MemoryHierarchy,
    /// The features.
    pub features: Vec<Feature>,
}

impl Capabilities {
    /// Probes. A v2 root has no memory files, so a group of ours is made for the while where that is
    /// allowed; else our own group is looked at.
    ///
    /// Errors: [`crate::Error::NoController`] where there is nothing to probe.
    pub fn probe() -> Result<Capabilities> {
        let hierarchy = MemoryHierarchy::find()?;
        let name = format!("cgshim-probe-{}", std::process::id());
        let parent = hierarchy.parent_for_new();
        let made = parent.as_ref().ok().and_then(|parent| parent.create_child(&name).ok());
        let features = match made {
            Some(group) => features(&hierarchy, Arc::new(group), true, Node::ours()),
            None => {
                let own = Arc::new(hierarchy.open(&hierarchy.own)?);
                features(&hierarchy, own, false, Node::ours())
            }
        };
        if let Ok(parent) = parent {
            let _ = parent.remove_child(&name, Duration::from_secs(1));
        }
        Ok(Capabilities { hierarchy, features })
    }

    /// What the kernel of a recording offers.
    pub fn of_recording(recording: Arc<Recording>) -> Capabilities {
        let node = Node::of_recording(&recording);
        let mount_point = match recording.version() {
            Version::V1 => node.mounts.v1("memory").map(|mount| mount.mount_point.clone()),
            Version::V2 => node.mounts.v2().map(|mount| mount.mount_point.clone()),
        };
        let mount_point = mount_point.unwrap_or_else(|| "/sys/fs/cgroup".into());
        let hierarchy =
            MemoryHierarchy { version: recording.version(), own: mount_point.clone(), mount_point };
        let features = features(&hierarchy, recording, true, node);
        Capabilities { hierarchy, features }
    }
}

/// What is asked of the host, not of the group.
struct Node {
    mounts: Mounts,
    swaps: Swaps,
    psi: bool,
    openat2: bool,
}

impl Node {
    fn ours() -> Node {
        Node {
            mounts: Mounts::read().unwrap_or_default(),
            swaps: Swaps::read().unwrap_or_default(),
            psi: Psi::read().is_ok(),
            openat2: crate::dir::has_openat2(),
        }
    }

    fn of_recording(recording: &Recording) -> Node {
        let proc = |name| recording.proc(name).unwrap_or_default();
        Node {
            mounts: Mounts::parse(proc("mountinfo")),
            swaps: Swaps::parse(proc("swaps")),
            psi: recording.proc("pressure-memory").is_some(),
            openat2: recording.openat2(),
        }
    }
}

fn features(
    hierarchy: &MemoryHierarchy,
    dir: Arc<dyn ControlDir>,
    writable: bool,
    node: Node,
) -> Vec<Feature> {
    let probe = Probe { v1: hierarchy.version == Version::V1, dir, writable, node };
    vec![
        probe.memory_controller(hierarchy),
        probe.background_reclaim(),
        probe.byte_targeted_reclaim(),
        probe.memory_high(),
        probe.protection(),
        probe.usage_events(),
        probe.oom_events(),
        probe.oom_kill_counter(),
        probe.oom_group(),
        probe.peak(),
        probe.use_hierarchy(),
        probe.swap_accounting(),
        probe.swap(),
        probe.freezer(),
        probe.pressure(),
        probe.openat2(),
    ]
}

struct Probe {
    v1: bool,
    dir: Arc<dyn ControlDir>,
    writable: bool,
    node: Node,
}

fn feature(name: &'static str, support: Support, why: impl Into<String>) -> Feature {
    Feature { name, support, why: why.into() }
}

impl Probe {
    fn has(&self, file: &str) -> bool {
        self.dir.has(file)
    }

    fn read_u64(&self, file: &'static str) -> Option<u64> {
        Knob::open(&self.dir, file, Access::Read).ok()?.read_u64().ok()
    }

    fn memory_controller(&self, hierarchy: &MemoryHierarchy) -> Feature {
        let at = hierarchy.mount_point.display();
        let may = if self.writable { "" } else { "; groups cannot be made here (this needs root)" };
        let version = hierarchy.version.as_str();
        feature("memory_controller", Support::Native, format!("cgroup {version} at {at}{may}"))
    }

    fn background_reclaim(&self) -> Feature {
        const NAME: &str = "background_reclaim";
        let vendor = ["memory.wmark_ratio", "memory.high_async_ratio"];
        if let Some(file) = vendor.into_iter().find(|file| self.has(file)) {
            return feature(NAME, Support::Vendor, format!("{file} is there"));
        }
        let by = match (self.v1, self.has("memory.reclaim")) {
            (_, true) => "memory.reclaim from our threads",
            (true, false) => {
                "limit stepping, and memory.force_empty stopped by a signal, from our threads"
            }
            (false, false) => {
                "memory.high stepping from our threads (memory.reclaim came with 5.19)"
            }
        };
        feature(NAME, Support::Emulated, by)
    }

    fn byte_targeted_reclaim(&self) -> Feature {
        const NAME: &str = "byte_targeted_reclaim";
        match (self.v1, self.has("memory.reclaim")) {
            (false, true) => feature(NAME, Support::Native, "memory.reclaim"),
            (true, true) => feature(NAME, Support::Vendor, "memory.reclaim on v1"),
            (true, false) => {
                feature(NAME, Support::Emulated, "limit stepping: v1 has no memory.reclaim")
            }
            (false, false) => feature(
                NAME,
                Support::Emulated,
                "memory.high stepping: memory.reclaim came with 5.19",
            ),
        }
    }

    fn memory_high(&self) -> Feature {
        const NAME: &str = "memory_high";
        match (self.v1, self.has("memory.high")) {
            (false, true) => feature(NAME, Support::Native, "memory.high"),
            (true, true) => feature(NAME, Support::Vendor, "memory.high on v1"),
            _ => match Freezer::among(self.node.mounts.clone()) {
                Ok(freezer) => feature(
                    NAME,
                    Support::Emulated,
                    format!(
                        "who grows is frozen in pulses on the kernel's own curve, by {} at {}, with \
                         background reclaim",
                        freezer.kind.as_str(),
                        freezer.mount_point.display()
                    ),
                ),
                Err(error) => feature(
                    NAME,
                    Support::Absent,
                    format!("v1 has no memory.high, and to emulate it there is {error}"),
                ),
            },
        }
    }

    fn protection(&self) -> Feature {
        const NAME: &str = "memory_min_low";
        match (self.v1, self.has("memory.low")) {
            (false, true) => feature(NAME, Support::Native, "memory.min and memory.low"),
            (true, true) => feature(NAME, Support::Vendor, "memory.min and memory.low on v1"),
            _ => feature(NAME, Support::Absent, "v1 has no protection"),
        }
    }

    fn usage_events(&self) -> Feature {
        const NAME: &str = "usage_events";
        if self.v1 && self.has("cgroup.event_control") {
            return feature(NAME, Support::Native, "usage threshold by eventfd");
        }
        feature(
            NAME,
            Support::Emulated,
            "one adaptive timer, at most once a second when idle: v2 has no usage event",
        )
    }

    fn oom_events(&self) -> Feature {
        const NAME: &str = "oom_events";
        if self.v1 && self.has("memory.oom_control") {
            let why = "memory.oom_control by eventfd: a hint, not a count";
            return feature(NAME, Support::Native, why);
        }
        match self.has("memory.events") {
            true => feature(NAME, Support::Native, "memory.events by inotify"),
            false => feature(NAME, Support::Absent, "no memory.oom_control, no memory.events"),
        }
    }

    fn oom_kill_counter(&self) -> Feature {
        const NAME: &str = "oom_kill_counter";
        let file = if self.v1 { "memory.oom_control" } else { "memory.events" };
        let content = Knob::open(&self.dir, file, Access::Read).and_then(|knob| knob.read());
        match content.ok().and_then(|content| crate::flat::get(&content, "oom_kill")) {
            Some(_) => feature(NAME, Support::Native, format!("oom_kill in {file}")),
            None => feature(NAME, Support::Absent, format!("{file} has no oom_kill (before 4.13)")),
        }
    }

    fn oom_group(&self) -> Feature {
        const NAME: &str = "oom_group";
        match self.has("memory.oom.group") {
            true => feature(NAME, Support::Native, "memory.oom.group"),
            false => feature(
                NAME,
                Support::Emulated,
                "the rest of the group is killed when the kernel has killed one",
            ),
        }
    }

    fn peak(&self) -> Feature {
        const NAME: &str = "peak";
        let file = if self.v1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        match self.has(file) {
            true => feature(NAME, Support::Native, file),
            false => feature(
                NAME,
                Support::Emulated,
                "the highest usage seen: memory.peak came with 6.1",
            ),
        }
    }

    fn use_hierarchy(&self) -> Feature {
        const NAME: &str = "hierarchical_accounting";
        if !self.v1 {
            return feature(NAME, Support::Native, "v2");
        }
        match self.read_u64("memory.use_hierarchy") {
            Some(0) => feature(
                NAME,
                Support::Absent,
                "memory.use_hierarchy is 0: children do not count into their parent, nor can they be \
                 reclaimed from it",
            ),
            _ => feature(NAME, Support::Native, "memory.use_hierarchy is 1"),
        }
    }

    fn swap_accounting(&self) -> Feature {
        const NAME: &str = "swap_accounting";
        let file = if self.v1 { "memory.memsw.limit_in_bytes" } else { "memory.swap.max" };
        match self.has(file) {
            true => feature(NAME, Support::Native, file),
            false => feature(
                NAME,
                Support::Absent,
                format!("no {file}: boot with swapaccount=1; --swap cannot be kept"),
            ),
        }
    }

    fn swap(&self) -> Feature {
        const NAME: &str = "swap";
        let swaps = &self.node.swaps;
        if swaps.devices.is_empty() {
            return feature(
                NAME,
                Support::Absent,
                "no swap is on: anonymous memory cannot be reclaimed, only page cache",
            );
        }
        let kind = if swaps.any_zram() { "zram among it" } else { "no zram" };
        feature(NAME, Support::Native, format!("{} free, {kind}", swaps.free()))
    }

    fn freezer(&self) -> Feature {
        const NAME: &str = "freezer";
        if let Some(mount) = self.node.mounts.v1("freezer") {
            return feature(
                NAME,
                Support::Native,
                format!("v1 at {}", mount.mount_point.display()),
            );
        }
        match self.node.mounts.v2() {
            Some(_) => feature(NAME, Support::Native, "cgroup.freeze in the unified hierarchy"),
            None => feature(NAME, Support::Absent, "neither a v1 freezer nor v2 is mounted"),
        }
    }

    fn pressure(&self) -> Feature {
        const NAME: &str = "psi";
        if !self.node.psi {
            let why = "no /proc/pressure/memory: boot with psi=1 (4.20 and later)";
            return feature(NAME, Support::Absent, why);
        }
        match self.has("memory.pressure") {
            true => feature(NAME, Support::Native, "of the node and of cgroups"),
            false => feature(NAME, Support::Native, "of the node; of cgroups on v2 only"),
        }
    }

    fn openat2(&self) -> Feature {
        const NAME: &str = "openat2";
        match self.node.openat2 {
            true => feature(NAME, Support::Native, "paths are resolved beneath the hierarchy"),
            false => feature(
                NAME,
                Support::Emulated,
                "paths are walked one component at a time (openat2 came with 5.6)",
            ),
        }
    }
}

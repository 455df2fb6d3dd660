//! What a kernel must have for a claim to apply: probed, by its files and settings.

use crate::{Stop, World};
use cgroupfs::memory::Version;

/// Something that kernels have or lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// The memory controller on v1.
    V1,
    /// The memory controller on v2.
    V2,
    /// Swap is on. A matter of the machine, not of the kernel.
    Swap,
    /// `memory.memsw.*`, or `memory.swap.*`: swap is accounted.
    SwapAccounting,
    /// v1: a new group counts into its parent, or can be told to (`memory.use_hierarchy`).
    Hierarchy,
    /// v1: `memory.use_hierarchy` is 0 in a new group.
    Flat,
    /// v1: the freezer's hierarchy is mounted.
    Freezer,
    /// `memory.reclaim`.
    Reclaim,
    /// `memory.peak`, or v1's `memory.max_usage_in_bytes`.
    Peak,
    /// `memory.events.local`.
    EventsLocal,
    /// `memory.oom.group`.
    OomGroup,
    /// `cgroup.kill`.
    Kill,
}

impl Feature {
    /// Every one.
    pub const ALL: &'static [Feature] = &[
        Feature::V1,
        Feature::V2,
        Feature::Swap,
        Feature::SwapAccounting,
        Feature::Hierarchy,
        Feature::Flat,
        Feature::Freezer,
        Feature::Reclaim,
        Feature::Peak,
        Feature::EventsLocal,
        Feature::OomGroup,
        Feature::Kill,
    ];

    /// As the table has it.
    pub const fn name(self) -> &'static str {
        match self {
            Feature::V1 => "v1",
            Feature::V2 => "v2",
            Feature::Swap => "swap",
            Feature::SwapAccounting => "swap accounting",
            Feature::Hierarchy => "use_hierarchy",
            Feature::Flat => "use_hierarchy 0",
            Feature::Freezer => "v1 freezer",
            Feature::Reclaim => "memory.reclaim",
            Feature::Peak => "memory.peak",
            Feature::EventsLocal => "memory.events.local",
            Feature::OomGroup => "memory.oom.group",
            Feature::Kill => "cgroup.kill",
        }
    }
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Features(Vec<Feature>);

impl Features {
    /// Looks at the files of a group made for it.
    pub fn probe(world: &mut dyn World) -> Result<Features, Stop> {
        let ground = world.ground();
        let group = world.make(&ground, "probe")?;
        let v1 = group.memory.version() == Version::V1;
        let has = |file: &str| group.dir.has(file);
        let flat = v1 && group.number("memory.use_hierarchy")? == 0;
        let found = Feature::ALL.iter().copied().filter(|feature| match feature {
            Feature::V1 => v1,
            Feature::V2 => !v1,
            Feature::Swap => world.swap_is_on(),
            Feature::SwapAccounting => has("memory.memsw.limit_in_bytes") || has("memory.swap.max"),
            Feature::Hierarchy => !flat || group.write("memory.use_hierarchy", "1").is_ok(),
            Feature::Flat => flat,
            Feature::Freezer => world.has_freezer(),
            Feature::Reclaim => has("memory.reclaim"),
            Feature::Peak => has("memory.peak") || has("memory.max_usage_in_bytes"),
            Feature::EventsLocal => has("memory.events.local"),
            Feature::OomGroup => has("memory.oom.group"),
            Feature::Kill => has("cgroup.kill"),
        });
        let found = Features(found.collect());
        world.remove(&group)?;
        Ok(found)
    }

    /// Whether it is there.
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }
}

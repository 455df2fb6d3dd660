//! `memory.low` and `memory.min` of v2 (`mem_cgroup_calculate_protection`).

use super::{Stop, World, mib, parent, user};
use crate::{Group, Kind};

claims!("protection";
    memory_low_sends_reclaim_elsewhere_while_there_is_something [V2, Reclaim],
    memory_low_gives_way_when_there_is_nothing_else [V2, Reclaim],
    memory_min_never_gives_way [V2, Reclaim],
);

/// A parent of two groups with 12 MiB of cache each, the first one protected.
fn two(world: &mut dyn World, file: &'static str) -> Result<(Group, Group, Group), Stop> {
    let over = parent(world)?;
    answers!(over.write(file, "32M"), Ok(()), file);
    let (one, two) = (world.make(&over, "one")?, world.make(&over, "two")?);
    answers!(one.write(file, "16M"), Ok(()), file);
    for group in [&one, &two] {
        user(world, group, Kind::File, mib(12))?;
    }
    Ok((over, one, two))
}

fn memory_low_sends_reclaim_elsewhere_while_there_is_something(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let (over, one, two) = two(world, "memory.low")?;
    answers!(over.write("memory.reclaim", "6M"), Ok(()), "memory.reclaim");
    let (kept, left) = (one.memory.usage()?, two.memory.usage()?);
    holds!(kept >= mib(11) && left <= mib(8), "protected {kept}, unprotected {left}");
    Ok(())
}

fn memory_low_gives_way_when_there_is_nothing_else(world: &mut dyn World) -> Result<(), Stop> {
    let (over, one, _) = two(world, "memory.low")?;
    // Short or not: the kernel gives up late or early.
    let _ = over.write("memory.reclaim", "20M");
    let kept = one.memory.usage()?;
    holds!(kept <= mib(11), "{kept} of 12 MiB is left");
    Ok(())
}

fn memory_min_never_gives_way(world: &mut dyn World) -> Result<(), Stop> {
    let (over, one, two) = two(world, "memory.min")?;
    let _ = over.write("memory.reclaim", "20M");
    let (kept, left) = (one.memory.usage()?, two.memory.usage()?);
    holds!(kept >= mib(11) && left <= mib(4), "protected {kept}, unprotected {left}");
    Ok(())
}

//! `memory.max` of v2, where it is otherwise than v1's limit (`memory_max_write`), and `cgroup.kill`.

use super::{Stop, World, dies, filled, group, limit, mib, user, without_swap};
use crate::Kind;

claims!("memory.max";
    memory_max_takes_cache_before_anybody_is_killed [V2],
    memory_max_below_anon_is_stored_and_kills [V2],
    cgroup_kill_takes_the_whole_tree [V2, Kill],
);

fn memory_max_takes_cache_before_anybody_is_killed(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = user(world, &group, Kind::Anon, mib(4))?;
    filled(world, task, Kind::File, mib(16))?;
    answers!(group.write("memory.max", "12M"), Ok(()), "memory.max");
    holds!(group.memory.usage()? <= mib(12), "usage is {}", group.memory.usage()?);
    holds!(world.alive(task), "the task was killed");
    Ok(())
}

fn memory_max_below_anon_is_stored_and_kills(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = user(world, &group, Kind::Anon, mib(12))?;
    answers!(group.write("memory.max", "4M"), Ok(()), "memory.max");
    holds!(group.memory.limit()? == limit(4), "memory.max is {}", group.memory.limit()?);
    holds!(dies(world, task)?, "the task lives on");
    Ok(())
}

fn cgroup_kill_takes_the_whole_tree(world: &mut dyn World) -> Result<(), Stop> {
    let over = group(world)?;
    let child = world.make(&over, "child")?;
    let (one, two) = (world.spawn(&child)?, world.spawn(&child)?);
    answers!(over.write("cgroup.kill", "1"), Ok(()), "cgroup.kill");
    holds!(dies(world, one)? && dies(world, two)?, "somebody lives on");
    Ok(())
}

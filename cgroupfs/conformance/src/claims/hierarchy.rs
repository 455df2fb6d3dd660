//! v1 `memory.use_hierarchy`, and v2's one tree.

use super::{Stop, World, group, mib, parent, user, without_swap};
use crate::Kind;
use nix::errno::Errno;

claims!("hierarchy";
    with_use_hierarchy_0_children_neither_count_into_the_parent_nor_are_reclaimed_from_it [V1, Flat],
    children_count_into_the_parent [Hierarchy],
    a_limit_write_on_the_parent_reclaims_from_its_children [V1, Hierarchy],
    subtree_control_is_ebusy_with_processes_and_children_have_files_only_with_it [V2],
);

fn with_use_hierarchy_0_children_neither_count_into_the_parent_nor_are_reclaimed_from_it(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let over = group(world)?;
    let child = world.make(&over, "child")?;
    user(world, &child, Kind::File, mib(8))?;
    let usage = over.memory.usage()?;
    holds!(usage < mib(1), "the parent's usage is {usage}");
    answers!(over.write("memory.force_empty", "0"), Ok(()), "force_empty of the parent");
    let usage = child.memory.usage()?;
    holds!(usage >= mib(7), "the child's usage is {usage}");
    Ok(())
}

fn children_count_into_the_parent(world: &mut dyn World) -> Result<(), Stop> {
    let over = parent(world)?;
    let child = world.make(&over, "child")?;
    user(world, &child, Kind::File, mib(8))?;
    let usage = over.memory.usage()?;
    holds!(usage >= mib(7), "the parent's usage is {usage}");
    Ok(())
}

fn a_limit_write_on_the_parent_reclaims_from_its_children(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let over = parent(world)?;
    without_swap(&over)?;
    let child = world.make(&over, "child")?;
    without_swap(&child)?;
    user(world, &child, Kind::File, mib(16))?;
    answers!(over.write("memory.limit_in_bytes", "8M"), Ok(()), "a limit on the parent");
    let usage = child.memory.usage()?;
    holds!(usage <= mib(8), "the child's usage is {usage}");
    Ok(())
}

fn subtree_control_is_ebusy_with_processes_and_children_have_files_only_with_it(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let over = group(world)?;
    let task = world.spawn(&over)?;
    let answer = over.write("cgroup.subtree_control", "+memory");
    answers!(answer, Err(Errno::EBUSY), "subtree_control of a group with a process");
    let ground = world.ground();
    let other = world.make(&ground, "other")?;
    let pid = world.pid(task).to_string();
    answers!(other.write("cgroup.procs", &pid), Ok(()), "the move away");
    answers!(over.write("cgroup.subtree_control", "+memory"), Ok(()), "subtree_control");
    let child = world.make(&over, "child")?;
    holds!(child.dir.has("memory.max"), "the child has no memory.max");
    let back = over.write("cgroup.procs", &pid);
    answers!(back, Err(Errno::EBUSY), "a process into a group that gives controllers");
    Ok(())
}

//! Removal, and what is left of a group after it.

use super::{Stop, World, filled, group, mib, parent, user, without_swap};
use crate::{Group, Kind};
use cgroupfs::memory::Version;
use nix::errno::Errno;

claims!("removal";
    rmdir_of_a_group_with_tasks_or_children_is_ebusy [],
    the_open_files_of_a_removed_group_answer_enodev [],
    the_cache_of_a_removed_child_stays_charged_to_the_parent [Hierarchy],
    reclaim_on_the_parent_reaches_its_dying_children [V1, Hierarchy],
    memory_reclaim_on_the_parent_reaches_its_dying_children [V2, Reclaim],
    a_group_that_was_emptied_leaves_nothing_behind [Hierarchy],
    rmdir_does_not_get_past_a_write_in_flight [V1, Hierarchy],
);

fn rmdir_of_a_group_with_tasks_or_children_is_ebusy(world: &mut dyn World) -> Result<(), Stop> {
    let over = group(world)?;
    let child = world.make(&over, "child")?;
    answers!(world.remove(&over), Err(Errno::EBUSY), "rmdir of a group with a child");
    let task = world.spawn(&child)?;
    answers!(world.remove(&child), Err(Errno::EBUSY), "rmdir of a group with a task");
    world.kill(task);
    holds!(super::dies(world, task)?, "the task did not die");
    answers!(world.remove(&child), Ok(()), "rmdir of an empty group");
    answers!(world.remove(&over), Ok(()), "rmdir of its parent");
    Ok(())
}

fn the_open_files_of_a_removed_group_answer_enodev(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    group.memory.usage()?;
    answers!(world.remove(&group), Ok(()), "rmdir");
    for (what, error) in [
        ("a read", group.memory.usage().err()),
        ("a write", group.memory.set_limit(super::limit(8)).err()),
        ("an open", group.memory.peak().err()),
    ] {
        holds!(error.as_ref().is_some_and(|error| error.is_vanished()), "{what}: {error:?}");
    }
    holds!(group.dir.is_gone(), "the directory is still there");
    Ok(())
}

/// A parent and a child that 12 MiB of cache were charged to; the task is gone.
fn ended(world: &mut dyn World) -> Result<(Group, Group), Stop> {
    let over = parent(world)?;
    without_swap(&over)?;
    let child = world.make(&over, "child")?;
    without_swap(&child)?;
    let task = user(world, &child, Kind::File, mib(12))?;
    world.kill(task);
    holds!(super::dies(world, task)?, "the task did not die");
    Ok((over, child))
}

fn the_cache_of_a_removed_child_stays_charged_to_the_parent(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let (over, child) = ended(world)?;
    answers!(world.remove(&child), Ok(()), "rmdir");
    let left = over.memory.usage()?;
    holds!(left >= mib(11), "of 12 MiB of cache {left} is charged to the parent");
    if over.memory.version() == Version::V2 {
        let dying = over.key("cgroup.stat", "nr_dying_descendants")?;
        holds!(dying == 1, "nr_dying_descendants is {dying}");
    }
    Ok(())
}

fn reclaim_on_the_parent_reaches_its_dying_children(world: &mut dyn World) -> Result<(), Stop> {
    let (over, child) = ended(world)?;
    answers!(world.remove(&child), Ok(()), "rmdir");
    answers!(over.write("memory.force_empty", "0"), Ok(()), "force_empty of the parent");
    let left = over.memory.usage()?;
    holds!(left <= mib(1), "{left} is left");
    Ok(())
}

fn memory_reclaim_on_the_parent_reaches_its_dying_children(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let (over, child) = ended(world)?;
    answers!(world.remove(&child), Ok(()), "rmdir");
    let _ = over.write("memory.reclaim", "32M");
    let left = over.memory.usage()?;
    holds!(left <= mib(1), "{left} is left");
    Ok(())
}

fn a_group_that_was_emptied_leaves_nothing_behind(world: &mut dyn World) -> Result<(), Stop> {
    let (over, child) = ended(world)?;
    match over.memory.version() {
        Version::V1 => answers!(child.write("memory.force_empty", "0"), Ok(()), "force_empty"),
        Version::V2 if child.dir.has("memory.reclaim") => {
            let _ = child.write("memory.reclaim", "32M");
        }
        Version::V2 => answers!(child.write("memory.high", "0"), Ok(()), "memory.high"),
    }
    answers!(world.remove(&child), Ok(()), "rmdir");
    let left = over.memory.usage()?;
    holds!(left <= mib(1), "{left} is left");
    if over.memory.version() == Version::V2 {
        let gone = super::until(world, super::SOON, |_| {
            Ok(over.key("cgroup.stat", "nr_dying_descendants")? == 0)
        })?;
        holds!(gone, "it is still dying");
    }
    Ok(())
}

fn rmdir_does_not_get_past_a_write_in_flight(world: &mut dyn World) -> Result<(), Stop> {
    let over = parent(world)?;
    without_swap(&over)?;
    for turn in 0..10 {
        let child = world.make(&over, &format!("child{turn}"))?;
        without_swap(&child)?;
        let task = world.spawn(&child)?;
        filled(world, task, Kind::File, mib(40))?;
        world.kill(task);
        holds!(super::dies(world, task)?, "the task did not die");
        let came = world.remove_during(&child, "memory.force_empty", "0", mib(38))?;
        if came.overlapped {
            holds!(came.left <= mib(2), "rmdir came back with {} not yet freed", came.left);
            return Ok(());
        }
    }
    Err(Stop::Fails("ten writes, and each was over before rmdir began".into()))
}

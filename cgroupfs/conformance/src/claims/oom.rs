//! The OOM killer, and what tells of it (`mem_cgroup_out_of_memory`).

use super::{
    A_WHILE, SOON, Stop, World, dies, fill, filled, group, limit, mib, oom_kills, parent, until,
    user, without_swap,
};
use crate::{Filled, Kind, Watched};
use cgroupfs::memory::Version;
use std::time::Duration;

claims!("out of memory";
    the_killer_takes_a_task_at_the_limit_and_oom_kill_counts_it [],
    a_system_call_that_finds_no_room_is_killed_too [],
    a_kill_is_told_to_the_oom_eventfd_and_counted_soon_after [V1],
    oom_kill_rises_in_the_victims_own_group_only [V1, Hierarchy],
    the_ancestor_whose_limit_was_hit_is_the_one_whose_failcnt_rose [V1, Hierarchy],
    an_empty_sibling_is_told_of_an_oom_of_the_parent [V1, Hierarchy],
    removing_a_group_tells_its_eventfds [V1],
    memory_events_tells_of_a_kill_without_being_read [V2],
    events_count_up_to_the_root_and_local_ones_do_not [V2, EventsLocal],
    oom_group_takes_the_whole_group [V2, OomGroup],
);

fn the_killer_takes_a_task_at_the_limit_and_oom_kill_counts_it(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    group.memory.set_limit(limit(8))?;
    let task = world.spawn(&group)?;
    let came = fill(world, task, Kind::Anon, mib(16))?;
    holds!(came == Filled::Died, "16 MiB of anon under a limit of 8: {came:?}");
    let counted = until(world, SOON, |_| Ok(oom_kills(&group)? == 1))?;
    holds!(counted, "oom_kill is {}", oom_kills(&group)?);
    Ok(())
}

fn a_system_call_that_finds_no_room_is_killed_too(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    group.memory.set_limit(limit(8))?;
    let task = world.spawn(&group)?;
    // The pages of a tmpfs file are not freed by the kill of who wrote them, but the writer is gone.
    let came = fill(world, task, Kind::Shmem, mib(16))?;
    holds!(came == Filled::Died, "16 MiB of tmpfs under a limit of 8: {came:?}");
    Ok(())
}

fn a_kill_is_told_to_the_oom_eventfd_and_counted_soon_after(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    group.memory.set_limit(limit(8))?;
    let watch = world.watch(&group, Watched::Oom)?;
    let task = user(world, &group, Kind::Anon, mib(4))?;
    holds!(!world.told(watch, A_WHILE), "told before anything happened");
    world.start(task, Kind::Anon, mib(16))?;
    holds!(world.told(watch, SOON), "the kill was not told of");
    let counted = until(world, Duration::from_millis(500), |_| Ok(oom_kills(&group)? == 1))?;
    holds!(counted, "half a second later oom_kill is {}", oom_kills(&group)?);
    let came = world.finish(task, SOON);
    holds!(came == Filled::Died, "20 MiB of anon under a limit of 8: {came:?}");
    Ok(())
}

/// A parent under 8 MiB whose child meets that limit.
struct Family {
    over: crate::Group,
    child: crate::Group,
    sibling: crate::Group,
}

fn family(world: &mut dyn World) -> Result<Family, Stop> {
    let over = parent(world)?;
    without_swap(&over)?;
    over.memory.set_limit(limit(8))?;
    let child = world.make(&over, "child")?;
    let sibling = world.make(&over, "sibling")?;
    without_swap(&child)?;
    Ok(Family { over, child, sibling })
}

fn outgrow(world: &mut dyn World, family: &Family) -> Result<(), Stop> {
    let task = world.spawn(&family.child)?;
    let came = fill(world, task, Kind::Anon, mib(16))?;
    holds!(came == Filled::Died, "16 MiB of anon under a parent's limit of 8: {came:?}");
    let counted = until(world, SOON, |_| Ok(oom_kills(&family.child)? == 1))?;
    holds!(counted, "the child's oom_kill is {}", oom_kills(&family.child)?);
    Ok(())
}

fn oom_kill_rises_in_the_victims_own_group_only(world: &mut dyn World) -> Result<(), Stop> {
    let family = family(world)?;
    outgrow(world, &family)?;
    for group in [&family.over, &family.sibling] {
        let kills = oom_kills(group)?;
        holds!(kills == 0, "oom_kill of {} is {kills}", group.dir.path().display());
    }
    Ok(())
}

fn the_ancestor_whose_limit_was_hit_is_the_one_whose_failcnt_rose(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let family = family(world)?;
    outgrow(world, &family)?;
    let (over, own) =
        (family.over.number("memory.failcnt")?, family.child.number("memory.failcnt")?);
    holds!(over > 0 && own == 0, "the parent's failcnt is {over}, the child's {own}");
    Ok(())
}

fn an_empty_sibling_is_told_of_an_oom_of_the_parent(world: &mut dyn World) -> Result<(), Stop> {
    let family = family(world)?;
    let watch = world.watch(&family.sibling, Watched::Oom)?;
    outgrow(world, &family)?;
    holds!(world.told(watch, SOON), "it was not told");
    Ok(())
}

fn removing_a_group_tells_its_eventfds(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    let oom = world.watch(&group, Watched::Oom)?;
    let threshold = world.watch(&group, Watched::Threshold(mib(32)))?;
    holds!(!world.told(oom, A_WHILE), "told before anything happened");
    answers!(world.remove(&group), Ok(()), "rmdir");
    holds!(world.told(oom, SOON), "the OOM eventfd was not told");
    holds!(world.told(threshold, SOON), "the threshold's eventfd was not told");
    Ok(())
}

fn memory_events_tells_of_a_kill_without_being_read(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let watch = world.watch(&group, Watched::Modified("memory.events"))?;
    let task = user(world, &group, Kind::Anon, mib(4))?;
    holds!(!world.told(watch, A_WHILE), "told before anything happened");
    group.memory.set_limit(limit(8))?;
    let came = fill(world, task, Kind::Anon, mib(16))?;
    holds!(came == Filled::Died, "20 MiB of anon under a limit of 8: {came:?}");
    holds!(world.told(watch, SOON), "it was not told of");
    Ok(())
}

fn events_count_up_to_the_root_and_local_ones_do_not(world: &mut dyn World) -> Result<(), Stop> {
    let over = parent(world)?;
    let child = world.make(&over, "child")?;
    without_swap(&child)?;
    child.memory.set_limit(limit(8))?;
    let task = world.spawn(&child)?;
    let came = fill(world, task, Kind::Anon, mib(16))?;
    holds!(came == Filled::Died, "16 MiB of anon under a limit of 8: {came:?}");
    let counted = until(world, SOON, |_| Ok(oom_kills(&child)? == 1))?;
    holds!(counted, "the child's oom_kill is {}", oom_kills(&child)?);
    let of = |group: &crate::Group, file| group.key(file, "oom_kill");
    let (all, local) = (of(&over, "memory.events")?, of(&over, "memory.events.local")?);
    holds!(all == 1 && local == 0, "the parent has {all}, of its own {local}");
    holds!(of(&child, "memory.events.local")? == 1, "the child's own is not 1");
    Ok(())
}

fn oom_group_takes_the_whole_group(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    holds!(group.memory.version() == Version::V2, "memory.oom.group on v1");
    answers!(group.write("memory.oom.group", "1"), Ok(()), "memory.oom.group");
    group.memory.set_limit(limit(16))?;
    let small = world.spawn(&group)?;
    filled(world, small, Kind::Anon, mib(1))?;
    let big = world.spawn(&group)?;
    let came = fill(world, big, Kind::Anon, mib(32))?;
    holds!(came == Filled::Died, "32 MiB of anon under a limit of 16: {came:?}");
    holds!(dies(world, small)?, "the other task lives on");
    Ok(())
}

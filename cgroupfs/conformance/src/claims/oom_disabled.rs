//! `oom_kill_disable` of v1: who waits, who gets an error (`mem_cgroup_oom_synchronize`).

use super::{
    A_WHILE, SOON, Stop, World, fill, group, limit, mib, oom_kills, parent, until, without_swap,
};
use crate::{Filled, Group, Kind, Task, Watched};
use nix::errno::Errno;
use std::time::Duration;

claims!("oom_kill_disable";
    with_the_killer_disabled_a_page_fault_waits_and_nobody_is_killed [V1],
    with_the_killer_disabled_a_system_call_gets_enomem_and_is_not_told_of [V1],
    with_the_killer_disabled_a_copy_to_fresh_pages_gets_efault [V1],
    a_waiting_fault_goes_on_at_a_raise_but_not_at_an_equal_limit [V1],
    an_oom_watch_on_a_group_under_oom_is_told_at_once [V1],
    a_child_copies_oom_kill_disable_when_it_is_made_and_not_later [V1],
    writing_0_to_oom_control_arms_the_killer_for_who_waits [V1],
);

const SHORT: Duration = Duration::from_millis(60);

/// 8 MiB, and no killer.
pub(super) fn held(world: &mut dyn World) -> Result<Group, Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    group.memory.set_limit(limit(8))?;
    answers!(group.write("memory.oom_control", "1"), Ok(()), "memory.oom_control");
    Ok(group)
}

/// A task that waits for memory of the group.
pub(super) fn waiter(world: &mut dyn World, group: &Group) -> Result<Task, Stop> {
    let task = world.spawn(group)?;
    world.start(task, Kind::Anon, mib(12))?;
    let waits = until(world, SOON, |_| Ok(group.key("memory.oom_control", "under_oom")? == 1))?;
    let came = world.finish(task, SHORT);
    holds!(
        came == Filled::NotYet && waits,
        "12 MiB of anon under 8 with the killer disabled: {came:?}, under_oom: {waits}"
    );
    Ok(task)
}

fn with_the_killer_disabled_a_page_fault_waits_and_nobody_is_killed(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = held(world)?;
    let watch = world.watch(&group, Watched::Oom)?;
    let task = waiter(world, &group)?;
    holds!(world.alive(task) && oom_kills(&group)? == 0, "it was killed");
    holds!(world.told(watch, SOON), "the eventfd was not told");
    Ok(())
}

fn with_the_killer_disabled_a_system_call_gets_enomem_and_is_not_told_of(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = held(world)?;
    let watch = world.watch(&group, Watched::Oom)?;
    let task = world.spawn(&group)?;
    let came = fill(world, task, Kind::Shmem, mib(12))?;
    let refused = matches!(came, Filled::Refused(done, Errno::ENOMEM) if done < mib(9));
    holds!(refused, "12 MiB of tmpfs under 8: {came:?}");
    holds!(group.key("memory.oom_control", "under_oom")? == 0, "under_oom is 1");
    holds!(!world.told(watch, A_WHILE), "the eventfd was told");
    Ok(())
}

fn with_the_killer_disabled_a_copy_to_fresh_pages_gets_efault(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = held(world)?;
    let task = world.spawn(&group)?;
    let came = fill(world, task, Kind::Copied, mib(12))?;
    let refused = matches!(came, Filled::Refused(done, Errno::EFAULT) if done < mib(9));
    holds!(refused, "12 MiB read into fresh pages under 8: {came:?}");
    Ok(())
}

fn a_waiting_fault_goes_on_at_a_raise_but_not_at_an_equal_limit(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = held(world)?;
    let watch = world.watch(&group, Watched::Oom)?;
    let task = waiter(world, &group)?;
    holds!(world.told(watch, SOON), "its waiting was not told of");
    group.memory.set_limit(limit(8))?;
    let came = world.finish(task, SHORT);
    // Had it tried again, it would wait again, and that would be told of.
    holds!(came == Filled::NotYet && !world.told(watch, A_WHILE), "an equal limit: {came:?}");
    group.memory.set_limit(limit(32))?;
    let came = world.finish(task, SOON);
    holds!(came == Filled::All, "at a raise: {came:?}");
    Ok(())
}

fn an_oom_watch_on_a_group_under_oom_is_told_at_once(world: &mut dyn World) -> Result<(), Stop> {
    let group = held(world)?;
    let task = waiter(world, &group)?;
    let watch = world.watch(&group, Watched::Oom)?;
    holds!(world.told(watch, SOON), "it was not told");
    holds!(world.alive(task), "it was killed");
    Ok(())
}

fn a_child_copies_oom_kill_disable_when_it_is_made_and_not_later(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let over = parent(world)?;
    let flag = |group: &Group| group.key("memory.oom_control", "oom_kill_disable");
    let before = world.make(&over, "before")?;
    answers!(over.write("memory.oom_control", "1"), Ok(()), "memory.oom_control");
    let after = world.make(&over, "after")?;
    let (before, after) = (flag(&before)?, flag(&after)?);
    holds!(before == 0 && after == 1, "made before: {before}, made after: {after}");
    Ok(())
}

fn writing_0_to_oom_control_arms_the_killer_for_who_waits(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = held(world)?;
    let task = waiter(world, &group)?;
    answers!(group.write("memory.oom_control", "0"), Ok(()), "memory.oom_control");
    let came = world.finish(task, SOON);
    holds!(came == Filled::Died, "{came:?}");
    Ok(())
}

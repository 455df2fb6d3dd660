//! The freezers: v1 `freezer.state`, v2 `cgroup.freeze`.

use super::{SOON, Stop, World, dies, group, limit, mib, until, user, without_swap};
use crate::world::{read, write};
use crate::{Filled, Kind, Task};
use cgroupfs::files::ControlDir;
use std::sync::Arc;
use std::time::Duration;

claims!("freezer";
    a_frozen_v1_task_does_not_die_of_sigkill_until_it_is_thawed [V1, Freezer],
    a_frozen_task_charges_nothing_until_it_is_thawed [V1, Freezer],
    a_frozen_group_freezes_those_below_and_not_the_one_above [V1, Freezer],
    a_task_that_waits_for_memory_does_not_get_to_frozen [V1, Freezer],
    a_frozen_v2_task_charges_nothing_and_can_be_killed [V2],
);

const STATE: &str = "freezer.state";

fn enter(world: &dyn World, dir: &Arc<dyn ControlDir>, task: Task) -> Result<(), Stop> {
    answers!(write(dir, "cgroup.procs", &world.pid(task).to_string()), Ok(()), "cgroup.procs");
    Ok(())
}

fn freeze(world: &mut dyn World, dir: &Arc<dyn ControlDir>) -> Result<(), Stop> {
    answers!(write(dir, STATE, "FROZEN"), Ok(()), STATE);
    let frozen = until(world, SOON, |_| Ok(read(dir, STATE)? == "FROZEN"))?;
    holds!(frozen, "it is {} still", read(dir, STATE)?);
    Ok(())
}

fn thaw(dir: &Arc<dyn ControlDir>) -> Result<(), Stop> {
    answers!(write(dir, STATE, "THAWED"), Ok(()), STATE);
    Ok(())
}

fn a_frozen_v1_task_does_not_die_of_sigkill_until_it_is_thawed(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    let freezer = world.make_freezer(None, "f")?;
    let task = world.spawn(&group)?;
    enter(world, &freezer, task)?;
    freeze(world, &freezer)?;
    world.kill(task);
    world.pass(Duration::from_millis(100));
    let (alive, pending) = (world.alive(task), world.kill_is_pending(task));
    thaw(&freezer)?;
    holds!(alive && pending, "frozen it was killed: alive {alive}, pending {pending}");
    holds!(dies(world, task)?, "thawed it lives on");
    Ok(())
}

fn a_frozen_task_charges_nothing_until_it_is_thawed(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    let freezer = world.make_freezer(None, "f")?;
    let task = user(world, &group, Kind::Anon, mib(2))?;
    enter(world, &freezer, task)?;
    freeze(world, &freezer)?;
    let before = group.memory.usage()?;
    world.start(task, Kind::Anon, mib(8))?;
    let came = world.finish(task, Duration::from_millis(150));
    let grown = group.memory.usage()?.saturating_sub(before);
    thaw(&freezer)?;
    holds!(came == Filled::NotYet && grown < mib(1), "frozen: {came:?}, grown by {grown}");
    let came = world.finish(task, SOON);
    holds!(came == Filled::All, "thawed: {came:?}");
    Ok(())
}

fn a_frozen_group_freezes_those_below_and_not_the_one_above(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    let top = world.make_freezer(None, "f")?;
    let middle = world.make_freezer(Some(&top), "m")?;
    let below = world.make_freezer(Some(&middle), "b")?;
    let task = world.spawn(&group)?;
    enter(world, &below, task)?;
    freeze(world, &middle)?;
    world.start(task, Kind::Anon, mib(4))?;
    let came = world.finish(task, Duration::from_millis(150));
    let states = [read(&top, STATE)?, read(&middle, STATE)?, read(&below, STATE)?];
    let parent = read(&below, "freezer.parent_freezing")?;
    thaw(&middle)?;
    holds!(states == ["THAWED", "FROZEN", "FROZEN"], "{states:?}");
    holds!(parent == "1", "parent_freezing is {parent}");
    holds!(came == Filled::NotYet, "below a frozen group: {came:?}");
    Ok(())
}

fn a_task_that_waits_for_memory_does_not_get_to_frozen(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    group.memory.set_limit(limit(8))?;
    answers!(group.write("memory.oom_control", "1"), Ok(()), "memory.oom_control");
    let freezer = world.make_freezer(None, "f")?;
    let task = world.spawn(&group)?;
    enter(world, &freezer, task)?;
    world.start(task, Kind::Anon, mib(12))?;
    let came = world.finish(task, Duration::from_millis(300));
    holds!(came == Filled::NotYet, "12 MiB under 8 with the killer disabled: {came:?}");
    answers!(write(&freezer, STATE, "FROZEN"), Ok(()), STATE);
    let frozen =
        until(world, Duration::from_millis(200), |_| Ok(read(&freezer, STATE)? == "FROZEN"))?;
    let state = read(&freezer, STATE)?;
    thaw(&freezer)?;
    holds!(!frozen && state == "FREEZING", "it is {state}");
    Ok(())
}

fn a_frozen_v2_task_charges_nothing_and_can_be_killed(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    let task = user(world, &group, Kind::Anon, mib(2))?;
    answers!(group.write("cgroup.freeze", "1"), Ok(()), "cgroup.freeze");
    let frozen = until(world, SOON, |_| Ok(group.key("cgroup.events", "frozen")? == 1))?;
    holds!(frozen, "cgroup.events never says frozen");
    let before = group.memory.usage()?;
    world.start(task, Kind::Anon, mib(8))?;
    let came = world.finish(task, Duration::from_millis(150));
    let grown = group.memory.usage()?.saturating_sub(before);
    holds!(came == Filled::NotYet && grown < mib(1), "frozen: {came:?}, grown by {grown}");
    world.kill(task);
    holds!(dies(world, task)?, "frozen it cannot be killed");
    let empty = until(world, SOON, |_| Ok(group.key("cgroup.events", "populated")? == 0))?;
    holds!(empty, "cgroup.events still says populated");
    Ok(())
}

//! Charging: what usage shows, what happens at the limit, and what counts it.

use super::{Stop, World, filled, group, limit, mib, oom_kills, user, without_swap};
use crate::Kind;
use cgroupfs::Bytes;

claims!("charging";
    usage_shows_what_a_task_has_and_a_batch_for_each_cpu_at_most [],
    the_peak_stays_when_usage_falls [Peak],
    charges_that_meet_the_limit_are_counted_and_kill_nobody_where_cache_can_go [],
    failcnt_is_reset_by_a_write [V1],
    at_memsw_equal_to_limit_failcnt_stays_0_and_memsw_counts [V1, SwapAccounting],
    a_task_that_moves_leaves_its_charges_behind [],
);

fn usage_shows_what_a_task_has_and_a_batch_for_each_cpu_at_most(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    // What the task's own start costs is charged by then.
    let task = user(world, &group, Kind::Anon, mib(1))?;
    let before = group.memory.usage()?;
    filled(world, task, Kind::File, mib(8))?;
    let grown = group.memory.usage()?.saturating_sub(before);
    // 64 pages at most are charged ahead on a CPU; the radix tree's nodes and the like on top.
    let fuzz = Bytes(world.cpus() * 64 * 4096 + 512 * 1024);
    holds!(
        grown >= mib(8).saturating_sub(fuzz) && grown <= mib(8).saturating_add(fuzz),
        "8 MiB read, usage grew by {grown}"
    );
    Ok(())
}

fn the_peak_stays_when_usage_falls(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    let task = user(world, &group, Kind::Anon, mib(8))?;
    world.free(task)?;
    let (usage, peak) = (group.memory.usage()?, group.memory.peak()?);
    holds!(usage < mib(4), "freed, usage is {usage}");
    holds!(peak >= mib(8), "the peak is {peak}");
    Ok(())
}

fn charges_that_meet_the_limit_are_counted_and_kill_nobody_where_cache_can_go(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    group.memory.set_limit(limit(8))?;
    let task = world.spawn(&group)?;
    let before = group.memory.counters()?.direct_reclaim();
    filled(world, task, Kind::File, mib(24))?;
    let counters = group.memory.counters()?;
    holds!(counters.direct_reclaim() > before, "nothing was counted: {counters:?}");
    holds!(oom_kills(&group)? == 0 && world.alive(task), "the killer came: {counters:?}");
    holds!(group.memory.usage()? <= mib(8), "usage is {}", group.memory.usage()?);
    Ok(())
}

fn failcnt_is_reset_by_a_write(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    group.memory.set_limit(limit(8))?;
    user(world, &group, Kind::File, mib(16))?;
    holds!(group.number("memory.failcnt")? > 0, "failcnt stayed 0");
    answers!(group.write("memory.failcnt", "0"), Ok(()), "memory.failcnt");
    let count = group.number("memory.failcnt")?;
    holds!(count == 0, "it is {count} after the write");
    Ok(())
}

/// The charge fails on memsw first. From 6.18 memsw keeps no count, so that nothing tells.
fn at_memsw_equal_to_limit_failcnt_stays_0_and_memsw_counts(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(group.write("memory.limit_in_bytes", "8M"), Ok(()), "the limit");
    answers!(group.write("memory.memsw.limit_in_bytes", "8M"), Ok(()), "memsw equal to it");
    user(world, &group, Kind::File, mib(24))?;
    let count = group.number("memory.failcnt")?;
    holds!(count == 0, "failcnt is {count}");
    match group.number("memory.memsw.failcnt")? {
        0 => Err(Stop::Differs("memsw.failcnt stays 0 as well")),
        _ => Ok(()),
    }
}

fn a_task_that_moves_leaves_its_charges_behind(world: &mut dyn World) -> Result<(), Stop> {
    let from = group(world)?;
    let to = {
        let ground = world.ground();
        world.make(&ground, "to")?
    };
    let task = user(world, &from, Kind::Anon, mib(8))?;
    answers!(to.write("cgroup.procs", &world.pid(task).to_string()), Ok(()), "the move");
    let (left, came) = (from.memory.usage()?, to.memory.usage()?);
    holds!(left >= mib(7) && came < mib(4), "{left} stayed, {came} came");
    Ok(())
}

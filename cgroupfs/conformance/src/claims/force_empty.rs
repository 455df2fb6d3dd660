//! `memory.force_empty` of v1 (`mem_cgroup_force_empty`).

use super::{Stop, World, filled, group, limit, mib, user, without_swap};
use crate::Kind;
use nix::errno::Errno;
use std::time::Duration;

claims!("force_empty";
    force_empty_takes_the_cache_and_succeeds_though_not_empty [V1],
    force_empty_is_over_at_once_where_nothing_can_go [V1],
    a_signal_ends_force_empty_with_eintr_and_the_rest_still_there [V1],
    force_empty_leaves_anon_at_swappiness_0 [V1, Swap],
    force_empty_swaps_what_the_kernel_would_not_at_memsw_equal_to_limit [V1, Swap, SwapAccounting],
);

const FILE: &str = "memory.force_empty";

fn force_empty_takes_the_cache_and_succeeds_though_not_empty(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    answers!(group.write("memory.limit_in_bytes", "64M"), Ok(()), "the limit");
    let task = user(world, &group, Kind::Anon, mib(8))?;
    filled(world, task, Kind::File, mib(16))?;
    answers!(group.write(FILE, "0"), Ok(()), "force_empty");
    let usage = group.memory.usage()?;
    holds!(usage >= mib(7) && usage <= mib(12), "of 8 MiB anon and 16 MiB cache {usage} is left");
    holds!(group.memory.limit()? == limit(64), "the limit is {}", group.memory.limit()?);
    holds!(world.alive(task), "the task was killed");
    Ok(())
}

/// Whoever waits for the write, a rmdir among them, waits as long: through 5.15 there are up to 100 ms
/// after each of 16 fruitless passes.
fn force_empty_is_over_at_once_where_nothing_can_go(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    user(world, &group, Kind::Anon, mib(4))?;
    let start = world.now();
    answers!(group.write(FILE, "0"), Ok(()), "force_empty");
    match world.now() - start {
        took if took < Duration::from_millis(1200) => Ok(()),
        took if took < Duration::from_secs(4) => Err(Stop::Differs("it waits, 1.6 s in all")),
        took => Err(Stop::Fails(format!("it took {took:?}"))),
    }
}

fn a_signal_ends_force_empty_with_eintr_and_the_rest_still_there(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = world.spawn(&group)?;
    for _ in 0..10 {
        filled(world, task, Kind::File, mib(40))?;
        if let Err(errno) = world.write_until(&group, FILE, "0", mib(36)) {
            let usage = group.memory.usage()?;
            answers!(errno, Errno::EINTR, "force_empty with a signal");
            holds!(usage <= mib(37) && usage > mib(2), "usage is {usage}");
            return Ok(());
        }
    }
    Err(Stop::Fails("ten signals came, and none was heeded".into()))
}

fn force_empty_leaves_anon_at_swappiness_0(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    user(world, &group, Kind::Anon, mib(8))?;
    answers!(group.write(FILE, "0"), Ok(()), "force_empty");
    let usage = group.memory.usage()?;
    holds!(usage >= mib(7), "it swapped: usage is {usage}");
    Ok(())
}

fn force_empty_swaps_what_the_kernel_would_not_at_memsw_equal_to_limit(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(group.write("memory.limit_in_bytes", "16M"), Ok(()), "the limit");
    answers!(group.write("memory.memsw.limit_in_bytes", "16M"), Ok(()), "memsw equal to it");
    let task = user(world, &group, Kind::Anon, mib(8))?;
    filled(world, task, Kind::File, mib(20))?;
    let swapped = group.memory.swap_usage()?.unwrap_or_default();
    holds!(swapped <= mib(1), "at the limit {swapped} was swapped");
    answers!(group.write(FILE, "0"), Ok(()), "force_empty");
    let swapped = group.memory.swap_usage()?.unwrap_or_default();
    holds!(swapped >= mib(6), "of 8 MiB force_empty swapped {swapped}");
    Ok(())
}

//! `memory.high` of v2 (`memory_high_write`, `mem_cgroup_handle_over_high`).

use super::{Stop, World, group, mib, user, without_swap};
use crate::{Filled, Kind};
use cgroupfs::Bytes;
use std::time::Duration;

claims!("memory.high";
    a_write_of_memory_high_reclaims_in_the_writer_and_kills_nobody [V2],
    memory_high_slows_a_grower_along_the_kernels_curve [V2],
    up_to_one_percent_over_memory_high_nobody_sleeps [V2],
    growth_over_memory_high_is_counted [V2],
);

fn a_write_of_memory_high_reclaims_in_the_writer_and_kills_nobody(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = user(world, &group, Kind::Anon, mib(6))?;
    super::filled(world, task, Kind::File, mib(20))?;
    answers!(group.write("memory.high", "10M"), Ok(()), "memory.high");
    let usage = group.memory.usage()?;
    holds!(usage <= mib(11), "usage is {usage} after memory.high of 10 MiB");
    answers!(group.write("memory.high", "2M"), Ok(()), "memory.high below anon");
    holds!(group.memory.usage()? >= mib(5), "usage is {}", group.memory.usage()?);
    holds!(world.alive(task), "the task was killed");
    Ok(())
}

/// One grower, high = 16 MiB, a second: f = (3 · 256 KiB · t / (64 s · high))^(1/3) is 9 %, and with
/// batches of 32 pages (to 5.15) 7 %. A grower that was not slowed would have its 48 MiB.
fn memory_high_slows_a_grower_along_the_kernels_curve(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    answers!(group.write("memory.high", "16M"), Ok(()), "memory.high");
    let task = world.spawn(&group)?;
    world.start(task, Kind::Anon, mib(48))?;
    // However slow the machine is: the second counts from there.
    let there = super::until(world, super::SOON, |_| Ok(group.memory.usage()? >= mib(16)))?;
    let came = world.finish(task, Duration::from_secs(1));
    let usage = group.memory.usage()?;
    if came == Filled::All {
        return Err(Stop::Differs("it reclaims, and makes nobody sleep"));
    }
    holds!(came == Filled::NotYet, "48 MiB over a high of 16: {came:?}");
    holds!(there, "it did not get there: usage is {usage}");
    holds!(usage <= mib(20), "usage is {usage} after a second over 16 MiB");
    Ok(())
}

fn up_to_one_percent_over_memory_high_nobody_sleeps(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = user(world, &group, Kind::Anon, mib(48))?;
    // With 512 KiB more, 1 % over.
    let high = Bytes(group.memory.usage()?.0);
    answers!(group.write("memory.high", &high.0.to_string()), Ok(()), "memory.high");
    let start = world.now();
    super::filled(world, task, Kind::Anon, Bytes::kib(256))?;
    let took = world.now() - start;
    holds!(took < Duration::from_millis(1900), "256 KiB over {high} took {took:?}");
    Ok(())
}

fn growth_over_memory_high_is_counted(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(group.write("memory.high", "8M"), Ok(()), "memory.high");
    user(world, &group, Kind::File, mib(24))?;
    let counters = group.memory.counters()?;
    holds!(counters.high.unwrap_or(0) > 0, "{counters:?}");
    holds!(counters.oom_kill.unwrap_or(0) == 0, "{counters:?}");
    Ok(())
}

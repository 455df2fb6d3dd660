//! Usage thresholds of v1 (`memcg_check_events`, `__mem_cgroup_threshold`).

use super::{A_WHILE, SOON, Stop, World, filled, group, mib, user, without_swap};
use crate::{Kind, Watched};
use cgroupfs::Bytes;

claims!("thresholds";
    a_threshold_tells_nothing_when_it_is_set_though_usage_is_past_it [V1],
    a_threshold_tells_when_usage_rises_past_it_and_not_before [V1],
    a_threshold_tells_when_usage_falls_past_it [V1],
    a_crossing_is_seen_within_128_page_events_a_cpu [V1],
    growth_of_kernel_memory_alone_crosses_no_threshold [V1],
);

fn a_threshold_tells_nothing_when_it_is_set_though_usage_is_past_it(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    user(world, &group, Kind::File, mib(8))?;
    let watch = world.watch(&group, Watched::Threshold(mib(4)))?;
    holds!(!world.told(watch, A_WHILE), "it was told");
    Ok(())
}

fn a_threshold_tells_when_usage_rises_past_it_and_not_before(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    let watch = world.watch(&group, Watched::Threshold(mib(16)))?;
    let task = user(world, &group, Kind::File, mib(8))?;
    holds!(!world.told(watch, A_WHILE), "told at {}", group.memory.usage()?);
    filled(world, task, Kind::File, mib(16))?;
    holds!(world.told(watch, SOON), "not told at {}", group.memory.usage()?);
    Ok(())
}

fn a_threshold_tells_when_usage_falls_past_it(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let watch = world.watch(&group, Watched::Threshold(mib(8)))?;
    user(world, &group, Kind::File, mib(16))?;
    holds!(world.told(watch, SOON), "not told on the way up");
    answers!(group.write("memory.force_empty", "0"), Ok(()), "force_empty");
    holds!(world.told(watch, SOON), "not told on the way down, at {}", group.memory.usage()?);
    Ok(())
}

fn a_crossing_is_seen_within_128_page_events_a_cpu(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    let task = user(world, &group, Kind::File, mib(4))?;
    let at = Bytes(group.memory.usage()?.0 + mib(1).0);
    let watch = world.watch(&group, Watched::Threshold(at))?;
    // To the threshold, a batch of 64 pages that usage may run ahead, and 128 events, for each CPU.
    let more = Bytes(mib(1).0 + world.cpus() * (64 + 128) * 4096 + 64 * 4096);
    filled(world, task, Kind::File, more)?;
    holds!(world.told(watch, SOON), "{more} later it was not told: {}", group.memory.usage()?);
    Ok(())
}

fn growth_of_kernel_memory_alone_crosses_no_threshold(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    let task = user(world, &group, Kind::File, mib(4))?;
    let at = Bytes(group.memory.usage()?.0 + mib(2).0);
    let watch = world.watch(&group, Watched::Threshold(at))?;
    filled(world, task, Kind::Kernel, mib(6))?;
    let usage = group.memory.usage()?;
    holds!(usage >= at, "6 MiB of pipes made usage {usage} only");
    holds!(!world.told(watch, A_WHILE), "it was told at {usage}");
    filled(world, task, Kind::File, mib(4))?;
    holds!(world.told(watch, SOON), "not told though pages came");
    Ok(())
}

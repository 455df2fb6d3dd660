//! Swap: who may put anonymous memory there, and how it is counted.

use super::{Stop, World, fill, filled, group, limit, mib, user};
use crate::{Filled, Kind};
use cgroupfs::Limit;
use nix::errno::Errno;

claims!("swap";
    a_limit_write_swaps_as_swappiness_allows [V1, Swap],
    a_memsw_write_never_swaps [V1, Swap, SwapAccounting],
    swapping_does_not_lower_what_memsw_counts [V1, Swap, SwapAccounting],
    at_memsw_equal_to_limit_the_kernel_kills_and_does_not_swap [V1, Swap, SwapAccounting],
    swap_max_bounds_what_reclaim_may_swap [V2, Swap, SwapAccounting, Reclaim],
    at_swap_max_0_the_limit_kills_and_does_not_swap [V2, Swap, SwapAccounting],
    cold_anon_goes_to_swap_at_the_limit_and_nobody_dies [Swap],
);

fn a_limit_write_swaps_as_swappiness_allows(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    user(world, &group, Kind::Anon, mib(16))?;
    answers!(group.write("memory.swappiness", "0"), Ok(()), "swappiness 0");
    let step = group.write("memory.limit_in_bytes", "8M");
    answers!(step, Err(Errno::EBUSY), "a limit of 8 MiB over 16 MiB of anon at swappiness 0");
    answers!(group.write("memory.swappiness", "60"), Ok(()), "swappiness 60");
    let step = group.write("memory.limit_in_bytes", "8M");
    answers!(step, Ok(()), "the same at swappiness 60");
    holds!(group.memory.usage()? <= mib(8), "usage is {}", group.memory.usage()?);
    if let Some(swapped) = group.memory.swap_usage()? {
        holds!(swapped >= mib(6), "{swapped} was swapped");
    }
    Ok(())
}

/// 8 MiB resident under a limit of 8 MiB, and 8 MiB swapped.
fn half_swapped(world: &mut dyn World) -> Result<crate::Group, Stop> {
    let group = group(world)?;
    answers!(group.write("memory.limit_in_bytes", "8M"), Ok(()), "the limit");
    user(world, &group, Kind::Anon, mib(16))?;
    let swapped = group.memory.swap_usage()?.unwrap_or_default();
    holds!(swapped >= mib(6), "{swapped} was swapped at the limit");
    Ok(group)
}

fn a_memsw_write_never_swaps(world: &mut dyn World) -> Result<(), Stop> {
    let group = half_swapped(world)?;
    let before = group.memory.swap_usage()?.unwrap_or_default();
    let write = group.write("memory.memsw.limit_in_bytes", "10M");
    answers!(write, Err(Errno::EBUSY), "memsw of 10 MiB over 16 MiB of memory and swap");
    let after = group.memory.swap_usage()?.unwrap_or_default();
    holds!(after <= before.saturating_add(mib(1)), "swap grew from {before} to {after}");
    holds!(group.memory.limit_bound()? == Limit::Max, "memsw is {}", group.memory.limit_bound()?);
    Ok(())
}

fn swapping_does_not_lower_what_memsw_counts(world: &mut dyn World) -> Result<(), Stop> {
    let group = half_swapped(world)?;
    let both = group.number("memory.memsw.usage_in_bytes")?;
    holds!(both >= mib(15).0, "memory and swap together are {both} of 16 MiB");
    Ok(())
}

fn at_memsw_equal_to_limit_the_kernel_kills_and_does_not_swap(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(group.write("memory.limit_in_bytes", "8M"), Ok(()), "the limit");
    answers!(group.write("memory.memsw.limit_in_bytes", "8M"), Ok(()), "memsw equal to it");
    holds!(!group.memory.swap_rules()?.swaps_at_limit, "{:?}", group.memory.swap_rules()?);
    let task = user(world, &group, Kind::Anon, mib(5))?;
    filled(world, task, Kind::File, mib(8))?;
    let swapped = group.memory.swap_usage()?.unwrap_or_default();
    holds!(swapped <= mib(1), "{swapped} was swapped");
    let came = fill(world, task, Kind::Anon, mib(8))?;
    holds!(came == Filled::Died, "13 MiB of anon under 8 MiB: {came:?}");
    Ok(())
}

fn swap_max_bounds_what_reclaim_may_swap(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(group.write("memory.swap.max", "4M"), Ok(()), "memory.swap.max");
    user(world, &group, Kind::Anon, mib(12))?;
    answers!(group.write("memory.reclaim", "10M"), Err(Errno::EAGAIN), "reclaim of 10 of 12 MiB");
    let swapped = group.memory.swap_usage()?.unwrap_or_default();
    holds!(
        swapped <= mib(4) && swapped >= mib(2),
        "{swapped} was swapped under a maximum of 4 MiB"
    );
    Ok(())
}

fn at_swap_max_0_the_limit_kills_and_does_not_swap(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(group.write("memory.swap.max", "0"), Ok(()), "memory.swap.max");
    group.memory.set_limit(limit(8))?;
    let task = world.spawn(&group)?;
    let came = fill(world, task, Kind::Anon, mib(16))?;
    holds!(came == Filled::Died, "16 MiB of anon under 8 MiB: {came:?}");
    Ok(())
}

fn cold_anon_goes_to_swap_at_the_limit_and_nobody_dies(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    group.memory.set_limit(limit(8))?;
    let task = user(world, &group, Kind::Anon, mib(16))?;
    holds!(world.alive(task), "the task was killed");
    holds!(group.memory.usage()? <= mib(8), "usage is {}", group.memory.usage()?);
    Ok(())
}

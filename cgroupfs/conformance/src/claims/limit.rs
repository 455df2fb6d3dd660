//! `memory.limit_in_bytes` of v1 (`mem_cgroup_resize_max`).

use super::{SOON, Stop, World, fill, filled, group, limit, mib, until, user, without_swap};
use crate::{Filled, Group, Kind};
use nix::errno::Errno;

claims!("limit_in_bytes";
    a_limit_write_below_anon_without_swap_is_ebusy_and_changes_nothing [V1],
    a_limit_write_takes_clean_cache_and_little_more_than_asked [V1],
    over_dirty_cache_a_limit_write_waits_or_is_ebusy_and_succeeds_in_the_end [V1],
    a_signal_ends_a_limit_write_with_eintr_and_the_limit_as_it_was [V1],
    a_raise_with_a_signal_pending_is_eintr_and_does_nothing [V1],
    a_raise_through_another_descriptor_is_made_at_once_and_the_shrink_in_flight_undoes_it [V1],
    a_limit_above_memsw_is_einval_and_so_is_a_memsw_below_the_limit [V1, SwapAccounting],
    the_old_limit_is_einval_once_memsw_was_lowered_meanwhile [V1, SwapAccounting],
    a_lowered_limit_binds_at_once_and_a_grower_in_it_is_killed [V1],
);

const FILE: &str = "memory.limit_in_bytes";

fn set(group: &Group, mib: u64) -> Result<(), Errno> {
    group.write(FILE, &(mib << 20).to_string())
}

fn a_limit_write_below_anon_without_swap_is_ebusy_and_changes_nothing(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    answers!(set(&group, 32), Ok(()), "the first limit");
    let task = user(world, &group, Kind::Anon, mib(16))?;
    answers!(set(&group, 8), Err(Errno::EBUSY), "a limit of 8 MiB over 16 MiB of anon");
    holds!(group.memory.limit()? == limit(32), "the limit is {}", group.memory.limit()?);
    holds!(group.memory.usage()? >= mib(15), "usage is {}", group.memory.usage()?);
    holds!(world.alive(task), "the task was killed");
    Ok(())
}

fn a_limit_write_takes_clean_cache_and_little_more_than_asked(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    user(world, &group, Kind::File, mib(32))?;
    answers!(set(&group, 16), Ok(()), "a limit of 16 MiB over 32 MiB of clean cache");
    let usage = group.memory.usage()?;
    holds!(group.memory.limit()? == limit(16), "the limit is {}", group.memory.limit()?);
    holds!(usage <= mib(16), "usage is {usage}");
    holds!(usage >= mib(12), "it took far more than asked: usage is {usage}");
    Ok(())
}

/// Which of the two: whether the flusher has begun by the time of the last pass (6.18: both seen).
fn over_dirty_cache_a_limit_write_waits_or_is_ebusy_and_succeeds_in_the_end(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    answers!(set(&group, 32), Ok(()), "the first limit");
    user(world, &group, Kind::Dirty, mib(16))?;
    // The multi-generational LRU of 6.1 has no writeback started: pages expire after 30 s, and are looked for every 5.
    let done = until(world, SOON * 2, |_| match set(&group, 6) {
        Ok(()) => Ok(true),
        Err(Errno::EBUSY) if group.memory.limit()? == limit(32) => Ok(false),
        Err(errno) => Err(Stop::Fails(format!("{errno:?}, limit {}", group.memory.limit()?))),
    })?;
    holds!(done, "never: usage is {}", group.memory.usage()?);
    holds!(group.memory.usage()? <= mib(6), "usage is {}", group.memory.usage()?);
    Ok(())
}

fn a_signal_ends_a_limit_write_with_eintr_and_the_limit_as_it_was(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    answers!(set(&group, 64), Ok(()), "the first limit");
    let task = world.spawn(&group)?;
    for _ in 0..10 {
        filled(world, task, Kind::File, mib(40))?;
        match world.write_until(&group, FILE, &mib(2).0.to_string(), mib(32)) {
            // The signal came too late.
            Ok(()) => answers!(set(&group, 64), Ok(()), "the limit again"),
            Err(errno) => {
                let (usage, now) = (group.memory.usage()?, group.memory.limit()?);
                answers!(errno, Errno::EINTR, "a limit write with a signal");
                holds!(now == limit(64), "the limit is {now}");
                holds!(usage <= mib(33) && usage > mib(3), "usage is {usage}");
                return Ok(());
            }
        }
    }
    Err(Stop::Fails("ten signals came, and none was heeded".into()))
}

fn a_raise_with_a_signal_pending_is_eintr_and_does_nothing(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    let (from, to) = (mib(16).0.to_string(), mib(32).0.to_string());
    let raise = world.write_signalled(&group, FILE, &from, &to);
    answers!(raise, Err(Errno::EINTR), "a raise with a signal pending");
    holds!(group.memory.limit()? == limit(16), "the limit is {}", group.memory.limit()?);
    answers!(set(&group, 32), Ok(()), "the raise again");
    Ok(())
}

fn a_raise_through_another_descriptor_is_made_at_once_and_the_shrink_in_flight_undoes_it(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = world.spawn(&group)?;
    for _ in 0..10 {
        answers!(set(&group, 64), Ok(()), "the declared limit");
        filled(world, task, Kind::File, mib(40))?;
        let (shrink, raise) = (mib(2).0.to_string(), mib(128).0.to_string());
        let came = world.write_during(&group, FILE, &shrink, mib(36), &raise);
        answers!(came.first, Ok(()), "the shrink");
        answers!(came.second, Ok(()), "the raise");
        if came.overlapped {
            let now = group.memory.limit()?;
            holds!(now == limit(2), "after both the limit is {now}");
            return Ok(());
        }
    }
    Err(Stop::Fails("ten shrinks, and each was over before the raise".into()))
}

const MEMSW: &str = "memory.memsw.limit_in_bytes";

fn a_limit_above_memsw_is_einval_and_so_is_a_memsw_below_the_limit(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(set(&group, 16), Ok(()), "the first limit");
    answers!(group.write(MEMSW, "32M"), Ok(()), "memsw above the limit");
    answers!(set(&group, 33), Err(Errno::EINVAL), "a limit above memsw");
    holds!(group.memory.limit()? == limit(16), "the limit is {}", group.memory.limit()?);
    answers!(group.write(MEMSW, "15M"), Err(Errno::EINVAL), "memsw below the limit");
    holds!(group.memory.limit_bound()? == limit(32), "memsw is {}", group.memory.limit_bound()?);
    answers!(set(&group, 32), Ok(()), "a limit equal to memsw");
    Ok(())
}

fn the_old_limit_is_einval_once_memsw_was_lowered_meanwhile(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    answers!(set(&group, 48), Ok(()), "the declared limit");
    answers!(group.write(MEMSW, "48M"), Ok(()), "memsw equal to it");
    answers!(set(&group, 24), Ok(()), "a step");
    answers!(group.write(MEMSW, "32M"), Ok(()), "somebody lowers memsw");
    answers!(set(&group, 48), Err(Errno::EINVAL), "the restore");
    holds!(group.memory.limit()? == limit(24), "the limit is {}", group.memory.limit()?);
    answers!(set(&group, 32), Ok(()), "a restore to memsw");
    Ok(())
}

fn a_lowered_limit_binds_at_once_and_a_grower_in_it_is_killed(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    answers!(set(&group, 64), Ok(()), "the declared limit");
    let task = user(world, &group, Kind::Anon, mib(8))?;
    answers!(set(&group, 12), Ok(()), "a step to 4 MiB above usage");
    let came = fill(world, task, Kind::Anon, mib(16))?;
    holds!(came == Filled::Died, "growing to 24 of 64 MiB inside a step to 12: {came:?}");
    answers!(set(&group, 64), Ok(()), "the restore");
    Ok(())
}

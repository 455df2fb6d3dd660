//! `memory.reclaim` (`memory_reclaim`): v2 since 5.19, and v1 of kernels that carry it there.

use super::{Stop, World, filled, group, limit, mib, user, without_swap};
use crate::Kind;
use nix::errno::Errno;

claims!("memory.reclaim";
    memory_reclaim_takes_what_is_asked_and_little_more [Reclaim],
    memory_reclaim_is_eagain_when_short_and_keeps_what_it_took [Reclaim],
    a_signal_ends_memory_reclaim_with_eintr_and_the_rest_still_there [Reclaim],
);

const FILE: &str = "memory.reclaim";

fn memory_reclaim_takes_what_is_asked_and_little_more(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    group.memory.set_limit(limit(64))?;
    user(world, &group, Kind::File, mib(32))?;
    let before = group.memory.usage()?;
    answers!(group.write(FILE, "12M"), Ok(()), "memory.reclaim of 12 MiB");
    let freed = before.saturating_sub(group.memory.usage()?);
    holds!(freed >= mib(11) && freed <= mib(16), "asked for 12 MiB it took {freed}");
    holds!(group.memory.limit()? == limit(64), "the limit is {}", group.memory.limit()?);
    Ok(())
}

fn memory_reclaim_is_eagain_when_short_and_keeps_what_it_took(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = user(world, &group, Kind::Anon, mib(4))?;
    filled(world, task, Kind::File, mib(8))?;
    answers!(group.write(FILE, "32M"), Err(Errno::EAGAIN), "32 MiB of 8 that can go");
    let usage = group.memory.usage()?;
    holds!(usage <= mib(7), "usage is {usage}");
    holds!(world.alive(task), "the task was killed");
    Ok(())
}

fn a_signal_ends_memory_reclaim_with_eintr_and_the_rest_still_there(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = world.spawn(&group)?;
    for _ in 0..2 {
        filled(world, task, Kind::File, mib(32))?;
        let answer = world.write_until(&group, FILE, "28M", mib(31));
        let usage = group.memory.usage()?;
        if answer == Err(Errno::EINTR) {
            holds!(usage <= mib(31) && usage > mib(5), "usage is {usage}");
            return Ok(());
        }
        holds!(answer == Ok(()) && usage < mib(16), "{answer:?}, usage is {usage}");
    }
    Err(Stop::Differs("a write is one pass that no signal ends"))
}

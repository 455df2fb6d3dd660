//! `memory.stat`: what the floor under a limit is computed from.

use super::{Stop, World, filled, group, mib, user, without_swap};
use crate::Kind;
use cgroupfs::Bytes;
use std::time::Duration;

claims!("stat";
    stat_tells_anon_from_cache_and_shmem_is_in_no_file_list [],
    locked_memory_is_unevictable [],
    stat_shows_what_waits_for_the_disk [],
);

fn about(what: &str, seen: Option<Bytes>, size: Bytes) -> Result<(), Stop> {
    let Some(seen) = seen else {
        return Err(Stop::Fails(format!("stat has no {what}")));
    };
    let (least, most) = (size.saturating_sub(mib(1)), size.saturating_add(mib(2)));
    holds!((least..=most).contains(&seen), "{what} is {seen}, not about {size}");
    Ok(())
}

/// The statistics of some kernels are flushed every two seconds only (5.15, 6.1).
fn settled(world: &mut dyn World, mut look: impl FnMut() -> Result<(), Stop>) -> Result<(), Stop> {
    let end = world.now() + Duration::from_secs(4);
    loop {
        match look() {
            Err(_) if world.now() < end => world.pass(Duration::from_millis(50)),
            other => return other,
        }
    }
}

fn stat_tells_anon_from_cache_and_shmem_is_in_no_file_list(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    without_swap(&group)?;
    let task = user(world, &group, Kind::Anon, mib(6))?;
    filled(world, task, Kind::File, mib(12))?;
    filled(world, task, Kind::Shmem, mib(8))?;
    settled(world, || {
        let stat = group.memory.stat()?;
        about("anon", stat.anon, mib(6))?;
        about("shmem", stat.shmem, mib(8))?;
        about("file with shmem", stat.file, mib(20))?;
        about("what is on the file lists", stat.reclaimable_file(), mib(12))
    })
}

fn locked_memory_is_unevictable(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    user(world, &group, Kind::Mlocked, mib(8))?;
    settled(world, || about("unevictable", group.memory.stat()?.unevictable, mib(8)))
}

fn stat_shows_what_waits_for_the_disk(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    // On a slow machine the disk may have most of it by the time that somebody looks.
    let mut most = None;
    for _ in 0..4 {
        user(world, &group, Kind::Dirty, mib(8))?;
        most = most.max(group.memory.stat()?.dirty_or_writeback());
        if most >= Some(mib(6)) {
            return Ok(());
        }
    }
    settled(world, || {
        let waits = most.max(group.memory.stat()?.dirty_or_writeback());
        holds!(waits.is_some_and(|waits| waits >= mib(6)), "of 8 MiB written {waits:?} waits");
        Ok(())
    })
}

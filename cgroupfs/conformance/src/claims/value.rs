//! The limit's file as a file: which values it takes, who is told of a write. `memory.limit_in_bytes`, or
//! `memory.max`.

use super::{A_WHILE, SOON, Stop, World, group, limit};
use crate::{Group, Watched};
use cgroupfs::memory::Version;
use cgroupfs::{Bytes, Limit};
use nix::errno::Errno;

claims!("values";
    a_limit_is_floored_to_a_page_and_none_is_none [],
    what_is_no_size_is_einval_and_changes_nothing [],
    a_write_of_the_limit_is_seen_by_who_watches_the_file_and_a_read_is_not [],
);

fn file(group: &Group) -> &'static str {
    match group.memory.version() {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    }
}

fn a_limit_is_floored_to_a_page_and_none_is_none(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    for bytes in [(16 << 20) + 1, (16 << 20) - 1, 12_345_678] {
        answers!(group.write(file(&group), &u64::to_string(&bytes)), Ok(()), "a limit");
        let (wanted, is) = (Limit::Bytes(Bytes(bytes).page_floor()), group.memory.limit()?);
        holds!(is == wanted, "{bytes} became {is}, not {wanted}");
    }
    group.memory.set_limit(Limit::Max)?;
    holds!(group.memory.limit()? == Limit::Max, "none became {}", group.memory.limit()?);
    answers!(group.write(file(&group), "16M"), Ok(()), "16M");
    holds!(group.memory.limit()? == limit(16), "16M became {}", group.memory.limit()?);
    Ok(())
}

fn what_is_no_size_is_einval_and_changes_nothing(world: &mut dyn World) -> Result<(), Stop> {
    let group = group(world)?;
    group.memory.set_limit(limit(16))?;
    for junk in ["-2", "1x", "none"] {
        answers!(group.write(file(&group), junk), Err(Errno::EINVAL), junk);
        holds!(group.memory.limit()? == limit(16), "{junk}: now {}", group.memory.limit()?);
    }
    Ok(())
}

fn a_write_of_the_limit_is_seen_by_who_watches_the_file_and_a_read_is_not(
    world: &mut dyn World,
) -> Result<(), Stop> {
    let group = group(world)?;
    let watch = world.watch(&group, Watched::Modified(file(&group)))?;
    group.memory.limit()?;
    group.memory.usage()?;
    holds!(!world.told(watch, A_WHILE), "a read was told of");
    group.memory.set_limit(limit(16))?;
    holds!(world.told(watch, SOON), "a write was not told of");
    holds!(!world.told(watch, A_WHILE), "one write was told of twice");
    Ok(())
}

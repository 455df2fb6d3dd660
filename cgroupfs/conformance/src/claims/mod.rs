//! The claims, by what they are about.

use crate::{Claim, Feature, Filled, Group, Kind, Stop, Task, World};
use cgroupfs::memory::Version;
use cgroupfs::{Bytes, Limit};
use std::time::Duration;

/// Fails with what was seen unless it is so.
macro_rules! holds {
    ($so:expr, $($seen:tt)+) => {
        if !$so {
            return Err($crate::Stop::Fails(format!($($seen)+)));
        }
    };
}

/// Fails unless an answer is the errno, or `Ok`, that is expected.
macro_rules! answers {
    ($answer:expr, $expected:expr, $what:expr) => {{
        let (answer, expected) = ($answer, $expected);
        if answer != expected {
            let what = $what;
            return Err($crate::Stop::Fails(format!("{what}: {answer:?}, not {expected:?}")));
        }
    }};
}

macro_rules! claims {
    ($about:literal; $($run:ident [$($need:ident),*],)+) => {
        pub(super) const CLAIMS: &[$crate::Claim] = &[$($crate::Claim {
            name: stringify!($run),
            about: $about,
            needs: &[$($crate::Feature::$need),*],
            run: $run,
        }),+];
    };
}

mod charge;
mod dying;
mod force_empty;
mod freezer;
mod hierarchy;
mod high;
mod limit;
mod max;
mod oom;
mod oom_disabled;
mod protection;
mod reclaim;
mod stat;
mod swap;
mod threshold;
mod value;

/// Every claim, in the order of the table.
pub fn all() -> Vec<Claim> {
    [
        charge::CLAIMS,
        stat::CLAIMS,
        value::CLAIMS,
        limit::CLAIMS,
        force_empty::CLAIMS,
        swap::CLAIMS,
        oom::CLAIMS,
        oom_disabled::CLAIMS,
        threshold::CLAIMS,
        hierarchy::CLAIMS,
        max::CLAIMS,
        high::CLAIMS,
        reclaim::CLAIMS,
        protection::CLAIMS,
        dying::CLAIMS,
        freezer::CLAIMS,
    ]
    .concat()
}

/// Those that can apply to a version.
pub fn of(version: Version) -> Vec<Claim> {
    let other = match version {
        Version::V1 => Feature::V2,
        Version::V2 => Feature::V1,
    };
    all().into_iter().filter(|claim| !claim.needs.contains(&other)).collect()
}

/// What a signal or an event may take to arrive on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);
/// What is waited to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(60);

const fn mib(n: u64) -> Bytes {
    Bytes::mib(n)
}

const fn limit(n: u64) -> Limit {
    Limit::Bytes(Bytes::mib(n))
}

/// A group in the claim's own.
fn group(world: &mut dyn World) -> Result<Group, Stop> {
    let ground = world.ground();
    Ok(world.make(&ground, "g")?)
}

/// A group that counts its children in and reclaims from them, whatever the kernel's default.
fn parent(world: &mut dyn World) -> Result<Group, Stop> {
    let group = group(world)?;
    if group.memory.version() == Version::V1 && group.number("memory.use_hierarchy")? == 0 {
        answers!(group.write("memory.use_hierarchy", "1"), Ok(()), "memory.use_hierarchy");
    }
    Ok(group)
}

/// Tells a task to fill so much, and gives it time to.
fn fill(world: &mut dyn World, task: Task, kind: Kind, size: Bytes) -> Result<Filled, Stop> {
    world.start(task, kind, size)?;
    Ok(world.finish(task, Duration::from_secs(60)))
}

/// The same, where nothing is in the way.
fn filled(world: &mut dyn World, task: Task, kind: Kind, size: Bytes) -> Result<(), Stop> {
    let came = fill(world, task, kind, size)?;
    holds!(came == Filled::All, "filling {size} of {kind:?}: {came:?}");
    Ok(())
}

/// A task in the group that has filled so much.
fn user(world: &mut dyn World, group: &Group, kind: Kind, size: Bytes) -> Result<Task, Stop> {
    let task = world.spawn(group)?;
    filled(world, task, kind, size)?;
    Ok(task)
}

/// Keeps the group from swapping: swappiness 0 on v1, `memory.swap.max` 0 on v2.
fn without_swap(group: &Group) -> Result<(), Stop> {
    let (file, optional) = match group.memory.version() {
        Version::V1 => ("memory.swappiness", false),
        Version::V2 => ("memory.swap.max", true),
    };
    if !optional || group.dir.has(file) {
        answers!(group.write(file, "0"), Ok(()), file);
    }
    Ok(())
}

/// Waits until it is so.
fn until(
    world: &mut dyn World,
    patience: Duration,
    mut so: impl FnMut(&mut dyn World) -> Result<bool, Stop>,
) -> Result<bool, Stop> {
    let end = world.now() + patience;
    loop {
        if so(world)? {
            return Ok(true);
        }
        if world.now() >= end {
            return Ok(false);
        }
        world.pass(Duration::from_millis(2));
    }
}

/// Sees a task come to its end.
fn dies(world: &mut dyn World, task: Task) -> Result<bool, Stop> {
    until(world, SOON, |world| Ok(!world.alive(task)))
}

fn oom_kills(group: &Group) -> Result<u64, Stop> {
    Ok(group.memory.counters()?.oom_kill.unwrap_or(0))
}

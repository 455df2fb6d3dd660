//! `cgctl dying`: memory cgroups that were removed and are still there, and how to be rid of them.
//!
//! Pages that somebody else's group or nobody uses keep a removed group alive (4.19 through 6.18): it counts
//! against the 65,535 there can be, and the kernel walks it on every reclaim. v2 says under which parent
//! they are (`nr_dying_descendants`); v1 only how many there are in all.

use super::cli::DyingArgs;
use super::error::{FAILED, Failure};
use crate::report::fmt;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, Version};
use cgroupfs::procfs::Controllers;
use cgroupfs::{Bytes, Cgroup, MemoryHierarchy, flat};
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// A walk ends after so many directories.
const MOST: usize = 200_000;

/// How long one group may be emptied.
const EMPTYING: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
struct Dying {
    schema: u32,
    hierarchy: &'static str,
    /// In all; `null` where the kernel does not say.
    dying: Option<u64>,
    /// Directories there are.
    live: u64,
    /// v1: children of these groups are not reached from above.
    use_hierarchy_0: bool,
    parents: Vec<Parent>,
    reaped: Option<Reaped>,
}

/// Where they are, or may be.
#[derive(Debug, Serialize)]
struct Parent {
    cgroup: String,
    /// v2 only.
    dying: Option<u64>,
    /// Charged to the group beyond what its processes and live children account for: what dying ones hold,
    /// at most.
    held_bytes: u64,
    /// Processes in it and beneath.
    processes: u64,
}

#[derive(Debug, Serialize)]
struct Reaped {
    groups: u64,
    freed_bytes: u64,
    dying_before: Option<u64>,
    dying_after: Option<u64>,
    /// Groups let be, as processes are in them.
    in_use: u64,
}

/// One group of the walk.
struct Seen {
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    usage: Bytes,
    children_usage: u64,
    processes: u64,
    dying: Option<u64>,
    above: Option<usize>,
}

pub(super) fn main(args: &DyingArgs) -> Result<ExitCode, Failure> {
    let hierarchy = MemoryHierarchy::find()?;
    let (seen, live, flat_v1) = walk(&hierarchy)?;
    let dying = count(&hierarchy, live);
    let mut parents: Vec<Parent> = seen.iter().filter_map(parent).collect();
    parents.sort_by_key(|parent| std::cmp::Reverse((parent.dying, parent.held_bytes)));
    let reaped = args.reap.then(|| reap(&hierarchy, &seen, dying));
    let found = Dying {
        schema: 1,
        hierarchy: hierarchy.version.as_str(),
        dying,
        live,
        use_hierarchy_0: flat_v1,
        parents,
        reaped,
    };
    if args.json {
        super::print_json(&found)?;
    } else {
        say(args, &found);
    }
    let left = found.reaped.as_ref().map_or(dying, |reaped| reaped.dying_after);
    Ok(ExitCode::from(if args.reap && left.is_none() { FAILED } else { 0 }))
}

/// All groups, with what is charged to them and not to a child.
fn walk(hierarchy: &MemoryHierarchy) -> Result<(Vec<Seen>, u64, bool), Failure> {
    let root = Arc::new(hierarchy.open(&hierarchy.mount_point)?);
    let (mut live, mut flat_v1, mut seen) = (1, false, Vec::<Seen>::new());
    let mut queue: Vec<(Option<usize>, Arc<Cgroup>)> = vec![(None, root)];
    while let Some((above, group)) = queue.pop() {
        let index = match above {
            // The root has no usage of its own to speak of.
            None if group.path() == hierarchy.mount_point => None,
            above => {
                live += 1;
                look(hierarchy, &group, above, &mut seen, &mut flat_v1)
            }
        };
        if live < MOST as u64 {
            for name in group.children().unwrap_or_default() {
                if let Ok(child) = group.child(&name) {
                    queue.push((index, Arc::new(child)));
                }
            }
        }
    }
    Ok((seen, live, flat_v1))
}

fn look(
    hierarchy: &MemoryHierarchy,
    group: &Arc<Cgroup>,
    above: Option<usize>,
    seen: &mut Vec<Seen>,
    flat_v1: &mut bool,
) -> Option<usize> {
    let memory = cgshim::driver::open_memory(group).ok()?;
    let usage = memory.usage().ok()?;
    let dir: Arc<dyn ControlDir> = group.clone();
    let read =
        |name: &'static str| Knob::open(&dir, name, Access::Read).and_then(|knob| knob.read());
    let mut hierarchical = true;
    let mut dying = None;
    match hierarchy.version {
        Version::V1 => {
            hierarchical =
                read("memory.use_hierarchy").map_or(true, |text| text.trim_ascii() != b"0");
        }
        Version::V2 => {
            dying =
                read("cgroup.stat").ok().and_then(|text| flat::get(&text, "nr_dying_descendants"));
        }
    }
    *flat_v1 |= !hierarchical;
    let processes = group.procs().map_or(0, |procs| procs.len() as u64);
    let mut up = above;
    if let Some(parent) = above.and_then(|index| seen.get_mut(index)) {
        parent.children_usage += usage.0;
    }
    // Processes count for all above.
    while let Some(parent) = up.and_then(|index| seen.get_mut(index)) {
        parent.processes += processes;
        up = parent.above;
    }
    let group = group.clone();
    seen.push(Seen { group, memory, usage, children_usage: 0, processes, dying, above });
    Some(seen.len() - 1)
}

fn parent(seen: &Seen) -> Option<Parent> {
    let held = seen.usage.0.saturating_sub(seen.children_usage);
    let may = match seen.dying {
        Some(dying) => dying > 0,
        // Memory on the account of a group without processes is nobody's, or that of dying children.
        None => seen.processes == 0 && held > 0,
    };
    may.then(|| Parent {
        cgroup: seen.group.path().display().to_string(),
        dying: seen.dying,
        held_bytes: if seen.processes == 0 { held } else { 0 },
        processes: seen.processes,
    })
}

/// v1: groups that the kernel counts, less the directories. v2: what the root says.
fn count(hierarchy: &MemoryHierarchy, live: u64) -> Option<u64> {
    match hierarchy.version {
        Version::V1 => {
            let counted = Controllers::read().ok()?.get("memory")?.num_cgroups;
            // A walk that does not start at the root sees fewer directories than there are.
            let whole = cgroupfs::Mounts::read().ok()?.v1("memory")?.root == *"/";
            whole.then(|| counted.saturating_sub(live))
        }
        Version::V2 => {
            let root = hierarchy.mount_point.join("cgroup.stat");
            flat::get(&std::fs::read(root).ok()?, "nr_dying_descendants")
        }
    }
}

/// Empties groups in which nobody is: that reaches their dying children too. Memory of live processes is
/// never touched.
fn reap(hierarchy: &MemoryHierarchy, seen: &[Seen], before: Option<u64>) -> Reaped {
    let mut reaped =
        Reaped { groups: 0, freed_bytes: 0, dying_before: before, dying_after: None, in_use: 0 };
    for group in seen {
        if parent(group).is_none() {
            continue;
        }
        if group.processes > 0 {
            reaped.in_use += 1;
            continue;
        }
        let usage = |memory: &Arc<dyn Memory>| memory.usage().unwrap_or_default().0;
        let had = usage(&group.memory);
        cgshim::driver::empty(&group.memory, EMPTYING);
        reaped.groups += 1;
        reaped.freed_bytes += had.saturating_sub(usage(&group.memory));
    }
    // They are let go by a worker of the kernel's, after a grace period.
    std::thread::sleep(Duration::from_millis(100));
    let live = walk(hierarchy).map_or(0, |(_, live, _)| live);
    reaped.dying_after = count(hierarchy, live);
    reaped
}

fn say(args: &DyingArgs, found: &Dying) {
    let many =
        |count: Option<u64>| count.map_or_else(|| "an unknown number".into(), |n| n.to_string());
    super::print(&format!(
        "{} dying memory cgroups beside {} live ones\n",
        many(found.dying),
        found.live
    ));
    if found.use_hierarchy_0 {
        super::print(
            "use_hierarchy is 0 for some groups: what their dead children hold cannot be reached from \
             above; it goes when the kernel itself needs memory\n",
        );
    }
    let rows: Vec<Vec<String>> = found
        .parents
        .iter()
        .take(args.most)
        .map(|parent| {
            vec![
                parent.cgroup.clone(),
                parent.dying.map_or_else(|| "-".into(), |dying| dying.to_string()),
                match parent.processes {
                    0 => fmt::bytes(parent.held_bytes),
                    _ => "-".into(),
                },
                parent.processes.to_string(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        super::print_table(&["UNDER", "DYING", "HELD", "PROCS"], args.no_headers, &rows);
    }
    match &found.reaped {
        None if found.dying.unwrap_or(0) > 0 => {
            super::print("'cgctl dying --reap' empties the groups that nobody is in\n");
        }
        None => {}
        Some(reaped) => super::print(&format!(
            "emptied {} groups that nobody is in: {} freed, {} dying now{}\n",
            reaped.groups,
            fmt::bytes(reaped.freed_bytes),
            many(reaped.dying_after),
            match reaped.in_use {
                0 => String::new(),
                n => format!("; {n} with processes in them were let be"),
            }
        )),
    }
}

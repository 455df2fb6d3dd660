//! `cgctl stat`: a cgroup's memory, as one line each or as JSON.

use super::cli::StatArgs;
use super::error::Failure;
use super::{daemon, find};
use crate::report::fmt;
use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Counters, Memory, MemoryStat};
use cgroupfs::{Cgroup, Limit, MemoryHierarchy};
use cgshim::api::client::{self, Client};
use cgshim::api::message::View;
use cgshim::journal::{Reader, Record};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// `cgctl stat --json`.
#[derive(Debug, Serialize)]
struct Stat {
    schema: u32,
    name: String,
    cgroup: String,
    hierarchy: &'static str,
    usage_bytes: u64,
    limit_bytes: Option<u64>,
    high_bytes: Option<u64>,
    peak_bytes: Option<u64>,
    swap_bytes: Option<u64>,
    anon_bytes: Option<u64>,
    file_bytes: Option<u64>,
    shmem_bytes: Option<u64>,
    dirty_bytes: Option<u64>,
    writeback_bytes: Option<u64>,
    unevictable_bytes: Option<u64>,
    failcnt: Option<u64>,
    events_high: Option<u64>,
    events_max: Option<u64>,
    oom_kill: Option<u64>,
    processes: usize,
    /// What the daemon knows of it, if it is one of its containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<View>,
}

pub(super) fn main(args: &StatArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let hierarchy = MemoryHierarchy::find()?;
    let mut client = daemon::connect_if_running(run_dir);
    let mut rows = Vec::new();
    let mut failed = None;
    let named_groups: Vec<_> = if args.groups.is_empty() {
        vec![
            hierarchy
                .open(&hierarchy.own)
                .map(|group| (Arc::new(group), Known::default()))
                .map_err(Failure::from),
        ]
    } else {
        args.groups.iter().map(|text| named(&hierarchy, client.as_mut(), run_dir, text)).collect()
    };
    for group in named_groups {
        match group.and_then(|(group, known)| look(&group, known)) {
            Ok(stat) if args.json => super::print_json(&stat)?,
            Ok(stat) => rows.push(row(&stat)),
            Err(failure) => {
                eprintln!("cgctl: {}", failure.message);
                failed = Some(failure.code);
            }
        }
    }
    if !rows.is_empty() {
        let headers = [
            "NAME",
            "USAGE",
            "LIMIT",
            "HIGH",
            "PEAK",
            "ANON",
            "FILE",
            "DIRTY",
            "SWAP",
            "DIRECT",
            "OOM",
            "PROCS",
            "THROTTLED",
        ];
        super::print_table(&headers, args.no_headers, &rows);
    }
    Ok(ExitCode::from(failed.unwrap_or(0)))
}

/// What is known of a container but for what its files say.
#[derive(Debug, Default)]
struct Known {
    id: Option<String>,
    /// Declared limit and high, from the journal.
    terms: Option<(Limit, Limit)>,
    view: Option<View>,
}

/// A container of the daemon's, or of the journal of one that does not run, or any cgroup.
fn named(
    hierarchy: &MemoryHierarchy,
    client: Option<&mut Client>,
    run_dir: Option<&Path>,
    text: &str,
) -> Result<(Arc<Cgroup>, Known), Failure> {
    let mut unknown = None;
    if !text.contains('/') {
        match client.map(|client| daemon::container(client, text)) {
            Some(Ok(view)) => {
                let group = hierarchy.open(Path::new(&view.cgroup))?;
                let known = Known { id: Some(view.id.clone()), view: Some(view), terms: None };
                return Ok((Arc::new(group), known));
            }
            Some(Err(failure)) => unknown = Some(failure),
            None => {
                if let Some(found) = in_journal(hierarchy, run_dir, text) {
                    return Ok(found);
                }
            }
        }
    }
    match find::group(hierarchy, text) {
        Ok(group) => Ok((group, Known::default())),
        Err(failure) => Err(daemon::nobody(text, unknown, failure)),
    }
}

/// The only container in the journal whose id is `text` or begins so, if its group is still there.
fn in_journal(
    hierarchy: &MemoryHierarchy,
    run_dir: Option<&Path>,
    text: &str,
) -> Option<(Arc<Cgroup>, Known)> {
    let reader = Reader::open(&client::run_dir(run_dir)).ok()?;
    let mut records: Vec<Record> = reader.records().into_iter().map(|(record, _)| record).collect();
    records.retain(|record| record.identity.id.starts_with(text));
    if let Some(exact) = records.iter().position(|record| record.identity.id == text) {
        records = vec![records.swap_remove(exact)];
    }
    let [record] = records.as_slice() else { return None };
    let group = Cgroup::open(&hierarchy.mount_point, Path::new(&record.identity.path)).ok()?;
    let known = Known {
        id: Some(record.identity.id.clone()),
        terms: Some((record.terms.declared, record.terms.high)),
        view: None,
    };
    (group.inode() == record.identity.inode).then(|| (Arc::new(group), known))
}

fn look(group: &Arc<Cgroup>, known: Known) -> Result<Stat, Failure> {
    let memory: Arc<dyn Memory> = cgshim::driver::open_memory(group)?;
    let stat: MemoryStat = memory.stat()?;
    let counters: Counters = memory.counters()?;
    let bytes = |limit: Limit| limit.bytes().map(|bytes| bytes.0);
    let name = group.path().file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(Stat {
        schema: 1,
        name: known.id.or(name).unwrap_or_default(),
        cgroup: group.path().display().to_string(),
        hierarchy: memory.version().as_str(),
        usage_bytes: memory.usage()?.0,
        // A step of the daemon's may stand in the file at this instant: the declared one is known.
        limit_bytes: match (&known.view, known.terms) {
            (Some(view), _) => view.limit_bytes,
            (None, Some((declared, _))) => bytes(declared),
            (None, None) => bytes(memory.limit()?),
        },
        high_bytes: match (&known.view, known.terms) {
            (Some(view), _) => view.high_bytes,
            (None, Some((_, high))) => bytes(high),
            (None, None) => memory.high().ok().and_then(bytes),
        },
        peak_bytes: memory.peak().ok().map(|bytes| bytes.0),
        swap_bytes: memory.swap_usage()?.map(|bytes| bytes.0),
        anon_bytes: stat.anon.map(|bytes| bytes.0),
        file_bytes: stat.file.map(|bytes| bytes.0),
        shmem_bytes: stat.shmem.map(|bytes| bytes.0),
        dirty_bytes: stat.dirty.map(|bytes| bytes.0),
        writeback_bytes: stat.writeback.map(|bytes| bytes.0),
        unevictable_bytes: stat.unevictable.map(|bytes| bytes.0),
        failcnt: counters.failcnt,
        events_high: counters.high,
        events_max: counters.max,
        oom_kill: counters.oom_kill,
        processes: group.procs()?.len(),
        container: known.view,
    })
}

fn row(stat: &Stat) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".into(), fmt::bytes);
    let limit = |bytes: Option<u64>| bytes.map_or_else(|| "max".into(), fmt::bytes);
    let count = |count: Option<u64>| count.map_or_else(|| "-".into(), |count| count.to_string());
    let direct = match (stat.failcnt, stat.events_high, stat.events_max) {
        (Some(failcnt), _, _) => failcnt.to_string(),
        (None, Some(high), Some(max)) => (high + max).to_string(),
        _ => "-".into(),
    };
    vec![
        stat.name.clone(),
        fmt::bytes(stat.usage_bytes),
        limit(stat.limit_bytes),
        limit(stat.high_bytes),
        size(stat.peak_bytes),
        size(stat.anon_bytes),
        size(stat.file_bytes),
        size(stat.dirty_bytes),
        size(stat.swap_bytes),
        direct,
        count(stat.oom_kill),
        stat.processes.to_string(),
        throttled(stat),
    ]
}

/// The share of the time that its growing tasks were frozen in, or waited above `memory.high`.
fn throttled(stat: &Stat) -> String {
    let throttled = stat.container.as_ref().and_then(|view| view.throttled);
    throttled.map_or_else(|| "-".into(), |throttled| format!("{:.1} %", throttled.share * 100.0))
}

//! From what was seen to why memory ran out.
//!
//! | evidence, best first | says |
//! |---|---|
//! | the log's `oom_memcg`, or its constraint | all |
//! | v2: whose `oom` in `memory.events.local` rose | whose limit |
//! | v1: the topmost group whose eventfd was signalled: the kernel signals the group whose limit was hit and all beneath it | whose limit |
//! | the only group whose `failcnt` (v2: `max`) rose; of several the lowest that was full, as charges go from the group upwards | whose limit |
//! | the log says that it was a limit, the group is gone, and those above have none or were not out of memory | its own |
//! | a kill, and none of these, though they could be read, and nobody had run out of memory just before that | the node |

use super::record::{Cause, From};
use cgroupfs::kmsg::oom::{Constraint, Killed};

/// One level: the container's group (0), the group that it is in (1), and so on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Its path from the root of the hierarchy.
    pub path: String,
    /// Its OOM eventfd was signalled.
    pub signalled: bool,
    /// How much its local `oom` rose (v2).
    pub oom_local: u64,
    /// How much its `oom` rose, groups beneath included (v2).
    pub oom: u64,
    /// How much `failcnt` (v2: `max`) rose.
    pub failcnt: u64,
    /// It was full: usage was near its limit.
    pub full: bool,
    /// Nothing of it could be read any more.
    pub unread: bool,
    /// It may have run out of memory before anybody looked, and too short a while ago: a kill for that may be yet to come.
    pub unsure: bool,
    /// The container's own: it is gone, and no other limit can have been hit.
    pub only_limit: bool,
}

/// What is concluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub cause: Cause,
    /// Whose limit.
    pub limit_cgroup: Option<String>,
    /// By what.
    pub from: Option<From>,
}

/// Judges one kill. `levels` start with the container's own group; `beneath` says that the victim was in
/// a group beneath it, whose own limit nobody watches.
pub fn judge(
    log: Option<&Killed>,
    levels: &[Evidence],
    beneath: bool,
    log_readable: bool,
) -> Verdict {
    if let Some(log) = log
        && let Some(verdict) = by_log(log, levels)
    {
        return verdict;
    }
    // A line without paths still says whether it was a limit at all.
    let memcg = log.and_then(|log| log.memcg);
    if memcg == Some(false) {
        return Verdict { cause: Cause::Node, limit_cgroup: None, from: Some(From::KernelLog) };
    }
    if let Some((level, from)) = by_counters(levels) {
        return of_level(level, levels, from);
    }
    if levels.first().is_some_and(|own| own.oom > 0) {
        // In the subtree, and not in the group itself.
        let from = Some(From::EventsLocal);
        return Verdict { cause: Cause::OwnLimit, limit_cgroup: None, from };
    }
    let unsure = levels.iter().any(|level| level.unsure);
    let cause = match (memcg, beneath) {
        _ if unsure && !levels.first().is_some_and(|own| own.only_limit) => Cause::Unknown,
        // Nobody above was at a limit, so it was one beneath.
        (Some(true), true) => {
            return Verdict {
                cause: Cause::OwnLimit,
                limit_cgroup: None,
                from: Some(From::NoLimitHit),
            };
        }
        (Some(true), false) if levels.first().is_some_and(|own| own.only_limit) => {
            return of_level(0, levels, From::NoLimitHit);
        }
        (Some(true), false) | (None, true) => Cause::Unknown,
        // With the log at hand its line would be there; and what nobody could read says nothing.
        (None, false) if log_readable || levels.first().is_none_or(|own| own.unread) => {
            Cause::Unknown
        }
        (None, false) => {
            return Verdict {
                cause: Cause::Node,
                limit_cgroup: None,
                from: Some(From::NoLimitHit),
            };
        }
        (Some(false), _) => Cause::Node,
    };
    Verdict { cause, limit_cgroup: None, from: None }
}

fn by_log(log: &Killed, levels: &[Evidence]) -> Option<Verdict> {
    let verdict =
        |cause, limit_cgroup| Some(Verdict { cause, limit_cgroup, from: Some(From::KernelLog) });
    match log.constraint? {
        Constraint::None if log.order.is_some_and(|order| order > 0) => {
            verdict(Cause::Fragmentation, None)
        }
        Constraint::None => verdict(Cause::Node, None),
        Constraint::Cpuset | Constraint::MemoryPolicy => verdict(Cause::NumaOrCpuset, None),
        Constraint::Memcg => {
            let path = String::from_utf8_lossy(log.oom_memcg.as_deref()?).into_owned();
            let own = levels.first().map_or("", |level| &level.path);
            let cause = if is_beneath(&path, own) { Cause::OwnLimit } else { Cause::AncestorLimit };
            verdict(cause, Some(path))
        }
    }
}

fn by_counters(levels: &[Evidence]) -> Option<(usize, From)> {
    // `oom` rises where the limit was hit; a group above that was also out of memory is rarer than one
    // below, and comes later.
    if let Some(level) = levels.iter().position(|level| level.oom_local > 0) {
        return Some((level, From::EventsLocal));
    }
    if let Some(level) = levels.iter().rposition(|level| level.signalled) {
        return Some((level, From::Eventfd));
    }
    let rose: Vec<usize> = (0..levels.len()).filter(|level| levels[*level].failcnt > 0).collect();
    match rose[..] {
        [] => None,
        // What another may have been hit for was counted before.
        [level] if levels.iter().enumerate().any(|(n, other)| other.unsure && n != level) => None,
        [level] => Some((level, From::Failcnt)),
        _ => rose.into_iter().find(|level| levels[*level].full).map(|level| (level, From::Failcnt)),
    }
}

fn of_level(level: usize, levels: &[Evidence], from: From) -> Verdict {
    Verdict {
        cause: if level == 0 { Cause::OwnLimit } else { Cause::AncestorLimit },
        limit_cgroup: levels.get(level).map(|level| level.path.clone()),
        from: Some(from),
    }
}

/// Whether `path` is `group` or in it.
pub(super) fn is_beneath(path: &str, group: &str) -> bool {
    group == "/"
        || path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

//! Finds groups that the configuration names by pattern, without being told: inotify on the parents.
//!
//! A group is reported once it holds processes. Of a pattern without `**` every match is meant; of one
//! with it only groups that hold processes themselves, not the levels between, and nothing beneath a
//! group that was reported. An empty match is watched until it is filled: on v1 by writes to its
//! `cgroup.procs` and `tasks`, on v2 by `cgroup.events`.

use super::verify::Host;
use crate::core::pattern::Pattern;
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::Version;
use cgroupfs::{Cgroup, flat};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

/// Directories and files watched at most.
const MOST_WATCHES: usize = 16_384;

/// Levels below the root that are looked at.
const DEEPEST: usize = 24;

/// A group that is to be enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its path in the hierarchy.
    pub(super) path: String,
    /// The first process in it or below.
    pub(super) pid: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Watched {
    /// A directory whose children may match.
    Parent(String),
    /// A file of an empty group that matches.
    Empty(String),
}

/// The patterns, and what is watched for them.
pub(super) struct Discovery {
    inotify: Inotify,
    patterns: Vec<Pattern>,
    watched: HashMap<WatchDescriptor, Watched>,
    full: bool,
}

impl Discovery {
    pub(super) fn new() -> io::Result<Discovery> {
        Ok(Discovery {
            inotify: Inotify::init()?,
            patterns: Vec::new(),
            watched: HashMap::new(),
            full: false,
        })
    }

    /// Readable when something happened.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Looks for these patterns from now on; what is there already.
    pub(super) fn set(&mut self, host: &Host, patterns: &[Pattern]) -> io::Result<Vec<Found>> {
        if self.patterns == patterns {
            return Ok(Vec::new());
        }
        for watch in std::mem::take(&mut self.watched).into_keys() {
            let _ = self.inotify.watches().remove(watch);
        }
        self.patterns = patterns.to_vec();
        self.full = false;
        Ok(self.scan(host, "/"))
    }

    /// Takes what happened.
    pub(super) fn take(&mut self, host: &Host) -> Vec<Found> {
        let (mut look, mut again) = (BTreeSet::new(), false);
        let mut buffer = [0; 16 << 10];
        while let Ok(events) = self.inotify.read_events(&mut buffer) {
            let mut any = false;
            for event in events {
                any = true;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    again = true;
                    continue;
                }
                if event.mask.contains(EventMask::IGNORED) {
                    self.watched.remove(&event.wd);
                    continue;
                }
                match (self.watched.get(&event.wd), event.name) {
                    (Some(Watched::Parent(path)), Some(name))
                        if event.mask.contains(EventMask::ISDIR) =>
                    {
                        if let Some(name) = name.to_str() {
                            look.insert(join(path, name));
                        }
                    }
                    (Some(Watched::Empty(path)), _) => {
                        look.insert(path.clone());
                    }
                    _ => {}
                }
            }
            if !any {
                break;
            }
        }
        if again {
            return self.scan(host, "/");
        }
        let mut found = Vec::new();
        for path in look {
            found.append(&mut self.scan(host, &path));
        }
        found
    }

    /// Looks at a group and below: watches what may come, reports what is there. Parents first.
    fn scan(&mut self, host: &Host, path: &str) -> Vec<Found> {
        let mut found = Vec::new();
        let mut ahead = vec![path.to_owned()];
        while let Some(path) = ahead.pop() {
            if path.matches('/').count() > DEEPEST {
                continue;
            }
            let directory = host.hierarchy.mount_point.join(path.trim_start_matches('/'));
            let Ok(group) = host.hierarchy.open(&directory) else { continue };
            let group = Arc::new(group);
            let matching: Vec<bool> = self
                .patterns
                .iter()
                .filter(|pattern| pattern.matches(&path))
                .map(Pattern::is_deep)
                .collect();
            if !matching.is_empty() {
                let exact = matching.contains(&false);
                // Watched before it is looked at: what comes in between is seen twice, not never.
                self.watch_empty(host, &group, &path);
                let pid = first_process(&group, exact, 0);
                if pid.is_some() || (exact && is_populated(&group)) {
                    self.forget_empty(&path);
                    found.push(Found { path, pid });
                    continue;
                }
            }
            if self.patterns.iter().any(|pattern| pattern.may_match_below(&path)) {
                self.watch(
                    &group,
                    "",
                    WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR,
                    || Watched::Parent(path.clone()),
                );
                for name in group.children().unwrap_or_default() {
                    ahead.push(join(&path, &name));
                }
            }
        }
        found
    }

    fn watch_empty(&mut self, host: &Host, group: &Cgroup, path: &str) {
        let files: &[&str] = match host.hierarchy.version {
            Version::V1 => &["cgroup.procs", "tasks"],
            Version::V2 => &["cgroup.events"],
        };
        for file in files {
            self.watch(group, file, WatchMask::MODIFY, || Watched::Empty(path.to_owned()));
        }
    }

    fn forget_empty(&mut self, path: &str) {
        let gone: Vec<WatchDescriptor> = self
            .watched
            .iter()
            .filter(|(_, watched)| matches!(watched, Watched::Empty(at) if at == path))
            .map(|(watch, _)| watch.clone())
            .collect();
        for watch in gone {
            self.watched.remove(&watch);
            let _ = self.inotify.watches().remove(watch);
        }
    }

    fn watch(
        &mut self,
        group: &Cgroup,
        file: &str,
        mask: WatchMask,
        what: impl FnOnce() -> Watched,
    ) {
        if self.watched.len() >= MOST_WATCHES {
            if !std::mem::replace(&mut self.full, true) {
                log::warn!(
                    "discovery: {MOST_WATCHES} groups are watched; those beyond are not found"
                );
            }
            return;
        }
        let path = format!("/proc/self/fd/{}/{file}", group.fd().as_raw_fd());
        match self.inotify.watches().add(Path::new(&path), mask) {
            Ok(watch) => {
                self.watched.insert(watch, what());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!(
                "discovery: cannot watch {}: {error}; fs.inotify.max_user_watches may be too low",
                group.path().display()
            ),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// A process in the group itself, or anywhere in it.
fn first_process(group: &Arc<Cgroup>, below: bool, depth: usize) -> Option<i32> {
    if let Some(pid) = group.procs().ok().and_then(|pids| pids.first().copied()) {
        return Some(pid);
    }
    if !below || depth >= DEEPEST {
        return None;
    }
    let children = group.children().ok()?;
    children
        .iter()
        .find_map(|name| first_process(&Arc::new(group.child(name).ok()?), below, depth + 1))
}

/// v2 tells by itself.
fn is_populated(group: &Arc<Cgroup>) -> bool {
    let dir: Arc<dyn ControlDir> = group.clone();
    Knob::open(&dir, "cgroup.events", Access::Read)
        .and_then(|knob| knob.read())
        .is_ok_and(|content| flat::get(&content, "populated") == Some(1))
}

//! Which cgroup a person means.

use super::error::Failure;
use cgroupfs::files::ControlDir;
use cgroupfs::{Cgroup, Error, MemoryHierarchy};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// A search by name ends after so many directories.
const MOST_DIRECTORIES: usize = 200_000;

/// Opens the cgroup that `text` names: an absolute path of its directory, a path in the hierarchy
/// (`/docker/3f2a`), or a directory name, looked for beneath our own group first and then everywhere.
pub(crate) fn group(hierarchy: &MemoryHierarchy, text: &str) -> Result<Arc<Cgroup>, Failure> {
    let path = Path::new(text);
    if path.starts_with(&hierarchy.mount_point) {
        return Ok(Arc::new(hierarchy.open(path)?));
    }
    if text.contains('/') {
        let relative = text.trim_start_matches('/');
        return match Cgroup::open(&hierarchy.mount_point, Path::new(relative)) {
            Ok(group) => Ok(Arc::new(group)),
            Err(Error::Vanished { path }) => Err(Failure::new(
                super::error::FAILED,
                format!("there is no cgroup {} ('{text}')", path.display()),
            )),
            Err(error) => Err(error.into()),
        };
    }
    cgroupfs::dir::check_name(text)?;
    by_name(hierarchy, text)
}

fn by_name(hierarchy: &MemoryHierarchy, name: &str) -> Result<Arc<Cgroup>, Failure> {
    for start in [&hierarchy.own, &hierarchy.mount_point] {
        let mut found = Vec::new();
        let mut queue = VecDeque::from([hierarchy.open(start)?]);
        let mut seen = 0;
        while let Some(group) = queue.pop_front() {
            for child in group.children().unwrap_or_default() {
                seen += 1;
                // Gone meanwhile, or a name that is no group's: not what was asked for.
                let Ok(opened) = group.child(&child) else { continue };
                if child == name {
                    found.push(opened);
                } else if seen < MOST_DIRECTORIES {
                    queue.push_back(opened);
                }
            }
        }
        match found.len() {
            0 => {}
            1 => return Ok(Arc::new(found.remove(0))),
            _ => {
                let paths: Vec<String> =
                    found.iter().map(|group| group.path().display().to_string()).collect();
                return Err(Failure::usage(format!(
                    "'{name}' names {} cgroups; give one by its path:\n  {}",
                    paths.len(),
                    paths.join("\n  ")
                )));
            }
        }
    }
    Err(Failure::new(
        super::error::FAILED,
        format!(
            "no cgroup named '{name}' under {}; give its path, or look with 'find {} -name {name}'",
            hierarchy.mount_point.display(),
            hierarchy.mount_point.display(),
        ),
    ))
}

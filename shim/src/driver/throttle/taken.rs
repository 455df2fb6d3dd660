//! Whose throttle a task is: that of the nearest group around it that has one. A throttle leaves alone who is in a
//! group beneath its own with a throttle of its own, which knows of both highs ([`super::Ancestor`]).
//!
//! Each has a freezer group of its own, and a task is in one at most. When a throttle comes, the one above lets
//! everybody go and begins anew, without those; when it ends, too, with them.

use super::Control;
use cgroupfs::Cgroup;
use cgroupfs::files::ControlDir as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The groups with throttles, of one process.
#[derive(Default)]
pub struct Taken(Mutex<Groups>);

#[derive(Default)]
struct Groups {
    next: u64,
    groups: Vec<Group>,
}

struct Group {
    number: u64,
    inode: u64,
    path: PathBuf,
    control: Arc<Control>,
}

/// One of them, until it is dropped.
pub(super) struct Taking {
    taken: Arc<Taken>,
    number: u64,
}

impl Taken {
    /// This group has a throttle from now on. Those above it are told.
    pub(super) fn take(self: Arc<Taken>, group: &Cgroup, control: Arc<Control>) -> Taking {
        let mut groups = self.lock();
        let number = groups.next;
        groups.next += 1;
        let path = group.path().to_path_buf();
        let group = Group { number, inode: group.inode(), path, control };
        groups.tell_above(&group);
        groups.groups.push(group);
        drop(groups);
        Taking { taken: self, number }
    }

    /// Whether a group has a throttle.
    pub(super) fn has(&self, group: &Cgroup) -> bool {
        self.lock().groups.iter().any(|taken| taken.inode == group.inode())
    }

    /// Whether one beneath this group has.
    pub(super) fn has_beneath(&self, group: &Cgroup) -> bool {
        self.lock()
            .groups
            .iter()
            .any(|taken| taken.inode != group.inode() && taken.path.starts_with(group.path()))
    }

    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Groups {
    fn tell_above(&self, group: &Group) {
        for above in &self.groups {
            if above.inode != group.inode && group.path.starts_with(&above.path) {
                above.control.beneath.fetch_add(1, Ordering::SeqCst);
                let _ = above.control.kick.write(1);
            }
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let mut groups = self.taken.lock();
        let Some(at) = groups.groups.iter().position(|group| group.number == self.number) else {
            return;
        };
        let group = groups.groups.swap_remove(at);
        groups.tell_above(&group);
    }
}

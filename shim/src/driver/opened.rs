//! A group whose container comes: each of its files is opened once, and read once. A hook, and the runtime behind
//! it, wait for this.

use super::open_memory;
use cgroupfs::memory::{Counters, Memory};
use cgroupfs::{Bytes, Cgroup, Limit, Result};
use std::sync::Arc;

/// What its files say.
pub(super) struct Standing {
    pub(super) limit: Limit,
    pub(super) counters: Counters,
    pub(super) usage: Bytes,
}

/// A group, open.
pub struct Opened {
    pub(super) group: Arc<Cgroup>,
    pub(super) memory: Arc<dyn Memory>,
    pub(super) standing: Standing,
}

impl Opened {
    /// Opens the group's files and reads its limit, its counters and usage.
    ///
    /// # Errors
    /// [`cgroupfs::Error::Absent`] for one without a memory controller, [`cgroupfs::Error::Vanished`].
    pub fn open(group: Arc<Cgroup>) -> Result<Opened> {
        let memory = open_memory(&group)?;
        let standing = Standing {
            limit: memory.limit()?,
            counters: memory.counters()?,
            usage: memory.usage()?,
        };
        Ok(Opened { group, memory, standing })
    }

    /// Its limit as it was read.
    pub fn limit(&self) -> Limit {
        self.standing.limit
    }
}

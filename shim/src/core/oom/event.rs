//! What the books are told, and what they ask for.

use super::record::{Breakdown, Deed, From, Record};
use crate::core::Now;
use cgroupfs::kmsg::oom::Killed;
use cgroupfs::{Bytes, Limit};

/// When something is handled, by all clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Monotonic: what all decisions are made by.
    pub now: Now,
    /// ms since 1970, by a clock that may jump.
    pub wall_ms: u64,
    /// ms since boot.
    pub boot_ms: u64,
}

/// A container, as its records name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its name, for people.
    pub name: String,
    /// Its id.
    pub container: String,
    /// Its cgroup's directory.
    pub cgroup: String,
    /// The inode of that directory.
    pub generation: u64,
    /// Its path from the root of the hierarchy, as the kernel log has it.
    pub path: String,
    /// The paths of the groups that it is in, from its parent upwards, without the root.
    pub ancestors: Vec<String>,
    /// Those are all, up to the root of the hierarchy, and each of them can be looked at.
    pub all_ancestors: bool,
    /// Its init, in the initial pid namespace.
    pub init: Option<i32>,
    /// `oom_kill` when watching began, or when it was announced last. `None`: this kernel has none.
    pub oom_kill: Option<u64>,
    /// When it was registered: kills since then are its own. `None`: since watching began.
    pub since: Option<Now>,
    /// The counters when it was registered, or when watching began.
    pub levels: Vec<LevelLook>,
    /// Since when [`LevelLook::hits`] of each of them has stood there. One that is not named: since watching began.
    pub quiet_since: Vec<Now>,
    /// No other source than the log tells of a kill in groups beneath (v1).
    pub v1: bool,
}

/// One level when it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LevelLook {
    /// Usage.
    pub usage: Option<Bytes>,
    /// Limit in force.
    pub limit: Option<Limit>,
    /// v1 `memory.failcnt`, v2 `max` of `memory.events`.
    pub failcnt: Option<u64>,
    /// v1: it has no other limit that `failcnt` would not show (memsw).
    pub failcnt_is_all: bool,
    /// v2 `oom` of `memory.events.local`.
    pub oom_local: Option<u64>,
    /// v2 `oom` of `memory.events`: of the subtree.
    pub oom: Option<u64>,
}

impl LevelLook {
    /// What rises each time that it runs out of memory, before anybody is killed for that: v2 `oom` of
    /// `memory.events.local`, v1 `failcnt`. `None` where nothing does.
    pub fn hits(&self) -> Option<u64> {
        self.oom_local.or(self.failcnt.filter(|_| self.failcnt_is_all))
    }

    /// It may have a limit.
    pub(super) fn limited(&self) -> bool {
        self.limit != Some(Limit::Max)
    }

    pub(super) fn full(&self) -> bool {
        match (self.usage, self.limit) {
            // The per-CPU stock of a few CPUs is charged but not used.
            (Some(usage), Some(Limit::Bytes(limit))) => {
                usage.saturating_add(Bytes((limit.0 / 100).max(1 << 20).min(limit.0 / 4))) >= limit
            }
            _ => false,
        }
    }
}

/// What a look at a group brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// `oom_kill`; `None` where this kernel has none.
    pub oom_kill: Option<u64>,
    /// Kills counted in the groups beneath since watching began (v1).
    pub beneath: u64,
    /// The rest, where that was read too.
    pub detail: Option<Box<Detail>>,
}

/// All that is recorded of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// The container's own group, then those above.
    pub levels: Vec<LevelLook>,
    /// What its memory consists of.
    pub breakdown: Breakdown,
    /// Its highest usage.
    pub peak: Option<Bytes>,
    /// The limit that the operator or runtime set.
    pub declared: Option<Limit>,
    /// What cgshim did lately, newest first.
    pub deeds: Vec<Deed>,
    /// cgshim has its limit lowered now.
    pub lowered: bool,
}

/// A kill that the log, or the tracepoint, tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogKill {
    /// What it says.
    pub killed: Killed,
    /// Which of the two.
    pub from: From,
    /// The victim's group, where the log does not name it but something else does.
    pub group: Option<(String, From)>,
    /// The host had free memory above its watermarks just then.
    pub node_has_room: Option<bool>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// From now on this container is watched.
    Watch(u64, Box<Subject>),
    /// Its init is this one.
    Init(u64, i32),
    /// The OOM signal of a container's group (level 0), or of a group above it.
    Signal(u64, usize),
    /// Its group is gone, and was signalled more often than for that: memory had run out before.
    RanOut(u64),
    /// It was looked at.
    Looked(u64, Box<Look>),
    /// Its group is gone, and these are those above, from its parent upwards.
    Above(u64, Vec<LevelLook>),
    /// Its group is gone.
    Vanished(u64),
    /// The log tells of a kill.
    Killed(Box<LogKill>),
    /// Records of the log were lost.
    LogLost,
    /// The log can (not) be read.
    LogReadable(bool),
    /// Its init is gone.
    InitExited(u64),
    /// Watching it ends: what is open is settled as soon as it can be.
    Unwatch(u64),
    /// It was time.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look at this container now; with everything if true.
    Look(u64, bool),
    /// Persist this. A record of the same id is replaced, unless this one is new.
    Write {
        /// Whose it is.
        key: u64,
        /// What it says now.
        record: Box<Record>,
        /// It is the first of its id.
        new: bool,
    },
    /// It is settled (and was written): tell people.
    Announce(u64, Box<Record>),
    /// Nothing is remembered of it any more.
    Forget(u64),
}

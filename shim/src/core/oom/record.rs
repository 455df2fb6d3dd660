//! What is said of one OOM.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Why memory ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The container's own limit, or one beneath it.
    OwnLimit,
    /// The limit of a group that the container is in.
    AncestorLimit,
    /// The host had no memory left.
    Node,
    /// The NUMA nodes that the task may use had none left (cpuset or memory policy).
    NumaOrCpuset,
    /// The host had memory, but not in one piece as large as was asked for.
    Fragmentation,
    /// Memory ran out, and nobody was killed.
    WokeWithoutKill,
    /// It cannot be known: the record says why.
    Unknown,
}

impl Cause {
    /// Its name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::OwnLimit => "own_limit",
            Cause::AncestorLimit => "ancestor_limit",
            Cause::Node => "node",
            Cause::NumaOrCpuset => "numa_or_cpuset",
            Cause::Fragmentation => "fragmentation",
            Cause::WokeWithoutKill => "woke_without_kill",
            Cause::Unknown => "unknown",
        }
    }
}

/// Where something in a record is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// The OOM killer's lines in the kernel log.
    KernelLog,
    /// The `oom:mark_victim` tracepoint.
    Tracepoint,
    /// `oom_kill` of `memory.oom_control` (v1) or `memory.events` (v2).
    OomKill,
    /// Whose OOM eventfd was signalled (v1): that of the group whose limit was hit, and of all beneath it.
    Eventfd,
    /// Whose `oom` in `memory.events.local` rose (v2): that of the group whose limit was hit.
    EventsLocal,
    /// Whose `memory.failcnt` (v1) or `max` in `memory.events` (v2) rose.
    Failcnt,
    /// No limit was hit anywhere above.
    NoLimitHit,
    /// The group's files, when memory ran out and before anything was killed.
    FilesBefore,
    /// The group's files, after the kill.
    FilesAfter,
    /// The pidfd of the container's init.
    Pidfd,
    /// `/proc/PID/cgroup`, while the victim was still there.
    Procfs,
    /// The pids in the group when memory ran out.
    Members,
    /// What cgshim itself noted.
    Cgshim,
}

/// Who was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// Its pid in the initial pid namespace.
    pub pid: i32,
    /// Its command name: what is not printable ASCII, as `\xNN`. `None` where only the pid is known.
    pub comm: Option<String>,
    /// Its `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// The memory cgroup that it was in, from the root of the hierarchy.
    pub cgroup: Option<String>,
}

/// What the group's memory consisted of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breakdown {
    /// Anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Page cache, shmem included.
    pub file_bytes: Option<u64>,
    /// tmpfs and shared memory.
    pub shmem_bytes: Option<u64>,
    /// The kernel's own, on the group's account.
    pub kernel_bytes: Option<u64>,
    /// Page cache to be written back.
    pub dirty_bytes: Option<u64>,
    /// What is swapped out.
    pub swap_bytes: Option<u64>,
}

/// Something that cgshim did to the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// How long before the record.
    pub before_ms: u64,
    /// What, in a word or two: `limit_step`, `force_empty`, `adopted`, ...
    pub what: String,
    /// Bytes that it freed or wrote, whichever it is about.
    pub bytes: Option<u64>,
    /// It had the limit lowered at the time.
    pub lowered: bool,
}

/// One OOM of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form.
    pub schema: u32,
    /// Its own id: `oom-` and where it stands in this boot.
    pub id: String,
    /// Nothing more will be added.
    pub settled: bool,
    /// When, in ms since 1970 by the clock on the wall as it was then.
    pub wall_ms: u64,
    /// When, in ms since boot (`CLOCK_BOOTTIME`): does not jump.
    pub boot_ms: u64,
    /// The container's name, for people.
    pub name: String,
    /// Its id.
    pub container: String,
    /// Its cgroup's directory.
    pub cgroup: String,
    /// The inode of that directory: a same-named group made later is another container.
    pub generation: u64,
    /// Tasks killed: 1, more where so many died at once that they share a record, 0 if none was.
    pub kills: u64,
    /// The group's `oom_kill` with it: what is above that is not on record yet.
    #[serde(default)]
    pub oom_kill_counter: Option<u64>,
    /// Why.
    pub cause: Cause,
    /// In words, what cannot be known and why.
    pub unknown: Vec<String>,
    /// Whose limit was hit, from the root of the hierarchy.
    pub limit_cgroup: Option<String>,
    /// Who was killed; `None` if that is not known.
    pub victim: Option<Victim>,
    /// Whether the container's init outlived it.
    pub init_survived: Option<bool>,
    /// Usage of the container.
    pub usage_bytes: Option<u64>,
    /// Its highest usage.
    pub peak_bytes: Option<u64>,
    /// The limit that the runtime or operator set, `None` for none.
    pub limit_declared_bytes: Option<u64>,
    /// The limit that stood, `None` for none.
    pub limit_in_force_bytes: Option<u64>,
    /// The limit that was hit, if that is another group's.
    pub ancestor_limit_bytes: Option<u64>,
    /// What its memory consisted of.
    pub breakdown: Breakdown,
    /// OOM signals that this record stands for.
    pub signals: u64,
    /// What cgshim did to it in the last seconds, newest first.
    pub deeds: Vec<Deed>,
    /// Whether cgshim could have been a cause: it had a limit lowered when memory ran out.
    pub cgshim_could_be_cause: bool,
    /// Where each of these is from.
    pub from: BTreeMap<Cow<'static, str>, From>,
}

impl Record {
    /// Notes where a field is from.
    pub(super) fn source(&mut self, field: &'static str, from: From) {
        self.from.insert(Cow::Borrowed(field), from);
    }
}

/// Bytes that may be anything as text: printable ASCII as it is, the rest as `\xNN`, and so is a
/// backslash, so that it can be read back.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\x5c"),
            b' '..=b'~' => text.push(char::from(*byte)),
            byte => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

//! Reports that a person can read: what a container's memory did over time, and what the engine did
//! about it, as a picture ([`svg`]) or in a terminal ([`term`]).
//!
//! Everything here is a pure function from a [`Timeline`] to a `String`: no files, no clock, no
//! environment. Times may come unordered, counters may jump back (a cgroup made anew), text may
//! hold anything a command line can hold: what is drawn is always well formed and bounded in size.

pub mod fmt;
pub mod svg;
pub mod term;

mod axis;
mod series;
mod text;
mod words;

use serde::Serialize;

/// One container's memory over time, and what was done about it.
///
/// All times are milliseconds on one clock that the caller chooses; for a run it starts at 0 with
/// the command.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Timeline {
    /// The heading: the container's name, or "engine off". Any text; made printable when drawn.
    pub title: String,
    /// The line under it: the command, the kernel, the settings. Any text.
    pub subtitle: String,
    /// The declared limit, in bytes; `None` for no limit.
    pub limit_bytes: Option<u64>,
    /// `memory.high`, native or emulated, in bytes.
    pub high_bytes: Option<u64>,
    /// Usage at which background reclaim starts, in bytes.
    pub wmark_high_bytes: Option<u64>,
    /// Usage at which background reclaim stops, in bytes.
    pub wmark_low_bytes: Option<u64>,
    /// What was read from the cgroup, in any order.
    pub samples: Vec<Sample>,
    /// The rounds of background reclaim, in any order.
    pub rounds: Vec<Round>,
    /// Moments worth a line of their own, in any order.
    pub marks: Vec<Mark>,
    /// How long it all took, in milliseconds.
    pub wall_ms: f64,
}

/// One reading of a cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    /// When, in milliseconds.
    pub t_ms: f64,
    /// `memory.usage_in_bytes` (v1) or `memory.current` (v2).
    pub usage_bytes: u64,
    /// Swap in use, in bytes; `None` where the kernel does not account it.
    pub swap_bytes: Option<u64>,
    /// Direct reclaim so far: `memory.failcnt` (v1), or events `max` + `high` (v2). Cumulative; the
    /// first sample is the base line.
    pub direct_reclaim: u64,
    /// Time spent throttled so far, in milliseconds. Cumulative, like `direct_reclaim`.
    pub throttled_ms: f64,
}

/// One round of background reclaim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Round {
    /// When it started, in milliseconds.
    pub start_ms: f64,
    /// When it ended, in milliseconds.
    pub end_ms: f64,
    /// What it freed, in bytes.
    pub freed_bytes: u64,
    /// Whether it was judged not to have been worth it; two in a row back off.
    pub futile: bool,
}

/// A moment worth a line of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mark {
    /// When, in milliseconds.
    pub t_ms: f64,
    /// What sort of moment.
    pub kind: MarkKind,
    /// What to write beside it. Any text; where it is empty, the kind's name is written.
    pub label: String,
}

/// What sort of moment a [`Mark`] is; the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    /// An out-of-memory event.
    Oom,
    /// Somebody else wrote the limit, and that became the declared limit.
    ForeignWrite,
    /// The engine stood aside: reclaim would have done harm.
    StandAside,
    /// Anything else.
    Other,
}

impl MarkKind {
    /// What a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            MarkKind::Oom => "OOM",
            MarkKind::ForeignWrite => "foreign write",
            MarkKind::StandAside => "stood aside",
            MarkKind::Other => "note",
        }
    }
}

/// One measure of a comparison, without the engine and with it, ready to print.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CompareRow {
    /// What was measured: "p99.9 allocation".
    pub label: String,
    /// Its value with the engine off, with its unit.
    pub off: String,
    /// Its value with the engine on, with its unit.
    pub on: String,
    /// `on` ÷ `off`, where that says anything.
    pub ratio: Option<f64>,
    /// Whether `on` is the better; `None` where neither is, or where it is no matter of better.
    pub better: Option<bool>,
}

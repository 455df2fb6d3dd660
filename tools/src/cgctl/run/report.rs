//! The report of a run, for programs and for people.

use super::Spec;
use super::child::Ended;
use super::group::RunGroup;
use super::record::{OomRecord, Recorder};
use crate::cgctl::cli::Class;
use crate::report::fmt;
use cgroupfs::memory::Version;
use cgroupfs::{Limit, MemoryHierarchy};
use serde::Serialize;
use std::time::Duration;

/// `run --json`. Byte counts are integers in `*_bytes`, `null` for no limit; times are in `*_ms`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunReport {
    pub(crate) schema: u32,
    pub(crate) name: String,
    pub(crate) cgroup: String,
    pub(crate) hierarchy: &'static str,
    pub(crate) engine: bool,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) high_bytes: Option<u64>,
    pub(crate) wmark_high_bytes: Option<u64>,
    pub(crate) wmark_low_bytes: Option<u64>,
    pub(crate) request_bytes: Option<u64>,
    pub(crate) class: Option<Class>,
    pub(crate) exit: Exit,
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) wall_ms: u64,
    pub(crate) reclaim: Reclaim,
    pub(crate) throttle: Throttle,
    pub(crate) direct_reclaim: DirectReclaim,
    pub(crate) oom: Oom,
    pub(crate) declared_limit_restored: bool,
    /// `wall_ms` and `reclaim.cpu_ms` to the microsecond, for people.
    #[serde(skip)]
    pub(crate) wall: Duration,
    #[serde(skip)]
    pub(crate) cpu: Duration,
}

/// How the command ended: one of the two is set.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// What the engine did.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Reclaim {
    pub(crate) rounds: u64,
    pub(crate) asked_bytes: u64,
    /// Seen to go; a lower bound, as what the command charged meanwhile hides as much.
    pub(crate) freed_bytes: u64,
    pub(crate) cpu_ms: u64,
    pub(crate) futile: u64,
    /// Writes that reclaimed.
    pub(crate) steps: u64,
    /// Times the engine let the group be: its cache was dirty, in use, or there was nothing to take.
    pub(crate) stood_aside: u64,
}

/// Emulated throttling; all zero where the kernel's own does it, or none.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Throttle {
    pub(crate) pulses: u64,
    pub(crate) frozen_ms: u64,
    /// Time that its tasks were still to be frozen at the end, for growth that was not paid for.
    pub(crate) debt_ms: u64,
    pub(crate) released: u64,
}

/// How often the command's own threads had to reclaim.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(crate) enum DirectReclaim {
    V1 { failcnt: u64 },
    V2 { events_high: u64, events_max: u64 },
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Oom {
    pub(crate) kills: u64,
    pub(crate) records: Vec<OomRecord>,
}

pub(super) fn build(
    spec: &Spec,
    hierarchy: &MemoryHierarchy,
    group: &RunGroup,
    recorder: &Recorder,
    ended: Ended,
    restored: bool,
) -> RunReport {
    let bytes = |limit: Limit| limit.bytes().map(|bytes| bytes.0);
    let totals = recorder.totals();
    let delta = |after: Option<u64>, before: Option<u64>| {
        after.unwrap_or(0).saturating_sub(before.unwrap_or(0))
    };
    let (before, after) = (recorder.before, recorder.after);
    let timeline = recorder.timeline(spec);
    RunReport {
        schema: 1,
        name: spec.name.clone(),
        cgroup: group.path().display().to_string(),
        hierarchy: hierarchy.version.as_str(),
        engine: !spec.off,
        limit_bytes: bytes(recorder.declared()),
        high_bytes: bytes(spec.high),
        wmark_high_bytes: timeline.wmark_high_bytes,
        wmark_low_bytes: timeline.wmark_low_bytes,
        request_bytes: None,
        class: None,
        exit: match ended {
            Ended::Code(code) => Exit { code: Some(code), signal: None },
            Ended::Signal(signal) => Exit { code: None, signal: Some(signal) },
        },
        peak_bytes: recorder.peak.map(|peak| peak.0),
        wall_ms: recorder.wall.as_millis() as u64,
        reclaim: Reclaim {
            rounds: totals.rounds,
            asked_bytes: totals.asked.0,
            freed_bytes: totals.freed.0,
            cpu_ms: totals.cpu.as_millis() as u64,
            futile: totals.futile,
            steps: totals.steps,
            stood_aside: totals.aside,
        },
        throttle: Throttle {
            pulses: recorder.throttled.pulses,
            frozen_ms: recorder.throttled.frozen.as_millis() as u64,
            debt_ms: recorder.throttled.debt.as_millis() as u64,
            released: recorder.throttled.released,
        },
        direct_reclaim: match hierarchy.version {
            Version::V1 => DirectReclaim::V1 { failcnt: delta(after.failcnt, before.failcnt) },
            Version::V2 => DirectReclaim::V2 {
                events_high: delta(after.high, before.high),
                events_max: delta(after.max, before.max),
            },
        },
        oom: Oom { kills: recorder.oom_kills, records: recorder.oom.clone() },
        declared_limit_restored: restored,
        wall: recorder.wall,
        cpu: totals.cpu,
    }
}

impl RunReport {
    /// A few lines for a person.
    pub(crate) fn for_people(&self) -> String {
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "none".into(), fmt::bytes);
        let end = match (self.exit.code, self.exit.signal) {
            (Some(code), _) => format!("exit {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
        };
        let direct = match self.direct_reclaim {
            DirectReclaim::V1 { failcnt: 0 } => "none (failcnt 0)".into(),
            DirectReclaim::V1 { failcnt } => format!("{} times (failcnt)", fmt::count(failcnt)),
            DirectReclaim::V2 { events_high: 0, events_max: 0 } => "none".into(),
            DirectReclaim::V2 { events_high, events_max } => {
                format!("{events_high} times over high, {events_max} at the limit")
            }
        };
        let mut text = format!(
            "cgctl: {}: {end} after {}; peak {}, limit {}\n",
            self.name,
            fmt::duration_ms(self.wall.as_secs_f64() * 1000.0),
            self.peak_bytes.map_or_else(|| "unknown".into(), fmt::bytes),
            size(self.limit_bytes),
        );
        if self.engine && self.wmark_high_bytes.is_none() {
            text += "cgctl: no limit, or watermarks off: nothing to reclaim in the background\n";
        } else if self.engine {
            text += &format!(
                "cgctl: reclaimed in the background at least {} in {} rounds, {} CPU; direct reclaim by the \
                 command: {direct}\n",
                fmt::bytes(self.reclaim.freed_bytes),
                self.reclaim.rounds,
                fmt::duration_ms(self.cpu.as_secs_f64() * 1000.0),
            );
        } else {
            text += &format!("cgctl: engine off; direct reclaim by the command: {direct}\n");
        }
        if self.throttle.pulses > 0 {
            text += &format!(
                "cgctl: throttled above high ({}): {} pulses, {} frozen in all{}\n",
                size(self.high_bytes),
                fmt::count(self.throttle.pulses),
                fmt::duration_ms(self.throttle.frozen_ms as f64),
                if self.throttle.released > 0 { "; released, as it achieved nothing" } else { "" },
            );
        }
        if self.oom.kills > 0 {
            text += &format!(
                "cgctl: OOM: {} process{} killed at the limit of {}; what it needs at once does not fit: \
                 choose a higher --limit{}\n",
                self.oom.kills,
                if self.oom.kills == 1 { "" } else { "es" },
                size(self.limit_bytes),
                if self.limit_bytes.is_some() { ", or allow swap" } else { "" },
            );
        }
        if !self.declared_limit_restored {
            text += &format!(
                "cgctl: WARNING: the limit at the end was not the declared one ({})\n",
                size(self.limit_bytes)
            );
        }
        text
    }
}

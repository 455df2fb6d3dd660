//! What the journal knows of a container, as people have it and as words.

use super::layout;
use crate::core::{self, Totals, WatermarkSpec};
use cgroupfs::memory::Version;
use cgroupfs::{Bytes, Limit};
use std::time::Duration;

/// Which container: (path, inode of the cgroup directory, boot id), the last from the file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What people call it: the container id. At most 128 bytes.
    pub id: String,
    /// The cgroup's path in the memory hierarchy, relative to the mount point. At most 640 bytes.
    pub path: String,
    /// Which interface its memory controller has.
    pub version: Version,
    /// The inode of the cgroup's directory.
    pub inode: u64,
    /// The container's init, 0 if it is not known.
    pub pid: i32,
    /// Its start time (field 22 of `/proc/PID/stat`), 0 if it is not known: pids are used again.
    pub start_time: u64,
}

/// QoS class of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// Nobody said.
    #[default]
    Unknown,
    /// Never reclaimed from for others.
    Guaranteed,
    /// Reclaimed from by how far usage exceeds the request.
    Burstable,
    /// Reclaimed from first.
    BestEffort,
}

/// What happens when a container is out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OomPolicy {
    /// The kernel kills a task.
    #[default]
    Kill,
    /// The whole container is ended.
    Group,
    /// The killer is held off for so long.
    Hold(Duration),
    /// The same, with all of it stopped.
    Freeze(Duration),
}

/// What a container is held to, as numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// The declared limit: what the runtime or operator set.
    pub declared: Limit,
    /// Memory that it was promised.
    pub request: Bytes,
    /// `memory.high`, [`Limit::Max`] for none.
    pub high: Limit,
    /// Background reclaim between these.
    pub watermarks: WatermarkSpec,
    /// QoS class.
    pub class: Class,
    /// What happens at the limit.
    pub oom: OomPolicy,
    /// Whether `memory.high` throttles.
    pub throttle: bool,
    /// Whether the container must not start without us.
    pub strict: bool,
}

impl Terms {
    /// A declared limit and nothing else.
    pub fn of(declared: Limit) -> Terms {
        Terms {
            declared,
            request: Bytes(0),
            high: Limit::Max,
            watermarks: WatermarkSpec::Default,
            class: Class::Unknown,
            oom: OomPolicy::Kill,
            throttle: false,
            strict: false,
        }
    }
}

impl Terms {
    /// What a container is held to; the declared limit stays.
    pub fn take(&mut self, terms: &core::Terms) {
        self.request = terms.request.unwrap_or_default();
        self.high = terms.high;
        self.watermarks = terms.watermark;
        self.class = match terms.class {
            core::Class::Guaranteed => Class::Guaranteed,
            core::Class::Burstable => Class::Burstable,
            core::Class::BestEffort => Class::BestEffort,
        };
        self.oom = match terms.oom {
            core::OomPolicy::Kill => OomPolicy::Kill,
            core::OomPolicy::Group => OomPolicy::Group,
            core::OomPolicy::Hold(time) => OomPolicy::Hold(time),
            core::OomPolicy::Freeze(time) => OomPolicy::Freeze(time),
        };
        self.throttle = terms.throttle;
    }

    /// Class and request, for whoever goes on with a container of which no more is known.
    pub fn wishes(&self) -> core::Wishes {
        core::Wishes {
            class: match self.class {
                Class::Unknown => None,
                Class::Guaranteed => Some(core::Class::Guaranteed),
                Class::Burstable => Some(core::Class::Burstable),
                Class::BestEffort => Some(core::Class::BestEffort),
            },
            request: Some(self.request).filter(|request| request.0 > 0),
            ..core::Wishes::default()
        }
    }
}

/// What was done for a container, and what of it was announced: in the journal before anybody is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Background reclaim.
    pub totals: Totals,
    /// The kernel's `oom_kill` when it was last looked at. What it has risen by since nobody was told.
    pub oom_kill_seen: u64,
    /// Kills announced since registration.
    pub oom_kills: u64,
    /// Pulses of the throttle.
    pub throttle_pulses: u64,
    /// Time frozen by them.
    pub throttle_frozen: Duration,
    /// Times the throttle was lifted because it did not help.
    pub throttle_released: u64,
    /// Usage when it was last written here.
    pub usage: Bytes,
}

/// A container in the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Which.
    pub identity: Identity,
    /// Held to what.
    pub terms: Terms,
    /// What was done.
    pub counters: Counters,
}

/// Which file of a group a step lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepFile {
    /// `memory.limit_in_bytes` (v1).
    Limit,
    /// `memory.high`.
    High,
}

/// A lowered limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// In which file.
    pub file: StepFile,
    /// What is to stand there.
    pub declared: Limit,
    /// What we write: restored only where the file holds this.
    pub written: Bytes,
    /// When the guardian restores it if nobody else has.
    pub deadline: Deadline,
}

/// A `memory.high` of ours that stands where the kernel throttles above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HighMark {
    /// What stood there before us, or was written by others since: what is put back.
    pub before: Limit,
    /// What we write: replaced only where the file holds this.
    pub written: Limit,
    /// Or this, which we wrote last.
    pub last: Limit,
}

/// Swappiness at 0 by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swappiness {
    /// What it was.
    pub before: u64,
    /// When the guardian puts it back if nobody else has.
    pub deadline: Deadline,
}

/// How tasks are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerKind {
    /// `freezer.state` of a group of ours under the container's, in the v1 hierarchy.
    V1Child,
    /// `cgroup.freeze` of the container's own group (v2).
    V2,
    /// `cgroup.freeze` of a group of ours under the container's, in the unified hierarchy.
    UnifiedChild,
}

/// Tasks frozen by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeze {
    /// By which means.
    pub kind: FreezerKind,
    /// When the guardian thaws them if nobody else has.
    pub deadline: Deadline,
}

/// A moment of the monotonic clock, in nanoseconds: the same for every process until the next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub u64);

impl Deadline {
    /// Now.
    pub fn now() -> Deadline {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
            .map(Duration::from)
            .unwrap_or_default();
        Deadline(now.as_nanos() as u64)
    }

    /// So long from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline(Deadline::now().0.saturating_add(time.as_nanos() as u64))
    }
}

/// What of ours stands in the kernel at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InFlight {
    /// A lowered limit.
    pub step: Option<Step>,
    /// Swappiness 0.
    pub swappiness: Option<Swappiness>,
    /// Frozen tasks.
    pub freeze: Option<Freeze>,
    /// `oom_kill_disable`, until then.
    pub hold: Option<Deadline>,
    /// With that: groups beneath with a higher inode have it from us, [`u64::MAX`] where that cannot be said of any.
    pub beneath: Option<u64>,
    /// A `memory.high` for good.
    pub high: Option<HighMark>,
    /// Something was written here that is not what it was: see what the kernel has.
    pub damaged: bool,
}

impl InFlight {
    /// Whether anything of ours stands.
    pub const fn any(&self) -> bool {
        self.step.is_some()
            || self.swappiness.is_some()
            || self.freeze.is_some()
            || self.hold.is_some()
            || self.high.is_some()
            || self.damaged
    }
}

pub(super) const fn limit_word(limit: Limit) -> u64 {
    match limit {
        Limit::Max => u64::MAX,
        Limit::Bytes(bytes) => bytes.0,
    }
}

pub(super) const fn word_limit(word: u64) -> Limit {
    match word {
        u64::MAX => Limit::Max,
        bytes => Limit::Bytes(Bytes(bytes)),
    }
}

impl Terms {
    pub(super) fn to_words(self) -> [u64; layout::TERMS.payload] {
        let mut words = [0; layout::TERMS.payload];
        words[0] = limit_word(self.declared);
        words[1] = self.request.0;
        words[2] = limit_word(self.high);
        words[3] = match self.watermarks {
            WatermarkSpec::Default => 0,
            WatermarkSpec::Ratio { high, low } => 1 << 56 | u64::from(high) << 28 | u64::from(low),
            WatermarkSpec::Off => 2 << 56,
        };
        words[4] = match self.class {
            Class::Unknown => 0,
            Class::Guaranteed => 1,
            Class::Burstable => 2,
            Class::BestEffort => 3,
        };
        (words[5], words[6]) = match self.oom {
            OomPolicy::Kill => (0, 0),
            OomPolicy::Group => (1, 0),
            OomPolicy::Hold(time) => (2, time.as_millis() as u64),
            OomPolicy::Freeze(time) => (3, time.as_millis() as u64),
        };
        words[7] = u64::from(self.throttle) | u64::from(self.strict) << 1;
        words
    }

    pub(super) fn from_words(words: &[u64; layout::TERMS.payload]) -> Terms {
        const RATIO: u64 = (1 << 28) - 1;
        Terms {
            declared: word_limit(words[0]),
            request: Bytes(words[1]),
            high: word_limit(words[2]),
            watermarks: match words[3] >> 56 {
                1 => WatermarkSpec::Ratio {
                    high: (words[3] >> 28 & RATIO) as u32,
                    low: (words[3] & RATIO) as u32,
                },
                2 => WatermarkSpec::Off,
                _ => WatermarkSpec::Default,
            },
            class: match words[4] {
                1 => Class::Guaranteed,
                2 => Class::Burstable,
                3 => Class::BestEffort,
                _ => Class::Unknown,
            },
            oom: match words[5] {
                1 => OomPolicy::Group,
                2 => OomPolicy::Hold(Duration::from_millis(words[6])),
                3 => OomPolicy::Freeze(Duration::from_millis(words[6])),
                _ => OomPolicy::Kill,
            },
            throttle: words[7] & 1 != 0,
            strict: words[7] & 2 != 0,
        }
    }
}

impl Counters {
    pub(super) fn to_words(self) -> [u64; layout::COUNTERS.payload] {
        let mut words = [0; layout::COUNTERS.payload];
        let totals = self.totals;
        words[0] = totals.rounds;
        words[1] = totals.asked.0;
        words[2] = totals.freed.0;
        words[3] = totals.cpu.as_nanos() as u64;
        words[4] = totals.futile;
        words[5] = totals.aside;
        words[6] = totals.steps;
        words[7] = self.oom_kill_seen;
        words[8] = self.oom_kills;
        words[9] = self.throttle_pulses;
        words[10] = self.throttle_frozen.as_nanos() as u64;
        words[11] = self.throttle_released;
        words[12] = self.usage.0;
        words
    }

    pub(super) fn from_words(words: &[u64; layout::COUNTERS.payload]) -> Counters {
        Counters {
            totals: Totals {
                rounds: words[0],
                asked: Bytes(words[1]),
                freed: Bytes(words[2]),
                cpu: Duration::from_nanos(words[3]),
                futile: words[4],
                aside: words[5],
                steps: words[6],
            },
            oom_kill_seen: words[7],
            oom_kills: words[8],
            throttle_pulses: words[9],
            throttle_frozen: Duration::from_nanos(words[10]),
            throttle_released: words[11],
            usage: Bytes(words[12]),
        }
    }
}

/// Text as words, little-endian, the rest 0.
pub(super) fn text_to_words(text: &str, words: &mut [u64]) {
    for (word, bytes) in words.iter_mut().zip(text.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(padded);
    }
}

/// A path out of the journal, without allocating.
#[derive(Debug, Clone, Copy)]
pub struct PathText {
    buf: [u8; layout::MOST_PATH],
    len: usize,
}

impl PathText {
    pub(super) fn from_words(words: &[u64], len: usize) -> Option<PathText> {
        let mut text = PathText { buf: [0; layout::MOST_PATH], len };
        if len > text.buf.len() || len > words.len() * 8 {
            return None;
        }
        for (bytes, word) in text.buf.chunks_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        std::str::from_utf8(&text.buf[..len]).is_ok().then_some(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.buf[..self.len]).unwrap_or_default()
    }
}

pub(super) fn version_word(version: Version) -> u64 {
    match version {
        Version::V1 => 1,
        Version::V2 => 2,
    }
}

pub(super) fn word_version(word: u64) -> Option<Version> {
    match word {
        1 => Some(Version::V1),
        2 => Some(Version::V2),
        _ => None,
    }
}

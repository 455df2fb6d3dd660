//! What a run did over time: a few numbers always, a timeline when it is to be drawn.

use super::{Progress, Spec};
use crate::report::{Mark, MarkKind, Round, Sample, Timeline};
use cgroupfs::memory::{Counters, Memory};
use cgroupfs::{Bytes, Limit};
use cgshim::core::oom::Record;
use cgshim::core::throttle::ThrottleTotals;
use cgshim::core::{Notice, Outcome, Totals, Watermarks};
use cgshim::driver::Happened;
use cgshim::driver::throttle::ThrottleEvent;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A timeline never grows beyond this: every other sample goes, and the interval doubles.
const MOST_SAMPLES: usize = 4096;

/// Interval of samples at first.
const FIRST_INTERVAL: Duration = Duration::from_millis(10);

/// Rounds and marks kept for the picture.
const MOST_ROUNDS: usize = 20_000;
const MOST_MARKS: usize = 200;

/// One OOM event of a run: a record as `cgctl why` has it, and when in the run it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OomRecord {
    /// When, after the start.
    pub(crate) at_ms: u64,
    /// How many tasks were killed.
    pub(crate) oom_kill: u64,
    /// Usage when the kill was noticed.
    pub(crate) usage_bytes: u64,
    /// The rest; `None` where only the counter tells.
    pub(crate) record: Option<Box<Record>>,
}

impl serde::Serialize for OomRecord {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = serde_json::to_value(&self.record).map_err(serde::ser::Error::custom)?;
        let mut fields = match record {
            serde_json::Value::Object(fields) => fields,
            _ => serde_json::Map::new(),
        };
        fields.insert("at_ms".into(), self.at_ms.into());
        fields.insert("oom_kill".into(), self.oom_kill.into());
        fields.insert("usage_bytes".into(), self.usage_bytes.into());
        fields.serialize(serializer)
    }
}

/// Gathers it.
pub(super) struct Recorder {
    pub(super) start: Instant,
    pub(super) wall: Duration,
    sampling: bool,
    interval: Duration,
    next_sample: Instant,
    samples: Vec<Sample>,
    rounds: Vec<Round>,
    marks: Vec<Mark>,
    watermarks: Option<Watermarks>,
    declared: Limit,
    totals: Totals,
    counted: Totals,
    /// What the throttle did in all.
    pub(super) throttled: ThrottleTotals,
    /// Frozen so far, for the samples.
    frozen: Duration,
    last_usage: Bytes,
    highest: Bytes,
    pub(super) peak: Option<Bytes>,
    pub(super) before: Counters,
    pub(super) after: Counters,
    pub(super) oom: Vec<OomRecord>,
    pub(super) oom_kills: u64,
    /// Kills that records stand for, and usage at the last one.
    oom_recorded: u64,
    oom_usage: Bytes,
    start_boot_ms: u64,
    progress: Option<Arc<Progress>>,
}

impl Recorder {
    pub(super) fn new(spec: &Spec, memory: &dyn Memory) -> Recorder {
        let start = Instant::now();
        Recorder {
            start,
            wall: Duration::ZERO,
            sampling: spec.timeline,
            interval: FIRST_INTERVAL,
            next_sample: start,
            samples: Vec::new(),
            rounds: Vec::new(),
            marks: Vec::new(),
            watermarks: None,
            declared: memory.limit().unwrap_or(spec.limit),
            totals: Totals::default(),
            counted: Totals::default(),
            throttled: ThrottleTotals::default(),
            frozen: Duration::ZERO,
            last_usage: Bytes(0),
            highest: Bytes(0),
            peak: None,
            before: memory.counters().unwrap_or_default(),
            after: Counters::default(),
            oom: Vec::new(),
            oom_kills: 0,
            oom_recorded: 0,
            oom_usage: Bytes(0),
            start_boot_ms: cgshim::oom::boot_ms(),
            progress: spec.progress.clone(),
        }
    }

    pub(super) fn marks(&mut self, watermarks: Option<Watermarks>) {
        self.watermarks = watermarks;
    }

    /// What the engine takes for the declared limit now; `None` keeps what is known. Notices do not
    /// tell of every change.
    pub(super) fn declare(&mut self, limit: Option<Limit>) {
        self.declared = limit.unwrap_or(self.declared);
    }

    /// The limit that must stand at the end.
    pub(super) fn declared(&self) -> Limit {
        self.declared
    }

    /// What the engine did in all.
    pub(super) fn totals(&self) -> Totals {
        // Until the container is forgotten only its rounds are known.
        if self.totals == Totals::default() { self.counted } else { self.totals }
    }

    /// Takes a sample if one is due; how long until the next.
    pub(super) fn sample(&mut self, memory: &dyn Memory) -> Duration {
        let now = Instant::now();
        if now >= self.next_sample {
            if let Ok(usage) = memory.usage() {
                let counters = memory.counters().unwrap_or_default();
                self.push(usage, counters.direct_reclaim());
            }
            self.next_sample = now + self.interval;
        }
        self.next_sample.saturating_duration_since(now)
    }

    fn push(&mut self, usage: Bytes, direct_reclaim: u64) {
        self.highest = self.highest.max(usage);
        if let Some(progress) = &self.progress {
            let since = direct_reclaim.saturating_sub(self.before.direct_reclaim());
            progress.usage_bytes.store(usage.0, Ordering::Relaxed);
            progress.direct_reclaim.store(since, Ordering::Relaxed);
        }
        self.samples.push(Sample {
            t_ms: ms(self.start.elapsed()),
            usage_bytes: usage.0,
            swap_bytes: None,
            direct_reclaim,
            throttled_ms: ms(self.frozen),
        });
        if self.samples.len() >= MOST_SAMPLES {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.interval *= 2;
        }
    }

    pub(super) fn take(&mut self, event: &Happened) {
        match event {
            Happened::Usage(_, _, usage) => {
                self.last_usage = *usage;
                self.highest = self.highest.max(*usage);
            }
            Happened::Round(_, _, report) => {
                self.counted.rounds += 1;
                self.counted.freed = self.counted.freed.saturating_add(report.freed);
                self.counted.cpu += report.cpu;
                let end = ms(self.start.elapsed());
                if self.sampling && self.rounds.len() < MOST_ROUNDS {
                    self.rounds.push(Round {
                        start_ms: (end - ms(report.wall)).max(0.0),
                        end_ms: end,
                        freed_bytes: report.freed.0,
                        futile: report.outcome == Outcome::Exhausted
                            && report.freed < Bytes::kib(512),
                    });
                }
            }
            Happened::Notice(_, _, notice) => {
                let (kind, label) = match notice {
                    Notice::Adopted(_, to) => {
                        self.declared = *to;
                        (MarkKind::ForeignWrite, format!("limit is now {to}"))
                    }
                    Notice::StandingAside(why) => (MarkKind::StandAside, why.as_str().into()),
                    Notice::Resumed => (MarkKind::Other, "reclaiming again".into()),
                    Notice::Futile(_) => (MarkKind::Other, "nothing freed".into()),
                    Notice::Refused(..) => (MarkKind::Other, "refused by the kernel".into()),
                };
                self.mark(kind, label);
            }
            Happened::OomKill(_, _, kills, usage) => {
                self.oom_kills += kills;
                self.oom_usage = *usage;
                self.mark(MarkKind::Oom, format!("{kills} killed"));
            }
            Happened::Throttle(_, _, told) => match told {
                ThrottleEvent::Pulse { frozen, .. } => self.frozen += *frozen,
                told => self.mark(MarkKind::Other, told.message().unwrap_or_default()),
            },
            Happened::Hold(_, _, event) => self.mark(MarkKind::Other, event.message()),
            Happened::Oom(_, record) => {
                if self.oom.len() < MOST_MARKS {
                    self.oom.push(OomRecord {
                        at_ms: record.boot_ms.saturating_sub(self.start_boot_ms),
                        oom_kill: record.kills,
                        usage_bytes: record.usage_bytes.unwrap_or(self.oom_usage.0),
                        record: Some(record.clone()),
                    });
                }
                self.oom_recorded += record.kills;
            }
            Happened::Forgotten(_, totals) => self.totals = *totals,
            Happened::Fd(_) | Happened::Asked(..) => {}
            Happened::OomsWatched(_) | Happened::OomsRecorded(_) => {}
        }
    }

    fn mark(&mut self, kind: MarkKind, label: String) {
        if self.sampling && self.marks.len() < MOST_MARKS {
            self.marks.push(Mark { t_ms: ms(self.start.elapsed()), kind, label });
        }
    }

    /// The last numbers, before the group goes.
    pub(super) fn finish(&mut self, memory: &dyn Memory) {
        self.after = memory.counters().unwrap_or_default();
        let all =
            self.after.oom_kill.unwrap_or(0).saturating_sub(self.before.oom_kill.unwrap_or(0));
        // Groups beneath count on their own on v1: what was recorded may be more.
        self.oom_kills = self.oom_kills.max(all).max(self.oom_recorded);
        if self.oom_kills > self.oom_recorded {
            self.oom.push(OomRecord {
                at_ms: self.wall.as_millis() as u64,
                oom_kill: self.oom_kills - self.oom_recorded,
                usage_bytes: self.oom_usage.0,
                record: None,
            });
        }
        // memory.peak came with 6.1; before that the highest value seen is all there is.
        self.peak =
            memory.peak().ok().or_else(|| (self.highest > Bytes(0)).then_some(self.highest));
    }

    pub(super) fn timeline(&self, spec: &Spec) -> Timeline {
        let bytes = |limit: Limit| limit.bytes().map(|bytes| bytes.0);
        let command: Vec<_> = spec.command.iter().map(|word| word.to_string_lossy()).collect();
        Timeline {
            title: format!("{}{}", spec.name, if spec.off { " (engine off)" } else { "" }),
            subtitle: command.join(" "),
            limit_bytes: bytes(self.declared),
            high_bytes: bytes(spec.high),
            wmark_high_bytes: self.watermarks.map(|marks| marks.high.0),
            wmark_low_bytes: self.watermarks.map(|marks| marks.low.0),
            samples: self.samples.clone(),
            rounds: self.rounds.clone(),
            marks: self.marks.clone(),
            wall_ms: ms(self.wall),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

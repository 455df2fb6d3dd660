//! Which containers there are: by id, by the engine's key, and those that have ended, for a while.

use super::ended::Ended;
use crate::api::message::{Reclaim, Throttled, View};
use crate::core::throttle::ThrottleTotals;
use crate::core::{Now, Retained, State, Terms, Totals, Watermarks, Wishes};
use crate::driver::Key;
use cgroupfs::{Bytes, Limit};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Ended containers that are remembered (law 10).
const MOST_ENDED: usize = 1000;
const LONGEST_ENDED: Duration = Duration::from_secs(3600);

/// A container.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) generation: u64,
    pub(super) key: Key,
    /// Its group's directory, and its path in the hierarchy.
    pub(super) directory: std::path::PathBuf,
    pub(super) path: String,
    pub(super) inode: u64,
    pub(super) pid: Option<i32>,
    pub(super) source: Source,
    pub(super) runtime: Option<String>,
    pub(super) oom_score_adj: Option<i32>,
    /// Its annotations of ours, as they came.
    pub(super) asked: BTreeMap<String, String>,
    /// What the operator set by hand, as it came.
    pub(super) set_texts: BTreeMap<String, String>,
    /// Class and request, from the runtime.
    pub(super) from_runtime: Wishes,
    /// What its annotations ask for.
    pub(super) annotations: Wishes,
    /// What the operator set by hand.
    pub(super) set: Wishes,
    /// What it is held to.
    pub(super) terms: Terms,
    /// Annotations that were refused.
    pub(super) refused: Vec<String>,
    /// Tasks of it that the OOM killer took, as far as anybody was told.
    pub(super) oom_kills: u64,
    pub(super) since_ms: u64,
}

/// How a container came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    Hook,
    Spool,
    Discovery,
    Journal,
}

impl Source {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Source::Hook => "hook",
            Source::Spool => "spool",
            Source::Discovery => "discovery",
            Source::Journal => "journal",
        }
    }
}

/// What the engine knows of a container at the moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) state: State,
    pub(super) usage: Option<Bytes>,
    pub(super) limit: Limit,
    pub(super) marks: Option<Watermarks>,
    pub(super) totals: Totals,
    pub(super) oom_kills: u64,
    pub(super) throttled: Option<ThrottleTotals>,
}

impl Container {
    /// As everybody sees it.
    pub(super) fn view(&self, now: &Moment) -> View {
        let bytes = |limit: Limit| limit.bytes().map(|bytes| bytes.0);
        View {
            id: self.id.clone(),
            generation: self.generation,
            cgroup: self.directory.display().to_string(),
            inode: self.inode,
            pid: self.pid,
            source: self.source.as_str().into(),
            runtime: self.runtime.clone(),
            class: self.terms.class.as_str().into(),
            request_bytes: self.terms.request.map(|bytes| bytes.0),
            usage_bytes: now.usage.map(|bytes| bytes.0),
            limit_bytes: bytes(now.limit),
            high_bytes: bytes(self.terms.high),
            wmark_high_bytes: now.marks.map(|marks| marks.high.0),
            wmark_low_bytes: now.marks.map(|marks| marks.low.0),
            throttle: self.terms.throttle,
            oom: self.terms.oom.to_string(),
            way_out: self.terms.way_out.to_string(),
            state: now.state.as_str().into(),
            refused: self.refused.clone(),
            since_ms: self.since_ms,
            ended_ms: None,
            reclaim: Reclaim {
                rounds: now.totals.rounds,
                asked_bytes: now.totals.asked.0,
                freed_bytes: now.totals.freed.0,
                cpu_ms: now.totals.cpu.as_secs_f64() * 1000.0,
                futile: now.totals.futile,
                steps: now.totals.steps,
                stood_aside: now.totals.aside,
            },
            oom_kills: now.oom_kills,
            throttled: now.throttled.map(|totals| {
                let frozen_ms = totals.frozen.as_secs_f64() * 1000.0;
                let wall_ms = super::unix_ms().saturating_sub(self.since_ms).max(1) as f64;
                Throttled {
                    pulses: totals.pulses,
                    frozen_ms,
                    debt_ms: totals.debt.as_secs_f64() * 1000.0,
                    share: (frozen_ms / wall_ms).min(1.0),
                    released: totals.released,
                }
            }),
        }
    }
}

/// All of them.
pub(super) struct Registry {
    by_id: BTreeMap<String, Box<Container>>,
    ids: HashMap<Key, String>,
    ended: Retained<Ended>,
    /// Those that have ended, and of which the OOM watch has not said all yet: id and generation.
    untold: HashMap<Key, (String, u64)>,
    generation: u64,
}

impl Registry {
    pub(super) fn new() -> Registry {
        Registry {
            by_id: BTreeMap::new(),
            ids: HashMap::new(),
            ended: Retained::new(MOST_ENDED, LONGEST_ENDED),
            untold: HashMap::new(),
            generation: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Registrations of a daemon before us had numbers up to this.
    pub(super) fn continue_after(&mut self, generation: u64) {
        self.generation = self.generation.max(generation);
    }

    /// The number of the next registration.
    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    pub(super) fn add(&mut self, container: Container) {
        self.ids.insert(container.key, container.id.clone());
        self.by_id.insert(container.id.clone(), Box::new(container));
    }

    pub(super) fn get(&self, id: &str) -> Option<&Container> {
        self.by_id.get(id).map(|container| &**container)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Container> {
        self.by_id.get_mut(id).map(|container| &mut **container)
    }

    /// The container of this key. A key is one registration's: none of an older one is found by it.
    pub(super) fn of_key(&mut self, key: Key) -> Option<&mut Container> {
        self.by_id.get_mut(self.ids.get(&key)?).map(|container| &mut **container)
    }

    /// Takes it out; nothing that the engine still says of that key is for anybody.
    pub(super) fn remove(&mut self, id: &str) -> Option<Container> {
        let container = self.by_id.remove(id)?;
        self.ids.remove(&container.key);
        Some(*container)
    }

    /// Remembers one that has ended.
    pub(super) fn bury(&mut self, now: Now, view: View) {
        let ended = Ended::new(view, self.ended.iter().next_back());
        self.ended.push(now, ended);
    }

    /// The OOM watch may still say something of one that has ended.
    pub(super) fn not_yet_told(&mut self, key: Key, container: Container) {
        self.untold.insert(key, (container.id, container.generation));
    }

    /// It has said all.
    pub(super) fn is_told(&mut self, key: Key) {
        self.untold.remove(&key);
    }

    /// So many tasks more were killed in the container of this key, which may have ended; its id and generation.
    pub(super) fn count_kills(&mut self, key: Key, kills: u64) -> Option<(String, u64)> {
        if let Some(container) = self.of_key(key) {
            container.oom_kills += kills;
            return Some((container.id.clone(), container.generation));
        }
        let (id, generation) = self.untold.get(&key)?.clone();
        let mut ended = self.ended.iter_mut().rev();
        if let Some(ended) = ended.find(|ended| ended.is(&id, generation)) {
            ended.count_kills(kills);
        }
        Some((id, generation))
    }

    /// Those that have ended, oldest first.
    pub(super) fn ended(&mut self, now: Now) -> impl Iterator<Item = View> {
        self.ended.expire(now);
        self.ended.iter().map(Ended::view)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Container> {
        self.by_id.values().map(|container| &**container)
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.by_id.keys().cloned().collect()
    }

    /// Who has this group, or one that this group is in.
    pub(super) fn at_or_above(&self, path: &str) -> Option<&Container> {
        self.iter().find(|container| {
            let rest = path.strip_prefix(container.path.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// The id that `text` means: itself, or the only one that begins with it.
    pub(super) fn find(&self, text: &str) -> Result<String, String> {
        if self.by_id.contains_key(text) {
            return Ok(text.to_owned());
        }
        let shown: String = text.escape_default().take(80).collect();
        let after = self.by_id.range(text.to_owned()..).map(|(id, _)| id);
        let found: Vec<&String> = after.take_while(|id| id.starts_with(text)).take(6).collect();
        match found.as_slice() {
            [only] if !text.is_empty() => Ok((*only).clone()),
            [] => Err(format!("no container '{shown}'; 'cgctl ps' lists them")),
            several => {
                let names: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
                Err(format!("'{shown}' is not one container: {}", names.join(", ")))
            }
        }
    }
}

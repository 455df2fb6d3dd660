//! Containers that come and go: registered, found, released, vanished.

use super::Daemon;
use super::discovery::Found;
use super::history::event;
use super::registry::{Container, Moment, Source};
use super::verify::{Verified, oom_score_adj};
use crate::api::message::{EventLine, Register, Release, Request, View};
use crate::core::oom::Record;
use crate::core::oom::hold::HoldEvent;
use crate::core::terms::{KEYS, Terms, effective};
use crate::core::{Notice, OomPolicy, State, Wishes, qos};
use crate::driver::oom::Identity;
use crate::driver::throttle::ThrottleEvent;
use crate::driver::{Happened, Key, OomHold, Opened, Policy};
use crate::journal;
use cgroupfs::Bytes;
use cgroupfs::files::ControlDir;
use cgroupfs::procfs;
use std::collections::BTreeMap;
use std::time::Instant;

/// What annotations of ours begin with.
const PREFIX: &str = "io.cgshim.";

impl Daemon {
    /// Takes a container in; its generation. Twice the same is once.
    pub(super) fn register(&mut self, asked: &Register, source: Source) -> Result<u64, String> {
        let Verified { group, path, started } = self.host.verify(asked)?;
        if let Some(there) = self.registry.get(&asked.id) {
            if there.inode == group.inode() && there.pid == Some(asked.pid) {
                return Ok(there.generation);
            }
            if there.inode != group.inode()
                && self.host.still_there(&there.directory, there.inode)
                && there.source != Source::Discovery
            {
                return Err(format!(
                    "container {} is registered already, in {} (pid {}); this one is in {path} (pid {}): \
                     release it first",
                    asked.id,
                    there.path,
                    there.pid.map_or("unknown".into(), |pid| pid.to_string()),
                    asked.pid,
                ));
            }
            self.end(&asked.id, "replaced", "another container has its id now");
        }
        // One found by discovery, which had no better name for it.
        let other = self.registry.iter().find(|other| other.inode == group.inode());
        if let Some(other) = other.map(|other| other.id.clone()) {
            self.end(&other, "replaced", "registered by its runtime");
        }
        let ours = asked.annotations.iter().filter(|(name, _)| name.starts_with(PREFIX));
        let about = About {
            pid: Some(asked.pid),
            runtime: asked.runtime.clone(),
            oom_score_adj: asked.oom_score_adj,
            asked: ours.map(|(name, value)| (name.clone(), value.clone())).collect(),
            ..About::new(asked.id.clone(), source)
        };
        self.admit(Verified { group, path, started }, about, None)
    }

    /// Lets a container go. One that is not there is no failure: the hook of a container that nobody
    /// registered, or one that vanished before its hook ran.
    pub(super) fn release(&mut self, asked: &Release) -> Result<u64, String> {
        let Some(there) = self.registry.get(&asked.id) else { return Ok(0) };
        let generation = there.generation;
        let another = asked.pid.is_some() && asked.pid != there.pid;
        let elsewhere = asked.cgroup.as_ref().is_some_and(|path| *path != there.path);
        if another || elsewhere {
            return Err(format!("container {} is another one by now, in {}", asked.id, there.path));
        }
        self.end(&asked.id, "released", "released");
        Ok(generation)
    }

    /// Requests that hooks left while nobody was there.
    pub(super) fn take_spool(&mut self) {
        let mut requests = Vec::new();
        self.spool_more = self.spool.take(&mut requests);
        for request in requests {
            match request {
                Request::Register(register) => {
                    if let Err(why) = self.register(&register, Source::Spool) {
                        let id: String = register.id.escape_default().take(80).collect();
                        log::warn!("spooled container {id} is dropped: {why}");
                    }
                }
                Request::Release(release) => {
                    if let Err(why) = self.release(&release) {
                        log::warn!("spooled release: {why}");
                    }
                }
                _ => {}
            }
        }
    }

    /// Groups that the patterns name.
    pub(super) fn discover(&mut self) {
        let found = self.discovery.take(&self.host);
        self.adopt_found(found);
    }

    /// All of them again, if the patterns have changed.
    pub(super) fn discover_anew(&mut self) {
        match self.discovery.set(&self.host, &self.config.discovery) {
            Ok(found) => self.adopt_found(found),
            Err(error) => log::warn!("discovery: {error}"),
        }
    }

    fn adopt_found(&mut self, found: Vec<Found>) {
        for Found { path, pid } in found {
            if self.registry.at_or_above(&path).is_some() {
                continue;
            }
            let opened = match self.host.open(&path) {
                Ok(opened) => opened,
                // Gone again.
                Err(_) => continue,
            };
            let name = path.rsplit('/').next().unwrap_or(&path);
            let id = match self.registry.get(name) {
                None if crate::api::message::check_id(name).is_ok() => name.to_owned(),
                _ => path.trim_start_matches('/').replace('/', ":"),
            };
            if self.registry.get(&id).is_some() {
                continue;
            }
            let about = About {
                pid,
                oom_score_adj: pid.and_then(oom_score_adj),
                ..About::new(id, Source::Discovery)
            };
            if let Err(why) = self.admit(opened, about, None) {
                log::warn!("{path} was found, and is not enforced: {why}");
            }
        }
    }

    /// Begins to enforce, or goes on with one that the journal knows.
    pub(super) fn admit(
        &mut self,
        verified: Verified,
        about: About,
        found: Option<journal::Found>,
    ) -> Result<u64, String> {
        if self.registry.len() >= self.config.most_containers {
            return Err(format!(
                "{} containers are enforced already: raise max_containers in the configuration",
                self.registry.len()
            ));
        }
        let Verified { group, path, started } = verified;
        let (directory, inode) = (group.path().to_path_buf(), group.inode());
        let opened = Opened::open(group).map_err(|error| error.to_string())?;
        let limit = opened.limit();
        let (annotations, wrong) = annotations(&about.asked);
        let from_runtime =
            qos::from_runtime(&path, about.oom_score_adj, self.capacity).over(about.fallback);
        let mut set = Wishes::default();
        for (key, value) in &about.set {
            // It was taken once; a version that does not know it leaves it out.
            let _ = set.set(key, value);
        }
        let operator = set.over(self.config.wishes(&path, from_runtime, limit));
        let (terms, refused) = effective(operator, annotations, self.config.rights, limit);
        let policy = Policy { watermarks: terms.watermark, high: terms.high };
        let announced = found.as_ref().map(|found| found.record.counters.oom_kill_seen);
        let oom_kills = found.as_ref().map_or(0, |found| found.record.counters.oom_kills);
        let together = found
            .as_ref()
            .is_some_and(|found| found.record.terms.oom == crate::journal::OomPolicy::Group);
        let key = match found {
            Some(found) => self.engine.resume(opened, policy, found),
            None => {
                let mut record = self.engine.record_of(&opened, policy);
                record.identity.id = about.id.clone();
                record.identity.pid = about.pid.unwrap_or(0);
                record.identity.start_time = match (started, about.pid) {
                    (0, Some(pid)) => {
                        u32::try_from(pid).ok().and_then(procfs::starttime).unwrap_or(0)
                    }
                    (started, _) => started,
                };
                record.terms.take(&terms);
                self.engine.register_as(opened, policy, record)
            }
        }
        .map_err(|error| error.to_string())?;
        self.engine.note_terms(key, |noted| noted.take(&terms));
        if together {
            self.engine.has_been_killed_together(key);
        }
        // What it counts from was read; the watch has files of its own to open yet.
        let witnessed = Identity {
            name: about.id.clone(),
            container: about.id.clone(),
            // The first process that discovery sees need not be init.
            init: about.pid.filter(|_| about.source != Source::Discovery),
            oom_kill: announced,
            counters: None,
            since: Some(Instant::now()),
        };
        self.unwitnessed.push((key, witnessed));
        // What stops all of it at an OOM is not throttled.
        self.act_on_oom(key, terms.oom);
        self.throttle(key, &terms);
        let mut all_refused = wrong;
        all_refused.extend(refused.into_iter().map(str::to_owned));
        let generation = self.registry.next_generation();
        let container = Container {
            id: about.id.clone(),
            generation,
            key,
            directory,
            path,
            inode,
            pid: about.pid,
            source: about.source,
            runtime: about.runtime,
            oom_score_adj: about.oom_score_adj,
            asked: about.asked,
            set_texts: about.set,
            from_runtime,
            annotations,
            set,
            terms,
            refused: all_refused.clone(),
            oom_kills,
            since_ms: about.since_ms.unwrap_or_else(super::unix_ms),
        };
        // Before anybody is told.
        self.notes.write(&container);
        let class = container.terms.class.as_str();
        let mut message = format!("{} by {}, {class}", container.path, container.source.as_str());
        if !all_refused.is_empty() {
            let keys = all_refused.join(", ");
            message +=
                &format!("; annotations refused: {keys} (looser than the operator's, or wrong)");
            log::warn!("container {}: annotations refused: {keys}", container.id);
        }
        let name = if announced.is_some() { "adopted" } else { "registered" };
        let told = of(&container, name, message);
        self.registry.add(container);
        self.tell(told);
        Ok(generation)
    }

    /// Gives who has come since the last turn to the OOM watch.
    pub(super) fn witness_the_new(&mut self) {
        let watched = self.engine.oom_sources().is_some();
        for (key, identity) in std::mem::take(&mut self.unwitnessed) {
            if watched {
                self.registering.opens(key);
            }
            self.engine.record_ooms(key, identity);
        }
    }

    /// Throttles above high, where the kernel does not.
    fn throttle(&mut self, key: Key, terms: &Terms) {
        if let Err(error) = self.engine.throttle(key, terms.throttle.then_some(terms.way_out)) {
            log::warn!("growth above high is not throttled: {error}");
        }
    }

    /// Ends enforcement of a container: its declared limit stands.
    pub(super) fn end(&mut self, id: &str, why: &str, message: &str) {
        // It has its last look at who comes and goes in one turn, too.
        self.witness_the_new();
        let Some(container) = self.registry.get(id) else { return };
        let key = container.key;
        // Kills that no event told of yet.
        self.engine.recount(key);
        self.engine.finish_ooms(key);
        let Some(view) = self.view(id) else { return };
        let Some(container) = self.registry.remove(id) else { return };
        self.notes.remove(container.generation);
        // Whoever registered it waits for nothing any more.
        self.is_watched(key);
        self.engine.release(key);
        self.bury(&container, view, why, message);
        // The watch has its last look yet: what it finds is still this container's.
        self.not_yet_told(key, container);
    }

    fn not_yet_told(&mut self, key: Key, container: Container) {
        // Without a watch nothing comes.
        if self.engine.oom_sources().is_some() {
            self.registry.not_yet_told(key, container);
        }
    }

    fn bury(&mut self, container: &Container, view: View, why: &str, message: &str) {
        let ended = View {
            ended_ms: Some(super::unix_ms()),
            state: State::Ended.as_str().into(),
            usage_bytes: None,
            ..view
        };
        self.registry.bury(self.engine.now(), ended);
        self.tell(of(container, why, message));
    }

    /// What the engine says of a container.
    pub(super) fn of_container(&mut self, happened: Happened) {
        match happened {
            Happened::Notice(key, _, notice) => self.noticed(key, notice),
            Happened::OomKill(key, _, kills, usage) => self.killed(key, kills, usage),
            Happened::Hold(key, _, event) => self.held(key, event),
            Happened::Forgotten(key, totals) => {
                self.is_watched(key);
                // Of one that was released nobody asks any more.
                let Some(container) = self.registry.of_key(key) else { return };
                let id = container.id.clone();
                let view = container.view(&Moment {
                    state: State::Ended,
                    usage: None,
                    limit: cgroupfs::Limit::Max,
                    marks: None,
                    totals,
                    oom_kills: container.oom_kills,
                    throttled: None,
                });
                if let Some(container) = self.registry.remove(&id) {
                    self.notes.remove(container.generation);
                    log::info!("container {id} is gone: {}", container.path);
                    self.bury(&container, view, "vanished", "its group was removed");
                    self.not_yet_told(key, container);
                }
            }
            Happened::Throttle(key, _, event) => self.throttled(key, &event),
            Happened::Oom(_, record) => self.oom(&record),
            Happened::Fd(_) | Happened::Usage(..) | Happened::Round(..) | Happened::Asked(..) => {}
            Happened::OomsWatched(key) => self.is_watched(key),
            Happened::OomsRecorded(key) => {
                // One that was gone before the watch could open it, too.
                self.is_watched(key);
                self.registry.is_told(key);
            }
        }
    }

    /// Tasks of a container were killed. It may have ended by now, but for what the OOM watch had yet to say.
    fn killed(&mut self, key: Key, kills: u64, usage: Bytes) {
        let Some((id, generation)) = self.registry.count_kills(key, kills) else { return };
        let detail = serde_json::json!({ "kills": kills, "usage_bytes": usage.0 });
        let message = format!("{kills} killed at {usage}");
        log::warn!("container {id}: out of memory, {message}");
        let (id, generation) = (Some(id), Some(generation));
        self.tell(EventLine { id, generation, detail, ..event("oom_kill", message) });
        let Some(container) = self.registry.of_key(key) else { return };
        if container.terms.oom == OomPolicy::Group {
            let followed = self.engine.kill_all(key);
            let Some(container) = self.registry.of_key(key) else { return };
            let message = format!("{followed} followed: oom = group");
            log::warn!("container {}: {message}", container.id);
            let told = of(container, "group_killed", message);
            self.tell(told);
        }
    }

    fn held(&mut self, key: Key, event: HoldEvent) {
        let Some(container) = self.registry.of_key(key) else { return };
        let message = event.message();
        log::warn!("container {}: {message}", container.id);
        let told = of(container, event.as_str(), message);
        if let HoldEvent::Raised(_) = event {
            // Shares are of the limit.
            let id = container.id.clone();
            self.new_terms(&id);
        }
        self.tell(told);
    }

    /// What is done when memory runs out, as the terms have it.
    fn act_on_oom(&mut self, key: Key, oom: OomPolicy) {
        let hold = match oom {
            OomPolicy::Hold(longest) => Some(OomHold::Raise(longest, self.config.hold_limit)),
            OomPolicy::Freeze(longest) => Some(OomHold::Freeze(longest)),
            OomPolicy::Kill | OomPolicy::Group => None,
        };
        let together = self.engine.kill_together(key, oom == OomPolicy::Group);
        for error in [self.engine.hold(key, hold), together].into_iter().filter_map(Result::err) {
            log::warn!("{error}");
        }
    }

    /// An OOM is on record: whoever follows is told. The container may be gone by now.
    fn oom(&mut self, record: &Record) {
        let cause = record.cause.as_str();
        let victim = match &record.victim {
            Some(victim) => format!(
                ", killed {} ({})",
                victim.pid,
                victim.comm.as_deref().unwrap_or("name unknown")
            ),
            None => String::new(),
        };
        log::warn!(
            "container {}: {cause}{victim}; 'cgctl why {}' tells more",
            record.container,
            record.id
        );
        let told = EventLine {
            id: Some(record.container.clone()),
            detail: serde_json::to_value(record).unwrap_or_default(),
            ..event("oom", format!("{cause}{victim}"))
        };
        self.hooks.run(&self.config.oom_hook, record);
        let now = self.now();
        let line = self.history.add_with_record(now, told, &record.id);
        self.server.publish(&line, &mut self.incoming);
    }

    fn throttled(&mut self, key: Key, event: &ThrottleEvent) {
        let Some(message) = event.message() else { return };
        let Some(container) = self.registry.of_key(key) else { return };
        log::info!("container {}: {message}", container.id);
        let told = of(container, event.name(), message);
        self.tell(told);
    }

    fn noticed(&mut self, key: Key, notice: Notice) {
        let Some(container) = self.registry.of_key(key) else { return };
        let (name, message) = match notice {
            Notice::Adopted(from, to) => {
                ("limit_adopted", format!("somebody set the limit from {from} to {to}: adopted"))
            }
            Notice::StandingAside(why) => ("standing_aside", why.as_str().to_owned()),
            Notice::Resumed => ("resumed", "back at work".to_owned()),
            Notice::Futile(pause) => {
                ("futile", format!("next to nothing was freed; trying again in {pause:.1?}"))
            }
            Notice::Refused(errno, pause) => (
                "refused",
                format!("{}; trying again in {pause:.1?}", nix::errno::Errno::from_raw(errno)),
            ),
        };
        let told = of(container, name, message);
        let id = container.id.clone();
        if name == "limit_adopted" {
            log::info!("container {id}: {}", told.message);
            // Shares are of the limit.
            self.new_terms(&id);
        }
        self.tell(told);
    }

    /// The terms of a container from what is known now.
    pub(super) fn new_terms(&mut self, id: &str) {
        let Some(container) = self.registry.get_mut(id) else { return };
        let key = container.key;
        let Some(limit) = self.engine.declared(key) else { return };
        let operator = self.config.wishes(&container.path, container.from_runtime, limit);
        let operator = container.set.over(operator);
        let (terms, refused) =
            effective(operator, container.annotations, self.config.rights, limit);
        container.refused.retain(|key| !KEYS.contains(&key.as_str()));
        container.refused.extend(refused.into_iter().map(str::to_owned));
        if terms != container.terms {
            container.terms = terms;
            self.engine.note_terms(key, |noted| noted.take(&terms));
            self.engine.set_policy(key, Policy { watermarks: terms.watermark, high: terms.high });
            // What stops all of it at an OOM is not throttled.
            self.act_on_oom(key, terms.oom);
            self.throttle(key, &terms);
        }
    }

    pub(super) fn new_terms_for_all(&mut self) {
        for id in self.registry.ids() {
            self.new_terms(&id);
        }
    }

    /// A container as everybody sees it.
    pub(super) fn view(&self, id: &str) -> Option<View> {
        let container = self.registry.get(id)?;
        let key = container.key;
        // The journal has what was done before us too.
        let counted = self.engine.slot(key).and_then(|slot| slot.record());
        let counted = counted.map(|record| record.counters);
        Some(container.view(&Moment {
            state: self.engine.state(key),
            usage: self.engine.memory(key).and_then(|memory| memory.usage().ok()),
            limit: self.engine.declared(key).unwrap_or(cgroupfs::Limit::Max),
            marks: self.engine.watermarks(key),
            totals: match &counted {
                Some(counted) => counted.totals,
                None => self.engine.totals(key).unwrap_or_default(),
            },
            oom_kills: counted.map_or(0, |counted| counted.oom_kills),
            throttled: self.engine.throttled_in_all(container.key),
        }))
    }

    /// Remembers an event, and tells whoever follows.
    pub(super) fn tell(&mut self, event: EventLine) {
        let now = self.now();
        let line = self.history.add(now, &event);
        self.server.publish(&line, &mut self.incoming);
    }
}

/// What is known of a container that comes.
pub(super) struct About {
    pub(super) id: String,
    pub(super) pid: Option<i32>,
    pub(super) source: Source,
    pub(super) runtime: Option<String>,
    pub(super) oom_score_adj: Option<i32>,
    /// Annotations of ours.
    pub(super) asked: BTreeMap<String, String>,
    /// What the operator set by hand.
    pub(super) set: BTreeMap<String, String>,
    /// When it was registered, if not now.
    pub(super) since_ms: Option<u64>,
    /// Where nothing else says: from the journal.
    pub(super) fallback: Wishes,
}

impl About {
    pub(super) fn new(id: String, source: Source) -> About {
        About {
            id,
            pid: None,
            source,
            runtime: None,
            oom_score_adj: None,
            asked: BTreeMap::new(),
            set: BTreeMap::new(),
            since_ms: None,
            fallback: Wishes::default(),
        }
    }
}

fn of(container: &Container, name: &str, message: impl Into<String>) -> EventLine {
    EventLine {
        id: Some(container.id.clone()),
        generation: Some(container.generation),
        ..event(name, message)
    }
}

/// Those of ours, and the keys of those that do not parse.
fn annotations(all: &BTreeMap<String, String>) -> (Wishes, Vec<String>) {
    let (mut wishes, mut wrong) = (Wishes::default(), Vec::new());
    for (name, value) in all {
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        // "strict" is the hook's.
        if key != "strict" && wishes.set(key, value).is_err() && wrong.len() < KEYS.len() {
            wrong.push(key.escape_default().take(40).collect());
        }
    }
    (wishes, wrong)
}

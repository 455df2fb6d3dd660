//! What is asked over the socket.

use super::Daemon;
use super::registry::Source;
use crate::api::message::{
    self, Listed, One, Reclaimed, Registered, Request, Status, done, refused,
};
use crate::api::server::ClientId;
use crate::core::Outcome;
use crate::driver::{Key, Once};
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Limit};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// No reclaim that is asked for takes longer.
const LONGEST_RECLAIM: Duration = Duration::from_secs(3600);

/// A client that waits for a reclaim.
pub(super) struct Waiting {
    client: ClientId,
    bytes: u64,
    declared: Limit,
    patience: Duration,
    memory: Arc<dyn Memory>,
}

/// Why less than asked was freed, for a person; `None` if it was not less.
pub fn stopped_because(once: &Once, patience: Duration) -> Option<String> {
    if let Some(why) = once.why {
        return Some(why.into());
    }
    let (_, report) = once.report?;
    match report.outcome {
        Outcome::Reached => None,
        Outcome::Exhausted => Some("nothing more can be reclaimed".into()),
        Outcome::Deadline => Some(format!("--timeout of {} s is over", patience.as_secs_f64())),
        Outcome::Cancelled => Some("it was cancelled".into()),
        Outcome::Foreign(limit) => {
            Some(format!("somebody else set the limit to {limit} meanwhile: theirs stands"))
        }
        Outcome::ForeignHigh(high) => {
            Some(format!("somebody else set memory.high to {high} meanwhile: theirs stands"))
        }
        Outcome::Vanished => Some("the cgroup was removed meanwhile".into()),
        Outcome::Failed(errno) => {
            let errno = Errno::from_raw(errno);
            let way_out = match errno {
                Errno::EACCES | Errno::EPERM | Errno::EROFS => "; this needs root",
                _ => "",
            };
            Some(format!("the kernel refuses: {errno}{way_out}"))
        }
    }
}

impl Daemon {
    /// Does what is asked, and answers.
    pub(super) fn request(&mut self, client: ClientId, request: Request) {
        let answer = match request {
            Request::Register(register) => match self.register(&register, Source::Hook) {
                Ok(generation) => return self.registered(client, &register.id, generation),
                Err(why) => {
                    let id: String = register.id.escape_default().take(80).collect();
                    log::warn!("container {id} is refused: {why}");
                    Err(why)
                }
            },
            Request::Release(release) => {
                self.release(&release).map(|generation| done(Registered { generation }))
            }
            Request::List { ended } => Ok(done(Listed { containers: self.list(ended) })),
            Request::Stat { id } => self.one(&id),
            Request::Set { id, terms } => self.set(&id, &terms),
            Request::Reclaim { id, bytes, timeout_ms } => {
                match self.reclaim(client, &id, bytes, timeout_ms) {
                    // The answer comes when it is done.
                    Ok(()) => return,
                    Err(why) => Err(why),
                }
            }
            Request::Events { follow } => return self.events(client, follow),
            Request::Status {} => Ok(done(self.about())),
            Request::Ping {} => Ok(done(serde_json::json!({ "pid": std::process::id() }))),
        };
        let line = answer.unwrap_or_else(|why| refused(&why));
        self.server.answer(client, &line, &mut self.incoming);
    }

    /// A client hung up, or was dropped: what it asked for goes on, for nobody.
    pub(super) fn client_gone(&mut self, client: ClientId) {
        self.asked.retain(|_, waiting| waiting.client != client);
        self.registering.hung_up(client);
    }

    fn reclaim(
        &mut self,
        client: ClientId,
        id: &str,
        bytes: u64,
        timeout_ms: u64,
    ) -> Result<(), String> {
        let id = self.registry.find(id)?;
        let gone = || format!("container {id} is gone");
        let key = self.registry.get(&id).ok_or_else(gone)?.key;
        if bytes == 0 {
            return Err("0 bytes: nothing to reclaim".into());
        }
        let memory = self.engine.memory(key).cloned().ok_or_else(gone)?;
        let patience = Duration::from_millis(timeout_ms).min(LONGEST_RECLAIM);
        let declared = self.engine.declared(key).unwrap_or(Limit::Max);
        if self.asked.contains_key(&key) || !self.engine.reclaim(key, Bytes(bytes), patience) {
            return Err(format!("container {id} is being reclaimed for somebody else: try again"));
        }
        self.asked.insert(key, Waiting { client, bytes, declared, patience, memory });
        Ok(())
    }

    /// A reclaim that was asked for has ended.
    pub(super) fn reclaimed(&mut self, key: Key, once: &Once) {
        let Some(waiting) = self.asked.remove(&key) else { return };
        let Waiting { client, bytes, declared, patience, memory } = waiting;
        let report = once.report.map(|(_, report)| report);
        let usage = memory.usage().unwrap_or_default();
        let limit = memory.limit().unwrap_or(Limit::Max);
        let line = done(Reclaimed {
            asked_bytes: bytes,
            freed_bytes: report.map_or(0, |report| report.freed.0),
            strategy: once.report.map(|(strategy, _)| strategy.as_str().into()),
            stopped_because: stopped_because(once, patience),
            steps: report.map_or(0, |report| report.steps),
            wall_ms: report.map_or(0.0, |report| report.wall.as_secs_f64() * 1000.0),
            cpu_ms: report.map_or(0.0, |report| report.cpu.as_secs_f64() * 1000.0),
            usage_bytes: usage.0,
            limit_bytes: limit.bytes().map(|bytes| bytes.0),
            declared_limit_restored: limit == declared,
            cgroup: memory.dir().path().display().to_string(),
            hierarchy: memory.version().as_str().into(),
        });
        self.server.answer(client, &line, &mut self.incoming);
    }

    fn list(&mut self, ended: bool) -> Vec<message::View> {
        let now = self.now();
        let mut views: Vec<message::View> =
            if ended { self.registry.ended(now).collect() } else { Vec::new() };
        views.extend(self.registry.ids().iter().filter_map(|id| self.view(id)));
        views
    }

    fn one(&mut self, id: &str) -> Result<Vec<u8>, String> {
        let id = self.registry.find(id)?;
        let gone = || format!("container {id} is gone");
        Ok(done(One { container: self.view(&id).ok_or_else(gone)? }))
    }

    fn set(&mut self, id: &str, terms: &BTreeMap<String, String>) -> Result<Vec<u8>, String> {
        let id = self.registry.find(id)?;
        let Some(container) = self.registry.get_mut(&id) else {
            return Err(format!("container {id} is gone"));
        };
        // All of them or none.
        let mut wishes = container.set;
        for (key, value) in terms {
            wishes.set(key, value).map_err(|bad| bad.to_string())?;
        }
        container.set = wishes;
        container.set_texts.extend(terms.clone());
        self.notes.write(container);
        self.new_terms(&id);
        self.one(&id)
    }

    fn events(&mut self, client: ClientId, follow: bool) {
        let now = self.now();
        let mut lines = done(serde_json::json!({ "follow": follow }));
        lines.extend(self.history.lines(now));
        if follow {
            self.server.follow(client);
        }
        self.server.answer(client, &lines, &mut self.incoming);
        if !follow {
            self.server.close(client, &mut self.incoming);
        }
    }

    fn about(&self) -> Status {
        let uptime = self.started.elapsed().as_millis();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            hierarchy: self.host.hierarchy.version.as_str().into(),
            containers: self.registry.len(),
            config: self.config.files.iter().map(|path| path.display().to_string()).collect(),
            config_error: self.config_error.clone(),
            features: self.features.clone(),
        }
    }
}

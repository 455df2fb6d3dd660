//! What is asked over the socket.

use super::Daemon;
use super::registry::Source;
use crate::api::message::{self, Listed, One, Registered, Request, Status, done, refused};
use crate::api::server::ClientId;
use std::collections::BTreeMap;

impl Daemon {
    /// Does what is asked, and answers.
    pub(super) fn request(&mut self, client: ClientId, request: Request) {
        let answer = match request {
            Request::Register(register) => match self.register(&register, Source::Hook) {
                Ok(generation) => Ok(done(Registered { generation })),
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
            Request::Reclaim { .. } => Err("not yet".into()),
            Request::Events { follow } => return self.events(client, follow),
            Request::Status {} => Ok(done(self.about())),
            Request::Ping {} => Ok(done(serde_json::json!({ "pid": std::process::id() }))),
        };
        let line = answer.unwrap_or_else(|why| refused(&why));
        self.server.answer(client, &line, &mut self.incoming);
    }

    /// A client hung up, or was dropped.
    pub(super) fn client_gone(&mut self, _client: ClientId) {}

    fn list(&mut self, ended: bool) -> Vec<message::View> {
        let now = self.now();
        let mut views: Vec<message::View> =
            if ended { self.registry.ended(now).cloned().collect() } else { Vec::new() };
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

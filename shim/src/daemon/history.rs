//! What has happened, for `cgctl events`: the newest events, for an hour.

use crate::api::message::{EventLine, SCHEMA, line};
use crate::core::{Now, Retained};
use std::time::Duration;

/// Events kept (law 10).
const MOST: usize = 1000;
const LONGEST: Duration = Duration::from_secs(3600);

/// The events.
pub(super) struct History(Retained<Box<[u8]>>);

impl History {
    pub(super) fn new() -> History {
        History(Retained::new(MOST, LONGEST))
    }

    /// Remembers one; its line.
    pub(super) fn add(&mut self, now: Now, event: &EventLine) -> Vec<u8> {
        let line = line(event);
        self.0.push(now, line.clone().into_boxed_slice());
        line
    }

    /// The lines, oldest first.
    pub(super) fn lines(&mut self, now: Now) -> Vec<u8> {
        self.0.expire(now);
        self.0.iter().flat_map(|line| line.iter().copied()).collect()
    }
}

/// An event of now.
pub(super) fn event(event: &str, message: impl Into<String>) -> EventLine {
    EventLine {
        schema: SCHEMA,
        at_ms: super::unix_ms(),
        event: event.into(),
        id: None,
        generation: None,
        message: message.into(),
        detail: serde_json::Value::Null,
    }
}

//! What has happened, for `cgctl events`: the newest events, for an hour.
//!
//! Of an OOM's event its record is most. That is in a file by then, and is put back in from there: a thousand
//! lines are to take little room.

use crate::api::message::{EventLine, SCHEMA, line};
use crate::core::{Now, Retained};
use serde_json::value::RawValue;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Events kept (law 10).
const MOST: usize = 1000;
const LONGEST: Duration = Duration::from_secs(3600);

/// The events.
pub(super) struct History {
    kept: Retained<Kept>,
    run_dir: PathBuf,
}

/// In one piece: its line, and after that the id of the record that is its detail, if one is.
struct Kept {
    text: Box<[u8]>,
    line: usize,
}

impl Kept {
    fn new(line: &[u8], record: &str) -> Kept {
        Kept { text: [line, record.as_bytes()].concat().into(), line: line.len() }
    }

    fn line(&self) -> &[u8] {
        &self.text[..self.line]
    }

    fn record(&self) -> Option<&str> {
        std::str::from_utf8(&self.text[self.line..]).ok().filter(|record| !record.is_empty())
    }
}

impl History {
    /// Of none yet. Records are under `run_dir`.
    pub(super) fn new(run_dir: &Path) -> History {
        History { kept: Retained::new(MOST, LONGEST), run_dir: run_dir.to_path_buf() }
    }

    /// Remembers one; its line.
    pub(super) fn add(&mut self, now: Now, event: &EventLine) -> Vec<u8> {
        let line = line(event);
        self.kept.push(now, Kept::new(&line, ""));
        line
    }

    /// Remembers one whose detail is the record of this id; its line.
    pub(super) fn add_with_record(&mut self, now: Now, event: EventLine, record: &str) -> Vec<u8> {
        let whole = line(&event);
        let bare = line(&EventLine { detail: serde_json::Value::Null, ..event });
        let kept = Kept::new(&bare, record);
        if self.whole(&kept).is_some() {
            self.kept.push(now, kept);
        } else {
            // It could not be written, or not as it should be.
            self.kept.push(now, Kept::new(&whole, ""));
        }
        whole
    }

    /// The lines, oldest first.
    pub(super) fn lines(&mut self, now: Now) -> Vec<u8> {
        self.kept.expire(now);
        let mut lines = Vec::new();
        for kept in self.kept.iter() {
            match self.whole(kept) {
                Some(whole) => lines.extend(whole),
                // Its record is gone: an hour ago, or the thousandth before the last.
                None => lines.extend(kept.line()),
            }
        }
        lines
    }

    /// The line with its record as the detail, which comes last.
    fn whole(&self, kept: &Kept) -> Option<Vec<u8>> {
        let path = crate::oom::file(&self.run_dir, kept.record()?);
        let record = std::fs::read(path).ok()?;
        let record: &RawValue = serde_json::from_slice(&record).ok()?;
        let open = kept.line().strip_suffix(b"}\n")?;
        let whole = [open, b",\"detail\":", record.get().as_bytes(), b"}\n"].concat();
        (whole.iter().filter(|byte| **byte == b'\n').count() == 1).then_some(whole)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_is_put_back_in_from_its_file_while_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(crate::oom::directory(dir.path())).unwrap();
        let mut history = History::new(dir.path());
        let record = json!({ "id": "oom-1-2-3", "kills": 1, "victim": { "comm": "\"}\\x0a" } });
        let told = EventLine { detail: record.clone(), ..event("oom", "own_limit") };
        let file = crate::oom::file(dir.path(), "oom-1-2-3");
        std::fs::write(&file, format!("{record}\n")).unwrap();
        let line = history.add_with_record(Duration::ZERO, told.clone(), "oom-1-2-3");
        assert_eq!(serde_json::from_slice::<EventLine>(&line).unwrap(), told);
        let small = history.kept.iter().next().unwrap().line;
        assert!(small < 100, "{small}");
        // One that could not be written is kept whole.
        history.add_with_record(Duration::ZERO, told.clone(), "oom-1-2-4");
        let read = |history: &mut History| -> Vec<EventLine> {
            let lines = history.lines(Duration::ZERO);
            lines
                .trim_ascii()
                .split(|byte| *byte == b'\n')
                .map(|line| serde_json::from_slice(line).unwrap())
                .collect()
        };
        assert_eq!(read(&mut history), [told.clone(), told.clone()]);
        for content in ["", "{", "{\n}"] {
            std::fs::write(&file, content).unwrap();
            assert_eq!(read(&mut history)[0].detail, serde_json::Value::Null, "{content}");
        }
        std::fs::remove_file(&file).unwrap();
        let bare = EventLine { detail: serde_json::Value::Null, ..told.clone() };
        assert_eq!(read(&mut history), [bare, told]);
    }
}

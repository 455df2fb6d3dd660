//! The state that a runtime writes to a hook's standard input. Source: the OCI runtime specification,
//! `runtime.md`, State; runc's and crun's own.

use super::annotations::Annotations;
use crate::api::message::MOST_ID;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::path::PathBuf;

/// A container as its runtime describes it to a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The runtime's id of the container.
    pub id: String,
    /// Its first process as the hook's pid namespace numbers it. Absent once it has ended; crun's 0
    /// (hooks that run in the container) is absent too.
    pub pid: Option<i32>,
    /// Where its `config.json` is.
    pub bundle: Option<PathBuf>,
    /// `creating`, `created`, `running`, `stopped`; crun also says `starting`.
    pub status: Option<String>,
    /// Ours.
    pub annotations: Annotations,
}

/// A state that does not even name a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state on standard input: {0}")]
pub struct BadState(String);

impl State {
    /// Reads a state. Members that are missing, or of another type, are `None`; `notes` says which.
    ///
    /// # Errors
    /// It is not a JSON object, or has no usable `id`.
    pub fn parse(text: &[u8], notes: &mut Vec<String>) -> Result<State, BadState> {
        let raw: Raw<'_> =
            serde_json::from_slice(text).map_err(|error| BadState(error.to_string()))?;
        let id: String = section(raw.id, "id", notes).ok_or(BadState("no id".into()))?;
        if id.is_empty() || id.len() > MOST_ID {
            return Err(BadState(format!("an id of {} bytes, where 1 to {MOST_ID} do", id.len())));
        }
        let annotations = raw.annotations.map(|raw| Annotations::parse(raw, notes));
        Ok(State {
            id,
            pid: section(raw.pid, "pid", notes).filter(|pid| *pid > 0),
            bundle: section(raw.bundle, "bundle", notes),
            status: section(raw.status, "status", notes),
            annotations: annotations.unwrap_or_default(),
        })
    }
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    pid: Option<&'a RawValue>,
    #[serde(borrow)]
    bundle: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    annotations: Option<&'a RawValue>,
}

/// One member, if it is there and of its type.
pub(super) fn section<'a, T: Deserialize<'a>>(
    raw: Option<&'a RawValue>,
    name: &str,
    notes: &mut Vec<String>,
) -> Option<T> {
    serde_json::from_str(raw?.get()).map_err(|error| notes.push(format!("{name}: {error}"))).ok()
}

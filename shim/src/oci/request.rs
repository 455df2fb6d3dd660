//! What a hook asks of the daemon: one line of JSON, on the socket or in the spool.

use super::annotations::Annotations;
use serde::Serialize;
use std::path::Path;

/// Version of the protocol, in every message.
pub const SCHEMA: u32 = 1;

/// A request of the hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request<'a> {
    /// Put a container under policy.
    Register(Register<'a>),
    /// The container has ended.
    Release {
        /// Version of the protocol.
        schema: u32,
        /// The runtime's id.
        id: &'a str,
    },
}

/// A container that is about to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Register<'a> {
    /// Version of the protocol.
    pub schema: u32,
    /// The runtime's id.
    pub id: &'a str,
    /// Its first process.
    pub pid: u32,
    /// When that started, in clock ticks since boot (field 22 of `/proc/PID/stat`): tells it from a
    /// later process of the same number.
    pub start_time: Option<u64>,
    /// Its group in the memory hierarchy, as `/proc/PID/cgroup` shows it.
    pub cgroup: &'a str,
    /// Where its `config.json` is.
    pub bundle: Option<&'a Path>,
    /// `io.cgshim.*`.
    pub annotations: &'a Annotations,
    /// `process.oomScoreAdj` of its specification.
    pub oom_score_adj: Option<i32>,
    /// `runc` or `crun`, where it can be told.
    pub runtime: Option<&'a str>,
}

impl Request<'_> {
    /// The container's id.
    pub fn id(&self) -> &str {
        match self {
            Request::Register(register) => register.id,
            Request::Release { id, .. } => id,
        }
    }

    /// The line, with its newline.
    ///
    /// # Errors
    /// A path that is not UTF-8, which JSON cannot say.
    pub fn line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = Vec::with_capacity(1024);
        serde_json::to_writer(&mut line, self)?;
        line.push(b'\n');
        Ok(line)
    }
}

//! What goes over the socket, and what lies in the spool.
//!
//! Every object has `"schema": 1`. Fields that are not known are ignored, so that an older daemon
//! understands a newer client; an operation that is not known is refused.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of everything here.
pub const SCHEMA: u32 = 1;

/// The longest container id.
pub const MOST_ID: usize = 128;

/// A request line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What is asked for.
    #[serde(flatten)]
    pub request: Request,
}

/// The operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// A container has come.
    Register(Register),
    /// A container has gone, or is not to be enforced any more.
    Release(Release),
    /// Every container.
    List {
        /// Those that have ended too, as long as they are remembered.
        #[serde(default)]
        ended: bool,
    },
    /// One container, by id or a unique prefix of it.
    Stat {
        /// The id.
        id: String,
    },
    /// Changes a container's terms; the operator's word, above configuration and annotations.
    Set {
        /// The id.
        id: String,
        /// `high`, `watermark`, `request`, `class`, `throttle`, `oom`, `way_out`.
        terms: BTreeMap<String, String>,
    },
    /// Takes so many bytes from a container; the answer comes when that is done.
    Reclaim {
        /// The id.
        id: String,
        /// How much.
        bytes: u64,
        /// Give up after so long.
        #[serde(default = "ten_seconds")]
        timeout_ms: u64,
    },
    /// What has happened, one object a line after the answer.
    Events {
        /// And what happens from now on, until the client hangs up.
        #[serde(default)]
        follow: bool,
    },
    /// The daemon itself.
    Status {},
    /// Whether anybody is there.
    Ping {},
}

fn ten_seconds() -> u64 {
    10_000
}

/// A container to be enforced: what the hook knows of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The runtime's id.
    pub id: String,
    /// Its init, in the daemon's pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat` (clock ticks since boot): the pid is that process's.
    #[serde(default)]
    pub start_time: Option<u64>,
    /// Its group in the hierarchy that has the memory controller, as `/proc/PID/cgroup` shows it.
    pub cgroup: String,
    /// The bundle's directory.
    #[serde(default)]
    pub bundle: Option<String>,
    /// The container's annotations; those that do not begin with `io.cgshim.` are ignored.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `process.oomScoreAdj` of the OCI spec.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// Which runtime.
    #[serde(default)]
    pub runtime: Option<String>,
}

/// A container to be let go. With pid or group of another container of that id, nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The runtime's id.
    pub id: String,
    /// As registered.
    #[serde(default)]
    pub pid: Option<i32>,
    /// As registered.
    #[serde(default)]
    pub cgroup: Option<String>,
}

/// The answer to every request, with more fields in it where there is more to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply<T> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub body: Option<T>,
}

/// Answers to register and release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Which registration of the daemon's this is: it rises with every new one.
    pub generation: u64,
}

/// The answer to `list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// By id.
    pub containers: Vec<View>,
}

/// The answer to `stat` and `set`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct One {
    /// The container.
    pub container: View,
}

/// A container as everybody sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The runtime's id, or the directory's name for one that was discovered.
    pub id: String,
    /// Which registration.
    pub generation: u64,
    /// Its group's directory.
    pub cgroup: String,
    /// That directory's inode: with path and boot it is this group and no other.
    pub inode: u64,
    /// Its init, where known.
    pub pid: Option<i32>,
    /// How it came: `hook`, `spool`, `discovery`, `journal`.
    pub source: String,
    /// Which runtime registered it.
    pub runtime: Option<String>,
    /// `guaranteed`, `burstable`, `besteffort`.
    pub class: String,
    /// What is protected.
    pub request_bytes: Option<u64>,
    /// In use now; `null` once it is gone.
    pub usage_bytes: Option<u64>,
    /// The declared limit; `null` for none.
    pub limit_bytes: Option<u64>,
    /// `memory.high` as the terms have it; `null` for none.
    pub high_bytes: Option<u64>,
    /// Where background reclaim starts.
    pub wmark_high_bytes: Option<u64>,
    /// Where it stops.
    pub wmark_low_bytes: Option<u64>,
    /// Whether to throttle above high.
    pub throttle: bool,
    /// `kill`, `group`, `freeze=…`, `hold=…`.
    pub oom: String,
    /// What ends throttling that achieves nothing: `release=30s`, `oom=…`, `notify=…`, `never`.
    #[serde(default)]
    pub way_out: String,
    /// What is going on: see `cgshim::core::State`.
    pub state: String,
    /// Annotations that were refused, by key.
    pub refused: Vec<String>,
    /// When it was registered, Unix time.
    pub since_ms: u64,
    /// When it ended, Unix time.
    pub ended_ms: Option<u64>,
    /// What was done for it.
    pub reclaim: Reclaim,
    /// Tasks killed since it was registered.
    pub oom_kills: u64,
    /// What throttling above high did to it, cgshim's or the kernel's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Throttled>,
}

/// What throttling did to a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Throttled {
    /// Pulses that froze.
    pub pulses: u64,
    /// Time its growing tasks were frozen; on v2, that somebody waited above `memory.high`.
    pub frozen_ms: f64,
    /// Time that they are still to be, for growth that was not paid for yet.
    #[serde(default)]
    pub debt_ms: f64,
    /// That time as a share of the time since it was registered, 0 to 1.
    pub share: f64,
    /// Times the way out ended it.
    pub released: u64,
}

/// What background reclaim did for a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Reclaim {
    /// Jobs.
    pub rounds: u64,
    /// Bytes asked for.
    pub asked_bytes: u64,
    /// Bytes seen to go.
    pub freed_bytes: u64,
    /// CPU time.
    pub cpu_ms: f64,
    /// Jobs that freed next to nothing.
    pub futile: u64,
    /// Writes that reclaimed.
    pub steps: u64,
    /// Times it was let be.
    pub stood_aside: u64,
}

/// The answer to `reclaim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// What was asked for.
    pub asked_bytes: u64,
    /// What was seen to go.
    pub freed_bytes: u64,
    /// How: `limit_step`, `memory_reclaim`, …
    pub strategy: Option<String>,
    /// Why less than asked.
    pub stopped_because: Option<String>,
    /// Writes that reclaimed.
    pub steps: u32,
    /// How long it took.
    pub wall_ms: f64,
    /// CPU time.
    pub cpu_ms: f64,
    /// In use afterwards.
    pub usage_bytes: u64,
    /// The limit afterwards.
    pub limit_bytes: Option<u64>,
    /// Whether that is the declared one.
    pub declared_limit_restored: bool,
    /// The group's directory.
    pub cgroup: String,
    /// `v1` or `v2`.
    pub hierarchy: String,
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its pid.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_ms: u64,
    /// `v1` or `v2`.
    pub hierarchy: String,
    /// Containers that are enforced.
    pub containers: usize,
    /// Files of the configuration in force.
    pub config: Vec<String>,
    /// What is wrong with newer ones.
    pub config_error: Option<String>,
    /// What it has, and lacks, of what it asks the system for: name, whether, why.
    pub features: Vec<Feature>,
}

/// One of the things a daemon asks the system for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// What.
    pub name: String,
    /// `native` where the system gives it, `absent` where not.
    pub support: String,
    /// Why, or how.
    pub why: String,
}

/// One line of the events stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Unix time.
    pub at_ms: u64,
    /// `registered`, `released`, `vanished`, `oom_kill`, …
    pub event: String,
    /// Whose; `null` for the daemon's own.
    pub id: Option<String>,
    /// Which registration of that id.
    pub generation: Option<u64>,
    /// For people.
    pub message: String,
    /// More, as the event has it.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

/// Why a request line was not understood: complete for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

/// Reads a request line.
pub fn parse(line: &[u8]) -> Result<Request, BadRequest> {
    // Depth is bounded by serde_json (128), size by whoever read the line.
    let envelope: Envelope = serde_json::from_slice(line).map_err(|error| {
        let text: String = error.to_string().escape_default().take(200).collect();
        BadRequest(format!("not a request: {text}"))
    })?;
    if envelope.schema != SCHEMA {
        return Err(BadRequest(format!(
            "schema {} is not known here: this daemon speaks {SCHEMA}",
            envelope.schema
        )));
    }
    Ok(envelope.request)
}

/// Whether `id` can be a container's: 1 to [`MOST_ID`] bytes, no control characters, no `/`.
pub fn check_id(id: &str) -> Result<(), BadRequest> {
    let why = if id.is_empty() {
        "is empty"
    } else if id.len() > MOST_ID {
        "is longer than 128 bytes"
    } else if id.chars().any(char::is_control) {
        "has control characters"
    } else if id.contains('/') {
        "has a '/'"
    } else {
        return Ok(());
    };
    let shown: String = id.escape_default().take(80).collect();
    Err(BadRequest(format!("container id '{shown}' {why}")))
}

/// An answer that it was done, as a line.
pub fn done<T: Serialize>(body: T) -> Vec<u8> {
    line(&Reply { schema: SCHEMA, ok: true, error: None, body: Some(body) })
}

/// An answer that it was not, as a line.
pub fn refused(why: &str) -> Vec<u8> {
    line(&Reply::<Registered> { schema: SCHEMA, ok: false, error: Some(why.into()), body: None })
}

/// Any value as a line. What is serialised here has no maps with keys that are not strings and no
/// `Serialize` of its own that fails.
pub fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_else(|error| {
        format!("{{\"schema\":{SCHEMA},\"ok\":false,\"error\":\"{error}\"}}").into_bytes()
    });
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_registration_is_the_documented_line() {
        let line = br#"{"schema":1,"op":"register","id":"c1","pid":12,"start_time":null,
            "cgroup":"/a/b","bundle":null,"annotations":{"io.cgshim.high":"80%"},
            "oom_score_adj":-997,"runtime":"runc"}"#;
        let Ok(Request::Register(register)) = parse(line) else { panic!("register") };
        assert_eq!((register.pid, register.cgroup.as_str()), (12, "/a/b"));
        assert_eq!(register.annotations["io.cgshim.high"], "80%");
        // What a newer client adds, and what an older one leaves out.
        let line = br#"{"op":"register","id":"c","pid":1,"cgroup":"/x","new":[1],"schema":1}"#;
        assert!(matches!(parse(line), Ok(Request::Register(_))));
        assert_eq!(
            parse(br#"{"schema":1,"op":"release","id":"c"}"#),
            Ok(Request::Release(Release { id: "c".into(), ..Release::default() }))
        );
        assert_eq!(parse(br#"{"schema":1,"op":"ping"}"#), Ok(Request::Ping {}));
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        for (line, part) in [
            ("", "EOF"),
            ("[]", "not a request"),
            (r#"{"schema":2,"op":"ping"}"#, "schema 2"),
            (r#"{"op":"ping"}"#, "schema"),
            (r#"{"schema":1,"op":"frob"}"#, "frob"),
            (r#"{"schema":1,"op":"register","id":"c"}"#, "pid"),
            (r#"{"schema":1,"op":"register","id":7,"pid":1,"cgroup":"/"}"#, "invalid type"),
            ("{\"schema\":1,\"op\":\"stat\",\"id\":\"\u{7f}\"", "not a request"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
        let deep =
            format!(r#"{{"schema":1,"op":"ping","x":{}1{}}}"#, "[".repeat(9000), "]".repeat(9000));
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion"));
        assert!(parse(b"{\"schema\":1,\"op\":\"\xff\"}").is_err());
    }

    #[test]
    fn an_answer_is_the_documented_line() {
        assert_eq!(
            done(Registered { generation: 7 }),
            b"{\"schema\":1,\"ok\":true,\"generation\":7}\n"
        );
        assert_eq!(refused("no"), b"{\"schema\":1,\"ok\":false,\"error\":\"no\"}\n");
        let reply: Reply<Registered> = serde_json::from_slice(&refused("no")).unwrap();
        assert_eq!((reply.ok, reply.error.as_deref(), reply.body), (false, Some("no"), None));
    }

    #[test]
    fn ids_that_are_none_are_refused() {
        for id in ["", "a\nb", "a/b", "\u{1b}[2J", &"x".repeat(129)] {
            let error = check_id(id).unwrap_err().to_string();
            assert!(!error.contains('\n') && !error.contains('\u{1b}'), "{error}");
        }
        check_id("3f2a_web-1.é").unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_but_never_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }

        #[test]
        fn whatever_is_asked_reads_back(id in "\\PC{0,20}", pid: i32, adj: Option<i32>) {
            let register = Register { id, pid, oom_score_adj: adj, ..Register::default() };
            let envelope = Envelope { schema: SCHEMA, request: Request::Register(register) };
            prop_assert_eq!(parse(&line(&envelope)), Ok(envelope.request));
        }
    }
}

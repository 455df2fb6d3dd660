//! Asking the daemon: connect, one line out, one line back, all before a deadline.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Deserialize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest reply taken, in bytes.
const LONGEST_REPLY: usize = 64 << 10;

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// Which registration of the id this is.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Why it was not.
    #[serde(default)]
    pub error: Option<String>,
}

/// Why there is no reply: the intent has to wait for a daemon that answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReply {
    /// Nobody listens at the socket, or whoever does takes no more connections.
    #[error("cannot connect to {socket}: {}", refused(*.errno))]
    Unreachable {
        /// The socket.
        socket: String,
        /// The kernel's answer; EAGAIN is a full backlog.
        errno: Errno,
    },
    /// Connected, and then the deadline passed, or the connection ended.
    #[error("no answer from {socket}: {why}")]
    Silent {
        /// The socket.
        socket: String,
        /// What happened instead.
        why: String,
    },
}

/// Sends a line to the daemon at `path` and waits for its reply until `deadline`.
///
/// # Errors
/// [`NoReply`]; the daemon may have got the request all the same.
pub fn ask(path: &Path, line: &[u8], deadline: Instant) -> Result<Reply, NoReply> {
    let name = || path.display().to_string();
    let unreachable = |errno| NoReply::Unreachable { socket: name(), errno };
    let silent = |why: String| NoReply::Silent { socket: name(), why };
    let address = UnixAddr::new(path).map_err(unreachable)?;
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(unreachable)?;
    // A full backlog makes connect wait, for as long as a send may (unix_stream_connect()).
    patience(&stream, deadline).map_err(unreachable)?;
    connect(stream.as_raw_fd(), &address).map_err(unreachable)?;

    let mut sent = 0;
    while sent < line.len() {
        patience(&stream, deadline).map_err(|errno| silent(errno.desc().into()))?;
        match send(stream.as_raw_fd(), &line[sent..], MsgFlags::MSG_NOSIGNAL) {
            Ok(n) => sent += n,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(silent(said(errno).into())),
        }
    }
    let mut reply = Vec::with_capacity(256);
    let mut buffer = [0; 1024];
    while !reply.contains(&b'\n') {
        patience(&stream, deadline).map_err(|errno| silent(said(errno).into()))?;
        match recv(stream.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Err(silent("it closed the connection".into())),
            Ok(n) => reply.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(silent(said(errno).into())),
        }
        if reply.len() > LONGEST_REPLY {
            return Err(silent(format!("a reply of more than {LONGEST_REPLY} bytes")));
        }
    }
    let end = reply.iter().position(|byte| *byte == b'\n').unwrap_or(reply.len());
    serde_json::from_slice(&reply[..end]).map_err(|error| silent(format!("a bad reply: {error}")))
}

/// EAGAIN is a queue of connections that stayed full.
fn refused(errno: Errno) -> &'static str {
    if errno == Errno::EAGAIN { "it takes no more connections" } else { errno.desc() }
}

/// EAGAIN is what a passed timeout looks like.
fn said(errno: Errno) -> &'static str {
    if errno == Errno::EAGAIN { "it did not answer in time" } else { errno.desc() }
}

/// Lets the next operation on `stream` take until `deadline`; EAGAIN if that has passed.
fn patience(stream: &OwnedFd, deadline: Instant) -> Result<(), Errno> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_micros(1) {
        // A timeout of zero would be none at all.
        return Err(Errno::EAGAIN);
    }
    let left = TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap_or(i64::MAX));
    setsockopt(stream, sockopt::SendTimeout, &left)?;
    setsockopt(stream, sockopt::ReceiveTimeout, &left)
}

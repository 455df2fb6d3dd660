//! The daemon's unix socket: one JSON object a line, one answer a request, in order.
//!
//! `message` is what goes over it, `server` the daemon's end, `client` everybody else's.

pub mod client;
pub mod message;
pub mod server;

/// Where the run directory is unless told otherwise.
pub const RUN_DIR: &str = "/run/cgshim";

/// The socket's name in the run directory.
pub const SOCKET: &str = "cgshim.sock";

/// The spool's name in the run directory: requests for a daemon that was not there.
pub const SPOOL: &str = "spool";

/// The longest request, its newline included.
pub const MOST_REQUEST: usize = 64 << 10;

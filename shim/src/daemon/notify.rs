//! What systemd is told: sd_notify(3) over the socket that it names. Nothing where it names none.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager, if there is one.
pub(super) struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear from us.
    watchdog: Option<Duration>,
}

impl Notify {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub(super) fn from_env() -> Notify {
        let socket = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(&name),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        });
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0);
        Notify { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// How often to send `WATCHDOG=1`: twice as often as is wanted.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.socket.as_ref()?;
        self.watchdog.map(|period| period / 2)
    }

    /// Sends lines such as `READY=1`. Systemd being gone is no reason to fail.
    pub(super) fn send(&self, lines: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(lines.as_bytes(), address)
        {
            log::debug!("sd_notify: {error}");
        }
    }
}

//! A configuration that changes: by SIGHUP, and by inotify on its directories. A bad one keeps the old
//! one in force, and what is wrong with it is said.

use super::Daemon;
use super::config::{CONFIG, Config, drop_ins};
use super::history::event;
use inotify::{Inotify, WatchMask};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An editor writes in several steps: quiet for so long is done.
const SETTLE: Duration = Duration::from_millis(200);

/// The directories of the configuration, watched.
pub(super) struct Watcher {
    inotify: Inotify,
    directories: Vec<PathBuf>,
    at: Option<Instant>,
}

impl Watcher {
    pub(super) fn new(path: Option<&Path>) -> io::Result<Watcher> {
        let main = path.unwrap_or(Path::new(CONFIG));
        let mut directories = vec![drop_ins(main)];
        directories.extend(main.parent().map(|parent| match parent.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => parent.to_path_buf(),
        }));
        let watcher = Watcher { inotify: Inotify::init()?, directories, at: None };
        watcher.watch();
        Ok(watcher)
    }

    /// Watches what is there by now. A directory that is not is seen when its parent changes, or with
    /// SIGHUP.
    fn watch(&self) {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::ONLYDIR;
        for directory in &self.directories {
            let _ = self.inotify.watches().add(directory, mask);
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Something changed.
    pub(super) fn changed(&mut self, now: Instant) {
        let mut buffer = [0; 4096];
        while self.inotify.read_events(&mut buffer).is_ok_and(|events| events.count() > 0) {}
        self.at = Some(now + SETTLE);
    }

    /// When it is to be read again.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether it is time.
    pub(super) fn due(&mut self, now: Instant) -> bool {
        let due = self.at.is_some_and(|at| at <= now);
        if due {
            self.at = None;
            self.watch();
        }
        due
    }
}

impl Daemon {
    /// Reads the configuration again. `asked`: by a person, who is told even if nothing changed.
    pub(super) fn reload(&mut self, asked: bool) {
        if asked {
            let mut monotonic = String::new();
            if let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
                let usec = time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000;
                monotonic = format!("\nMONOTONIC_USEC={usec}");
            }
            self.notify.send(&format!("RELOADING=1{monotonic}"));
        }
        match Config::load(self.options.config.as_deref()) {
            Ok(config) => {
                let recovered = self.config_error.take().is_some();
                if config != self.config {
                    log::info!("new configuration from {} files", config.files.len());
                    self.config = config;
                    self.tell(event("config_reloaded", "the configuration was read again"));
                    self.new_terms_for_all();
                    self.discover_anew();
                } else if asked || recovered {
                    log::info!("the configuration is as it was");
                }
            }
            Err(error) => {
                let message = format!("{error}; the configuration from before stays in force");
                if self.config_error.as_deref() != Some(message.as_str()) {
                    log::error!("{message}");
                    self.tell(event("config_refused", message.clone()));
                }
                self.config_error = Some(message);
            }
        }
        if asked {
            self.notify.send("READY=1");
        }
    }
}

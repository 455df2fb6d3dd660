//! The operator's program that is run for every OOM: `oom_hook` in the configuration. It gets the record as
//! JSON on its standard input, the container's id in `CGSHIM_CONTAINER`, the record's in `CGSHIM_RECORD` and
//! the cause in `CGSHIM_CAUSE`; with the daemon's few capabilities, and no more than a few at a time.

use crate::core::oom::Record;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// So many at a time; for an OOM beyond that none is run, which is said.
const MOST: usize = 8;

/// One that takes longer is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Those that run.
#[derive(Default)]
pub(super) struct OomHooks {
    running: Vec<(Child, Instant)>,
}

impl OomHooks {
    /// Runs `command` for a record; nothing if that is empty.
    pub(super) fn run(&mut self, command: &[String], record: &Record) {
        let Some((program, arguments)) = command.split_first() else { return };
        self.reap();
        if self.running.len() >= MOST {
            log::warn!("oom_hook: {MOST} of them run already; none for {}", record.id);
            return;
        }
        let started = Command::new(program)
            .args(arguments)
            .env("CGSHIM_CONTAINER", &record.container)
            .env("CGSHIM_RECORD", &record.id)
            .env("CGSHIM_CAUSE", record.cause.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => return log::warn!("oom_hook: {program}: {error}"),
        };
        // It is not to be spared by the OOM killer as the daemon is.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
        if let Some(mut stdin) = child.stdin.take() {
            // A record is shorter than a pipe holds (64 KiB): this does not wait for its reader.
            let json = serde_json::to_vec(record).unwrap_or_default();
            if json.len() < 60_000 {
                let _ = stdin.write_all(&json);
            }
        }
        self.running.push((child, Instant::now() + PATIENCE));
    }

    /// When [`OomHooks::reap`] is due.
    pub(super) fn timeout(&self, now: Instant) -> Option<Duration> {
        let until = self.running.iter().map(|(_, until)| *until).min()?;
        // A child that has ended wakes nobody: soon enough for a zombie.
        Some(until.saturating_duration_since(now).min(Duration::from_secs(1)))
    }

    /// Takes in those that have ended, and ends those that take too long.
    pub(super) fn reap(&mut self) {
        let now = Instant::now();
        self.running.retain_mut(|(child, until)| match child.try_wait() {
            Ok(None) if now < *until => true,
            Ok(None) => {
                log::warn!("oom_hook: killed after {} s", PATIENCE.as_secs());
                let _ = child.kill();
                let _ = child.wait();
                false
            }
            _ => false,
        });
    }
}

impl Drop for OomHooks {
    fn drop(&mut self) {
        for (child, _) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

//! A task from the outside: a process that is told what to do, and answers or not.

use super::{load, readable};
use crate::Filled;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// SIGKILL, as a bit of `ShdPnd`.
const SIGKILL_BIT: u64 = 1 << 8;

pub(super) struct Child {
    process: std::process::Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Child {
    pub(super) fn start() -> io::Result<Child> {
        let mut process = Command::new(std::env::current_exe()?)
            .env(load::ENVIRONMENT, "1")
            // Each allocation of a task is a mapping of its own, and goes when it is freed.
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let missing = || io::Error::other("a pipe is missing");
        let orders = process.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(process.stdout.take().ok_or_else(missing)?);
        let mut child = Child { process, orders, answers };
        // It is up, and has done everything once that it will do again.
        child.tell(load::FREE)?;
        match child.answer(Duration::from_secs(60)) {
            Filled::All => Ok(child),
            other => Err(io::Error::other(format!("it did not come up: {other:?}"))),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn tell(&mut self, order: &str) -> io::Result<()> {
        writeln!(self.orders, "{order}")
    }

    pub(super) fn answer(&mut self, patience: Duration) -> Filled {
        if self.answers.buffer().is_empty() && !readable(self.answers.get_ref(), patience) {
            return Filled::NotYet;
        }
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(n) if n > 0 => load::parse_answer(&line).unwrap_or(Filled::Died),
            _ => {
                self.reap();
                Filled::Died
            }
        }
    }

    pub(super) fn kill(&mut self) {
        let _ = self.process.kill();
    }

    pub(super) fn alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    pub(super) fn kill_is_pending(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        pending
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & SIGKILL_BIT != 0)
    }

    /// Waits for its end, 10 s at most.
    fn reap(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

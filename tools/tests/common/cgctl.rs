//! `cgctl` and `memload` as the host tests start them.

#![allow(dead_code, clippy::unwrap_used)] // as in common/mod.rs

use crate::common::Ground;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// No command of these tests takes longer, or it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// `cgctl`: in the machines of the kernel matrix it is not where Cargo put it.
pub(crate) fn cgctl() -> Command {
    Command::new(std::env::var_os("CGCTL").unwrap_or(env!("CARGO_BIN_EXE_cgctl").into()))
}

/// Where `memload` is.
pub(crate) fn memload() -> String {
    std::env::var("MEMLOAD").unwrap_or(env!("CARGO_BIN_EXE_memload").into())
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) output: Output,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) wall: Duration,
}

impl Ran {
    pub(crate) fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// The report: the line of standard error that is an object.
    pub(crate) fn report(&self) -> Value {
        let line = self.stderr.lines().find(|line| line.starts_with('{'));
        let line = line.unwrap_or_else(|| panic!("no report: {self:?}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The only object on standard output.
    pub(crate) fn object(&self) -> Value {
        serde_json::from_str(self.stdout.trim()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It failed with `code`, and its message has all of `parts`.
    pub(crate) fn assert_failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code(), Some(code), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:?}");
        }
        assert!(self.stdout.is_empty(), "{self:?}");
    }
}

/// Runs a command to its end; kills it, and fails, when that takes too long.
pub(crate) fn finish(mut command: Command) -> Ran {
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = Pid::from_raw(child.id() as i32);
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let output = match receive.recv_timeout(PATIENCE) {
        Ok(output) => output.unwrap(),
        Err(RecvTimeoutError::Timeout) => {
            // SIGTERM lets cgctl clean up.
            let _ = kill(pid, Signal::SIGTERM);
            let _ = receive.recv_timeout(Duration::from_secs(10));
            let _ = kill(pid, Signal::SIGKILL);
            panic!("{command:?}: not over after {PATIENCE:?}");
        }
        Err(error) => panic!("{error}"),
    };
    Ran {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        output,
        wall: start.elapsed(),
    }
}

/// `cgctl run` with the test's group as the parent; `options` is split at white space.
pub(crate) fn run_command(ground: &Ground, options: &str, words: &[&str]) -> Command {
    let mut command = cgctl();
    command.args(["run", "--parent"]).arg(ground.path()).args(options.split_whitespace());
    command.arg("--").args(words);
    command
}

/// The same, to its end.
pub(crate) fn run(ground: &Ground, options: &str, words: &[&str]) -> Ran {
    finish(run_command(ground, options, words))
}

/// The same with a script for `sh`.
pub(crate) fn run_sh(ground: &Ground, options: &str, script: &str) -> Ran {
    run(ground, options, &["sh", "-c", script])
}

/// A command of `cgctl` other than run, `words` split at white space.
pub(crate) fn cgctl_line(words: &str) -> Ran {
    let mut command = cgctl();
    command.args(words.split_whitespace());
    finish(command)
}

/// A directory that goes when dropped.
pub(crate) struct Scratch(pub(crate) tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    pub(crate) fn file(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.0.path().join(name.as_ref())
    }
}

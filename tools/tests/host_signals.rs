//! Signals and the command of `cgctl run`: it handles its own, and has those that cgctl is sent.

// The helpers below fail the test that called them.
#![allow(clippy::unwrap_used)]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

fn run(command: &[&str]) -> Command {
    let program = std::env::var("CGCTL").unwrap_or_else(|_| env!("CARGO_BIN_EXE_cgctl").into());
    let mut run = Command::new(program);
    run.args(["run", "--quiet", "--"]).args(command).stdin(Stdio::null()).stdout(Stdio::piped());
    run
}

/// Says so where no cgroup can be made.
fn may_run(test: &str) -> bool {
    let output = run(&["true"]).output().unwrap();
    if output.status.success() {
        return true;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {}", said.trim());
    false
}

#[test]
fn the_command_starts_with_no_signal_blocked_that_was_not_before() {
    if !may_run("the_command_starts_with_no_signal_blocked_that_was_not_before") {
        return;
    }
    let blocked = |status: &str| {
        status.lines().find(|line| line.starts_with("SigBlk")).unwrap_or_default().to_owned()
    };
    let ours = Command::new("cat").arg("/proc/self/status").output().unwrap();
    let its = run(&["cat", "/proc/self/status"]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(blocked(&text(&its.stdout)), blocked(&text(&ours.stdout)));
}

#[test]
fn a_signal_sent_to_cgctl_ends_the_command_and_shows_in_the_exit_code() {
    if !may_run("a_signal_sent_to_cgctl_ends_the_command_and_shows_in_the_exit_code") {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut cgctl = run(&["sh", "-c", "echo started; exec sleep 60"]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(cgctl.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        kill(Pid::from_raw(cgctl.id() as i32), signal).unwrap();
        assert_eq!(cgctl.wait().unwrap().code(), Some(128 + signal as i32), "{signal}");
    }
}

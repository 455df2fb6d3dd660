//! Signals and the terminal: the command gets them once, and nothing is left behind.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgctl::{Scratch, run_command};
use common::{Ground, memory, until};
use nix::fcntl::{OFlag, open};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, setsid, ttyname};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

fn lines(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

/// A script that notes each signal it gets in `log`, and ends with 40 at SIGTERM.
fn noting(log: &Path) -> String {
    format!(
        "for s in INT HUP USR1 USR2 QUIT; do trap \"echo $s >>{0}\" $s; done
         trap 'echo TERM >>{0}; exit 40' TERM
         echo ready >>{0}
         while :; do sleep 0.05; done",
        log.display()
    )
}

#[test]
fn signals_sent_to_cgctl_reach_the_command_each_once() {
    let test = "signals_sent_to_cgctl_reach_the_command_each_once";
    let Some(ground) = Ground::new(test) else { return };
    let scratch = Scratch::new();
    let log = scratch.file("log");
    let script = noting(&log);
    let mut command = run_command(&ground, "--limit 64M", &["sh", "-c", &script]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    until("the command runs", SOON, || lines(&log) == 1);
    let mut expected = String::from("ready\n");
    for signal in
        [Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT]
    {
        kill(pid_of(&child), signal).unwrap();
        expected += &format!("{}\n", &signal.as_str()[3..]);
        let count = expected.lines().count();
        until(signal.as_str(), SOON, || lines(&log) >= count);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(fs::read_to_string(&log).unwrap(), expected);
    kill(pid_of(&child), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(40));
    assert_eq!(fs::read_to_string(&log).unwrap(), expected + "TERM\n");
    assert_eq!(ground.groups(), [""; 0]);
}

#[test]
fn a_command_that_a_signal_ends_ends_cgctl_with_128_and_its_number() {
    let test = "a_command_that_a_signal_ends_ends_cgctl_with_128_and_its_number";
    let Some(ground) = Ground::new(test) else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut command = run_command(&ground, "--limit 64M --name ended", &["sleep", "1000"]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let procs = ground.path().join("ended/cgroup.procs");
        let comm = || {
            let procs = fs::read_to_string(&procs).unwrap_or_default();
            fs::read_to_string(format!("/proc/{}/comm", procs.trim())).unwrap_or_default()
        };
        until("sleep runs", SOON, || comm() == "sleep\n");
        kill(pid_of(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
        assert_eq!(ground.groups(), [""; 0]);
    }
}

#[test]
fn a_signal_at_any_moment_leaves_no_group_behind() {
    let Some(ground) = Ground::new("a_signal_at_any_moment_leaves_no_group_behind") else { return };
    for run in 0..60u64 {
        let mut command = run_command(&ground, "--limit 64M -q", &["sleep", "1000"]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(run * 250));
        kill(pid_of(&child), Signal::SIGTERM).unwrap();
        until("cgctl ends", SOON, || child.try_wait().unwrap().is_some());
        assert_eq!(ground.groups(), [""; 0], "after {} µs", run * 250);
    }
}

#[test]
fn the_command_starts_with_no_signal_blocked_or_ignored_by_us() {
    let Some(ground) = Ground::new("the_command_starts_with_no_signal_blocked_or_ignored_by_us")
    else {
        return;
    };
    let ran = cgctl::run(&ground, "--limit 64M", &["cat", "/proc/self/status"]);
    let mask = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        // Above are glibc's own and the real-time ones.
        u64::from_str_radix(line.trim(), 16).unwrap() & 0x7fff_ffff
    };
    // But for those that we were started with; SIGPIPE is ignored by every Rust program.
    let ours = fs::read_to_string("/proc/self/status").unwrap();
    let inherited = mask(&ours, "SigIgn:") & !(1 << (Signal::SIGPIPE as i32 - 1));
    assert_eq!(mask(&ran.stdout, "SigBlk:"), 0, "{ran:?}");
    assert_eq!(mask(&ran.stdout, "SigIgn:"), inherited, "{ran:?}");
}

/// A terminal with an interactive shell on it.
struct Terminal {
    keyboard: File,
    shell: Child,
}

impl Terminal {
    fn new() -> Terminal {
        let pty = openpty(None, None).unwrap();
        let path = ttyname(&pty.slave).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut shell = Command::new("sh");
        shell.arg("-i").stdin(stdio()).stdout(stdio()).stderr(stdio());
        before_exec(&mut shell, move || {
            setsid()?;
            // The first terminal that a session's leader opens is the session's.
            drop(open(&path, OFlag::O_RDWR, Mode::empty())?);
            Ok(())
        });
        let terminal = Terminal { keyboard: File::from(pty.master), shell: shell.spawn().unwrap() };
        let mut screen = terminal.keyboard.try_clone().unwrap();
        // Until the last one has closed it (EIO).
        std::thread::spawn(move || while screen.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
        terminal
    }

    fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// In the child before it starts the program.
fn before_exec(
    command: &mut Command,
    action: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the action above is system calls on values that it owns.
    unsafe { command.pre_exec(action) };
}

#[test]
fn on_a_terminal_ctrl_c_reaches_the_command_once_and_ctrl_z_stops_both() {
    let test = "on_a_terminal_ctrl_c_reaches_the_command_once_and_ctrl_z_stops_both";
    let Some(ground) = Ground::new(test) else { return };
    let mut terminal = Terminal::new();
    let scratch = Scratch::new();
    let (log, code, script) = (scratch.file("log"), scratch.file("code"), scratch.file("script"));
    fs::write(&script, noting(&log)).unwrap();
    let script = script.to_str().unwrap().to_owned();
    let run = run_command(&ground, "--limit 64M --name tty --quiet", &["sh", &script]);
    let mut line = String::from(run.get_program().to_str().unwrap());
    for word in run.get_args() {
        line += &format!(" {}", word.to_str().unwrap());
    }
    terminal.keys(&format!("{line}\n"));
    until("the command runs", SOON, || lines(&log) == 1);
    terminal.keys("\x03");
    until("SIGINT comes", SOON, || lines(&log) == 2);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(fs::read_to_string(&log).unwrap(), "ready\nINT\n", "once, and it goes on");

    // Ctrl-Z stops cgctl and command, with nothing lowered; fg takes both up again.
    let group = ground.dir.child("tty").unwrap();
    let group = std::sync::Arc::new(group);
    let declared = memory(&group).limit().unwrap();
    let command = group.procs().unwrap()[0];
    let parent = stat_field(command, 1).parse().unwrap();
    terminal.keys("\x1a");
    let stopped = |pid| stat_field(pid, 0) == "T";
    until("both stop", SOON, || stopped(command) && stopped(parent));
    assert_eq!(memory(&group).limit().unwrap(), declared);
    terminal.keys(&format!("fg; echo $? >{}\n", code.display()));
    until("both go on", SOON, || !stopped(command) && !stopped(parent));
    terminal.keys("\x03");
    until("SIGINT comes again", SOON, || lines(&log) == 3);

    kill(Pid::from_raw(parent), Signal::SIGTERM).unwrap();
    until("it ends", SOON, || lines(&code) == 1);
    assert_eq!(fs::read_to_string(&code).unwrap(), "40\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "ready\nINT\nINT\nTERM\n");
    assert_eq!(ground.groups(), [""; 0]);
}

/// A field of /proc/PID/stat after the name: 0 is the state, 1 the parent.
fn stat_field(pid: i32, n: usize) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(n).unwrap().into()
}

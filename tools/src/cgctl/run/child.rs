//! The command: started inside its group, and sent the signals that we are sent.
//!
//! It stays in our process group, as under `env` or `nice`: the terminal's own signals reach it without
//! us, job control works as for any command, and so do pipelines. Signals that a *process* sends to us
//! are forwarded; those of the terminal are not, for the command has had them.

use super::super::error::{Failure, NOT_EXECUTABLE, NOT_FOUND, RUN_FAILED};
use super::Spec;
use super::group::RunGroup;
use cgroupfs::Limit;
use cgroupfs::files::Access;
use cgshim::driver::Engine;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

/// Signals that are passed on.
const FORWARDED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Signals that mean to end the command, and whoever waits for it.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// The running command.
pub(super) struct Child {
    pid: Pid,
    signals: SignalFd,
    told_to_end: Option<Signal>,
    _mask: Blocked,
}

/// The signals that we wait for.
fn waited_for() -> SigSet {
    let mut mask = SigSet::empty();
    for signal in FORWARDED.into_iter().chain([Signal::SIGCHLD, Signal::SIGTSTP]) {
        mask.add(signal);
    }
    mask
}

/// Blocks them before there is a command: one that comes is taken once it runs.
pub(super) fn block() -> Result<Blocked, Failure> {
    Blocked::new(&waited_for()).map_err(|errno| {
        Failure::new(RUN_FAILED, format!("cannot block signals: {}", errno.desc()))
    })
}

/// The signals that we wait for by signalfd are blocked while this lives.
pub(super) struct Blocked {
    before: SigSet,
}

impl Blocked {
    fn new(mask: &SigSet) -> nix::Result<Blocked> {
        mask.thread_swap_mask(SigmaskHow::SIG_BLOCK).map(|before| Blocked { before })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// The exit code that stands for it: the command's own, or 128+N.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Ended::Code(code) => (code & 0xff) as u8,
            Ended::Signal(signal) => (128 + signal).clamp(0, 255) as u8,
        }
    }
}

impl Child {
    /// Starts the command of `spec` in `group`; from its first instruction on it is charged there, and behind
    /// the `door` of its throttle.
    pub(super) fn start(
        spec: &mut Spec,
        group: &RunGroup,
        door: Option<OwnedFd>,
        engine: &Engine,
    ) -> Result<Child, Failure> {
        let refused = |what: &str, errno: Errno| {
            Failure::new(RUN_FAILED, format!("cannot {what}: {}", errno.desc()))
        };
        let mask = waited_for();
        let blocked = Blocked::new(&mask).map_err(|errno| refused("block signals", errno))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|errno| refused("make a signalfd", errno))?;
        engine.watch(signals.as_fd(), 0).map_err(|error| Failure::from(error).code(RUN_FAILED))?;

        let procs = group
            .group()
            .open_fd("cgroup.procs", Access::Write)
            .map_err(|error| Failure::from(error).code(RUN_FAILED))?;
        let procs_fd = procs.as_raw_fd();
        let door_fd = door.as_ref().map(AsRawFd::as_raw_fd);
        let mut command = Command::new(&spec.command[0]);
        command.args(&spec.command[1..]);
        if let Some(stdout) = spec.stdout.take() {
            command.stdout(Stdio::from(stdout));
        }
        // The command gets the mask that we were started with: it handles its signals itself.
        let inherited = super::super::inherited_mask();
        crate::sys::before_exec(&mut command, move || {
            crate::sys::set_mask(&inherited)?;
            if let Some(door) = door_fd {
                // Refused, it is moved later on, as others are.
                let _ = crate::sys::join_group(door);
            }
            crate::sys::join_group(procs_fd)
        });
        let started = command.spawn();
        drop((procs, door));
        let program = spec.command[0].to_string_lossy();
        match started {
            Ok(child) => Ok(Child {
                pid: Pid::from_raw(child.id() as i32),
                signals,
                told_to_end: None,
                _mask: blocked,
            }),
            Err(error) => Err(match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT) if !program.contains('/') => {
                    Failure::new(NOT_FOUND, format!("{program}: command not found; is it in PATH?"))
                }
                Some(Errno::ENOENT) => Failure::new(
                    NOT_FOUND,
                    format!("{program}: no such file (or its interpreter is missing)"),
                ),
                Some(Errno::EACCES | Errno::ENOEXEC | Errno::EISDIR | Errno::ENOTDIR) => {
                    Failure::new(NOT_EXECUTABLE, format!("{program}: cannot be executed: {error}"))
                }
                Some(Errno::ENOMEM) if spec.limit != Limit::Max => Failure::new(
                    RUN_FAILED,
                    format!("{program}: not even its start fits under --limit {}", spec.limit),
                ),
                _ => Failure::new(RUN_FAILED, format!("cannot start {program}: {error}")),
            }),
        }
    }

    /// The command's process.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Handles the signals that came; `Some` once the command has ended. `before_stop` is called before
    /// we stop for job control.
    pub(super) fn signals(
        &mut self,
        mut before_stop: impl FnMut(),
    ) -> Result<Option<Ended>, Failure> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            if ENDING.contains(&signal) {
                self.told_to_end = Some(signal);
            }
            match signal {
                Signal::SIGCHLD => {}
                Signal::SIGTSTP => {
                    before_stop();
                    if info.ssi_code != SI_KERNEL {
                        let _ = kill(self.pid, Signal::SIGTSTP);
                    }
                    stop_ourselves();
                }
                // The terminal sent it to the whole foreground process group. But a hangup goes to the
                // session's leader alone, which may be us; twice does no harm.
                _ if info.ssi_code == SI_KERNEL && signal != Signal::SIGHUP => {}
                _ => {
                    let _ = kill(self.pid, signal);
                }
            }
        }
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Ended::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Ended::Signal(signal as i32))),
            Ok(_) | Err(Errno::EINTR) => Ok(None),
            Err(errno) => {
                Err(Failure::new(RUN_FAILED, format!("cannot wait for the command: {errno}")))
            }
        }
    }
}

impl Child {
    /// The signal that told us, and so the command, to end; the last of them.
    pub(super) fn told_to_end(&self) -> Option<Signal> {
        self.told_to_end
    }
}

/// Stops as a program stops that knows nothing of SIGTSTP: the kernel discards it where nobody could
/// continue us (an orphaned process group).
fn stop_ourselves() {
    let mut tstp = SigSet::empty();
    tstp.add(Signal::SIGTSTP);
    let _ = raise(Signal::SIGTSTP);
    let _ = tstp.thread_unblock();
    let _ = tstp.thread_block();
}

/// `si_code` of a signal that the kernel itself sent (sigaction(2)): the terminal's.
const SI_KERNEL: i32 = 0x80;

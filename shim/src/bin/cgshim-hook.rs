//! `cgshim-hook STAGE < state.json`: the OCI hook. No child, a second at the most.

use cgshim::oci::hook::{self, Stage};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: cgshim-hook [--run-dir DIR] STAGE < state.json

An OCI hook: createRuntime (or prestart) registers the container with cgshimd, poststop releases it;
other stages do nothing. Without a daemon the request waits in DIR/spool. The exit code is 0, so that the
container starts whatever happens here; 1 only if it is not registered and its annotation
io.cgshim.strict is true; 2 for wrong usage on a terminal.

  --run-dir DIR   where cgshimd is found [default: $CGSHIM_RUN_DIR, or /run/cgshim]

Runtimes call it: cgctl install podman (or crio, containerd, docker), or cgctl hook inject BUNDLE. By hand:
  runc state web | cgshim-hook createRuntime
";

fn main() -> ExitCode {
    let deadline = Instant::now() + hook::PATIENCE;
    std::panic::set_hook(Box::new(|panic| {
        // A defect of ours must not keep a container from starting.
        let _ = writeln!(std::io::stderr(), "cgshim-hook: internal error: {panic}");
        std::process::exit(0);
    }));
    let (stage, run_dir) = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            let _ = write!(std::io::stderr(), "cgshim-hook: {why}\n{USAGE}");
            // A person is told by the exit code; a runtime would give the container up.
            return ExitCode::from(if std::io::stdin().is_terminal() { 2 } else { 0 });
        }
    };
    let state = match state(Instant::now() + hook::STATE_PATIENCE) {
        Ok(state) => state,
        Err(why) => {
            say(&format!("cgshim-hook: the state on standard input: {why}\n"), deadline);
            return ExitCode::SUCCESS;
        }
    };
    let report = hook::run(stage, &state, &run_dir, deadline);
    say(&report.message(), deadline);
    ExitCode::from(u8::from(report.fails()))
}

/// The most of a message, of its end: what a pipe that is ready takes without waiting for its reader (PIPE_BUF).
const MOST_SAID: usize = 4096;

/// How long a reader of standard error is waited for.
const MOST_WAIT_TO_SAY: Duration = Duration::from_millis(100);

/// Writes to standard error, unless nobody reads there: a runtime that does not must not hang here.
fn say(message: &str, deadline: Instant) {
    if message.is_empty() {
        return;
    }
    let stderr = std::io::stderr();
    let end = &message.as_bytes()[message.len().saturating_sub(MOST_SAID)..];
    let left = deadline.saturating_duration_since(Instant::now()).min(MOST_WAIT_TO_SAY);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) {
        let _ = (&stderr).write_all(end);
    }
}

/// Stage and run directory; `None` when there is nothing more to do.
fn arguments() -> Result<Option<(Stage, PathBuf)>, String> {
    let mut stage = None;
    let mut run_dir = None;
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--help" | "-h") => {
                print!("{USAGE}");
                return Ok(None);
            }
            Some("--version" | "-V") => {
                println!("cgshim-hook {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Some("--run-dir") => run_dir = Some(words.next().ok_or("--run-dir: which?")?),
            Some(name) if stage.is_none() => {
                let parsed = name.parse::<Stage>();
                stage = Some(parsed.map_err(|()| format!("no stage '{}'", name.escape_debug()))?);
            }
            _ => {
                return Err(format!("'{}' is one too many", word.to_string_lossy().escape_debug()));
            }
        }
    }
    let stage = stage.ok_or("no stage")?;
    let run_dir = run_dir.map(PathBuf::from);
    Ok(Some((stage, cgshim::api::client::run_dir(run_dir.as_deref()))))
}

/// All of standard input, which the runtime closes when it has said everything.
fn state(deadline: Instant) -> Result<Vec<u8>, String> {
    let stdin = std::io::stdin();
    let mut state = Vec::with_capacity(16 << 10);
    let mut buffer = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err("it did not end in time".into()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.desc().into()),
        }
        match nix::unistd::read(&stdin, &mut buffer) {
            Ok(0) => return Ok(state),
            Ok(n) => state.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.desc().into()),
        }
        if state.len() > hook::LARGEST_STATE {
            return Err(format!("more than {} bytes", hook::LARGEST_STATE));
        }
    }
}

//! The operator's program that is run for every OOM: `oom_hook` in the configuration. It gets the record as
//! JSON on its standard input, the container's id in `CGSHIM_CONTAINER`, the record's in `CGSHIM_RECORD` and
//! the cause in `CGSHIM_CAUSE`; with the daemon's few capabilities, and no more than a few at a time.
//!
//! Each has a thread that waits for it: a program on a file server that does not answer cannot even be started, and one
//! that waits for such a server cannot be killed. The daemon's loop never waits for either.

use crate::core::oom::Record;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many at a time; for an OOM beyond that none is run, which is said.
const MOST: usize = 8;

/// One that takes longer is killed, with what it has started.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether it has ended: nobody but its thread waits for that.
const EVERY: Duration = Duration::from_millis(20);

/// Those that run.
#[derive(Default)]
pub(super) struct OomHooks {
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    threads: usize,
    /// Process groups whose first process nobody has waited for: their numbers are nobody else's.
    groups: BTreeSet<i32>,
}

impl OomHooks {
    /// Runs `command` for a record; nothing if that is empty.
    pub(super) fn run(&mut self, command: &[String], record: &Record) {
        let Some((program, arguments)) = command.split_first() else { return };
        if locked(&self.running).threads >= MOST {
            log::warn!("oom_hook: {MOST} of them run already; none for {}", record.id);
            return;
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("CGSHIM_CONTAINER", &record.container)
            .env("CGSHIM_RECORD", &record.id)
            .env("CGSHIM_CAUSE", record.cause.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let json = serde_json::to_vec(record).unwrap_or_default();
        let (program, id) = (program.clone(), record.id.clone());
        let running = self.running.clone();
        locked(&running).threads += 1;
        let thread = std::thread::Builder::new()
            .name("cgshim-oom-hook".into())
            .stack_size(128 << 10)
            .spawn(move || {
                if let Err(why) = wait(command, &json, &running) {
                    log::warn!("oom_hook: {program}: {why}, for {id}");
                }
                locked(&running).threads -= 1;
            });
        if let Err(error) = thread {
            locked(&self.running).threads -= 1;
            log::warn!("oom_hook: {error}");
        }
    }
}

fn locked(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From its start to its end: what was wrong with it.
fn wait(mut command: Command, json: &[u8], running: &Mutex<Running>) -> Result<(), String> {
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let group = i32::try_from(child.id()).unwrap_or(0);
    locked(running).groups.insert(group);
    // It is not to be spared by the OOM killer as the daemon is.
    let _ = std::fs::write(format!("/proc/{group}/oom_score_adj"), "0");
    if let Some(mut stdin) = child.stdin.take() {
        // A record is shorter than a pipe holds (64 KiB): this does not wait for its reader.
        if json.len() < 60_000 {
            let _ = stdin.write_all(json);
        }
    }
    let (start, mut killed) = (Instant::now(), false);
    loop {
        let ended = {
            let mut running = locked(running);
            let ended = child.try_wait();
            if !matches!(ended, Ok(None)) {
                running.groups.remove(&group);
            }
            ended
        };
        match ended {
            Ok(Some(_)) if killed => {
                return Err(format!("killed after {} s", PATIENCE.as_secs()));
            }
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(status.to_string()),
            Err(error) => return Err(error.to_string()),
            Ok(None) => {}
        }
        if !killed && start.elapsed() > PATIENCE {
            killed = true;
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        std::thread::sleep(EVERY);
    }
}

impl Drop for OomHooks {
    fn drop(&mut self) {
        for group in &locked(&self.running).groups {
            let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
        }
    }
}

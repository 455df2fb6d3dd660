//! `cgshim-runtime ...`: becomes runc or crun with the same arguments, after bringing the hook into the
//! bundle where a container is about to be made. Fails open, loudly.

use cgshim::oci::inject;
use cgshim::oci::runtime::{self, Invocation};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Where callers without a PATH have their runtimes.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who became whom: see [`main`].
const PID: &str = "CGSHIM_RUNTIME_PID";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let invocation = Invocation::parse(&words);
    let own = std::env::current_exe().ok();
    if let Some(config) = &invocation.config {
        let run_dir = std::env::var_os("CGSHIM_RUN_DIR").filter(|dir| !dir.is_empty());
        let hook = std::env::var_os("CGSHIM_HOOK");
        let done = runtime::hook(hook.as_deref(), own.as_deref(), run_dir.map(PathBuf::from))
            .map_err(|why| inject::not_injected(config, why))
            .and_then(|entry| inject::inject(config, &entry));
        if let Err(error) = done {
            if error.strict {
                let why = format!("{error}; and {} is true", cgshim::oci::annotations::STRICT);
                say(&invocation, "error", &why);
                return ExitCode::FAILURE;
            }
            say(&invocation, "warning", &format!("{error}; the container runs without cgshim"));
        }
    }
    let wanted = std::env::var_os("CGSHIM_RUNTIME");
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    // Opened through /proc, so that it is this program even after an upgrade.
    let id = std::fs::metadata("/proc/self/exe").ok().map(|own| (own.dev(), own.ino()));
    // A copy of this program is not known by its inode. An exec keeps the pid: whoever set this became us.
    let own_pid = std::process::id().to_string();
    if std::env::var_os(PID).is_some_and(|pid| pid == *own_pid) {
        let copy = own.as_deref().unwrap_or("?".as_ref()).display();
        say(&invocation, "error", &format!("{copy} stands in for the runtime, and is this again"));
        return ExitCode::from(127);
    }
    match runtime::find(wanted.as_deref(), &path, id) {
        Ok((program, complaint)) => {
            if let Some(complaint) = complaint {
                say(&invocation, "warning", &complaint);
            }
            let error = Command::new(&program).args(&words).env(PID, own_pid).exec();
            say(&invocation, "error", &format!("cannot execute {}: {error}", program.display()));
            ExitCode::from(126)
        }
        Err(why) => {
            say(&invocation, "error", &why);
            ExitCode::from(127)
        }
    }
}

/// To standard error, and to the runtime's log: containerd and docker show their users the latter.
fn say(invocation: &Invocation, level: &str, message: &str) {
    let message = format!("cgshim-runtime: {message}");
    let _ = writeln!(std::io::stderr(), "{message}");
    let Some(log) = &invocation.log else { return };
    let message = serde_json::Value::from(message);
    let line = match invocation.log_is_json {
        true => format!("{{\"level\":\"{level}\",\"msg\":{message}}}\n"),
        false => format!("level={level} msg={message}\n"),
    };
    let log = std::fs::OpenOptions::new().append(true).create(true).open(log);
    let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
}

//! `cgshimd`: the daemon. All of it is in [`cgshim::daemon`].

use cgshim::api::client::run_dir;
use cgshim::daemon::{Daemon, Options, init_log};
use cgshim::driver::throttle::remove_left;
use cgshim::guardian::Kernel;
use cgshim::journal::JournalError;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cgshimd [--config FILE] [--run-dir DIR]
       cgshimd --restore [--run-dir DIR]

Keeps containers out of direct reclaim, under the policies of FILE (/etc/cgshim/config.toml, and
config.d/*.toml beside it). Socket and spool are in DIR (/run/cgshim, or CGSHIM_RUN_DIR). SIGHUP reads
the configuration again; SIGTERM ends it with every declared limit in place. --restore puts back what a
daemon that was killed has left: limits, swappiness, frozen tasks, OOM killers.

Examples:
  cgshimd                                            as root; what it enforces: cgctl ps
  cgshimd --config ./try.toml --run-dir /run/try     a second one beside it, on other containers
  cgshimd --restore                                  after a kill -9 of daemon and guardian

exit: 0 ended by a signal; 1 failed; 2 usage. Logging: CGSHIM_LOG=info (error, warn, info, debug).
";

fn main() -> ExitCode {
    let mut options = Options { config: None, run_dir: PathBuf::new() };
    let (mut given, mut restore) = (None, false);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(PathBuf::from(value))),
            None => (text, None),
        };
        match name.as_str() {
            "--config" | "--run-dir" => {
                let Some(value) = attached.or_else(|| arguments.next().map(PathBuf::from)) else {
                    return usage(&format!("{name} wants a value"));
                };
                if name == "--config" { options.config = Some(value) } else { given = Some(value) }
            }
            "--restore" if attached.is_none() => restore = true,
            "--help" | "-h" => {
                print!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--version" | "-V" => {
                println!("cgshimd {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            _ => return usage(&format!("there is no {name}")),
        }
    }
    options.run_dir = run_dir(given.as_deref());
    init_log();
    if restore {
        return match put_back(&options.run_dir) {
            Ok(code) => code,
            Err(error) => {
                log::error!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    match Daemon::start(options).and_then(Daemon::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Undoes what the journal says that stands. A run directory that is in use has nothing to restore for us:
/// its daemon, or its successor, does.
fn put_back(run_dir: &std::path::Path) -> Result<ExitCode, Box<dyn std::error::Error>> {
    if !run_dir.exists() {
        log::info!("nothing to restore: there is no {}", run_dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    let kernel = Kernel::find()?;
    let done = cgshim::guardian::restore(run_dir, &kernel, &mut |path, undone| {
        log::warn!("{path}: {undone}");
    });
    let (restored, remarks) = match done {
        Ok(done) => done,
        Err(error @ JournalError::Locked { .. }) => {
            log::info!("nothing to restore: {error}");
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error.into()),
    };
    remove_left();
    for remark in remarks {
        log::error!("{remark}");
    }
    log::info!("{} limits restored, {} could not be", restored.limits, restored.failed);
    Ok(if restored.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn usage(what: &str) -> ExitCode {
    eprint!("cgshimd: {what}\n{USAGE}");
    ExitCode::from(2)
}

//! `cgshimd`: the daemon. All of it is in [`cgshim::daemon`].

use cgshim::api::client::run_dir;
use cgshim::daemon::{Daemon, Options, init_log};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cgshimd [--config FILE] [--run-dir DIR]

Keeps containers out of direct reclaim, under the policies of FILE (/etc/cgshim/config.toml, and
config.d/*.toml beside it). Socket and spool are in DIR (/run/cgshim, or CGSHIM_RUN_DIR). SIGHUP reads
the configuration again; SIGTERM ends it with every declared limit in place.

exit: 0 ended by a signal; 1 failed; 2 usage. Logging: CGSHIM_LOG=info (error, warn, info, debug).
";

fn main() -> ExitCode {
    let mut options = Options { config: None, run_dir: PathBuf::new() };
    let mut given = None;
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
    match Daemon::start(options).and_then(Daemon::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(what: &str) -> ExitCode {
    eprint!("cgshimd: {what}\n{USAGE}");
    ExitCode::from(2)
}

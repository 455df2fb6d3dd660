//! `cgctl`'s commands. Each file is one of them; what they share is in `find` (which cgroup is meant)
//! and `error` (messages and exit codes).

mod caps;
mod cli;
mod error;
mod find;
mod reclaim;
mod run;
mod stat;

use clap::Parser;
pub use error::Failure;
use std::process::ExitCode;

/// Runs `cgctl` with this process's arguments.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("CGSHIM_LOG", "warn"))
        .format(|out, record| {
            use std::io::Write;
            writeln!(out, "cgctl: {}", record.args())
        })
        .init();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { error::USAGE } else { 0 });
        }
    };
    let result = match cli.command {
        cli::Command::Run(args) => run::main(args),
        cli::Command::Stat(args) => stat::main(&args),
        cli::Command::Caps(args) => caps::main(&args),
        cli::Command::Reclaim(args) => reclaim::main(&args),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("cgctl: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

/// Whether output to `stream` may have colours: a terminal, and `NO_COLOR` unset
/// (<https://no-color.org>).
pub(crate) fn colour(stream: &impl std::io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

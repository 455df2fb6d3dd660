//! `cgctl`'s commands. Each file is one of them; what they share is in `find` (which cgroup is meant)
//! and `error` (messages and exit codes).

mod caps;
mod cli;
mod daemon;
mod demo;
mod dying;
mod error;
mod events;
mod find;
mod guard;
mod hook;
mod install;
mod ps;
mod reclaim;
mod record;
mod run;
mod set;
mod stat;
mod why;

use crate::report::term::Style;
use clap::Parser;
pub use error::Failure;
use nix::sys::signal::SigSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::OnceLock;

/// Runs `cgctl` with this process's arguments.
pub fn main() -> ExitCode {
    inherited_mask();
    env_logger::Builder::new()
        .parse_filters(&cgshim::daemon::log_filter("cgctl", "warn"))
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
    let run_dir = cli.run_dir.as_deref();
    let result = match cli.command {
        cli::Command::Run(args) => run::main(args, run_dir),
        cli::Command::Dying(args) => dying::main(&args),
        cli::Command::Why(args) => why::main(&args, run_dir),
        cli::Command::Record(args) => record::main(&args),
        cli::Command::Hook(args) => hook::main(&args),
        cli::Command::Install(args) => install::main(&args),
        cli::Command::Stat(args) => stat::main(&args, run_dir),
        cli::Command::Caps(args) => caps::main(&args, run_dir),
        cli::Command::Reclaim(args) => reclaim::main(&args, run_dir),
        cli::Command::Ps(args) => ps::main(&args, run_dir),
        cli::Command::Set(args) => set::set(&args, run_dir),
        cli::Command::Release(args) => set::release(&args, run_dir),
        cli::Command::Events(args) => events::main(&args, run_dir),
        cli::Command::Demo(args) => demo::main(&args),
        cli::Command::Memload(args) => Ok(crate::memload::run(&args)),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("cgctl: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

/// Every parser of an option's value, over one text: for the fuzzer.
#[doc(hidden)]
pub fn parse_values(text: &str) {
    cli::parse_values(text);
}

/// The signal mask that this process was started with, and that a command started by it gets.
fn inherited_mask() -> SigSet {
    static MASK: OnceLock<SigSet> = OnceLock::new();
    *MASK.get_or_init(|| SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()))
}

/// Prints to standard output. A reader that has gone (`cgctl caps | head -1`) is no failure.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// One value as a line of JSON on standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value)
        .map_err(|error| Failure::new(error::FAILED, error.to_string()))?;
    print(&(json + "\n"));
    Ok(())
}

/// A table on standard output, cut to the terminal's width where it is one.
pub(crate) fn print_table(headers: &[&str], no_headers: bool, rows: &[Vec<String>]) {
    use std::os::fd::AsFd;
    let width = crate::sys::terminal_size(std::io::stdout().as_fd()).map(|(columns, _)| columns);
    let headers = if no_headers { &[] } else { headers };
    print(&crate::report::term::table(headers, rows, width, style()));
}

/// How standard output may look: colours on a terminal unless `NO_COLOR` is set
/// (<https://no-color.org>), line-drawing characters in a UTF-8 locale.
pub(crate) fn style() -> Style {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    // No locale at all is common in containers, whose terminals speak UTF-8 all the same.
    let utf8 = locale.is_none_or(|locale| {
        let locale = locale.to_ascii_uppercase();
        locale.contains("UTF-8") || locale.contains("UTF8")
    });
    Style { color: std::io::stdout().is_terminal() && !no_colour, ascii: !utf8 }
}

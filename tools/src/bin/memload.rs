//! `memload`: known loads on memory, with latency histograms. All of it is in [`tools::memload`].

use std::process::ExitCode;

use clap::Parser;
use tools::memload;

#[derive(Parser)]
#[command(name = "memload", version, after_help = memload::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    args: memload::Args,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format(|f, record| {
            use std::io::Write;
            writeln!(f, "memload: {}", record.args())
        })
        .init();
    memload::run(&Cli::parse().args)
}

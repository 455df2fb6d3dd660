//! `cgctl`: put a command under memory enforcement, and look at what was done.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::cgctl::main()
}

//! The suite over the kernel at hand: the host's, or that of a lane of `ci/vm`.
//!
//! A program of its own, not libtest's: its tasks are itself, started again, one claim at a time.
//! Arguments are parts of the names of the claims to run.

use cgroupfs_conformance::kernel::{KernelWorld, Scratch, be_a_task};
use cgroupfs_conformance::table::{Table, line};
use cgroupfs_conformance::{Feature, Features, Outcome, claims, run};
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// Skipped claims are told past libtest's habit of swallowing, as `ci/test` collects them.
fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

/// The column of the table: the lane's name, or that of this host's kernel.
fn column(version: &str) -> String {
    std::env::var("CGSHIM_LANE").unwrap_or_else(|_| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let numbers: Vec<&str> = release.split('.').take(2).collect();
        format!("host-{version}-{}", numbers.join("."))
    })
}

fn main() -> ExitCode {
    be_a_task();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if !nix::unistd::geteuid().is_root() {
        skip("host_conformance", "making cgroups needs root");
        return ExitCode::SUCCESS;
    }
    let scratch = Scratch::new().expect("files on a disk");
    let (version, features) = match KernelWorld::new("probe", &scratch) {
        Ok(mut world) => (world.version(), Features::probe(&mut world).expect("a group")),
        Err(error) => {
            skip("host_conformance", &error.to_string());
            return ExitCode::SUCCESS;
        }
    };
    let (kept, column) = (Table::kept(), column(version.as_str()));
    // A host may have any kernel; the lanes that are a bare kernel are ours.
    let compared = kept.knows(&column) || column.starts_with(version.as_str());
    if !compared {
        println!("TABLE.md has no column {column}: outcomes are not compared");
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for claim in claims::of(version) {
        if !wanted.is_empty() && !wanted.iter().any(|part| claim.name.contains(part.as_str())) {
            continue;
        }
        let start = Instant::now();
        let outcome = match KernelWorld::new(claim.name, &scratch) {
            Ok(mut world) => run(&claim, &features, &mut world),
            Err(error) => Outcome::Fails(error.to_string()),
        };
        println!("test {} ... {} ({} ms)", claim.name, outcome.text(), start.elapsed().as_millis());
        println!("{}", line(&column, &claim, &outcome));
        if outcome == Outcome::Lacks(Feature::Swap.name()) {
            skip(claim.name, "no swap is on");
        }
        let drift = kept.drift(&column, &claim, &outcome).filter(|_| compared);
        match (&outcome, drift) {
            (Outcome::Fails(what), _) => failed.push(format!("{}: {what}", claim.name)),
            (_, Some(drift)) => failed.push(format!("{}: {drift}", claim.name)),
            _ => passed += 1,
        }
    }
    println!("\nfailures of {column}: {}", failed.len());
    for failure in &failed {
        println!("    {failure}");
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {} failed; 0 ignored;", failed.len());
    ExitCode::from(u8::from(!failed.is_empty()))
}

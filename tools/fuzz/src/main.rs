//! `fuzz`: hostile input for every parser of cgshim. None may panic, hang, or hold more memory than a small
//! multiple of its input.
//!
//! Inputs come from a seed and are mutations of `testdata/` ([`mutate`]); `targets.rs` lists the parsers.

mod alloc;
mod mutate;
mod run;
mod targets;

use clap::Parser;
use run::{Finding, Plan};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};
use targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// Hostile input for every parser
#[derive(Debug, Parser)]
#[command(
    name = "fuzz",
    after_help = "\
Examples:
  cargo run --profile fuzz -p fuzz -- --inputs 10000000
  fuzz --seconds 20 --target mountinfo
  fuzz --target mountinfo --file target/fuzz-findings/mountinfo-7-4711

An input that a parser panics on, hoards memory for or does not come back from is saved, made shorter,
and named with the seed that makes it again. Exit code: 0; 1 if something was found; 2 usage."
)]
struct Args {
    /// How many, all parsers together, by turns
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// Stop after so long, however many there were
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// The same seed makes the same inputs [default: the clock's]
    #[arg(long)]
    seed: Option<u64>,
    /// Only this parser; may be given several times
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Parse this file, once, with each parser
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where inputs that fail are put
    #[arg(long, value_name = "DIR", default_value = "target/fuzz-findings")]
    out: PathBuf,
    /// Threads [default: one a CPU]
    #[arg(long)]
    threads: Option<usize>,
    /// Name the parsers
    #[arg(long)]
    list: bool,
}

/// For a report from a run that hangs.
static RUN: OnceLock<(u64, PathBuf)> = OnceLock::new();

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        return ExitCode::SUCCESS;
    }
    if let Some(name) = args.target.iter().find(|name| !TARGETS.iter().any(|t| t.name == **name)) {
        eprintln!("fuzz: no parser '{name}'; --list names them");
        return ExitCode::from(2);
    }
    let chosen: Vec<Target> = TARGETS
        .iter()
        .filter(|target| args.target.is_empty() || args.target.iter().any(|t| t == target.name))
        .copied()
        .collect();
    match &args.file {
        Some(file) => one_file(&chosen, file),
        None => many(&args, &chosen),
    }
}

fn one_file(targets: &[Target], file: &Path) -> ExitCode {
    let input = match std::fs::read(file) {
        Ok(input) => input,
        Err(error) => {
            eprintln!("fuzz: {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for target in targets {
        match run::one(target, &input) {
            Ok(held) => println!("{}: fine, {held} bytes held for {}", target.name, input.len()),
            Err(fault) => {
                println!("{}: {fault}", target.name);
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn many(args: &Args, targets: &[Target]) -> ExitCode {
    let clock = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    };
    let seed = args.seed.unwrap_or_else(clock);
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    let targets: Vec<_> = targets
        .iter()
        .map(|target| {
            let corpus = target.corpus(&testdata);
            (*target, corpus.into_iter().map(|(_, content)| content).collect())
        })
        .collect();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let plan = Plan {
        targets: &targets,
        seed,
        inputs: args.inputs,
        time: args.seconds.map(Duration::from_secs),
        threads: args.threads.unwrap_or(cpus).max(1),
        hung: |finding| {
            report(finding);
            std::process::exit(1);
        },
    };
    let _ = RUN.set((seed, args.out.clone()));
    println!("fuzz: seed {seed}, {} parsers, {} threads", targets.len(), plan.threads);
    // A panic is a finding, reported once, with its input: not a backtrace for each.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let (tallies, finding) = plan.run();
    let _ = std::panic::take_hook();
    println!(
        "{:16} {:>10} {:>9} {:>10} {:>11} {:>9}",
        "PARSER", "INPUTS", "MEAN B", "SLOWEST", "MOST HELD", "PER BYTE"
    );
    for ((target, _), tally) in targets.iter().zip(&tallies) {
        println!(
            "{:16} {:>10} {:>9} {:>7} us {:>9} B {:>9.2}",
            target.name,
            tally.inputs,
            tally.bytes / tally.inputs.max(1),
            tally.slowest.as_micros(),
            tally.most_held,
            tally.most_per_byte as f64 / 100.0,
        );
    }
    let inputs: u64 = tallies.iter().map(|tally| tally.inputs).sum();
    println!(
        "fuzz: {inputs} inputs in {:.1} s; allowed: {} KiB and {} bytes for each byte of input (config: 256)",
        start.elapsed().as_secs_f64(),
        run::BASE >> 10,
        targets::PER_BYTE,
    );
    match finding {
        None => ExitCode::SUCCESS,
        Some(finding) => {
            report(&finding);
            if let Some(target) = TARGETS.iter().find(|target| target.name == finding.target) {
                std::panic::set_hook(Box::new(|_| {}));
                let short = run::shrink(target, &finding.input);
                eprintln!(
                    "fuzz: a shorter one: {:?}",
                    String::from_utf8_lossy(&short[..short.len().min(2000)])
                );
            }
            ExitCode::FAILURE
        }
    }
}

fn report(finding: &Finding) {
    let Finding { target, index, fault, .. } = finding;
    eprintln!("fuzz: {target}: {fault}");
    let Some((seed, out)) = RUN.get() else { return };
    match run::save(out, *seed, finding) {
        Ok(path) => eprintln!(
            "fuzz: input {index} of seed {seed} is saved: fuzz --target {target} --file {}",
            path.display()
        ),
        Err(error) => eprintln!("fuzz: input {index} of seed {seed} cannot be saved: {error}"),
    }
}

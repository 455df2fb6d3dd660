//! Runs inputs through parsers, on all CPUs, and finds the ones that panic, hoard memory or never end.

use crate::alloc::peak_of;
use crate::mutate;
use crate::targets::Target;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What a parser may hold at once: this, and [`Target::per_byte`] for each byte of its input.
pub(crate) const BASE: usize = 64 << 10;

/// An input of 64 KiB takes milliseconds; this is a loop that does not end.
const HANG: Duration = Duration::from_secs(20);

/// What was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It panicked; the message.
    Panic(String),
    /// It held so many bytes, of so many allowed.
    Hoard(usize, usize),
    /// It did not come back.
    Hang,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Panic(message) => write!(f, "panicked: {message}"),
            Fault::Hoard(held, allowed) => write!(f, "held {held} bytes, {allowed} are allowed"),
            Fault::Hang => write!(f, "did not end in {} s", HANG.as_secs()),
        }
    }
}

/// An input that a parser does not stand.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) target: &'static str,
    pub(crate) index: u64,
    pub(crate) input: Vec<u8>,
    pub(crate) fault: Fault,
}

/// What one parser was put through.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) inputs: u64,
    pub(crate) bytes: u64,
    /// The longest time, and most bytes held, for one input.
    pub(crate) slowest: Duration,
    pub(crate) most_held: usize,
    /// The most bytes held above [`BASE`] for one byte of input, in 1/100.
    pub(crate) most_per_byte: usize,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.inputs += other.inputs;
        self.bytes += other.bytes;
        self.slowest = self.slowest.max(other.slowest);
        self.most_held = self.most_held.max(other.most_held);
        self.most_per_byte = self.most_per_byte.max(other.most_per_byte);
    }
}

/// One input through one parser: the bytes held at most, or what was wrong.
pub(crate) fn one(target: &Target, input: &[u8]) -> Result<usize, Fault> {
    let (result, held) = peak_of(|| catch_unwind(AssertUnwindSafe(|| (target.parse)(input))));
    if let Err(panic) = result {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        return Err(Fault::Panic(message.unwrap_or("without a message").to_owned()));
    }
    let allowed = BASE + target.per_byte * input.len();
    if held > allowed { Err(Fault::Hoard(held, allowed)) } else { Ok(held) }
}

/// What to run.
pub(crate) struct Plan<'a> {
    /// Parsers, with what their inputs are made from.
    pub(crate) targets: &'a [(Target, Vec<Vec<u8>>)],
    pub(crate) seed: u64,
    /// Inputs in all, taken by turns.
    pub(crate) inputs: u64,
    /// No new input after so long.
    pub(crate) time: Option<Duration>,
    pub(crate) threads: usize,
    /// Told of an input that does not end. Its thread cannot be ended but with the process.
    pub(crate) hung: fn(&Finding) -> !,
}

impl Plan<'_> {
    fn target(&self, index: u64) -> &(Target, Vec<Vec<u8>>) {
        &self.targets[(index % self.targets.len() as u64) as usize]
    }

    fn input(&self, index: u64) -> Vec<u8> {
        mutate::input(self.seed, index, &self.target(index).1)
    }

    /// Runs it until it is done, or something is found: the tallies by target, and the first finding.
    pub(crate) fn run(&self) -> (Vec<Tally>, Option<Finding>) {
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let found = Mutex::new(None);
        let tallies = Mutex::new(vec![Tally::default(); self.targets.len()]);
        let at: Vec<AtomicU64> = (0..self.threads).map(|_| AtomicU64::new(u64::MAX)).collect();
        let running = AtomicUsize::new(self.threads);
        let end = self.time.map(|time| Instant::now() + time);
        let worker = |at: &AtomicU64| {
            let mut mine = vec![Tally::default(); self.targets.len()];
            const BLOCK: u64 = 256;
            'blocks: loop {
                let start = next.fetch_add(BLOCK, Ordering::Relaxed);
                if start >= self.inputs || end.is_some_and(|end| Instant::now() >= end) {
                    break;
                }
                for index in start..(start + BLOCK).min(self.inputs) {
                    if stop.load(Ordering::Relaxed) {
                        break 'blocks;
                    }
                    at.store(index, Ordering::Relaxed);
                    let input = self.input(index);
                    let target = &self.target(index).0;
                    let begun = Instant::now();
                    match one(target, &input) {
                        Ok(held) => {
                            let above = held.saturating_sub(BASE);
                            mine[(index % self.targets.len() as u64) as usize].add(&Tally {
                                inputs: 1,
                                bytes: input.len() as u64,
                                slowest: begun.elapsed(),
                                most_held: held,
                                most_per_byte: above * 100 / input.len().max(1),
                            });
                        }
                        Err(fault) => {
                            stop.store(true, Ordering::Relaxed);
                            let finding = Finding { target: target.name, index, input, fault };
                            lock(&found).get_or_insert(finding);
                        }
                    }
                }
            }
            at.store(u64::MAX, Ordering::Relaxed);
            for (all, mine) in lock(&tallies).iter_mut().zip(&mine) {
                all.add(mine);
            }
        };
        std::thread::scope(|scope| {
            let (worker, running) = (&worker, &running);
            for at in &at {
                scope.spawn(move || {
                    worker(at);
                    running.fetch_sub(1, Ordering::Release);
                });
            }
            if let Some(index) = watch(&at, running) {
                let (target, input) = (self.target(index).0.name, self.input(index));
                (self.hung)(&Finding { target, index, input, fault: Fault::Hang });
            }
        });
        let tallies = lock(&tallies).clone();
        (tallies, lock(&found).take())
    }
}

/// Waits until all workers are done: `None`; or one has been at the same input for too long: which.
fn watch(at: &[AtomicU64], running: &AtomicUsize) -> Option<u64> {
    let mut seen: Vec<(u64, Instant)> = vec![(u64::MAX, Instant::now()); at.len()];
    while running.load(Ordering::Acquire) > 0 {
        for (at, seen) in at.iter().zip(&mut seen) {
            let index = at.load(Ordering::Relaxed);
            if seen.0 != index {
                *seen = (index, Instant::now());
            } else if index != u64::MAX && seen.1.elapsed() > HANG {
                return Some(index);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// A shorter input with the same kind of fault: pieces are left out while it stays.
pub(crate) fn shrink(target: &Target, input: &[u8]) -> Vec<u8> {
    let kind = |input: &[u8]| one(target, input).err().map(|fault| std::mem::discriminant(&fault));
    let wrong = kind(input);
    let mut input = input.to_vec();
    let mut piece = input.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            if kind(&shorter) == wrong { input = shorter } else { at += piece }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    input
}

/// Where findings are put: `DIR/TARGET-SEED-INDEX`.
pub(crate) fn save(
    dir: &Path,
    seed: u64,
    finding: &Finding,
) -> std::io::Result<std::path::PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("{}-{seed}-{}", finding.target, finding.index));
    std::fs::write(&path, &finding.input)?;
    Ok(path)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::TARGETS;
    use std::path::PathBuf;

    fn testdata() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
    }

    fn run(target: Target, inputs: u64) -> Option<Finding> {
        let targets = [(target, vec![b"memory 4 15 1\n".to_vec()])];
        let hung = |finding: &Finding| panic!("{}", finding.fault);
        Plan { targets: &targets, seed: 1, inputs, time: None, threads: 2, hung }.run().1
    }

    #[test]
    fn a_parser_that_panics_is_found_and_its_input_made_short() {
        let target = Target {
            name: "planted",
            corpus: &[],
            per_byte: 32,
            parse: |input| assert!(!input.windows(3).any(|three| three == b"max"), "planted"),
        };
        let finding = run(target, 100_000).expect("found");
        assert_eq!(finding.fault, Fault::Panic("planted".into()));
        assert_eq!(shrink(&target, &finding.input), b"max");
        let dir = tempfile::tempdir().unwrap();
        let saved = save(dir.path(), 1, &finding).unwrap();
        assert_eq!(std::fs::read(saved).unwrap(), finding.input);
    }

    #[test]
    fn a_parser_that_believes_a_number_in_its_input_is_found() {
        let parse = |input: &[u8]| {
            let number = cgroupfs::files::parse_u64(input).unwrap_or(0);
            drop(Vec::<u8>::with_capacity(number.min(1 << 24) as usize));
        };
        let target = Target { name: "planted", corpus: &[], per_byte: 32, parse };
        assert!(matches!(run(target, 100_000).expect("found").fault, Fault::Hoard(..)));
    }

    #[test]
    fn no_parser_stumbles_over_the_corpus_as_it_is() {
        for target in TARGETS {
            for (name, content) in target.corpus(&testdata()) {
                if let Err(fault) = one(target, &content) {
                    panic!("{}: {name}: {fault}", target.name);
                }
            }
        }
    }

    #[test]
    fn every_corpus_that_is_named_is_there_and_every_hostile_one_is_read() {
        for target in TARGETS {
            for name in target.corpus {
                assert!(testdata().join(name).exists(), "{}: no {name}", target.name);
            }
        }
        for entry in std::fs::read_dir(testdata().join("hostile")).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(TARGETS.iter().any(|target| *target.name == *name), "{name:?}: no such target");
        }
    }
}

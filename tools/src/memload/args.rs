//! The command line of `memload`, and the checked plan that is made from it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use cgroupfs::units::{Bytes, page_size};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Failure;

/// The size of a huge page, which `thp` chunks are multiples of.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// What one operation moves unless `--chunk` says: the size that the allocator thread maps, too.
pub(crate) const DEFAULT_CHUNK: u64 = 256 << 10;

const DEFAULT_HOT: u64 = 16 << 20;
const DEFAULT_CHILDREN: u32 = 4;

/// A chunk larger than this would be the load's buffer, rather than its load.
const MOST_CHUNK: u64 = 1 << 30;

/// More chunks than this in the live set would make its bookkeeping (16 bytes each) matter.
const MOST_CHUNKS: u64 = 1 << 20;

/// Examples for the help text.
pub const EXAMPLES: &str = "\
Examples:
  memload anon --size 512M --duration 10           grow to 512 MiB, then replace the oldest
  memload anon --size 1G --rate 200M --total 2G    200 MiB/s, 2 GiB in all
  memload read --size 1G --dir /srv --duration 30 --alloc-rate 200
                                                   stream a file, and watch what allocations
                                                   beside it have to wait
  memload fork --procs 8 --chunk 4M --ops 1000     1000 children, 8 at a time
  memload alloc --alloc-rate 1000 --duration 5 --json --histogram

Sizes are bytes or have K, M, G or T (1024). Without --duration, --total and --ops a load runs until \
SIGINT or SIGTERM, which print the report too. Exit codes: 0 the report was printed (failed \
operations are in it), 1 the load could not run, 2 usage.";

/// Put a known load on memory, and report how long its operations took
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do
    #[arg(value_enum)]
    pub load: Load,

    /// Most bytes live at a time (anon, hotcold, thp, tmpfs, pipe), or size of the file (read, dirty,
    /// mmap); of each copy
    #[arg(long, value_name = "SIZE", default_value = "64M", allow_negative_numbers = true)]
    pub size: Bytes,

    /// Bytes a second, of each copy; 0 is as fast as it can
    #[arg(long, value_name = "SIZE", default_value = "0", allow_negative_numbers = true)]
    pub rate: Bytes,

    /// Stop after so many seconds
    #[arg(long, value_name = "SECS", value_parser = positive_seconds, allow_negative_numbers = true)]
    pub duration: Option<Duration>,

    /// Stop with the operation that brings the bytes done to this, in each copy
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub total: Option<Bytes>,

    /// Stop after so many operations, failed ones included, in each copy
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub ops: Option<u64>,

    /// Bytes of one operation, a multiple of the page size [default: 256K; thp: 2M]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub chunk: Option<Bytes>,

    /// Seed of page contents and of random positions
    #[arg(long, value_name = "N", default_value = "1", allow_negative_numbers = true)]
    pub seed: u64,

    /// Run so many copies as processes, results pooled; fork: children at a time [default: 1; fork: 4]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024),
        allow_negative_numbers = true
    )]
    pub procs: Option<u32>,

    /// Where files are made (they have no name, nothing stays behind) [default: /var/tmp; tmpfs:
    /// /dev/shm]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Read this file, its first --size bytes, instead of making one (read)
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Bytes that stay hot (hotcold) [default: 16M]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub hot: Option<Bytes>,

    /// Write to the pages instead of reading them (mmap)
    #[arg(long)]
    pub write: bool,

    /// Read into pages that the kernel has to allocate within the read() (read)
    #[arg(long)]
    pub fresh: bool,

    /// alloc: operations a second, 0 for as fast as it can; any other load: a thread beside it that
    /// maps, touches and unmaps 256 KiB so often a second, 0 for none
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true)]
    pub alloc_rate: u64,

    /// Wait so many seconds before anything is allocated
    #[arg(long, value_name = "SECS", value_parser = seconds, allow_negative_numbers = true)]
    pub start_delay: Option<Duration>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,

    /// Put every latency, as [value_ns, count], into the JSON
    #[arg(long, requires = "json")]
    pub histogram: bool,
}

/// The loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// Anonymous memory that grows and is never touched again; latency: map and fill a chunk
    Anon,
    /// A hot set touched at random all the time, while cold memory grows beside it like anon
    Hotcold,
    /// Streaming reads of a file, in a circle; latency: one read()
    Read,
    /// Writes to a file, in a circle, over what is there; latency: one write()
    Dirty,
    /// Files on tmpfs, the oldest removed; latency: one write()
    Tmpfs,
    /// Pipes filled, then drained; latency: one write() into a pipe
    Pipe,
    /// Children that touch a chunk and exit; latency: fork() to the child's end
    Fork,
    /// A mapped file, touched in a circle; latency: touch a chunk
    Mmap,
    /// Anonymous memory in huge pages, growing like anon; latency: map and fill a chunk
    Thp,
    /// The latency probe: map, touch and unmap a chunk; latency: map and touch
    Alloc,
}

impl Load {
    /// The name, as on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Load::Anon => "anon",
            Load::Hotcold => "hotcold",
            Load::Read => "read",
            Load::Dirty => "dirty",
            Load::Tmpfs => "tmpfs",
            Load::Pipe => "pipe",
            Load::Fork => "fork",
            Load::Mmap => "mmap",
            Load::Thp => "thp",
            Load::Alloc => "alloc",
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to run: the arguments with every default filled in, and checked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) load: Load,
    pub(crate) size: u64,
    pub(crate) chunk: u64,
    pub(crate) rate: u64,
    pub(crate) duration: Option<Duration>,
    pub(crate) total: Option<u64>,
    pub(crate) ops: Option<u64>,
    pub(crate) seed: u64,
    pub(crate) procs: u32,
    pub(crate) dir: PathBuf,
    pub(crate) file: Option<PathBuf>,
    pub(crate) hot: u64,
    pub(crate) write: bool,
    pub(crate) fresh: bool,
    pub(crate) alloc_rate: u64,
    pub(crate) start_delay: Duration,
}

impl Plan {
    /// Checks the arguments. A failure names flag, value and cause.
    pub(crate) fn new(args: &Args) -> Result<Plan, Failure> {
        let load = args.load;
        for (given, flag, only) in [
            (args.hot.is_some(), "--hot", Load::Hotcold),
            (args.write, "--write", Load::Mmap),
            (args.fresh, "--fresh", Load::Read),
            (args.file.is_some(), "--file", Load::Read),
        ] {
            if given && load != only {
                return usage(format!("{flag}: only the {only} load has it, not {load}"));
            }
        }
        let huge = load == Load::Thp;
        let unit = if huge { HUGE_PAGE.max(page_size()) } else { page_size() };
        let chunk = args.chunk.map_or(if huge { HUGE_PAGE } else { DEFAULT_CHUNK }, |Bytes(n)| n);
        let whole = |flag: &str, bytes: u64| {
            if bytes > 0 && bytes.is_multiple_of(unit) {
                return Ok(());
            }
            let what = if huge { "huge page size" } else { "page size" };
            usage(format!("{flag} {bytes}: not a multiple of the {what} ({unit})"))
        };
        whole("--chunk", chunk)?;
        if chunk > MOST_CHUNK {
            return usage(format!("--chunk {chunk}: more than 1 GiB"));
        }
        let Bytes(size) = args.size;
        let holds_size = !matches!(load, Load::Fork | Load::Alloc);
        if holds_size && size < chunk {
            return usage(format!("--size {size}: less than one chunk (--chunk {chunk})"));
        }
        if holds_size && size / chunk > MOST_CHUNKS {
            let least = size.div_ceil(MOST_CHUNKS).next_multiple_of(unit);
            return usage(format!(
                "--chunk {chunk}: too small for --size {size}; {least} at least"
            ));
        }
        let hot = args.hot.map_or(DEFAULT_HOT, |Bytes(n)| n);
        whole("--hot", hot)?;
        let default_dir = if load == Load::Tmpfs { "/dev/shm" } else { "/var/tmp" };
        Ok(Plan {
            load,
            size,
            chunk,
            rate: args.rate.0,
            duration: args.duration,
            total: args.total.map(|Bytes(n)| n),
            ops: args.ops,
            seed: args.seed,
            procs: args.procs.unwrap_or(if load == Load::Fork { DEFAULT_CHILDREN } else { 1 }),
            dir: args.dir.clone().unwrap_or_else(|| default_dir.into()),
            file: args.file.clone(),
            hot,
            write: args.write,
            fresh: args.fresh,
            alloc_rate: args.alloc_rate,
            start_delay: args.start_delay.unwrap_or_default(),
        })
    }
}

impl Plan {
    /// The bytes of one operation, as the length of a mapping or buffer.
    pub(crate) fn chunk_len(&self) -> usize {
        // At most MOST_CHUNK, which fits a usize.
        self.chunk as usize
    }
}

fn usage<T>(message: String) -> Result<T, Failure> {
    Err(Failure::Usage(message))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    // Ten years: later than any sum with the clock could overflow.
    if !(0.0..=10.0 * 365.0 * 86_400.0).contains(&seconds) {
        return Err("not between 0 and ten years, in seconds".to_string());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn positive_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("must be more than 0 (leave it out for no end)".to_string()),
        duration => Ok(duration),
    }
}

/// The parsers above over one text, and the words of it as a command line.
pub(super) fn parse_values(text: &str) {
    #[derive(clap::Parser)]
    #[command(name = "memload")]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    let _ = (seconds(text), positive_seconds(text));
    let words = ["memload"].into_iter().chain(text.split_whitespace().take(24));
    if let Ok(cli) = <Cli as clap::Parser>::try_parse_from(words)
        && let Ok(plan) = Plan::new(&cli.args)
    {
        assert!(plan.chunk > 0 && plan.procs > 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("memload").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        Plan::new(&cli.args).map_err(|error| error.to_string())
    }

    pub(crate) fn plan(line: &str) -> Plan {
        parse(line).unwrap()
    }

    #[test]
    fn defaults_follow_the_load() {
        let plan = parse("anon").unwrap();
        assert_eq!((plan.size, plan.chunk, plan.rate), (64 << 20, 256 << 10, 0));
        assert_eq!((plan.procs, plan.duration, plan.seed), (1, None, 1));
        assert_eq!(parse("thp").unwrap().chunk, 2 << 20);
        assert_eq!(parse("fork").unwrap().procs, 4);
        assert_eq!(parse("tmpfs").unwrap().dir, PathBuf::from("/dev/shm"));
    }

    #[test]
    fn flags_are_read() {
        let plan = parse("read --size 1G --chunk 64K --rate 10M --duration 0.25 --procs 3 --fresh")
            .unwrap();
        assert_eq!((plan.size, plan.chunk, plan.rate), (1 << 30, 64 << 10, 10 << 20));
        assert_eq!(plan.duration, Some(Duration::from_millis(250)));
        assert_eq!((plan.procs, plan.fresh), (3, true));
    }

    #[test]
    fn bad_input_names_flag_value_and_cause() {
        for (line, parts) in [
            ("anon --chunk 5000", ["--chunk 5000", "page size (4096)"]),
            ("read --size 4G --chunk 2G", ["--chunk 2147483648", "1 GiB"]),
            ("anon --chunk 0", ["--chunk 0", "page size"]),
            ("thp --chunk 256K", ["--chunk 262144", "huge page size (2097152)"]),
            ("anon --size 4K", ["--size 4096", "less than one chunk"]),
            ("anon --size 1T --chunk 4K", ["--chunk 4096", "1048576 at least"]),
            ("anon --size 12Q", ["'12Q'", "--size"]),
            ("anon --duration nan", ["'nan'", "--duration"]),
            ("anon --duration 0", ["'0'", "more than 0"]),
            ("anon --start-delay -1", ["'-1'", "--start-delay"]),
            ("anon --rate -5", ["'-5'", "--rate"]),
            ("anon --ops -5", ["'-5'", "--ops"]),
            ("anon --procs 0", ["'0'", "--procs"]),
            ("anon --hot 1M", ["--hot", "only the hotcold load"]),
            ("read --write", ["--write", "only the mmap load"]),
            ("anon --fresh", ["--fresh", "only the read load"]),
            ("anon --histogram", ["--histogram", "--json"]),
            ("anonn", ["'anonn'", "anon"]),
        ] {
            let Err(message) = parse(line) else { panic!("{line} was taken") };
            for part in parts {
                assert!(message.contains(part), "{line}: no {part:?} in {message:?}");
            }
        }
    }

    #[test]
    fn the_smallest_chunk_that_is_advised_is_taken() {
        assert!(parse("anon --size 1T --chunk 1048576").is_ok());
        assert!(parse("anon --size 5000M --chunk 4K").is_err());
        assert!(parse("anon --size 5000M --chunk 8K").is_ok());
    }
}

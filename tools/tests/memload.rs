//! Each load of `memload`, run for a moment, and what it says about it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tools::memload::{Histogram, Load, Report};

const MEMLOAD: &str = env!("CARGO_BIN_EXE_memload");

fn command(line: &str) -> Command {
    let mut command = Command::new(MEMLOAD);
    command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(line: &str) -> Output {
    command(line).output().expect("memload starts")
}

fn report_of(line: &str, output: &Output) -> Report {
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {}: {stderr}", output.status);
    assert_eq!(stdout.lines().count(), 1, "{line}: one object, not {stdout}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{line}: {error}: {stdout}"))
}

fn report(line: &str) -> Report {
    report_of(line, &run(line))
}

/// What holds of every report of a load that nothing was in the way of.
fn assert_sane(line: &str, report: &Report) {
    assert_eq!(report.schema, 1, "{line}");
    assert!(report.ops > 0 && report.bytes > 0, "{line}: {report:?}");
    assert!(report.throughput_bytes_per_s > 0, "{line}: {report:?}");
    assert_eq!(report.latency_us.samples, report.ops, "{line}");
    let latency = &report.latency_us;
    let rising = [0.0, latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
    assert!(rising.is_sorted() && latency.p50 > 0.0, "{line}: {latency:?}");
    assert!(latency.mean > 0.0 && latency.mean <= latency.max, "{line}: {latency:?}");
    assert_eq!(report.errors.total(), 0, "{line}: {:?}", report.errors);
    assert_eq!((report.children_lost, report.short_reads), (0, 0), "{line}");
}

/// Runs a load for 0.2 s with small sizes and an allocator beside it.
fn assert_load(load: &str, more: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let shm = if load == "tmpfs" { Path::new("/dev/shm") } else { dir.path() };
    let line = format!(
        "{load} --duration 0.2 --size 8M --alloc-rate 100 --json --histogram --dir {} {more}",
        shm.display()
    );
    let report = report(&line);
    assert_sane(&line, &report);
    assert_eq!(report.load.name(), load);
    assert_eq!(report.size_bytes, 8 << 20);
    assert!((200..60_000).contains(&report.wall_ms), "{line}: {} ms", report.wall_ms);
    let pairs = report.histogram.as_deref().expect("a histogram was asked for");
    assert_eq!(Histogram::from_pairs(pairs).summary().samples, report.ops, "{line}");
    match (report.load, report.alloc_latency_us) {
        (Load::Alloc, beside) => assert_eq!(beside, None),
        (_, Some(beside)) => assert!(beside.samples > 0 && beside.p50 > 0.0, "{line}"),
        (_, None) => panic!("{line}: no allocator beside it"),
    }
    assert_eq!(report.hot_latency_us.is_some(), report.load == Load::Hotcold);
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0, "{line}: files stay");
}

#[test]
fn anon() {
    assert_load("anon", "");
}

#[test]
fn hotcold() {
    assert_load("hotcold", "--hot 1M");
}

#[test]
fn read() {
    assert_load("read", "");
    assert_load("read", "--fresh");
}

#[test]
fn dirty() {
    assert_load("dirty", "--rate 20M");
}

#[test]
fn tmpfs() {
    assert_load("tmpfs", "--chunk 64K");
}

#[test]
fn pipe() {
    assert_load("pipe", "");
}

#[test]
fn fork() {
    assert_load("fork", "--procs 3 --chunk 16K");
}

#[test]
fn mmap() {
    assert_load("mmap", "");
    assert_load("mmap", "--write");
}

#[test]
fn thp() {
    assert_load("thp", "");
}

#[test]
fn alloc() {
    assert_load("alloc", "");
}

#[test]
fn a_size_that_is_no_multiple_of_the_chunk_is_worked_through_all_the_same() {
    for load in ["anon", "read", "dirty", "tmpfs", "pipe", "mmap"] {
        let line = format!("{load} --size 1000000 --chunk 64K --ops 100 --json");
        let report = report(&line);
        assert_sane(&line, &report);
        assert_eq!(report.ops, 100, "{line}");
    }
}

#[test]
fn totals_and_operations_end_a_load_exactly() {
    let by_ops = report("anon --ops 50 --chunk 16K --json");
    assert_eq!((by_ops.ops, by_ops.bytes), (50, 50 * (16 << 10)));
    assert_eq!(by_ops.histogram, None);
    let by_total = report("dirty --size 2M --total 5M --json");
    assert_eq!(by_total.bytes, 5 << 20);
    assert_eq!(report("fork --ops 20 --chunk 4K --json").ops, 20);
}

#[test]
fn a_rate_is_held() {
    // 40 chunks a second, the first at once: 61 in 1.51 s; fewer only if the machine stalls at the end.
    let report = report("anon --rate 10M --duration 1.51 --json");
    assert!((10..=61).contains(&report.ops), "{report:?}");
    assert_eq!(report.rate_bytes_per_s, 10 << 20);
}

#[test]
fn copies_are_pooled() {
    let line = "anon --procs 3 --ops 40 --chunk 64K --alloc-rate 200 --json --histogram";
    let report = report(line);
    assert_sane(line, &report);
    assert_eq!((report.procs, report.ops), (3, 120));
    assert_eq!(report.bytes, 120 * (64 << 10));
    assert!(report.alloc_latency_us.is_some());
}

#[test]
fn refused_memory_is_counted_and_the_load_goes_on() {
    let limited = |limit: &str, line: &str| {
        let script = format!("ulimit {limit}; exec {MEMLOAD} {line}");
        let output = Command::new("sh").args(["-c", &script]).output().expect("sh starts");
        report_of(line, &output)
    };
    // Address space for about 40 MiB beside the program's own.
    let report = limited("-v 65536", "anon --size 256M --ops 400 --json");
    assert!(report.errors.enomem > 0 && report.ops > 0, "{report:?}");
    assert_eq!(report.ops + report.errors.enomem, 400);
    // Children that are refused it end with that errno.
    let report = limited("-v 65536", "fork --chunk 64M --ops 5 --json");
    assert_eq!((report.ops, report.children_lost, report.errors.enomem), (0, 5, 5));
    // Fewer pipes than asked for.
    let report = limited("-n 16", "pipe --size 64M --ops 100 --json");
    assert_eq!((report.ops, report.errors.total()), (100, 0));
}

fn children(pid: Pid) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Waits until something holds, a minute at most.
fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// Whether the process handles SIGTERM (bit 14 of SigCgt).
fn handles_sigterm(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << 14 != 0)
}

#[test]
fn a_stop_signal_ends_a_load_with_its_report() {
    for (line, signal) in [
        ("anon --json", Signal::SIGTERM),
        ("alloc --alloc-rate 1 --json", Signal::SIGINT),
        ("dirty --rate 1 --alloc-rate 50 --json", Signal::SIGINT),
        ("fork --json", Signal::SIGTERM),
        ("anon --procs 2 --rate 1M --json", Signal::SIGTERM),
        ("anon --start-delay 60 --json", Signal::SIGTERM),
    ] {
        // Longer where the machine has not let it do anything yet.
        let did_something = [250, 2_000, 20_000].into_iter().any(|after| {
            let child = command(line).spawn().expect("memload starts");
            let pid = pid_of(&child);
            until("memload handles SIGTERM", || handles_sigterm(pid));
            sleep(Duration::from_millis(after));
            kill(pid, signal).expect("it runs");
            let sent = Instant::now();
            let output = child.wait_with_output().expect("it ends");
            let report = report_of(line, &output);
            // At once, and not when its time is up, or its delay over.
            assert!(sent.elapsed() < Duration::from_secs(30), "{line}: {:?}", sent.elapsed());
            assert_eq!((report.errors.total(), report.children_lost), (0, 0), "{line}");
            report.ops > 0 || line.contains("--start-delay")
        });
        assert!(did_something, "{line}");
    }
}

#[test]
fn a_copy_that_is_killed_is_counted_and_the_others_go_on() {
    let line = "anon --procs 3 --rate 1M --duration 3 --json";
    let child = command(line).spawn().expect("memload starts");
    let pid = pid_of(&child);
    until("three copies", || children(pid).len() == 3);
    kill(children(pid)[0], Signal::SIGKILL).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    let report = report_of(line, &output);
    assert_eq!((report.children_lost, report.procs), (1, 3));
    assert!(report.ops > 0 && report.wall_ms >= 3000, "{report:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("killed by SIGKILL"), "{stderr}");
}

#[test]
fn copies_do_not_outlive_a_parent_that_is_killed() {
    let mut child = command("anon --procs 2 --rate 1M").spawn().expect("memload starts");
    let pid = pid_of(&child);
    until("two copies", || children(pid).len() == 2);
    kill(pid, Signal::SIGKILL).expect("it runs");
    // They hold the pipe of standard output: its end is theirs.
    let mut rest = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "");
    child.wait().expect("it has ended");
}

#[test]
fn what_cannot_run_says_why() {
    for (line, code, parts) in [
        ("read --dir /no/such/dir", 1, ["--dir /no/such/dir", "No such file"]),
        ("dirty --dir /proc", 1, ["--dir /proc", "cannot create a file there"]),
        ("mmap --procs 2 --dir /no/such/dir", 1, ["--dir /no/such/dir", "No such file"]),
        ("tmpfs --dir /no/such/dir", 1, ["--dir /no/such/dir", "No such file"]),
        ("tmpfs --dir /proc", 2, ["--dir /proc", "not on tmpfs"]),
        ("tmpfs --procs 2 --dir /proc", 2, ["--dir /proc", "not on tmpfs"]),
        ("anon --size 12Q", 2, ["--size", "12Q"]),
        ("anon --chunk 5000", 2, ["--chunk 5000", "page size"]),
        ("nothing", 2, ["nothing", "anon"]),
    ] {
        let output = run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        assert!(output.stdout.is_empty(), "{line}");
        for part in parts {
            assert!(stderr.contains(part), "{line}: no {part:?} in {stderr}");
        }
        if !line.contains("--procs") {
            continue;
        }
        assert_eq!(stderr.lines().count(), 1, "{line}: said once, not {stderr}");
    }
}

#[test]
fn a_table_is_for_people() {
    let output = run("hotcold --ops 20 --hot 1M --alloc-rate 100 --size 4M");
    let stdout = String::from_utf8_lossy(&output.stdout);
    for part in ["memload hotcold: size 4.0 MiB", "failed   nothing", "p99.9", "hot set", "20 ops"]
    {
        assert!(stdout.contains(part), "no {part:?} in {stdout}");
    }
}

#[test]
fn help_has_examples() {
    let output = run("--help");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("Examples:"), "{stdout}");
}

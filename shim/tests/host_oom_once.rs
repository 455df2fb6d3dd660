//! Kills at bad moments, each on record once: while memory is reclaimed, while a container is throttled, while the
//! daemon is restarted; and what ten thousand of them leave behind. `CGSHIM_OOM_DEATHS` deaths, fewer without it.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgroupfs::files::ControlDir;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::api::message::Register;
use cgshim::core::oom::Record;
use cgshim::oom::{Found, MOST_RECORDS, all, find};
use common::{DiskFile, Ground, Load, alone, memory, skip, until, without_swap};
use daemons::{Daemon, RunDir, known};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn container(ground: &Ground, name: &str, limit: Bytes) -> Arc<Cgroup> {
    let group = ground.group(name);
    without_swap(&group);
    memory(&group).set_limit(Limit::Bytes(limit)).unwrap();
    group
}

fn oom_kill(group: &Arc<Cgroup>) -> u64 {
    memory(group).counters().unwrap().oom_kill.unwrap()
}

/// The records of a group.
fn records(run: &RunDir, group: &Cgroup) -> Vec<Record> {
    let own = group.path().display().to_string();
    all(&run.path()).unwrap().into_iter().filter(|record| record.cgroup == own).collect()
}

/// Every kill of a group is on record, and none twice: also not a second later.
fn each_is_on_record_once(run: &RunDir, group: &Arc<Cgroup>) {
    let kills = oom_kill(group);
    let recorded = || records(run, group).iter().map(|record| record.kills).sum::<u64>();
    until("every kill is on record", 10 * SECOND, || recorded() >= kills);
    std::thread::sleep(SECOND);
    assert_eq!(recorded(), kills, "{:#?}", records(run, group));
}

/// A process in `group` that fills more than it may, once it is told to go: a shell alone.
fn greedy(group: &Cgroup) -> Child {
    let script =
        "echo $$ > \"$0\" && echo && read -r go; s=0123456789abcdef; while :; do s=$s$s; done";
    let mut child = Command::new("/bin/sh")
        .args(["-c", script])
        .arg(group.path().join("cgroup.procs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

/// Has it killed.
fn go(mut child: Child) {
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_kill_while_its_cache_is_reclaimed_is_recorded_once() {
    let test = "a_kill_while_its_cache_is_reclaimed_is_recorded_once";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let run = RunDir::new("[defaults]\nwatermark = '50%:30%'\n");
    let daemon = run.serve();
    let group = container(&ground, "c", Bytes::mib(128));
    let file = DiskFile::new(Bytes::mib(256));
    let mut reader = Load::in_group(&group);
    daemon.register(&known(&ground, "c", reader.pid())).unwrap();
    reader.stream(&file, Bytes::mib(400));
    for _ in 0..4 {
        let rounds = daemon.stat("c").reclaim.rounds;
        until("it is being reclaimed from", 10 * SECOND, || {
            daemon.stat("c").reclaim.rounds > rounds
        });
        go(greedy(&group));
    }
    assert!(oom_kill(&group) >= 4 && reader.is_alive());
    each_is_on_record_once(&run, &group);
    let deeds = records(&run, &group).into_iter().flat_map(|record| record.deeds);
    assert!(
        deeds.map(|deed| deed.what).any(|what| what != "adopted"),
        "no record tells of reclaim"
    );
}

#[test]
fn a_kill_while_it_is_throttled_is_recorded_once() {
    let test = "a_kill_while_it_is_throttled_is_recorded_once";
    let Some(ground) = Ground::new(test) else { return };
    if !ground.v1() {
        return skip(test, "cgroup v2 throttles above memory.high itself");
    }
    let _alone = alone();
    let run = RunDir::new("[defaults]\nhigh = '32M'\n");
    let daemon = run.serve();
    let group = container(&ground, "c", Bytes::mib(96));
    let mut grower = Load::in_group(&group);
    daemon.register(&known(&ground, "c", grower.pid())).unwrap();
    grower.grow(Bytes::mib(20), Bytes::mib(64));
    let pulses = || daemon.stat("c").throttled.map_or(0, |throttled| throttled.pulses);
    until("it is throttled", 20 * SECOND, || pulses() > 2);
    for _ in 0..3 {
        go(greedy(&group));
    }
    assert!(oom_kill(&group) >= 3);
    each_is_on_record_once(&run, &group);
}

#[test]
fn a_kill_while_the_daemon_is_restarted_is_recorded_once() {
    let test = "a_kill_while_the_daemon_is_restarted_is_recorded_once";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let run = RunDir::new("");
    let group = container(&ground, "c", Bytes::mib(16));
    let init = Load::in_group(&group);
    let mut daemon = run.serve();
    daemon.register(&known(&ground, "c", init.pid())).unwrap();
    for n in 0..8 {
        let child = greedy(&group);
        let killed = match n % 4 {
            // Just before the daemon is killed, and at the same time.
            0 => {
                go(child);
                daemon.kill();
                None
            }
            1 | 2 => {
                let killed = std::thread::spawn(move || go(child));
                std::thread::sleep(Duration::from_millis(n));
                daemon.kill();
                Some(killed)
            }
            // While there is none.
            _ => {
                daemon.kill();
                go(child);
                None
            }
        };
        daemon = run.serve();
        if let Some(killed) = killed {
            killed.join().unwrap();
        }
    }
    assert_eq!(oom_kill(&group), 8);
    each_is_on_record_once(&run, &group);
    let view = daemon.stat("c");
    assert_eq!(view.oom_kills, 8);
}

#[test]
fn the_operators_program_is_run_for_every_oom_and_gets_its_record() {
    let test = "the_operators_program_is_run_for_every_oom_and_gets_its_record";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (program, out) = (dir.path().join("hook"), dir.path().join("out"));
    let script = "#!/bin/sh\nread -r record\nprintf '%s %s %s %s %s\\n' \"$CGSHIM_CONTAINER\" \"$CGSHIM_RECORD\" \
                  \"$CGSHIM_CAUSE\" \"$2\" \"$record\" >> \"$1\"\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let run = RunDir::new(&format!(
        "[daemon]\noom_hook = ['{}', '{}', 'an argument']\n",
        program.display(),
        out.display()
    ));
    let daemon = run.serve();
    let group = container(&ground, "c", Bytes::mib(16));
    let init = Load::in_group(&group);
    daemon.register(&known(&ground, "c", init.pid())).unwrap();
    for _ in 0..2 {
        go(greedy(&group));
    }
    let said = || fs::read_to_string(&out).unwrap_or_default();
    until("it was run twice", 10 * SECOND, || said().lines().count() == 2);
    for line in said().lines() {
        let parts: Vec<&str> = line.splitn(6, ' ').collect();
        let record: Record = serde_json::from_str(parts[5]).unwrap();
        assert_eq!(parts[..5], ["c", &record.id, record.cause.as_str(), "an", "argument"]);
        assert!(record.settled && record.kills == 1);
        assert!(matches!(find(&run.path(), &record.id).unwrap(), Found::Records(_)));
    }
}

#[test]
fn a_program_that_hangs_fails_or_is_not_there_keeps_nobody_from_anything() {
    let test = "a_program_that_hangs_fails_or_is_not_there_keeps_nobody_from_anything";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (program, pids) = (dir.path().join("hook"), dir.path().join("pids"));
    // It never reads its input, nor does what it starts, whose end it waits for.
    let script =
        format!("#!/bin/sh\nsleep 600 & echo $! >> {0}; echo $$ >> {0}\nwait\n", pids.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let run = RunDir::new(&format!("[daemon]\noom_hook = ['{}']\n", program.display()));
    let daemon = run.serve();
    let group = container(&ground, "c", Bytes::mib(16));
    let init = Load::in_group(&group);
    daemon.register(&known(&ground, "c", init.pid())).unwrap();
    for n in 1..=10 {
        go(greedy(&group));
        until("it is on record", 10 * SECOND, || records(&run, &group).len() == n);
    }
    until("too many are not started", 10 * SECOND, || daemon.log().contains("run already"));
    assert_eq!(daemon.stat("c").oom_kills, 10);
    let started = || fs::read_to_string(&pids).unwrap_or_default();
    until("eight have written", 10 * SECOND, || started().lines().count() == 16);
    let alive = || {
        let is_alive = |pid: &&str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        started().lines().filter(is_alive).count()
    };
    until("they are killed, with what they had started", 15 * SECOND, || alive() == 0);
    until("that is said", 10 * SECOND, || daemon.log().contains("killed after 10 s"));
    // The daemon's end is theirs.
    go(greedy(&group));
    until("one more runs", 10 * SECOND, || started().lines().count() == 18);
    drop(daemon.next_after(Signal::SIGTERM));
    until("it does no more", 10 * SECOND, || alive() == 0);
    for (command, said) in [("/bin/false", "exit status: 1"), ("/nowhere/hook", "No such file")] {
        run.configure(&format!("[daemon]\noom_hook = ['{command}']\n"));
        let daemon = run.serve();
        go(greedy(&group));
        until("it is said", 10 * SECOND, || daemon.log().contains(said));
        assert!(daemon.list().iter().any(|view| view.id == "c"));
        daemon.stop();
    }
    each_is_on_record_once(&run, &group);
}

/// Resident memory of a daemon, in bytes.
fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn of_ten_thousand_deaths_the_newest_thousand_answer_and_the_daemon_has_not_grown() {
    let test = "of_ten_thousand_deaths_the_newest_thousand_answer_and_the_daemon_has_not_grown";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let asked = std::env::var("CGSHIM_OOM_DEATHS").ok().and_then(|text| text.parse().ok());
    let deaths: u64 = asked.unwrap_or(160);
    let run = RunDir::new("");
    let daemon = run.serve();
    let before = resident(&daemon);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = daemon.client();
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= deaths {
                        return;
                    }
                    let name = format!("d{n}");
                    let group = container(&ground, &name, Bytes::mib(4));
                    let child = greedy(&group);
                    let asked: Register = known(&ground, &name, child.id());
                    let request = cgshim::api::message::Request::Register(asked);
                    client.ask::<serde_json::Value>(request).unwrap();
                    go(child);
                    drop(group);
                    ground.dir.remove_child(&name, 5 * SECOND).unwrap();
                }
            });
        }
    });
    let most = u64::try_from(MOST_RECORDS).unwrap();
    // Each of them, and none twice: by name, so that it is seen whose is missing.
    let odd = || {
        let mut records: BTreeMap<String, u64> = BTreeMap::new();
        for record in all(&run.path()).unwrap() {
            *records.entry(record.container).or_default() += 1;
        }
        // Eight at a time are in no order.
        let kept = |n: &u64| deaths <= most || *n >= deaths - most + 16;
        let names = (0..deaths).filter(kept).map(|n| format!("d{n}"));
        let counted = names.map(|name| (records.get(&name).copied().unwrap_or(0), name));
        counted.filter(|(records, _)| *records != 1).collect::<Vec<_>>()
    };
    let give_up = Instant::now() + 60 * SECOND;
    while !odd().is_empty() {
        assert!(Instant::now() < give_up, "records: {:?}", odd());
        std::thread::sleep(SECOND / 10);
    }
    std::thread::sleep(3 * SECOND);
    let grown = resident(&daemon).saturating_sub(before);
    let more = grown >> 10;
    let line = format!("{deaths} deaths: {more} KiB more than empty, {} KiB", before >> 10);
    let _ = writeln!(std::io::stderr(), "{line}");
    for n in (deaths.saturating_sub(most) + 16..deaths).step_by(40) {
        let found = find(&run.path(), &format!("d{n}")).unwrap();
        assert!(matches!(found, Found::Records(records) if records.len() == 1), "d{n}");
    }
    if deaths > most {
        assert!(matches!(
            find(&run.path(), &format!("d{}", deaths - most - 16)).unwrap(),
            Found::Expired
        ));
    }
    assert!(matches!(find(&run.path(), "never").unwrap(), Found::Unknown));
    assert!(grown <= 2 << 20, "{line}");
}

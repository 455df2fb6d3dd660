//! What the daemon stands, and what it costs: hostile messages, and a thousand containers that do nothing.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgshim::api::SOCKET;
use cgshim::api::message::{Register, Registered, Request};
use common::{Ground, Load, alone, join, memory, until};
use daemons::{Daemon, LIMIT, container, known};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine needs now and then; not what is promised.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_hundred_thousand_hostile_messages_change_nothing() {
    let Some(ground) = Ground::new("a_hundred_thousand_hostile_messages_change_nothing") else {
        return;
    };
    let _alone = alone();
    let daemon = Daemon::with_config("");
    let (_group, load) = container(&ground, "g", LIMIT);
    let good = known(&ground, "a", load.pid());
    daemon.register(&good).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut sent = 0;
    let mut batch = |count: usize| {
        while sent < count {
            let mut stream = UnixStream::connect(daemon.run_dir().join(SOCKET)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let lines = if sent % 64 == 0 { 1 } else { 50 };
            let mut bytes = Vec::new();
            for _ in 0..lines {
                bytes.extend(hostile(&mut next, &good));
                bytes.push(b'\n');
            }
            sent += lines;
            // An answer each, or the end of the connection: never silence.
            let mut reader = stream.try_clone().unwrap();
            let reading = std::thread::spawn(move || {
                let mut answers = Vec::new();
                let _ = reader.read_to_end(&mut answers);
                answers
            });
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let answers = reading.join().unwrap();
            assert!(answers.starts_with(b"{\"schema\":1,\"ok\":"), "{answers:?}");
        }
    };
    batch(5_000);
    // The last connection of the batch may not be closed yet, and a threshold not armed: a few more, or fewer.
    std::thread::sleep(SECOND);
    const FEW: usize = 8;
    let (descriptors, resident) = (daemon.descriptors().len(), daemon.number("VmRSS:"));
    // An emulated machine takes a minute for a few thousand.
    let all = if std::env::var_os("CGSHIM_LANE").is_some() { 10_000 } else { 100_000 };
    batch(all);
    until("every descriptor is closed", PATIENCE, || {
        daemon.descriptors().len() <= descriptors + FEW
    });
    let open = daemon.descriptors();
    let grown = daemon.number("VmRSS:").saturating_sub(resident);
    assert!(grown < 2048, "{resident} and {grown} KiB more");
    let freezer = cgroupfs::Mounts::read().unwrap();
    let freezer = freezer.v1("freezer").map(|mount| mount.mount_point.as_path());
    for file in open.iter().filter(|file| file.starts_with("/sys")) {
        let ours = file.starts_with(&ground.hierarchy.mount_point);
        assert!(ours || Some(file.as_path()) == freezer, "{}", file.display());
    }
    let ids: Vec<String> = daemon.list().into_iter().map(|view| view.id).collect();
    assert_eq!(ids, ["a"]);
    assert!(!daemon.log().contains("panicked"));
    assert!(daemon.log().len() < 1 << 20, "the log is not limited");
}

/// One of many ways to be wrong.
fn hostile(next: &mut impl FnMut() -> u64, good: &Register) -> Vec<u8> {
    let mut register = serde_json::to_value(good).unwrap();
    register["schema"] = json!(1);
    register["op"] = json!("register");
    register["id"] = json!(format!("h{}", next() % 1000));
    let paths = [
        "/",
        "//",
        "/..",
        "/../..",
        "/a/../../etc",
        "relative",
        "",
        "/proc/1",
        "/sys/fs/cgroup",
        "/no/such/group",
        "/./.",
        "\u{0}",
        "/\u{202e}x",
    ];
    let path = || good.cgroup.clone();
    match next() % 16 {
        0 => {
            (0..next() % 300).map(|_| (next() % 256) as u8).filter(|byte| *byte != b'\n').collect()
        }
        1 => vec![b'['; usize::try_from(next() % 60_000).unwrap()],
        2 => format!("{}1{}", "{\"a\":".repeat(2000), "}".repeat(2000)).into_bytes(),
        3 => b"{\"schema\":1,\"op\":\"stat\",\"id\":\"\xff\xfe\"}".to_vec(),
        4 => json!({"schema": next(), "op": "ping"}).to_string().into_bytes(),
        5 => json!({"schema": 1, "op": "set", "id": "a", "terms": {"high": "9e99%"}})
            .to_string()
            .into_bytes(),
        6 => json!({"schema": 1, "op": "release", "id": "../../a"}).to_string().into_bytes(),
        7 => json!({"schema": 1, "op": "reclaim", "id": "", "bytes": u64::MAX})
            .to_string()
            .into_bytes(),
        8 => vec![b'x'; if next().is_multiple_of(50) { 70_000 } else { 100 }],
        9 => {
            let text = register.to_string();
            text.as_bytes()[..usize::try_from(next()).unwrap_or(0) % text.len()].to_vec()
        }
        10 => {
            // Any but the right one.
            let pid = (next() % 40_000) as i32;
            register["pid"] = json!(if pid == good.pid { 0 } else { pid });
            register.to_string().into_bytes()
        }
        11 => {
            register["cgroup"] = json!(paths[usize::try_from(next() % 13).unwrap()]);
            register.to_string().into_bytes()
        }
        12 => {
            register["cgroup"] = json!(format!(
                "{}/../{}",
                path(),
                "x".repeat(usize::try_from(next() % 9000).unwrap())
            ));
            register.to_string().into_bytes()
        }
        13 => {
            register["id"] =
                json!(format!("{}\u{7}", "i".repeat(usize::try_from(next() % 600).unwrap())));
            register.to_string().into_bytes()
        }
        14 => {
            register["start_time"] = json!(next());
            register.to_string().into_bytes()
        }
        _ => {
            register["annotations"] = json!({"io.cgshim.high": {"deep": [[[]]]}});
            register.to_string().into_bytes()
        }
    }
}

#[test]
fn a_thousand_idle_containers_cost_next_to_nothing() {
    let Some(ground) = Ground::new("a_thousand_idle_containers_cost_next_to_nothing") else {
        return;
    };
    let _alone = alone();
    let daemon = Daemon::with_config("");
    let parent = ground.hierarchy.enable_memory(ground.path()).unwrap();
    let mut client = daemon.client();
    // One process that has been in each of them.
    let first = parent.create_child("c0").unwrap();
    let load = Load::in_group(&first);
    // In an emulated machine, which takes half a second for each, 200 of them.
    let count = if std::env::var_os("CGSHIM_LANE").is_some() { 200 } else { 1000 };
    for n in 0..count {
        let group = match n {
            0 => Arc::new(parent.child("c0").unwrap()),
            _ => Arc::new(parent.create_child(&format!("c{n}")).unwrap()),
        };
        memory(&group).set_limit(LIMIT).unwrap();
        join(&group, load.pid());
        let asked = known(&ground, &format!("c{n}"), load.pid());
        client.ask::<Registered>(Request::Register(asked)).unwrap();
    }
    assert_eq!(daemon.list().len(), count);
    let switches =
        || daemon.number("voluntary_ctxt_switches:") + daemon.number("nonvoluntary_ctxt_switches:");
    // Each threshold takes a grace period of the kernel's to arm; and what others do to the host may wake it once.
    let mut a_second = f64::MAX;
    until("all are armed, and it rests", 180 * SECOND, || {
        let (before, start) = (switches(), Instant::now());
        std::thread::sleep(4 * SECOND);
        a_second = (switches() - before) as f64 / start.elapsed().as_secs_f64();
        a_second <= 5.0
    });
    let resident = daemon.number("VmRSS:");
    let descriptors = daemon.descriptors().len();
    let _ = writeln!(
        std::io::stderr(),
        "{count} idle containers: {a_second:.1} context switches a second, {resident} KiB resident, \
         {descriptors} descriptors"
    );
    // All of the program is locked, and one with debug assertions is larger.
    let most = if cfg!(debug_assertions) { 24 << 10 } else { 16 << 10 };
    assert!(resident <= most, "{resident} KiB resident");
    // 18 each: the files of its OOMs, limits and thresholds.
    assert!(descriptors < 18_100, "{descriptors} descriptors");
}

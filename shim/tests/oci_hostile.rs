//! What a hook is handed by whoever may start containers: 100,000 states that are hostile or damaged. Alone in
//! its process, whose open files and memory are counted.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

use cgshim::oci::hook::{self, Outcome, Stage};
use cgshim::oci::spool;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bundles that nobody should have: each a directory with something as its `config.json`.
fn hostile_bundles(dir: &Path) -> Vec<String> {
    let config = |name: &str| {
        let bundle = dir.join(name);
        fs::create_dir(&bundle).unwrap();
        bundle.join("config.json")
    };
    nix::unistd::mkfifo(&config("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/etc/shadow", config("link")).unwrap();
    symlink("/dev/zero", config("device")).unwrap();
    fs::create_dir(config("directory")).unwrap();
    let huge = fs::File::create(config("huge")).unwrap();
    huge.set_len(cgshim::oci::spec::LARGEST + 1).unwrap();
    fs::write(config("deep"), "[".repeat(5_000)).unwrap();
    let nested = format!("{{\"linux\":{}1{}}}", "{\"a\":".repeat(1_000), "}".repeat(1_000));
    fs::write(config("nested"), nested).unwrap();
    fs::write(config("binary"), [0xff, 0xfe, 0, b'{']).unwrap();
    fs::write(config("odd"), r#"{"linux":{"cgroupsPath":"../../..:a:b:"},"process":[]}"#).unwrap();
    let mut bundles: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .collect();
    bundles.push(format!("{}/odd/../odd", dir.display()));
    bundles.extend(["/proc/self/fd/0", "/dev", "", ".", "..", "/", "a\\u0000b"].map(String::from));
    bundles
}

/// A state that no runtime would write: recorded ones with a few members swapped for worse, then damaged.
fn hostile_state(dice: &mut Dice, states: &[String], bundles: &[String]) -> Vec<u8> {
    let mut text = states[dice.roll(states.len())].clone();
    let mut put = |member: &str, value: &str| {
        text.insert_str(text.rfind('}').unwrap(), &format!(",\"{member}\":{value}"));
    };
    let own = std::process::id().to_string();
    if dice.roll(2) == 0 {
        // Beside the first, which makes two of them.
        put("extra", "{\"a\":[1,{\"b\":null}]}");
    }
    if dice.roll(3) == 0 {
        let depth = dice.roll(500);
        put("deep", &format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    }
    let ids =
        ["../../x", "..", "a/b", "\\u0000", "\\n\\r\\u001b[2J", "é\\ud83d\\ude00", "%2e", " "];
    let pids = ["0", "1", "2", "-1", "1e3", "4294967296", "2147483647", "\"7\"", "null", &own];
    for (member, value) in [
        ("id", format!("\"{}\"", dice.pick(&ids).repeat(1 + dice.roll(2) * dice.roll(300)))),
        ("pid", dice.pick(&pids).to_owned()),
        ("bundle", format!("\"{}\"", bundles[dice.roll(bundles.len())])),
        (
            "annotations",
            format!("{{\"io.cgshim.{}\":\"{}\"}}", dice.pick(&ids), "v".repeat(dice.roll(1_500))),
        ),
    ] {
        if dice.roll(2) == 0 {
            // In place of the recorded one: two members of one name would be refused.
            if let Some(at) = text.find(&format!("\"{member}\":")) {
                text.replace_range(at + 1..at + 2, "_");
            }
            text.insert_str(text.rfind('}').unwrap(), &format!(",\"{member}\":{value}"));
        }
    }
    let mut bytes = text.into_bytes();
    if dice.roll(3) == 0 {
        for _ in 0..1 + dice.roll(4) {
            let at = dice.roll(bytes.len());
            match dice.roll(4) {
                0 => bytes[at] = dice.roll(256) as u8,
                1 => bytes.truncate(at + 1),
                2 => bytes
                    .insert(at, *dice.pick(&[b"\"", b"{", b"\\", b"\xff", b"0"]).first().unwrap()),
                _ => drop(bytes.remove(at)),
            }
            if bytes.is_empty() {
                break;
            }
        }
    }
    bytes
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 100,000 of them: no panic, nothing left open, nothing written but well-named files in the spool.
#[test]
fn a_hundred_thousand_hostile_states_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bundles")).unwrap();
    let bundles = hostile_bundles(&dir.path().join("bundles"));
    let run = dir.path().join("run");
    let states = samples();
    let mut dice = Dice(20_260_101);
    let (mut spooled, mut failed, mut longest) = (0, 0, Duration::ZERO);
    let mut before = (0, 0);
    for round in 0..100_000 {
        let state = hostile_state(&mut dice, &states, &bundles);
        let stage = if dice.roll(3) == 0 { Stage::Poststop } else { Stage::CreateRuntime };
        let start = Instant::now();
        let report = hook::run(stage, &state, &run, start + Duration::from_secs(1));
        longest = longest.max(start.elapsed());
        match report.outcome {
            Outcome::Spooled(_) => spooled += 1,
            Outcome::Failed(_) => failed += 1,
            ref odd => panic!("{odd:?}: {}", String::from_utf8_lossy(&state)),
        }
        let message = report.message();
        assert!(message.len() < 16 << 10, "{} bytes: {message}", message.len());
        assert!(
            message.chars().all(|c| c == '\n' || !c.is_control()),
            "terminals obey: {message:?}"
        );
        if round % 10_000 == 1_000 {
            for entry in fs::read_dir(run.join("spool")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                let id = spool::unescape(name.strip_suffix(".json").unwrap()).unwrap();
                let value: serde_json::Value =
                    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                assert_eq!(value["id"], id.as_str());
                fs::remove_file(&path).unwrap();
            }
            if before == (0, 0) {
                before = (open_files(), resident_kib());
            }
        }
    }
    assert_eq!(open_files(), before.0);
    assert!(resident_kib() < before.1 + 24 * 1024, "{before:?} KiB, now {}", resident_kib());
    assert!(spooled > 5_000 && failed > 5_000, "{spooled} spooled, {failed} failed");
    // The deadline is a second, and a machine may be busy with more than this.
    assert!(longest < Duration::from_secs(15), "{longest:?}");
    let found: Vec<PathBuf> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found.len(), 2, "{found:?}");
}

/// Recorded states to start from.
fn samples() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/oci/state");
    let files = fs::read_dir(dir).unwrap();
    let mut found: Vec<_> =
        files.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    found.sort();
    assert!(found.len() > 5);
    found
}

/// xorshift64*, so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.roll(of.len())]
    }
}

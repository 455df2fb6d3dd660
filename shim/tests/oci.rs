//! What runtimes wrote is understood, what is edited keeps every other byte, and what is hostile does no
//! harm. Over the states and specifications of real runs in `testdata/oci`.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

mod installed;

use cgshim::oci::inject::{self, Entry};
use cgshim::oci::{Spec, State};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn samples(kind: &str, of: &str) -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/oci").join(kind);
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| name.contains(of))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{kind} {of}");
    found
}

#[test]
fn every_runtimes_state_names_container_and_process() {
    for (name, text) in samples("state", "createRuntime") {
        let mut notes = Vec::new();
        let state = State::parse(text.as_bytes(), &mut notes).unwrap();
        assert!(!state.id.is_empty() && state.pid.unwrap() > 1, "{name}: {state:?}");
        assert!(state.bundle.unwrap().is_absolute(), "{name}");
        let status = if name.contains("crun") { "created" } else { "creating" };
        assert_eq!(state.status.as_deref(), Some(status), "{name}");
        if name.starts_with("podman") || name.starts_with("containerd") {
            assert_eq!(state.annotations.0["io.cgshim.high"], "90%", "{name}");
        }
        assert!(state.annotations.0.keys().all(|key| key.starts_with("io.cgshim.")), "{name}");
        assert!(notes.is_empty(), "{name}: {notes:?}");
    }
    for (name, text) in samples("state", "poststop") {
        let state = State::parse(text.as_bytes(), &mut Vec::new()).unwrap();
        assert_eq!(state.pid, None, "{name}");
        assert_eq!(state.status.as_deref(), Some("stopped"), "{name}");
    }
}

#[test]
fn states_of_other_versions_are_understood_too() {
    let odd = br#"{"id":"web","status":"starting","pid":12,"root":"/r","bundle":7,"owner":"x",
                  "annotations":{"io.cgshim.high":1,"io.cgshim.oom":"kill"},"new":{"a":[]}}"#;
    let mut notes = Vec::new();
    let state = State::parse(odd, &mut notes).unwrap();
    assert_eq!((state.pid, state.bundle), (Some(12), None));
    assert_eq!(state.annotations.0.len(), 1);
    assert_eq!(notes.len(), 2, "{notes:?}");
    for bad in ["", "{}", "[]", "null", "{\"id\":\"\"}", "{\"id\":7}", "{\"id\":\"a\"", "\u{0}"] {
        assert!(State::parse(bad.as_bytes(), &mut Vec::new()).is_err(), "{bad:?}");
    }
}

#[test]
fn every_recorded_specification_is_read() {
    for (name, text) in samples("spec", ".json") {
        let mut notes = Vec::new();
        let spec = Spec::parse(text.as_bytes(), &mut notes).unwrap();
        assert!(notes.is_empty(), "{name}: {notes:?}");
        if name == "runc.json" {
            assert_eq!(spec, Spec::default(), "{name}");
            continue;
        }
        assert!(spec.cgroups_path.unwrap().starts_with("/example/"), "{name}");
        assert_eq!(spec.memory.unwrap().limit(), Some(64 << 20), "{name}");
        if name == "crun.json" {
            assert_eq!(spec.oom_score_adj, Some(500));
        }
    }
}

#[test]
fn a_section_that_is_not_understood_costs_no_other() {
    let text = br#"{"process":{"oomScoreAdj":-997,"capabilities":{"bounding":["CAP_OF_TOMORROW"]}},
        "annotations":["none"],
        "linux":{"cgroupsPath":"/a","resources":{"memory":{"limit":"much"}},"namespaces":[{"type":"time2"}],
                 "seccomp":{"defaultAction":"SCMP_ACT_OF_TOMORROW"}}}"#;
    let mut notes = Vec::new();
    let spec = Spec::parse(text, &mut notes).unwrap();
    assert_eq!((spec.oom_score_adj, spec.cgroups_path.as_deref()), (Some(-997), Some("/a")));
    assert_eq!(spec.memory, None);
    assert_eq!(notes.len(), 2, "{notes:?}");
}

// --- the edit

fn entry() -> Entry {
    Entry { path: inject::HOOK_PATH.into(), run_dir: None }
}

const OURS: &str = r#"{"path":"/usr/libexec/oci/hooks.d/cgshim-hook","args":["cgshim-hook","STAGE"],"timeout":10}"#;

/// The document without what an injection adds.
fn taken_out(text: &str) -> String {
    let mut text = text.to_owned();
    for stage in inject::STAGES {
        let ours = OURS.replace("STAGE", stage);
        assert_eq!(text.matches(&ours).count(), 1, "{stage}: {text}");
        text = text.replace(&format!(",{ours}"), "").replace(&ours, "");
        for gone in [format!("\"{stage}\":[],"), format!("\"{stage}\":[]")] {
            text = text.replace(&gone, "");
        }
    }
    text.replace("\"hooks\":{},", "").replace("\"hooks\":{}", "")
}

#[test]
fn an_edit_keeps_every_other_byte() {
    let odd = [
        r#"{"a":1.0,"b":1e3,"c":1E+400,"d":-0,"e":123456789012345678901234567890,"f":0.10}"#,
        "{ \"ü\" : \"\\u00fc\\/\\ud83d\\ude00\" ,\n\t\"x\":[ ] }\n\n",
        r#"{"process":{"oomScoreAdj":1},"hooks":{"prestart":[{"path":"/x","new":1.50}],"other":[3]},"z":null}"#,
        r#"{"z":1,"hooks":{"poststop":[ {"path":"/a" , "env":["A=\u0041"]} ],"createRuntime":[{"path":"/b"}]}}"#,
    ];
    let recorded = samples("spec", ".json");
    for text in odd.into_iter().chain(recorded.iter().map(|(_, text)| text.as_str())) {
        let edited = inject::edited(text, &entry()).unwrap().unwrap();
        assert_eq!(taken_out(&edited), text);
        assert_eq!(inject::edited(&edited, &entry()).unwrap(), None, "a second time: {edited}");
        // And readers see the hook, last in its list.
        let value: serde_json::Value = match serde_json::from_str(&edited) {
            Ok(value) => value,
            Err(error) => {
                assert!(text.contains("1E+400"), "{error}: {edited}");
                continue;
            }
        };
        for stage in inject::STAGES {
            let last = value["hooks"][stage].as_array().unwrap().last().unwrap();
            assert_eq!(last["args"][1], stage);
            assert_eq!(last["path"], inject::HOOK_PATH);
        }
    }
}

#[test]
fn empty_and_null_hooks_are_filled() {
    for text in [
        "{}",
        r#"{"hooks":null,"a":1}"#,
        r#"{"hooks":{}}"#,
        r#"{"hooks":{"createRuntime":null}}"#,
        r#"{"hooks":{"createRuntime":[ ],"poststop":[]}}"#,
    ] {
        let edited = inject::edited(text, &entry()).unwrap().unwrap();
        let value: serde_json::Value = serde_json::from_str(&edited).unwrap();
        for stage in inject::STAGES {
            assert_eq!(value["hooks"][stage].as_array().unwrap().len(), 1, "{edited}");
        }
    }
}

#[test]
fn what_cannot_be_edited_is_said_with_its_place() {
    for (text, said) in [
        ("{\"a\":1,}", "line 1 column 8"),
        ("[]", "the document: invalid type: sequence, expected an object"),
        (r#"{"hooks":[]}"#, "hooks: invalid type: sequence"),
        (r#"{"hooks":{"createRuntime":{}}}"#, "hooks.createRuntime: "),
        (r#"{"hooks":{},"hooks":{}}"#, "two members are named 'hooks'"),
        ("", "EOF"),
    ] {
        let error = inject::edited(text, &entry()).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn a_bundles_file_keeps_owner_mode_and_links() {
    let dir = tempfile::tempdir().unwrap();
    let (real, config) = (dir.path().join("real.json"), dir.path().join("config.json"));
    fs::write(&real, "{\"a\":1}").unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&real, Some(12), Some(34)).unwrap();
    }
    symlink(&real, &config).unwrap();
    assert!(inject::inject(&config, &entry()).unwrap());
    assert!(!inject::inject(&config, &entry()).unwrap());
    let metadata = fs::metadata(&real).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    if root {
        use std::os::unix::fs::MetadataExt;
        assert_eq!((metadata.uid(), metadata.gid()), (12, 34));
    }
    assert!(fs::symlink_metadata(&config).unwrap().is_symlink());
    assert_eq!(taken_out(&fs::read_to_string(&config).unwrap()), "{\"a\":1}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");

    fs::write(&real, "{\"annotations\":{\"io.cgshim.strict\":\"true\"},\"hooks\":3}").unwrap();
    let error = inject::inject(&config, &entry()).unwrap_err();
    assert!(error.strict && error.to_string().contains("config.json: hooks: "), "{error}");
    let gone = inject::inject(&dir.path().join("none"), &entry()).unwrap_err();
    assert!(!gone.strict, "{gone}");
}

#[test]
fn the_installed_hook_is_small_and_static() {
    let name = "the_installed_hook_is_small_and_static";
    let Some(program) = installed::current("cgshim-hook") else {
        let why = "no current target/static/cgshim-hook: ci/build-static --hook makes it";
        let _ = writeln!(std::io::stderr(), "SKIP {name}: {why}");
        return;
    };
    let size = fs::metadata(&program).unwrap().len();
    assert!(size <= 1_500_000, "{size} bytes");
    let bytes = fs::read(&program).unwrap();
    let needle = b"/lib64/ld-linux";
    assert!(!bytes.windows(needle.len()).any(|window| window == needle), "it needs an interpreter");
}

// --- damage

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

/// The wrapper's side: damaged specifications are refused or edited, and never made worse.
#[test]
fn hostile_specifications_are_edited_soundly_or_not_at_all() {
    let specs = samples("spec", ".json");
    let mut dice = Dice(7);
    let (mut edited, mut refused) = (0, 0);
    for _ in 0..5_000 {
        let mut bytes = specs[dice.roll(specs.len())].1.clone().into_bytes();
        for _ in 0..dice.roll(3) {
            let at = dice.roll(bytes.len());
            match dice.roll(3) {
                0 => {
                    bytes[at] = *dice
                        .pick(&[b"{", b"}", b"[", b"]", b"\"", b",", b"\\", b"7"])
                        .first()
                        .unwrap()
                }
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b' '),
            }
        }
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        match inject::edited(text, &entry()) {
            Ok(Some(new)) => {
                edited += 1;
                assert!(serde_json::from_str::<serde_json::Value>(&new).is_ok(), "{new}");
                assert_eq!(inject::edited(&new, &entry()), Ok(None));
            }
            Ok(None) => panic!("nothing to add to {text}"),
            Err(_) => refused += 1,
        }
    }
    assert!(edited > 1_000 && refused > 500, "{edited} edited, {refused} refused");
}

//! `cgctl install` and `cgctl hook inject` on a system below a directory: what they change, what they print,
//! and that `--undo` leaves every byte as it was.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HOOK: &str = "/usr/libexec/oci/hooks.d/cgshim-hook";
const WRAPPER: &str = "/usr/bin/cgshim-runtime";

/// A system with the programs installed.
struct System(tempfile::TempDir);

impl System {
    fn new() -> System {
        let system = System(tempfile::tempdir().unwrap());
        for program in [HOOK, WRAPPER] {
            system.write(program, "");
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(system.path(program), mode).unwrap();
        }
        system
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Every file with content and mode.
    fn files(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
        fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, (Vec<u8>, u32)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, found),
                    false => {
                        let mode = fs::metadata(&path).unwrap().mode();
                        found.insert(path.clone(), (fs::read(&path).unwrap(), mode));
                    }
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.0.path(), &mut found);
        found
    }

    fn install(&self, words: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cgctl"))
            .arg("install")
            .args(words.split(' '))
            .arg("--root")
            .arg(self.0.path())
            .output()
            .unwrap()
    }

    /// Standard output of an install that has to succeed.
    fn done(&self, words: &str) -> String {
        let output = self.install(words);
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of one that has to fail and change nothing.
    fn refused(&self, words: &str) -> String {
        let before = self.files();
        let output = self.install(words);
        assert_eq!(output.status.code(), Some(1), "{words}: {output:?}");
        assert_eq!(self.files(), before, "{words}");
        String::from_utf8(output.stderr).unwrap()
    }
}

const RUNTIMES: [&str; 5] = ["runc", "containerd", "podman", "crio", "docker"];

/// Systems as packages leave them, and as people do.
fn systems() -> Vec<System> {
    let bare = System::new();
    let lived_in = System::new();
    lived_in.write(
        "/etc/containerd/config.toml",
        "version = 2\n# mine\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  \
         runtime_type = \"io.containerd.runc.v2\"\n  \
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n    SystemdCgroup = true\n",
    );
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(lived_in.path("/etc/containerd/config.toml"), mode).unwrap();
    lived_in.write(
        "/etc/docker/daemon.json",
        "{\n  \"log-opts\": { \"max-size\": \"1\\u0030m\" },\n  \"runtimes\": { \"kata\": {\"path\": \"/k\"} }\n}",
    );
    lived_in.write("/etc/containers/containers.conf", "[engine]\nhooks_dir = [\"/opt/hooks\"]\n");
    lived_in.write("/etc/crio/crio.conf", "[crio.runtime]\nhooks_dir = [\"/opt/hooks\"]\n");
    let newer = System::new();
    newer.write("/etc/containerd/config.toml", "version = 3");
    newer.write("/etc/docker/daemon.json", "{}");
    vec![bare, lived_in, newer]
}

#[test]
fn undo_leaves_every_byte_as_it_was() {
    for system in systems() {
        let before = system.files();
        for runtime in RUNTIMES {
            system.done(runtime);
            let installed = system.files();
            assert_eq!(installed == before, runtime == "runc", "{runtime}");
            let again = system.done(runtime);
            assert_eq!(system.files(), installed, "{runtime} a second time");
            assert!(runtime == "runc" || again.starts_with("nothing to change\n"), "{again}");
            system.done(&format!("{runtime} --undo"));
            assert_eq!(system.files(), before, "{runtime}");
            let again = system.done(&format!("{runtime} --undo"));
            assert!(runtime == "runc" || again.starts_with("nothing to change\n"), "{again}");
        }
    }
}

#[test]
fn a_dry_run_shows_all_and_changes_nothing() {
    for system in systems() {
        let before = system.files();
        for runtime in RUNTIMES.into_iter().filter(|runtime| *runtime != "runc") {
            let shown = system.done(&format!("{runtime} --dry-run"));
            assert_eq!(system.files(), before, "{runtime}");
            assert!(shown.contains("would change; nothing did"), "{shown}");
            assert!(shown.contains("+++ ") && shown.contains("cgshim"), "{shown}");
            assert_eq!(diff(&shown), diff(&system.done(runtime)), "as when it is done");
            system.done(&format!("{runtime} --undo"));
        }
    }
}

/// What an install prints before it sums up.
fn diff(said: &str) -> String {
    let sum = |line: &&str| line.ends_with("changed") || line.ends_with("nothing did");
    said.lines().take_while(|line| !sum(line)).flat_map(|line| [line, "\n"]).collect()
}

/// `patch` is the judge of a diff.
#[test]
fn the_diff_applies() {
    let patch = |file: &Path, diff: &str| {
        let input = file.with_extension("diff");
        fs::write(&input, diff).unwrap();
        Command::new("patch").arg("-s").arg(file).arg(&input).output()
    };
    let system = &systems()[1];
    for (runtime, file) in
        [("containerd", "/etc/containerd/config.toml"), ("docker", "/etc/docker/daemon.json")]
    {
        let shown = system.done(&format!("{runtime} --dry-run"));
        let copy = system.path("/copy");
        // A last line without an end is the one thing that our diffs do not say.
        fs::write(&copy, system.read(file).trim_end().to_owned() + "\n").unwrap();
        let Ok(output) = patch(&copy, &diff(&shown)) else {
            let _ = writeln!(std::io::stderr(), "SKIP the_diff_applies: no patch");
            return;
        };
        assert!(output.status.success(), "{output:?}\n{shown}");
        system.done(runtime);
        assert_eq!(fs::read_to_string(&copy).unwrap().trim_end(), system.read(file).trim_end());
    }
}

#[test]
fn edits_made_since_survive_the_undo() {
    let system = &systems()[1];
    let toml = system.read("/etc/containerd/config.toml");
    system.done("containerd");
    let edited = system.read("/etc/containerd/config.toml") + "[debug]\n  level = \"info\"\n";
    system.write("/etc/containerd/config.toml", &edited);
    system.done("containerd --undo");
    assert_eq!(system.read("/etc/containerd/config.toml"), toml + "[debug]\n  level = \"info\"\n");

    let json = system.read("/etc/docker/daemon.json");
    system.done("docker");
    let edited = system.read("/etc/docker/daemon.json").replace("\"/k\"", "\"/kata\"");
    system.write("/etc/docker/daemon.json", &edited);
    system.done("docker --undo");
    assert_eq!(system.read("/etc/docker/daemon.json"), json.replace("\"/k\"", "\"/kata\""));

    // A file of ours that somebody has changed is theirs now.
    system.done("podman");
    let file = "/opt/hooks/cgshim-poststop.json";
    system.write(file, &system.read(file).replace("10", "20"));
    system.done("podman --undo");
    assert!(system.read(file).contains("20"));
    assert!(!system.path("/opt/hooks/cgshim-createRuntime.json").exists());
}

#[test]
fn what_is_not_understood_is_refused_with_file_and_line() {
    let system = System::new();
    for (file, text, runtime, said) in [
        ("/etc/containerd/config.toml", "disabled_plugins = []\n", "containerd", "no version"),
        ("/etc/containerd/config.toml", "version = 2\n[x\n", "containerd", "config.toml: line 2: "),
        ("/etc/containerd/config.toml", "\u{0}", "containerd", "config.toml: line 1: "),
        (
            "/etc/docker/daemon.json",
            "{\n\"a\": tru\n}",
            "docker",
            "daemon.json: expected ident at line 3",
        ),
        ("/etc/docker/daemon.json", "{\"runtimes\": 3}", "docker", "daemon.json: line 1: "),
        (
            "/etc/containers/containers.conf",
            "[engine]\nhooks_dir = \"/a\"\n",
            "podman",
            "containers.conf: line 2: hooks_dir is not a list",
        ),
        ("/etc/crio/crio.conf", "[crio\n", "crio", "crio.conf: line 1: "),
        ("/etc/containers/containers.conf", "[engine]\nhooks_dir = []\n", "podman", "no hooks"),
    ] {
        system.write(file, text);
        let error = system.refused(runtime);
        assert!(error.contains(said) && error.contains("nothing is changed"), "{text:?}: {error}");
        fs::remove_file(system.path(file)).unwrap();
    }
}

#[test]
fn no_runtime_is_told_to_run_what_is_not_there() {
    let system = System::new();
    for program in [HOOK, WRAPPER] {
        fs::remove_file(system.path(program)).unwrap();
    }
    for runtime in RUNTIMES.into_iter().filter(|runtime| *runtime != "runc") {
        let error = system.refused(runtime);
        assert!(
            error.contains("is not there, and containers that need it would not start"),
            "{error}"
        );
        // Who only asks sees what would change all the same.
        let output = system.install(&format!("{runtime} --dry-run"));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains("would change; nothing did"), "{shown}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("is not there"));
    }
    let output = system.install("podman --hook cgshim-hook");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn podman_and_crio_get_the_hook_where_they_look() {
    let system = &systems()[1];
    system.done("podman");
    for (stage, status) in [("createRuntime", "createRuntime"), ("poststop", "poststop")] {
        let text = system.read(&format!("/opt/hooks/cgshim-{stage}.json"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["stages"], serde_json::json!([stage]));
        assert_eq!(value["hook"]["args"], serde_json::json!(["cgshim-hook", status]));
        assert_eq!(value["hook"]["path"], HOOK);
    }
    system.done("crio");
    assert!(system.path("/usr/share/containers/oci/hooks.d/cgshim-poststop.json").exists());
    let drop_in: toml::Table = system.read("/etc/crio/crio.conf.d/50-cgshim.conf").parse().unwrap();
    let dirs = drop_in["crio"]["runtime"]["hooks_dir"].as_array().unwrap();
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.as_str().unwrap()).collect();
    assert_eq!(dirs, ["/opt/hooks", "/usr/share/containers/oci/hooks.d"]);
    let elsewhere = System::new();
    elsewhere.write("/opt/x y/cgshim-hook", "");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(elsewhere.path("/opt/x y/cgshim-hook"), mode).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cgctl"))
        .args(["install", "podman", "--hook", "/opt/x y/cgshim-hook", "--root"])
        .arg(elsewhere.0.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = elsewhere.read("/usr/share/containers/oci/hooks.d/cgshim-createRuntime.json");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["hook"]["path"], "/opt/x y/cgshim-hook");
}

#[test]
fn runc_has_nothing_to_configure_and_says_what_to_do() {
    let said = System::new().done("runc");
    assert!(said.contains("cgctl hook inject BUNDLE") && said.contains(WRAPPER), "{said}");
}

#[test]
fn a_bundle_is_injected_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    let inject = |words: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_cgctl"))
            .args(["hook", "inject"])
            .arg(dir.path())
            .args(words)
            .output()
            .unwrap()
    };
    let text = r#"{"linux":{"resources":{"memory":{"limit":67108864}}},"x":1.50}"#;
    fs::write(&config, text).unwrap();
    let output = inject(&["--hook", HOOK, "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (said["changed"].as_bool(), said["limit_bytes"].as_i64()),
        (Some(true), Some(64 << 20))
    );
    assert_eq!((said["schema"].as_i64(), said["hook"].as_str()), (Some(1), Some(HOOK)));
    let injected = fs::read_to_string(&config).unwrap();
    assert!(injected.ends_with(&text[1..]) && injected.contains(HOOK), "{injected}");
    let output = inject(&["--hook", HOOK]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("unchanged"), "{output:?}");
    assert_eq!(fs::read_to_string(&config).unwrap(), injected);
    // What is there stays, and it is said where that is.
    let output = inject(&["--hook", "/opt/other/cgshim-hook"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(HOOK), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/opt/other"), "{output:?}");
    assert_eq!(fs::read_to_string(&config).unwrap(), injected);

    fs::write(&config, "{\"hooks\":\n3}").unwrap();
    let output = inject(&["--hook", HOOK]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("config.json: hooks: ") && said.contains("nothing is changed"), "{said}");
    assert_eq!(inject(&["--hook", "cgshim-hook"]).status.code(), Some(2));
    fs::remove_file(&config).unwrap();
    assert_eq!(inject(&["--hook", HOOK]).status.code(), Some(1));
}

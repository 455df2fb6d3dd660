//! `cgshim-hook` as a runtime starts it, on a process in a group of its own: what the daemon hears, what lies
//! in the spool, how long it takes. The daemon is one of the test's own here.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod hooked;

use common::{Ground, alone, bar, skip};
use hooked::{Container, Daemon, YES, fill_backlog, hook, hook_program, program, stderr};
use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a hook may take, from its start to its end. It counts from where it gets a CPU, which on a busy machine, and
/// in the emulated ones of the kernel matrix, takes a while.
fn patience() -> Duration {
    bar(Duration::from_secs(1))
}

#[test]
fn a_container_is_registered_and_released() {
    let Some(ground) = Ground::new("a_container_is_registered_and_released") else { return };
    let container = Container::new(&ground, &json!({"io.cgshim.class": "burstable"}));
    let daemon = Daemon::start(&container.run_dir(), YES);
    for stage in ["createRuntime", "prestart", "poststart", "poststop"] {
        let output = container.hook(stage);
        assert!(output.status.success(), "{stage}: {output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{stage}: {output:?}");
    }
    let heard = daemon.heard();
    assert_eq!(heard.len(), 3, "{heard:?}");
    container.assert_registers(&heard[0]);
    container.assert_registers(&heard[1]);
    let released = ["schema", "op", "id"].map(|field| heard[2][field].clone());
    assert_eq!(released, [json!(1), json!("release"), json!("web")]);
    assert!(container.spooled().is_empty());
}

#[test]
fn without_a_daemon_the_request_waits_in_the_spool() {
    let Some(ground) = Ground::new("without_a_daemon_the_request_waits_in_the_spool") else {
        return;
    };
    let container = Container::new(&ground, &json!({"io.cgshim.class": "burstable"}));
    let output = container.hook("createRuntime");
    assert!(output.status.success(), "{output:?}");
    assert!(stderr(&output).contains("the daemon will find it in the spool"), "{output:?}");
    let spooled = container.spooled();
    assert_eq!(spooled.len(), 1);
    assert_eq!(spooled[0].0, "web.json");
    container.assert_registers(&spooled[0].1);

    // Ended before any daemon saw it: nothing is left of it.
    assert!(container.hook("poststop").status.success());
    assert!(container.spooled().is_empty());
    // Registered with a daemon that is now gone: it has to hear of the end.
    assert!(container.hook("poststop").status.success());
    assert_eq!(container.spooled()[0].1["op"], "release");

    // A request that gets through makes the one that waits pointless.
    let daemon = Daemon::start(&container.run_dir(), YES);
    assert!(container.hook("createRuntime").status.success());
    assert_eq!(daemon.heard().len(), 1);
    assert!(container.spooled().is_empty());
}

#[test]
fn a_stale_socket_and_a_file_in_its_place_are_no_daemon() {
    let Some(ground) = Ground::new("a_stale_socket_and_a_file_in_its_place_are_no_daemon") else {
        return;
    };
    let container = Container::new(&ground, &json!({}));
    let socket = container.run_dir().join("cgshim.sock");
    fs::create_dir(container.run_dir()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    for prepare in [
        |_: &Path| (),
        |socket: &Path| {
            fs::remove_file(socket).unwrap();
            fs::write(socket, "").unwrap();
        },
    ] {
        prepare(&socket);
        let output = container.hook("createRuntime");
        assert!(output.status.success() && stderr(&output).contains("refused"), "{output:?}");
        assert_eq!(container.spooled().len(), 1);
    }
}

#[test]
fn a_daemon_that_hangs_costs_less_than_a_second() {
    let Some(ground) = Ground::new("a_daemon_that_hangs_costs_less_than_a_second") else { return };
    let _alone = alone();
    let container = Container::new(&ground, &json!({}));
    fs::create_dir(container.run_dir()).unwrap();
    // As a stopped daemon: connections queue up, nobody reads.
    let socket = container.run_dir().join("cgshim.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let start = Instant::now();
    let output = container.hook("createRuntime");
    assert!(start.elapsed() < patience(), "{:?}", start.elapsed());
    assert!(output.status.success() && stderr(&output).contains("in time"), "{output:?}");
    assert_eq!(container.spooled()[0].1["op"], "register");

    // Until the backlog is full, and connect itself waits.
    listener.set_nonblocking(true).unwrap();
    let _queue = fill_backlog(&socket);
    let start = Instant::now();
    let output = container.hook("createRuntime");
    assert!(start.elapsed() < patience(), "{:?}", start.elapsed());
    assert!(
        output.status.success() && stderr(&output).contains("no more connections"),
        "{output:?}"
    );
    assert_eq!(container.spooled().len(), 1);
}

/// A file system whose server never answers: whoever looks at it waits until killed.
struct DeadFileSystem(PathBuf, Option<fs::File>);

impl DeadFileSystem {
    fn mount(at: &Path) -> Result<DeadFileSystem, String> {
        let server = fs::File::options().read(true).write(true).open("/dev/fuse");
        let server = server.map_err(|error| format!("no /dev/fuse here: {error}"))?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        fs::create_dir(at).unwrap();
        mount(Some("dead"), at, Some("fuse"), MsFlags::empty(), Some(data.as_str()))
            .map_err(|errno| format!("no FUSE here: {errno}"))?;
        Ok(DeadFileSystem(at.into(), Some(server)))
    }
}

impl Drop for DeadFileSystem {
    fn drop(&mut self) {
        // Whoever still waits there is let go.
        self.1 = None;
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_bundle_on_a_file_system_that_hangs_costs_less_than_a_second() {
    let test = "a_bundle_on_a_file_system_that_hangs_costs_less_than_a_second";
    let Some(ground) = Ground::new(test) else { return };
    let _alone = alone();
    let container = Container::new(&ground, &json!({}));
    let at = container.dir.path().join("dead");
    let dead = match DeadFileSystem::mount(&at) {
        Ok(dead) => dead,
        Err(why) => return skip(test, &why),
    };
    let mut state = container.state();
    state["bundle"] = json!(at);
    // All that can hang at once: the bundle, the daemon, and nobody who reads what is said.
    fs::create_dir(container.run_dir()).unwrap();
    let _listener = UnixListener::bind(container.run_dir().join("cgshim.sock")).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let full = writer.try_clone().unwrap();
    fcntl(&full, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (&full).write_all(&[b'.'; 4096]).unwrap();
    let start = Instant::now();
    let mut child = Command::new(hook_program())
        .args(["--run-dir".as_ref(), container.run_dir().as_os_str(), "createRuntime".as_ref()])
        .stdin(Stdio::piped())
        .stderr(writer)
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(state.to_string().as_bytes()).unwrap();
    let status = child.wait().unwrap();
    let took = start.elapsed();
    assert!(status.success() && took < patience(), "{status:?} {took:?}");
    assert_eq!(container.spooled()[0].1["op"], "register");
    drop(reader);

    // Who listens hears what was the matter.
    let output = hook(&container.run_dir(), "createRuntime", &state.to_string());
    assert!(stderr(&output).contains("not read within 250ms"), "{output:?}");
    drop(dead);
}

#[test]
fn a_strict_container_does_not_start_unregistered() {
    let Some(ground) = Ground::new("a_strict_container_does_not_start_unregistered") else {
        return;
    };
    let container = Container::new(&ground, &json!({"io.cgshim.strict": "true"}));
    let output = container.hook("createRuntime");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("web: not registered, and io.cgshim.strict is true"), "{said}");
    assert!(said.contains("cgshim.sock"), "{said}");
    assert!(container.spooled().is_empty(), "it does not start: nothing is to come");
    // The end is no time to be strict.
    assert!(container.hook("poststop").status.success());

    Daemon::start(&container.run_dir(), r#"{"schema":1,"ok":false,"error":"no room"}"#);
    let output = container.hook("createRuntime");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the daemon refuses: no room"), "{output:?}");
}

#[test]
fn a_refusal_is_said_and_the_container_starts() {
    let Some(ground) = Ground::new("a_refusal_is_said_and_the_container_starts") else { return };
    let container = Container::new(&ground, &json!({}));
    Daemon::start(&container.run_dir(), r#"{"schema":1,"ok":false,"error":"no room"}"#);
    let output = container.hook("createRuntime");
    assert!(output.status.success(), "{output:?}");
    assert!(stderr(&output).contains("refuses: no room; it runs without cgshim"), "{output:?}");
    assert!(container.spooled().is_empty());
}

#[test]
fn a_wrong_cgroups_path_is_said_and_the_process_believed() {
    let Some(ground) = Ground::new("a_wrong_cgroups_path_is_said_and_the_process_believed") else {
        return;
    };
    let container = Container::new(&ground, &json!({"io.cgshim.class": "burstable"}));
    let spec = json!({"linux": {"cgroupsPath": "/elsewhere"}, "process": {"oomScoreAdj": -997},
                      "annotations": {"io.cgshim.class": "burstable"}});
    fs::write(container.dir.path().join("config.json"), spec.to_string()).unwrap();
    let daemon = Daemon::start(&container.run_dir(), YES);
    let output = container.hook("createRuntime");
    assert!(output.status.success() && stderr(&output).contains("/elsewhere"), "{output:?}");
    container.assert_registers(&daemon.heard()[0]);
}

#[test]
fn what_cannot_be_registered_never_keeps_a_container_from_starting() {
    let Some(ground) =
        Ground::new("what_cannot_be_registered_never_keeps_a_container_from_starting")
    else {
        return;
    };
    let container = Container::new(&ground, &json!({}));
    let own = std::process::id();
    let bundle = container.dir.path().display();
    for state in [
        String::new(),
        "not json".into(),
        "x".repeat(2 << 20),
        r#"{"id":"web"}"#.into(),
        format!(r#"{{"id":"web","pid":{own},"bundle":"{bundle}"}}"#),
        format!(r#"{{"id":"web","pid":4000000000,"bundle":"{bundle}"}}"#),
    ] {
        let mut child = Command::new(hook_program())
            .args(["--run-dir".as_ref(), container.run_dir().as_os_str(), "createRuntime".as_ref()])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may stop reading early.
        let _ = child.stdin.take().unwrap().write_all(state.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(!output.stderr.is_empty());
        assert!(container.spooled().is_empty());
    }
    for words in [&[][..], &["createruntime"], &["createRuntime", "poststop"], &["--run-dir"]] {
        let output =
            Command::new(hook_program()).args(words).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(stderr(&output).contains("usage: cgshim-hook"), "{output:?}");
    }
    // A full run directory, or none that can be made.
    let output = hook(Path::new("/proc/none"), "createRuntime", &container.state().to_string());
    assert!(
        output.status.success() && stderr(&output).contains("runs without cgshim"),
        "{output:?}"
    );
}

#[test]
fn a_runtime_that_never_closes_the_pipe_is_left_in_time() {
    let _alone = alone();
    let start = Instant::now();
    let mut child = Command::new(hook_program())
        .arg("createRuntime")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"{\"id\":\"a\"").unwrap();
    let kept = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(kept);
    assert!(
        output.status.success() && stderr(&output).contains("did not end in time"),
        "{output:?}"
    );
    assert!(start.elapsed() < patience(), "{:?}", start.elapsed());
}

/// The wrapper edits the bundle and becomes the runtime, whatever comes of the edit.
#[test]
fn the_wrapper_becomes_the_runtime_with_the_hook_in_the_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let runtime = path("runc");
    fs::write(&runtime, "#!/bin/sh\necho \"$0 $*\"\nexit 42\n").unwrap();
    let run = |config: &str, hook: &Path, words: &[&str]| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path("config.json"), config).unwrap();
        Command::new(program(env!("CARGO_BIN_EXE_cgshim-runtime")))
            .args(words)
            .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
            .env("CGSHIM_HOOK", hook)
            .current_dir(dir.path())
            .output()
            .unwrap()
    };
    let config = || fs::read_to_string(path("config.json")).unwrap();
    let hook = hook_program();
    let create = ["--log-format", "json", "--log", "log", "create", "--bundle", ".", "a"];

    let output = run("{\"x\":1.0}", &hook, &create);
    assert_eq!(output.status.code(), Some(42), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.ends_with(&format!("runc {}\n", create.join(" "))), "{said}");
    assert!(output.stderr.is_empty());
    assert!(config().ends_with("\"x\":1.0}") && config().contains("createRuntime"), "{}", config());

    // Nothing but a container that is about to be made is edited.
    let output = run("{}", &hook, &["start", "a"]);
    assert_eq!((output.status.code(), config().as_str()), (Some(42), "{}"));

    // Fail open: the runtime gets the bundle as it was, and somebody is told.
    for (text, hook) in [("{\"hooks\":3}", hook.as_path()), ("{}", Path::new("/none"))] {
        let output = run(text, hook, &create);
        assert_eq!((output.status.code(), config().as_str()), (Some(42), text));
        assert!(stderr(&output).contains("the container runs without cgshim"), "{output:?}");
        let log = fs::read_to_string(path("log")).unwrap();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "warning");
    }
    // But not where it is strict: the runtime never runs.
    let strict = r#"{"annotations":{"io.cgshim.strict":"true"},"hooks":3}"#;
    for (text, hook) in [(strict, hook.as_path()), (&strict.replace('3', "{}"), Path::new("/none"))]
    {
        let output = run(text, hook, &create);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            output.stdout.is_empty() && stderr(&output).contains("io.cgshim.strict"),
            "{output:?}"
        );
        let log = fs::read_to_string(path("log")).unwrap();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "error");
    }
    // A copy of the wrapper under the runtime's name ends, and does not become itself for ever.
    fs::copy(program(env!("CARGO_BIN_EXE_cgshim-runtime")), &runtime).unwrap();
    let output = run("{}", &hook, &["--version"]);
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    assert!(stderr(&output).contains("runc stands in for the runtime"), "{output:?}");
    fs::remove_file(&runtime).unwrap();
    let output = Command::new(program(env!("CARGO_BIN_EXE_cgshim-runtime")))
        .arg("--version")
        .env("PATH", dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(stderr(&output).contains("neither runc nor crun in"), "{output:?}");
}

/// Registrations and releases of one container, all at once: the spool holds one whole request, or none.
#[test]
fn hooks_at_once_leave_one_whole_request() {
    let Some(ground) = Ground::new("hooks_at_once_leave_one_whole_request") else { return };
    let container = Container::new(&ground, &json!({}));
    let state = container.state().to_string();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (container, state) = (&container, &state);
            scope.spawn(move || {
                for _ in 0..10 {
                    let stage = if n % 2 == 0 { "createRuntime" } else { "poststop" };
                    let output = hook(&container.run_dir(), stage, state);
                    assert!(output.status.success(), "{output:?}");
                }
            });
        }
    });
    assert!(container.spooled().len() <= 1);
    assert!(container.hook("createRuntime").status.success());
    assert_eq!(container.spooled()[0].1["op"], "register");
}

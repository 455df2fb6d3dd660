//! Containers of the runtimes on this machine: each one's program, before it does anything else, asks, and is found
//! registered with its policy; when it has ended it is not listed any more. With the daemon itself, in a run
//! directory of the test's own; and without one that answers.
//!
//! `debian_runtimes` of the tools is the same in a virtual machine, with the unit and the files installed.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod contained;

use cgshim::oci::inject;
use common::{bar, until};
use contained::{
    Container, Containerd, HIGH, Host, LIMIT, PATIENCE, PROGRAM, SECOND, find_program,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

// --- runc and crun

fn by_hand(name: &'static str, runtime: &str) {
    let Some(host) = Host::new(name, &[runtime]) else { return };
    let _daemon = host.daemon();
    let bundle = host.injected("web");
    let program = find_program(runtime).unwrap();
    host.assert_listed_first(host.run(runtime, &program, &bundle, "web"), || "web".into());
}

#[test]
fn runc_with_an_injected_hook() {
    by_hand("runc_with_an_injected_hook", "runc");
}

#[test]
fn crun_with_an_injected_hook() {
    by_hand("crun_with_an_injected_hook", "crun");
}

#[test]
fn the_wrapper_in_place_of_runc_and_crun() {
    let Some(host) = Host::new("the_wrapper_in_place_of_runc_and_crun", &["runc", "crun"]) else {
        return;
    };
    let _daemon = host.daemon();
    let wrapper = Path::new(env!("CARGO_BIN_EXE_cgshim-runtime"));
    for runtime in ["runc", "crun"] {
        let bundle = host.bundle(runtime, json!({"io.cgshim.high": "75%"}));
        host.assert_listed_first(host.run(runtime, wrapper, &bundle, runtime), || runtime.into());
    }
}

// --- podman

#[test]
fn podman_with_hooks_d() {
    let Some(host) = Host::new("podman_with_hooks_d", &["podman", "conmon", "runc", "crun"]) else {
        return;
    };
    let _daemon = host.daemon();
    let hooks = host.path("hooks.d");
    fs::create_dir(&hooks).unwrap();
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/hooks.d");
    for entry in fs::read_dir(dist).unwrap() {
        let path = entry.unwrap().path();
        let mut hook: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        hook["hook"]["path"] = json!(host.hook().path);
        let args = hook["hook"]["args"].as_array_mut().unwrap();
        args.insert(1, json!("--run-dir"));
        args.insert(2, json!(host.run_dir()));
        fs::write(hooks.join(path.file_name().unwrap()), hook.to_string()).unwrap();
    }
    for runtime in ["runc", "crun"] {
        let mut command = host.command(runtime, &find_program("podman").unwrap());
        for (option, name) in [("root", "root"), ("runroot", "runroot"), ("tmpdir", "tmp")] {
            command.arg(format!("--{option}")).arg(host.path(&format!("{runtime}-{name}")));
        }
        let id = host.path(&format!("{runtime}.id"));
        command
            .args(["--storage-driver", "vfs", "--events-backend", "file", "--log-level", "error"])
            .args(["--cgroup-manager", "cgroupfs", "--runtime", runtime, "--hooks-dir"])
            .arg(&hooks)
            .args(["run", "--rm", "--network", "none", "--memory", "64m", "--cidfile"])
            .arg(&id)
            .args(["--ulimit", "nofile=256:256", "--ulimit", "nproc=256:256"])
            .args(["--security-opt", "seccomp=unconfined", "--annotation", "io.cgshim.high=75%"])
            .args(["--cgroup-parent", &host.cgroup(runtime)])
            .args(["--volume", &format!("{}:/ask", host.path("ask").display()), "--rootfs"])
            .arg(host.path("rootfs"))
            .args(["/bin/sh", "-c", PROGRAM]);
        host.assert_listed_first(command, || fs::read_to_string(&id).unwrap().trim().into());
    }
}

// --- containerd

#[test]
fn containerd_with_a_bundle_that_has_the_hook() {
    let name = "containerd_with_a_bundle_that_has_the_hook";
    let Some(host) = Host::new(name, &["containerd", "ctr", "runc"]) else { return };
    let _daemon = host.daemon();
    let containerd = Containerd::start(&host);
    let bundle = host.injected("web");
    let mut command = containerd.ctr(&host, &["run", "--rm"]);
    command.arg("--config").arg(bundle.join("config.json")).arg("web");
    host.assert_listed_first(command, || "web".into());
}

#[test]
fn containerd_with_the_wrapper_as_its_binary() {
    let name = "containerd_with_the_wrapper_as_its_binary";
    let Some(host) = Host::new(name, &["containerd", "ctr", "runc"]) else { return };
    let _daemon = host.daemon();
    let containerd = Containerd::start(&host);
    let mut command = containerd.ctr(&host, &["run", "--rm"]);
    command
        .args(["--runc-binary", env!("CARGO_BIN_EXE_cgshim-runtime"), "--memory-limit"])
        .arg(LIMIT.to_string())
        .args(["--annotation", "io.cgshim.high=75%", "--cgroup", &host.cgroup("web"), "--mount"])
        .arg(format!("type=bind,src={},dst=/ask,options=rbind", host.path("ask").display()))
        .arg("--rootfs")
        .arg(host.path("rootfs"))
        .args(["web", "/bin/sh", "-c", PROGRAM]);
    host.assert_listed_first(command, || "web".into());
}

// --- without a daemon that answers

#[test]
fn a_container_that_started_without_a_daemon_is_adopted_within_a_second() {
    let name = "a_container_that_started_without_a_daemon_is_adopted_within_a_second";
    let Some(host) = Host::new(name, &["runc"]) else { return };
    let bundle = host.injected("web");
    let runc = find_program("runc").unwrap();
    let start = Instant::now();
    let child = host.run("runc", &runc, &bundle, "web").spawn().unwrap();
    let mut container = Container { child: Some(child) };
    host.first_word(&mut container);
    assert!(start.elapsed() < bar(2 * SECOND), "{:?}", start.elapsed());

    let _daemon = host.daemon();
    until("it is adopted", SECOND, || host.listed("web").is_some());
    assert_eq!(host.listed("web").unwrap().high_bytes, Some(HIGH));
    assert!(host.end(container).status.success());
    until("what has ended is not listed", 2 * SECOND, || host.listed("web").is_none());
}

#[test]
fn a_stopped_daemon_keeps_no_container_from_starting() {
    let Some(host) = Host::new("a_stopped_daemon_keeps_no_container_from_starting", &["runc"])
    else {
        return;
    };
    let daemon = host.daemon();
    let bundle = host.injected("web");
    daemon.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let child = host.run("runc", &find_program("runc").unwrap(), &bundle, "web").spawn().unwrap();
    let mut container = Container { child: Some(child) };
    host.first_word(&mut container);
    let took = start.elapsed();
    assert!(took < bar(2 * SECOND), "runc and a hook of a second at the most: {took:?}");
    daemon.signal(Signal::SIGCONT);
    // Both by the socket, where it waited, and by the spool: one container all the same.
    until("it is registered", PATIENCE, || host.listed("web").is_some());
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(host.try_listed().unwrap().len(), 1);
    assert!(host.end(container).status.success());
    until("what has ended is not listed", 2 * SECOND, || host.listed("web").is_none());
}

#[test]
fn runc_shows_why_a_strict_container_does_not_start() {
    let Some(host) = Host::new("runc_shows_why_a_strict_container_does_not_start", &["runc"])
    else {
        return;
    };
    let bundle = host.bundle("web", json!({"io.cgshim.strict": "true"}));
    inject::inject(&bundle.join("config.json"), &host.hook()).unwrap();
    let runc = find_program("runc").unwrap();
    let output = host.run("runc", &runc, &bundle, "web").output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("web: not registered, and io.cgshim.strict is true"), "{said}");
    let _daemon = host.daemon();
    assert!(host.listed("web").is_none(), "nothing of it was left for later");
}

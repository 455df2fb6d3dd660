//! Containers of every runtime are under policy before their program's first instruction, and forgotten
//! when they have ended: each one's program asks the daemon for the list of containers, and finds itself.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

mod debian;

use debian::{
    Bundle, LISTS_ITSELF, SECOND, assert_listed_itself, find, machine, ps, sh, try_sh, until,
};
use std::fs;

/// A cgroup path of a specification for the driver: one group below another, or slice, prefix, name.
fn cgroups_path(driver: &str, id: &str) -> String {
    match driver {
        "systemd" => format!("system.slice:cgshim:{id}"),
        _ => format!("/cgshim-test/{id}"),
    }
}

/// `runc run` and `crun run` of a bundle that `cgctl hook inject` edited.
fn injected(runtime: &str) {
    let _machine = machine();
    for (driver, flag) in [("cgroupfs", ""), ("systemd", "--systemd-cgroup")] {
        let id = format!("{runtime}-{driver}");
        let bundle = Bundle::injected(&id, &cgroups_path(driver, &id), &LISTS_ITSELF);
        let output =
            try_sh(&format!("{runtime} {flag} run --bundle {} {id}", bundle.path.display()));
        assert_listed_itself(&id, &id, &output);
    }
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn runc_with_an_injected_hook() {
    injected("runc");
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn crun_with_an_injected_hook() {
    injected("crun");
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn the_wrapper_in_place_of_runc_and_crun() {
    let _machine = machine();
    for (runtime, driver, flag) in
        [("runc", "cgroupfs", ""), ("crun", "systemd", "--systemd-cgroup")]
    {
        let id = format!("wrapped-{runtime}-{driver}");
        let bundle = Bundle::new(&id, &cgroups_path(driver, &id), &LISTS_ITSELF);
        let output = try_sh(&format!(
            "CGSHIM_RUNTIME={runtime} cgshim-runtime {flag} run --bundle {} {id}",
            bundle.path.display()
        ));
        assert_listed_itself(&id, &id, &output);
    }
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn podman_with_hooks_d() {
    let _machine = machine();
    sh("cgctl install podman");
    for (runtime, manager) in [("crun", "systemd"), ("runc", "cgroupfs")] {
        let what = format!("podman-{runtime}-{manager}");
        let output = try_sh(&format!(
            "rm -f /run/{what}.id; podman --cgroup-manager {manager} --runtime {runtime} run \
             --name {what} --cidfile /run/{what}.id --network none --memory 64m \
             --security-opt seccomp=unconfined --annotation io.cgshim.high=75% \
             --volume /run/cgshim:/run/cgshim --rootfs /srv/rootfs {}",
            LISTS_ITSELF.join(" ")
        ));
        let id = fs::read_to_string(format!("/run/{what}.id")).unwrap_or_default();
        assert_listed_itself(&what, id.trim(), &output);
        sh(&format!("podman rm --force {what}"));
    }
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn containerd_with_a_bundle_that_has_the_hook() {
    let _machine = machine();
    for driver in ["cgroupfs", "systemd"] {
        let id = format!("ctr-{driver}");
        let path = cgroups_path(driver, &id);
        let bundle = Bundle::injected(&id, &path, &LISTS_ITSELF);
        let flag = match driver {
            "systemd" => format!("--runc-systemd-cgroup --cgroup {path}"),
            _ => String::new(),
        };
        let config = bundle.path.join("config.json");
        let output = try_sh(&format!("ctr run --rm {flag} --config {} {id}", config.display()));
        assert_listed_itself(&id, &id, &output);
    }
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn containerd_with_the_wrapper_as_its_binary() {
    let _machine = machine();
    for driver in ["cgroupfs", "systemd"] {
        let id = format!("ctr-wrapped-{driver}");
        let flag = match driver {
            "systemd" => format!("--runc-systemd-cgroup --cgroup {}", cgroups_path(driver, &id)),
            _ => String::new(),
        };
        let output = try_sh(&format!(
            "ctr run --rm {flag} --runc-binary /usr/bin/cgshim-runtime --memory-limit {} \
             --annotation io.cgshim.high=75% \
             --mount type=bind,src=/run/cgshim,dst=/run/cgshim,options=rbind:ro \
             --rootfs /srv/rootfs {id} {}",
            debian::LIMIT,
            LISTS_ITSELF.join(" ")
        ));
        assert_listed_itself(&id, &id, &output);
    }
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn without_a_daemon_containers_start_and_are_found_when_it_comes() {
    let _machine = machine();
    let containers = ["runc", "crun"].map(|runtime| {
        let id = format!("early-{runtime}");
        (runtime, Bundle::injected(&id, &cgroups_path("cgroupfs", &id), &["/bin/sleep", "1000"]))
    });
    sh("systemctl stop cgshimd");
    for (runtime, bundle) in &containers {
        let Bundle { id, path } = bundle;
        sh(&format!("{runtime} run --detach --bundle {} {id} >/dev/null 2>&1", path.display()));
    }
    sh("systemctl start cgshimd");
    for (runtime, bundle) in &containers {
        // A second is promised of real machines; most of this is cgctl being started, emulated.
        let took =
            until("the container is adopted", 15 * SECOND, || find(&ps(), &bundle.id).is_some());
        println!("{runtime}: adopted {} ms after the start", took.as_millis());
        sh(&format!("{runtime} delete --force {}", bundle.id));
        until("it is forgotten", 15 * SECOND, || find(&ps(), &bundle.id).is_none());
    }
}

#[test]
#[ignore = "needs container runtimes: ci/vm/tests debian-v2-6.1"]
fn without_a_daemon_a_strict_container_does_not_start_and_the_runtime_says_why() {
    let _machine = machine();
    sh("systemctl stop cgshimd");
    for runtime in ["runc", "crun"] {
        let id = format!("strict-{runtime}");
        let bundle = Bundle::injected(&id, &cgroups_path("cgroupfs", &id), &["/bin/true"]);
        bundle.annotate("io.cgshim.strict", "true");
        let output = try_sh(&format!("{runtime} run --bundle {} {id}", bundle.path.display()));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{runtime} started it: {said}");
        // crun names the hook, and keeps what it said to itself (1.8.1).
        let why = match runtime {
            "runc" => "not registered, and io.cgshim.strict is true",
            _ => "cgshim-hook",
        };
        assert!(said.contains(why), "{runtime}: {said}");
    }
}

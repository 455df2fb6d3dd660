//! A machine that is out of memory as a whole: for virtual machines, with little of it and no swap.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgroupfs::files::ControlDir;
use cgshim::core::oom::{Cause, Record};
use cgshim::driver::oom::{Deeds, Identity, OomOptions, OomWatch, Told};
use common::{Ground, Load};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
#[ignore = "fills the memory of the whole machine: ci/test node-v2-6.1"]
fn a_machine_without_memory_is_the_cause_and_the_victim_is_named() {
    let test = "a_machine_without_memory_is_the_cause_and_the_victim_is_named";
    let Some(ground) = Ground::new(test) else { return };
    assert!(std::env::var_os("CGSHIM_LANE").is_some(), "only in a virtual machine of ci/vm");
    assert!(!common::host_has_swap(), "--zram ''");
    let run_dir = tempfile::tempdir().unwrap();
    let store = Some(run_dir.path().to_path_buf());
    let watch = OomWatch::start(OomOptions { run_dir: store, ..OomOptions::default() }).unwrap();
    let idle = ground.group("idle");
    let mut bystander = Load::in_group(&idle);
    let group = ground.group("c");
    // Init lives, its child is killed: it has no limit, and what it asks for is more than there is.
    let mut init = Load::in_group(&group);
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg("echo $$ > \"$0\" && echo 500 > /proc/self/oom_score_adj && read -r go && exec \"$@\"")
        .arg(group.path().join("cgroup.procs"))
        .arg(cgctl::memload())
        .args(["anon", "--size", "64G"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for (key, group, pid) in [(1, &group, init.pid()), (2, &idle, bystander.pid())] {
        let identity = Identity { init: i32::try_from(pid).ok(), ..Identity::default() };
        watch.watch(key, group.clone(), None, identity, Arc::new(Deeds::default()));
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child.wait().unwrap();
    let mut records: Vec<Record> = Vec::new();
    while let Some(told) = watch.next(if records.is_empty() { 20 * SECOND } else { SECOND }) {
        if let Told::Record(_, record) = told {
            records.push(*record);
        }
    }
    let [record] = &records[..] else { panic!("{records:#?}") };
    assert_eq!((record.cause, record.kills), (Cause::Node, 1), "{record:#?}");
    assert_eq!(record.cgroup, group.path().display().to_string());
    assert_eq!((&record.limit_cgroup, record.init_survived), (&None, Some(true)), "{record:#?}");
    let victim = record.victim.as_ref().unwrap();
    assert_eq!(victim.pid, i32::try_from(child.id()).unwrap());
    assert_eq!((victim.comm.as_deref(), victim.oom_score_adj), (Some("memload"), Some(500)));
    assert!(init.is_alive() && bystander.is_alive());
}

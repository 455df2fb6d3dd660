//! Runs on the host and in every virtual machine of the kernel matrix: is this a kernel with cgroups at all?

use std::fs;

#[test]
fn every_process_has_a_cgroup() {
    let lane = std::env::var("CGSHIM_LANE").unwrap_or_else(|_| "host".into());
    let cgroups = fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup is readable");
    println!("lane {lane}:\n{cgroups}");
    assert!(cgroups.lines().all(|line| line.splitn(3, ':').count() == 3), "id:controllers:path");
    assert!(!cgroups.is_empty(), "at least one hierarchy is mounted");
}

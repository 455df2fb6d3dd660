//! Ids, freezing that takes time, injected faults, the typed readers over the model. The rest is in the
//! conformance suite.

mod common;

use cgroupfs::files::ControlDir;
use cgroupfs::memory::{Memory, MemoryV1, MemoryV2, ReclaimFile};
use cgroupfs::{Bytes, Error, Limit};
use cgroupfs_model::{Actor, Config, Hierarchy, KILLED, Kind, Load, Verdict};
use common::{bed, mib};
use nix::errno::Errno;
use std::sync::Arc;
use std::time::Duration;

fn v1() -> Config {
    Config { swap: 0, ..Config::v1_6_18() }
}

#[test]
fn dying_groups_hold_ids_until_mkdir_fails_host_wide() {
    let bed = bed(Config { ids: 6, ..v1() });
    let root = bed.host.root(Hierarchy::Memory);
    for n in 0..3 {
        let mut state = bed.host.lock();
        let group = state.mkdir(root, &format!("g{n}")).unwrap();
        let task = state.spawn(group, Load::hold());
        state.allocate(task, Kind::File, cgroupfs_model::Via::Syscall, 1);
        state.kill(task);
        state.rmdir(group).unwrap();
    }
    assert_eq!(bed.host.lock().mkdir(root, "more"), Err(Errno::ENOMEM));
}

#[test]
fn a_new_group_of_the_same_name_is_another() {
    let bed = bed(v1());
    bed.host.lock().kill(bed.task);
    bed.host.lock().rmdir(bed.group).unwrap();
    let again = bed.host.lock().mkdir(bed.host.root(Hierarchy::Memory), "a").unwrap();
    assert_ne!(again, bed.group);
    assert!(bed.host.dir(bed.group).is_gone() && !bed.host.dir(again).is_gone());
}

#[test]
fn a_frozen_parent_freezes_its_children_and_frozen_tasks_charge_nothing() {
    let bed = bed(Config { freeze_latency: Duration::from_millis(3), ..v1() });
    let root = bed.host.root(Hierarchy::Freezer);
    let outer = bed.host.lock().mkdir(root, "a").unwrap();
    let inner = bed.host.lock().mkdir(outer, "b").unwrap();
    bed.write_to(inner, "cgroup.procs", 1).unwrap();
    bed.host.lock().set_load(bed.task, Load::anon(mib(100), u64::MAX));
    bed.write_to(outer, "freezer.state", "FROZEN").unwrap();
    assert_eq!(bed.read_of(outer, "freezer.state"), "FREEZING");
    bed.host.advance(Duration::from_millis(5));
    assert_eq!(bed.read_of(inner, "freezer.state"), "FROZEN");
    assert_eq!(bed.read_of(inner, "freezer.parent_freezing"), "1");
    let leaked = bed.host.lock().charged(bed.group).0;
    assert!(leaked > 0 && leaked < mib(1));
    bed.host.advance(Duration::from_secs(1));
    assert_eq!(bed.host.lock().charged(bed.group).0, leaked);
}

#[test]
fn a_write_hook_can_refuse_kill_the_writer_or_write_first() {
    let bed = bed(v1());
    let memory = MemoryV1::open(bed.host.dir(bed.group)).unwrap();
    bed.host.on_write(|_, write| match write.value {
        b"4194304" => Verdict::Fail(Errno::EPERM),
        b"8388608" => Verdict::KillBefore,
        _ => Verdict::Make,
    });
    let refused = memory.set_limit(Limit::Bytes(Bytes::mib(4))).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EPERM));
    bed.host.on_write(|state, write| {
        state.write(Actor(7), write.group, write.file, b"16M").unwrap();
        Verdict::KillAfter
    });
    let killed = memory.set_limit(Limit::Bytes(Bytes::mib(8))).unwrap_err();
    assert_eq!(killed.errno(), Some(KILLED));
    // Done, but the writer never learns: and another actor finds it so.
    assert_eq!(memory.limit().unwrap_err().errno(), Some(KILLED));
    let guardian = MemoryV1::open(bed.host.dir_as(bed.group, Actor(1))).unwrap();
    assert_eq!(guardian.limit().unwrap(), Limit::Bytes(Bytes::mib(8)));
}

#[test]
fn the_typed_readers_run_over_both_versions() {
    let one = bed(v1());
    one.charge(Kind::File, mib(10));
    one.charge(Kind::Mlocked, mib(3));
    let memory = MemoryV1::open(one.host.dir(one.group)).unwrap();
    let declared = Limit::Bytes(Bytes::mib(64));
    memory.set_limits(declared, Some(Limit::Bytes(Bytes(0)))).unwrap();
    assert_eq!((memory.limit().unwrap(), memory.limit_bound().unwrap()), (declared, declared));
    assert!(!memory.swap_rules().unwrap().swaps_at_limit);
    assert_eq!(memory.stat().unwrap().unevictable, Some(Bytes::mib(3)));
    assert_eq!(memory.stat().unwrap().clean_file(), Some(Bytes::mib(10)));
    assert_eq!(memory.counters().unwrap().oom_kill, Some(0));
    assert!(matches!(memory.high(), Err(Error::Absent { .. })));

    let two = bed(Config::v2_6_1());
    two.charge(Kind::Kernel, mib(2));
    two.charge(Kind::Dirty, mib(2));
    let dir: Arc<dyn ControlDir> = two.host.dir(two.group);
    let memory = MemoryV2::open(dir).unwrap();
    memory.set_limits(declared, Some(Limit::Bytes(Bytes::mib(1)))).unwrap();
    memory.set_high(Limit::Bytes(Bytes::mib(32))).unwrap();
    assert_eq!(memory.high().unwrap(), Limit::Bytes(Bytes::mib(32)));
    assert_eq!(memory.stat().unwrap().kernel, Some(Bytes::mib(2)));
    assert_eq!(memory.stat().unwrap().dirty_or_writeback(), Some(Bytes::mib(2)));
    assert_eq!(memory.swap_rules().unwrap().room, Limit::Bytes(Bytes::mib(1)));
    assert_eq!(memory.counters().unwrap().direct_reclaim(), 0);
    memory.reclaim_file(ReclaimFile::Reclaim).unwrap();
    assert!(memory.peak().unwrap() >= Bytes::mib(4));
}

#[test]
fn the_disk_cleans_dirty_pages_at_its_speed() {
    let bed = bed(v1());
    bed.charge(Kind::Dirty, mib(50));
    bed.host.advance(Duration::from_millis(100));
    let stat = |key| bed.key("memory.stat", key);
    assert!(stat("writeback") > 0 && stat("dirty") > 30 << 20);
    bed.host.advance(Duration::from_millis(600));
    assert_eq!((stat("writeback"), stat("dirty")), (0, 0));
}

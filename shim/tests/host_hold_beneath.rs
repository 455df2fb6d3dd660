//! Groups that are made beneath a container while its OOM killer is held off: the kernel copies `oom_kill_disable`
//! into them, and whoever ends the hold takes it from them, but from none where somebody else has set it.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;

use cgroupfs::Cgroup;
use cgroupfs::files::ControlDir;
use cgshim::journal::{InFlight, Reader};
use common::{Ground, Load, alone, skip, until};
use daemons::{Daemon, LIMIT, container, known, restored};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A container that is held, with groups beneath it.
struct Bed {
    daemon: Daemon,
    group: Arc<Cgroup>,
    load: Load,
    ground: Ground,
}

impl Bed {
    /// With `groups` beneath it before it is held. `None`, having said so, where the test cannot run.
    fn new(test: &'static str, groups: &[String]) -> Option<Bed> {
        let ground = Ground::new(test)?;
        if !ground.v1() {
            skip(test, "cgroup v2 has nothing that holds the OOM killer off");
            return None;
        }
        let daemon = Daemon::with_config("[defaults]\noom = 'hold=600s'\n");
        let (group, load) = container(&ground, "c", LIMIT);
        let bed = Bed { daemon, group, load, ground };
        for name in groups {
            bed.make(name);
        }
        Some(bed)
    }

    fn hold(&self) {
        self.daemon.register(&known(&self.ground, "c", self.load.pid())).unwrap();
        until("it is held off", 10 * SECOND, || self.disabled(""));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.group.path().join(name)
    }

    fn make(&self, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_dir(self.path(name)).unwrap();
    }

    /// Somebody sets it.
    fn set(&self, name: &str) {
        fs::write(self.path(name).join("memory.oom_control"), "1").unwrap();
    }

    fn disabled(&self, name: &str) -> bool {
        let content = fs::read(self.path(name).join("memory.oom_control")).unwrap();
        cgroupfs::flat::get(&content, "oom_kill_disable") == Some(1)
    }

    /// What the journal says.
    fn in_flight(&self) -> InFlight {
        Reader::open(&self.daemon.run_dir()).unwrap().records()[0].1
    }
}

/// Who takes it back.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Guardian,
    GuardianOfOneThatIsStopped,
    Restore,
    NextStart,
}

#[test]
fn groups_made_just_before_the_daemon_died_have_a_killer_again_and_what_others_set_stands() {
    let test =
        "groups_made_just_before_the_daemon_died_have_a_killer_again_and_what_others_set_stands";
    let _alone = alone();
    for way in [Way::Guardian, Way::GuardianOfOneThatIsStopped, Way::Restore, Way::NextStart] {
        let Some(mut bed) = Bed::new(test, &["before".into()]) else { return };
        bed.set("before");
        bed.hold();
        // Somebody sets it there after ours was taken back.
        bed.make("early");
        until("it is taken from it", 30 * SECOND, || !bed.disabled("early"));
        let early = fs::metadata(bed.path("early")).unwrap().ino();
        until("that is in the journal", 30 * SECOND, || bed.in_flight().beneath >= Some(early));
        bed.set("early");
        // A daemon that does nothing more is killed before it can take it back.
        let guardian = bed.daemon.guardian().unwrap();
        bed.daemon.signal(Signal::SIGSTOP);
        for name in ["made", "made/inner", "before/inner"] {
            bed.make(name);
            assert!(bed.disabled(name), "the kernel copies it");
        }
        if matches!(way, Way::Restore | Way::NextStart) {
            kill(guardian, Signal::SIGKILL).unwrap();
            until("the guardian is dead", 10 * SECOND, || {
                let stat = fs::read_to_string(format!("/proc/{guardian}/stat")).unwrap_or_default();
                stat.rsplit(')').next().unwrap().split_whitespace().next().is_none_or(|s| s == "Z")
            });
        }
        if way != Way::GuardianOfOneThatIsStopped {
            bed.daemon.signal(Signal::SIGKILL);
            bed.daemon.child.wait().unwrap();
        }
        match way {
            Way::Guardian | Way::GuardianOfOneThatIsStopped => {}
            Way::Restore => {
                assert!(bed.disabled("") && bed.disabled("made/inner"), "nobody was there");
                let (code, said) = restored(&bed.daemon.run_dir());
                assert_eq!(code, Some(0), "{said}");
                assert!(said.contains("OOM killer on again in 3 groups beneath it"), "{said}");
            }
            Way::NextStart => {
                assert!(bed.disabled("") && bed.disabled("made/inner"), "nobody was there");
                bed.daemon = bed.daemon.dir.serve();
            }
        }
        until("the killer is let loose in all that had it from us", 20 * SECOND, || {
            !["made", "made/inner", "before/inner"].iter().any(|name| bed.disabled(name))
        });
        assert!(bed.disabled("before") && bed.disabled("early"), "{way:?}");
        // The next start holds it anew.
        if matches!(way, Way::Guardian | Way::Restore) {
            until("the killer is let loose in it", 10 * SECOND, || !bed.disabled(""));
        }
        if way == Way::GuardianOfOneThatIsStopped {
            bed.daemon.signal(Signal::SIGCONT);
        }
        for name in ["made/inner", "made", "before/inner", "before", "early"] {
            bed.remove(name);
        }
    }
}

/// As many groups beneath one as are looked at.
const MOST: usize = 1024;

#[test]
fn more_groups_beneath_it_than_are_looked_at_are_told_of_once_and_left_alone() {
    let test = "more_groups_beneath_it_than_are_looked_at_are_told_of_once_and_left_alone";
    let _alone = alone();
    let groups: Vec<String> = (0..=MOST).map(|n| n.to_string()).collect();
    let Some(bed) = Bed::new(test, &groups) else { return };
    bed.hold();
    let told = || bed.daemon.told().iter().filter(|event| *event == "oom_hold_crowded").count();
    until("it is told", 30 * SECOND, || told() == 1);
    assert_eq!(bed.in_flight().beneath, Some(u64::MAX));
    for _ in 0..2 {
        let lease = bed.in_flight().hold;
        until("the lease is renewed", 30 * SECOND, || bed.in_flight().hold > lease);
    }
    assert_eq!(told(), 1);
    assert_eq!(bed.daemon.log().matches("it has more than 1024 groups beneath it").count(), 1);
    // With one less all are known.
    let (first, others) = groups.split_first().unwrap();
    bed.remove(first);
    until("they are known", 30 * SECOND, || {
        bed.in_flight().beneath.is_some_and(|at| at < u64::MAX)
    });
    for name in others {
        bed.remove(name);
    }
}

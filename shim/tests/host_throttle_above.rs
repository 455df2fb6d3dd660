//! A pod's high on cgroup v1: containers beneath a group that is throttled, as the kernel throttles them for the
//! largest overage among their own group and those above it.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "../../tools/tests/common/mod.rs"]
mod common;
mod daemons;
mod freezers;

use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Limit};
use cgshim::driver::throttle::{Ancestor, Taken, ThrottleConfig, Throttler, curve};
use common::{Ground, Load, alone, memory, strict, until, without_swap};
use daemons::{Daemon, RunDir, known};
use freezers::{Container, ENDLESS, FreezerDir};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const POD: Bytes = Bytes::mib(96);
/// What each wants, and how fast: more than any high here, and no more than the machine has.
const MOST: Bytes = Bytes::mib(1024);
const RATE: Bytes = Bytes::mib(20);

/// A pod: a memory group with groups in it, and a freezer group for each as a runtime makes them.
struct Pod {
    group: Arc<Cgroup>,
    memory: Arc<dyn Memory>,
    freezer: FreezerDir,
    ground: Ground,
}

/// `None`, having said so, where the kernel has its own `memory.high`.
fn pod(test: &str) -> Option<Pod> {
    let _ = env_logger::try_init();
    let ground = Ground::new(test)?;
    let mount = freezers::emulated(test, &ground)?;
    let group = ground.group("pod");
    without_swap(&group);
    let freezer = FreezerDir::new(&mount, &format!("pod-{}", group.inode()));
    Some(Pod { memory: memory(&group), group, freezer, ground })
}

impl Pod {
    /// A container in it.
    fn member(&self, name: &str) -> Container {
        let group = Arc::new(self.group.create_child(name).unwrap());
        Container::new(group, self.freezer.child(name))
    }

    fn usage(&self) -> Bytes {
        self.memory.usage().unwrap()
    }

    fn above(&self) -> Vec<Ancestor> {
        let (group, memory) = (self.group.clone(), self.memory.clone());
        vec![Ancestor { group, memory, high: POD, way_out: ENDLESS, reclaims: false }]
    }
}

/// By what would take two minutes so far above high.
const FREELY: Bytes = Bytes::mib(16);

/// A throttle as an engine starts it.
fn throttler(
    group: &Arc<Cgroup>,
    high: Limit,
    above: Vec<Ancestor>,
    taken: &Arc<Taken>,
) -> Throttler {
    let config = ThrottleConfig {
        high,
        way_out: ENDLESS,
        ancestors: above,
        taken: taken.clone(),
        ..ThrottleConfig::new(group.clone(), Bytes(0))
    };
    Throttler::start(config).unwrap()
}

#[test]
fn containers_of_a_pod_are_throttled_for_its_high_each_with_its_own_and_without_one() {
    let test = "containers_of_a_pod_are_throttled_for_its_high_each_with_its_own_and_without_one";
    let Some(pod) = pod(test) else { return };
    let _alone = alone();
    let taken = Arc::<Taken>::default();
    let mut members = [pod.member("one"), pod.member("other")];
    let highs = [Limit::Bytes(Bytes::mib(1024)), Limit::Max];
    let throttlers: Vec<Throttler> = (members.iter().zip(highs))
        .map(|(member, high)| throttler(&member.group, high, pod.above(), &taken))
        .collect();
    let outer = throttler(&pod.group, Limit::Bytes(POD), Vec::new(), &taken);
    for member in &mut members {
        member.load.grow(RATE, MOST);
    }
    until("at high", 20 * SECOND, || pod.usage() >= POD);
    if strict() {
        std::thread::sleep(6 * SECOND);
        let ours = pod.usage().0 as f64 / POD.0 as f64 - 1.0;
        let native = curve().overage_after(POD, 2, None, 64, 6 * SECOND);
        println!("6 s: {:.1} % above, by the curve {:.1} %", ours * 100.0, native * 100.0);
        assert!((ours - native).abs() < 0.02, "{ours} {native}");
    }
    for (throttler, member) in throttlers.iter().zip(&members) {
        until("pulses", 20 * SECOND, || throttler.totals().pulses > 2);
        until("it is ours", 20 * SECOND, || member.is_ours() && member.groups_of_ours() == 1);
        // Never its own.
        assert_eq!(member.freezer.says(), "THAWED");
    }
    // They would fill 40 MiB a second, and owe for what they are above high by.
    let before = pod.usage();
    std::thread::sleep(3 * SECOND);
    let grown = pod.usage().saturating_sub(before);
    assert!(grown < Bytes::mib(40), "{grown}");
    // Its tasks are all theirs.
    assert_eq!(outer.stop().pulses, 0);
    for throttler in throttlers {
        throttler.stop();
    }
    for member in &members {
        assert!(member.is_home() && member.groups_of_ours() == 0);
        member.grows_freely(FREELY);
    }
}

#[test]
fn a_container_with_a_throttle_of_its_own_is_let_go_by_its_pods_and_taken_again_after_it() {
    let test =
        "a_container_with_a_throttle_of_its_own_is_let_go_by_its_pods_and_taken_again_after_it";
    let Some(pod) = pod(test) else { return };
    let _alone = alone();
    let taken = Arc::<Taken>::default();
    let mut member = pod.member("one");
    let outer = throttler(&pod.group, Limit::Bytes(POD), Vec::new(), &taken);
    member.load.grow(RATE, MOST);
    // Nobody else is known: its pod's throttle has it, in a group of another name.
    until("the pod's pulses", 30 * SECOND, || outer.totals().pulses > 0);
    assert!(!member.ours().exists() && member.groups_of_ours() == 1);
    for _ in 0..2 {
        let inner = throttler(&member.group, Limit::Max, pod.above(), &taken);
        until("its own pulses", 30 * SECOND, || inner.totals().pulses > 0);
        until("it is let go", 30 * SECOND, || member.groups_of_ours() == 1);
        assert!(member.is_ours());
        inner.stop();
        let before = outer.totals().pulses;
        until("the pod's pulses again", 30 * SECOND, || outer.totals().pulses > before);
        assert!(!member.ours().exists());
    }
    assert!(pod.usage() < POD.saturating_add(POD), "{}", pod.usage());
    outer.stop();
    assert!(member.is_home() && member.groups_of_ours() == 0);
    member.grows_freely(FREELY);
}

#[test]
fn what_a_killed_throttle_of_the_pod_left_in_a_container_is_the_containers_again() {
    let test = "what_a_killed_throttle_of_the_pod_left_in_a_container_is_the_containers_again";
    let Some(pod) = pod(test) else { return };
    let _alone = alone();
    let mut member = pod.member("one");
    // As a daemon leaves it that is killed: named for its pid and the pod.
    let mut killed = std::process::Command::new("true").spawn().unwrap();
    killed.wait().unwrap();
    let left = member.freezer.child(&format!("cgshim-{}-{}", killed.id(), pod.group.inode()));
    left.take(member.load.pid());
    member.load.grow(RATE, MOST);
    let inner = throttler(&member.group, Limit::Max, pod.above(), &Arc::default());
    until("pulses", 30 * SECOND, || inner.totals().pulses > 0);
    assert!(member.is_ours() && !left.0.exists());
    inner.stop();
    assert!(member.is_home());
}

/// What the daemon makes of it. Tasks first, groups last.
struct Node {
    /// The pod's own task.
    task: Load,
    members: [Container; 2],
    pod: Pod,
    run_dir: RunDir,
}

impl Node {
    /// A pod with high, a container with a higher one, and one without.
    fn new(test: &str) -> Option<Node> {
        let pod = pod(test)?;
        let run_dir = RunDir::new(
            "[defaults]\nthrottle = 'on'\nwatermark = 'off'\nway_out = 'never'\n\
             [[policy]]\nmatch = '/**/pod'\nhigh = '96M'\n\
             [[policy]]\nmatch = '/**/pod/one'\nhigh = '1G'\n",
        );
        let members = [pod.member("one"), pod.member("other")];
        let task = Load::in_group(&pod.group);
        pod.freezer.take(task.pid());
        Some(Node { task, members, pod, run_dir })
    }

    fn register(&self, daemon: &Daemon) {
        let [one, other] = &self.members;
        let ground = &self.pod.ground;
        // A pod is often known after a container of it.
        daemon.register(&known(ground, "one", one.load.pid())).unwrap();
        daemon.register(&known(ground, "pod", self.task.pid())).unwrap();
        daemon.register(&known(ground, "other", other.load.pid())).unwrap();
    }

    fn pulses(&self, daemon: &Daemon, id: &str) -> u64 {
        daemon.stat(id).throttled.map_or(0, |throttled| throttled.pulses)
    }
}

#[test]
fn the_daemon_throttles_whoever_grows_in_a_pod_and_nobody_once_its_high_is_gone() {
    let test = "the_daemon_throttles_whoever_grows_in_a_pod_and_nobody_once_its_high_is_gone";
    let Some(mut node) = Node::new(test) else { return };
    let _alone = alone();
    let daemon = node.run_dir.serve();
    node.register(&daemon);
    for member in &mut node.members {
        member.load.grow(RATE, MOST);
    }
    node.task.grow(RATE, MOST);
    for id in ["one", "other", "pod"] {
        until("pulses", 60 * SECOND, || node.pulses(&daemon, id) > 2);
    }
    assert!(node.pod.usage() < Bytes(POD.0 * 4), "{}", node.pod.usage());
    assert!(node.members.iter().all(|member| member.is_ours()));
    // A lower high of its own counts from then on, and the pod's no more.
    daemon.set("pod", "high", "max").unwrap();
    node.members[1].grows_freely(FREELY);
    assert!(daemon.stat("other").throttled.is_none());
    until("it is home", 20 * SECOND, || node.members[1].is_home());
    daemon.set("pod", "high", "64M").unwrap();
    let before = node.pulses(&daemon, "other");
    until("pulses again", 60 * SECOND, || node.pulses(&daemon, "other") > before);
    daemon.release("pod").unwrap();
    node.members[1].grows_freely(FREELY);
    daemon.stop();
    assert!(node.members.iter().all(|member| member.is_home() && member.groups_of_ours() == 0));
}

#[test]
fn a_daemon_killed_while_it_throttles_for_a_pod_leaves_nobody_frozen() {
    let test = "a_daemon_killed_while_it_throttles_for_a_pod_leaves_nobody_frozen";
    let Some(mut node) = Node::new(test) else { return };
    let _alone = alone();
    let daemon = node.run_dir.serve();
    node.register(&daemon);
    daemon.stop();
    for member in &mut node.members {
        member.load.grow(RATE, MOST);
    }
    node.task.grow(RATE, MOST);
    for run in 0..4 {
        let member = &node.members[run % 2];
        let daemon = node.run_dir.start();
        until("frozen", 60 * SECOND, || member.is_frozen());
        daemon.signal(if run < 3 { Signal::SIGKILL } else { Signal::SIGSTOP });
        for member in &node.members {
            member.grows_freely(FREELY);
        }
        // A pod that is full is one whose tasks rest.
        if node.members.iter().any(|member| member.usage().0 * 2 > MOST.0) {
            break;
        }
        daemon.kill();
    }
    // Who comes after gives everybody back.
    node.run_dir.serve().stop();
    let [one, other] = &node.members;
    until("home", 30 * SECOND, || one.is_home() && other.is_home());
}

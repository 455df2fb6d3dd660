//! What holds whatever is done.

use cgroupfs_model::{Actor, Config, GroupId, Hierarchy, Host, Kind, Load, TaskId, Via};
use proptest::prelude::*;
use std::time::Duration;

#[derive(Debug, Clone)]
enum Step {
    Charge(usize, u8, u8, u64),
    Write(usize, usize, Vec<u8>),
    Size(usize, usize, u64),
    Advance(u64),
    Move(usize, usize),
    Kill(usize),
    Remove(usize),
    Signal(u64),
}

const FILES: &[&str] = &[
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.min",
    "memory.swap.max",
    "memory.reclaim",
    "memory.force_empty",
    "memory.oom_control",
    "memory.swappiness",
    "memory.use_hierarchy",
    "memory.usage_in_bytes",
    "memory.stat",
    "memory.oom.group",
    "cgroup.procs",
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.event_control",
    "cgroup.subtree_control",
    "freezer.state",
    "no.such.file",
];

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![Just(0u64), 1u64..4096, 4096u64..20_000];
    prop_oneof![
        4 => (0usize..6, 0u8..6, 0u8..3, 1u64..3000).prop_map(|(t, k, v, n)| Step::Charge(t, k, v, n)),
        2 => (0usize..6, 0..FILES.len(), prop::collection::vec(any::<u8>(), 0..12))
            .prop_map(|(g, f, v)| Step::Write(g, f, v)),
        3 => (0usize..6, 0usize..13, size).prop_map(|(g, f, n)| Step::Size(g, f, n)),
        1 => (1u64..60).prop_map(Step::Advance),
        1 => (0usize..6, 0usize..6).prop_map(|(t, g)| Step::Move(t, g)),
        1 => (0usize..6).prop_map(Step::Kill),
        1 => (0usize..6).prop_map(Step::Remove),
        1 => (0u64..20).prop_map(Step::Signal),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let preset = prop_oneof![
        Just(Config::v1_6_18()),
        Just(Config::v1_5_10()),
        Just(Config::v1_el7()),
        Just(Config::v2_5_10()),
        Just(Config::v2_6_1()),
    ];
    let swap = prop_oneof![Just(0u64), Just(2000), Just(100_000)];
    (preset, swap, prop_oneof![Just(0u64), 1u64..80], any::<u64>(), any::<bool>()).prop_map(
        |(preset, swap, pages_per_pass, seed, swapaccount)| Config {
            swap,
            pages_per_pass,
            seed,
            swapaccount,
            pass_limit: 300,
            ..preset
        },
    )
}

fn kind(n: u8) -> Kind {
    [Kind::Anon, Kind::Mlocked, Kind::File, Kind::Dirty, Kind::Shmem, Kind::Kernel][n as usize % 6]
}

fn check(host: &Host, groups: &[GroupId], batch: u64, cpus: u64) -> Result<(), TestCaseError> {
    let state = host.lock();
    for group in groups {
        let (pages, counter) = state.charged(*group);
        let fuzz = batch * cpus * (groups.len() as u64 + 1);
        prop_assert!(counter >= pages && counter - pages <= fuzz, "{pages} {counter}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn counters_are_the_sum_of_the_pages_whatever_is_written_where(
        config in config(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (batch, cpus, swap) = (config.batch, config.cpus as u64, config.swap);
        let host = Host::new(config);
        let root = host.root(Hierarchy::Memory);
        let mut groups = vec![root];
        {
            let mut state = host.lock();
            let a = state.mkdir(root, "a").unwrap();
            let b = state.mkdir(root, "b").unwrap();
            let _ = state.write(Actor(0), a, "cgroup.subtree_control", b"+memory");
            let aa = state.mkdir(a, "aa").unwrap();
            let ab = state.mkdir(a, "ab").unwrap();
            groups.extend([a, b, aa, ab]);
        }
        let loads = [
            Load::hold(),
            Load::anon(2000, 4000).again(),
            Load::stream(5000),
            Load::dirty(3000),
            Load::circles(5000, 2000),
            Load::tmpfs(1000, 3000),
        ];
        let tasks: Vec<TaskId> = (0..6)
            .map(|n| host.lock().spawn(groups[n % groups.len()], loads[n]))
            .collect();
        for step in steps {
            match step {
                Step::Charge(task, kind_, via, pages) => {
                    let via = [Via::Fault, Via::Syscall, Via::Copy][via as usize % 3];
                    host.lock().allocate(tasks[task % 6], kind(kind_), via, pages);
                }
                Step::Write(group, file, value) => {
                    let group = groups[group % groups.len()];
                    let _ = host.lock().write(Actor(0), group, FILES[file], &value);
                }
                Step::Size(group, file, pages) => {
                    let group = groups[group % groups.len()];
                    let value = (pages * 4096).to_string();
                    let written = host.lock().write(Actor(0), group, FILES[file], value.as_bytes());
                    if written.is_ok() && FILES[file] == "memory.limit_in_bytes" {
                        prop_assert!(host.lock().charged(group).1 <= pages);
                    }
                }
                Step::Advance(ms) => host.advance(Duration::from_millis(ms)),
                Step::Move(task, group) => {
                    let pid = tasks[task % 6].0.to_string();
                    let group = groups[group % groups.len()];
                    let _ = host.lock().write(Actor(0), group, "cgroup.procs", pid.as_bytes());
                }
                Step::Kill(task) => host.lock().kill(tasks[task % 6]),
                Step::Remove(group) => {
                    let _ = host.lock().rmdir(groups[group % groups.len()]);
                }
                Step::Signal(passes) => host.lock().signal_after(passes),
            }
            check(&host, &groups, batch, cpus)?;
            prop_assert!(host.lock().swap_used() <= swap);
            for group in &groups {
                for file in FILES {
                    let _ = host.lock().read(*group, file);
                }
            }
        }
    }
}

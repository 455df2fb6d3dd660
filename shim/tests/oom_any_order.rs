//! The books of OOMs, whatever happens in whatever order.

mod books;

use books::{Host, init};
use cgshim::core::oom::{Event, Record};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// One step of a host on which groups run out of memory in any order.
#[derive(Debug, Clone)]
enum Step {
    Signal(u64),
    /// A kill, and how long until its line; whether the line names the group.
    Kill(u64, u64, bool),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            (1u64..9).prop_map(Step::Signal),
            ((1u64..9), 0u64..3, any::<bool>())
                .prop_map(|(key, lag, named)| Step::Kill(key, lag, named)),
            (0u64..150).prop_map(Step::Pass),
        ],
        0..60,
    )
}

proptest! {
    #[test]
    fn every_kill_is_recorded_once_with_its_own_victim_or_none(steps in steps()) {
        let mut host = Host::new(true);
        for key in 1..9 {
            host.watch(key);
        }
        let mut kills: BTreeMap<u64, Vec<(i32, bool)>> = BTreeMap::new();
        // Lines come in the order of the kills, each some while later.
        let mut lines: Vec<(u64, i32, bool)> = Vec::new();
        let mut pid = 100;
        let print = |host: &mut Host, lines: &mut Vec<(u64, i32, bool)>| {
            for (key, pid, named) in lines.drain(..) {
                let path = format!("/pod/c{key}");
                host.log(pid, named.then_some(&*path), named.then_some(&*path));
            }
        };
        for step in steps {
            match step {
                Step::Signal(key) => host.event(Event::Signal(key, 0)),
                Step::Kill(key, lag, named) => {
                    pid += 1;
                    host.event(Event::Signal(key, 0));
                    host.kill(key);
                    kills.entry(key).or_default().push((pid, named));
                    lines.push((key, pid, named));
                    if lag == 0 {
                        print(&mut host, &mut lines);
                    }
                }
                Step::Pass(ms) => {
                    print(&mut host, &mut lines);
                    host.pass(Duration::from_millis(ms));
                }
            }
        }
        print(&mut host, &mut lines);
        // A group that stays full is looked at for five seconds.
        host.pass(Duration::from_secs(10));
        for key in 1..9 {
            let mut expected = kills.remove(&key).unwrap_or_default();
            let records: Vec<&Record> = host
                .announced
                .iter()
                .filter(|(whose, record)| *whose == key && record.kills > 0)
                .map(|(_, record)| record)
                .collect();
            let recorded: u64 = records.iter().map(|record| record.kills).sum();
            prop_assert_eq!(recorded, expected.len() as u64, "kills of {}", key);
            for record in records {
                if let Some(victim) = &record.victim {
                    let mine = expected.iter().position(|(pid, named)| *named && *pid == victim.pid);
                    prop_assert!(mine.is_some(), "{} is no victim of c{}", victim.pid, key);
                    expected.remove(mine.unwrap());
                }
            }
            // Every line that names its group found its record.
            prop_assert!(expected.iter().all(|(_, named)| !named), "{:?}", expected);
        }
        // Nothing is left to wait for.
        prop_assert_eq!(host.ledger.deadline(), None);
    }

    #[test]
    fn the_same_events_make_the_same_records(steps in steps()) {
        let run = || {
            let mut host = Host::new(true);
            for key in 1..9 {
                host.watch(key);
            }
            for step in &steps {
                match step {
                    Step::Signal(key) => host.event(Event::Signal(*key, 0)),
                    Step::Kill(key, ..) => {
                        host.kill(*key);
                        host.log(1, Some(&format!("/pod/c{key}")), None);
                    }
                    Step::Pass(ms) => host.pass(Duration::from_millis(*ms)),
                }
            }
            host.pass(Duration::from_secs(10));
            host.written
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn any_order_of_events_is_survived(
        steps in prop::collection::vec((0u8..10, 0u64..4, 0u64..120), 0..80),
    ) {
        let mut host = Host::new(true);
        for (what, key, ms) in steps {
            match what {
                0 => host.watch(key),
                1 => host.event(Event::Signal(key, ms as usize % 4)),
                2 => host.gone(key),
                3 => host.event(Event::InitExited(key)),
                4 => host.event(Event::Unwatch(key)),
                5 => host.event(Event::LogLost),
                6 => host.log(init(key), (ms % 2 == 0).then_some(&*format!("/pod/c{key}")), None),
                7 => host.event(Event::LogReadable(ms % 3 == 0)),
                8 if ms % 5 == 0 => host.event(Event::RanOut(key)),
                _ => {
                    if let Some(kills) = host.counters.get_mut(&key) {
                        *kills = ms;
                    }
                }
            }
            host.pass(Duration::from_millis(ms));
        }
        host.pass(Duration::from_secs(10));
        prop_assert_eq!(host.ledger.deadline(), None);
        let victims = host.victims(1);
        prop_assert!(victims.len() <= host.announced.len());
    }
}

//! The books of OOMs over a host that is made up: its counters, its log and its time are the test's.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use cgroupfs::kmsg::oom::{Constraint, Killed};
use cgroupfs::{Bytes, Limit};
use cgshim::core::oom::{
    Action, Detail, Event, From, Ledger, LevelLook, LogKill, Look, Record, Stamp, Subject,
};
use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) const US: Duration = Duration::from_micros(1);
pub(crate) const MS: Duration = Duration::from_millis(1);

/// The books, a clock, and what came of it.
pub(crate) struct Host {
    pub(crate) ledger: Ledger,
    pub(crate) now: Duration,
    pub(crate) wall_ms: u64,
    /// `oom_kill` of each group; gone ones are not there.
    pub(crate) counters: BTreeMap<u64, u64>,
    pub(crate) failcnt: BTreeMap<u64, Vec<u64>>,
    /// Of each; the limit is 64 MiB.
    pub(crate) usage: Bytes,
    pub(crate) written: BTreeMap<String, Record>,
    pub(crate) announced: Vec<(u64, Record)>,
    pub(crate) forgotten: Vec<u64>,
}

impl Host {
    pub(crate) fn new(log_readable: bool) -> Host {
        let mut host = Host {
            ledger: Ledger::new(7),
            now: Duration::from_secs(1),
            wall_ms: 1_000_000,
            counters: BTreeMap::new(),
            failcnt: BTreeMap::new(),
            usage: Bytes::mib(64),
            written: BTreeMap::new(),
            announced: Vec::new(),
            forgotten: Vec::new(),
        };
        host.event(Event::LogReadable(log_readable));
        host
    }

    /// A container at `/pod/cKEY`, whose init is 1000 × key.
    pub(crate) fn watch(&mut self, key: u64) {
        self.watch_at(key, &format!("/pod/c{key}"));
    }

    pub(crate) fn watch_at(&mut self, key: u64, path: &str) {
        self.counters.insert(key, 0);
        self.failcnt.insert(key, vec![0, 0]);
        self.watch_since(key, path, None);
    }

    pub(crate) fn watch_since(&mut self, key: u64, path: &str, since: Option<Duration>) {
        let subject = Subject {
            name: format!("c{key}"),
            container: format!("id{key}"),
            cgroup: format!("/sys/fs/cgroup/memory{path}"),
            generation: key,
            path: path.into(),
            ancestors: vec!["/pod".into()],
            all_ancestors: true,
            init: Some(init(key)),
            oom_kill: Some(0),
            since,
            levels: vec![
                LevelLook {
                    failcnt: Some(0),
                    failcnt_is_all: true,
                    ..LevelLook::default()
                };
                2
            ],
            quiet_since: Vec::new(),
            v1: true,
        };
        self.event(Event::Watch(key, Box::new(subject)));
    }

    pub(crate) fn event(&mut self, event: Event) {
        let mut queue = vec![event];
        while !queue.is_empty() {
            let mut actions = Vec::new();
            for event in queue.drain(..) {
                let at = Stamp {
                    now: self.now,
                    wall_ms: self.wall_ms,
                    boot_ms: self.now.as_millis() as u64,
                };
                self.ledger.handle(at, event, &mut actions);
            }
            for action in actions {
                match action {
                    Action::Look(key, _) => queue.push(self.look(key)),
                    Action::Write { record, new, .. } => {
                        let id = record.id.clone();
                        assert_eq!(self.written.insert(id, *record).is_none(), new);
                    }
                    Action::Announce(key, record) => {
                        // Persisted before announced.
                        assert_eq!(self.written.get(&record.id), Some(&*record));
                        assert!(record.settled);
                        self.announced.push((key, *record));
                    }
                    Action::Forget(key) => self.forgotten.push(key),
                }
            }
        }
    }

    pub(crate) fn look(&self, key: u64) -> Event {
        let Some(kills) = self.counters.get(&key) else { return Event::Vanished(key) };
        let levels = self.failcnt[&key]
            .iter()
            .map(|failcnt| LevelLook {
                usage: Some(self.usage),
                limit: Some(Limit::Bytes(Bytes::mib(64))),
                failcnt: Some(*failcnt),
                failcnt_is_all: true,
                ..LevelLook::default()
            })
            .collect();
        let detail = Some(Box::new(Detail { levels, ..Detail::default() }));
        Event::Looked(key, Box::new(Look { oom_kill: Some(*kills), beneath: 0, detail }))
    }

    /// Lets time pass, with a tick whenever one is due.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.ledger.deadline().filter(|at| *at <= end) {
            // The wall's clock is nobody's business: it jumps.
            self.wall_ms = self.wall_ms.wrapping_mul(31) % 2_000_000;
            self.now = at.max(self.now + US);
            self.event(Event::Tick);
        }
        self.now = end.max(self.now);
    }

    pub(crate) fn kill(&mut self, key: u64) {
        *self.counters.get_mut(&key).unwrap() += 1;
    }

    pub(crate) fn gone(&mut self, key: u64) {
        self.counters.remove(&key);
    }

    pub(crate) fn log(&mut self, pid: i32, task: Option<&str>, limit: Option<&str>) {
        let killed = Killed {
            pid,
            comm: b"load".to_vec(),
            oom_score_adj: Some(0),
            memcg: Some(true),
            constraint: task.map(|_| Constraint::Memcg),
            oom_memcg: limit.map(|path| path.as_bytes().to_vec()),
            task_memcg: task.map(|path| path.as_bytes().to_vec()),
            order: Some(0),
        };
        self.killed(LogKill { killed, from: From::KernelLog, group: None, node_has_room: None });
    }

    pub(crate) fn killed(&mut self, kill: LogKill) {
        self.event(Event::Killed(Box::new(kill)));
    }

    pub(crate) fn only(&mut self) -> Record {
        self.pass(Duration::from_secs(3));
        assert_eq!(self.announced.len(), 1, "{:#?}", self.announced);
        assert_eq!(self.written.len(), 1);
        self.announced[0].1.clone()
    }

    pub(crate) fn victims(&self, key: u64) -> Vec<Option<i32>> {
        let mine = self.announced.iter().filter(|(whose, _)| *whose == key);
        mine.map(|(_, record)| record.victim.as_ref().map(|victim| victim.pid)).collect()
    }
}

pub(crate) fn init(key: u64) -> i32 {
    i32::try_from(key * 1000).unwrap()
}

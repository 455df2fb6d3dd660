//! The log's lines: when it is read, and whose kill a line tells of.

use super::{LOG, SHIFT, Told, Watcher};
use crate::core::oom::{Event, From, LogKill};
use cgroupfs::Membership;
use cgroupfs::kmsg::oom::Killed;
use cgroupfs::memory::Version;
use cgroupfs::procfs::Zoneinfo;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::time::Duration;

/// A flood of the log is read in pieces, with this long for everything else between.
const FLOOD_PAUSE: Duration = Duration::from_millis(1);

/// All groups are looked at for a kill of nobody known at most this often.
const ALL_EVERY: Duration = Duration::from_millis(10);

impl Watcher {
    /// Listens to the log, unless it is in flood, or there is no reason to.
    pub(super) fn hear_the_log(&mut self) {
        let Some(log) = &self.log else { return };
        let wanted = self.log_wakes || self.ledger.deadline().is_some();
        let hear = wanted && self.log_again.is_none();
        if hear != self.log_heard {
            let flags = if hear { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
            let mut event = EpollEvent::new(flags, LOG << SHIFT);
            if self.epoll.modify(log.fd(), &mut event).is_ok() {
                self.log_heard = hear;
            }
        }
        if !wanted {
            self.log_again = None;
        }
    }

    pub(super) fn read_log(&mut self, tell: &mut impl FnMut(Told)) {
        let Some(log) = &mut self.log else { return };
        let from = log.from();
        let brought = match log.read() {
            Ok(brought) => brought,
            Err(error) => {
                ::log::warn!("{error}; victims of the OOM killer are not known from now on");
                let _ = self.epoll.delete(log.fd());
                self.log = None;
                self.log_again = None;
                self.queue.push_back(Event::LogReadable(false));
                return;
            }
        };
        self.log_again = brought.more.then(|| self.start.elapsed() + FLOOD_PAUSE);
        // What was overwritten while nobody had a reason to read is not missed.
        if brought.lost && (self.log_wakes || self.log_heard) {
            self.queue.push_back(Event::LogLost);
        }
        for killed in brought.kills {
            if killed.task_memcg.is_none() {
                // First who may be meant: the victim is about to be looked for in /proc, where it is locked until the
                // kernel has printed the line (`__oom_kill_process()`), on a serial console 2 ms later. His group may
                // be removed as soon as he is dead.
                let mut keys = self.ledger.awaited();
                let seen =
                    self.groups.iter().filter(|(_, it)| it.group.group_of(killed.pid).is_some());
                keys.extend(seen.map(|(key, _)| *key));
                for key in keys {
                    self.look(key, false);
                }
                self.work(tell);
            }
            self.killed(killed, from);
            self.work(tell);
        }
    }

    fn killed(&mut self, killed: Killed, from: From) {
        let group = match killed.task_memcg {
            Some(_) => None,
            None => self.group_of(&killed),
        };
        if killed.task_memcg.is_none() && group.is_none() {
            // Whoever it was: the counters tell whether it was one of ours.
            let now = self.start.elapsed();
            if self.all_looked.is_none_or(|at| now >= at + ALL_EVERY) {
                self.all_looked = Some(now);
                self.look_at_all();
            }
        }
        let node_has_room = match killed.memcg {
            Some(false) if killed.order.is_some_and(|order| order > 0) => {
                Zoneinfo::read().ok().map(|zones| zones.free() > zones.low_watermarks())
            }
            _ => None,
        };
        self.queue.push_back(Event::Killed(Box::new(LogKill {
            killed,
            from,
            group,
            node_has_room,
        })));
    }

    /// The group of a victim that the log does not name: while it is there, `/proc` tells (on v1 only until
    /// it starts to exit: then it is shown in `/`), else who was in which group when memory ran out.
    fn group_of(&self, killed: &Killed) -> Option<(String, From)> {
        if !self.pids_are_ours {
            return None;
        }
        let pid = u32::try_from(killed.pid).ok()?;
        let same = killed.comm.is_empty()
            || std::fs::read(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.strip_suffix(b"\n") == Some(&killed.comm));
        if same && let Ok(membership) = Membership::read(pid) {
            let path = match self.host.hierarchy.version {
                Version::V1 => membership.path("memory"),
                Version::V2 => membership.unified_group().map(|group| group.path.as_path()),
            };
            if let Some(path) = path.and_then(|path| path.to_str()).filter(|path| *path != "/") {
                return Some((path.to_owned(), From::Procfs));
            }
        }
        let mut found =
            self.groups.values().filter_map(|watched| watched.group.group_of(killed.pid));
        let only = found.next()?;
        found.all(|other| other == only).then(|| (only.to_owned(), From::Members))
    }
}

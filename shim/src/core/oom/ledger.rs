//! Which kills have been seen, which are recorded, and what is still waited for.

use super::cause::is_beneath;
use super::event::{Action, Event, LogKill, Look, Stamp, Subject};
use super::open::{Open, claim, claim_late, conclude, settle, woke};
use super::record::{From, Record};
use super::watched::{REMEMBER, UNCOUNTED, Watched};
use crate::core::Now;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long after a signal the counter is read again before it counts as one without a kill. It rose up
/// to 10 ms later in 4 of 200 (measured on 6.18, idle), and more than 100 ms later on a host with eleven
/// threads to a CPU.
pub const RECHECK_FOR: Duration = Duration::from_millis(500);

/// The same at most where the group is as full as ever: whoever ran out of memory is on his way to the killer, and where
/// many do at a time they wait for each other (a kill came 570 ms after its signal beside seven others and compilers).
pub(super) const RECHECK_FULL_FOR: Duration = Duration::from_secs(5);

/// How often: first while the kill may be under way and its group about to be removed, then later. The log is
/// read as often: the kernel wakes its readers only at the next tick (`wake_up_klogd`), 4 ms later at worst.
const RECHECK: [(Duration, Duration); 3] = [
    (Duration::from_millis(5), Duration::from_micros(200)),
    (Duration::from_millis(100), Duration::from_millis(1)),
    (RECHECK_FOR, RECHECK_LAST),
];
pub(super) const RECHECK_LAST: Duration = Duration::from_millis(5);

/// How many such records are kept for a container.
const MOST_LATE: usize = 16;

/// Kills between two looks beyond this share the last record.
const MOST_AT_ONCE: u64 = 256;

/// Records that may be open at a time; beyond this they are settled as they are.
const MOST_OPEN: usize = 2048;

/// Lines about groups that nobody watches are kept this long, and so many of them: who has just registered may have
/// been killed before its watch began.
const STRANGE: Duration = Duration::from_secs(2);
const MOST_STRANGE: usize = 64;

/// The books.
#[derive(Debug)]
pub struct Ledger {
    tag: u32,
    next: u64,
    watched: BTreeMap<u64, Box<Watched>>,
    /// Those that something is waited for.
    active: BTreeSet<u64>,
    log_readable: bool,
    log_lost_at: Option<Now>,
    open: usize,
    /// Kills of nobody who was watched when their lines came.
    strangers: VecDeque<(Now, LogKill)>,
}

impl Ledger {
    /// Empty books. `tag` sets the ids of its records apart from those of other processes.
    pub fn new(tag: u32) -> Ledger {
        Ledger {
            tag,
            next: 0,
            watched: BTreeMap::new(),
            active: BTreeSet::new(),
            log_readable: false,
            log_lost_at: None,
            open: 0,
            strangers: VecDeque::new(),
        }
    }

    /// Takes an event, appends what is to be done; then [`Ledger::deadline`] says when to tick.
    pub fn handle(&mut self, at: Stamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Watch(key, subject) => {
                let mut watched = Watched::new(at.now, *subject);
                watched.unclaimed = self.killed_before(at.now, &watched.subject);
                self.watched.insert(key, Box::new(watched));
                self.active.insert(key);
            }
            Event::Init(key, pid) => {
                if let Some(watched) = self.watched.get_mut(&key) {
                    watched.subject.init = Some(pid);
                }
            }
            Event::Signal(key, level) => self.signal(at, key, level, out),
            Event::RanOut(key) => self.ran_out(at, key),
            Event::Looked(key, look) => self.looked(at, key, *look, out),
            Event::Above(key, levels) => {
                if let Some(watched) = self.watched.get_mut(&key) {
                    watched.only_own = watched.had_the_only_limit(at.now, &levels);
                }
            }
            Event::Vanished(key) => self.vanished(at, key),
            Event::Killed(kill) => self.killed(at, *kill, out),
            Event::LogLost => self.log_lost_at = Some(at.now),
            Event::LogReadable(readable) => self.log_readable = readable,
            Event::InitExited(key) => {
                if let Some(watched) = self.watched.get_mut(&key) {
                    watched.init_exited = true;
                    for open in &mut watched.open {
                        open.record.init_survived = Some(false);
                        open.record.source("init_survived", From::Pidfd);
                    }
                }
            }
            Event::Unwatch(key) => {
                if let Some(watched) = self.watched.get_mut(&key) {
                    watched.leaving = true;
                    self.active.insert(key);
                }
            }
            Event::Tick => {}
        }
        self.tick(at, out);
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn deadline(&self) -> Option<Now> {
        self.active
            .iter()
            .filter_map(|key| self.watched.get(key)?.deadline(self.log_readable))
            .min()
    }

    /// Those that something is waited for.
    pub fn awaited(&self) -> Vec<u64> {
        self.active.iter().copied().collect()
    }

    /// Containers that are watched, those just gone included.
    pub fn len(&self) -> usize {
        self.watched.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Whether something is still waited for about this container.
    pub fn is_busy(&self, key: u64) -> bool {
        self.watched
            .get(&key)
            .is_some_and(|watched| !watched.open.is_empty() || !watched.unclaimed.is_empty())
    }

    fn signal(&mut self, at: Stamp, key: u64, level: usize, out: &mut Vec<Action>) {
        let readable = self.log_readable;
        let Some(watched) = self.watched.get_mut(&key) else { return };
        if watched.gone.is_some() {
            // Its own says nothing any more. A group above that was out of memory may be why it is gone.
            if level > 0
                && let Some(signalled) = watched.episode(at.now).signalled.get_mut(level)
            {
                *signalled = true;
                self.active.insert(key);
                watched.judge_again(at.now, readable);
            }
            return;
        }
        let fresh = watched.episode.is_none();
        let episode = watched.episode(at.now);
        if let Some(signalled) = episode.signalled.get_mut(level) {
            *signalled = true;
        }
        if level == 0 {
            episode.signals += 1;
        }
        episode.until = at.now + RECHECK_FOR;
        episode.next_look = at.now;
        self.active.insert(key);
        if fresh {
            self.watched.entry(key).and_modify(|watched| watched.before = None);
            out.push(Action::Look(key, true));
        }
    }

    fn ran_out(&mut self, at: Stamp, key: u64) {
        let readable = self.log_readable;
        let Some(watched) = self.watched.get_mut(&key) else { return };
        let episode = watched.episode(at.now);
        episode.sure = true;
        episode.signals += 1;
        if let Some(signalled) = episode.signalled.first_mut() {
            *signalled = true;
        }
        self.active.insert(key);
        watched.judge_again(at.now, readable);
    }

    fn looked(&mut self, at: Stamp, key: u64, look: Look, out: &mut Vec<Action>) {
        let readable = self.log_readable;
        let Some(watched) = self.watched.get_mut(&key) else { return };
        if let Some(episode) = &mut watched.episode {
            let age = at.now.saturating_sub(episode.since);
            let every = RECHECK
                .iter()
                .find(|(until, _)| age < *until)
                .map_or(RECHECK_LAST, |(_, every)| *every);
            // Many at once share what one may cost.
            let crowd = u32::try_from(self.active.len() / 4).unwrap_or(u32::MAX).max(1);
            episode.next_look = at.now + every.saturating_mul(crowd);
        }
        let counted = look.oom_kill.map(|kills| kills.saturating_add(look.beneath));
        let rise = counted.map_or(0, |counted| counted.saturating_sub(watched.seen));
        if rise == 0 {
            if let Some(detail) = look.detail {
                watched.last = Some(detail.clone());
                watched.before = Some((at.now, detail));
            }
            return;
        }
        watched.seen += rise;
        let beneath =
            look.beneath > 0 && look.oom_kill.unwrap_or(0) == watched.subject.oom_kill.unwrap_or(0);
        let known = watched.owed.min(rise);
        watched.owed -= known;
        let rise = rise - known;
        if let Some(detail) = look.detail {
            watched.last = Some(detail);
        }
        let episode = watched.episode(at.now);
        episode.kills += rise;
        episode.until = at.now + RECHECK_FOR;
        episode.next_look = episode.next_look.max(at.now);
        self.active.insert(key);
        let each = rise.min(MOST_AT_ONCE);
        for n in 0..each {
            let kills = if n + 1 == each { rise - (each - 1) } else { 1 };
            self.next += 1;
            let id = id(at, self.tag, self.next);
            let mut open = watched.open(at, id, kills, beneath, From::OomKill);
            open.record.oom_kill_counter =
                look.oom_kill.map(|now| now.saturating_sub(each.saturating_sub(n + 1)));
            if !watched.unclaimed.is_empty() {
                let (_, kill) = watched.unclaimed.remove(0);
                claim(&mut open, &watched.subject, kill, readable);
            } else {
                conclude(&mut open, None, readable);
            }
            self.open += 1;
            out.push(write(key, &open.record, true));
            watched.push(open);
        }
    }

    fn vanished(&mut self, at: Stamp, key: u64) {
        if let Some(watched) = self.watched.get_mut(&key) {
            watched.gone.get_or_insert(at.now);
            self.active.insert(key);
        }
    }

    fn killed(&mut self, at: Stamp, mut kill: LogKill, out: &mut Vec<Action>) {
        let named = kill.killed.task_memcg.as_deref().map(String::from_utf8_lossy);
        let path = match (&named, &kill.group) {
            (Some(path), _) => {
                let path = path.clone().into_owned();
                kill.group = Some((path.clone(), kill.from));
                path
            }
            (None, Some((path, _))) => path.clone(),
            (None, None) => return self.strange(at.now, kill),
        };
        let Some(key) = self.container_of(&path) else { return self.strange(at.now, kill) };
        let readable = self.log_readable;
        let Some(watched) = self.watched.get_mut(&key) else { return };
        self.active.insert(key);
        if let Some(open) = watched.open.iter_mut().find(|open| open.waits()) {
            claim(open, &watched.subject, kill, readable);
            out.push(write(key, &open.record, false));
            return;
        }
        watched.unclaimed.push((at.now, kill));
        if watched.gone.is_none() {
            out.push(Action::Look(key, true));
        }
    }

    fn strange(&mut self, now: Now, kill: LogKill) {
        self.strangers.retain(|(since, _)| now < *since + STRANGE);
        if self.strangers.len() >= MOST_STRANGE {
            self.strangers.pop_front();
        }
        self.strangers.push_back((now, kill));
    }

    /// What the log has told of this container since it was registered. Where it names no group, its init is known.
    fn killed_before(&mut self, now: Now, subject: &Subject) -> Vec<(Now, LogKill)> {
        let Some(registered) = subject.since else { return Vec::new() };
        let (mut its, mut others) = (Vec::new(), VecDeque::new());
        for (since, mut kill) in self.strangers.drain(..) {
            if kill.group.is_none() && subject.init == Some(kill.killed.pid) {
                kill.group = Some((subject.path.clone(), From::Members));
            }
            let beneath = |(path, _): &(String, From)| is_beneath(path, &subject.path);
            match since >= registered && kill.group.as_ref().is_some_and(beneath) {
                true => its.push((now, kill)),
                false => others.push_back((since, kill)),
            }
        }
        self.strangers = others;
        its
    }

    /// The container that the group at `path` belongs to: the innermost one. Of a removed one and its
    /// successor of the same path, the one that still waits for a line.
    fn container_of(&self, path: &str) -> Option<u64> {
        self.watched
            .iter()
            .filter(|(_, watched)| is_beneath(path, &watched.subject.path))
            .max_by_key(|(_, watched)| {
                let waits = watched.open.iter().any(Open::waits);
                (watched.subject.path.len(), waits, watched.gone.is_none())
            })
            .map(|(key, _)| *key)
    }

    fn tick(&mut self, at: Stamp, out: &mut Vec<Action>) {
        let readable = self.log_readable;
        let crowded = self.open > MOST_OPEN;
        let keys: Vec<u64> = self.active.iter().copied().collect();
        for key in keys {
            let Some(watched) = self.watched.get_mut(&key) else {
                self.active.remove(&key);
                continue;
            };
            // Lines whose kill no counter shows.
            let alone = watched.gone.is_some() || watched.subject.oom_kill.is_none();
            while let Some((since, _)) = watched.unclaimed.first()
                && (alone || at.now >= *since + UNCOUNTED)
            {
                let (_, kill) = watched.unclaimed.remove(0);
                // Every kill that was counted is on record: it is one of those, also of a group that is gone by now.
                if let Some(open) = watched.settled_without(at.now) {
                    let record = claim_late(open, &watched.subject, kill, readable);
                    out.push(write(key, &record, false));
                    continue;
                }
                if !alone {
                    watched.owed += 1;
                }
                self.next += 1;
                let id = id(at, self.tag, self.next);
                let beneath =
                    kill.group.as_ref().is_some_and(|(path, _)| *path != watched.subject.path);
                let from = kill.from;
                watched.episode(at.now).kills += 1;
                let mut open = watched.open(at, id, 1, beneath, from);
                claim(&mut open, &watched.subject, kill, readable);
                self.open += 1;
                out.push(write(key, &open.record, true));
                watched.push(open);
            }
            if watched.ends_full(at.now) {
                out.push(Action::Look(key, true));
            }
            // An episode is over.
            if let Some(episode) = &watched.episode
                && at.now >= episode.until
            {
                let (signals, kills) = (episode.signals, episode.kills);
                // Signals of a group above reach us too: then it is not our memory that ran out.
                let own = signals > 0 && !episode.signalled.iter().skip(1).any(|level| *level);
                let seen = watched.before.is_some() || episode.sure;
                if kills == 0 && own && seen && !watched.told_lately(at.now) {
                    watched.woke = Some(at.now);
                    self.next += 1;
                    let id = id(at, self.tag, self.next);
                    let mut open = watched.open(at, id, 0, false, From::Eventfd);
                    woke(&mut open, watched.subject.v1, watched.gone.is_some(), readable);
                    self.open += 1;
                    out.push(write(key, &open.record, true));
                    watched.push(open);
                }
                watched.begin_anew(at.now);
                watched.episode = None;
                watched.before = None;
            }
            // A look is due.
            if let Some(episode) = &mut watched.episode
                && watched.gone.is_none()
                && at.now >= episode.next_look
            {
                episode.next_look = at.now + RECHECK_LAST;
                out.push(Action::Look(key, false));
            }
            // Records are settled.
            let mut n = 0;
            while n < watched.open.len() {
                let due = watched.settles_at(n, readable);
                if at.now < due && !crowded {
                    n += 1;
                    continue;
                }
                let mut open = watched.open.remove(n);
                let late = open.waits() && open.record.kills > 0 && readable;
                let record = &mut open.record;
                self.open -= 1;
                if let Some(path) = &record.limit_cgroup {
                    record.ancestor_limit_bytes = watched.limit_of(path);
                }
                settle(record, &watched.subject, watched.init_exited, readable, self.log_lost_at);
                out.push(write(key, record, false));
                out.push(Action::Announce(key, Box::new(record.clone())));
                if late && watched.late.len() < MOST_LATE {
                    watched.late.push_back((at.now, open));
                }
            }
            watched.let_go();
            let idle = watched.open.is_empty() && watched.unclaimed.is_empty();
            let forget = match watched.gone {
                Some(gone) => at.now >= gone + REMEMBER,
                None => watched.leaving,
            };
            if idle && forget {
                self.watched.remove(&key);
                self.active.remove(&key);
                out.push(Action::Forget(key));
            } else if idle && watched.episode.is_none() && watched.gone.is_none() {
                self.active.remove(&key);
            }
        }
    }
}

fn write(key: u64, record: &Record, new: bool) -> Action {
    Action::Write { key, record: Box::new(record.clone()), new }
}

fn id(at: Stamp, tag: u32, number: u64) -> String {
    format!("oom-{:010x}-{tag:x}-{number:x}", at.boot_ms)
}

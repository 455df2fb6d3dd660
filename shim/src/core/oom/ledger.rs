//! Which kills have been seen, which are recorded, and what is still waited for.

use super::cause::{Evidence, Verdict, is_beneath, judge};
use super::record::{Breakdown, Cause, Deed, From, Record, Victim, escape};
use crate::core::Now;
use cgroupfs::kmsg::oom::Killed;
use cgroupfs::{Bytes, Limit};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long after a signal the counter is read again before it counts as one without a kill. It rose up
/// to 10 ms later in 4 of 200 (measured on 6.18, idle), and more than 100 ms later on a host with eleven
/// threads to a CPU.
pub const RECHECK_FOR: Duration = Duration::from_millis(500);

/// How often: first while the kill may be under way and its group about to be removed, then later. The log is
/// read as often: the kernel wakes its readers only at the next tick (`wake_up_klogd`), 4 ms later at worst.
const RECHECK: [(Duration, Duration); 3] = [
    (Duration::from_millis(5), Duration::from_micros(200)),
    (Duration::from_millis(100), Duration::from_millis(1)),
    (RECHECK_FOR, RECHECK_LAST),
];
const RECHECK_LAST: Duration = Duration::from_millis(5);

/// A record is settled this long after the kill: whether init outlived it is known by then.
const SETTLE: Duration = Duration::from_millis(100);

/// The same for one whose victim is not known yet while the log can be read: its line follows the
/// counter within microseconds, but its reader may be behind in a flood.
const SETTLE_UNCLAIMED: Duration = Duration::from_millis(500);

/// A line of the log about a group whose counter did not rise makes a record of its own after this long.
const UNCOUNTED: Duration = Duration::from_millis(20);

/// A line that comes so long after its record was settled still completes it (a slow serial console held
/// one up for 0.8 s).
const LATE: Duration = Duration::from_secs(10);

/// How many such records are kept for a container.
const MOST_LATE: usize = 16;

/// What is known of a group is kept this long after it is gone, for lines that are still to come.
const REMEMBER: Duration = Duration::from_secs(2);

/// A look at the group before the kill describes it this long.
const FRESH: Duration = Duration::from_millis(250);

/// A rise of `failcnt` since longer ago says nothing about this OOM, unless the group was full.
const RECENT: Duration = Duration::from_secs(10);

/// Signals without a kill are told once in this long for a container.
const WOKE_EVERY: Duration = Duration::from_secs(1);

/// Kills between two looks beyond this share the last record.
const MOST_AT_ONCE: u64 = 256;

/// Records that may be open at a time; beyond this they are settled as they are.
const MOST_OPEN: usize = 2048;

/// When something is handled, by all clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Monotonic: what all decisions are made by.
    pub now: Now,
    /// ms since 1970, by a clock that may jump.
    pub wall_ms: u64,
    /// ms since boot.
    pub boot_ms: u64,
}

/// A container, as its records name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its name, for people.
    pub name: String,
    /// Its id.
    pub container: String,
    /// Its cgroup's directory.
    pub cgroup: String,
    /// The inode of that directory.
    pub generation: u64,
    /// Its path from the root of the hierarchy, as the kernel log has it.
    pub path: String,
    /// The paths of the groups that it is in, from its parent upwards, without the root.
    pub ancestors: Vec<String>,
    /// Its init, in the initial pid namespace.
    pub init: Option<i32>,
    /// `oom_kill` when watching began, or when it was announced last. `None`: this kernel has none.
    pub oom_kill: Option<u64>,
    /// The counters when watching began.
    pub levels: Vec<LevelLook>,
    /// No other source than the log tells of a kill in groups beneath (v1).
    pub v1: bool,
}

/// One level when it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LevelLook {
    /// Usage.
    pub usage: Option<Bytes>,
    /// Limit in force.
    pub limit: Option<Limit>,
    /// v1 `memory.failcnt`, v2 `max` of `memory.events`.
    pub failcnt: Option<u64>,
    /// v2 `oom` of `memory.events.local`.
    pub oom_local: Option<u64>,
    /// v2 `oom` of `memory.events`: of the subtree.
    pub oom: Option<u64>,
}

impl LevelLook {
    fn full(&self) -> bool {
        match (self.usage, self.limit) {
            // The per-CPU stock of a few CPUs is charged but not used.
            (Some(usage), Some(Limit::Bytes(limit))) => {
                usage.saturating_add(Bytes((limit.0 / 100).max(1 << 20).min(limit.0 / 4))) >= limit
            }
            _ => false,
        }
    }
}

/// What a look at a group brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// `oom_kill`; `None` where this kernel has none.
    pub oom_kill: Option<u64>,
    /// Kills counted in the groups beneath since watching began (v1).
    pub beneath: u64,
    /// The rest, where that was read too.
    pub detail: Option<Box<Detail>>,
}

/// All that is recorded of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// The container's own group, then those above.
    pub levels: Vec<LevelLook>,
    /// What its memory consists of.
    pub breakdown: Breakdown,
    /// Its highest usage.
    pub peak: Option<Bytes>,
    /// The limit that the operator or runtime set.
    pub declared: Option<Limit>,
    /// What cgshim did lately, newest first.
    pub deeds: Vec<Deed>,
    /// cgshim has its limit lowered now.
    pub lowered: bool,
}

/// A kill that the log, or the tracepoint, tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogKill {
    /// What it says.
    pub killed: Killed,
    /// Which of the two.
    pub from: From,
    /// The victim's group, where the log does not name it but something else does.
    pub group: Option<(String, From)>,
    /// The host had free memory above its watermarks just then.
    pub node_has_room: Option<bool>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// From now on this container is watched.
    Watch(u64, Box<Subject>),
    /// Its init is this one.
    Init(u64, i32),
    /// The OOM signal of a container's group (level 0), or of a group above it.
    Signal(u64, usize),
    /// Its group is gone, and was signalled more often than for that: memory had run out before.
    RanOut(u64),
    /// It was looked at.
    Looked(u64, Box<Look>),
    /// Its group is gone.
    Vanished(u64),
    /// The log tells of a kill.
    Killed(Box<LogKill>),
    /// Records of the log were lost.
    LogLost,
    /// The log can (not) be read.
    LogReadable(bool),
    /// Its init is gone.
    InitExited(u64),
    /// Watching it ends: what is open is settled as soon as it can be.
    Unwatch(u64),
    /// It was time.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look at this container now; with everything if true.
    Look(u64, bool),
    /// Persist this. A record of the same id is replaced, unless this one is new.
    Write {
        /// Whose it is.
        key: u64,
        /// What it says now.
        record: Box<Record>,
        /// It is the first of its id.
        new: bool,
    },
    /// It is settled (and was written): tell people.
    Announce(u64, Box<Record>),
    /// Nothing is remembered of it any more.
    Forget(u64),
}

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
}

#[derive(Debug)]
struct Watched {
    subject: Subject,
    seen: u64,
    /// Kills recorded by the log that the counter has yet to show.
    owed: u64,
    baseline: (Now, Vec<LevelLook>),
    /// The last look while nobody had been killed yet.
    before: Option<(Now, Box<Detail>)>,
    /// The last look of all.
    last: Option<Box<Detail>>,
    episode: Option<Episode>,
    open: Vec<Open>,
    unclaimed: Vec<(Now, LogKill)>,
    /// Settled without their line of the log, and when.
    late: VecDeque<(Now, Open)>,
    gone: Option<Now>,
    leaving: bool,
    init_exited: bool,
    woke: Option<Now>,
}

/// From a signal until nothing has happened for a while.
#[derive(Debug)]
struct Episode {
    since: Now,
    until: Now,
    next_look: Now,
    signals: u64,
    signalled: Vec<bool>,
    kills: u64,
    /// Memory ran out, whether or not anybody looked in time.
    sure: bool,
}

#[derive(Debug)]
struct Open {
    record: Record,
    born: Now,
    claimed: bool,
    levels: Vec<Evidence>,
    beneath: bool,
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
        }
    }

    /// Takes an event, appends what is to be done; then [`Ledger::deadline`] says when to tick.
    pub fn handle(&mut self, at: Stamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Watch(key, subject) => {
                self.watched.insert(key, Box::new(Watched::new(at.now, *subject)));
            }
            Event::Init(key, pid) => {
                if let Some(watched) = self.watched.get_mut(&key) {
                    watched.subject.init = Some(pid);
                }
            }
            Event::Signal(key, level) => self.signal(at, key, level, out),
            Event::RanOut(key) => self.ran_out(at, key),
            Event::Looked(key, look) => self.looked(at, key, *look, out),
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
            watched.open.push(open);
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
            (None, None) => return,
        };
        let Some(key) = self.container_of(&path) else { return };
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
                if !alone {
                    // Every kill that was counted is on record: it is one of those.
                    if let Some(open) = watched.settled_without(at.now) {
                        out.push(write(
                            key,
                            &claim_late(open, &watched.subject, kill, readable),
                            false,
                        ));
                        continue;
                    }
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
                watched.open.push(open);
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
                    watched.open.push(open);
                }
                if let Some(last) = &watched.last {
                    watched.baseline = (at.now, last.levels.clone());
                }
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

impl Open {
    /// A line of the log may be about it.
    fn waits(&self) -> bool {
        !self.claimed && self.record.cause != Cause::WokeWithoutKill
    }
}

impl Watched {
    fn new(now: Now, subject: Subject) -> Watched {
        Watched {
            seen: subject.oom_kill.unwrap_or(0),
            owed: 0,
            baseline: (now, subject.levels.clone()),
            before: None,
            last: None,
            episode: None,
            open: Vec::new(),
            unclaimed: Vec::new(),
            late: VecDeque::new(),
            gone: None,
            leaving: false,
            init_exited: false,
            woke: None,
            subject,
        }
    }

    fn episode(&mut self, now: Now) -> &mut Episode {
        let levels = self.subject.ancestors.len() + 1;
        self.episode.get_or_insert_with(|| Episode {
            since: now,
            until: now + RECHECK_FOR,
            next_look: now,
            signals: 0,
            signalled: vec![false; levels],
            kills: 0,
            sure: false,
        })
    }

    /// The oldest record that was settled lately without its line of the log.
    fn settled_without(&mut self, now: Now) -> Option<Open> {
        while let Some((settled, open)) = self.late.pop_front() {
            if now <= settled + LATE {
                return Some(open);
            }
        }
        None
    }

    fn told_lately(&self, now: Now) -> bool {
        self.woke.is_some_and(|told| now < told + WOKE_EVERY)
    }

    fn settles_at(&self, n: usize, log_readable: bool) -> Now {
        let Some(open) = self.open.get(n) else { return Now::ZERO };
        let waits = open.waits() && log_readable;
        open.born
            + match (waits, self.leaving) {
                (true, _) => SETTLE_UNCLAIMED,
                (false, true) => Duration::ZERO,
                (false, false) => SETTLE,
            }
    }

    fn deadline(&self, log_readable: bool) -> Option<Now> {
        let settle = (0..self.open.len()).map(|n| self.settles_at(n, log_readable)).min();
        let uncounted = self.unclaimed.first().map(|(since, _)| *since + UNCOUNTED);
        let episode = self.episode.as_ref().map(|episode| match self.gone {
            Some(_) => episode.until,
            None => episode.until.min(episode.next_look),
        });
        let gone = self.gone.map(|gone| gone + REMEMBER);
        let idle = self.open.is_empty() && self.unclaimed.is_empty() && self.gone.is_none();
        let leaving = (self.leaving && idle).then_some(Now::ZERO);
        [settle, uncounted, episode, gone, leaving].into_iter().flatten().min()
    }

    /// A record of the group as it was.
    fn open(&self, at: Stamp, id: String, kills: u64, beneath: bool, from: From) -> Open {
        let before = self.before.as_ref().filter(|(when, _)| at.now <= *when + FRESH);
        let (detail, when) = match (before, &self.last) {
            (Some((_, detail)), _) => (Some(detail), From::FilesBefore),
            (None, Some(detail)) => (Some(detail), From::FilesAfter),
            (None, None) => (None, From::FilesAfter),
        };
        let subject = &self.subject;
        let mut record = Record {
            schema: 1,
            id,
            settled: false,
            wall_ms: at.wall_ms,
            boot_ms: at.boot_ms,
            name: subject.name.clone(),
            container: subject.container.clone(),
            cgroup: subject.cgroup.clone(),
            generation: subject.generation,
            kills,
            oom_kill_counter: None,
            cause: Cause::Unknown,
            unknown: Vec::new(),
            limit_cgroup: None,
            victim: None,
            init_survived: None,
            usage_bytes: None,
            peak_bytes: None,
            limit_declared_bytes: None,
            limit_in_force_bytes: None,
            ancestor_limit_bytes: None,
            breakdown: Breakdown::default(),
            signals: self.episode.as_ref().map_or(0, |episode| episode.signals),
            deeds: Vec::new(),
            cgshim_could_be_cause: false,
            from: BTreeMap::new(),
        };
        record.source("kills", from);
        if self.init_exited {
            record.init_survived = Some(false);
            record.source("init_survived", From::Pidfd);
        }
        if let Some(detail) = detail {
            let own = detail.levels.first().copied().unwrap_or_default();
            let bytes = |limit: Option<Limit>| limit.and_then(Limit::bytes).map(|bytes| bytes.0);
            record.usage_bytes = own.usage.map(|usage| usage.0);
            record.peak_bytes = detail.peak.map(|peak| peak.0);
            record.limit_in_force_bytes = bytes(own.limit);
            record.limit_declared_bytes = bytes(detail.declared.or(own.limit));
            record.breakdown = detail.breakdown;
            record.deeds.clone_from(&detail.deeds);
            record.cgshim_could_be_cause = detail.lowered
                || detail.deeds.iter().any(|deed| deed.lowered && deed.before_ms <= 20);
            for field in ["usage_bytes", "peak_bytes", "limit_in_force_bytes", "breakdown"] {
                record.source(field, when);
            }
            for field in ["limit_declared_bytes", "deeds", "cgshim_could_be_cause"] {
                record.source(field, From::Cgshim);
            }
        }
        Open { record, born: at.now, claimed: false, levels: self.evidence(at.now), beneath }
    }

    fn evidence(&self, now: Now) -> Vec<Evidence> {
        let (since, baseline) = &self.baseline;
        let recent = now <= *since + RECENT;
        let paths = std::iter::once(&self.subject.path).chain(&self.subject.ancestors);
        let rise = |after: Option<u64>, before: Option<u64>| {
            after.unwrap_or(0).saturating_sub(before.unwrap_or(0))
        };
        paths
            .enumerate()
            .map(|(n, path)| {
                let before = baseline.get(n).copied().unwrap_or_default();
                let at = |detail: &Detail| detail.levels.get(n).copied();
                let last = self.last.as_ref().and_then(|detail| at(detail));
                let look = self.before.as_ref().and_then(|(_, detail)| at(detail));
                let full = [look, last].iter().flatten().any(LevelLook::full);
                let read = |look: &LevelLook| look.failcnt.is_some() || look.oom.is_some();
                let unread = ![look, last].iter().flatten().any(read);
                let last = last.or(look).unwrap_or_default();
                Evidence {
                    path: path.clone(),
                    signalled: self
                        .episode
                        .as_ref()
                        .is_some_and(|episode| episode.signalled.get(n) == Some(&true)),
                    oom_local: rise(last.oom_local, before.oom_local),
                    oom: rise(last.oom, before.oom),
                    failcnt: match recent || full {
                        true => rise(last.failcnt, before.failcnt),
                        false => 0,
                    },
                    full,
                    unread,
                }
            })
            .collect()
    }

    /// Signals were heard that had been made before the group was removed: what the log alone made a record of,
    /// without the line that says whose limit was hit, is judged by them.
    fn judge_again(&mut self, now: Now, log_readable: bool) {
        let levels = self.evidence(now);
        for open in &mut self.open {
            let by_log = open.record.from.get("cause") == Some(&From::KernelLog);
            if !by_log && open.record.cause != Cause::WokeWithoutKill {
                open.levels.clone_from(&levels);
                conclude(open, None, log_readable);
            }
        }
    }

    fn limit_of(&self, path: &str) -> Option<u64> {
        let level = self.subject.ancestors.iter().position(|ancestor| ancestor == path)? + 1;
        let looks = self.last.iter().chain(self.before.iter().map(|(_, detail)| detail));
        looks
            .filter_map(|detail| detail.levels.get(level)?.limit?.bytes())
            .map(|bytes| bytes.0)
            .next()
    }
}

/// A line of the log is about this record.
fn claim(open: &mut Open, subject: &Subject, kill: LogKill, log_readable: bool) {
    open.claimed = true;
    // It was not known whether anybody was killed.
    if open.record.kills == 0 {
        open.record.kills = 1;
        open.record.unknown.clear();
        open.record.source("kills", kill.from);
    }
    if let Some((path, from)) = &kill.group {
        open.beneath = *path != subject.path;
        open.record.source("victim_cgroup", *from);
    }
    let comm = &kill.killed.comm;
    open.record.victim = Some(Victim {
        pid: kill.killed.pid,
        comm: (!comm.is_empty() || kill.from == From::KernelLog).then(|| escape(comm)),
        oom_score_adj: kill.killed.oom_score_adj,
        cgroup: kill.group.as_ref().map(|(path, _)| escape(path.as_bytes())),
    });
    open.record.source("victim", kill.from);
    if subject.init == Some(kill.killed.pid) {
        open.record.init_survived = Some(false);
        open.record.source("init_survived", kill.from);
    }
    conclude(open, Some(&kill), log_readable);
}

/// The line came after the record was settled.
fn claim_late(mut open: Open, subject: &Subject, kill: LogKill, log_readable: bool) -> Record {
    claim(&mut open, subject, kill, log_readable);
    let mut record = open.record;
    let known = record.cause != Cause::Unknown;
    record.unknown.retain(|why| !(why.starts_with(WHO) || known && why.starts_with(WHOSE)));
    record
}

/// Why, from all there is.
fn conclude(open: &mut Open, kill: Option<&LogKill>, log_readable: bool) {
    let log = kill.filter(|kill| kill.from == From::KernelLog).map(|kill| {
        let mut killed = kill.killed.clone();
        // An allocation of several pages that fails on a host without room is no fragmentation.
        if kill.node_has_room != Some(true) {
            killed.order = None;
        }
        killed
    });
    let Verdict { cause, limit_cgroup, from } =
        judge(log.as_ref(), &open.levels, open.beneath, log_readable);
    open.record.cause = cause;
    open.record.limit_cgroup = limit_cgroup.map(|path| escape(path.as_bytes()));
    if let Some(from) = from {
        open.record.source("cause", from);
    }
    if open.record.limit_cgroup.is_some()
        && let Some(from) = from
    {
        open.record.source("limit_cgroup", from);
    }
}

/// Signals that no kill followed.
fn woke(open: &mut Open, v1: bool, gone: bool, log_readable: bool) {
    let record = &mut open.record;
    record.source("cause", if v1 { From::Eventfd } else { From::EventsLocal });
    if gone {
        conclude(open, None, log_readable);
        open.record.unknown.push(
            "whether somebody was killed: the group was removed before its counter could be read"
                .into(),
        );
    } else {
        record.cause = Cause::WokeWithoutKill;
    }
}

/// How it begins that a victim, and a cause, is not known.
const WHO: &str = "who was killed: ";
const WHOSE: &str = "whose limit was hit: ";

/// What is not known now hardly ever will be: said, and why.
fn settle(
    record: &mut Record,
    subject: &Subject,
    init_exited: bool,
    log_readable: bool,
    log_lost_at: Option<Now>,
) {
    record.settled = true;
    if record.init_survived.is_none() && subject.init.is_some() {
        record.init_survived = Some(!init_exited);
        record.source("init_survived", From::Pidfd);
    }
    if record.victim.is_none() && record.kills > 0 {
        let why = match (log_readable, log_lost_at) {
            (false, _) => "the kernel log cannot be read here",
            (true, Some(_)) => "no line of the kernel log is surely about it, and lines were lost",
            (true, None) => "no line of the kernel log is surely about it",
        };
        record.unknown.push(format!("{WHO}{why}"));
    }
    if record.cause == Cause::Unknown {
        let why = "no counter says so for sure, and the kernel log has no line on it";
        record.unknown.push(format!("{WHOSE}{why}"));
    }
    if subject.oom_kill.is_none() {
        record.unknown.push(
            "kills that the kernel log does not show: this kernel does not count them (oom_kill came with 4.13)"
                .into(),
        );
    }
}

//! Those who are killed while they are frozen: nobody can die then.

use cgroupfs::procfs::{Task, TaskStat};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often somebody who has been killed is looked for in a pulse: nobody can die frozen. One look is at so great
/// a part of the processes, in turn: who ends a container kills all of them.
pub(super) const KILLED: Duration = Duration::from_millis(6);
const PARTS: usize = 2;

/// So few are all looked at each time: some 10 µs each.
const FEW: usize = 4;

/// How long they are given to die, and where they have not had a CPU yet. The first process of a container, once it
/// dies, kills the others: that is waited for as well.
const DYING: Duration = Duration::from_millis(20);
const DYING_WITHOUT_CPU: Duration = Duration::from_millis(200);
const OTHERS: Duration = Duration::from_millis(2);

/// For how long nobody is waited for any more when that was not enough (they wait for a disk, say): at first, and
/// at most.
const PATIENCE: Duration = Duration::from_millis(50);
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// No more processes are looked at.
const WATCHED: usize = 128;

/// A task of each process that is frozen.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Vec<Arc<Task>>>>);

impl Watched {
    /// These from now on.
    pub(super) fn replace(&self, tasks: impl Iterator<Item = Arc<Task>>) {
        let tasks: Vec<_> = tasks.take(WATCHED).collect();
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *watched, tasks);
        drop(watched);
        // Files are closed while nobody waits for us.
        drop(before);
    }
}

/// Looks after them.
pub(super) struct Killed {
    watched: Watched,
    /// Who of them is looked at next.
    next: usize,
    /// Nobody who has been killed is waited for until then, and for how long the next time.
    impatient: Option<Instant>,
    patience: Duration,
}

impl Killed {
    pub(super) fn among(watched: Watched) -> Killed {
        Killed { watched, next: 0, impatient: None, patience: PATIENCE }
    }

    /// Looks at some of those who are frozen.
    pub(super) fn somebody_is(&mut self) -> bool {
        if self.impatient.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        // Whoever holds the lock may not have a CPU.
        let Ok(watched) = self.watched.0.try_lock() else { return false };
        let part = watched.len().div_ceil(PARTS).max(FEW);
        let first = if self.next < watched.len() { self.next } else { 0 };
        self.next = first + part;
        let mut some = watched.iter().skip(first).take(part);
        some.any(|task| task.stat().is_some_and(|stat| stat.killed()))
    }

    /// Of those who have been killed, and are not dying yet: the state of one, of one that only waits for a CPU if
    /// there is one.
    fn about_to_die(&self) -> Option<u8> {
        let watched = self.watched.0.try_lock().ok()?;
        let stats = watched.iter().filter_map(|task| task.stat());
        let states = stats.filter(TaskStat::killed).map(|stat| stat.state);
        states.max_by_key(|state| *state == b'R')
    }

    /// Lets those run who have been killed, as a window may be too short to die in.
    pub(super) fn let_die(&mut self, start: Instant) {
        let mut seen = start;
        loop {
            std::thread::sleep(Duration::from_millis(1));
            let (now, state) = (Instant::now(), self.about_to_die());
            let longest = if state == Some(b'R') { DYING_WITHOUT_CPU } else { DYING };
            match state {
                None if now - seen >= OTHERS || now - start >= longest => {
                    self.patience = PATIENCE;
                    return;
                }
                Some(_) if now - start >= longest => {
                    self.impatient = Some(now + self.patience);
                    self.patience = (self.patience * 2).min(LEAST_PATIENCE);
                    return;
                }
                None => {}
                Some(_) => seen = now,
            }
        }
    }
}

//! Ready long before high: the group that is frozen, with the container's tasks in it, where they would be at high before
//! they could be moved ([`crate::core::throttle::is_early`]). It costs what a group costs: no thread, no wake-up. Who is
//! forked from then on is in it from its birth.

use super::growers::Known;
use super::manager::{FEW, Manager};
use super::near::{Ground, home, name, sweep, whose};
use super::{Control, ThrottleEvent, growers};
use crate::core::throttle::{Moves as Order, Turn, is_early, next_look};
use cgroupfs::freezer::{FreezerGroup, Kind};
use cgroupfs::{Bytes, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Which throttles of a process move tasks early, one at a time.
pub struct Moves {
    start: Instant,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    order: Order,
    waiting: BTreeMap<u64, Arc<Control>>,
}

impl Default for Moves {
    fn default() -> Moves {
        Moves { start: Instant::now(), queue: Mutex::default() }
    }
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait, until it is dropped.
pub(super) struct Seat {
    moves: Arc<Moves>,
    ticket: u64,
}

impl Seat {
    fn take(moves: Arc<Moves>, control: Arc<Control>) -> Seat {
        let mut queue = moves.lock();
        let ticket = queue.order.join();
        queue.waiting.insert(ticket, control);
        drop(queue);
        Seat { moves, ticket }
    }

    fn turn(&self) -> Turn {
        self.moves.lock().order.turn(self.ticket, self.moves.start.elapsed())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut queue = self.moves.lock();
        queue.waiting.remove(&self.ticket);
        let next = queue.order.leave(self.ticket, self.moves.start.elapsed());
        if let Some(next) = next.and_then(|next| queue.waiting.get(&next)) {
            let _ = next.kick.write(1);
        }
    }
}

/// The group, made ready.
pub(super) struct Early {
    pub(super) group: FreezerGroup,
    /// The container's own freezer group.
    pub(super) home: PathBuf,
    /// How often throttles beneath had come, or ended.
    pub(super) beneath: u64,
    /// What its tasks had done when they were looked at last.
    pub(super) known: Known,
}

impl Early {
    /// For tasks that are at `home`; `lent`: that is a group beneath the container's.
    pub(super) fn make(ground: &Ground<'_>, home: PathBuf, lent: bool) -> Result<Early> {
        let Ground { config, freezer, .. } = *ground;
        let parent = Arc::new(freezer.open(&home)?);
        sweep(freezer.kind, &parent, whose(freezer, &config.group, &home));
        let name = name(freezer, &config.group, &home, lent);
        let group = FreezerGroup::create(freezer.kind, parent, &name)?;
        config.journal.place(group.path(), group.inode())?;
        Ok(Early { group, home, beneath: ground.beneath, known: Known::default() })
    }

    /// Somebody is in it, and nobody who belongs to another throttle.
    pub(super) fn is_of_use(&self, ground: &Ground<'_>) -> bool {
        self.beneath == ground.beneath && self.group.tasks().is_ok_and(|tasks| !tasks.is_empty())
    }
}

impl Manager {
    /// Whether it is to be ready long before high.
    pub(super) fn wants_early(&self) -> bool {
        self.freezer.kind == Kind::V1 && self.levels.all().any(|level| is_early(level.high))
    }

    /// Everybody is back where it was.
    pub(super) fn forget_early(&mut self) {
        (self.seat, self.next_look) = (None, None);
        if let Some(Err(error)) = self.early.take().map(|early| early.group.remove())
            && !error.is_vanished()
        {
            self.tell(ThrottleEvent::Failed(error));
        }
    }

    /// Far from high: has those in the group that is frozen who are in the container, once it is this one's turn. When to
    /// try again, if no threshold tells.
    pub(super) fn prepare(&mut self) -> Result<Option<Duration>> {
        let ground = self.ground();
        let stale = |early: &Early| early.beneath != ground.beneath;
        let (stale, wanted) = (self.early.as_ref().is_some_and(stale), self.wants_early());
        if stale || !wanted {
            self.forget_early();
        }
        let usage = self.memory.usage()?;
        if !wanted || self.next_look.is_some_and(|at| usage < at) {
            return Ok(None);
        }
        let outside = self.outside()?;
        if !outside.is_empty() {
            let (moves, control) = (&self.config.moves, &self.control);
            let seat = self.seat.get_or_insert_with(|| Seat::take(moves.clone(), control.clone()));
            match seat.turn() {
                Turn::Now => {}
                Turn::At(when) => {
                    return Ok(Some(when.saturating_sub(self.config.moves.start.elapsed())));
                }
                Turn::Behind => return Ok(None),
            }
            self.move_in(&outside)?;
        }
        let usage = self.memory.usage()?;
        (self.seat, self.next_look) = (None, Some(next_look(usage)));
        if let Some(early) = &mut self.early {
            early.known = Known::note(&early.group, usage)?;
        }
        Ok(None)
    }

    /// At which usage, below `near`, somebody may have come since.
    pub(super) fn when_to_look(&self, near: Bytes) -> Option<Bytes> {
        let look = self.next_look.filter(|_| self.seat.is_none());
        look.filter(|at| *at < near)
    }

    /// Who is not in the group yet; nobody where there are so many that who grows has to be found out first.
    fn outside(&self) -> Result<Vec<u32>> {
        let taken = &self.config.taken;
        let all = growers::all(&self.config.group, &|group| taken.has(group))?;
        if all.len() > FEW {
            return Ok(Vec::new());
        }
        let inside: BTreeSet<u32> = match &self.early {
            Some(early) => early.group.tasks()?.into_iter().collect(),
            None => BTreeSet::new(),
        };
        Ok(all.into_iter().filter(|tid| !inside.contains(tid)).collect())
    }

    fn move_in(&mut self, outside: &[u32]) -> Result<()> {
        // A pod's tasks are in groups of their containers'.
        let Some((home, false)) = home(&self.ground())? else { return Ok(()) };
        if self.early.as_ref().is_some_and(|early| early.home != home) {
            // Its runtime was not done with them.
            self.early = None;
        }
        let early = match self.early.take() {
            Some(early) => early,
            None => Early::make(&self.ground(), home, false)?,
        };
        let early = self.early.insert(early);
        let (start, mut moved) = (Instant::now(), 0);
        for tid in outside {
            if self.control.is_wanted_elsewhere() {
                break;
            }
            // Tasks in a freezer group of their own are not ours to move.
            if self.freezer.path_of(*tid).is_ok_and(|path| path == early.home) {
                moved += u32::from(early.group.take(*tid)?);
            }
        }
        log::trace!("{moved} are moved in, far from high, in {:?}", start.elapsed());
        Ok(())
    }
}

//! Emptying a container's cache as its init exits: whether, and how.
//!
//! On v1 it takes a limit of 0 for an instant. So one rule is shared with the engine's reclaim: a container's
//! limit is lowered by one at a time ([`Turn`]), or each would take the other's value for the declared one.

use cgroupfs::Bytes;

/// With more than this to be written to disk, a group is left to the sweep: reclaim that meets nothing else
/// waits for the disk, up to 100 ms where no signal ends it.
pub const MOST_DIRTY: Bytes = Bytes(64 << 10);

/// Whose step a container's limit is, or may be next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Turn {
    /// Nobody's: the declared limit stands.
    #[default]
    Free,
    /// A task of the engine is in flight.
    Engine,
    /// It is being emptied.
    Emptying,
}

impl Turn {
    /// Takes it for `who`, if it is nobody's. It is not taken twice, by the same either.
    pub fn take(&mut self, who: Turn) -> bool {
        let free = *self == Turn::Free;
        if free {
            *self = who;
        }
        free
    }

    /// Gives it back, if it is `who`'s.
    pub fn give_back(&mut self, who: Turn) {
        if *self == who {
            *self = Turn::Free;
        }
    }
}

/// What is seen of a group whose container has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Somebody lives on in it.
    pub peopled: bool,
    /// Dirty, or on its way to the disk.
    pub to_write: Bytes,
    /// Anonymous memory, which reclaim might swap out.
    pub anon: Bytes,
    /// Charged to it.
    pub usage: Bytes,
}

/// What there is to empty a group with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// v1 `memory.limit_in_bytes`.
    Limit,
    /// v2 `memory.reclaim` (5.19+).
    Reclaim,
    /// v2 before that: `memory.high`, which reclaims in whoever lowers it.
    High,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emptying {
    /// A limit (v1) or `memory.high` (v2) of 0, and the one that stands at once.
    Lower {
        /// With swappiness at 0 meanwhile: nothing is to be swapped for this.
        without_swap: bool,
    },
    /// v2: `memory.reclaim` of so much.
    Reclaim(Bytes),
    /// There is nothing in it.
    Nothing,
}

/// Why it is left to the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Its memory is in use.
    Peopled,
    /// The disk would be waited for.
    Dirty,
    /// Without a place in the journal nothing is lowered.
    NoJournal,
    /// The engine's task did not end in time.
    NotOurTurn,
    /// What stands may be a value of ours that could not be undone: the journal has the declared one.
    Unrestored,
}

/// Whether to empty it, and how, by what it holds. Where something is lowered, [`may_lower`] has the last word.
///
/// # Errors
/// Why not.
pub fn decide(with: With, seen: &Seen) -> Result<Emptying, Leave> {
    if seen.peopled {
        return Err(Leave::Peopled);
    }
    if seen.to_write > MOST_DIRTY {
        return Err(Leave::Dirty);
    }
    Ok(match (with, seen.usage) {
        (With::Limit, _) => Emptying::Lower { without_swap: seen.anon > Bytes(0) },
        (_, Bytes(0)) => Emptying::Nothing,
        (With::Reclaim, usage) => Emptying::Reclaim(usage),
        // v2 has a limit for swap.
        (With::High, _) => Emptying::Lower { without_swap: false },
    })
}

/// What the journal has in flight for a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InFlight {
    /// A limit of ours may stand.
    pub step: bool,
    /// Swappiness is 0 by us.
    pub swappiness: bool,
    /// What is in flight cannot be read.
    pub damaged: bool,
}

/// Whether the limit that stands is one to come back to. To be asked once the turn is ours.
///
/// # Errors
/// Why not.
pub fn may_lower(journal: Option<InFlight>) -> Result<(), Leave> {
    match journal {
        None => Err(Leave::NoJournal),
        Some(found) if found == InFlight::default() => Ok(()),
        Some(_) => Err(Leave::Unrestored),
    }
}

/// What follows a limit of 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is empty, or what is left is the kernel's own and goes by itself.
    Empty,
    /// Pages may be on their way to the lists: have them put there, and once more.
    DrainAndAgain,
    /// The rest is the sweep's.
    Left,
}

/// `busy`: the kernel could not take all of it. `pages`: what is charged without the kernel's own. `tries`
/// with this one.
pub fn next(busy: bool, pages: Bytes, tries: u32) -> Next {
    match (busy, pages, tries) {
        (false, ..) | (true, Bytes(0), _) => Next::Empty,
        (true, _, 1) => Next::DrainAndAgain,
        (true, ..) => Next::Left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: Seen =
        Seen { peopled: false, to_write: Bytes(0), anon: Bytes(0), usage: Bytes::mib(4) };

    #[test]
    fn a_limit_is_lowered_by_one_at_a_time() {
        let mut turn = Turn::default();
        assert!(turn.take(Turn::Emptying));
        // A flight that begins between emptying's look and its step.
        assert!(!turn.take(Turn::Engine));
        // Who has it not cannot give it back.
        turn.give_back(Turn::Engine);
        assert_eq!(turn, Turn::Emptying);
        turn.give_back(Turn::Emptying);
        assert!(turn.take(Turn::Engine));
        assert!(!turn.take(Turn::Emptying) && !turn.take(Turn::Engine));
        turn.give_back(Turn::Engine);
        assert_eq!(turn, Turn::Free);
    }

    #[test]
    fn what_lives_or_waits_for_the_disk_is_left() {
        for with in [With::Limit, With::Reclaim, With::High] {
            assert_eq!(decide(with, &Seen { peopled: true, ..CACHE }), Err(Leave::Peopled));
            let dirty = Seen { to_write: Bytes(MOST_DIRTY.0 + 1), ..CACHE };
            assert_eq!(decide(with, &dirty), Err(Leave::Dirty));
        }
    }

    #[test]
    fn nothing_is_swapped_for_it() {
        assert_eq!(decide(With::Limit, &CACHE), Ok(Emptying::Lower { without_swap: false }));
        let anon = Seen { anon: Bytes(4096), ..CACHE };
        assert_eq!(decide(With::Limit, &anon), Ok(Emptying::Lower { without_swap: true }));
    }

    #[test]
    fn v2_reclaims_what_there_is() {
        assert_eq!(decide(With::Reclaim, &CACHE), Ok(Emptying::Reclaim(CACHE.usage)));
        assert_eq!(decide(With::High, &CACHE), Ok(Emptying::Lower { without_swap: false }));
        for with in [With::Reclaim, With::High] {
            assert_eq!(decide(with, &Seen { usage: Bytes(0), ..CACHE }), Ok(Emptying::Nothing));
        }
    }

    #[test]
    fn a_value_of_ours_is_not_taken_for_the_declared_limit() {
        let clear = InFlight::default();
        assert_eq!(may_lower(Some(clear)), Ok(()));
        assert_eq!(may_lower(None), Err(Leave::NoJournal));
        for found in [
            InFlight { step: true, ..clear },
            InFlight { swappiness: true, ..clear },
            InFlight { damaged: true, ..clear },
        ] {
            assert_eq!(may_lower(Some(found)), Err(Leave::Unrestored), "{found:?}");
        }
    }

    #[test]
    fn batches_are_put_on_the_lists_once() {
        assert_eq!(next(false, Bytes::mib(1), 1), Next::Empty);
        assert_eq!(next(true, Bytes(0), 1), Next::Empty);
        assert_eq!(next(true, Bytes(4096), 1), Next::DrainAndAgain);
        assert_eq!(next(true, Bytes(4096), 2), Next::Left);
    }
}

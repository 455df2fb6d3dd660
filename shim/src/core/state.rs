//! What is going on with a container, in one word: the only place where that is derived.

use super::plan::StandAside;
use std::fmt;

/// The state of a container, as every view has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Under its mark; the kernel tells when it is not.
    Watching,
    /// Memory is being taken from it.
    Reclaiming,
    /// Over its mark and let be, for this reason.
    Aside(StandAside),
    /// Reclaim freed next to nothing, or the kernel refused: the next try is a while off.
    BackingOff,
    /// It has neither limit nor high.
    Unlimited,
    /// Its terms say `watermark = off`.
    Off,
    /// It is being released.
    Releasing,
    /// It was released, or its group is gone.
    Ended,
}

impl State {
    /// As in tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Watching => "watching",
            State::Reclaiming => "reclaiming",
            State::Aside(StandAside::Dirty) => "aside:dirty",
            State::Aside(StandAside::InUse) => "aside:in_use",
            State::Aside(StandAside::Overrun) => "aside:overrun",
            State::Aside(StandAside::NothingToTake) => "aside:nothing_to_take",
            State::BackingOff => "backing_off",
            State::Unlimited => "unlimited",
            State::Off => "off",
            State::Releasing => "releasing",
            State::Ended => "ended",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

//! OOM bookkeeping: from signals, counters and the kernel log to one [`Record`] a kill.
//!
//! No single source can be trusted alone. The v1 eventfd also fires when a group is removed, before the
//! kill, several times for one or not at all; it is a hint to look. `oom_kill` is what counts: a record is
//! made for every kill by which it rose, at once. Who was killed only the kernel log (or a tracepoint)
//! knows; its lines are matched to records by the group they name, in the order of both. A line that
//! names no group that we can tell is matched to nothing: a victim is never guessed. Where the group is
//! gone before its counter could be read, the log alone makes the record.
//!
//! Like the rest of the core this is deterministic: it reads nothing, and time is an argument.

mod cause;
pub mod emptying;
mod event;
pub mod hold;
mod ledger;
mod open;
mod record;
mod watched;

pub use cause::{Evidence, Verdict, judge};
pub use event::{Action, Detail, Event, LevelLook, LogKill, Look, Stamp, Subject};
pub use ledger::{Ledger, RECHECK_FOR};
pub use record::{Breakdown, Cause, Deed, From, Record, Victim, escape};

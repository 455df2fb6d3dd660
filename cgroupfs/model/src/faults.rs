//! Fault injection: what a harness may do at each write, and between the passes of one.

use crate::group::GroupId;
use crate::host::State;
use nix::errno::Errno;

/// Who opened a directory: the daemon, its guardian, another writer. One that was killed gets
/// [`KILLED`] from every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(pub u32);

/// What a killed actor's calls answer: no kernel file does.
pub const KILLED: Errno = Errno::EKEYREVOKED;

/// A write about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// By whom.
    pub actor: Actor,
    /// To which group.
    pub group: GroupId,
    /// To which file.
    pub file: &'a str,
    /// What.
    pub value: &'a [u8],
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Make,
    /// It fails with this errno, nothing done.
    Fail(Errno),
    /// The writer is killed before it is made.
    KillBefore,
    /// It is made, and the writer is killed before it learns of it.
    KillAfter,
}

/// What happens between two passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassVerdict {
    /// Nothing.
    GoOn,
    /// A signal comes for the writer.
    Signal,
}

/// Called at each write with the state, so that another writer may come first.
pub(crate) type WriteHook = Box<dyn FnMut(&mut State, Write<'_>) -> Verdict + Send>;

/// Called before each pass with the group and the number of passes made.
pub(crate) type PassHook = Box<dyn FnMut(&mut State, GroupId, u64) -> PassVerdict + Send>;

impl State {
    /// Asks the hook. A hook's own writes do not ask again.
    pub(crate) fn verdict(&mut self, write: Write<'_>) -> Verdict {
        let Some(mut hook) = self.on_write.take() else {
            return Verdict::Make;
        };
        let verdict = hook(self, write);
        self.on_write.get_or_insert(hook);
        verdict
    }

    /// Kills an actor: all its calls answer [`KILLED`] from now on.
    pub fn kill_actor(&mut self, actor: Actor) {
        self.killed.insert(actor);
    }
}

//! A model kernel: the memory and freezer controllers over an in-memory host.
//!
//! Everything is deterministic: no file, no clock, no thread. Time is handed in with
//! [`Host::advance`]; chance comes from a seed. [`Host::dir`] gives a group as
//! [`cgroupfs::files::ControlDir`], so that the typed readers run over it, parsers included.
//!
//! Coarse, but honest: pages are counted, not kept; the LRU is a few classes; what a rule of the
//! kernel's decides (which errno, what stays unchanged, who is killed, who blocks) is kept, and each
//! rule is a claim of the conformance suite (`cgroupfs/conformance`), which runs over real kernels, too.
//! Where model and kernel disagree, the model is wrong. [`Mutation`] breaks one rule on purpose.

mod charge;
mod config;
mod counter;
mod events;
mod faults;
mod files;
mod freezer;
mod group;
mod host;
mod lru;
mod mutation;
mod oom;
mod parse;
mod reclaim;
mod stat;
mod task;
mod tree;
mod v1;
mod v2;

pub use charge::{Denied, Via};
pub use config::Config;
pub use events::EventFd;
pub use faults::{Actor, KILLED, PassVerdict, Verdict, Write};
pub use files::ModelDir;
pub use group::{GroupId, Hierarchy};
pub use host::{Host, State};
pub use mutation::Mutation;
pub use task::{Kind, Load, TaskId, TaskState, TaskView};

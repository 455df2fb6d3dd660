//! The conformance suite: what cgshim relies on of the kernel, as named claims.
//!
//! A [`Claim`] is one fact, written once against the traits of [`cgroupfs`] and the small load driver of
//! [`World`]. It runs over the model kernel ([`model::ModelWorld`]), over the host's own cgroups and over
//! those of every virtual machine of `ci/vm` ([`kernel::KernelWorld`]). Where model and kernel disagree,
//! the model is wrong.
//!
//! A claim has one of four [`Outcome`]s on a kernel: it holds; it does not apply, for want of a
//! [`Feature`] that is probed, never taken from a version; it differs in a way that is known and that the
//! claim itself found; or it fails. The outcomes of every kernel are in `TABLE.md`, and a run that comes
//! to another outcome than the table has is a failure, too ([`table::Table::drift`]).
//!
//! That the suite can fail is tested: the model kernel can break each of its rules in turn
//! ([`cgroupfs_model::Mutation`]), and `tests/mutations.rs` names the claims that notice.

pub mod claims;
mod feature;
pub mod kernel;
pub mod model;
mod outcome;
pub mod table;
mod world;

pub use feature::{Feature, Features};
pub use outcome::{Outcome, Stop, run};
pub use world::{Crossing, Filled, Group, Kind, Overlap, Task, Watch, Watched, World};

/// One fact about the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The fact, as a sentence.
    pub name: &'static str,
    /// The control file, or the part of the kernel, that it is about.
    pub about: &'static str,
    /// What a kernel must have for it to apply.
    pub needs: &'static [Feature],
    /// Tries it, in a fresh world.
    pub run: fn(&mut dyn World) -> Result<(), Stop>,
}

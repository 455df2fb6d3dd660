//! What a claim comes to on a kernel.

use crate::{Claim, Features, World};
use nix::errno::Errno;

/// What a claim came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is so.
    Holds,
    /// This kernel lacks what it is about: which [`crate::Feature`].
    Lacks(&'static str),
    /// It is otherwise here, in a way that is known: how.
    Differs(&'static str),
    /// It is not so: what was seen.
    Fails(String),
}

impl Outcome {
    /// As the table and the console have it: one word, or a word and what there is to say.
    pub fn text(&self) -> String {
        match self {
            Outcome::Holds => "holds".into(),
            Outcome::Lacks(feature) => format!("no {feature}"),
            Outcome::Differs(how) => format!("differs: {how}"),
            Outcome::Fails(what) => format!("FAILS: {what}"),
        }
    }
}

/// Why a claim ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It is otherwise here, as is known of some kernels.
    Differs(&'static str),
    /// It does not hold, or could not be tried.
    Fails(String),
}

impl From<cgroupfs::Error> for Stop {
    fn from(error: cgroupfs::Error) -> Stop {
        Stop::Fails(error.to_string())
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Fails(format!("{errno:?}"))
    }
}

/// Runs a claim in a fresh world.
pub fn run(claim: &Claim, features: &Features, world: &mut dyn World) -> Outcome {
    if let Some(missing) = claim.needs.iter().find(|feature| !features.has(**feature)) {
        return Outcome::Lacks(missing.name());
    }
    match (claim.run)(world) {
        Ok(()) => Outcome::Holds,
        Err(Stop::Differs(how)) => Outcome::Differs(how),
        Err(Stop::Fails(what)) => Outcome::Fails(what),
    }
}

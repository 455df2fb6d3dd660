//! What cgshim does in the life of an OCI container, before a daemon is asked: the hook that registers a
//! container ([`hook`]), and the edit of its bundle that brings the hook in ([`inject`]).
//!
//! What runtimes write is read leniently, section by section: runc, crun and what calls them disagree
//! about details (status names, extra members), and a section that cgshim does not understand must not
//! cost the others. Source: the OCI runtime specification, `runtime.md` (State) and `config.md`.

pub mod annotations;
pub mod client;
pub mod hook;
pub mod inject;
pub mod json;
pub mod runtime;
pub mod spec;
pub mod spool;
pub mod state;

pub use annotations::Annotations;
pub use spec::Spec;
pub use state::State;

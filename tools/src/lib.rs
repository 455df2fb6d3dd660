//! What the command-line tools share: `cgctl`'s commands, the workload generator behind `memload` and
//! the demo, and the reports that `cgctl` draws.

pub mod cgctl;
pub mod memload;
pub mod report;
mod sys;

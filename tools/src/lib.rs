//! What the command-line tools share: the workload generator behind `memload` and the demo, and the
//! reports that `cgctl` draws.

pub mod report;

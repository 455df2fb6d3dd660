//! The decisions, and nothing else.
//!
//! Everything here is deterministic: plain data in, plain data out. No file is opened, no clock is
//! read, no thread started, nothing logged. A container's life is a stream of [`Event`]s into its
//! [`Container`], and a list of [`Action`]s out; time is handed in as [`Now`]. The driver performs the
//! actions on a real kernel; tests perform them on a model of one.

mod backoff;
mod container;
mod event;
pub mod floor;
pub mod oom;
pub mod pace;
pub mod pattern;
pub mod plan;
pub mod qos;
mod retention;
mod state;
pub mod sweep;
pub mod terms;
pub mod throttle;
pub mod watermark;

pub use backoff::Backoff;
pub use container::{Container, FOREIGN_PAUSE, JOB_DEADLINE, Totals};
pub use event::{Action, Capabilities, Event, Job, Notice, Now, Outcome, Report, Strategy, Survey};
pub use floor::{Floor, GROWTH_MARGIN};
pub use pace::Pace;
pub use plan::{Plan, StandAside, plan};
pub use retention::Retained;
pub use state::State;
pub use terms::{Class, High, OomPolicy, Rights, Terms, Wishes};
pub use watermark::{BadWatermark, WatermarkSpec, Watermarks};

#[cfg(test)]
pub(crate) mod testing {
    //! Surveys for tests.

    use super::{Capabilities, Survey};
    use cgroupfs::memory::{MemoryStat, SwapRules};
    use cgroupfs::{Bytes, Limit};

    pub(crate) const V1: Capabilities = Capabilities {
        threshold_event: true,
        threshold_slack: Bytes::mib(1),
        limit_step: true,
        force_empty: true,
        memory_reclaim: false,
        high_step: false,
    };

    pub(crate) const V2: Capabilities = Capabilities {
        threshold_event: false,
        threshold_slack: Bytes(0),
        limit_step: false,
        force_empty: false,
        memory_reclaim: true,
        high_step: true,
    };

    /// A group under 256 MiB with so many MiB in use, in anonymous pages and in clean cache; plenty of
    /// swap.
    pub(crate) fn survey(usage: u64, anon: u64, file: u64) -> Survey {
        Survey {
            usage: Bytes::mib(usage),
            limit: Limit::Bytes(Bytes::mib(256)),
            stat: MemoryStat {
                active_anon: Some(Bytes::mib(anon)),
                inactive_anon: Some(Bytes(0)),
                active_file: Some(Bytes(0)),
                inactive_file: Some(Bytes::mib(file)),
                ..MemoryStat::default()
            },
            swap: SwapRules { swaps_at_limit: true, reclaim_may_swap: true, room: Limit::Max },
            host_swap_free: Bytes::mib(1 << 20),
            direct_reclaim: 0,
        }
    }
}

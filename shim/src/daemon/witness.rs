//! The daemon's OOM watch, and what it can know on this host.

use crate::api::message::Feature;
use crate::driver::Engine;
use crate::driver::oom::{OomOptions, OomWatch};
use cgroupfs::MemoryHierarchy;
use cgroupfs::memory::Version;
use std::path::Path;

/// How nothing is left behind.
const EMPTIED: &str = "page cache of ended containers is emptied before their group is removed, and what is left \
     is swept through the group above";

/// v2 before `memory.reclaim`.
const EMPTIED_ALONE: &str = "page cache of ended containers is emptied before their group is removed, by memory.high; \
     what is left is not swept: memory.reclaim came with 5.19";

/// Starts the watch; what it has and lacks, for `cgctl caps`. Without it kills are counted, no more.
pub(super) fn start(
    engine: &mut Engine,
    run_dir: &Path,
    hierarchy: &MemoryHierarchy,
) -> Vec<Feature> {
    let reclaim = hierarchy.mount_point.join("memory.reclaim");
    let swept = hierarchy.version == Version::V1 || reclaim.exists();
    let options = OomOptions {
        run_dir: Some(run_dir.to_path_buf()),
        empty_at_exit: true,
        ..OomOptions::default()
    };
    let started = OomWatch::start(options);
    let attached = started.and_then(|watch| {
        let sources = watch.sources().clone();
        engine.attach_oom_watch(watch)?;
        Ok(sources)
    });
    match attached {
        Err(error) => vec![feature("oom_records", "absent", format!("{error}"))],
        Ok(sources) => vec![
            match sources.store {
                Ok(()) => feature("oom_records", "native", "kept in the run directory".into()),
                Err(why) => feature("oom_records", "absent", why),
            },
            match sources.log {
                Ok(()) => feature("oom_victims", "native", "from the kernel log".into()),
                Err(why) if sources.tracepoint => feature(
                    "oom_victims",
                    "emulated",
                    format!(
                        "from the oom:mark_victim tracepoint, as the kernel log cannot be read: {why}"
                    ),
                ),
                Err(why) => feature(
                    "oom_victims",
                    "absent",
                    format!("{why}; it takes CAP_SYSLOG and /dev/kmsg, or tracefs"),
                ),
            },
            feature(
                "empty_at_exit",
                "emulated",
                if swept { EMPTIED } else { EMPTIED_ALONE }.into(),
            ),
            match sources.real_time {
                Ok(()) => feature("oom_watch_real_time", "native", "SCHED_FIFO 1".into()),
                Err(why) => feature(
                    "oom_watch_real_time",
                    "absent",
                    format!(
                        "a kill whose group is removed at once may be missed on a busy host: {why}"
                    ),
                ),
            },
        ],
    }
}

fn feature(name: &str, support: &str, why: String) -> Feature {
    if support == "absent" {
        log::warn!("{name}: {why}");
    }
    Feature { name: name.into(), support: support.into(), why }
}

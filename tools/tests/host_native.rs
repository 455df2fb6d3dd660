//! `cgctl run --high` on cgroup v2: throttled by the kernel, with a way out of ours.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

#[path = "common/cgctl.rs"]
mod cgctl;
mod common;

use cgctl::{Ran, memload, run};
use common::{Ground, MIB, alone, skip};

/// `None`, having said so, where the kernel has no `memory.high`.
fn ground(test: &str) -> Option<Ground> {
    let ground = Ground::new(test)?;
    if ground.v1() {
        skip(test, "cgroup v1: host_high tests what is emulated here");
        return None;
    }
    Some(ground)
}

const HIGH: u64 = 64;

/// Wants 1.18 × high + 80 MiB, which the kernel's curve gives it in ten minutes.
const DEMAND: u64 = HIGH * 118 / 100 + 80;

fn wide_gap(ground: &Ground, way_out: &str, end: &str) -> Ran {
    let load = memload();
    let size = format!("{DEMAND}M");
    let mut words = vec![&*load, "anon", "--size", &size, "--total", &size];
    words.extend(end.split_whitespace());
    let options =
        format!("--limit 512M --high {HIGH}M --swap 0 --watermark off --way-out {way_out} --json");
    run(ground, &options, &words)
}

fn told(ran: &Ran) -> usize {
    ran.stderr.matches("without progress").count()
}

#[test]
fn a_wide_gap_is_released_once_and_the_command_finishes() {
    let test = "a_wide_gap_is_released_once_and_the_command_finishes";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    let ran = wide_gap(&ground, "release=4s", "");
    let report = ran.report();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(report["throttle"]["released"], 1, "{report}");
    assert_eq!(told(&ran), 1, "{ran:?}");
    assert!(ran.stderr.contains("cannot be reclaimed: throttling is lifted"), "{ran:?}");
    assert!(report["peak_bytes"].as_u64().unwrap() >= DEMAND * MIB, "{report}");
    // The budget, what it takes to get above high, and the steps of the release.
    assert!((4_000..40_000).contains(&report["wall_ms"].as_u64().unwrap()), "{report}");
    assert_eq!(
        (&report["oom"]["kills"], &report["declared_limit_restored"]),
        (&0.into(), &true.into())
    );
}

#[test]
fn without_a_way_out_the_same_command_is_throttled_for_as_long_as_it_lasts() {
    let test = "without_a_way_out_the_same_command_is_throttled_for_as_long_as_it_lasts";
    let Some(ground) = ground(test) else { return };
    let _alone = alone();
    // CGSHIM_TEST_SECONDS=600: for ten minutes.
    let seconds = std::env::var("CGSHIM_TEST_SECONDS").unwrap_or_else(|_| "12".into());
    for (way_out, seconds) in [("never", &*seconds), ("notify=3s", "12")] {
        let ran = wide_gap(&ground, way_out, &format!("--duration {seconds}"));
        let report = ran.report();
        println!("{way_out}: {report}");
        assert_eq!(report["throttle"]["released"], 0, "{report}");
        assert_eq!(told(&ran), usize::from(way_out != "never"), "{ran:?}");
        // The kernel's curve: f = 17.7 % in half a minute, and 128 KiB/s from there on.
        let most = HIGH * 12 / 10 + 8 + seconds.parse::<u64>().unwrap() / 8;
        assert!(report["peak_bytes"].as_u64().unwrap() < most.min(DEMAND) * MIB, "{report}");
    }
}

#[test]
fn oom_kills_what_uses_most() {
    let Some(ground) = ground("oom_kills_what_uses_most") else { return };
    let _alone = alone();
    let ran = wide_gap(&ground, "oom=3s", "");
    assert_eq!(ran.code(), Some(128 + 9), "{ran:?}");
    assert!(ran.stderr.contains("its largest process is killed"), "{ran:?}");
}

//! How long a freeze that does not hold yet is waited for.
//!
//! A task that waits for a disk is not frozen before the disk answers, and whoever is may be needed for that: they are all
//! let run again. One that only has no CPU is frozen as soon as it gets one: let run, all of them would fill memory as
//! fast as they can meanwhile. (Measured on 6.18 beside two busy loops, four that fill huge pages on two CPUs: 20 to 60
//! MiB in a pause of 50 ms; four writers, thawed for that again and again, came to 162 MiB above a high of 96.)

use std::time::Duration;

/// A pulse that has not reached FROZEN by then is thawed. (Measured on 6.18: 0.34 ms in the median, 62 ms once.)
const NOT_FROZEN: Duration = Duration::from_millis(200);

/// And one in which somebody waits for a CPU by then.
const WITHOUT_CPU: Duration = Duration::from_secs(1);

/// Whether to wait on, so long after it was ordered; `runs`: one of them is running, or would if it had a CPU.
pub fn may_hold_yet(since: Duration, runs: impl FnOnce() -> bool) -> bool {
    since < NOT_FROZEN || since < WITHOUT_CPU && runs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_disk_is_let_run_and_who_waits_for_a_cpu_is_waited_for() {
        let ms = Duration::from_millis;
        assert!(may_hold_yet(ms(199), || panic!("asked")));
        assert!(!may_hold_yet(ms(200), || false) && may_hold_yet(ms(200), || true));
        assert!(may_hold_yet(ms(999), || true) && !may_hold_yet(ms(1000), || true));
    }
}

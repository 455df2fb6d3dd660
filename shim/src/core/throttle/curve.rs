//! The kernel's penalty curve for growth above `memory.high`, and what follows from it.
//!
//! Source: `calculate_high_delay()` and `__mem_cgroup_handle_over_high()` in mm/memcontrol.c. With
//! `f = (usage − high) / high`, a task that charged so many pages above high sleeps `64·f²` s for each
//! `MEMCG_CHARGE_BATCH` of them when it returns to user mode: nothing if that comes to 10 ms or less,
//! 2 s at most.
//!
//! | overage f | sleep a batch (256 KiB) | a task may grow by |
//! |---|---|---|
//! | 1 % | none | all it wants |
//! | 1.5 % | 14 ms | 17.4 MiB/s |
//! | 2 % | 26 ms | 9.8 MiB/s |
//! | 3 % | 58 ms | 4.3 MiB/s |
//! | 5 % | 160 ms | 1.6 MiB/s |
//! | 10 % | 640 ms | 400 KiB/s |
//! | 17.7 % and more | 2 s | 128 KiB/s |

use cgroupfs::Bytes;
use cgroupfs::units::page_size;
use std::time::Duration;

/// `MEMCG_DELAY_SCALING_SHIFT` and `MEMCG_DELAY_PRECISION_SHIFT` come to this many seconds a batch at
/// f = 1.
const SECONDS: f64 = 64.0;

/// The longest sleep on one return to user mode (`MEMCG_MAX_HIGH_DELAY_JIFFIES`).
pub const LONGEST: Duration = Duration::from_secs(2);

/// Shorter sleeps are not slept at all (`HZ / 100`).
pub const IGNORED: Duration = Duration::from_millis(10);

/// Pages of a transparent huge page: charged, and so slept for, in one go.
pub const HUGE: u64 = 512;

/// The curve of one kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Curve {
    batch: u64,
    jiffy: Duration,
}

impl Curve {
    /// A curve with this `MEMCG_CHARGE_BATCH` (pages) and this length of a jiffy (1/`HZ` s).
    pub const fn new(batch: u64, jiffy: Duration) -> Curve {
        Curve { batch: if batch == 0 { 1 } else { batch }, jiffy }
    }

    /// `MEMCG_CHARGE_BATCH` by the kernel's release: 32 pages in 5.x and 6.0, else 64 (from 6.1, and what
    /// is taken where the kernel never slept at all). No file tells.
    pub fn batch_of(release: &str) -> u64 {
        let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(5)), _) | (Some(Ok(6)), Some(Ok(0))) => 32,
            _ => 64,
        }
    }

    /// Pages that are charged at once where pages are small.
    pub const fn batch(&self) -> u64 {
        self.batch
    }

    /// The share by which `usage` is above `high`; 0 at or below. A high of 0 counts as one byte, as in
    /// the kernel.
    pub fn overage(usage: Bytes, high: Bytes) -> f64 {
        usage.saturating_sub(high).0 as f64 / high.0.max(1) as f64
    }

    /// What a task sleeps for one charge of `unit` pages at overage `f`.
    ///
    /// The kernel counts in jiffies, rounded down for a batch before it multiplies; a sleep of n jiffies
    /// then takes n to n + 1 of them, so that half of one is added here.
    pub fn sleep(&self, f: f64, unit: u64) -> Duration {
        let jiffy = self.jiffy.as_secs_f64().max(1e-9);
        let batch = (SECONDS * f * f / jiffy).min(1e12) as u64;
        let jiffies = (u128::from(batch) * u128::from(unit) / u128::from(self.batch)) as f64;
        if jiffies <= self.ignored_jiffies() as f64 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(((jiffies + 0.5) * jiffy).min(LONGEST.as_secs_f64()))
    }

    /// `HZ / 100`, in whole jiffies.
    fn ignored_jiffies(&self) -> u64 {
        (IGNORED.as_secs_f64() / self.jiffy.as_secs_f64().max(1e-9) + 1e-6) as u64
    }

    /// What a task owes for growth by `pages` in charges of `unit` pages each: in proportion, where the
    /// last charge is not complete.
    pub fn penalty(&self, f: f64, pages: u64, unit: u64) -> Duration {
        self.sleep(f, unit).mul_f64(pages as f64 / unit.max(1) as f64)
    }

    /// The overage up to which charges of `unit` pages cost nothing.
    pub fn free_until(&self, unit: u64) -> f64 {
        let charges = ((self.ignored_jiffies() + 1) * self.batch).div_ceil(unit.max(1));
        (charges as f64 * self.jiffy.as_secs_f64() / SECONDS).sqrt()
    }

    /// The overage of a group without anything to reclaim after `time`, in which `growers` tasks that
    /// charge `unit` pages at once each wanted to grow by `pace` bytes a second (`None`: as fast as they
    /// can, taken as 2 GiB/s), from an overage of 0: every task charges, sleeps, charges again. What
    /// emulation is measured against.
    pub fn overage_after(
        &self,
        high: Bytes,
        growers: u32,
        pace: Option<u64>,
        unit: u64,
        time: Duration,
    ) -> f64 {
        let charge = unit * page_size();
        let filling =
            Duration::from_secs_f64(charge as f64 / pace.unwrap_or(2 << 30).max(1) as f64);
        let mut usage = high;
        // Until when each task sleeps or fills.
        let mut awake = vec![filling; growers.max(1) as usize];
        while let Some(next) = awake.iter_mut().min() {
            if *next > time {
                break;
            }
            usage = usage.saturating_add(Bytes(charge));
            // A paced task that overslept makes up for it: it sleeps in its own pauses first.
            *next += self.sleep(Curve::overage(usage, high), unit).max(filling);
        }
        Curve::overage(usage, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CURVE: Curve = Curve::new(64, Duration::from_millis(4));

    /// The kernel's own arithmetic (6.1), in jiffies.
    fn kernel(usage: u64, high: u64, pages: u64, batch: u64, hz: u64) -> u64 {
        if usage <= high {
            return 0;
        }
        let overage = u128::from(usage - high) << 20;
        let overage = overage / u128::from(high.max(1));
        let penalty = (overage * overage * u128::from(hz)) >> 20 >> 14;
        let jiffies = (penalty * u128::from(pages) / u128::from(batch)).min(u128::from(2 * hz));
        if jiffies <= u128::from(hz / 100) { 0 } else { jiffies as u64 }
    }

    #[test]
    fn the_table_in_the_documentation_is_right() {
        for (f, ms) in [(0.01, 0), (0.015, 14), (0.02, 26), (0.03, 58), (0.05, 160), (0.1, 640)] {
            // With jiffies of 4 ms.
            let sleep = CURVE.sleep(f, 64).as_secs_f64() * 1e3;
            assert!((sleep - f64::from(ms)).abs() <= 2.0, "{f}: {sleep}");
        }
        assert_eq!(CURVE.sleep(0.177, 64), LONGEST);
    }

    #[test]
    fn at_or_below_high_nothing_is_owed() {
        assert_eq!(Curve::overage(Bytes(100), Bytes(100)), 0.0);
        assert_eq!(Curve::overage(Bytes(99), Bytes(100)), 0.0);
        assert_eq!(CURVE.penalty(0.0, 1000, 64), Duration::ZERO);
    }

    #[test]
    fn a_huge_page_is_slept_for_as_512_pages() {
        assert_eq!(CURVE.sleep(0.01, 64), Duration::ZERO);
        let huge = CURVE.sleep(0.01, HUGE);
        // 6.4 ms a batch are one jiffy, times eight.
        assert_eq!(huge, Duration::from_millis(34));
        assert_eq!(CURVE.sleep(0.064, HUGE), LONGEST);
        // The same growth costs less once the cap is reached: 2 s for 2 MiB.
        assert!(CURVE.penalty(0.1, HUGE, HUGE) < CURVE.penalty(0.1, HUGE, 64));
    }

    #[test]
    fn growth_without_reclaim_follows_the_cube_root() {
        // f(t) = (3·n·256 KiB·t / (64 s·high))^(1/3), until that comes to 17.7 %. Measured on native v2
        // 6.1 with high = 100 MiB: one grower 109/112/114 MiB after 10/21/31 s, four 117/122/127 after
        // 10/20/30.
        let high = Bytes::mib(100);
        for (growers, seconds, native) in [
            (1, 10, 109.0),
            (1, 21, 112.0),
            (1, 31, 114.0),
            (4, 10, 117.0),
            (4, 20, 122.0),
            (4, 30, 127.0),
        ] {
            let ours = CURVE.overage_after(high, growers, None, 64, Duration::from_secs(seconds));
            let cube: f64 =
                3.0 * f64::from(growers) * 262_144.0 * seconds as f64 / (64.0 * high.0 as f64);
            if cube.cbrt() < 0.16 {
                assert!(
                    (ours - cube.cbrt()).abs() < 0.006,
                    "{growers} {seconds}: {ours} {}",
                    cube.cbrt()
                );
            }
            assert!((100.0 + ours * 100.0 - native).abs() < 1.7, "{growers} {seconds}: {ours}");
        }
    }

    #[test]
    fn the_batch_is_that_of_the_kernel_in_use() {
        for (release, batch) in [
            ("6.18.44-x", 64),
            ("6.1.0-49-cloud-amd64", 64),
            ("6.0.9", 32),
            ("5.10.0", 32),
            ("4.18.0-553.el8_10.x86_64", 64),
            ("nonsense", 64),
        ] {
            assert_eq!(Curve::batch_of(release), batch, "{release}");
        }
    }

    proptest! {
        #[test]
        fn whole_batches_cost_what_the_kernel_charges(
            high in 1u64 << 20..1 << 36, over in 0.0f64..0.3, hz in prop::sample::select(&[100u64, 250, 300, 1000]),
            batch in prop::sample::select(&[32u64, 64]), huge: bool,
        ) {
            let usage = high + (high as f64 * over) as u64;
            let unit = if huge { HUGE } else { batch };
            let jiffy = Duration::from_nanos(1_000_000_000 / hz);
            let native = kernel(usage, high, unit, batch, hz);
            let ours = Curve::new(batch, jiffy)
                .sleep(Curve::overage(Bytes(usage), Bytes(high)), unit);
            let jiffies = (ours.as_secs_f64() * hz as f64).floor() as u64;
            // The kernel's overage is rounded down to 20 binary places: one jiffy a batch at an edge.
            prop_assert!(
                jiffies.abs_diff(native) <= unit / batch || jiffies.max(native) <= hz / 100 + unit / batch,
                "{} jiffies, native {}", jiffies, native
            );
        }

        #[test]
        fn more_overage_or_growth_never_costs_less(f in 0.0f64..2.0, g in 0.0f64..2.0, pages in 0u64..100_000) {
            let (low, high) = if f < g { (f, g) } else { (g, f) };
            prop_assert!(CURVE.penalty(low, pages, 64) <= CURVE.penalty(high, pages, 64));
            prop_assert!(CURVE.penalty(low, pages, 64) <= CURVE.penalty(low, pages + 1, 64));
            prop_assert!(CURVE.sleep(high, HUGE) <= LONGEST);
        }

        #[test]
        fn nothing_is_owed_up_to_where_it_is_free(over in 0.0f64..0.999, huge: bool) {
            let unit = if huge { HUGE } else { 64 };
            let free = CURVE.free_until(unit);
            prop_assert_eq!(CURVE.sleep(free * over, unit), Duration::ZERO);
            prop_assert!(CURVE.sleep(free * 1.001, unit) > Duration::ZERO);
        }
    }
}

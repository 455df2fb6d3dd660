//! The throttle over simulated growers, in virtual time.

use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const CURVE: Curve = Curve::new(64, Duration::from_millis(4));
const ENDLESS: WayOut = WayOut { budget: None, then: Then::Release };

fn throttle(high: Bytes) -> Throttle {
    Throttle::new(CURVE, high, ENDLESS)
}

fn level(usage: Bytes, high: Bytes) -> [Level; 1] {
    [Level { usage, high }]
}

fn batch(task: u32) -> Grown {
    Grown { task, pages: 64, unit: 64 }
}

/// Growers in a group: in each window what is granted, and `leak` bytes more because a freeze takes a while.
/// Overage after each second.
fn simulate(high: Bytes, growers: u32, leak: u64, seconds: u64) -> Vec<f64> {
    let mut throttle = throttle(high);
    let mut usage = Bytes((high.0 as f64 * (1.0 + CURVE.free_until(64))) as u64);
    let (mut now, mut seen) = (Duration::ZERO, Vec::new());
    while now < Duration::from_secs(seconds) {
        let pages = (throttle.after(Duration::ZERO).0.0 + leak) / 4096 / u64::from(growers);
        throttle.leaked(Bytes(leak));
        let grown: Vec<Grown> = (0..growers).map(|task| Grown { task, pages, unit: 64 }).collect();
        usage.0 += grown.iter().map(|grown| grown.pages * 4096).sum::<u64>();
        now += Duration::from_micros(200);
        let pulse = throttle.window(now, &level(usage, high), Bytes(0), &grown);
        now += pulse;
        if pulse > Duration::ZERO {
            assert!(pulse > IGNORED && pulse <= LONGEST);
            throttle.pulsed(now, pulse, &level(usage, high));
        }
        while (seen.len() as u64) < now.as_secs() {
            seen.push(usage.0 as f64 / high.0 as f64 - 1.0);
        }
    }
    seen
}

#[test]
fn growers_follow_the_curve_whatever_their_number_and_the_leak_of_a_freeze() {
    for high in [Bytes::mib(64), Bytes::mib(256), Bytes::mib(1024)] {
        for growers in [1, 4] {
            for leak in [0, 256 << 10] {
                let seen = simulate(high, growers, leak, 60);
                for (n, f) in seen.iter().enumerate().skip(4) {
                    let time = Duration::from_secs(n as u64 + 1);
                    let native = CURVE.overage_after(high, growers, None, 64, time);
                    // What leaks is paid for.
                    let bar = (native * 0.05).max(0.01);
                    assert!(
                        (f - native).abs() <= bar,
                        "high {high}, {growers} growers, leak {leak}, {n} s: {f:.4}, native {native:.4}"
                    );
                }
            }
        }
    }
}

#[test]
fn at_or_below_high_nobody_is_frozen() {
    let high = Bytes::mib(100);
    let mut throttle = throttle(high);
    for usage in [Bytes(0), Bytes::mib(99), high] {
        assert_eq!(throttle.window(MS, &level(usage, high), Bytes(0), &[batch(1)]), Duration::ZERO);
    }
}

#[test]
fn the_highest_overage_among_ancestors_counts() {
    let mut throttle = throttle(Bytes::mib(100));
    let own = Level { usage: Bytes::mib(50), high: Bytes::mib(100) };
    let pod = Level { usage: Bytes::mib(220), high: Bytes::mib(200) };
    let pulse = throttle.window(MS, &[own, pod], Bytes(0), &[batch(1)]);
    assert_eq!(pulse, CURVE.sleep(0.1, 64));
}

#[test]
fn a_container_without_a_high_of_its_own_is_throttled_for_its_pods() {
    let (none, high) = (Bytes(u64::MAX), Bytes::mib(100));
    let mut throttle = throttle(none).beneath(ENDLESS);
    let levels = |usage| [Level { usage: Bytes::mib(90), high: none }, Level { usage, high }];
    let at = levels(high);
    assert_eq!(throttle.window(MS, &at, Bytes(0), &[batch(1)]), Duration::ZERO);
    let over = levels(Bytes::mib(110));
    assert_eq!(throttle.window(MS, &over, Bytes(0), &[batch(1)]), CURVE.sleep(0.1, 64));
    assert_eq!(throttle.decisive(), 1);
    // What is reclaimed in the container is in its pod's usage as long as it is there: the caller says so.
    assert_eq!(throttle.overage(MS, &over, Bytes::mib(90)), 0.1);
}

#[test]
fn containers_of_a_pod_grow_together_as_the_tasks_of_one_group_do() {
    // Two of them, each with a throttle of its own, without a high and with one that it does not come to.
    let high = Bytes::mib(256);
    let own = [Bytes(u64::MAX), Bytes::mib(1024)];
    let mut throttles = own.map(|own| throttle(own).beneath(ENDLESS));
    let (mut usage, mut until) = ([Bytes::mib(128); 2], [Duration::ZERO; 2]);
    let pod = |usage: [Bytes; 2]| usage[0].saturating_add(usage[1]);
    for second in 1..=30 {
        while let Some(n) =
            (0..2).filter(|n| until[*n] < Duration::from_secs(second)).min_by_key(|n| until[*n])
        {
            usage[n].0 += 64 * page_size();
            let now = until[n] + Duration::from_micros(200);
            let levels =
                [Level { usage: usage[n], high: own[n] }, Level { usage: pod(usage), high }];
            let pulse = throttles[n].window(now, &levels, Bytes(0), &[batch(n as u32)]);
            if pulse > Duration::ZERO {
                throttles[n].pulsed(now + pulse, pulse, &levels);
            }
            until[n] = now + pulse;
        }
        let native = CURVE.overage_after(high, 2, None, 64, Duration::from_secs(second));
        let ours = Curve::overage(pod(usage), high);
        assert!(
            (ours - native).abs() <= (native * 0.05).max(0.01),
            "{second} s: {ours:.4}, {native:.4}"
        );
    }
}

#[test]
fn a_release_above_one_level_leaves_the_others_in_force() {
    let (own, pod) = (Bytes::mib(100), Bytes::mib(200));
    let short = WayOut { budget: Some(Duration::from_secs(3)), then: Then::Release };
    let mut throttle = throttle(own).beneath(short);
    let below = Level { usage: Bytes::mib(99), high: own };
    let over = [below, Level { usage: Bytes::mib(230), high: pod }];
    let mut released = Vec::new();
    for second in 1..10 {
        let now = Duration::from_secs(second);
        if throttle.window(now, &over, Bytes(0), &[batch(1)]) > Duration::ZERO
            && throttle.pulsed(now, Duration::from_secs(1), &over).is_some()
        {
            released.push((second, throttle.decisive(), throttle.stalled()));
        }
    }
    // Usage under its own high is no progress against the pod's.
    assert_eq!(released, [(3, 1, Duration::from_secs(3))]);
    assert!(throttle.is_released());
    let above = [Level { usage: Bytes::mib(110), high: own }, over[1]];
    let now = Duration::from_secs(10);
    assert!(throttle.window(now, &above, Bytes(0), &[batch(1)]) > Duration::ZERO);
    assert_eq!(throttle.decisive(), 0);
}

#[test]
fn page_cache_above_high_is_not_slept_on() {
    let high = Bytes::mib(100);
    let mut throttle = throttle(high);
    let over = level(Bytes::mib(110), high);
    assert_eq!(throttle.window(MS, &over, Bytes::mib(20), &[batch(1)]), Duration::ZERO);
    assert!(throttle.window(MS, &over, Bytes(0), &[batch(1)]) > Duration::ZERO);
}

#[test]
fn a_short_debt_is_carried_until_it_is_worth_a_pulse() {
    let high = Bytes::mib(100);
    let mut throttle = throttle(high);
    let quarter = Grown { task: 1, pages: 16, unit: 64 };
    let over = level(Bytes::mib(102), high);
    // 26 ms a batch: 6.4, 12.8 ms.
    assert_eq!(throttle.window(MS, &over, Bytes(0), &[quarter]), Duration::ZERO);
    let pulse = throttle.window(2 * MS, &over, Bytes(0), &[quarter]);
    assert!(pulse >= 12 * MS && pulse <= 14 * MS, "{pulse:?}");
}

#[test]
fn a_debt_beyond_two_seconds_is_paid_in_several_pulses() {
    let high = Bytes::mib(100);
    let mut throttle = throttle(high);
    let burst = Grown { task: 1, pages: 64 * 3, unit: 64 };
    let over = level(Bytes::mib(130), high);
    for rest in [4, 2, 0] {
        let grown: &[Grown] = if rest == 4 { &[burst] } else { &[] };
        assert_eq!(throttle.window(MS, &over, Bytes(0), grown), LONGEST);
        throttle.pulsed(MS, LONGEST, &over);
    }
    assert_eq!(throttle.window(MS, &over, Bytes(0), &[]), Duration::ZERO);
}

#[test]
fn usage_back_at_high_ends_all_debt() {
    let high = Bytes::mib(100);
    let mut throttle = throttle(high);
    throttle.window(MS, &level(Bytes::mib(130), high), Bytes(0), &[batch(1), batch(1), batch(1)]);
    assert_eq!(throttle.window(MS, &level(high, high), Bytes(0), &[]), Duration::ZERO);
    assert_eq!(throttle.window(MS, &level(Bytes::mib(103), high), Bytes(0), &[]), Duration::ZERO);
}

#[test]
fn a_wide_gap_is_released_within_the_budget_and_once() {
    let high = Bytes::mib(100);
    let mut throttle = Throttle::new(CURVE, high, WayOut::default());
    let (mut usage, mut now, mut released) = (Bytes::mib(102), Duration::ZERO, Vec::new());
    // Demand of 400 MiB: natively this goes on for 20 minutes.
    while usage < Bytes::mib(400) {
        usage.0 += 64 * 4096;
        now += Duration::from_micros(200);
        let pulse = throttle.window(now, &level(usage, high), Bytes(0), &[batch(1)]);
        now += pulse;
        if pulse > Duration::ZERO && throttle.pulsed(now, pulse, &level(usage, high)).is_some() {
            released.push(now);
        }
        assert!(now < Duration::from_secs(120), "still throttled");
    }
    assert_eq!(released.len(), 1);
    assert!(released[0] < BUDGET + LONGEST + Duration::from_secs(1), "{released:?}");
    assert_eq!(throttle.totals().released, 1);
}

#[test]
fn the_quota_of_a_window_is_one_charge_for_each_who_grows() {
    let high = Bytes::mib(100);
    let mut throttle = throttle(high);
    let over = level(Bytes::mib(105), high);
    let pulse = throttle.window(MS, &over, Bytes(0), &[batch(1), batch(2), batch(3)]);
    throttle.pulsed(MS, pulse, &over);
    assert_eq!(throttle.after(Duration::ZERO).0, Bytes(3 * 64 * page_size()));
    // A freeze takes a while: what leaks meanwhile is granted too.
    (0..100).for_each(|_| throttle.leaked(Bytes(128 * page_size())));
    assert!(throttle.after(Duration::ZERO).0 < Bytes((64 + 4) * page_size()));
    let pulse = throttle.window(MS, &over, Bytes(0), &[Grown { task: 1, pages: 512, unit: HUGE }]);
    throttle.pulsed(MS, pulse, &over);
    assert_eq!(throttle.growers().1, HUGE);
    // As long as debt is left over there is no grant at all.
    let far = level(Bytes::mib(130), high);
    throttle.window(MS, &far, Bytes(0), &[Grown { task: 1, pages: 64 * 4, unit: 64 }]);
    throttle.pulsed(MS, LONGEST, &far);
    assert_eq!(throttle.after(Duration::ZERO).0, Bytes(0));
}

proptest! {
    #[test]
    fn no_pulse_is_longer_than_two_seconds_and_no_high_makes_it_panic(
        high in prop::sample::select(vec![0u64, 1, 4096, 64 << 20, 1 << 40, u64::MAX]),
        usages in prop::collection::vec(any::<u64>(), 1..50), pages: u64, unit in prop::sample::select(&[32u64, 64, 512]),
        reclaimable: u64,
    ) {
        let mut throttle = Throttle::new(CURVE, Bytes(high), WayOut::default());
        for (n, usage) in usages.iter().enumerate() {
            let now = Duration::from_millis(n as u64);
            let grown = [Grown { task: 1, pages, unit }];
            let pulse = throttle.window(now, &level(Bytes(*usage), Bytes(high)), Bytes(reclaimable), &grown);
            prop_assert!(pulse <= LONGEST);
            if pulse > Duration::ZERO {
                throttle.pulsed(now, pulse, &level(Bytes(*usage), Bytes(high)));
            }
        }
    }
}

#[test]
fn page_cache_is_not_slept_on_as_far_as_reclaim_may_be_behind() {
    let mib = Bytes::mib;
    assert_eq!(not_slept_on(mib(5), mib(64)), mib(5));
    assert_eq!(not_slept_on(mib(500), mib(64)), mib(8));
    assert_eq!(not_slept_on(mib(500), mib(2000)), mib(20));
}

#[test]
fn what_was_charged_before_anybody_looked_costs_each_two_seconds_at_most() {
    let at_once = |f, growers, unit| Throttle::at_once(CURVE, f, growers, unit);
    for (f, growers, unit) in
        [(0.04, 1, 64), (0.05, 2, 64), (0.1, 4, 64), (0.05, 1, HUGE), (0.22, 3, 64)]
    {
        let pages = at_once(f, growers, unit).0 / page_size();
        let owed = CURVE.penalty(f, pages / growers, unit);
        assert!(owed <= LONGEST && owed >= LONGEST / 2, "{f} {growers} {unit}: {owed:?}");
    }
    // A few hundred charges that cost little, and one that costs nothing.
    for f in [0.015, 0.0] {
        assert_eq!(at_once(f, 4, 64), Bytes::mib(8));
    }
    assert!(at_once(1.0, u64::MAX, u64::MAX) <= Bytes::mib(8));
}

//! One container's life, as claims about the core: when it is looked at, when a job starts and ends, whose limit stands.

mod handed;

use cgroupfs::{Bytes, Limit};
use cgshim::core::{Action, Event, FOREIGN_PAUSE, Job, Notice, Outcome, Strategy};
use handed::{
    LIMIT, V1, V2, container, done, job, ms, report, send, start, survey, surveyed, timer, told,
};
use proptest::prelude::{any, prop_assert, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy as _};
use std::time::Duration;

#[test]
fn reclaim_starts_above_the_high_mark_and_stops_at_the_low_one() {
    let mut container = container(V1);
    let actions = send(&mut container, ms(0), Event::Usage(Bytes::mib(220)));
    let high = container.watermarks().unwrap().high;
    assert!(actions.contains(&Action::Arm(Some(high))), "{actions:?}");
    let job = start(&mut container, ms(10), 235);
    assert_eq!(job.strategy, Strategy::LimitStep);
    assert_eq!(job.target, container.watermarks().unwrap().low);
    assert_eq!(job.declared, LIMIT);
    let actions = done(&mut container, ms(20), report(job.id, Outcome::Reached, 235, 204));
    assert!(actions.contains(&Action::Arm(Some(high))), "{actions:?}");
    // Between the marks nothing starts.
    let actions = send(&mut container, ms(30), Event::Usage(Bytes::mib(225)));
    assert!(!actions.contains(&Action::Survey));
    assert_eq!(container.totals().rounds, 1);
    assert_eq!(container.totals().freed, Bytes::mib(31));
}

#[test]
fn an_idle_container_has_no_timer_on_v1_and_at_most_one_hertz_on_v2() {
    let mut idle = container(V1);
    send(&mut idle, ms(0), Event::Usage(Bytes::mib(10)));
    let actions = send(&mut idle, ms(50), Event::Usage(Bytes::mib(10)));
    assert!(actions.contains(&Action::Timer(None)), "{actions:?}");
    let mut idle = container(V2);
    let mut now = ms(0);
    for _ in 0..5 {
        let actions = send(&mut idle, now, Event::Usage(Bytes::mib(10)));
        assert_eq!(actions, [Action::Timer(Some(now + Duration::from_secs(1)))]);
        now += Duration::from_secs(1);
    }
}

#[test]
fn after_a_threshold_event_it_is_looked_at_until_usage_rests() {
    let mut container = container(V1);
    let actions = send(&mut container, ms(0), Event::Crossed(Bytes::mib(200)));
    assert_eq!(timer(&actions), ms(50));
    let actions = send(&mut container, ms(50), Event::Usage(Bytes::mib(220)));
    assert!((ms(51)..=ms(100)).contains(&timer(&actions)), "{actions:?}");
    let actions = send(&mut container, ms(100), Event::Usage(Bytes::mib(220)));
    assert!(actions.contains(&Action::Timer(None)), "{actions:?}");
}

#[test]
fn the_faster_usage_grows_towards_the_mark_the_sooner_it_is_looked_at_again() {
    let mut container = container(V1);
    let high = container.watermarks().unwrap().high;
    let at = |room: u64| Event::Usage(high.saturating_sub(Bytes::mib(room)));
    send(&mut container, ms(0), at(110));
    // 1 GiB/s: half the way that is left to the mark takes 5 ms.
    let actions = send(&mut container, ms(100), at(10));
    assert_eq!(timer(&actions).as_millis(), 105);
    // Still for as long as a short rest may last, a pulse that it was frozen in, say.
    let mut now = timer(&actions);
    let mut looks = 0;
    loop {
        let actions = send(&mut container, now, at(10));
        match actions.iter().find_map(|action| match action {
            Action::Timer(at) => Some(*at),
            _ => None,
        }) {
            Some(Some(at)) => now = at,
            Some(None) => break,
            None => panic!("{actions:?}"),
        }
        looks += 1;
    }
    assert!((5..=10).contains(&looks) && now >= ms(150), "{looks} {now:?}");
}

#[test]
fn an_event_that_finds_usage_a_little_under_the_mark_starts_reclaim_all_the_same() {
    let mut container = container(V1);
    let under = container.watermarks().unwrap().high.saturating_sub(Bytes::kib(512));
    assert_eq!(send(&mut container, ms(0), Event::Crossed(under)), [Action::Survey]);
}

#[test]
fn the_timer_of_a_watch_comes_before_its_threshold() {
    // Arming sets a timer of its own where usage is above the threshold already.
    let mut container = container(V1);
    let actions = send(&mut container, ms(0), Event::Usage(Bytes::mib(100)));
    assert!(matches!(actions[..], [Action::Timer(_), Action::Arm(Some(_))]), "{actions:?}");
    let actions = send(&mut container, ms(1), Event::LimitChanged(Limit::Bytes(Bytes::mib(90))));
    assert!(matches!(actions.last(), Some(Action::Arm(Some(_)))), "{actions:?}");
}

#[test]
fn after_an_oom_in_our_window_no_limit_is_stepped_for_a_while() {
    let mut container = container(V1);
    let first = start(&mut container, ms(0), 240);
    send(&mut container, ms(1), Event::OomInWindow);
    let actions = done(&mut container, ms(2), report(first.id, Outcome::Cancelled, 240, 240));
    assert_eq!(actions, [Action::Survey]);
    let next = job(&surveyed(&mut container, ms(2), survey(240))).unwrap();
    assert_ne!(next.strategy, Strategy::LimitStep);
}

#[test]
fn two_futile_rounds_back_off_and_it_is_tried_again() {
    let mut container = container(V1);
    let first = start(&mut container, ms(0), 240);
    let actions = done(&mut container, ms(1), report(first.id, Outcome::Exhausted, 240, 240));
    assert_eq!(actions, [Action::Survey]);
    let second = job(&surveyed(&mut container, ms(1), survey(240))).unwrap();
    let actions = done(&mut container, ms(2), report(second.id, Outcome::Exhausted, 240, 240));
    let until = timer(&actions);
    assert!(until > ms(100));
    assert!(matches!(told(&actions)[..], [Notice::Futile(_)]));
    // Events meanwhile do not start it.
    assert_eq!(send(&mut container, ms(3), Event::Crossed(Bytes::mib(241))), []);
    assert_eq!(send(&mut container, until, Event::Usage(Bytes::mib(241))), [Action::Survey]);
    assert_eq!(container.totals().futile, 2);
}

#[test]
fn a_foreign_limit_is_adopted_told_once_and_not_stepped_for_a_while() {
    let mut container = container(V1);
    let first = start(&mut container, ms(0), 240);
    let theirs = Limit::Bytes(Bytes::mib(250));
    let found = report(first.id, Outcome::Foreign(theirs), 240, 240);
    let actions = done(&mut container, ms(1), found);
    assert_eq!(told(&actions), [Notice::Adopted(LIMIT, theirs)]);
    assert_eq!(container.declared(), theirs);
    assert!(actions.contains(&Action::Survey), "{actions:?}");
    // Cache can be taken without writing a limit, and only so.
    let mut look = survey(240);
    look.limit = theirs;
    look.stat.active_anon = Some(Bytes::mib(40));
    look.stat.inactive_file = Some(Bytes::mib(200));
    let second = job(&surveyed(&mut container, ms(2), look)).unwrap();
    assert_eq!(second.strategy, Strategy::ForceEmpty);
    assert_eq!(second.declared, theirs);
    // Another change at once is adopted without another word; the job need not go on.
    let actions = send(&mut container, ms(3), Event::LimitChanged(LIMIT));
    assert_eq!(actions, [Action::Cancel]);
    assert_eq!(container.declared(), LIMIT);
    done(&mut container, ms(4), report(second.id, Outcome::Cancelled, 240, 200));
    // After the pause it steps again.
    let third = start(&mut container, ms(10) + FOREIGN_PAUSE, 240);
    assert_eq!(third.strategy, Strategy::LimitStep);
}

#[test]
fn vanished_is_terminal() {
    for in_flight in [false, true] {
        let mut container = container(V1);
        if in_flight {
            start(&mut container, ms(0), 240);
        }
        let actions = send(&mut container, ms(1), Event::Vanished);
        assert_eq!(actions.last(), Some(&Action::Forget));
        assert!(!actions.iter().any(|action| matches!(action, Action::Restore(_))));
        for event in [
            Event::Usage(Bytes::mib(250)),
            Event::Crossed(Bytes::mib(250)),
            Event::Release,
            Event::Vanished,
            Event::Done(report(0, Outcome::Reached, 240, 200)),
        ] {
            assert_eq!(send(&mut container, ms(2), event), []);
        }
    }
}

#[test]
fn a_release_cancels_waits_for_the_job_and_then_restores() {
    let mut container = container(V1);
    let job = start(&mut container, ms(0), 240);
    let actions = send(&mut container, ms(1), Event::Release);
    assert!(actions.contains(&Action::Cancel));
    assert!(!actions.contains(&Action::Forget), "the job is still in flight");
    let actions = done(&mut container, ms(2), report(job.id, Outcome::Cancelled, 240, 239));
    assert_eq!(actions, [Action::Restore(LIMIT), Action::Forget]);
}

#[test]
fn a_report_of_another_job_changes_nothing() {
    let mut container = container(V1);
    let job = start(&mut container, ms(0), 240);
    let stale = report(job.id + 7, Outcome::Reached, 240, 10);
    assert_eq!(done(&mut container, ms(1), stale), []);
    assert_eq!(container.totals().rounds, 0);
}

#[test]
fn a_survey_that_fails_does_not_stop_enforcement_for_good() {
    let mut container = container(V1);
    send(&mut container, ms(0), Event::Crossed(Bytes::mib(240)));
    let actions = send(&mut container, ms(0), Event::Failed(nix::errno::Errno::EIO as i32));
    let until = timer(&actions);
    assert_eq!(send(&mut container, until, Event::Usage(Bytes::mib(240))), [Action::Survey]);
}

#[test]
fn v2_reaches_for_a_limit_that_was_hit_between_two_looks() {
    let mut container = container(V2);
    send(&mut container, ms(0), Event::Usage(Bytes::mib(100)));
    assert_eq!(send(&mut container, ms(5), Event::LimitHit(Bytes::mib(256))), [Action::Survey]);
}

proptest! {
    /// Whatever happens in whatever order: one job at a time, no limit stepped under the floor,
    /// nothing after the end.
    #[test]
    fn one_job_at_a_time_within_its_bounds(
        v1: bool,
        events in proptest::collection::vec(
            (0u64..400, prop_oneof![
                (0u64..300).prop_map(|usage| (0, usage, 0)),
                (0u64..300, 0u64..300).prop_map(|(usage, file)| (1, usage, file)),
                (0u64..300, 0u64..6).prop_map(|(usage, outcome)| (2, usage, outcome)),
                (100u64..300).prop_map(|limit| (3, limit, 0)),
                (0u64..300).prop_map(|usage| (4, usage, 0)),
                Just((5, 0, 0)),
                Just((6, 0, 0)),
            ], any::<u8>()),
            1..80,
        ),
    ) {
        let mut container = container(if v1 { V1 } else { V2 });
        let mut flying: Option<Job> = None;
        let mut ended = false;
        let mut now = ms(0);
        for (wait, (kind, a, b), rare) in events {
            now += ms(wait);
            let event = match kind {
                0 => Event::Crossed(Bytes::mib(a)),
                1 => {
                    let mut look = survey(a);
                    look.stat.active_anon = Some(Bytes::mib(a.saturating_sub(b)));
                    look.stat.inactive_file = Some(Bytes::mib(b));
                    look.limit = container.declared();
                    Event::Surveyed(Box::new(look))
                }
                2 => {
                    let Some(job) = flying.take() else { continue };
                    let outcome = [
                        Outcome::Reached,
                        Outcome::Deadline,
                        Outcome::Cancelled,
                        Outcome::Exhausted,
                        Outcome::Foreign(Limit::Bytes(Bytes::mib(100 + a))),
                        Outcome::Failed(5),
                    ][b as usize];
                    Event::Done(report(job.id, outcome, a, a / 2))
                }
                3 => Event::LimitChanged(Limit::Bytes(Bytes::mib(a))),
                4 => Event::Usage(Bytes::mib(a)),
                5 if rare < 20 => Event::Release,
                6 if rare < 10 => {
                    flying = None;
                    Event::Vanished
                }
                _ => Event::LimitHit(Bytes::mib(250)),
            };
            let actions = send(&mut container, now, event);
            prop_assert!(!ended || actions.is_empty(), "after the end: {actions:?}");
            for action in actions {
                match action {
                    Action::Reclaim(job) => {
                        prop_assert!(flying.is_none(), "two jobs at once");
                        if job.strategy == Strategy::LimitStep {
                            prop_assert!(job.target >= job.floor);
                        }
                        flying = Some(job);
                    }
                    Action::Timer(Some(at)) => prop_assert!(at >= now),
                    Action::Forget => ended = true,
                    _ => {}
                }
            }
        }
    }
}

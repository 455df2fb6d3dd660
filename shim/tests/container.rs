//! One container's life, as claims about the core: events in, actions out, time handed in.

use cgroupfs::memory::{MemoryStat, SwapRules};
use cgroupfs::{Bytes, Limit};
use cgshim::core::{
    Action, Capabilities, Container, Event, FOREIGN_PAUSE, Job, Notice, Now, Outcome, Report,
    StandAside, Strategy, Survey, WatermarkSpec,
};
use proptest::prelude::{any, prop_assert, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy as _};
use std::time::Duration;

const LIMIT: Limit = Limit::Bytes(Bytes::mib(256));

const V1: Capabilities = Capabilities {
    threshold_event: true,
    threshold_slack: Bytes::mib(1),
    limit_step: true,
    force_empty: true,
    memory_reclaim: false,
    high_step: false,
};

const V2: Capabilities = Capabilities {
    threshold_event: false,
    threshold_slack: Bytes(0),
    limit_step: false,
    force_empty: false,
    memory_reclaim: true,
    high_step: true,
};

/// A container under 256 MiB with marks at 90 % and 80 %: 230.4 and 204.8 MiB.
fn container(can: Capabilities) -> Container {
    let spec = WatermarkSpec::Ratio { high: 9000, low: 8000 };
    Container::new(spec, LIMIT, Limit::Max, can, 42)
}

/// So many MiB of anonymous memory, and plenty of swap.
fn survey(usage: u64) -> Survey {
    Survey {
        usage: Bytes::mib(usage),
        limit: LIMIT,
        stat: MemoryStat { active_anon: Some(Bytes::mib(usage)), ..MemoryStat::default() },
        swap: SwapRules { swaps_at_limit: true, reclaim_may_swap: true, room: Limit::Max },
        host_swap_free: Bytes::mib(4096),
        direct_reclaim: 0,
    }
}

fn report(id: u64, outcome: Outcome, before: u64, after: u64) -> Report {
    Report {
        id,
        strategy: Strategy::LimitStep,
        outcome,
        before: Bytes::mib(before),
        after: Bytes::mib(after),
        freed: Bytes::mib(before.saturating_sub(after)),
        direct_reclaim: 0,
        steps: 1,
        cpu: Duration::from_millis(1),
        wall: Duration::from_millis(1),
    }
}

fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

fn send(container: &mut Container, now: Now, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    container.handle(now, event, &mut actions);
    actions
}

fn done(container: &mut Container, now: Now, report: Report) -> Vec<Action> {
    send(container, now, Event::Done(report))
}

fn surveyed(container: &mut Container, now: Now, look: Survey) -> Vec<Action> {
    send(container, now, Event::Surveyed(Box::new(look)))
}

fn job(actions: &[Action]) -> Option<Job> {
    actions.iter().find_map(|action| match action {
        Action::Reclaim(job) => Some(*job),
        _ => None,
    })
}

fn told(actions: &[Action]) -> Vec<Notice> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Tell(notice) => Some(*notice),
            _ => None,
        })
        .collect()
}

fn timer(actions: &[Action]) -> Now {
    let timer = actions.iter().rev().find_map(|action| match action {
        Action::Timer(at) => *at,
        _ => None,
    });
    timer.unwrap_or_else(|| panic!("no timer: {actions:?}"))
}

/// Brings a container to a job in flight.
fn start(container: &mut Container, now: Now, usage: u64) -> Job {
    assert_eq!(send(container, now, Event::Crossed(Bytes::mib(usage))), [Action::Survey]);
    job(&surveyed(container, now, survey(usage))).expect("a job")
}

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
fn limit_hits_do_not_end_the_rest_of_an_overrun() {
    let mut container = container(V2);
    let (mut now, mut direct) = (ms(0), 0);
    send(&mut container, now, Event::LimitHit(Bytes::mib(255)));
    let mut id = job(&surveyed(&mut container, now, survey(255))).unwrap().id;
    for _ in 0..3 {
        let actions = overrun(&mut container, &mut now, id, &mut direct);
        id = job(&actions).map_or(id, |job| job.id);
    }
    assert_eq!(send(&mut container, now + ms(10), Event::LimitHit(Bytes::mib(256))), []);
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

/// One job that runs into its deadline with usage at the limit, and the survey after it.
fn overrun(container: &mut Container, now: &mut Now, id: u64, direct: &mut u64) -> Vec<Action> {
    *now += ms(100);
    *direct += 4000;
    let actions = done(container, *now, report(id, Outcome::Deadline, 255, 255));
    assert_eq!(actions, [Action::Survey]);
    let mut look = survey(255);
    look.direct_reclaim = *direct;
    surveyed(container, *now, look)
}

#[test]
fn a_group_that_outruns_reclaim_is_let_alone_and_tried_again_later() {
    let mut container = container(V1);
    let (mut now, mut direct) = (ms(0), 0);
    let mut id = start(&mut container, now, 255).id;
    for _ in 0..2 {
        id = job(&overrun(&mut container, &mut now, id, &mut direct)).expect("not yet").id;
    }
    let actions = overrun(&mut container, &mut now, id, &mut direct);
    assert_eq!(told(&actions), [Notice::StandingAside(StandAside::Overrun)]);
    let until = timer(&actions);
    assert!(until >= now + ms(750), "{until:?}");
    // The next try that does not get it off the limit is the last for about twice as long.
    now = until;
    assert_eq!(send(&mut container, now, Event::Usage(Bytes::mib(255))), [Action::Survey]);
    let mut look = survey(255);
    look.direct_reclaim = direct;
    id = job(&surveyed(&mut container, now, look)).expect("a try").id;
    let actions = overrun(&mut container, &mut now, id, &mut direct);
    assert!(timer(&actions) >= now + ms(1500));
}

#[test]
fn a_job_that_others_on_the_cpu_hold_up_is_no_overrun() {
    let mut container = container(V1);
    let (mut now, mut direct) = (ms(0), 0);
    let mut id = start(&mut container, now, 255).id;
    for _ in 0..20 {
        // At the limit, but the group reclaims little itself.
        direct -= direct.min(3500);
        id = job(&overrun(&mut container, &mut now, id, &mut direct)).expect("a job").id;
    }
}

#[test]
fn a_working_set_that_fits_under_the_limit_is_let_be() {
    let mut container = container(V1);
    let mut refaults = 0;
    // What is reclaimed comes back, round after round.
    for round in 0..10 {
        let now = ms(round * 100);
        let mut look = survey(235);
        look.stat.workingset_refault_anon = Some(refaults);
        send(&mut container, now, Event::Crossed(Bytes::mib(235)));
        let actions = surveyed(&mut container, now, look);
        if let Some(job) = job(&actions) {
            done(&mut container, now, report(job.id, Outcome::Reached, 235, 205));
            refaults += Bytes::mib(30).0 / cgroupfs::units::page_size() + 1;
            continue;
        }
        assert!(round > 0);
        assert_eq!(told(&actions), [Notice::StandingAside(StandAside::InUse)]);
        // It is looked at again only near the limit.
        let armed = actions.iter().find_map(|action| match action {
            Action::Arm(mark) => *mark,
            _ => None,
        });
        assert!(armed.unwrap() > Bytes::mib(250));
        return;
    }
    panic!("it was never let be");
}

#[test]
fn a_stream_that_goes_round_is_reclaimed_all_the_same() {
    let mut container = container(V1);
    let mut look = survey(235);
    look.stat.active_anon = Some(Bytes::mib(5));
    look.stat.inactive_file = Some(Bytes::mib(220));
    look.stat.active_file = Some(Bytes::mib(10));
    let mut refaults = 0;
    for round in 0..20 {
        let now = ms(round * 100);
        look.stat.workingset_refault_file = Some(refaults);
        send(&mut container, now, Event::Crossed(Bytes::mib(235)));
        let job = job(&surveyed(&mut container, now, look)).expect("a job every round");
        done(&mut container, now, report(job.id, Outcome::Reached, 235, 205));
        refaults += Bytes::mib(30).0 / cgroupfs::units::page_size() + 1;
    }
}

#[test]
fn a_fast_stream_under_a_small_limit_is_stepped_not_emptied() {
    // 2 GiB/s of clean cache under 128 MiB: the margin is for what is stuck, which does not grow.
    let limit = Limit::Bytes(Bytes::mib(128));
    let mut container = Container::new(WatermarkSpec::Default, limit, Limit::Max, V1, 1);
    let mut look = survey(124);
    look.limit = limit;
    look.stat.active_anon = Some(Bytes::mib(2));
    look.stat.inactive_file = Some(Bytes::mib(121));
    for round in 0..20 {
        let now = ms(round * 10);
        send(&mut container, now, Event::Crossed(Bytes::mib(124)));
        let job = job(&surveyed(&mut container, now, look)).expect("a job");
        assert_eq!(job.strategy, Strategy::LimitStep);
        done(&mut container, now, report(job.id, Outcome::Reached, 124, 104));
    }
}

#[test]
fn bursts_that_reach_the_limit_widen_the_headroom_and_calm_narrows_it() {
    let mut container = Container::new(WatermarkSpec::Default, LIMIT, Limit::Max, V1, 1);
    let narrow = container.watermarks().unwrap();
    let mut look = survey(240);
    for round in 0..10 {
        look.direct_reclaim += 50;
        send(&mut container, ms(round), Event::Crossed(Bytes::mib(240)));
        let job = job(&surveyed(&mut container, ms(round), look)).expect("a job");
        let mut ended = report(job.id, Outcome::Reached, 240, 150);
        ended.direct_reclaim = look.direct_reclaim;
        done(&mut container, ms(round), ended);
    }
    let wide = container.watermarks().unwrap();
    let headroom = |high: Bytes| Bytes::mib(256).0 - high.0;
    assert!(headroom(wide.high) > 2 * headroom(narrow.high));
    assert!(headroom(wide.high) <= 5 * headroom(narrow.high) / 2 + 4096);
    for round in 1..20 {
        let now = Duration::from_secs(11 * round);
        send(&mut container, now, Event::Crossed(Bytes::mib(240)));
        let job = job(&surveyed(&mut container, now, look)).expect("a job");
        let mut ended = report(job.id, Outcome::Reached, 240, 150);
        ended.direct_reclaim = look.direct_reclaim;
        done(&mut container, now, ended);
    }
    assert_eq!(container.watermarks().unwrap(), narrow);
}

#[test]
fn an_operators_own_marks_stay_as_they_are() {
    let mut container = container(V1);
    let marks = container.watermarks();
    let mut look = survey(240);
    for round in 0..5 {
        look.direct_reclaim += 50;
        send(&mut container, ms(round), Event::Crossed(Bytes::mib(240)));
        let job = job(&surveyed(&mut container, ms(round), look)).expect("a job");
        let mut ended = report(job.id, Outcome::Reached, 240, 150);
        ended.direct_reclaim = look.direct_reclaim;
        done(&mut container, ms(round), ended);
    }
    assert_eq!(container.watermarks(), marks);
}

#[test]
fn dirty_cache_is_left_to_the_disk_and_looked_at_again_soon() {
    let mut container = container(V1);
    let mut look = survey(240);
    look.stat.active_anon = Some(Bytes::mib(10));
    look.stat.inactive_file = Some(Bytes::mib(220));
    look.stat.dirty = Some(Bytes::mib(180));
    send(&mut container, ms(0), Event::Crossed(Bytes::mib(240)));
    let actions = surveyed(&mut container, ms(0), look);
    assert_eq!(told(&actions), [Notice::StandingAside(StandAside::Dirty)]);
    assert_eq!(timer(&actions), ms(100));
    // Said once, not every time.
    send(&mut container, ms(100), Event::Usage(Bytes::mib(240)));
    assert_eq!(told(&surveyed(&mut container, ms(100), look)), []);
}

#[test]
fn above_a_high_dirty_cache_is_written_back_without_a_window() {
    let spec = WatermarkSpec::Ratio { high: 9000, low: 8000 };
    let high = Limit::Bytes(Bytes::mib(200));
    let mut look = survey(200);
    look.stat.active_anon = Some(Bytes::mib(10));
    look.stat.inactive_file = Some(Bytes::mib(180));
    look.stat.dirty = Some(Bytes::mib(180));
    let mut container = Container::new(spec, LIMIT, high, V1, 42);
    for round in 0..10 {
        let now = ms(100 * round);
        send(&mut container, now, Event::Crossed(Bytes::mib(200)));
        let actions = surveyed(&mut container, now, look);
        let job = job(&actions).expect("a job");
        assert_eq!(job.strategy, Strategy::ForceEmpty);
        assert_eq!((told(&actions), job.target), (vec![], container.watermarks().unwrap().low));
        // Writeback has begun, and took nothing yet: soon again, however often, but no worker is kept by it.
        let futile = Report { wall: ms(30), ..report(job.id, Outcome::Exhausted, 200, 200) };
        assert_eq!(timer(&done(&mut container, now, futile)), now + ms(30));
    }
    // Of a disk that does not answer it keeps off.
    let now = ms(1000);
    send(&mut container, now, Event::Crossed(Bytes::mib(200)));
    let again = job(&surveyed(&mut container, now, look)).expect("a job");
    let stuck = Report { wall: ms(5000), ..report(again.id, Outcome::Exhausted, 200, 200) };
    done(&mut container, now, stuck);
    send(&mut container, ms(6000), Event::Usage(Bytes::mib(200)));
    let again = job(&surveyed(&mut container, ms(6000), look)).expect("a job");
    let stuck = Report { wall: ms(5000), ..report(again.id, Outcome::Exhausted, 200, 200) };
    let actions = done(&mut container, ms(11_000), stuck);
    assert!(timer(&actions) >= ms(11_100), "{actions:?}");
    // The kernel's own high writes back by itself.
    let mut native = Container::new(spec, LIMIT, high, V2, 42);
    send(&mut native, ms(0), Event::Usage(Bytes::mib(200)));
    let actions = surveyed(&mut native, ms(0), look);
    assert_eq!(told(&actions), [Notice::StandingAside(StandAside::Dirty)]);
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

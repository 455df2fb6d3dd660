//! When a container's core takes nothing, or not yet: it outruns us, what it has is in use, dirty, or soon back. Claims.

mod handed;

use cgroupfs::{Bytes, Limit};
use cgshim::core::{
    Action, Container, Event, Notice, Now, Outcome, Report, StandAside, Strategy, WatermarkSpec,
};
use handed::{
    LIMIT, V1, V2, container, done, job, ms, report, send, start, survey, surveyed, timer, told,
};
use std::time::Duration;

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

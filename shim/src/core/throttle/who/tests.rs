//! Who grows, by what it has shown.

use super::*;

fn stat(minflt: u64, rss: u64) -> TaskStat {
    TaskStat { state: b'S', minflt, rss, ..TaskStat::default() }
}

fn suspect(now: TaskStat) -> Standing {
    Standing::suspect(now, Bytes(0), None)
}

fn grows(standings: &[Standing]) -> Vec<u32> {
    who_grows((1..).zip(standings)).into_iter().collect()
}

#[test]
fn as_long_as_nobody_was_seen_growing_all_may() {
    let mut all = [suspect(stat(0, 0)); 3];
    assert_eq!(grows(&all), [1, 2, 3]);
    all[1].look(stat(64, 64), true, || Stopped::Waiting);
    all[1].convict(Bytes(64 * page_size()), 1, true);
    assert_eq!(grows(&all), [2]);
}

#[test]
fn a_thread_that_faults_once_while_another_fills_huge_pages_is_not_taken_for_a_grower() {
    let mut main = suspect(stat(1000, 0));
    let mut thread = suspect(stat(0, 0));
    for n in 1..=3 {
        // To start the other it faulted; from then on it waits.
        main.look(stat(1006, n * HUGE), true, || Stopped::Waiting);
        thread.look(stat(n, n * HUGE), true, || Stopped::Running);
        for standing in [&mut main, &mut thread] {
            standing.convict(Bytes(n * HUGE * page_size()), 1, n > 1);
        }
    }
    assert_eq!(grows(&[main, thread]), [2]);
}

#[test]
fn one_that_fills_huge_pages_is_known_at_once_and_not_let_go_where_others_faulted_too() {
    let mut standing = suspect(stat(0, 0));
    standing.look(stat(1, HUGE), true, || Stopped::Waiting);
    let mut beside = standing;
    standing.convict(Bytes::mib(2), 1, true);
    assert!(!standing.is_suspect());
    beside.convict(Bytes::mib(64), 1, false);
    assert!(beside.is_suspect() && !beside.is_cleared(Bytes::mib(64)));
    // The page of another window is no evidence of this one's.
    beside.look(stat(2, HUGE), true, || Stopped::Waiting);
    beside.convict(Bytes::mib(64), 1, true);
    assert!(beside.is_suspect());
    beside.look(stat(3, HUGE * 2), true, || Stopped::Waiting);
    beside.convict(Bytes::mib(64), 1, false);
    assert!(!beside.is_suspect());
}

#[test]
fn who_faults_alone_is_told_by_process() {
    let change = |task, process, faults| Change { task, process, faults, ..Change::default() };
    let changes = [change(1, 1, 5), change(2, 1, 1), change(3, 3, 1), change(4, 3, 0)];
    assert_eq!(who_faulted_alone(&changes), [3].into());
}

#[test]
fn a_few_faults_in_much_growth_are_nobodys_conviction() {
    let mut standing = suspect(stat(0, 0));
    standing.look(stat(20, 20), true, || Stopped::Waiting);
    standing.convict(Bytes::mib(64), 1, true);
    assert!(standing.is_suspect());
    assert!(standing.is_cleared(Bytes::mib(64)) && !standing.is_cleared(Bytes::mib(15)));
    standing.look(stat(300, 300), true, || Stopped::Waiting);
    standing.convict(Bytes::mib(64), 1, true);
    assert!(!standing.is_suspect());
}

#[test]
fn who_grows_no_more_rests_and_grows_again_when_it_does() {
    let mut all = [Standing::grower(stat(0, 0), Duration::ZERO); 2];
    // It naps, as two sleeps in a window show.
    for n in 1..=u64::from(RESTS) + 1 {
        assert_eq!(grows(&all), [1, 2]);
        all[0].look(stat(n * 64, n * 64), true, || Stopped::Running);
        all[1].look(stat(0, 0), true, || Stopped::Called);
        let slept = Some((Duration::ZERO, n * 2));
        all[1].window(Duration::from_millis(1), false, 0, Duration::ZERO, || slept);
    }
    assert_eq!(grows(&all), [1]);
    all[1].look(stat(1, 1), true, || Stopped::Called);
    assert_eq!(grows(&all), [1, 2]);
}

#[test]
fn who_waits_for_somebody_else_does_not_share_what_is_owed_until_it_grows_again() {
    let mut all = [Standing::grower(stat(0, 0), Duration::ZERO); 2];
    // It has started the other, and waits for it.
    all[0].look(stat(3, HUGE), false, || Stopped::Waiting);
    all[1].look(stat(1, HUGE), false, || Stopped::Running);
    assert_eq!(grows(&all), [2]);
    all[0].look(stat(3 + GROWS, 0), false, || Stopped::Waiting);
    assert_eq!(grows(&all), [1, 2]);
}

#[test]
fn who_sleeps_for_a_time_and_had_no_cpu_since_grows_until_it_is_seen_to_nap() {
    let mut all = [Standing::grower(stat(0, 0), Duration::ZERO); 2];
    let mut slept = 0;
    let mut look = |all: &mut [Standing; 2], n: u64, sleeps: u64| {
        slept += sleeps;
        all[0].look(stat(n, n * HUGE), true, || Stopped::Running);
        all[1].look(stat(0, 0), true, || Stopped::Called);
        all[1].window(Duration::from_micros(250), true, 0, Duration::ZERO, || {
            Some((Duration::ZERO, slept))
        });
    };
    for n in 1..100 {
        look(&mut all, n, 1);
        assert_eq!(grows(&all), [1, 2], "{n}");
    }
    for n in 100..100 + u64::from(RESTS) {
        look(&mut all, n, 2);
    }
    assert_eq!(grows(&all), [1]);
}

#[test]
fn who_waits_for_a_cpu_does_not_rest() {
    let mut all = [Standing::grower(stat(0, 0), Duration::ZERO); 2];
    for n in 1..100 {
        all[0].look(stat(n * 64, n * 64), true, || Stopped::Waiting);
        all[1].look(stat(0, 0), true, || Stopped::Running);
    }
    assert!(all[1].waits() && !all[1].is_done());
    assert_eq!(grows(&all), [1, 2]);
    // Unless it has run.
    all[1].look(TaskStat { utime: TURN, ..stat(0, 0) }, true, || Stopped::Running);
    assert!(!all[1].waits());
}

#[test]
fn of_one_that_may_not_have_had_a_cpu_nothing_is_learnt_until_it_is_seen_to_nap() {
    let mut standing = Standing::grower(stat(0, 0), Duration::ZERO);
    standing.look(stat(64, 64), true, || Stopped::Waiting);
    assert!(!standing.had_no_turn());
    // Frozen, it sleeps once in each window; then it naps as well.
    for (slept, none) in [(1, true), (2, true), (4, true), (6, false), (8, false)] {
        standing.look(stat(64, 64), true, || Stopped::Waiting);
        assert_eq!(standing.had_no_turn(), none, "{slept}");
        standing.window(Duration::from_millis(1), false, 0, Duration::ZERO, || {
            Some((Duration::ZERO, slept))
        });
    }
}

#[test]
fn one_that_does_nothing_for_long_is_done_with() {
    let mut standing = Standing::grower(stat(0, 0), Duration::from_secs(1000));
    let windows = (1..).find(|_| {
        standing.look(stat(0, 0), true, || Stopped::Waiting);
        standing.is_done()
    });
    assert_eq!(windows, Some(IDLE_WINDOWS));
}

#[test]
fn a_probe_is_let_start_unless_somebody_is_looked_for() {
    let (before, now) = (stat(0, 0), stat(500, 400));
    let beside = Sought { others: Some(64), writes: None };
    let nobody = Sought { others: None, writes: None };
    assert_eq!(found(&before, &now, true, beside), None);
    assert_eq!(found(&before, &now, false, beside), Some(Found::Grows));
    assert_eq!(found(&before, &now, true, nobody), Some(Found::Grows));
    assert_eq!(found(&before, &stat(2, HUGE), false, nobody), Some(Found::Huge));
    assert_eq!(found(&before, &stat(2, 2), false, nobody), None);
    // A few faults between two looks are what the kernel lets everybody have, unless nobody else is known.
    assert_eq!(found(&before, &stat(40, 40), false, beside), None);
    assert_eq!(found(&before, &stat(40, 40), false, nobody), Some(Found::Grows));
}

#[test]
fn who_writes_without_faulting_is_found_where_growth_is_not_explained() {
    let (before, now) = (stat(9, 9), TaskStat { stime: 1, ..stat(9, 9) });
    let sought = |writes| Sought { others: Some(64), writes };
    let in_kernel = |times: &[u64]| Some(writes(times.iter().copied()));
    assert_eq!(found(&before, &now, true, sought(in_kernel(&[1, 0]))), Some(Found::Grows));
    assert_eq!(found(&before, &now, true, sought(None)), None);
    // Nor where another was there for longer: who naps and wakes was, too.
    assert_eq!(found(&before, &now, true, sought(in_kernel(&[1, 5]))), None);
    assert_eq!(found(&before, &stat(9, 9), true, sought(in_kernel(&[0]))), None);
    let gone = TaskStat { state: b'Z', ..now };
    assert_eq!(found(&before, &gone, true, sought(in_kernel(&[1]))), None);
}

#[test]
fn who_sleeps_while_others_grow_is_left_where_it_is() {
    assert!(is_bystander(&stat(100, 9), &stat(104, 9)));
    assert!(!is_bystander(&stat(100, 9), &stat(200, 109)));
    // Huge pages that somebody of its process fills may be its own, if it faulted.
    assert!(!is_bystander(&stat(100, 9), &stat(101, 9 + HUGE)));
    let runs = TaskStat { state: b'R', ..stat(100, 9) };
    assert!(!is_bystander(&stat(100, 9), &runs));
}

#[test]
fn who_does_not_grow_with_the_others_below_high_is_let_go_before_anybody_is_frozen() {
    let mib = Bytes::mib;
    assert_eq!(chance(mib(100)), Some(CHANCE));
    assert_eq!(chance(mib(8)), Some(mib(4)));
    assert_eq!(chance(mib(3)), None);
    let naps = suspect(stat(100, 100));
    assert!(naps.is_cleared_below(mib(4), mib(4)) && !naps.is_cleared_below(mib(3), mib(4)));
    let came = Standing::suspect(stat(100, 100), Bytes(0), Some((Duration::ZERO, 7)));
    assert!(came.has_run(Some((Duration::ZERO, 7 + RUNS))));
    assert!(!came.has_run(Some((Duration::from_secs(1), 8))) && !came.has_run(None));
    // One that waits for a CPU, or a lock, may grow yet.
    for state in [b'R', b'D'] {
        let mut waits = suspect(stat(100, 100));
        waits.look(TaskStat { state, ..stat(100, 100) }, true, || Stopped::Waiting);
        assert!(!waits.is_cleared_below(mib(16), mib(4)));
    }
    let mut grew = suspect(stat(100, 100));
    grew.look(stat(400, 400), true, || Stopped::Waiting);
    grew.convict(mib(4), 1, true);
    assert!(!grew.is_cleared_below(mib(4), mib(4)));
}

#[test]
fn a_grower_is_as_suspect_as_the_others_after_a_rest_and_one_that_is_suspect_stays() {
    let mut grower = Standing::grower(stat(0, 0), Duration::ZERO);
    grower.suspect_again(Bytes::mib(10), 1);
    assert!(grower.is_suspect());
    let mut still = suspect(stat(0, 0));
    still.suspect_again(Bytes::mib(10), 1);
    // That it grew below high is not forgotten where it is given time to show that it does not.
    let mut grew = suspect(stat(0, 0));
    grew.look(stat(64, 64), true, || Stopped::Waiting);
    grew.suspect_again(Bytes::mib(10), 1);
    assert!(grew.is_suspect() && !grew.is_untried());
    // Unless that was little of what the group has grown by.
    let mut faulted = suspect(stat(0, 0));
    faulted.look(stat(64, 64), true, || Stopped::Called);
    faulted.suspect_again(Bytes::mib(100), 1);
    assert!(faulted.is_untried() && !faulted.is_cleared(Bytes::mib(100)));
    // It is measured from when it came.
    assert!(still.is_cleared(Bytes::mib(16)) && !grower.is_cleared(Bytes::mib(16)));
}

#[test]
fn what_other_threads_fill_page_by_page_is_no_huge_page_of_one_that_faults_now_and_then() {
    let then = TaskStat { process_faults: 9000, ..stat(20, 9000) };
    let now = |small: u64, huge: u64| TaskStat {
        process_faults: 9000 + small + huge,
        ..stat(24, 9000 + small + huge * HUGE)
    };
    let sought = Sought { others: Some(64), writes: None };
    assert_eq!(found(&then, &now(4 * HUGE, 0), false, sought), None);
    assert_eq!(found(&then, &now(4 * HUGE, 1), false, sought), Some(Found::Huge));
    assert!(is_bystander(&then, &now(4 * HUGE, 0)) && !is_bystander(&then, &now(4, 1)));
    let mut naps = suspect(then);
    naps.look(now(8 * HUGE, 0), true, || Stopped::Called);
    assert!(naps.is_cleared_below(Bytes::mib(16), Bytes::mib(16)));
    naps.suspect_again(Bytes::mib(16), 1);
    assert!(naps.is_untried());
    let mut fills = suspect(then);
    fills.look(now(0, 1), true, || Stopped::Called);
    assert!(!fills.is_cleared_below(Bytes::mib(16), Bytes::mib(16)));
}

#[test]
fn who_filled_a_huge_page_just_before_it_was_suspected_again_and_was_alone_at_it_grows() {
    let convicted = |rss: u64, alone: bool| {
        let mut standing = suspect(stat(0, 0));
        standing.look(stat(1, rss), true, || Stopped::Running);
        standing.suspect_again(Bytes::mib(66), 3);
        standing.look(stat(1, rss), true, || Stopped::Running);
        standing.convict(Bytes::mib(66), 3, alone);
        !standing.is_suspect()
    };
    assert!(convicted(HUGE, true));
    // It may have been another thread of its process; and a few small pages are no evidence.
    assert!(!convicted(HUGE, false) && !convicted(8, true));
}

#[test]
fn who_was_found_beside_a_huge_page_stays_for_as_long_as_the_next_one_may_take() {
    let kept = |standing: Standing| {
        let mut standing = standing;
        (1..100).find(|n| {
            standing.look(stat(0, 0), true, || Stopped::Called);
            let naps = Some((Duration::ZERO, 2 * n));
            standing.window(Duration::from_micros(200), true, 0, Duration::ZERO, || naps);
            standing.frozen(Duration::from_millis(100));
            standing.is_done()
        })
    };
    assert_eq!(kept(suspect(stat(0, 0))), Some(2));
    assert_eq!(kept(suspect(stat(0, 0)).beside_huge()), Some(5));
}

#[test]
fn a_few_faults_that_were_paid_for_many_times_do_not_keep_one_that_rests() {
    let given_back = |frozen: Duration| {
        let mut standing = suspect(stat(0, 0));
        standing.window(Duration::ZERO, false, 0, Duration::ZERO, || Some((Duration::ZERO, 0)));
        standing.frozen(frozen);
        standing.look(stat(GROWS, GROWS), true, || Stopped::Called);
        standing.convict(Bytes::mib(1), 1, true);
        // It was not frozen for long, when it grew.
        standing.frozen(Duration::from_secs(1));
        standing.look(stat(GROWS, GROWS), true, || Stopped::Called);
        standing.window(Duration::from_micros(200), false, 0, Duration::ZERO, || {
            Some((Duration::ZERO, 1))
        });
        assert!(!standing.is_suspect());
        standing.is_done()
    };
    assert!(given_back(Duration::from_millis(200)));
    assert!(!given_back(Duration::from_millis(100)));
}

#[test]
fn one_that_wrote_is_not_let_go_for_what_the_group_had_grown_by_before() {
    let (mut naps, mut wrote) = (suspect(stat(0, 0)), suspect(stat(0, 0)));
    naps.wrote(GROWS - 1);
    wrote.wrote(106);
    for standing in [&mut naps, &mut wrote] {
        standing.convict(Bytes::mib(28), 1, true);
    }
    assert!(naps.is_cleared(Bytes::mib(28)));
    assert!(wrote.is_suspect() && !wrote.is_cleared(Bytes::mib(28)));
}

/// One that charges without a fault, and is stopped on the way out of the call, would go on at once; one that naps in such a
/// call waits for a reader.
#[test]
fn who_charges_by_calls_waits_for_a_cpu_and_does_not_rest() {
    let mut standing = Standing::grower(stat(0, 0), Duration::ZERO);
    let step = standing.look(stat(0, 0), true, || Stopped::Charging);
    assert_eq!(
        (standing.waits(), step.rests, step.stopped),
        (true, false, Some(Stopped::Charging))
    );
    standing.naps = true;
    standing.look(stat(0, 0), true, || Stopped::Charging);
    assert!(!standing.waits());
}

#[test]
fn many_that_were_just_started_share_no_debt_with_who_starts_them() {
    let starter = (1, Standing::grower(stat(0, 0), Duration::ZERO));
    let new = |n| (2..2 + n).map(|task| (task, Standing::born(stat(17, 17), None)));
    let who = |all: &[(u32, Standing)]| who_grows(all.iter().map(|(task, of)| (*task, of))).len();
    let few = MANY_NEW as u32;
    let all: Vec<_> = new(few).chain([starter]).collect();
    assert_eq!(who(&all), MANY_NEW + 1);
    let mut all: Vec<_> = new(few * 4).chain([starter]).collect();
    assert_eq!(who(&all), 1);
    // One that has grown by a charge pays as all do.
    all[0].1.window(Duration::ZERO, false, CHARGE, Duration::ZERO, || None);
    assert_eq!(who(&all), 2);
    // Which of them only wait is seen at the next look.
    let onlookers = |all: &[(u32, Standing)]| all.iter().filter(|(_, of)| of.is_onlooker()).count();
    assert_eq!(onlookers(&all), 0);
    for (_, standing) in &mut all {
        standing.look(stat(17, 17), true, || Stopped::ForThread);
    }
    assert_eq!(onlookers(&all), MANY_NEW * 4 - 1);
    // Where nobody else is known it is theirs.
    assert_eq!(who(&new(few * 4).collect::<Vec<_>>()), MANY_NEW * 4);
}

/// A window of so long after which it was stopped there, having run for so long in all.
fn waits(standing: &mut Standing, window: Duration, ran: Duration, stopped: Stopped) -> bool {
    standing.look(*standing.last(), true, || stopped);
    standing.window(window, true, 0, Duration::ZERO, || Some((ran, 1)));
    standing.only_waits()
}

#[test]
fn who_has_waited_for_long_only_waits_and_who_was_stopped_amid_a_read_does_not() {
    const MS: Duration = Duration::from_millis(1);
    let known = || Standing::suspect(stat(0, 0), Bytes(0), Some((Duration::ZERO, 1)));
    // It was told to start a thread, two seconds after it came.
    let mut main = known();
    assert!(waits(&mut main, 2000 * MS, MS / 5, Stopped::Waiting) && !main.is_untried());
    // In short windows after that there is nothing else to see, as long as it goes on.
    assert!(waits(&mut main, MS / 4, MS / 4, Stopped::Waiting));
    assert!(!waits(&mut main, MS / 4, MS / 2, Stopped::Called));
    // One that copies has run, as far as that can be seen; a window that is too short for that shows nothing.
    assert!(!waits(&mut known(), 10 * MS, MS, Stopped::Waiting));
    assert!(!waits(&mut known(), MS, MS / 50, Stopped::Waiting));
    // Nor does one that was just started by one that grows.
    let mut born = Standing::born(stat(0, 0), Some((Duration::ZERO, 1)));
    assert!(!waits(&mut born, 2000 * MS, MS / 5, Stopped::Waiting));
    // Nor is anybody where small pages are filled: it is tried.
    let mut small = known();
    small.look(stat(0, 0), true, || Stopped::Waiting);
    small.window(2000 * MS, false, 0, Duration::ZERO, || Some((MS / 5, 1)));
    assert!(!small.only_waits() && small.is_untried());
    // One that has grown is not let go for it.
    let mut grew = known();
    grew.look(stat(64, 64), true, || Stopped::Running);
    grew.convict(Bytes(64 * page_size()), 1, true);
    assert!(!waits(&mut grew, 2000 * MS, MS / 5, Stopped::Waiting));
}

#[test]
fn who_waits_and_may_be_told_to_grow_is_not_let_go_before_it_was_kept_from_it() {
    let used = Bytes::mib(64);
    let mut standing = suspect(stat(0, 0));
    standing.look(stat(0, 0), true, || Stopped::Waiting);
    assert!(!standing.is_cleared(used));
    standing.frozen(TRIED);
    assert!(standing.is_cleared(used));
    // One that has gone on meanwhile, and did not grow, is.
    let mut standing = suspect(stat(0, 0));
    standing.look(stat(1, 1), true, || Stopped::Called);
    assert!(standing.is_cleared(used));
}

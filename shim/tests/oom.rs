//! The books of OOMs: which records come of which events, in virtual time.

mod books;

use books::{Host, MS};
use cgroupfs::kmsg::oom::{Constraint, Killed};
use cgroupfs::{Bytes, Limit};
use cgshim::core::oom::{Cause, Detail, Event, From, LevelLook, LogKill, Look, Record, Subject};
use std::time::Duration;

#[test]
fn a_signal_before_its_kill_makes_one_record_with_all_there_is() {
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.pass(9 * MS);
    host.kill(1);
    host.pass(2 * MS);
    // On record long before the log's line.
    assert_eq!(host.written.len(), 1);
    host.log(1234, Some("/pod/c1"), Some("/pod/c1"));
    let record = host.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
    assert_eq!(record.limit_cgroup.as_deref(), Some("/pod/c1"));
    let victim = record.victim.as_ref().unwrap();
    assert_eq!((victim.pid, victim.comm.as_deref()), (1234, Some("load")));
    assert_eq!(record.init_survived, Some(true));
    assert_eq!(record.from["victim"], From::KernelLog);
    assert_eq!(record.from["kills"], From::OomKill);
    assert_eq!(record.from["breakdown"], From::FilesBefore);
    assert!(record.unknown.is_empty(), "{:?}", record.unknown);
}

#[test]
fn a_line_that_comes_a_second_late_completes_the_record_and_makes_no_other() {
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.kill(1);
    host.pass(Duration::from_secs(1));
    assert_eq!(host.announced[0].1.victim, None);
    assert!(host.announced[0].1.unknown[0].starts_with("who was killed"));
    host.log(1234, Some("/pod/c1"), Some("/pod/c1"));
    let told = host.only();
    let record = &host.written[&told.id];
    assert_eq!(record.victim.as_ref().map(|victim| victim.pid), Some(1234));
    assert!(record.settled && record.unknown.is_empty(), "{:?}", record.unknown);
    // The next kill is another one.
    host.event(Event::Signal(1, 0));
    host.kill(1);
    host.pass(MS);
    host.log(5678, Some("/pod/c1"), Some("/pod/c1"));
    host.pass(Duration::from_secs(3));
    assert_eq!((host.announced.len(), host.written.len()), (2, 2));
    assert_eq!(host.victims(1), [None, Some(5678)]);
}

#[test]
fn a_line_that_comes_late_of_a_group_that_is_gone_makes_no_other_record_either() {
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.kill(1);
    host.pass(MS);
    host.gone(1);
    host.event(Event::Vanished(1));
    // Whoever reads the log was stopped, or a console held it up.
    host.pass(Duration::from_secs(1));
    host.log(1234, Some("/pod/c1"), Some("/pod/c1"));
    let told = host.only();
    let record = &host.written[&told.id];
    assert_eq!(record.victim.as_ref().map(|victim| victim.pid), Some(1234));
    // One that no counter showed any more is another.
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.kill(1);
    host.pass(MS);
    host.log(1234, Some("/pod/c1"), Some("/pod/c1"));
    host.gone(1);
    host.event(Event::Vanished(1));
    host.pass(Duration::from_secs(1));
    host.log(5678, Some("/pod/c1"), Some("/pod/c1"));
    host.pass(Duration::from_secs(3));
    assert_eq!(host.victims(1), [Some(1234), Some(5678)]);
}

#[test]
fn a_clean_exit_is_no_oom() {
    let mut host = Host::new(true);
    for key in 1..200 {
        host.watch(key);
        host.event(Event::InitExited(key));
        host.gone(key);
        // The signal of the removal.
        host.event(Event::Signal(key, 0));
        host.pass(MS);
    }
    host.pass(Duration::from_secs(5));
    assert!(host.written.is_empty());
    // And nothing is remembered of them.
    assert!(host.ledger.is_empty());
    assert_eq!(host.forgotten.len(), 199);
}

#[test]
fn many_signals_are_one_kill_and_none_is_woken_without() {
    let mut host = Host::new(true);
    host.watch(1);
    for _ in 0..50 {
        host.event(Event::Signal(1, 0));
        host.pass(MS);
    }
    host.kill(1);
    host.log(5, Some("/pod/c1"), Some("/pod/c1"));
    for _ in 0..50 {
        host.event(Event::Signal(1, 0));
        host.pass(MS);
    }
    assert_eq!(host.only().cause, Cause::OwnLimit);
}

#[test]
fn signals_that_no_kill_follows_are_told_once() {
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.event(Event::Signal(1, 0));
    host.pass(400 * MS);
    assert!(host.written.is_empty(), "said too soon");
    // There is room again.
    host.usage = Bytes::mib(32);
    host.pass(200 * MS);
    let record = host.only();
    assert_eq!((record.cause, record.kills, record.signals), (Cause::WokeWithoutKill, 0, 2));
    assert!(record.victim.is_none() && record.unknown.is_empty());
}

#[test]
fn a_kill_that_comes_late_to_a_group_that_is_full_is_one_record() {
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.pass(3000 * MS);
    assert!(host.written.is_empty(), "said too soon");
    host.kill(1);
    host.log(5, Some("/pod/c1"), Some("/pod/c1"));
    let record = host.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
}

#[test]
fn a_group_that_stays_full_without_a_kill_is_told_of_in_the_end() {
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.pass(5100 * MS);
    assert_eq!(host.only().cause, Cause::WokeWithoutKill);
}

#[test]
fn a_sibling_of_the_victim_has_no_record() {
    let mut host = Host::new(true);
    host.watch(1);
    host.watch(2);
    // The parent's limit: all beneath are signalled.
    for key in [1, 2] {
        host.event(Event::Signal(key, 1));
        host.event(Event::Signal(key, 0));
    }
    host.kill(1);
    host.pass(MS);
    host.log(9, None, None);
    let record = host.only();
    assert_eq!(record.name, "c1");
    // By the signals alone, as the log's line was rate-limited.
    assert_eq!(
        (record.cause, record.limit_cgroup.as_deref()),
        (Cause::AncestorLimit, Some("/pod"))
    );
    assert_eq!(record.from["cause"], From::Eventfd);
    // Nor does a line that names no group give it a victim.
    assert!(record.victim.is_none());
}

#[test]
fn without_signals_the_group_whose_charges_failed_has_the_limit() {
    let mut host = Host::new(true);
    host.watch(1);
    host.failcnt.insert(1, vec![0, 3]);
    host.kill(1);
    host.log(9, Some("/pod/c1"), None);
    assert_eq!(host.only().cause, Cause::AncestorLimit);
    assert_eq!(host.announced[0].1.from["cause"], From::Failcnt);
}

#[test]
fn the_log_alone_makes_a_record_where_the_group_was_gone_too_soon() {
    let mut host = Host::new(true);
    host.watch(1);
    host.gone(1);
    host.event(Event::Signal(1, 0));
    host.log(1000, Some("/pod/c1"), Some("/pod"));
    let record = host.only();
    assert_eq!((record.kills, record.cause), (1, Cause::AncestorLimit));
    assert_eq!(record.victim.unwrap().pid, 1000);
    assert_eq!(record.init_survived, Some(false), "it was init");
    assert_eq!(record.from["kills"], From::KernelLog);
}

#[test]
fn who_was_killed_and_removed_between_registration_and_watch_is_on_record() {
    let mut host = Host::new(true);
    // Of the group's predecessor.
    host.log(900, Some("/pod/c1"), Some("/pod/c1"));
    host.pass(MS);
    let registered = host.now;
    host.log(1000, Some("/pod/c1"), Some("/pod/c1"));
    // Most lines name no group.
    host.log(2000, None, None);
    host.log(4711, Some("/pod/c3"), Some("/pod/c3"));
    host.pass(MS);
    for key in [1, 2] {
        host.watch_since(key, &format!("/pod/c{key}"), Some(registered));
        host.event(Event::Vanished(key));
    }
    // This one is still there, and its counter rose before anybody looked.
    host.counters.insert(3, 1);
    host.failcnt.insert(3, vec![1, 0]);
    host.watch_since(3, "/pod/c3", Some(registered));
    let look = host.look(3);
    host.event(look);
    host.pass(Duration::from_secs(5));
    for (key, pid) in [(1, 1000), (2, 2000), (3, 4711)] {
        assert_eq!(host.victims(key), [Some(pid)], "{key}");
    }
    assert_eq!(host.written.len(), 3);
    assert!(host.forgotten.contains(&1) && host.forgotten.contains(&2));
}

#[test]
fn lines_of_nobody_are_kept_for_two_seconds_and_no_more_than_64_of_them() {
    let mut host = Host::new(true);
    let registered = host.now;
    for pid in 0..100 {
        host.log(pid, Some("/pod/c1"), Some("/pod/c1"));
    }
    let mut late = Host::new(true);
    late.log(7, Some("/pod/c1"), Some("/pod/c1"));
    late.pass(Duration::from_secs(2));
    // The next line of a stranger.
    late.log(8, Some("/elsewhere"), Some("/elsewhere"));
    for host in [&mut host, &mut late] {
        host.watch_since(1, "/pod/c1", Some(registered));
        host.event(Event::Vanished(1));
        host.pass(Duration::from_secs(5));
    }
    assert_eq!(host.victims(1), (36..100).map(Some).collect::<Vec<_>>());
    assert_eq!(late.victims(1), []);
}

#[test]
fn a_group_that_ran_out_and_was_gone_before_its_counter_was_read_is_on_record() {
    let mut host = Host::new(false);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.gone(1);
    let record = host.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 0));
    assert!(record.victim.is_none());
    assert!(record.unknown[0].contains("removed before"), "{:?}", record.unknown);
}

#[test]
fn a_signal_that_was_heard_only_after_the_removal_is_on_record_and_a_group_aboves_is_not_its_own() {
    let mut host = Host::new(false);
    host.watch(1);
    host.watch(2);
    for key in [1, 2] {
        host.gone(key);
        host.event(Event::Vanished(key));
        host.event(Event::RanOut(key));
    }
    host.event(Event::Signal(2, 1));
    let record = host.only();
    assert_eq!((record.name.as_str(), record.cause, record.kills), ("c1", Cause::OwnLimit, 0));
    assert!(record.victim.is_none());
    assert!(record.unknown[0].contains("removed before"), "{:?}", record.unknown);
}

/// Watched for `watched`, gone, and then a line of its kill that does not say whose limit it was.
fn gone_and_killed(
    subject: impl FnOnce(&mut Subject),
    watched: Duration,
    above: LevelLook,
) -> (Cause, Option<String>) {
    let mut host = Host::new(true);
    let limit = Some(Limit::Bytes(Bytes::mib(64)));
    let own = LevelLook { limit, oom_local: Some(0), ..LevelLook::default() };
    let mut its = Subject {
        path: "/pod/c1".into(),
        ancestors: vec!["/pod".into()],
        all_ancestors: true,
        levels: vec![own, LevelLook { limit: Some(Limit::Max), ..own }],
        ..Subject::default()
    };
    subject(&mut its);
    host.event(Event::Watch(1, Box::new(its)));
    host.pass(watched);
    host.event(Event::Above(1, vec![above]));
    host.event(Event::Vanished(1));
    host.log(1000, Some("/pod/c1"), None);
    let record = host.only();
    (record.cause, record.limit_cgroup)
}

#[test]
fn of_a_group_that_is_gone_the_limit_was_its_own_if_no_other_can_have_been_hit() {
    let (short, long) = (10 * MS, Duration::from_secs(3));
    let limit = Some(Limit::Bytes(Bytes::mib(64)));
    let free = LevelLook { limit: Some(Limit::Max), oom_local: Some(0), ..LevelLook::default() };
    let bounded = LevelLook { limit, ..free };
    let own = (Cause::OwnLimit, Some("/pod/c1".to_owned()));
    let unknown = (Cause::Unknown, None);
    let as_it_is = |_: &mut Subject| {};
    assert_eq!(gone_and_killed(as_it_is, short, free), own);
    // Limited above, where that has never been out of memory, or not while it was watched before that.
    let above = |subject: &mut Subject| subject.levels[1].limit = limit;
    assert_eq!(gone_and_killed(above, short, bounded), own);
    assert_eq!(gone_and_killed(above, short, free), own);
    assert_eq!(gone_and_killed(as_it_is, short, bounded), own);
    let once = LevelLook { oom_local: Some(7), ..bounded };
    let before = |subject: &mut Subject| subject.levels[1] = once;
    assert_eq!(gone_and_killed(before, short, once), unknown);
    assert_eq!(gone_and_killed(before, long, once), own);
    let out_of_memory = LevelLook { oom_local: Some(8), ..bounded };
    assert_eq!(gone_and_killed(before, long, out_of_memory), unknown);
    assert_eq!(gone_and_killed(above, long, out_of_memory), unknown);
    // On v1 `failcnt` counts that, but for memsw.
    let look = LevelLook { oom_local: None, failcnt: Some(0), failcnt_is_all: true, ..bounded };
    let v1 = |subject: &mut Subject| subject.levels[1] = look;
    assert_eq!(gone_and_killed(v1, short, look), own);
    assert_eq!(gone_and_killed(v1, long, LevelLook { failcnt: Some(1), ..look }), unknown);
    let look = LevelLook { failcnt_is_all: false, ..look };
    let v1 = |subject: &mut Subject| subject.levels[1] = look;
    assert_eq!(gone_and_killed(v1, long, look), unknown);
    // It cannot be read, is not all there is, or there was no limit of its own.
    assert_eq!(gone_and_killed(as_it_is, long, LevelLook::default()), unknown);
    assert_eq!(gone_and_killed(|its| its.all_ancestors = false, long, free), unknown);
    assert_eq!(gone_and_killed(|its| its.levels[0].limit = Some(Limit::Max), long, free), unknown);
}

#[test]
fn a_group_above_that_has_been_quiet_for_long_is_known_at_once_and_is_not_once_it_ran_out() {
    let limit = Some(Limit::Bytes(Bytes::mib(64)));
    let look = LevelLook { limit, oom_local: Some(7), oom: Some(7), ..LevelLook::default() };
    let mut host = Host::new(true);
    host.pass(Duration::from_secs(5));
    let (long_ago, now) = (Duration::from_secs(1), host.now);
    for (key, quiet_since) in [(1, long_ago), (2, now)] {
        let its = Subject {
            path: format!("/pod/c{key}"),
            ancestors: vec!["/pod".into()],
            all_ancestors: true,
            levels: vec![look, look],
            quiet_since: vec![now, quiet_since],
            ..Subject::default()
        };
        host.event(Event::Watch(key, Box::new(its)));
        host.event(Event::Above(key, vec![look]));
        host.event(Event::Vanished(key));
        host.log(1000, Some(&format!("/pod/c{key}")), None);
    }
    host.pass(Duration::from_secs(5));
    let causes: Vec<_> = host.announced.iter().map(|(_, record)| record.cause).collect();
    assert_eq!(causes, [Cause::OwnLimit, Cause::Unknown]);
}

#[test]
fn a_kill_soon_after_a_group_above_ran_out_of_memory_is_not_the_nodes_for_sure() {
    let limit = Some(Limit::Bytes(Bytes::mib(64)));
    let own = LevelLook { limit, oom_local: Some(0), oom: Some(0), ..LevelLook::default() };
    for (ooms, age, cause) in [
        (7, 10 * MS, Cause::Unknown),
        (7, Duration::from_secs(3), Cause::Node),
        (0, 10 * MS, Cause::Node),
    ] {
        let mut host = Host::new(false);
        let above = LevelLook { oom_local: Some(ooms), oom: Some(ooms), ..own };
        let its = Subject {
            path: "/pod/c1".into(),
            ancestors: vec!["/pod".into()],
            oom_kill: Some(0),
            levels: vec![own, above],
            ..Subject::default()
        };
        host.event(Event::Watch(1, Box::new(its)));
        host.pass(age);
        let detail = Some(Box::new(Detail { levels: vec![own, above], ..Detail::default() }));
        host.event(Event::Looked(1, Box::new(Look { oom_kill: Some(1), beneath: 0, detail })));
        host.pass(Duration::from_secs(1));
        assert_eq!(host.announced[0].1.cause, cause, "{ooms} {age:?}");
    }
}

#[test]
fn a_kill_that_only_the_log_tells_of_is_judged_by_a_signal_that_is_heard_after_it() {
    let mut host = Host::new(true);
    for key in [1, 2] {
        host.watch(key);
        host.gone(key);
        host.event(Event::Vanished(key));
        // Without the line that says whose limit it was, which is rate-limited.
        host.log(1000, Some(&format!("/pod/c{key}")), None);
        host.event(Event::RanOut(key));
    }
    // The group above was out of memory.
    host.event(Event::Signal(2, 1));
    host.pass(Duration::from_secs(3));
    let causes: Vec<_> = host.announced.iter().map(|(_, record)| record.cause).collect();
    assert_eq!(causes, [Cause::OwnLimit, Cause::AncestorLimit]);
    assert!(host.announced.iter().all(|(_, record)| record.kills == 1));
}

#[test]
fn a_kill_in_a_group_beneath_is_the_containers() {
    let mut host = Host::new(true);
    host.watch(1);
    host.log(77, Some("/pod/c1/a/b"), Some("/pod/c1/a"));
    let record = host.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
    assert_eq!(record.limit_cgroup.as_deref(), Some("/pod/c1/a"));
    assert_eq!(record.victim.unwrap().cgroup.as_deref(), Some("/pod/c1/a/b"));
    // Not that of a group whose name only begins alike.
    host.log(78, Some("/pod/c11"), Some("/pod/c11"));
    host.pass(Duration::from_secs(1));
    assert_eq!(host.announced.len(), 1);
}

#[test]
fn a_line_before_its_counter_is_recorded_once() {
    let mut host = Host::new(true);
    host.watch(1);
    host.log(5, Some("/pod/c1"), Some("/pod/c1"));
    host.pass(50 * MS);
    assert_eq!(host.written.len(), 1);
    // The counter's late rise is that kill, the next one another.
    host.kill(1);
    host.event(Event::Signal(1, 0));
    host.pass(Duration::from_secs(1));
    assert_eq!(host.written.len(), 1);
    host.kill(1);
    host.event(Event::Signal(1, 0));
    host.pass(Duration::from_secs(1));
    assert_eq!(host.written.len(), 2);
}

#[test]
fn an_unreadable_log_leaves_the_victim_unknown_and_says_why() {
    let mut host = Host::new(false);
    host.watch(1);
    host.event(Event::Signal(1, 0));
    host.kill(1);
    let record = host.only();
    assert_eq!((record.cause, record.kills), (Cause::OwnLimit, 1));
    assert!(record.victim.is_none());
    assert!(record.unknown[0].contains("kernel log cannot be read"), "{:?}", record.unknown);
}

#[test]
fn a_clock_that_jumps_changes_the_time_of_day_and_nothing_else() {
    let run = |wall: [u64; 3]| {
        let mut host = Host::new(true);
        host.watch(1);
        for wall_ms in wall {
            host.wall_ms = wall_ms;
            host.event(Event::Signal(1, 0));
            host.kill(1);
            host.pass(MS);
            host.log(5, Some("/pod/c1"), Some("/pod/c1"));
            host.pass(Duration::from_secs(2));
        }
        let records = host.announced.into_iter().map(|(_, record)| record);
        records.collect::<Vec<Record>>()
    };
    let (steady, jumping) = (run([1000, 3000, 5000]), run([u64::MAX, 0, 4_000_000_000_000]));
    assert_eq!((steady.len(), jumping.len()), (3, 3));
    for (a, b) in steady.into_iter().zip(jumping) {
        assert_eq!(a, Record { wall_ms: a.wall_ms, ..b });
    }
}

#[test]
fn a_kill_with_no_limit_in_the_way_is_the_nodes() {
    let mut host = Host::new(false);
    host.watch(1);
    host.kill(1);
    let look = host.look(1);
    host.event(look);
    assert_eq!(host.only().cause, Cause::Node);
    for (room, order, cause) in [
        (None, 0, Cause::Node),
        (Some(false), 2, Cause::Node),
        (Some(true), 0, Cause::Node),
        (Some(true), 2, Cause::Fragmentation),
    ] {
        let mut host = Host::new(true);
        host.watch(1);
        host.kill(1);
        let killed = Killed {
            pid: 3,
            comm: b"x".to_vec(),
            oom_score_adj: Some(1000),
            memcg: Some(false),
            constraint: Some(Constraint::None),
            oom_memcg: None,
            task_memcg: Some(b"/pod/c1".to_vec()),
            order: Some(order),
        };
        let from = From::KernelLog;
        host.killed(LogKill { killed, from, group: None, node_has_room: room });
        assert_eq!(host.only().cause, cause, "{room:?} {order}");
    }
}

#[test]
fn a_group_of_which_nothing_could_be_read_is_not_said_to_have_met_no_limit() {
    let mut host = Host::new(false);
    host.watch(1);
    let look = Look { oom_kill: Some(1), beneath: 0, detail: Some(Box::default()) };
    host.event(Event::Looked(1, Box::new(look)));
    host.event(Event::Vanished(1));
    let record = host.only();
    assert_eq!((record.cause, record.kills), (Cause::Unknown, 1));
    // What v2 says in the same file as how many were killed.
    let mut host = Host::new(false);
    host.watch(1);
    let own = LevelLook { oom: Some(1), ..LevelLook::default() };
    let detail = Some(Box::new(Detail { levels: vec![own], ..Detail::default() }));
    let look = Look { oom_kill: Some(1), beneath: 0, detail };
    host.event(Event::Looked(1, Box::new(look)));
    host.event(Event::Vanished(1));
    assert_eq!(host.only().cause, Cause::OwnLimit);
}

#[test]
fn a_hostile_name_comes_out_escaped() {
    let mut host = Host::new(true);
    host.watch(1);
    host.kill(1);
    let killed = Killed {
        pid: 3,
        comm: b"\x1b]0;x\x07\\n\xff\n".to_vec(),
        oom_score_adj: None,
        memcg: Some(true),
        constraint: None,
        oom_memcg: None,
        task_memcg: Some(b"/pod/c1".to_vec()),
        order: None,
    };
    host.killed(LogKill { killed, from: From::KernelLog, group: None, node_has_room: None });
    let comm = host.only().victim.unwrap().comm.unwrap();
    assert_eq!(comm, r"\x1b]0;x\x07\x5cn\xff\x0a");
}

#[test]
fn what_a_former_process_announced_is_not_announced_again() {
    let mut host = Host::new(true);
    host.watch(1);
    host.counters.insert(1, 5);
    // Watched anew, with 4 of the 5 known.
    let subject = Subject { oom_kill: Some(4), path: "/x".into(), ..Subject::default() };
    host.event(Event::Watch(2, Box::new(subject)));
    host.failcnt.insert(2, vec![0]);
    host.counters.insert(2, 5);
    let look = host.look(2);
    host.event(look);
    host.pass(Duration::from_secs(1));
    let mine: Vec<_> = host.announced.iter().filter(|(key, _)| *key == 2).collect();
    assert_eq!(mine.len(), 1);
}

#[test]
fn leaving_settles_what_is_open_and_forgets() {
    let mut host = Host::new(true);
    host.watch(1);
    host.event(Event::Unwatch(1));
    assert_eq!(host.forgotten, [1]);
    host.watch(2);
    host.event(Event::Signal(2, 0));
    host.kill(2);
    host.pass(MS);
    host.log(8, Some("/pod/c2"), Some("/pod/c2"));
    host.event(Event::Unwatch(2));
    assert_eq!((host.announced.len(), &host.forgotten[..]), (1, &[1, 2][..]));
}

//! OOM records on disk: which are kept, and what is said of those that are not.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

use cgshim::core::oom::{Breakdown, Cause, Record};
use cgshim::oom::{Found, LONGEST, MOST_RECORDS, Store, all, boot_ms, directory, find};
use std::collections::BTreeMap;
use std::path::Path;

fn record(n: u64, boot_ms: u64) -> Record {
    Record {
        schema: 1,
        id: format!("oom-{boot_ms:010x}-7-{n:x}"),
        settled: true,
        wall_ms: 0,
        boot_ms,
        name: format!("name{n}"),
        container: format!("{n:08x}c0ffee0123456789"),
        cgroup: format!("/sys/fs/cgroup/memory/docker/{n:08x}c0ffee0123456789"),
        generation: n,
        kills: 1,
        oom_kill_counter: Some(1),
        cause: Cause::OwnLimit,
        unknown: Vec::new(),
        limit_cgroup: None,
        victim: None,
        init_survived: None,
        usage_bytes: None,
        peak_bytes: None,
        limit_declared_bytes: None,
        limit_in_force_bytes: None,
        ancestor_limit_bytes: None,
        breakdown: Breakdown::default(),
        signals: 1,
        deeds: Vec::new(),
        cgshim_could_be_cause: false,
        from: BTreeMap::new(),
    }
}

/// All names that a record goes by.
fn names(record: &Record) -> Vec<String> {
    let whole = [&record.id, &record.name, &record.container, &record.cgroup];
    let short = [8, 12, 13].map(|length| record.container[..length].to_owned());
    whole.into_iter().cloned().chain(short).collect()
}

fn is_expired(run_dir: &Path, record: &Record) {
    for name in names(record) {
        assert!(matches!(find(run_dir, &name).unwrap(), Found::Expired), "{name}");
    }
}

#[test]
fn of_ten_thousand_records_the_newest_thousand_answer_older_ones_are_expired_and_others_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let now = boot_ms();
    let records: Vec<Record> = (0..10_000).map(|n| record(n, now + n)).collect();
    for record in &records {
        store.write(record).unwrap();
    }
    assert_eq!(all(dir.path()).unwrap().len(), MOST_RECORDS);
    for record in records.iter().rev().take(MOST_RECORDS).step_by(100) {
        for name in names(record) {
            match find(dir.path(), &name).unwrap() {
                Found::Records(found) => assert_eq!(found, std::slice::from_ref(record)),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
    // The list of those that are gone is bounded as well, to some 16,000 of them.
    for record in records[..records.len() - MOST_RECORDS].iter().step_by(500) {
        is_expired(dir.path(), record);
    }
    assert!(matches!(find(dir.path(), "name10000").unwrap(), Found::Unknown));
    assert!(matches!(find(dir.path(), "nobody").unwrap(), Found::Unknown));
    let list = std::fs::metadata(directory(dir.path()).join("expired")).unwrap().len();
    assert!(list <= 8 * (131_072 + 1), "{list}");
}

#[test]
fn a_record_of_more_than_an_hour_ago_is_expired() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let hour = u64::try_from(LONGEST.as_millis()).unwrap();
    let now = boot_ms();
    let (first, second, third) = (record(1, now), record(2, now + hour), record(3, now + hour + 1));
    store.write(&first).unwrap();
    store.write(&second).unwrap();
    assert!(
        matches!(find(dir.path(), &first.id).unwrap(), Found::Records(_)),
        "an hour is not over"
    );
    store.write(&third).unwrap();
    is_expired(dir.path(), &first);
    assert!(matches!(find(dir.path(), &second.id).unwrap(), Found::Records(_)));
}

#[test]
fn what_died_while_it_wrote_leaves_nothing_that_is_taken_for_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let whole = record(1, boot_ms());
    store.write(&whole).unwrap();
    let at = directory(dir.path());
    for name in [".oom-0000000001-7-2.json", "oom-0000000001-7-3.json", "oom-x.json", "other"] {
        std::fs::write(at.join(name), "{\"schema\":1,").unwrap();
    }
    assert_eq!(all(dir.path()).unwrap(), [whole]);
}

//! What a journal gives back: all that was written, or that it is damaged.

use super::*;
use crate::core::{Totals, WatermarkSpec};
use cgroupfs::memory::Version;
use cgroupfs::{Bytes, Limit};
use proptest::prelude::*;
use std::time::Duration;

fn record(n: u64) -> Record {
    Record {
        identity: Identity {
            id: format!("container-{n}"),
            path: format!("kubepods/besteffort/pod{n}/{}", "0123456789abcdef".repeat(4)),
            version: Version::V1,
            inode: 4711 + n,
            pid: 1234,
            start_time: 987_654_321,
        },
        terms: Terms {
            request: Bytes::mib(n),
            watermarks: WatermarkSpec::Ratio { high: 9200, low: 8600 },
            class: Class::Burstable,
            oom: OomPolicy::Hold(Duration::from_secs(30)),
            throttle: true,
            strict: true,
            ..Terms::of(Limit::Bytes(Bytes::mib(256)))
        },
        counters: Counters {
            totals: Totals { rounds: n, freed: Bytes::mib(n), ..Totals::default() },
            oom_kill_seen: 3,
            oom_kills: 2,
            ..Counters::default()
        },
    }
}

fn step(n: u64) -> Step {
    Step {
        file: StepFile::Limit,
        declared: Limit::Bytes(Bytes::mib(256)),
        written: Bytes::mib(n),
        deadline: Deadline(n),
    }
}

struct Dir {
    dir: tempfile::TempDir,
}

impl Dir {
    fn new() -> Dir {
        Dir { dir: tempfile::tempdir().unwrap() }
    }

    fn lock(&self) -> RunDir {
        RunDir::lock(self.dir.path(), Duration::ZERO).unwrap()
    }

    fn open(&self) -> (Journal, Opened) {
        Journal::open(&self.lock()).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join(FILE)
    }
}

#[test]
fn what_was_written_is_there_after_the_writer_is_gone() {
    let dir = Dir::new();
    let (journal, opened) = dir.open();
    assert!(opened.found.is_empty() && opened.remarks.is_empty());
    let one = journal.insert(&record(1)).unwrap();
    let two = journal.insert(&record(2)).unwrap();
    two.begin_step(step(100));
    one.begin_swappiness(Swappiness { before: 60, deadline: Deadline(5) });
    one.begin_freeze(Freeze { kind: FreezerKind::V1Child, deadline: Deadline(6) });
    one.begin_hold(Deadline(7));
    let reader = Reader::open(dir.dir.path()).unwrap();
    assert_eq!(reader.records().len(), 2);
    assert_eq!(reader.writer(), std::process::id() as i32);
    drop((journal, one, two));
    let (journal, opened) = dir.open();
    assert!(opened.remarks.is_empty());
    let found: Vec<_> = opened.found.iter().map(|found| &found.record).collect();
    assert_eq!(found, [&record(1), &record(2)]);
    assert_eq!(opened.found[1].in_flight.step, Some(step(100)));
    let InFlight { swappiness, freeze, hold, .. } = opened.found[0].in_flight;
    assert_eq!(swappiness, Some(Swappiness { before: 60, deadline: Deadline(5) }));
    assert_eq!(freeze, Some(Freeze { kind: FreezerKind::V1Child, deadline: Deadline(6) }));
    assert_eq!(hold, Some(Deadline(7)));
    // And it goes on from there.
    for found in opened.found {
        for _ in 0..3 {
            found.slot.end_step();
            found.slot.end_swappiness();
            found.slot.end_freeze();
            found.slot.end_hold();
        }
        assert!(!found.slot.in_flight().any());
        journal.remove(found.slot);
    }
    assert!(Reader::open(dir.dir.path()).unwrap().records().is_empty());
    journal.insert(&record(3)).unwrap();
    assert_eq!(Reader::open(dir.dir.path()).unwrap().records()[0].0, record(3));
}

#[test]
fn the_groups_beneath_a_hold_are_known_up_to_the_newest_until_it_ends() {
    let journal = Journal::private().unwrap();
    let slot = journal.insert(&record(1)).unwrap();
    let beneath = || slot.in_flight().beneath;
    assert_eq!(beneath(), None);
    for (seen, known) in [
        (Some(5), Some(5)),
        (Some(7), Some(7)),
        (Some(9), Some(9)),
        (None, Some(u64::MAX)),
        (None, Some(u64::MAX)),
        // They are fewer again.
        (Some(11), Some(11)),
        (Some(13), Some(13)),
    ] {
        slot.see_to_beneath(seen);
        assert_eq!(beneath(), known);
    }
    // One that is torn, as by a death in between, leaves the other.
    slot.begin_hold(Deadline(7));
    let torn = layout::slot_at(slot.index) + layout::BENEATH[0].at + 1;
    journal.map.words()[torn].store(99, Ordering::SeqCst);
    assert!(beneath().is_some_and(|seen| seen == 11 || seen == 13));
    assert!(!slot.in_flight().damaged);
    slot.end_hold();
    assert_eq!((beneath(), slot.in_flight().any()), (None, false));
}

#[test]
fn a_released_container_is_not_gone_on_with_and_what_stands_is_known() {
    let dir = Dir::new();
    let (journal, _) = dir.open();
    let slot = journal.insert(&record(1)).unwrap();
    slot.begin_freeze(Freeze { kind: FreezerKind::V1Child, deadline: Deadline(6) });
    // Somebody still has it, as the writer dies.
    journal.remove(slot.clone());
    std::mem::forget(slot);
    drop(journal);
    let (journal, opened) = dir.open();
    let [found] = <[Found; 1]>::try_from(opened.found).unwrap();
    assert!(found.released && found.in_flight.freeze.is_some());
    journal.remove(found.slot);
    let again = journal.insert(&record(2)).unwrap();
    drop((again, journal));
    let (_, opened) = dir.open();
    assert!(opened.found.iter().all(|found| !found.released) && opened.found.len() == 1);
}

#[test]
fn a_slot_is_not_anothers_before_everybody_has_let_go_of_it() {
    let journal = Journal::private().unwrap();
    let old = journal.insert(&record(1)).unwrap();
    let worker = old.clone();
    journal.remove(old);
    let new = journal.insert(&record(2)).unwrap();
    worker.begin_step(step(1));
    assert!(!new.in_flight().any());
    worker.end_step();
    drop(worker);
    let third = journal.insert(&record(3)).unwrap();
    assert!(third.generation() > new.generation());
    assert_eq!(third.record(), Some(record(3)));
}

#[test]
fn a_full_journal_refuses_and_loses_nothing() {
    let journal = Journal::private().unwrap();
    let slots: Vec<_> =
        (0..PRIVATE_SLOTS as u64).map(|n| journal.insert(&record(n)).unwrap()).collect();
    assert!(matches!(journal.insert(&record(99)), Err(JournalError::Full { slots: 64 })));
    for (n, slot) in slots.iter().enumerate() {
        assert_eq!(slot.record(), Some(record(n as u64)));
    }
}

#[test]
fn what_has_no_room_is_refused_by_name() {
    let journal = Journal::private().unwrap();
    let mut long = record(1);
    long.identity.path = "x".repeat(641);
    let error = journal.insert(&long).unwrap_err().to_string();
    assert!(error.contains("path") && error.contains("641") && error.contains("640"), "{error}");
    let mut long = record(1);
    long.identity.id = "ä".repeat(65);
    let error = journal.insert(&long).unwrap_err().to_string();
    assert!(error.contains("id") && error.contains("130"), "{error}");
    long.identity.id = "ä".repeat(64);
    long.identity.path = "y".repeat(640);
    let slot = journal.insert(&long).unwrap();
    assert_eq!(slot.record(), Some(long));
}

#[test]
fn a_second_writer_is_refused_with_the_pid_of_the_first() {
    let dir = Dir::new();
    let first = dir.lock();
    let error = RunDir::lock(dir.dir.path(), Duration::from_secs(5)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, JournalError::Locked { .. }), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    drop(first);
    dir.lock();
}

#[test]
fn another_layout_is_moved_aside_by_name() {
    let dir = Dir::new();
    drop(dir.open());
    let file = File::options().write(true).open(dir.file()).unwrap();
    file.write_all_at(&7u64.to_le_bytes(), header::LAYOUT as u64 * 8).unwrap();
    assert!(Reader::open(dir.dir.path()).unwrap_err().to_string().contains("layout 7"));
    let (_, opened) = dir.open();
    assert!(opened.remarks[0].contains("journal.layout-7"), "{:?}", opened.remarks);
    assert!(dir.dir.path().join("journal.layout-7").exists());
}

#[test]
fn another_boots_journal_is_of_no_interest() {
    let dir = Dir::new();
    let (journal, _) = dir.open();
    journal.insert(&record(1)).unwrap();
    let mut words = [0; header::CHECK + 1];
    for (n, word) in words.iter_mut().enumerate() {
        *word = journal.map.words()[n].load(Ordering::Relaxed);
    }
    words[header::BOOT_ID] ^= 1;
    journal.map.words()[header::BOOT_ID].store(words[header::BOOT_ID], Ordering::Relaxed);
    journal.map.words()[header::CHECK].store(header_check(&words), Ordering::Relaxed);
    drop(journal);
    let (_, opened) = dir.open();
    assert!(opened.found.is_empty() && opened.remarks.is_empty());
}

#[test]
fn a_writer_that_dies_between_any_two_stores_leaves_one_of_two_copies_whole() {
    // What a death leaves is a prefix of the stores: here the check taken away, and some of the payload.
    let journal = Journal::private().unwrap();
    let slot = journal.insert(&record(1)).unwrap();
    let mut terms = record(1).terms;
    for round in 0..4u64 {
        terms.request = Bytes(round);
        slot.update_terms(&terms);
        for copy in 0..2 {
            let at = layout::slot_at(0) + layout::TERMS.copy(copy);
            let words = &journal.map.words()[at..at + layout::TERMS.payload + 2];
            let before: Vec<u64> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
            for dead_after in 0..words.len() {
                words[words.len() - 1].store(0, Ordering::Relaxed);
                for word in &words[..dead_after.min(words.len() - 1)] {
                    word.store(!0, Ordering::Relaxed);
                }
                let found = slot.record().unwrap().terms;
                assert!(found.request.0 == round || found.request.0 + 1 == round || round == 0);
            }
            for (word, before) in words.iter().zip(before) {
                word.store(before, Ordering::Relaxed);
            }
        }
        assert_eq!(slot.record().unwrap().terms, terms);
    }
}

#[test]
fn readers_never_see_half_of_a_record() {
    let journal = Journal::private().unwrap();
    let slot = journal.insert(&record(1)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                n += 1;
                let mut counters =
                    Counters { oom_kills: n, oom_kill_seen: n, ..Counters::default() };
                counters.totals.rounds = n;
                slot.update_counters(&counters);
                let written = Bytes(n);
                slot.begin_step(Step { written, deadline: Deadline(n), ..step(0) });
                slot.end_step();
            }
        });
        // Also when an assertion fails: the scope waits for the writer.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let _stop = Stop(&stop);
        let mut last = 0;
        for _ in 0..20_000 {
            let counters = slot.record().expect("one copy is whole at any time").counters;
            assert!(counters.oom_kills == counters.oom_kill_seen || counters.oom_kills == 2);
            assert!(counters.totals.rounds >= last || last == 1);
            last = counters.totals.rounds;
            let in_flight = slot.in_flight();
            assert!(!in_flight.damaged);
            if let Some(step) = in_flight.step {
                assert_eq!(step.written.0, step.deadline.0);
            }
        }
    });
}

#[test]
fn beginning_and_ending_cost_next_to_nothing() {
    let journal = Journal::private().unwrap();
    let slot = journal.insert(&record(1)).unwrap();
    let start = std::time::Instant::now();
    const STEPS: u32 = 200_000;
    for _ in 0..STEPS {
        slot.begin_step(std::hint::black_box(step(7)));
        slot.end_step();
    }
    let each = start.elapsed() / STEPS;
    println!("a step in the journal: {each:?}");
    assert!(each < Duration::from_micros(20), "{each:?}");
}

fn damage(file: &Path, at: u64, xor: u8) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ xor], at).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_flipped_bit_never_makes_another_record(
        at in 0u64..layout::file_bytes(3), bit in 0u32..8, stands: bool,
    ) {
        let dir = Dir::new();
        let (journal, _) = dir.open();
        for n in 0..3 {
            let slot = journal.insert(&record(n)).unwrap();
            if stands {
                slot.begin_step(step(n + 1));
            }
        }
        drop(journal);
        damage(&dir.file(), at, 1 << bit);
        let (_, opened) = dir.open();
        for found in &opened.found {
            let n = found.record.identity.inode - 4711;
            prop_assert_eq!(&found.record, &record(n));
            if let Some(found) = found.in_flight.step {
                prop_assert_eq!(found, step(n + 1));
            }
        }
        // A slot's own word may be what was hit: then its parts do not check.
        prop_assert!(opened.found.len() == 3 || !opened.remarks.is_empty() || at < 4096
            || opened.found.len() == 2);
    }

    #[test]
    fn any_content_is_survived(content in prop::collection::vec(any::<u8>(), 0..9000), ours: bool) {
        let dir = Dir::new();
        let (journal, _) = dir.open();
        drop(journal);
        if ours {
            // A good header, and anything behind it.
            let file = File::options().write(true).open(dir.file()).unwrap();
            file.write_all_at(&content, 64).unwrap();
        } else {
            std::fs::write(dir.file(), &content).unwrap();
        }
        if let Ok(reader) = Reader::open(dir.dir.path()) {
            prop_assert!(reader.records().is_empty());
        }
        let (journal, opened) = dir.open();
        prop_assert!(opened.found.is_empty());
        prop_assert!(ours || !opened.remarks.is_empty());
        journal.insert(&record(1)).unwrap();
    }

    #[test]
    fn a_journal_cut_short_is_moved_aside(len in 0u64..layout::file_bytes(SLOTS)) {
        let dir = Dir::new();
        let (journal, _) = dir.open();
        journal.insert(&record(1)).unwrap();
        drop(journal);
        File::options().write(true).open(dir.file()).unwrap().set_len(len).unwrap();
        prop_assert!(Reader::open(dir.dir.path()).is_err());
        let (_, opened) = dir.open();
        prop_assert!(opened.found.is_empty());
        prop_assert!(opened.remarks[0].contains("journal.damaged"));
    }
}

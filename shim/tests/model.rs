//! The core over the model kernel, in virtual time: the laws, for each load, with and without it.
#![allow(clippy::unwrap_used)]

mod bed;

use bed::{Bed, DECLARED, OPERATOR, group_on, mib};
use cgroupfs::memory::Version;
use cgroupfs::{Bytes, Limit};
use cgroupfs_model::{Config, Host, Load};
use cgshim::core::{Event, Notice};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn loads() -> Vec<(&'static str, Vec<Load>)> {
    vec![
        ("anon", vec![Load::anon(mib(200), mib(200))]),
        ("anon over the limit", vec![Load::anon(mib(100), mib(400))]),
        ("stream", vec![Load::stream(mib(400))]),
        ("stream and anon", vec![Load::stream(mib(200)), Load::anon(mib(40), mib(150))]),
        ("dirty", vec![Load::dirty(mib(200))]),
        ("circles", vec![Load::circles(mib(400), mib(240))]),
        ("hold", vec![Load::hold()]),
    ]
}

fn configs() -> Vec<Config> {
    let mut all = Vec::new();
    for preset in [Config::v1_6_18(), Config::v1_5_10(), Config::v2_6_1()] {
        for swap in [0, mib(1024)] {
            all.push(Config { swap, pages_per_pass: 8, ..preset.clone() });
        }
    }
    all
}

const TIME: Duration = Duration::from_secs(5);

#[test]
fn no_load_is_killed_with_the_engine_that_is_not_killed_without() {
    for config in configs() {
        for (name, loads) in loads() {
            let alone = Host::new(config.clone());
            group_on(&alone, config.version, &loads);
            alone.advance(TIME);
            let mut bed = Bed::new(config.clone(), &loads);
            // The declared limit is looked at after every tick.
            bed.run(TIME);
            let (with, without) = (bed.host.lock().oom_kills(), alone.lock().oom_kills());
            assert!(with <= without, "{name}: {with} {without} {config:?}");
        }
    }
}

#[test]
fn stepped_values_are_never_under_the_floor() {
    for config in configs().into_iter().filter(|config| config.version == Version::V1) {
        for (name, loads) in loads() {
            let mut bed = Bed::new(config.clone(), &loads);
            bed.run(TIME);
            for (value, floor) in bed.floors.lock().unwrap().iter() {
                assert!(value >= floor, "{name}: {value} {floor}");
            }
        }
    }
}

#[test]
fn a_stream_meets_its_limit_far_less_often_with_the_engine() {
    for config in [Config::v1_6_18(), Config::v2_6_1()] {
        let loads = [Load::stream(mib(100))];
        let alone = Host::new(config.clone());
        group_on(&alone, config.version, &loads);
        alone.advance(TIME);
        let mut bed = Bed::new(config.clone(), &loads);
        // A charge that meets the lowered limit counts too: here the window is as it is measured.
        bed.window = Duration::from_micros(20);
        bed.run(TIME);
        let (with, without) = (bed.host.lock().direct_reclaims(), alone.lock().direct_reclaims());
        assert!(with * 10 < without, "{with} {without} {:?}", bed.core.totals());
        assert!(bed.core.totals().freed > Bytes::mib(100));
    }
}

#[test]
fn an_idle_group_is_left_alone() {
    let mut bed = Bed::new(Config::v1_6_18(), &[Load::hold()]);
    bed.run(TIME);
    assert_eq!(bed.core.totals().rounds, 0);
    assert_eq!(bed.lowest.load(Ordering::SeqCst), u64::MAX);
}

#[test]
fn a_foreign_write_wins() {
    for config in [Config::v1_6_18(), Config::v2_6_1()] {
        let mut bed = Bed::new(config.clone(), &[Load::stream(mib(200))]);
        bed.run(TIME);
        let file = match config.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        bed.host.lock().write(OPERATOR, bed.group, file, b"192M").unwrap();
        let now = Limit::Bytes(Bytes::mib(192));
        bed.send(Event::LimitChanged(now));
        assert_eq!(bed.core.declared(), now);
        bed.run(TIME);
        assert_eq!(bed.memory.limit().unwrap(), now);
        assert!(bed.notices.contains(&Notice::Adopted(DECLARED, now)));
    }
}

#[test]
fn a_foreign_write_in_the_window_of_a_step_is_left_standing_and_adopted() {
    let mut bed = Bed::new(Config::v1_6_18(), &[Load::stream(mib(200))]);
    bed.intruder = Some("240M");
    bed.run(Duration::from_secs(3));
    assert_eq!(bed.intruder, None, "no step was made");
    assert_eq!(bed.core.declared(), Limit::Bytes(Bytes::mib(240)));
    assert_eq!(bed.memory.limit().unwrap(), bed.core.declared());
}

#[test]
fn release_leaves_the_declared_limit() {
    let mut bed = Bed::new(Config::v1_6_18(), &[Load::stream(mib(200))]);
    bed.run(TIME);
    bed.send(Event::Release);
    assert!(bed.forgotten);
    assert_eq!(bed.memory.limit().unwrap(), DECLARED);
}

//! The kernel's own `memory.high` beside its formula: a table for README.md.
//!
//!     ci/vm/tests v2-6.1-nothp host_native_curve -- --ignored --exact table --nocapture
//!     ci/vm/tests v2-6.1 host_native_curve -- --ignored --exact huge_pages --nocapture

#![allow(clippy::unwrap_used)] // helpers outside of #[test]
#[ignore = "a measurement of three minutes"]
fn table() {
    measure("table", &ROWS, None);
}

/// The same in charges of 2 MiB: where steps are that large, when a round of them is due is all that counts.
#[test]
#[ignore = "a measurement of three minutes"]
fn huge_pages() {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    if !std::fs::read_to_string(FILE).is_ok_and(|said| said.contains("[always]")) {
        return skip("huge_pages", "not for everybody on this machine");
    }
    measure("huge_pages", &HUGE_ROWS, Some(HUGE));
}

fn measure(test: &str, rows: &[Row], unit: Option<u64>) {
    let Some(ground) = Ground::new(test) else { return };
    if ground.v1() {
        return skip(test, "cgroup v1: ci/bench-throttle measures what is emulated");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let jiffy = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    let curve = Curve::new(Curve::batch_of(&release), jiffy.into());
    println!("Linux {}", release.trim());
    let unit = unit.unwrap_or(curve.batch());
    for (high, growers, pace) in rows.iter().copied() {
        let name = format!("g{high}-{growers}-{pace}");
        let group = ground.group(&name);
        let memory = memory(&group);
        memory.set_limit(Limit::Bytes(Bytes::mib(1024))).unwrap();
        without_swap(&group);
        let mut loads: Vec<Child> = (0..growers).map(|_| grower(&*group, pace)).collect();
        std::thread::sleep(Duration::from_millis(300));
        memory.set_high(Limit::Bytes(Bytes::mib(high))).unwrap();
        for load in &mut loads {
            load.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }
        // The formula begins at high.
        let start = Instant::now();
        while memory.usage().unwrap() < Bytes::mib(high) {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        let start = Instant::now();
        let mut row = String::new();
        for at in AT {
            std::thread::sleep(Duration::from_secs(at).saturating_sub(start.elapsed()));
            let over = Curve::overage(memory.usage().unwrap(), Bytes::mib(high)) * 100.0;
            let bytes = (pace > 0).then_some(pace * MIB);
            let time = Duration::from_secs(at);
            let formula = curve.overage_after(Bytes::mib(high), growers, bytes, unit, time) * 100.0;
            row += &format!("{over:.1} ({formula:.1}), ");
        }
        let pace = if pace == 0 { "memset".into() } else { format!("{pace} MiB/s") };
        println!("| {high} MiB, {growers} × {pace} | {} % |", row.trim_end_matches(", "));
        for mut load in loads {
            let _ = load.kill();
            let _ = load.wait();
        }
        drop((memory, group));
        ground.dir.remove_child(&name, Duration::from_secs(5)).unwrap();
    }
}

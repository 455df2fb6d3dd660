//! A record in words for somebody who was woken up by it, and what to do next.

use crate::report::fmt;
use cgshim::api::message::View;
use cgshim::core::oom::{Cause, From, Record};
use std::fmt::Write;

/// All that a record says.
pub(super) fn explain(record: &Record, now_boot_ms: u64) -> String {
    let mut text = String::new();
    let ago = now_boot_ms.saturating_sub(record.boot_ms) as f64;
    let _ = writeln!(
        text,
        "{}: {}, {} ago ({}).",
        record.name,
        headline(record),
        fmt::duration_ms(ago),
        utc(record.wall_ms)
    );
    let _ = writeln!(text, "\n  {}", who(record));
    let _ = writeln!(text, "  {}", how_much(record));
    let _ = writeln!(text, "  {}", our_part(record));
    for unknown in &record.unknown {
        let _ = writeln!(text, "  Not known: {unknown}.");
    }
    let _ = writeln!(text, "\nWhat to do: {}", next(record));
    let _ = writeln!(
        text,
        "\nRecord {}, {}{}",
        record.id,
        record.cgroup,
        if record.settled { "" } else { "; more may still be added" }
    );
    let sources = sources(record);
    if !sources.is_empty() {
        let _ = writeln!(text, "By: {sources}");
    }
    text
}

fn headline(record: &Record) -> String {
    let limit = |bytes: Option<u64>| {
        bytes.map_or_else(String::new, |bytes| format!(" of {}", fmt::bytes(bytes)))
    };
    match record.cause {
        Cause::OwnLimit => match &record.limit_cgroup {
            Some(path) if !record.cgroup.ends_with(path.as_str()) => {
                format!("out of memory at the limit of {path}, a group in it")
            }
            _ => format!("out of memory at its own limit{}", limit(record.limit_in_force_bytes)),
        },
        Cause::AncestorLimit => format!(
            "out of memory at the limit{} of {}, which it shares with others",
            limit(record.ancestor_limit_bytes),
            record.limit_cgroup.as_deref().unwrap_or("a group that it is in"),
        ),
        Cause::Node => "the host was out of memory".into(),
        Cause::NumaOrCpuset => {
            "the NUMA nodes that it may use (cpuset or memory policy) were out of memory".into()
        }
        Cause::Fragmentation => {
            "the host had memory, but not in one piece as large as the kernel needed".into()
        }
        Cause::WokeWithoutKill => {
            format!(
                "out of memory at its limit{}, but nobody was killed",
                limit(record.limit_in_force_bytes)
            )
        }
        Cause::Unknown => "killed for want of memory".into(),
    }
}

/// The victim, if that is known.
pub(super) fn victim(record: &Record) -> Option<String> {
    let victim = record.victim.as_ref()?;
    Some(match &victim.comm {
        Some(comm) => format!("{} ({comm})", victim.pid),
        None => victim.pid.to_string(),
    })
}

fn who(record: &Record) -> String {
    let mut text = match (victim(record), record.kills) {
        (Some(victim), _) => format!("The kernel killed process {victim}"),
        (None, 0) => "Nobody is known to have been killed".into(),
        (None, 1) => "The kernel killed one process".into(),
        (None, kills) => format!("The kernel killed {kills} processes"),
    };
    if let Some(adj) = record.victim.as_ref().and_then(|victim| victim.oom_score_adj)
        && adj != 0
    {
        let _ = write!(text, ", oom_score_adj {adj}");
    }
    text += match record.init_survived {
        Some(true) => "; the container's main process lives on.",
        Some(false) => "; the container's main process is gone.",
        None => ".",
    };
    text
}

fn how_much(record: &Record) -> String {
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), fmt::bytes);
    let parts = record.breakdown;
    let mut list: Vec<String> = [
        ("anonymous", parts.anon_bytes),
        ("files", parts.file_bytes),
        ("of that tmpfs and shared", parts.shmem_bytes),
        ("dirty", parts.dirty_bytes),
        ("kernel", parts.kernel_bytes),
        ("in swap", parts.swap_bytes),
    ]
    .into_iter()
    .filter_map(|(what, bytes)| Some(format!("{what} {}", fmt::bytes(bytes?))))
    .collect();
    if list.is_empty() {
        list.push("of what is not known".into());
    }
    let after = record.from.get("breakdown") == Some(&From::FilesAfter);
    let declared = match (record.limit_declared_bytes, record.limit_in_force_bytes) {
        (Some(declared), Some(in_force)) if declared != in_force => {
            format!(" (declared: {})", fmt::bytes(declared))
        }
        _ => String::new(),
    };
    format!(
        "It used {} of {}{declared}, {} at most; {}{}.",
        bytes(record.usage_bytes),
        record.limit_in_force_bytes.map_or_else(|| "no limit".into(), fmt::bytes),
        bytes(record.peak_bytes),
        list.join(", "),
        if after { " (seen after the kill)" } else { "" },
    )
}

fn our_part(record: &Record) -> String {
    let last = record.deeds.first().map(|deed| {
        let how_much =
            deed.bytes.map_or_else(String::new, |bytes| format!(" ({})", fmt::bytes(bytes)));
        format!("{}{how_much} {} ms before", deed.what.replace('_', " "), deed.before_ms)
    });
    match (record.cgshim_could_be_cause, last) {
        (true, last) => format!(
            "cgshim had its limit lowered when memory ran out and may have caused this{}; please report it.",
            last.map_or_else(String::new, |last| format!(": {last}"))
        ),
        (false, Some(last)) => {
            format!("cgshim's last deed: {last}. It had no limit lowered, and is not the cause.")
        }
        (false, None) => "cgshim did nothing to it in the last 10 s.".into(),
    }
}

/// Advice, by cause and by what the memory was.
fn next(record: &Record) -> String {
    let parts = record.breakdown;
    let usage = record.usage_bytes.unwrap_or(0).max(1);
    let share = |bytes: Option<u64>| bytes.unwrap_or(0) as f64 / usage as f64;
    match record.cause {
        Cause::OwnLimit | Cause::WokeWithoutKill if share(parts.shmem_bytes) > 0.4 => format!(
            "{} of it is tmpfs or shared memory, which only goes when files in /dev/shm or on a tmpfs \
             (emptyDir with medium Memory) are deleted. Delete some, give the mount a size, or raise the \
             limit.",
            parts.shmem_bytes.map_or_else(String::new, fmt::bytes)
        ),
        Cause::OwnLimit | Cause::WokeWithoutKill if share(parts.kernel_bytes) > 0.4 => format!(
            "{} of it is the kernel's own (many processes, sockets, or names of files): look at how many \
             there are, or raise the limit.",
            parts.kernel_bytes.map_or_else(String::new, fmt::bytes)
        ),
        Cause::OwnLimit | Cause::WokeWithoutKill if share(parts.dirty_bytes) > 0.2 => format!(
            "{} of it waits to be written to disk: the disk is slower than what writes. Raise the limit, \
             or have the program sync.",
            parts.dirty_bytes.map_or_else(String::new, fmt::bytes)
        ),
        Cause::OwnLimit | Cause::WokeWithoutKill => format!(
            "what it needs at once does not fit under {}. If that is what it should need, raise the limit \
             by a fifth and watch the peak ('cgctl stat'){}; if usage only ever rises, look for a leak.",
            record.limit_in_force_bytes.map_or_else(|| "the limit".into(), fmt::bytes),
            if parts.swap_bytes.unwrap_or(0) == 0 { ", or allow it some swap" } else { "" },
        ),
        Cause::AncestorLimit => format!(
            "the limit is that of {}: see who uses it ('cgctl stat' on the groups in it). Raise that \
             limit, or give the biggest user one of its own.",
            record.limit_cgroup.as_deref().unwrap_or("the group above")
        ),
        Cause::Node => "limits of all containers together are more than the host has, or something \
            outside of them grew. 'cgctl stat' on the top groups shows who; give those without a limit \
            one, or move work to another host. oom_score_adj decides who goes first."
            .into(),
        Cause::NumaOrCpuset => "widen its cpuset.mems (or the program's memory policy), or use less \
            of those nodes: 'numastat -m' shows what each has left."
            .into(),
        Cause::Fragmentation => "compact memory (echo 1 > /proc/sys/vm/compact_memory), and raise \
            vm.min_free_kbytes if it comes back."
            .into(),
        Cause::Unknown => "look at the kernel log around that time: journalctl -k -g oom.".into(),
    }
}

/// That a container is slow for being throttled above its high, and what to do; `None` where it is not.
pub(super) fn throttled(now: &View) -> Option<String> {
    let throttled = now.throttled.filter(|throttled| throttled.pulses > 0)?;
    let (usage, high) = (now.usage_bytes?, now.high_bytes?);
    let above = if usage > high { "above" } else { "not above any more" };
    let ended = match throttled.released {
        0 => String::new(),
        _ => ", until its way out ended that".into(),
    };
    Some(format!(
        "It is throttled: in {:.0} % of the time since it was registered who grows in it was frozen, or waited{ended}. \
         {} of memory are in use, which is {above} its high of {}. What to do: raise that (cgctl set {} high=SIZE), or find \
         what grows",
        throttled.share * 100.0,
        fmt::bytes(usage),
        fmt::bytes(high),
        now.id,
    ))
}

fn sources(record: &Record) -> String {
    let mut by: Vec<String> = Vec::new();
    for (field, from) in &record.from {
        let name = match from {
            From::KernelLog => "the kernel log",
            From::Tracepoint => "the oom:mark_victim tracepoint",
            From::OomKill => "the oom_kill counter",
            From::Eventfd => "the group's OOM signal",
            From::EventsLocal => "memory.events",
            From::Failcnt => "failed charges",
            From::NoLimitHit => "no limit being hit",
            From::FilesBefore => "the group's files before the kill",
            From::FilesAfter => "the group's files after the kill",
            From::Pidfd => "its pidfd",
            From::Procfs => "/proc",
            From::Members => "who was in the group",
            From::Cgshim => "cgshim's own notes",
        };
        by.push(format!("{} {name}", field.replace('_', " ")));
    }
    by.join("; ")
}

/// `2026-11-22 07:02:11 UTC`. Days to a date as in Howard Hinnant's `civil_from_days`.
fn utc(wall_ms: u64) -> String {
    let seconds = wall_ms / 1000;
    let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!(
        "{:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        year_of_era + era * 400 + carry,
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_stalls_above_high_is_said_to() {
        let view = |usage: u64, pulses: u64| -> View {
            serde_json::from_value(serde_json::json!({
                "id": "web", "generation": 1, "cgroup": "/web", "inode": 1, "source": "hook",
                "class": "burstable", "limit_bytes": 600 << 20, "high_bytes": 64 << 20,
                "usage_bytes": usage << 20, "throttle": true, "oom": "kill", "state": "watching",
                "refused": [], "since_ms": 0, "reclaim": cgshim::api::message::Reclaim::default(),
                "oom_kills": 0, "throttled": {"pulses": pulses, "frozen_ms": 900.0, "share": 0.9, "released": 0},
            }))
            .unwrap()
        };
        let said = throttled(&view(70, 9)).unwrap();
        assert!(
            said.contains("90 % of the time")
                && said.contains("which is above its high of 64.0 MiB"),
            "{said}"
        );
        assert!(throttled(&view(30, 9)).unwrap().contains("not above any more"));
        assert_eq!(throttled(&view(70, 0)), None);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_827_696_000), "2000-02-29 12:34:56 UTC");
        assert_eq!(utc(1_795_330_931_000), "2026-11-22 07:02:11 UTC");
    }
}

//! The loads of the demo, cut to the host they run on. Pure but for the types.

use cgroupfs::Bytes;
use std::path::Path;

/// What the host has, as far as the demo cares.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    pub(super) total: Bytes,
    pub(super) swap_free: Bytes,
}

/// Which load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Cold anonymous memory that grows over swap.
    Growth,
    /// A stream of reads, and a thread that allocates beside it.
    Stream,
    /// A hot set, and cold memory that grows beside it.
    Hot,
}

/// One load, ready to run.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) kind: Kind,
    pub(super) limit: Bytes,
    /// `--size`: all that is live, or the length of the file.
    pub(super) size: Bytes,
    /// `--rate`; 0 is as fast as it can.
    pub(super) rate: Bytes,
    pub(super) seconds: f64,
    /// The runs: whether with the engine.
    pub(super) order: &'static [bool],
}

/// A load that cannot run here: why, and what to do about it.
#[derive(Debug, Clone)]
pub(super) struct Skip {
    pub(super) kind: Kind,
    pub(super) why: String,
    pub(super) way_out: String,
}

/// Off and on by turns, and the other way round: what drifts on the host hits both alike.
const TWICE: &[bool] = &[false, true, true, false];
const ONCE: &[bool] = &[false, true];

/// Limits are multiples of this.
const GRAIN: u64 = 16 << 20;
/// Under a smaller limit the load's own needs show more than what it is about.
const LEAST_LIMIT: Bytes = Bytes::mib(32);
/// Cold memory is allocated this fast under a limit of 256 MiB: a service under load, not a memset.
const COLD_RATE: u64 = 120;
const HOT_RATE: u64 = 90;
/// Allocations a second beside the stream.
pub(super) const ALLOCATIONS: u64 = 500;

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Growth => "cold growth",
            Kind::Stream => "streaming reads",
            Kind::Hot => "hot and cold",
        }
    }

    /// In JSON.
    pub(super) fn id(self) -> &'static str {
        match self {
            Kind::Growth => "cold_growth",
            Kind::Stream => "streaming_reads",
            Kind::Hot => "hot_and_cold",
        }
    }

    /// What is allocated, for the labels of latencies.
    pub(super) fn allocation(self) -> &'static str {
        match self {
            Kind::Growth => "allocation of 256 KiB",
            Kind::Stream => "allocation beside it",
            Kind::Hot => "cold allocation",
        }
    }
}

impl Scenario {
    /// What it is, in a line.
    pub(super) fn about(&self) -> String {
        let limit = short(self.limit);
        match self.kind {
            Kind::Growth => format!(
                "memory is allocated at {}/s and never touched again; limit {limit}, the rest is swapped",
                short(self.rate)
            ),
            Kind::Stream => format!(
                "a file of {} is read in circles, a thread allocates {ALLOCATIONS} times a second; limit {limit}",
                short(self.size)
            ),
            Kind::Hot => format!(
                "{} stay in use, cold memory grows by {}/s beside them; limit {limit}",
                short(self.hot()),
                short(self.rate)
            ),
        }
    }

    /// The bytes that stay hot.
    pub(super) fn hot(&self) -> Bytes {
        Bytes(self.limit.0 / 2)
    }

    /// The arguments of `memload`, `file` being what the stream reads.
    pub(super) fn arguments(&self, file: &Path) -> Vec<String> {
        let seconds = self.seconds.to_string();
        let (size, rate) = (self.size.0.to_string(), self.rate.0.to_string());
        let hot = self.hot().0.to_string();
        let file = file.display().to_string();
        let allocations = ALLOCATIONS.to_string();
        let mut words = match self.kind {
            Kind::Growth => vec!["anon", "--size", &size, "--rate", &rate],
            Kind::Stream => {
                vec!["read", "--size", &size, "--file", &file, "--alloc-rate", &allocations]
            }
            Kind::Hot => vec!["hotcold", "--size", &size, "--rate", &rate, "--hot", &hot],
        };
        words.extend(["--duration", &seconds, "--json", "--histogram"]);
        words.into_iter().map(str::to_owned).collect()
    }

    /// The same as a person would type it.
    pub(super) fn command_line(&self) -> String {
        let (size, rate) = (letter(self.size), letter(self.rate));
        match self.kind {
            Kind::Growth => format!("memload anon --size {size} --rate {rate}"),
            Kind::Stream => format!("memload read --size {size} --alloc-rate {ALLOCATIONS}"),
            Kind::Hot => {
                format!("memload hotcold --size {size} --rate {rate} --hot {}", letter(self.hot()))
            }
        }
    }

    /// Seconds of all its runs.
    pub(super) fn total_seconds(&self) -> f64 {
        self.seconds * self.order.len() as f64
    }
}

/// Chooses the loads for this host.
pub(super) fn choose(host: Host, quick: bool) -> (Vec<Scenario>, Vec<Skip>) {
    let (mut scenarios, mut skips) = (Vec::new(), Vec::new());
    let kinds: [(Kind, u64, f64, &'static [bool]); 3] = if quick {
        [(Kind::Growth, 64, 1.0, ONCE), (Kind::Stream, 32, 1.0, ONCE), (Kind::Hot, 64, 1.0, ONCE)]
    } else {
        [
            (Kind::Growth, 256, 5.0, TWICE),
            (Kind::Stream, 128, 2.0, TWICE),
            (Kind::Hot, 256, 4.5, ONCE),
        ]
    };
    for (kind, limit, seconds, order) in kinds {
        let swaps = kind != Kind::Stream;
        let mut most = host.total.0 / 8;
        if swaps {
            // What goes to swap is about 1.4 × the limit, and the swap is not ours alone.
            most = most.min(host.swap_free.0 / 2);
        }
        let limit = Bytes(Bytes::mib(limit).0.min(most / GRAIN * GRAIN));
        if limit < LEAST_LIMIT {
            let no_swap = swaps && host.swap_free.0 / 2 < LEAST_LIMIT.0;
            skips.push(Skip {
                kind,
                why: match (no_swap, host.swap_free) {
                    (true, Bytes(0)) => "there is no swap".into(),
                    (true, free) => format!("only {} of swap are free", short(free)),
                    _ => format!("the host has only {} of memory", short(host.total)),
                },
                way_out: match no_swap {
                    true => "with swap on zram while the demo runs: cgctl demo --zram 1G".into(),
                    false => "512 MiB would be enough".into(),
                },
            });
            continue;
        }
        let per_limit = |rate: u64| Bytes(limit.0 / 256 * rate).page_floor();
        // A quick run fills a limit that is smaller still in half of it.
        let haste = if quick { 4 } else { 1 };
        scenarios.push(match kind {
            Kind::Growth => Scenario {
                kind,
                limit,
                size: Bytes(limit.0 * 4),
                rate: per_limit(COLD_RATE * haste),
                seconds,
                order,
            },
            Kind::Stream => {
                Scenario { kind, limit, size: Bytes(limit.0 * 4), rate: Bytes(0), seconds, order }
            }
            Kind::Hot => Scenario {
                kind,
                limit,
                size: Bytes(limit.0 * 2),
                rate: per_limit(HOT_RATE * haste),
                seconds,
                order,
            },
        });
    }
    (scenarios, skips)
}

fn short(bytes: Bytes) -> String {
    crate::report::fmt::bytes_short(bytes.0)
}

/// `256M`, as the command line takes it.
fn letter(bytes: Bytes) -> String {
    match bytes.0 {
        n if n >= 1 << 30 && n.is_multiple_of(1 << 30) => format!("{}G", n >> 30),
        n if n.is_multiple_of(1 << 20) => format!("{}M", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{}K", n >> 10),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(total_mib: u64, swap_mib: u64) -> Host {
        Host { total: Bytes::mib(total_mib), swap_free: Bytes::mib(swap_mib) }
    }

    #[test]
    fn a_large_host_runs_all_loads_in_well_under_a_minute() {
        let (scenarios, skips) = choose(host(16 << 10, 4 << 10), false);
        assert_eq!((scenarios.len(), skips.len()), (3, 0));
        assert_eq!(scenarios[0].limit, Bytes::mib(256));
        assert_eq!(scenarios[0].rate, Bytes::mib(120));
        let seconds: f64 = scenarios.iter().map(Scenario::total_seconds).sum();
        assert!((30.0..45.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_small_host_gets_small_limits() {
        let (scenarios, _) = choose(host(1024, 512), false);
        assert_eq!(scenarios[0].limit, Bytes::mib(128));
        assert_eq!(scenarios[0].rate, Bytes::mib(60));
        let (scenarios, skips) = choose(host(1 << 20, 100), false);
        assert_eq!(scenarios[0].limit, Bytes::mib(48));
        assert!(skips.is_empty());
    }

    #[test]
    fn without_swap_the_loads_that_need_it_are_skipped_with_a_way_out() {
        let (scenarios, skips) = choose(host(16 << 10, 0), false);
        assert_eq!(scenarios.len(), 1);
        assert_eq!(scenarios[0].kind, Kind::Stream);
        assert!(skips.iter().all(|skip| skip.why == "there is no swap"), "{skips:?}");
        assert!(skips.iter().all(|skip| skip.way_out.contains("--zram 1G")), "{skips:?}");
        let (scenarios, skips) = choose(host(128, 1 << 10), true);
        assert!(scenarios.is_empty());
        assert!(skips[0].why.contains("128 MiB of memory"), "{skips:?}");
    }

    #[test]
    fn what_goes_to_swap_fits() {
        for quick in [false, true] {
            for swap in [64, 100, 512, 4096] {
                for scenario in choose(host(64 << 10, swap), quick).0 {
                    let live = scenario.rate.0 as f64 * scenario.seconds;
                    let most = live.min(scenario.size.0 as f64) + scenario.hot().0 as f64;
                    let over = most - scenario.limit.0 as f64;
                    assert!(over < Bytes::mib(swap).0 as f64, "{scenario:?} {swap}");
                }
            }
        }
    }
}

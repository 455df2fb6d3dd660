//! A container's core by itself: events are handed in, with the time, and actions come out.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use cgroupfs::memory::{MemoryStat, SwapRules};
use cgroupfs::{Bytes, Limit};
use cgshim::core::{
    Action, Capabilities, Container, Event, Job, Notice, Now, Outcome, Report, Strategy, Survey,
    WatermarkSpec,
};
use std::time::Duration;

pub(crate) const LIMIT: Limit = Limit::Bytes(Bytes::mib(256));

pub(crate) const V1: Capabilities = Capabilities {
    threshold_event: true,
    threshold_slack: Bytes::mib(1),
    limit_step: true,
    force_empty: true,
    memory_reclaim: false,
    high_step: false,
};

pub(crate) const V2: Capabilities = Capabilities {
    threshold_event: false,
    threshold_slack: Bytes(0),
    limit_step: false,
    force_empty: false,
    memory_reclaim: true,
    high_step: true,
};

/// A container under 256 MiB with marks at 90 % and 80 %: 230.4 and 204.8 MiB.
pub(crate) fn container(can: Capabilities) -> Container {
    let spec = WatermarkSpec::Ratio { high: 9000, low: 8000 };
    Container::new(spec, LIMIT, Limit::Max, can, 42)
}

/// So many MiB of anonymous memory, and plenty of swap.
pub(crate) fn survey(usage: u64) -> Survey {
    Survey {
        usage: Bytes::mib(usage),
        limit: LIMIT,
        stat: MemoryStat { active_anon: Some(Bytes::mib(usage)), ..MemoryStat::default() },
        swap: SwapRules { swaps_at_limit: true, reclaim_may_swap: true, room: Limit::Max },
        host_swap_free: Bytes::mib(4096),
        direct_reclaim: 0,
    }
}

pub(crate) fn report(id: u64, outcome: Outcome, before: u64, after: u64) -> Report {
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

pub(crate) fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

pub(crate) fn send(container: &mut Container, now: Now, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    container.handle(now, event, &mut actions);
    actions
}

pub(crate) fn done(container: &mut Container, now: Now, report: Report) -> Vec<Action> {
    send(container, now, Event::Done(report))
}

pub(crate) fn surveyed(container: &mut Container, now: Now, look: Survey) -> Vec<Action> {
    send(container, now, Event::Surveyed(Box::new(look)))
}

pub(crate) fn job(actions: &[Action]) -> Option<Job> {
    actions.iter().find_map(|action| match action {
        Action::Reclaim(job) => Some(*job),
        _ => None,
    })
}

pub(crate) fn told(actions: &[Action]) -> Vec<Notice> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Tell(notice) => Some(*notice),
            _ => None,
        })
        .collect()
}

pub(crate) fn timer(actions: &[Action]) -> Now {
    let timer = actions.iter().rev().find_map(|action| match action {
        Action::Timer(at) => *at,
        _ => None,
    });
    timer.unwrap_or_else(|| panic!("no timer: {actions:?}"))
}

/// Brings a container to a job in flight.
pub(crate) fn start(container: &mut Container, now: Now, usage: u64) -> Job {
    assert_eq!(send(container, now, Event::Crossed(Bytes::mib(usage))), [Action::Survey]);
    job(&surveyed(container, now, survey(usage))).expect("a job")
}

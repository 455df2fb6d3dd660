//! One record while it is made: what is known of a kill, until it is settled.

use super::cause::{Evidence, Verdict, judge};
use super::event::{LogKill, Subject};
use super::record::{Cause, From, Record, Victim, escape};
use crate::core::Now;

/// A record that more may come to.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) record: Record,
    pub(super) born: Now,
    pub(super) claimed: bool,
    pub(super) levels: Vec<Evidence>,
    pub(super) beneath: bool,
}

impl Open {
    /// A line of the log may be about it.
    pub(super) fn waits(&self) -> bool {
        !self.claimed && self.record.cause != Cause::WokeWithoutKill
    }
}

/// A line of the log is about this record.
pub(super) fn claim(open: &mut Open, subject: &Subject, kill: LogKill, log_readable: bool) {
    open.claimed = true;
    // It was not known whether anybody was killed.
    if open.record.kills == 0 {
        open.record.kills = 1;
        open.record.unknown.clear();
        open.record.source("kills", kill.from);
    }
    if let Some((path, from)) = &kill.group {
        open.beneath = *path != subject.path;
        open.record.source("victim_cgroup", *from);
    }
    let comm = &kill.killed.comm;
    open.record.victim = Some(Victim {
        pid: kill.killed.pid,
        comm: (!comm.is_empty() || kill.from == From::KernelLog).then(|| escape(comm)),
        oom_score_adj: kill.killed.oom_score_adj,
        cgroup: kill.group.as_ref().map(|(path, _)| escape(path.as_bytes())),
    });
    open.record.source("victim", kill.from);
    if subject.init == Some(kill.killed.pid) {
        open.record.init_survived = Some(false);
        open.record.source("init_survived", kill.from);
    }
    conclude(open, Some(&kill), log_readable);
}

/// The line came after the record was settled.
pub(super) fn claim_late(
    mut open: Open,
    subject: &Subject,
    kill: LogKill,
    log_readable: bool,
) -> Record {
    claim(&mut open, subject, kill, log_readable);
    let mut record = open.record;
    let known = record.cause != Cause::Unknown;
    record.unknown.retain(|why| !(why.starts_with(WHO) || known && why.starts_with(WHOSE)));
    record
}

/// Why, from all there is.
pub(super) fn conclude(open: &mut Open, kill: Option<&LogKill>, log_readable: bool) {
    let log = kill.filter(|kill| kill.from == From::KernelLog).map(|kill| {
        let mut killed = kill.killed.clone();
        // An allocation of several pages that fails on a host without room is no fragmentation.
        if kill.node_has_room != Some(true) {
            killed.order = None;
        }
        killed
    });
    let Verdict { cause, limit_cgroup, from } =
        judge(log.as_ref(), &open.levels, open.beneath, log_readable);
    open.record.cause = cause;
    open.record.limit_cgroup = limit_cgroup.map(|path| escape(path.as_bytes()));
    if let Some(from) = from {
        open.record.source("cause", from);
    }
    if open.record.limit_cgroup.is_some()
        && let Some(from) = from
    {
        open.record.source("limit_cgroup", from);
    }
}

/// Signals that no kill followed.
pub(super) fn woke(open: &mut Open, v1: bool, gone: bool, log_readable: bool) {
    let record = &mut open.record;
    record.source("cause", if v1 { From::Eventfd } else { From::EventsLocal });
    if gone {
        conclude(open, None, log_readable);
        open.record.unknown.push(
            "whether somebody was killed: the group was removed before its counter could be read"
                .into(),
        );
    } else {
        record.cause = Cause::WokeWithoutKill;
    }
}

/// How it begins that a victim, and a cause, is not known.
const WHO: &str = "who was killed: ";
const WHOSE: &str = "whose limit was hit: ";

/// What is not known now hardly ever will be: said, and why.
pub(super) fn settle(
    record: &mut Record,
    subject: &Subject,
    init_exited: bool,
    log_readable: bool,
    log_lost_at: Option<Now>,
) {
    record.settled = true;
    if record.init_survived.is_none() && subject.init.is_some() {
        record.init_survived = Some(!init_exited);
        record.source("init_survived", From::Pidfd);
    }
    if record.victim.is_none() && record.kills > 0 {
        let why = match (log_readable, log_lost_at) {
            (false, _) => "the kernel log cannot be read here",
            (true, Some(_)) => "no line of the kernel log is surely about it, and lines were lost",
            (true, None) => "no line of the kernel log is surely about it",
        };
        record.unknown.push(format!("{WHO}{why}"));
    }
    if record.cause == Cause::Unknown {
        let why = "no counter says so for sure, and the kernel log has no line on it";
        record.unknown.push(format!("{WHOSE}{why}"));
    }
    if subject.oom_kill.is_none() {
        record.unknown.push(
            "kills that the kernel log does not show: this kernel does not count them (oom_kill came with 4.13)"
                .into(),
        );
    }
}

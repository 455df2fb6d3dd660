//! `cgctl why`: why was it killed? Reads the records in the run directory; needs no daemon. If there is one, it is asked about
//! a container of which nothing is on record: that may stall, and not have been killed.

mod words;

use super::cli::WhyArgs;
use super::daemon;
use super::error::{FAILED, Failure};
use crate::report::fmt;
use cgshim::api::client::Client;
use cgshim::core::oom::Record;
use cgshim::oom::Found;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// For so long the daemon is waited for.
const SOON: Duration = Duration::from_secs(1);

/// `cgctl why --json`.
#[derive(Debug, Serialize)]
struct Answer {
    schema: u32,
    /// `records`, `expired`, `unknown` or `ambiguous`.
    answer: &'static str,
    /// Newest first.
    records: Vec<Record>,
}

pub(super) fn main(args: &WhyArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let run_dir = cgshim::api::client::run_dir(run_dir);
    let unreadable = |error: std::io::Error| {
        let dir = cgshim::oom::directory(&run_dir);
        Failure::new(FAILED, format!("the records in {} cannot be read: {error}", dir.display()))
    };
    let found = match &args.whose {
        Some(word) => cgshim::oom::find(&run_dir, word).map_err(unreadable)?,
        None => Found::Records(cgshim::oom::all(&run_dir).map_err(unreadable)?),
    };
    let whose = args.whose.as_deref().unwrap_or("");
    let shown: String = whose.escape_default().take(100).collect();
    let (answer, records, failure) = match found {
        Found::Records(records) => ("records", records, None),
        Found::Expired => (
            "expired",
            Vec::new(),
            Some(format!(
                "what was on record of '{shown}' has expired: the newest {} OOMs are kept, for an hour; \
                 older ones may be in the kernel log: journalctl -k -g 'Killed process'",
                cgshim::oom::MOST_RECORDS
            )),
        ),
        Found::Unknown => (
            "unknown",
            Vec::new(),
            Some(match stalls(&run_dir, whose) {
                Some(stalls) => format!("no OOM is on record for '{shown}'. {stalls}"),
                None => format!(
                    "unknown: no OOM is on record for '{shown}'. If it was killed, it was not for want of \
                     memory, or cgshim did not watch it. 'cgctl why' lists what there is"
                ),
            }),
        ),
        Found::Ambiguous(several) => {
            let list: Vec<String> =
                several.iter().map(|(id, cgroup)| format!("  {id}  {cgroup}")).collect();
            (
                "ambiguous",
                Vec::new(),
                Some(format!("'{shown}' is not one container:\n{}", list.join("\n"))),
            )
        }
    };
    if args.json {
        super::print_json(&Answer { schema: 1, answer, records })?;
        return Ok(ExitCode::from(if failure.is_some() { FAILED } else { 0 }));
    }
    if let Some(message) = failure {
        return Err(Failure::new(FAILED, message));
    }
    if args.whose.is_none() {
        list(args, &records);
    } else if let Some((newest, older)) = records.split_first() {
        super::print(&words::explain(newest, cgshim::oom::boot_ms()));
        if !older.is_empty() {
            let n = older.len();
            super::print(&format!("\nBefore that, {n} more:\n"));
            list(args, older.get(..n.min(20)).unwrap_or(older));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a daemon that runs says of a container that is there, and throttled.
fn stalls(run_dir: &Path, whose: &str) -> Option<String> {
    let mut client = Client::connect(run_dir, SOON).ok()?;
    words::throttled(&daemon::container(&mut client, whose).ok()?)
}

fn list(args: &WhyArgs, records: &[Record]) {
    if records.is_empty() {
        return super::print("no OOM is on record\n");
    }
    let now = cgshim::oom::boot_ms();
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            let ago = Duration::from_millis(now.saturating_sub(record.boot_ms));
            vec![
                format!("{} ago", fmt::duration_ms(ago.as_secs_f64() * 1000.0)),
                record.name.clone(),
                record.cause.as_str().replace('_', " "),
                words::victim(record).unwrap_or_else(|| match record.kills {
                    0 => "nobody".into(),
                    _ => "not known".into(),
                }),
                record.usage_bytes.map_or_else(|| "-".into(), fmt::bytes),
                record.limit_in_force_bytes.map_or_else(|| "none".into(), fmt::bytes),
                record.id.clone(),
            ]
        })
        .collect();
    let headers = ["WHEN", "NAME", "CAUSE", "KILLED", "USAGE", "LIMIT", "ID"];
    super::print_table(&headers, args.no_headers, &rows);
}

//! `cgctl ps`: the containers that the daemon enforces.

use super::cli::PsArgs;
use super::error::Failure;
use super::{daemon, print_json, print_table};
use crate::report::fmt;
use cgshim::api::message::View;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// `cgctl ps --json`.
#[derive(Debug, Serialize)]
struct Ps {
    schema: u32,
    containers: Vec<View>,
}

pub(super) fn main(args: &PsArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let containers = daemon::containers(&mut daemon::connect(run_dir)?, args.all)?;
    if args.json {
        print_json(&Ps { schema: 1, containers })?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = containers.iter().map(row).collect();
    let headers = ["ID", "CLASS", "USAGE", "LIMIT", "HIGH", "WMARK", "STATE"];
    print_table(&headers, args.no_headers, &rows);
    Ok(ExitCode::SUCCESS)
}

fn row(view: &View) -> Vec<String> {
    let limit = |bytes: Option<u64>| bytes.map_or_else(|| "max".into(), fmt::bytes);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".into(), fmt::bytes);
    vec![
        short(&view.id),
        view.class.clone(),
        size(view.usage_bytes),
        limit(view.limit_bytes),
        limit(view.high_bytes),
        size(view.wmark_high_bytes),
        view.state.clone(),
    ]
}

/// A runtime's id of 64 digits by its first twelve, as docker and crictl show it.
fn short(id: &str) -> String {
    let long = id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if long { id[..12].to_owned() } else { id.to_owned() }
}

//! `cgctl set` and `cgctl release`: a container's terms, changed or ended by hand.

use super::cli::{ReleaseArgs, SetArgs};
use super::daemon;
use super::error::{FAILED, Failure};
use super::print_json;
use crate::report::fmt;
use cgshim::api::message::{One, Registered, Release, Request};
use cgshim::core::Wishes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn set(args: &SetArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let mut terms = BTreeMap::new();
    for pair in &args.terms {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("'{pair}' is not KEY=VALUE (as in high=80%)")))?;
        // Wrong here is a usage error, daemon or not.
        Wishes::default().set(key, value).map_err(|bad| Failure::usage(bad.to_string()))?;
        if terms.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::usage(format!("{key} is given twice")));
        }
    }
    let mut client = daemon::connect(run_dir)?;
    let request = Request::Set { id: args.id.clone(), terms };
    let One { container } = client.ask(request)?;
    if args.json {
        print_json(&WithSchema { schema: 1, value: &container })?;
        return Ok(ExitCode::SUCCESS);
    }
    let limit = |bytes: Option<u64>| bytes.map_or_else(|| "max".into(), fmt::bytes);
    super::print(&format!(
        "{}: class {}, request {}, high {}, throttle {}, way_out {}, oom {}; reclaimed from {} to {}\n",
        container.id,
        container.class,
        container.request_bytes.map_or_else(|| "none".into(), fmt::bytes),
        limit(container.high_bytes),
        if container.throttle { "on" } else { "off" },
        container.way_out,
        container.oom,
        container.wmark_high_bytes.map_or_else(|| "off".into(), fmt::bytes),
        container.wmark_low_bytes.map_or_else(|| "off".into(), fmt::bytes),
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn release(args: &ReleaseArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    if args.id.is_some() == args.all {
        return Err(Failure::usage("give an ID, or --all"));
    }
    let mut client = daemon::connect(run_dir)?;
    let chosen = match &args.id {
        Some(id) => vec![daemon::container(&mut client, id)?],
        None => daemon::containers(&mut client, false)?,
    };
    let mut failed = 0;
    for view in chosen {
        let release = Release { id: view.id.clone(), pid: view.pid, cgroup: None };
        match client.ask::<Registered>(Request::Release(release)) {
            Ok(_) => super::print(&format!("{}: released\n", view.id)),
            Err(error) => {
                eprintln!("cgctl: {error}");
                failed = FAILED;
            }
        }
    }
    Ok(ExitCode::from(failed))
}

/// An object with its version.
#[derive(Debug, Serialize)]
pub(super) struct WithSchema<'a, T> {
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) value: &'a T,
}

//! `cgctl set` and `cgctl release`: a container's terms, changed or ended by hand.

use super::cli::{ReleaseArgs, SetArgs};
use super::daemon;
use super::error::{FAILED, Failure};
use super::print_json;
use crate::report::fmt;
use cgroupfs::{Bytes, Limit};
use cgshim::api::message::{One, Registered, Release, Request, View};
use cgshim::core::{Terms, Wishes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn set(args: &SetArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let (mut terms, mut wishes) = (BTreeMap::new(), Wishes::default());
    for pair in &args.terms {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("'{pair}' is not KEY=VALUE (as in high=80%)")))?;
        // Wrong here is a usage error, daemon or not.
        wishes.set(key, value).map_err(|bad| Failure::usage(bad.to_string()))?;
        if terms.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::usage(format!("{key} is given twice")));
        }
    }
    let mut client = daemon::connect(run_dir)?;
    let request = Request::Set { id: args.id.clone(), terms: terms.clone() };
    let One { container } = client.ask(request)?;
    for key in not_in_force(&terms, wishes, &container) {
        eprintln!(
            "cgctl: {}: {key}={} is not in force: the container's annotation io.cgshim.{key} asks for tighter terms",
            container.id, terms[key]
        );
    }
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

/// The terms among those asked for that are others now: annotations may tighten what the operator says.
fn not_in_force<'a>(
    asked: &'a BTreeMap<String, String>,
    wishes: Wishes,
    now: &View,
) -> Vec<&'a str> {
    let limit = now.limit_bytes.map_or(Limit::Max, |limit| Limit::Bytes(Bytes(limit)));
    let request = wishes.request.or(now.request_bytes.map(Bytes));
    let terms = Terms::of(Wishes { request, ..wishes }, limit);
    let differs = |key: &str| match key {
        "class" => terms.class.as_str() != now.class,
        "high" => terms.high.bytes().map(|high| high.0) != now.high_bytes,
        "throttle" => terms.throttle != now.throttle,
        "oom" => terms.oom.to_string() != now.oom,
        "way_out" => terms.way_out.to_string() != now.way_out,
        _ => false,
    };
    asked.keys().map(String::as_str).filter(|key| differs(key)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_annotation_keeps_from_being_in_force_is_told() {
        let now: View = serde_json::from_value(serde_json::json!({
            "id": "web", "generation": 1, "cgroup": "/web", "inode": 1, "source": "hook",
            "class": "burstable", "limit_bytes": 600 << 20, "high_bytes": 64 << 20,
            "throttle": true, "oom": "kill", "way_out": "release=30s", "state": "watching",
            "refused": [], "since_ms": 0, "oom_kills": 0,
            "reclaim": cgshim::api::message::Reclaim::default(),
        }))
        .unwrap();
        let told = |pairs: &[(&str, &str)]| {
            let mut wishes = Wishes::default();
            pairs.iter().for_each(|(key, value)| wishes.set(key, value).unwrap());
            let asked =
                pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            not_in_force(&asked, wishes, &now).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(&[("high", "80M"), ("oom", "kill")]), ["high"]);
        assert_eq!(told(&[("high", "64M"), ("way_out", "release")]), [""; 0]);
        assert_eq!(told(&[("high", "max"), ("throttle", "off")]), ["high", "throttle"]);
    }
}

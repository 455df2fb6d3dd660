//! `cgctl caps`: what this kernel offers.

use super::cli::CapsArgs;
use super::error::Failure;
use cgroupfs::probe::Capabilities;
use serde::Serialize;
use std::process::ExitCode;

/// `cgctl caps --json`.
#[derive(Debug, Serialize)]
struct Caps {
    schema: u32,
    kernel: String,
    hierarchy: &'static str,
    mount_point: String,
    features: Vec<Feature>,
}

#[derive(Debug, Serialize)]
struct Feature {
    name: &'static str,
    support: &'static str,
    why: String,
}

pub(super) fn main(args: &CapsArgs) -> Result<ExitCode, Failure> {
    let found = Capabilities::probe()?;
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let caps = Caps {
        schema: 1,
        kernel,
        hierarchy: found.hierarchy.version.as_str(),
        mount_point: found.hierarchy.mount_point.display().to_string(),
        features: found
            .features
            .into_iter()
            .map(|feature| Feature {
                name: feature.name,
                support: feature.support.as_str(),
                why: feature.why,
            })
            .collect(),
    };
    if args.json {
        super::print_json(&caps)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = caps
        .features
        .into_iter()
        .map(|feature| vec![feature.name.into(), feature.support.into(), feature.why])
        .collect();
    super::print_table(&["FEATURE", "SUPPORT", "WHY"], args.no_headers, &rows);
    Ok(ExitCode::SUCCESS)
}

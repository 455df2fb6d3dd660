//! `cgctl caps`: what this kernel offers.

use super::cli::CapsArgs;
use super::daemon;
use super::error::Failure;
use cgroupfs::probe::Capabilities;
use cgshim::api::message::{Request, Status};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// `cgctl caps --json`.
#[derive(Debug, Serialize)]
struct Caps {
    schema: u32,
    kernel: String,
    hierarchy: &'static str,
    mount_point: String,
    features: Vec<Feature>,
    /// `null` where none runs.
    daemon: Option<Status>,
}

#[derive(Debug, Serialize)]
struct Feature {
    name: &'static str,
    support: &'static str,
    why: String,
}

/// Whether threads of ours may be real-time ones: what decides how well a throttle holds.
fn real_time() -> Feature {
    let (support, why) = match cgshim::driver::throttle::real_time() {
        Ok(()) => ("native", "the thread that freezes and thaws runs at SCHED_FIFO".to_owned()),
        Err(errno) => (
            "absent",
            format!(
                "SCHED_FIFO is refused ({}): emulated throttling leaks about 6 MiB a pulse to tasks that \
                 fill memory as fast as they can",
                errno.desc()
            ),
        ),
    };
    Feature { name: "real_time", support, why }
}

pub(super) fn main(args: &CapsArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
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
            .chain([real_time()])
            .collect(),
        daemon: match daemon::connect_if_running(run_dir) {
            Some(mut client) => Some(client.ask(Request::Status {})?),
            None => None,
        },
    };
    if args.json {
        super::print_json(&caps)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows: Vec<Vec<String>> = caps
        .features
        .into_iter()
        .map(|feature| vec![feature.name.into(), feature.support.into(), feature.why])
        .collect();
    match caps.daemon {
        Some(status) => {
            let files = status.config.len();
            let refused = status.config_error.map(|error| format!("; {error}"));
            let why = format!(
                "cgshimd {}, pid {}, {} containers, configuration of {files} files{}",
                status.version,
                status.pid,
                status.containers,
                refused.unwrap_or_default()
            );
            rows.push(vec!["daemon".into(), "native".into(), why]);
            for feature in status.features {
                rows.push(vec![format!("daemon.{}", feature.name), feature.support, feature.why]);
            }
        }
        None => rows.push(vec![
            "daemon".into(),
            "absent".into(),
            "cgshimd does not run: commands of cgctl work alone".into(),
        ]),
    }
    super::print_table(&["FEATURE", "SUPPORT", "WHY"], args.no_headers, &rows);
    Ok(ExitCode::SUCCESS)
}

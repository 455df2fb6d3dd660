//! `cgctl hook inject BUNDLE`: the hook in one bundle, for runtimes that are run by hand.

use super::cli::{HookArgs, HookCommand, InjectArgs};
use super::error::{FAILED, Failure};
use cgroupfs::Bytes;
use cgshim::oci::Spec;
use cgshim::oci::inject::{self, Entry};
use cgshim::oci::runtime;
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

pub(crate) fn main(args: &HookArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        HookCommand::Inject(args) => inject(args),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    bundle: &'a str,
    hook: &'a str,
    changed: bool,
    limit_bytes: Option<i64>,
}

fn inject(args: &InjectArgs) -> Result<ExitCode, Failure> {
    let entry = match &args.hook {
        // Named: where it will be on the machine that runs the bundle, which may be another.
        Some(path) if path.is_absolute() => {
            Entry { path: path.clone(), run_dir: args.run_dir.clone() }
        }
        Some(path) => {
            return Err(Failure::usage(format!(
                "--hook {}: not an absolute path, which runtimes demand",
                path.display()
            )));
        }
        None => runtime::hook(None, std::env::current_exe().ok().as_deref(), args.run_dir.clone())
            .map_err(|why| Failure::new(FAILED, format!("{why}; --hook names another place")))?,
    };
    let config: PathBuf = match args.bundle.is_dir() {
        true => args.bundle.join("config.json"),
        false => args.bundle.clone(),
    };
    if !config.exists() {
        let what = "there is none: name a bundle, the directory with its config.json";
        return Err(Failure::new(FAILED, format!("{}: {what}", config.display())));
    }
    let changed = inject::inject(&config, &entry)
        .map_err(|error| Failure::new(FAILED, format!("{error}; nothing is changed")))?;
    let text = fs::read(&config).unwrap_or_default();
    let memory = Spec::parse(&text, &mut Vec::new()).ok().and_then(|spec| spec.memory);
    let limit_bytes = memory.and_then(|memory| memory.limit()).filter(|limit| *limit > 0);
    // One that was there already stays, wherever it points to.
    let called = std::str::from_utf8(&text).ok().and_then(inject::called);
    let called = called.unwrap_or_else(|| entry.path.clone());
    let hook = called.display().to_string();
    if args.json {
        let bundle = config.display().to_string();
        let report = Report { schema: 1, bundle: &bundle, hook: &hook, changed, limit_bytes };
        super::print_json(&report)?;
    } else {
        let what = if changed { "calls" } else { "called already, unchanged:" };
        let limit = match limit_bytes.and_then(|limit| u64::try_from(limit).ok()) {
            Some(limit) => format!("limit {}", Bytes(limit)),
            None => "no memory limit".into(),
        };
        super::print(&format!(
            "{}: {what} {hook} at createRuntime and poststop; {limit}\n",
            config.display()
        ));
        if called != entry.path {
            log::warn!(
                "{}: the hook that it calls is not {}: take its entries out of \"hooks\" to have that one",
                config.display(),
                entry.path.display()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

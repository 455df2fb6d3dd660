//! `cgctl install RUNTIME`: what makes a runtime call the hook, or a caller of runtimes the wrapper. Prints what
//! it changes, keeps what it replaces, and takes it back with `--undo`.
//!
//! Each runtime's file says which files change, and how; [`change`] shows, makes and takes back changes.

mod change;
mod containerd;
mod crio;
mod docker;
mod hooks_d;
mod podman;
mod runc;
mod toml;

use super::cli::{InstallArgs, InstallRuntime};
use super::error::{FAILED, Failure};
use change::Change;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a runtime needs: files that change, and what a person should know or do.
struct Plan {
    changes: Vec<Change>,
    notes: Vec<String>,
}

/// Where things are: below `root`, and as the installed files name them.
struct Place<'a> {
    root: &'a Path,
    hook: &'a Path,
    wrapper: &'a Path,
}

impl Place<'_> {
    /// A path of the target system as it is reached from here.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A program that a runtime will be told to run. What is not there would keep its containers from starting.
    fn demand(&self, program: &Path, option: &str, undo: bool) -> Result<(), Failure> {
        use std::os::unix::fs::PermissionsExt;
        if !program.is_absolute() {
            return Err(Failure::usage(format!(
                "{option} {}: not an absolute path, which runtimes demand",
                program.display()
            )));
        }
        let file = std::fs::metadata(self.at(program));
        if undo || file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0) {
            return Ok(());
        }
        Err(Failure::new(
            FAILED,
            format!(
                "{} is not there, and containers that need it would not start: install it first \
                 (README, Install), or name its place with {option}",
                program.display()
            ),
        ))
    }
}

pub(crate) fn main(args: &InstallArgs) -> Result<ExitCode, Failure> {
    let place = Place { root: &args.root, hook: &args.hook, wrapper: &args.wrapper };
    let demanded = match args.runtime {
        InstallRuntime::Runc => Ok(()),
        InstallRuntime::Containerd | InstallRuntime::Docker => {
            place.demand(&args.wrapper, "--wrapper", args.undo)
        }
        InstallRuntime::Podman | InstallRuntime::Crio => {
            place.demand(&args.hook, "--hook", args.undo)
        }
    };
    // Who only asks what would change is told that, and then what is missing.
    let missing = match demanded {
        Err(missing) if args.dry_run && missing.code == FAILED => Some(missing),
        demanded => demanded.map(|()| None)?,
    };
    let plan = match args.runtime {
        InstallRuntime::Runc => Ok(runc::plan(&place)),
        InstallRuntime::Containerd => containerd::plan(&place, args.undo),
        InstallRuntime::Docker => docker::plan(&place, args.undo),
        InstallRuntime::Podman => podman::plan(&place, args.undo),
        InstallRuntime::Crio => crio::plan(&place, args.undo),
    };
    let plan = plan.map_err(|why| Failure::new(FAILED, format!("{why}; nothing is changed")))?;
    let ahead: Vec<&Change> = plan.changes.iter().filter(|change| change.is_one()).collect();
    let mut text = String::new();
    for change in &ahead {
        text.push_str(&change.diff());
    }
    if !args.dry_run {
        change::make(&ahead).map_err(|why| Failure::new(FAILED, why))?;
    }
    let what = match (ahead.is_empty(), args.dry_run) {
        (true, _) if plan.changes.is_empty() => String::new(),
        (true, _) => "nothing to change\n".into(),
        (false, true) => format!("{} would change; nothing did\n", files(ahead.len())),
        (false, false) => format!("{} changed\n", files(ahead.len())),
    };
    text.push_str(&what);
    for note in plan.notes.iter().filter(|_| !args.undo) {
        text.push_str(&format!("note: {note}\n"));
    }
    super::print(&text);
    missing.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn files(n: usize) -> String {
    if n == 1 { "1 file".into() } else { format!("{n} files") }
}

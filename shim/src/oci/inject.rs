//! Bringing the hook into a bundle: `config.json` gets an entry under `hooks.createRuntime` and one under
//! `hooks.poststop`, and not another byte changes. What `cgshim-runtime` and `cgctl hook inject` do.
//!
//! The entries come last in their lists, after whatever else prepares the container. Source of their
//! form: the OCI runtime specification, `config.md`, POSIX-platform Hooks.

use super::json::{self, BadJson};
use super::{Spec, spec};
use oci_spec::runtime::{Hook, HookBuilder};
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Where the hook is installed.
pub const HOOK_PATH: &str = "/usr/libexec/oci/hooks.d/cgshim-hook";

/// The stages that it is called for.
pub const STAGES: [&str; 2] = ["createRuntime", "poststop"];

/// Seconds after which the runtime ends the hook. It needs one at the most; this is for a host on which
/// nothing moves any more.
const TIMEOUT: i64 = 10;

/// The hook as it is written into specifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The program: absolute.
    pub path: PathBuf,
    /// `--run-dir`, where it is not the default.
    pub run_dir: Option<PathBuf>,
}

/// A bundle that was not changed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct NotInjected {
    /// Its `config.json`.
    pub path: PathBuf,
    /// What was in the way.
    pub why: String,
    /// Its annotations say that it must not start unregistered.
    pub strict: bool,
}

impl Entry {
    fn for_stage(&self, stage: &str) -> Result<String, BadJson> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| BadJson(format!("{path:?}: not UTF-8")))
        };
        let mut args = vec!["cgshim-hook".to_owned()];
        if let Some(dir) = &self.run_dir {
            args.extend(["--run-dir".into(), text(dir)?]);
        }
        args.push(stage.into());
        text(&self.path)?;
        let hook = HookBuilder::default().path(&self.path).args(args).timeout(TIMEOUT).build();
        let hook = hook.map_err(|error| BadJson(error.to_string()))?;
        serde_json::to_string(&hook).map_err(BadJson::from)
    }
}

/// Edits `config` in place: replaced by a rename, with owner and mode kept. Says whether it had to.
///
/// An entry of ours that is there already, whatever its path and arguments, stays as it is.
///
/// # Errors
/// The file cannot be read or replaced, is no JSON object, or has `hooks` of another shape than the
/// specification's. It is then as it was.
pub fn inject(config: &Path, entry: &Entry) -> Result<bool, NotInjected> {
    let mut strict = false;
    replace_text(config, |text| {
        strict = Spec::parse(text.as_bytes(), &mut Vec::new())
            .is_ok_and(|spec| spec.annotations.strict());
        edited(text, entry).map_err(|error| error.to_string())
    })
    .map_err(|why| NotInjected { path: config.into(), why, strict })
}

/// The document with our entries; `None` if it has them.
///
/// # Errors
/// [`BadJson`]; see [`inject`].
pub fn edited(text: &str, entry: &Entry) -> Result<Option<String>, BadJson> {
    let mut edited = text.to_owned();
    for stage in STAGES {
        edited = with_stage(&edited, stage, entry)?;
    }
    Ok((edited != text).then_some(edited))
}

fn with_stage(text: &str, stage: &str, entry: &Entry) -> Result<String, BadJson> {
    let hook = entry.for_stage(stage)?;
    let all = json::document(text)?;
    let hooks = match value(text, &all, "hooks", "the document")? {
        Slot::Missing => {
            return Ok(json::with_member(
                text,
                &all,
                "hooks",
                &format!("{{\"{stage}\":[{hook}]}}"),
            ));
        }
        Slot::Null(at) => return Ok(json::splice(text, at, &format!("{{\"{stage}\":[{hook}]}}"))),
        Slot::Value(at) => at,
    };
    let list = match value(text, &hooks, stage, "hooks")? {
        Slot::Missing => return Ok(json::with_member(text, &hooks, stage, &format!("[{hook}]"))),
        Slot::Null(at) => return Ok(json::splice(text, at, &format!("[{hook}]"))),
        Slot::Value(at) => at,
    };
    let there = json::elements(text, list.clone())
        .map_err(|error| BadJson(format!("hooks.{stage}: {error}")))?;
    match there.into_iter().any(|at| is_ours(&text[at], stage)) {
        true => Ok(text.to_owned()),
        false => json::with_element(text, &list, &hook),
    }
}

enum Slot {
    Missing,
    Null(Range<usize>),
    Value(Range<usize>),
}

fn value(text: &str, object: &Range<usize>, name: &str, what: &str) -> Result<Slot, BadJson> {
    let members =
        json::members(text, object.clone()).map_err(|error| BadJson(format!("{what}: {error}")))?;
    let found = members.into_iter().find(|member| member.name == name);
    Ok(match found.map(|member| member.value) {
        None => Slot::Missing,
        Some(at) if &text[at.clone()] == "null" => Slot::Null(at),
        Some(at) => Slot::Value(at),
    })
}

fn is_ours(hook: &str, stage: &str) -> bool {
    let Ok(hook) = serde_json::from_str::<Hook>(hook) else { return false };
    let named = hook.path().file_name().is_some_and(|name| name == "cgshim-hook");
    named && hook.args().as_ref().is_some_and(|args| args.iter().any(|arg| arg == stage))
}

/// Where the hook is that a document calls, if it has an entry of ours under `createRuntime`.
pub fn called(text: &str) -> Option<PathBuf> {
    let hooks = serde_json::from_str::<serde_json::Value>(text).ok()?;
    let [stage, _] = STAGES;
    let entries = hooks.get("hooks")?.get(stage)?.as_array()?;
    let ours = entries.iter().map(ToString::to_string).find(|entry| is_ours(entry, stage))?;
    Some(serde_json::from_str::<Hook>(&ours).ok()?.path().clone())
}

/// Replaces a text file by what `edit` makes of it, unless that is nothing. Says whether it did.
///
/// # Errors
/// What `edit` says, or why the file cannot be read or replaced.
pub fn replace_text(
    path: &Path,
    edit: impl FnOnce(&str) -> Result<Option<String>, String>,
) -> Result<bool, String> {
    // The file itself, where the path leads to a link: a rename would replace the link.
    let path = fs::canonicalize(path).map_err(|error| error.to_string())?;
    let metadata = fs::metadata(&path).map_err(|error| error.to_string())?;
    let text = spec::read_straight(&path, spec::LARGEST).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&text).map_err(|error| error.to_string())?;
    match edit(text)? {
        None => Ok(false),
        Some(edited) => replace(&path, edited.as_bytes(), Some(&metadata))
            .map(|()| true)
            .map_err(|error| format!("cannot replace it: {error}")),
    }
}

/// Puts `content` in place of a file, or where none is, by a rename: whoever reads sees the old or the
/// new. With the owner and mode of `like`; 0644 and the caller's without.
///
/// # Errors
/// The directory or the file system refuses; nothing is left behind.
pub fn replace(path: &Path, content: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let mut unfinished = std::ffi::OsString::from(".");
    unfinished.push(name);
    unfinished.push(format!(".cgshim-{}", std::process::id()));
    let unfinished = path.with_file_name(unfinished);
    let _ = fs::remove_file(&unfinished);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let mut write = || -> io::Result<()> {
        if let Some(like) = like {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        let mode = like.map_or(0o644, |like| like.mode() & 0o7777);
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    let done = write();
    if done.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    done
}

/// What to say of a bundle that `why` keeps from being changed, its strictness read where it can be.
pub fn not_injected(config: &Path, why: String) -> NotInjected {
    let text = spec::read_straight(config, spec::LARGEST).unwrap_or_default();
    let strict = Spec::parse(&text, &mut Vec::new()).is_ok_and(|spec| spec.annotations.strict());
    NotInjected { path: config.into(), why, strict }
}

//! What cgshim reads of a container's `config.json`. Source: the OCI runtime specification, `config.md`
//! and `config-linux.md`.
//!
//! Each section is read by itself: a capability or seccomp action that is newer than our types fails a
//! reading of the whole, and must not cost the cgroup path. Nothing is ever written from what is read
//! here; edits are made in the text ([`super::inject`]).

use super::annotations::Annotations;
use super::state::section;
use oci_spec::runtime::LinuxMemory;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

/// The largest `config.json` read, in bytes. Kubernetes' with a seccomp profile is some 20 KiB.
pub const LARGEST: u64 = 16 << 20;

/// The sections of a specification that cgshim uses; `None` where one is missing or not understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spec {
    /// `linux.cgroupsPath`: a path, or `slice:prefix:name` for the systemd driver.
    pub cgroups_path: Option<String>,
    /// `linux.resources.memory`: limits in bytes, -1 for none.
    pub memory: Option<LinuxMemory>,
    /// `process.oomScoreAdj`, -1000 to 1000: Kubernetes derives it from class and request.
    pub oom_score_adj: Option<i32>,
    /// Ours.
    pub annotations: Annotations,
}

impl Spec {
    /// Reads a specification's text; `notes` names the sections that were not understood.
    ///
    /// # Errors
    /// It is not a JSON object: line and column.
    pub fn parse(text: &[u8], notes: &mut Vec<String>) -> Result<Spec, serde_json::Error> {
        let raw: Raw<'_> = serde_json::from_slice(text)?;
        let process: Option<Process<'_>> = section(raw.process, "process", notes);
        let linux: Option<Linux<'_>> = section(raw.linux, "linux", notes);
        let linux = linux.unwrap_or_default();
        let resources: Option<Resources<'_>> = section(linux.resources, "linux.resources", notes);
        let memory = resources.and_then(|resources| resources.memory);
        Ok(Spec {
            cgroups_path: section(linux.cgroups_path, "linux.cgroupsPath", notes),
            memory: section(memory, "linux.resources.memory", notes),
            oom_score_adj: process
                .and_then(|process| section(process.oom_score_adj, "process.oomScoreAdj", notes)),
            annotations: raw
                .annotations
                .map(|raw| Annotations::parse(raw, notes))
                .unwrap_or_default(),
        })
    }
}

/// Reads `config.json` of a bundle.
///
/// # Errors
/// The bundle is not an absolute path without `..`; there is no such file, it is no regular file (a
/// link is none), or larger than [`LARGEST`].
pub fn read_config(bundle: &Path) -> io::Result<Vec<u8>> {
    let straight =
        bundle.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !bundle.is_absolute() || !straight {
        return Err(io::Error::other("not an absolute path without '..'"));
    }
    read_straight(&bundle.join("config.json"), LARGEST)
}

/// Reads a regular file of `largest` bytes at the most; never through a link, and never waiting for a
/// pipe or a device.
pub(super) fn read_straight(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() > largest {
        return Err(io::Error::other(format!("larger than {largest} bytes")));
    }
    let mut text = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1);
    // It may be growing.
    (&file).take(largest).read_to_end(&mut text)?;
    Ok(text)
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    process: Option<&'a RawValue>,
    #[serde(borrow)]
    linux: Option<&'a RawValue>,
    #[serde(borrow)]
    annotations: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Process<'a> {
    #[serde(borrow, rename = "oomScoreAdj")]
    oom_score_adj: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Linux<'a> {
    #[serde(borrow, rename = "cgroupsPath")]
    cgroups_path: Option<&'a RawValue>,
    #[serde(borrow)]
    resources: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Resources<'a> {
    #[serde(borrow)]
    memory: Option<&'a RawValue>,
}

//! Containers of the daemon before us: gone on with, so that a restart loses none, nor a count of theirs.
//!
//! The journal has what they are held to and what was counted. What was asked for them (annotations, the
//! operator's `set`) is in a small file each, `containers/GENERATION.json` in the run directory, written
//! before the registration is answered.

use super::Daemon;
use super::containers::About;
use super::registry::{Container, Source};
use crate::api::message::SCHEMA;
use crate::core::Wishes;
use crate::journal::Found;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory's name in the run directory.
const CONTAINERS: &str = "containers";

/// No note is longer: a registration has at most as much.
const MOST_BYTES: u64 = 256 << 10;

/// Notes read at a start.
const MOST_NOTES: usize = 65_536;

/// What the journal does not hold of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    schema: u32,
    generation: u64,
    id: String,
    /// Its path in the hierarchy, and the inode of that directory.
    path: String,
    inode: u64,
    boot: String,
    pid: Option<i32>,
    source: Source,
    runtime: Option<String>,
    oom_score_adj: Option<i32>,
    annotations: BTreeMap<String, String>,
    set: BTreeMap<String, String>,
    since_ms: u64,
}

/// The notes of a run directory.
pub(super) struct Notes {
    dir: PathBuf,
    boot: String,
}

impl Notes {
    /// Makes the directory if need be, for root alone.
    pub(super) fn open(run_dir: &Path) -> io::Result<Notes> {
        let dir = run_dir.join(CONTAINERS);
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Notes { dir, boot: boot.trim().to_owned() })
    }

    /// Writes down what a container is. A failure costs its annotations after a restart, no more.
    pub(super) fn write(&self, container: &Container) {
        let note = Note {
            schema: SCHEMA,
            generation: container.generation,
            id: container.id.clone(),
            path: container.path.clone(),
            inode: container.inode,
            boot: self.boot.clone(),
            pid: container.pid,
            source: container.source,
            runtime: container.runtime.clone(),
            oom_score_adj: container.oom_score_adj,
            annotations: container.asked.clone(),
            set: container.set_texts.clone(),
            since_ms: container.since_ms,
        };
        let path = self.path(container.generation);
        let unfinished = self.dir.join(".new");
        let written = serde_json::to_vec(&note).map_err(io::Error::other).and_then(|content| {
            let mut options = std::fs::OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.custom_flags(libc::O_NOFOLLOW).open(&unfinished)?;
            io::Write::write_all(&mut file, &content)?;
            std::fs::rename(&unfinished, &path)
        });
        if let Err(error) = written {
            log::warn!(
                "{}: {error}; after a restart container {} has the operator's terms only",
                path.display(),
                container.id
            );
        }
    }

    /// The container has ended.
    pub(super) fn remove(&self, generation: u64) {
        match std::fs::remove_file(self.path(generation)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{}: {error}", self.path(generation).display());
            }
            _ => {}
        }
    }

    /// What is there, and takes it away: who is adopted gets a new one.
    fn take(&self) -> Vec<Note> {
        let mut notes = Vec::new();
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return notes };
        for entry in entries.flatten().take(MOST_NOTES) {
            let path = entry.path();
            let readable =
                entry.metadata().is_ok_and(|found| found.is_file() && found.len() <= MOST_BYTES);
            let note = readable
                .then(|| std::fs::read(&path).ok())
                .flatten()
                .and_then(|content| serde_json::from_slice::<Note>(&content).ok());
            match note {
                Some(note) if note.schema == SCHEMA && note.boot == self.boot => notes.push(note),
                // Of another boot: its cgroups are gone.
                Some(_) => {}
                None => log::warn!("{} is no note of ours, removed", path.display()),
            }
            let _ = std::fs::remove_file(&path);
        }
        notes.sort_by_key(|note| note.generation);
        notes
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("{generation}.json"))
    }
}

impl Daemon {
    /// Goes on with what the journal and the notes know. What stood in the kernel was undone before.
    pub(super) fn adopt(&mut self, found: Vec<Found>) {
        let mut notes = self.notes.take();
        let newest = notes.iter().map(|note| note.generation).max().unwrap_or(0);
        self.registry.continue_after(newest);
        for found in found {
            if found.released {
                self.engine.forget_found(found);
                continue;
            }
            let identity = found.record.identity.clone();
            let same = |note: &Note| {
                note.inode == identity.inode
                    && note.path.trim_matches('/') == identity.path.trim_matches('/')
            };
            let note = notes.iter().position(same).map(|index| notes.swap_remove(index));
            self.adopt_one(&format!("/{}", identity.path), identity.inode, note, Some(found));
        }
        // The journal had no room for these, or was damaged: they begin anew, with what was asked.
        for note in notes {
            let (path, inode) = (note.path.clone(), note.inode);
            self.adopt_one(&path, inode, Some(note), None);
        }
        if self.registry.len() > 0 {
            log::info!("{} containers of the daemon before are gone on with", self.registry.len());
        }
    }

    fn adopt_one(&mut self, path: &str, inode: u64, note: Option<Note>, found: Option<Found>) {
        let id = match (&note, &found) {
            (Some(note), _) => note.id.clone(),
            (None, Some(found)) => found.record.identity.id.clone(),
            (None, None) => return,
        };
        let drop_it = |daemon: &Daemon, found: Option<Found>, why: &str| {
            log::info!("container {id} is not gone on with: {why}");
            if let Some(found) = found {
                daemon.engine.forget_found(found);
            }
        };
        let verified = match self.host.open_relative(path) {
            Ok(verified) if verified.group.inode() == inode => verified,
            Ok(_) => return drop_it(self, found, "another group is at its path now"),
            Err(why) => return drop_it(self, found, &why),
        };
        if self.registry.get(&id).is_some() {
            return drop_it(self, found, "another container has its id");
        }
        let about = match (&note, &found) {
            (Some(note), _) => About {
                id: id.clone(),
                pid: note.pid,
                source: note.source,
                runtime: note.runtime.clone(),
                oom_score_adj: note.oom_score_adj,
                asked: note.annotations.clone(),
                set: note.set.clone(),
                since_ms: Some(note.since_ms),
                fallback: Wishes::default(),
            },
            (None, Some(found)) => About {
                pid: Some(found.record.identity.pid).filter(|pid| *pid > 0),
                fallback: found.record.terms.wishes(),
                ..About::new(id.clone(), Source::Journal)
            },
            (None, None) => return,
        };
        if let Err(why) = self.admit(verified, about, found) {
            log::warn!("container {id} is not gone on with: {why}");
        }
    }
}

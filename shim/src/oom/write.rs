//! Writing records, and forgetting the oldest.

use super::name::Name;
use super::{LONGEST, MOST_RECORDS, SHORT_IDS, directory, fingerprint, last_component};
use crate::core::oom::Record;
use std::collections::{HashMap, VecDeque};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Names whose records are gone that are known at most: 8 bytes each.
pub(super) const MOST_EXPIRED: u64 = 131_072;

/// How many records are written before the directory is read again, for those of other processes.
const RESCAN_AFTER: u32 = 64;

/// Writes records of this boot to a directory. Several processes may do so at a time.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Files there that are known, oldest first.
    names: VecDeque<Name>,
    since_scan: u32,
    buf: Vec<u8>,
}

impl Store {
    /// Opens the store under `run_dir`, making both where they are missing. What is too old is removed.
    pub fn open(run_dir: &Path) -> io::Result<Store> {
        let dir = directory(run_dir);
        DirBuilder::new().recursive(true).mode(0o755).create(&dir)?;
        let mut store = Store { dir, names: VecDeque::new(), since_scan: 0, buf: Vec::new() };
        store.scan()?;
        store.prune(super::boot_ms());
        Ok(store)
    }

    /// Writes a record, or replaces the one of its id. A reader sees the old one or the new one, whole.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let name = format!("{}.json", record.id);
        let temporary = self.dir.join(format!(".{name}"));
        self.buf.clear();
        serde_json::to_writer(&mut self.buf, record)?;
        self.buf.push(b'\n');
        // Left over from a process that died here: not ours to read, but to replace.
        let _ = std::fs::remove_file(&temporary);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(&self.buf)?;
        drop(file);
        std::fs::rename(&temporary, self.dir.join(&name))?;
        self.since_scan += 1;
        if self.since_scan >= RESCAN_AFTER {
            self.scan()?;
        } else if let Some(name) = Name::parse(&name) {
            self.note(name);
        }
        self.prune(record.boot_ms);
        Ok(())
    }

    /// What is on record of each group, by its directory and inode: its `oom_kill` with the newest record.
    /// For whoever watches them from now on.
    pub fn recorded(&self) -> HashMap<(String, u64), u64> {
        let mut counters = HashMap::new();
        for name in &self.names {
            if let Some(record) = super::read::record(&self.dir.join(name.to_string()))
                && let Some(counter) = record.oom_kill_counter
            {
                let known = counters.entry((record.cgroup, record.generation)).or_insert(counter);
                *known = counter.max(*known);
            }
        }
        counters
    }

    /// Where the records are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn scan(&mut self) -> io::Result<()> {
        let dir = std::mem::take(&mut self.dir);
        let scanned = super::read::names(&dir, |name| self.note(name));
        self.dir = dir;
        self.since_scan = 0;
        scanned
    }

    /// A file of this name is there.
    fn note(&mut self, name: Name) {
        if let Err(after) = self.names.binary_search(&name) {
            self.names.insert(after, name);
        }
    }

    /// Removes what is too old or too many, and remembers of whom it was.
    fn prune(&mut self, boot_ms: u64) {
        let oldest = boot_ms.saturating_sub(u64::try_from(LONGEST.as_millis()).unwrap_or(u64::MAX));
        while let Some(name) = self.names.front()
            && (self.names.len() > MOST_RECORDS || name.boot_ms < oldest)
        {
            let path = self.dir.join(name.to_string());
            if let Some(record) = super::read::record(&path)
                && let Err(error) = self.expire(&record)
            {
                log::debug!("{}: {error}", self.dir.display());
            }
            let _ = std::fs::remove_file(path);
            self.names.pop_front();
        }
    }

    /// Notes the names of a record that goes in a ring: a counter, then fingerprints.
    fn expire(&self, record: &Record) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(self.dir.join(super::read::EXPIRED))?;
        let mut names: Vec<&str> = vec![
            &record.id,
            &record.name,
            &record.container,
            &record.cgroup,
            last_component(&record.cgroup),
        ];
        names.extend(SHORT_IDS.iter().filter_map(|length| record.container.get(..*length)));
        names.sort_unstable();
        names.dedup();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            note(&file, fingerprint(name.as_bytes()))?;
        }
        Ok(())
    }
}

fn note(file: &File, fingerprint: u64) -> io::Result<()> {
    let mut count = [0; 8];
    let written = match file.read_exact_at(&mut count, 0) {
        Ok(()) => u64::from_le_bytes(count),
        Err(_) => 0,
    };
    // The slot first: a reader takes all there is, and a slot without its count is only overwritten.
    file.write_all_at(&fingerprint.to_le_bytes(), 8 + 8 * (written % MOST_EXPIRED))?;
    file.write_all_at(&written.wrapping_add(1).to_le_bytes(), 0)
}

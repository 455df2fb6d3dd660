//! Finding records. Needs nobody's help: the files are all there is.

use super::name::Name;
use super::{LONGEST, MOST_RECORDS, directory, fingerprint, last_component};
use crate::core::oom::Record;
use std::io;
use std::path::Path;

/// The list of those whose records are gone.
pub(super) const EXPIRED: &str = "expired";

/// A record is some 2 KiB; what is longer is none.
const LONGEST_FILE: u64 = 1 << 20;

/// What there is about somebody.
#[derive(Debug)]
pub enum Found {
    /// These records, newest first.
    Records(Vec<Record>),
    /// The word stands for several containers: their names and cgroups.
    Ambiguous(Vec<(String, String)>),
    /// There were records; they were dropped, being too old or too many.
    Expired,
    /// Nothing of the kind is on record.
    Unknown,
}

/// All records under `run_dir`, newest first: at most [`MOST_RECORDS`], none older than [`LONGEST`].
/// Files that are no records are passed over. None is there before the first OOM.
pub fn all(run_dir: &Path) -> io::Result<Vec<Record>> {
    let dir = directory(run_dir);
    let mut found = Vec::new();
    match names(&dir, |name| found.push(name)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.truncate(MOST_RECORDS);
    let oldest =
        super::boot_ms().saturating_sub(u64::try_from(LONGEST.as_millis()).unwrap_or(u64::MAX));
    Ok(found
        .iter()
        .filter(|name| name.boot_ms >= oldest)
        .filter_map(|name| record(&dir.join(name.to_string())))
        .collect())
}

/// The records that `word` stands for: a record's id, a container's name, its id or the start of it
/// (4 characters at least), its cgroup's path or directory name.
pub fn find(run_dir: &Path, word: &str) -> io::Result<Found> {
    let records = all(run_dir)?;
    let exact = |record: &Record| {
        record.id == word
            || record.name == word
            || record.container == word
            || record.cgroup == word
            || (word.starts_with('/') && record.cgroup.ends_with(word))
            || last_component(&record.cgroup) == word
    };
    let prefix = |record: &Record| word.len() >= 4 && record.container.starts_with(word);
    for matches in [&exact as &dyn Fn(&Record) -> bool, &prefix] {
        let found: Vec<&Record> = records.iter().filter(|record| matches(record)).collect();
        let mut whose: Vec<(&str, &str)> = found
            .iter()
            .map(|record| (record.container.as_str(), record.cgroup.as_str()))
            .collect();
        whose.sort_unstable();
        whose.dedup();
        match whose.len() {
            0 => {}
            1 => return Ok(Found::Records(found.into_iter().cloned().collect())),
            _ => {
                return Ok(Found::Ambiguous(
                    whose.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect(),
                ));
            }
        }
    }
    Ok(if is_expired(&directory(run_dir), word) { Found::Expired } else { Found::Unknown })
}

/// Whether a record of that name was there once.
fn is_expired(dir: &Path, word: &str) -> bool {
    let Ok(list) = std::fs::read(dir.join(EXPIRED)) else { return false };
    let wanted = fingerprint(word.as_bytes()).to_le_bytes();
    list.chunks_exact(8).skip(1).any(|slot| slot == wanted)
}

/// Has `found` see the name of each record's file, in no order.
pub(super) fn names(dir: &Path, mut found: impl FnMut(Name)) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        if let Some(name) = entry?.file_name().to_str().and_then(Name::parse) {
            found(name);
        }
    }
    Ok(())
}

pub(super) fn record(path: &Path) -> Option<Record> {
    let length = std::fs::symlink_metadata(path).ok().filter(|meta| meta.is_file())?.len();
    if length > LONGEST_FILE {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

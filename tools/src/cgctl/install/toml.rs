//! Reading TOML of others: for a list of directories, and to be sure of what an edit would say.

use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A document, or what is wrong with it and on which line.
pub(super) fn parse(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: {}", error.message())
    })
}

/// The line on which `needle` first stands; 1 if nowhere.
pub(super) fn line_of(text: &str, needle: &str) -> usize {
    text.find(needle).map_or(0, |at| text[..at].matches('\n').count()) + 1
}

/// What is at a path of keys.
pub(super) fn get<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (first, rest) = keys.split_first()?;
    let found = table.get(*first)?;
    if rest.is_empty() { Some(found) } else { get(found.as_table()?, rest) }
}

/// A list of strings in a file; `None` where file or key is missing.
pub(super) fn strings_at(file: &Path, keys: &[&str]) -> Result<Option<Vec<String>>, String> {
    let Some(text) = super::change::read(file)? else { return Ok(None) };
    let named = |why: String| format!("{}: {why}", file.display());
    let table = parse(&text).map_err(named)?;
    let Some(value) = get(&table, keys) else { return Ok(None) };
    let strings = value.as_array().and_then(|list| {
        list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    let key = keys.last().unwrap_or(&"");
    let line = line_of(&text, key);
    strings.map(Some).ok_or_else(|| named(format!("line {line}: {key} is not a list of strings")))
}

/// The files of a drop-in directory in the order in which they are read.
pub(super) fn drop_ins(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", dir.display())),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_file())
        .filter(|path| extension.is_empty() || path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    Ok(files)
}

/// `default` if it is among `dirs`, else the last of them, which is read last and wins.
pub(super) fn preferred(dirs: &[String], default: &str) -> Option<String> {
    dirs.iter().find(|dir| *dir == default).or(dirs.last()).cloned()
}

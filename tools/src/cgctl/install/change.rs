//! A file before and after, as a diff, as a deed, and back again.
//!
//! A file that is edited is kept as it was beside itself, `NAME.cgshim-before`. To undo puts that back if the
//! file is still what we made of it; if somebody has edited it since, only our part comes out, and the rest
//! stays theirs.

use cgshim::oci::inject::replace;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What is to happen to one file; `None` for a file that is not there.
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    /// Keep `before` beside the file, or remove what was kept.
    pub(super) keep: Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing: the file is ours alone, or what it was is kept already.
    Nothing,
    /// Keep it.
    Before,
    /// Remove what was kept.
    NoLonger,
}

impl Change {
    /// Makes `path` hold `content`, a file of ours alone; with `undo`, takes it away if that is what it holds.
    pub(super) fn own(path: PathBuf, content: String, undo: bool) -> Result<Change, String> {
        let before = read(&path)?;
        let after = match (&before, undo) {
            (Some(there), true) if *there == content => None,
            (_, true) => before.clone(),
            (_, false) => Some(content),
        };
        Ok(Change { path, before, after, keep: Keep::Nothing })
    }

    /// Edits `path` by `put`, or takes our part out again by `take`. Both get the file's text and give the new
    /// one, or say what is in the way and on which line.
    pub(super) fn edit(
        path: PathBuf,
        undo: bool,
        put: impl Fn(&str) -> Result<String, String>,
        take: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Change, String> {
        let before = read(&path)?;
        let named = |why: String| format!("{}: {why}", path.display());
        if !undo {
            let after = put(before.as_deref().unwrap_or("")).map_err(named)?;
            let after = Some(after);
            // What already has a part of ours is not how it was before.
            let pristine = before.as_deref().is_none_or(|text| take(text).as_deref() == Ok(text));
            let keep = if pristine { Keep::Before } else { Keep::Nothing };
            return Ok(Change { path, before, after, keep });
        }
        let kept = read(&beside(&path))?;
        let after = match (&before, &kept) {
            (None, _) => None,
            // What was there before, or nothing, if the file is what that became.
            (Some(now), _) if put(kept.as_deref().unwrap_or("")).as_ref() == Ok(now) => {
                kept.clone()
            }
            (Some(now), _) => Some(take(now).map_err(named)?),
        };
        Ok(Change { path, before, after, keep: Keep::NoLonger })
    }

    /// Whether anything changes.
    pub(super) fn is_one(&self) -> bool {
        self.before != self.after
    }

    /// As `diff -u` shows it. What we do is in one place of a file, so that common lines at both ends are all
    /// the difference there is to find.
    pub(super) fn diff(&self) -> String {
        const AROUND: usize = 3;
        let lines = |text: &Option<String>| -> Vec<String> {
            text.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
        };
        let name = |text: &Option<String>| match text {
            Some(_) => self.path.display().to_string(),
            None => "/dev/null".into(),
        };
        let (old, new) = (lines(&self.before), lines(&self.after));
        let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
        let tail = old[head..].iter().rev().zip(new[head..].iter().rev());
        let tail = tail.take_while(|(a, b)| a == b).count();
        let (from, after) = (head.saturating_sub(AROUND), tail.saturating_sub(AROUND));
        let span = |lines: &[String]| {
            let n = lines.len() - after - from;
            if n == 0 { format!("{from},0") } else { format!("{},{n}", from + 1) }
        };
        let mut text = format!("--- {}\n+++ {}\n", name(&self.before), name(&self.after));
        text.push_str(&format!("@@ -{} +{} @@\n", span(&old), span(&new)));
        let mut put = |sign: char, lines: &[String]| {
            for line in lines {
                text.push_str(&format!("{sign}{line}\n"));
            }
        };
        put(' ', &old[from..head]);
        put('-', &old[head..old.len() - tail]);
        put('+', &new[head..new.len() - tail]);
        put(' ', &old[old.len() - tail..old.len() - after]);
        text
    }

    fn make(&self) -> io::Result<()> {
        let metadata = fs::metadata(&self.path).ok();
        if let (Keep::Before, Some(before)) = (self.keep, &self.before) {
            replace(&beside(&self.path), before.as_bytes(), metadata.as_ref())?;
        }
        match &self.after {
            Some(after) => {
                if let Some(dir) = self.path.parent() {
                    fs::create_dir_all(dir)?;
                }
                replace(&self.path, after.as_bytes(), metadata.as_ref())?;
            }
            None => fs::remove_file(&self.path)?,
        }
        if self.keep == Keep::NoLonger {
            match fs::remove_file(beside(&self.path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn take_back(&self) {
        let back = Change {
            path: self.path.clone(),
            before: self.after.clone(),
            after: self.before.clone(),
            keep: Keep::Nothing,
        };
        let _ = back.make();
    }
}

/// Makes all changes, or none.
pub(super) fn make(changes: &[&Change]) -> Result<(), String> {
    for (n, change) in changes.iter().enumerate() {
        if let Err(error) = change.make() {
            changes[..n].iter().rev().for_each(|made| made.take_back());
            return Err(format!("{}: {error}; nothing is changed", change.path.display()));
        }
    }
    Ok(())
}

fn beside(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().into();
    name.push(".cgshim-before");
    name.into()
}

/// A text file, through links; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(before: Option<&str>, after: Option<&str>) -> String {
        let (before, after) = (before.map(str::to_owned), after.map(str::to_owned));
        Change { path: "/f".into(), before, after, keep: Keep::Nothing }.diff()
    }

    #[test]
    fn a_diff_is_what_diff_u_prints() {
        assert_eq!(diff(None, Some("a\nb\n")), "--- /dev/null\n+++ /f\n@@ -0,0 +1,2 @@\n+a\n+b\n");
        assert_eq!(diff(Some("a\n"), None), "--- /f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
        assert_eq!(
            diff(Some("1\n2\n3\n4\n5\n6\n7\n8\n9\n"), Some("1\n2\n3\n4\nx\ny\n6\n7\n8\n9\n")),
            "--- /f\n+++ /f\n@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+x\n+y\n 6\n 7\n 8\n"
        );
        assert_eq!(diff(Some("a\n"), Some("a\na\n")), "--- /f\n+++ /f\n@@ -1,1 +1,2 @@\n a\n+a\n");
    }
}

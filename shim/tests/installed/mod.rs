//! Where programs are as they are installed, and not as Cargo builds them for tests.

#![allow(clippy::unwrap_used)] // what fails here fails the test that called

use std::fs;
use std::path::{Path, PathBuf};

/// What `ci/build-static` made, if it is there and newer than every source file of ours.
pub(crate) fn current(name: &str) -> Option<PathBuf> {
    let debug = PathBuf::from(env!("CARGO_BIN_EXE_cgshim-hook"));
    let built = debug.parent()?.parent()?.join("static").join(name);
    let made = fs::metadata(&built).ok()?.modified().ok()?;
    let mut ahead = ["src", "../cgroupfs/src", "../Cargo.lock"]
        .map(|path| Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .to_vec();
    while let Some(path) = ahead.pop() {
        if path.is_dir() {
            ahead.extend(fs::read_dir(&path).ok()?.map(|entry| entry.unwrap().path()));
        } else if fs::metadata(&path).ok()?.modified().ok()? > made {
            return None;
        }
    }
    Some(built)
}

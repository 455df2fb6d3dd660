//! podman: the hook's files in the directory where it looks for them.

use super::{Place, Plan, hooks_d, toml};
use std::path::PathBuf;

/// Later ones win. Source: `containers.conf(5)`.
const CONFIGS: [&str; 2] =
    ["/usr/share/containers/containers.conf", "/etc/containers/containers.conf"];
const CONFIG_D: &str = "/etc/containers/containers.conf.d";

pub(super) fn plan(place: &Place<'_>, undo: bool) -> Result<Plan, String> {
    let mut dirs = vec![hooks_d::DEFAULT_DIR.to_owned()];
    let mut files: Vec<PathBuf> = CONFIGS.iter().map(|path| place.at(path)).collect();
    files.extend(toml::drop_ins(&place.at(CONFIG_D), "conf")?);
    for file in &files {
        if let Some(set) = toml::strings_at(file, &["engine", "hooks_dir"])? {
            dirs = set;
        }
    }
    let dir = toml::preferred(&dirs, hooks_d::DEFAULT_DIR)
        .ok_or("hooks_dir of containers.conf is empty: podman is told to run no hooks")?;
    Ok(Plan {
        changes: hooks_d::changes(place, dir.as_ref(), undo)?,
        notes: vec![
            "root's containers call the hook from now on; those of other users cannot reach the daemon, \
             and run without cgshim"
                .into(),
        ],
    })
}

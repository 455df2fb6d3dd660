//! CRI-O: the hook's files, and a drop-in that names their directory.

use super::change::Change;
use super::{Place, Plan, hooks_d, toml};
use std::path::PathBuf;

const CONFIG: &str = "/etc/crio/crio.conf";
const CONFIG_D: &str = "/etc/crio/crio.conf.d";
const OURS: &str = "50-cgshim.conf";

pub(super) fn plan(place: &Place<'_>, undo: bool) -> Result<Plan, String> {
    let mut dirs = vec![hooks_d::DEFAULT_DIR.to_owned()];
    let mut files: Vec<PathBuf> = vec![place.at(CONFIG)];
    files.extend(toml::drop_ins(&place.at(CONFIG_D), "")?);
    let ours = place.at(CONFIG_D).join(OURS);
    let mut notes = Vec::new();
    for file in files.iter().filter(|file| **file != ours) {
        if let Some(set) = toml::strings_at(file, &["crio", "runtime", "hooks_dir"])? {
            dirs = set;
            // Drop-ins are read in the order of their names.
            if file.parent() == ours.parent() && file.file_name() > ours.file_name() {
                notes.push(format!("{} sets hooks_dir too, and comes after ours", file.display()));
            }
        }
    }
    if !dirs.iter().any(|dir| dir == hooks_d::DEFAULT_DIR) {
        dirs.push(hooks_d::DEFAULT_DIR.into());
    }
    let drop_in = format!(
        "# By \"cgctl install crio\"; \"--undo\" takes it away.\n[crio.runtime]\nhooks_dir = {}\n",
        serde_json::Value::from(dirs)
    );
    let mut changes = hooks_d::changes(place, hooks_d::DEFAULT_DIR.as_ref(), undo)?;
    let mut change = Change::own(ours, drop_in, undo)?;
    if undo
        && change
            .before
            .as_ref()
            .is_some_and(|text| text.starts_with("# By \"cgctl install crio\""))
    {
        // What it says follows other files, which may have changed since.
        change.after = None;
    }
    changes.push(change);
    notes.push("CRI-O reads this when it is started again: systemctl restart crio".into());
    Ok(Plan { changes, notes })
}

//! The hooks.d files that podman and CRI-O read: one for each stage, as `shim/dist/hooks.d` has them. Source:
//! `oci-hooks(5)`.

use super::Place;
use super::change::Change;
use cgshim::oci::inject::HOOK_PATH;
use std::path::Path;

/// Where both look by default.
pub(super) const DEFAULT_DIR: &str = "/usr/share/containers/oci/hooks.d";

const FILES: [(&str, &str); 2] = [
    (
        "cgshim-createRuntime.json",
        include_str!("../../../../shim/dist/hooks.d/cgshim-createRuntime.json"),
    ),
    ("cgshim-poststop.json", include_str!("../../../../shim/dist/hooks.d/cgshim-poststop.json")),
];

pub(super) fn changes(place: &Place<'_>, dir: &Path, undo: bool) -> Result<Vec<Change>, String> {
    let hook = place.hook.to_str().ok_or("the hook's path is not UTF-8")?;
    let hook = serde_json::Value::from(hook).to_string();
    FILES
        .into_iter()
        .map(|(name, content)| {
            let content = content.replace(&format!("\"{HOOK_PATH}\""), &hook);
            Change::own(place.at(dir).join(name), content, undo)
        })
        .collect()
}

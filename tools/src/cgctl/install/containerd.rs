//! containerd: a runtime `cgshim` for its CRI plugin, the wrapper with the options of runc. Source: containerd's
//! `docs/cri/config.md`, versions 2 and 3 of the configuration.

use super::change::Change;
use super::{Place, Plan, toml as read};
use toml::{Table, Value};

const CONFIG: &str = "/etc/containerd/config.toml";
const BEGIN: &str =
    "# --- cgshim: by \"cgctl install containerd\", which takes it out with --undo\n";
const END: &str = "# --- cgshim: end\n";

/// Annotations that reach the hook: containerd passes on what is listed here alone.
const ANNOTATIONS: &str = "io.cgshim.*";

pub(super) fn plan(place: &Place<'_>, undo: bool) -> Result<Plan, String> {
    let wrapper = place.wrapper.to_str().ok_or("the wrapper's path is not UTF-8")?;
    let change = Change::edit(
        place.at(CONFIG),
        undo,
        |text| with_runtime(text, wrapper),
        |text| Ok(without(text)),
    )?;
    let mut notes = vec![
        "containerd reads this when it is started again: systemctl restart containerd".into(),
        "Kubernetes: a RuntimeClass with handler cgshim; or default_runtime_name = \"cgshim\" in that file".into(),
        format!("ctr: ctr run --runc-binary {wrapper} ..."),
    ];
    if let Some(text) = &change.before {
        notes.extend(warnings(text));
    }
    Ok(Plan { changes: vec![change], notes })
}

/// What the file says that keeps our part from working, or makes it work otherwise.
fn warnings(text: &str) -> Vec<String> {
    let Ok(table) = read::parse(text) else { return Vec::new() };
    let mut notes = Vec::new();
    let disabled = table.get("disabled_plugins").and_then(Value::as_array);
    let off = |value: &Value| {
        value.as_str().is_some_and(|name| name.ends_with("cri") || name.contains(".cri."))
    };
    if disabled.is_some_and(|list| list.iter().any(off)) {
        notes.push(format!(
            "line {}: the CRI plugin is disabled, so that this serves nobody but ctr",
            read::line_of(text, "disabled_plugins")
        ));
    }
    let runc = version(text, &table).ok().and_then(|plugin| runtime(&table, plugin, "runc"));
    let binary = runc.and_then(|runc| read::get(runc, &["options", "BinaryName"])?.as_str());
    if let Some(binary) = binary.filter(|binary| !binary.is_empty() && !binary.ends_with("runc")) {
        notes.push(format!(
            "runtimes.runc runs {binary}; cgshim-runtime becomes runc or crun from its PATH unless \
             CGSHIM_RUNTIME in containerd's environment names {binary}"
        ));
    }
    notes
}

fn with_runtime(text: &str, wrapper: &str) -> Result<String, String> {
    if text.contains(BEGIN) {
        let without = without(text);
        let again = with_runtime(&without, wrapper)?;
        // Ours, in the middle of what others have added since, and as it would be now: it may stay there.
        let block = |text: &str| {
            text.split_once(BEGIN).map(|(_, rest)| rest.split(END).next().map(str::to_owned))
        };
        return Ok(if block(&again) == block(text) { text.into() } else { again });
    }
    let start = if text.trim().is_empty() { "version = 2\n" } else { text };
    let table = read::parse(start)?;
    let plugin = version(start, &table)?;
    if runtime(&table, plugin, "cgshim").is_some() {
        return Err(format!(
            "line {}: there is a runtime 'cgshim' already that is not of our making",
            read::line_of(start, "runtimes.cgshim")
        ));
    }
    let mut ours = runtime(&table, plugin, "runc").cloned().unwrap_or_default();
    ours.entry("runtime_type").or_insert("io.containerd.runc.v2".into());
    for key in ["pod_annotations", "container_annotations"] {
        if let Value::Array(list) = ours.entry(key).or_insert(Value::Array(Vec::new()))
            && !list.iter().any(|item| item.as_str() == Some(ANNOTATIONS))
        {
            list.push(ANNOTATIONS.into());
        }
    }
    if let Value::Table(options) = ours.entry("options").or_insert(Value::Table(Table::new())) {
        options.insert("BinaryName".into(), wrapper.into());
    }
    let path = ["plugins", plugin, "containerd", "runtimes", "cgshim"];
    let nested = path.iter().rev().fold(Value::Table(ours), |inner, key| {
        Value::Table(Table::from_iter([((*key).to_owned(), inner)]))
    });
    let block = toml::to_string(&nested).map_err(|error| error.to_string())?;
    // An empty line above; a last line without an end gets that instead, which `without` takes back as well.
    let edited = format!("{start}\n{BEGIN}{block}{END}");
    // Inline tables and dotted keys of others can make this what it is not meant to be.
    let now = read::parse(&edited).map_err(|error| {
        format!("with a table runtimes.cgshim added it would be no TOML any more: {error}")
    })?;
    match runtime(&now, plugin, "cgshim").is_some() {
        true => Ok(edited),
        false => Err("with a table runtimes.cgshim added it would not have one".into()),
    }
}

/// The file without our block; as it was, if nobody else has touched it.
fn without(text: &str) -> String {
    let Some((before, rest)) = text.split_once(BEGIN) else { return text.into() };
    let after = rest.split_once(END).map_or("", |(_, after)| after);
    format!("{}{after}", before.strip_suffix('\n').unwrap_or(before))
}

/// The plugin that the version of the configuration gives CRI's runtimes to.
fn version(text: &str, table: &Table) -> Result<&'static str, String> {
    match table.get("version").and_then(Value::as_integer) {
        Some(2) => Ok("io.containerd.grpc.v1.cri"),
        Some(3) => Ok("io.containerd.cri.v1.runtime"),
        None => {
            Err("line 1: no version, so it is version 1: have containerd config migrate make it 2"
                .into())
        }
        Some(other) => Err(format!(
            "line {}: version {other} of the configuration is not known here (2 and 3 are)",
            read::line_of(text, "version")
        )),
    }
}

fn runtime<'a>(table: &'a Table, plugin: &str, name: &str) -> Option<&'a Table> {
    read::get(table, &["plugins", plugin, "containerd", "runtimes", name])?.as_table()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRAPPER: &str = "/usr/bin/cgshim-runtime";

    fn ours(text: &str, plugin: &str) -> Table {
        runtime(&read::parse(text).unwrap(), plugin, "cgshim").unwrap().clone()
    }

    #[test]
    fn runcs_options_are_taken_over() {
        for (version, plugin) in
            [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")]
        {
            let text = format!(
                "version = {version} # ours\n[plugins.\"{plugin}\".containerd.runtimes.runc]\n\
                 runtime_type = \"io.containerd.runc.v2\"\nsnapshotter = \"overlayfs\"\n\
                 pod_annotations = [\"a.*\"]\n\
                 [plugins.\"{plugin}\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
            );
            let edited = with_runtime(&text, WRAPPER).unwrap();
            assert!(edited.starts_with(&text));
            let ours = ours(&edited, plugin);
            assert_eq!(ours["snapshotter"].as_str(), Some("overlayfs"));
            assert_eq!(ours["options"]["SystemdCgroup"].as_bool(), Some(true));
            assert_eq!(ours["options"]["BinaryName"].as_str(), Some(WRAPPER));
            assert_eq!(ours["pod_annotations"].as_array().unwrap().len(), 2);
            assert_eq!(with_runtime(&edited, WRAPPER).unwrap(), edited, "a second time");
            assert_eq!(without(&edited), text);
        }
    }

    #[test]
    fn the_way_back_is_exact() {
        for text in ["version = 2\n", "version = 2", "version = 2\n\n\n", "version=2\r\n# x\r\n"] {
            assert_eq!(without(&with_runtime(text, WRAPPER).unwrap()), text, "{text:?}");
        }
        let edited = with_runtime("version = 2\n", WRAPPER).unwrap();
        assert_eq!(
            without(&format!("{edited}[debug]\nlevel = \"info\"\n")),
            "version = 2\n[debug]\nlevel = \"info\"\n"
        );
    }

    #[test]
    fn an_edit_of_others_below_ours_does_not_move_it() {
        let edited = with_runtime("version = 2\n", WRAPPER).unwrap() + "[debug]\n";
        assert_eq!(with_runtime(&edited, WRAPPER).unwrap(), edited);
        let moved = with_runtime(&edited, "/opt/cgshim-runtime").unwrap();
        assert!(moved.contains("/opt/cgshim-runtime") && !moved.contains(WRAPPER), "{moved}");
    }

    #[test]
    fn a_missing_file_is_made() {
        let made = with_runtime("", WRAPPER).unwrap();
        assert_eq!(
            ours(&made, "io.containerd.grpc.v1.cri")["runtime_type"].as_str(),
            Some("io.containerd.runc.v2")
        );
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_line() {
        for (text, said) in [
            ("disabled_plugins = [\"cri\"]\n", "no version"),
            ("# x\nversion = 4\n", "line 2: version 4"),
            ("version = 2\n\n[plugins\n", "line 3: "),
            ("version = 2\nplugins = {}\n", "no TOML any more: line "),
            (
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.cgshim]\n",
                "line 2: there is a runtime 'cgshim' already",
            ),
        ] {
            let error = with_runtime(text, WRAPPER).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn what_would_not_work_is_said() {
        let text = "version = 2\ndisabled_plugins = [\"cri\"]\n\
            [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nBinaryName = \"/usr/bin/crun\"\n";
        let notes = warnings(text);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(
            notes[0].starts_with("line 2: ") && notes[1].contains("/usr/bin/crun"),
            "{notes:?}"
        );
    }
}

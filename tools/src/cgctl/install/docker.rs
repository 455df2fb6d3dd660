//! docker: the wrapper as a runtime in `daemon.json`, whose other bytes stay. Source: dockerd(8), `runtimes`.

use super::change::Change;
use super::{Place, Plan};
use cgshim::oci::json::{self, Member};
use std::ops::Range;

const CONFIG: &str = "/etc/docker/daemon.json";

pub(super) fn plan(place: &Place<'_>, undo: bool) -> Result<Plan, String> {
    let wrapper = place.wrapper.to_str().ok_or("the wrapper's path is not UTF-8")?;
    let change =
        Change::edit(place.at(CONFIG), undo, |text| with_runtime(text, wrapper), without_runtime)?;
    Ok(Plan {
        changes: vec![change],
        notes: vec![
            "docker reads this on reload: systemctl reload docker".into(),
            "then: docker run --runtime cgshim ..., or \"default-runtime\": \"cgshim\" in that file".into(),
        ],
    })
}

fn with_runtime(text: &str, wrapper: &str) -> Result<String, String> {
    let text = if text.trim().is_empty() { "{}\n" } else { text };
    let path = serde_json::Value::from(wrapper);
    let all = json::document(text).map_err(|error| error.to_string())?;
    let Some(runtimes) = find(text, &all, "runtimes")? else {
        let runtimes = format!(
            "{{\n    \"cgshim\": {{\n      \"path\": {path}\n    }}\n  }}{}",
            if is_empty(text, &all) { "" } else { "," }
        );
        let at = all.start + 1..all.start + 1;
        let end = if is_empty(text, &all) { "\n" } else { "" };
        return Ok(json::splice(text, at, &format!("\n  \"runtimes\": {runtimes}{end}")));
    };
    match find(text, &runtimes, "cgshim")? {
        None => {
            let comma = if is_empty(text, &runtimes) { "" } else { "," };
            let entry = format!("\n    \"cgshim\": {{\n      \"path\": {path}\n    }}{comma}");
            Ok(json::splice(text, runtimes.start + 1..runtimes.start + 1, &entry))
        }
        Some(there) => {
            let value: serde_json::Value =
                serde_json::from_str(&text[there.clone()]).map_err(|error| error.to_string())?;
            match value["path"] == path {
                true => Ok(text.into()),
                false => Err(format!(
                    "line {}: there is a runtime 'cgshim' already, with path {}",
                    line(text, there.start),
                    value["path"]
                )),
            }
        }
    }
}

/// Takes out the member `cgshim` of `runtimes`, and `runtimes` if that leaves it empty.
fn without_runtime(text: &str) -> Result<String, String> {
    let all = json::document(text).map_err(|error| error.to_string())?;
    let Some(runtimes) = find(text, &all, "runtimes")? else { return Ok(text.into()) };
    if find(text, &runtimes, "cgshim")?.is_none() {
        return Ok(text.into());
    }
    let others = members(text, &runtimes)?.len() > 1;
    let (object, name) = if others { (runtimes, "cgshim") } else { (all, "runtimes") };
    let members = members(text, &object)?;
    let n = members.iter().position(|member| member.name == name).unwrap_or(0);
    // From the comma (or bracket) before it to its end; the first goes with the comma after it.
    let start = match n {
        0 => object.start + 1,
        _ => members[n - 1].value.end,
    };
    let mut end = members[n].value.end;
    if n == 0 && members.len() > 1 {
        end += text[end..].find(',').unwrap_or(0) + 1;
    }
    Ok(json::splice(text, start..end, ""))
}

fn members(text: &str, object: &Range<usize>) -> Result<Vec<Member>, String> {
    json::members(text, object.clone())
        .map_err(|error| format!("line {}: {error}", line(text, object.start)))
}

fn find(text: &str, object: &Range<usize>, name: &str) -> Result<Option<Range<usize>>, String> {
    let found = members(text, object)?.into_iter().find(|member| member.name == name);
    Ok(found.map(|member| member.value))
}

fn is_empty(text: &str, object: &Range<usize>) -> bool {
    text[object.start + 1..object.end - 1].trim().is_empty()
}

fn line(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_comes_and_goes_and_the_rest_stays() {
        for text in [
            "{}",
            "{\n}\n",
            "{\n  \"log-opts\": {\"max-size\": \"1.0e1\"},\n  \"debug\": true\n}\n",
            "{\"runtimes\":{}, \"x\":[1.50]}",
            "{\"x\":1,\"runtimes\":{\"kata\":{\"path\":\"/k\"}}}",
        ] {
            let edited = with_runtime(text, "/usr/bin/cgshim-runtime").unwrap();
            let value: serde_json::Value = serde_json::from_str(&edited).unwrap();
            assert_eq!(value["runtimes"]["cgshim"]["path"], "/usr/bin/cgshim-runtime", "{edited}");
            assert_eq!(with_runtime(&edited, "/usr/bin/cgshim-runtime").unwrap(), edited);
            let back: serde_json::Value =
                serde_json::from_str(&without_runtime(&edited).unwrap()).unwrap();
            let mut expected: serde_json::Value = serde_json::from_str(text).unwrap();
            if expected["runtimes"] == serde_json::json!({}) {
                expected.as_object_mut().unwrap().remove("runtimes");
            }
            assert_eq!(back, expected, "{edited}");
        }
    }

    #[test]
    fn others_edits_survive_the_way_back() {
        let edited = with_runtime("{\n  \"debug\": true\n}\n", "/w").unwrap();
        let later = edited.replace("true", "false");
        assert_eq!(without_runtime(&later).unwrap(), "{\n  \"debug\": false\n}\n");
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_line() {
        for (text, said) in [
            ("{\n \"a\": 1,\n}", "line 3 column 1"),
            ("{\n \"runtimes\": []\n}", "line 2: invalid type: sequence"),
            ("{\n \"runtimes\": {\n\"cgshim\": {\"path\": \"/o\"}}}", "line 3: there is a runtime"),
        ] {
            let error = with_runtime(text, "/w").unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}

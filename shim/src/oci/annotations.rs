//! The annotations that cgshim understands: `io.cgshim.*`. They come from whoever may start containers,
//! so they are bounded here and judged by the daemon.

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// What our annotations' names begin with.
pub const PREFIX: &str = "io.cgshim.";

/// A container with this at `true` does not start unless it is registered.
pub const STRICT: &str = "io.cgshim.strict";

/// More are not taken from one container.
const MOST: usize = 32;

/// Names and values that are longer, in bytes, are not taken: all that are fit into one request.
const LONGEST: usize = 256;

/// A container's `io.cgshim.*` annotations, by full name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations(pub BTreeMap<String, String>);

impl Annotations {
    /// Takes ours from the `annotations` of a state or a specification. What is not as it should be is
    /// left out, and `notes` says so: values that are not strings, too long, too many.
    pub fn parse(section: &RawValue, notes: &mut Vec<String>) -> Annotations {
        let mut found = Annotations::default();
        let mut reader = serde_json::Deserializer::from_str(section.get());
        let taken = reader.deserialize_map(Ours { found: &mut found, notes });
        if let Err(error) = taken {
            notes.push(format!("annotations: {error}"));
        }
        found
    }

    /// Adds those of `other` that are not here.
    pub fn complete_with(&mut self, other: Annotations) {
        for (name, value) in other.0 {
            self.0.entry(name).or_insert(value);
        }
    }

    /// Whether the container must not start unregistered.
    pub fn strict(&self) -> bool {
        self.0.get(STRICT).is_some_and(|value| value == "true")
    }
}

struct Ours<'a> {
    found: &'a mut Annotations,
    notes: &'a mut Vec<String>,
}

impl<'de> Visitor<'de> for Ours<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Name<'de>>()? {
            if !name.0.starts_with(PREFIX) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: &RawValue = map.next_value()?;
            if self.notes.len() >= MOST {
                continue;
            }
            match serde_json::from_str::<String>(value.get()) {
                _ if name.0.len() > LONGEST || value.get().len() > LONGEST => {
                    let start: String = name.0.chars().take(40).collect();
                    self.notes.push(format!("annotation {start}: longer than {LONGEST} bytes"));
                }
                _ if self.found.0.len() == MOST => {
                    self.notes.push(format!("annotations: more than {MOST}"));
                    return skip_rest(map);
                }
                Ok(value) => {
                    self.found.0.insert(name.0.into_owned(), value);
                }
                Err(_) => self.notes.push(format!("annotation {}: not a string", name.0)),
            }
        }
        Ok(())
    }
}

fn skip_rest<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

/// A name, borrowed where it has no escapes: most annotations are not ours and cost nothing.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Annotations, Vec<String>) {
        let mut notes = Vec::new();
        let section: &RawValue = serde_json::from_str(text).unwrap();
        (Annotations::parse(section, &mut notes), notes)
    }

    #[test]
    fn only_ours_are_taken() {
        let (found, notes) = parse(
            r#"{"io.cgshim.high":"90%","a":"b","io.cgshim":"x","io.cgshim.oom":"gro\u0075p","n":{"m":[1]}}"#,
        );
        assert_eq!(found.0.len(), 2, "{found:?}");
        assert_eq!(found.0["io.cgshim.high"], "90%");
        assert_eq!(found.0["io.cgshim.oom"], "group");
        assert!(notes.is_empty(), "{notes:?}");
        assert!(!found.strict());
    }

    #[test]
    fn only_true_is_strict() {
        assert!(parse(r#"{"io.cgshim.strict":"true"}"#).0.strict());
        for no in [r#""false""#, r#""""#, r#""TRUE""#, "true", "1", "null"] {
            assert!(!parse(&format!(r#"{{"io.cgshim.strict":{no}}}"#)).0.strict(), "{no}");
        }
    }

    #[test]
    fn one_bad_value_costs_itself_alone() {
        let long = "x".repeat(2000);
        let (found, notes) = parse(&format!(
            r#"{{"io.cgshim.a":3,"io.cgshim.b":"{long}","io.cgshim.{long}":"1","io.cgshim.c":"ok"}}"#
        ));
        assert_eq!(found.0.keys().collect::<Vec<_>>(), ["io.cgshim.c"]);
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes.iter().all(|note| note.len() < 200), "{notes:?}");
        let (found, notes) = parse(r#"["io.cgshim.a"]"#);
        assert!(found.0.is_empty() && notes.len() == 1, "{notes:?}");
    }

    #[test]
    fn a_thousand_are_thirty_two() {
        let many: Vec<_> = (0..1000).map(|n| format!(r#""io.cgshim.{n}":"v""#)).collect();
        let (found, notes) = parse(&format!("{{{}}}", many.join(",")));
        assert_eq!((found.0.len(), notes.len()), (MOST, 1));
    }
}

//! JSON as text: the members of an object and where they stand, so that one can be added, replaced or
//! taken away and every other byte stays. A document that is read into values and written again loses
//! what the reader does not know of: the form of numbers, escapes, white space, duplicate names.

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::ops::Range;

/// A document that cannot be edited, with line and column where the parser knows them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadJson(pub String);

impl From<serde_json::Error> for BadJson {
    fn from(error: serde_json::Error) -> BadJson {
        BadJson(error.to_string())
    }
}

/// A member of an object: its name, decoded, and its value's bytes in the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name, escapes decoded.
    pub name: String,
    /// Where the value is in the document.
    pub value: Range<usize>,
}

/// The members of the object at `at` in `text`, in order.
///
/// # Errors
/// What is there is no object; two members have one name (readers differ in which one counts); a
/// syntax error, with line and column within the object.
pub fn members(text: &str, at: Range<usize>) -> Result<Vec<Member>, BadJson> {
    let mut reader = serde_json::Deserializer::from_str(&text[at]);
    let found = reader.deserialize_map(MembersOf)?;
    reader.end()?;
    let mut members: Vec<Member> = Vec::with_capacity(found.len());
    for (name, raw) in found {
        if members.iter().any(|member| member.name == name) {
            return Err(BadJson(format!("two members are named '{name}'")));
        }
        members.push(Member { name, value: position(text, raw) });
    }
    Ok(members)
}

/// The elements of the array at `at` in `text`.
///
/// # Errors
/// What is there is no array; a syntax error.
pub fn elements(text: &str, at: Range<usize>) -> Result<Vec<Range<usize>>, BadJson> {
    let found: Vec<&RawValue> = serde_json::from_str(&text[at])?;
    Ok(found.into_iter().map(|raw| position(text, raw)).collect())
}

/// The whole document's value, without the white space around it.
///
/// # Errors
/// It is not JSON: line and column.
pub fn document(text: &str) -> Result<Range<usize>, BadJson> {
    let raw: &RawValue = serde_json::from_str(text)?;
    Ok(position(text, raw))
}

/// The document with `name: value` as the first member of the object at `object`.
pub fn with_member(text: &str, object: &Range<usize>, name: &str, value: &str) -> String {
    let inside = &text[object.start + 1..object.end - 1];
    let comma = if inside.trim().is_empty() { "" } else { "," };
    let name = serde_json::Value::from(name);
    splice(text, object.start + 1..object.start + 1, &format!("{name}:{value}{comma}"))
}

/// The document with `value` as the last element of the array at `array`.
///
/// # Errors
/// As [`elements`].
pub fn with_element(text: &str, array: &Range<usize>, value: &str) -> Result<String, BadJson> {
    Ok(match elements(text, array.clone())?.last() {
        Some(last) => splice(text, last.end..last.end, &format!(",{value}")),
        None => splice(text, array.start + 1..array.start + 1, value),
    })
}

/// The document with `new` in place of the bytes at `at`.
pub fn splice(text: &str, at: Range<usize>, new: &str) -> String {
    let mut edited = String::with_capacity(text.len() + new.len());
    edited.push_str(&text[..at.start]);
    edited.push_str(new);
    edited.push_str(&text[at.end..]);
    edited
}

/// Where a value that was borrowed from `text` stands in it.
fn position(text: &str, raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
    start..start + raw.get().len()
}

struct MembersOf;

impl<'de> Visitor<'de> for MembersOf {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(member) = map.next_entry()? {
            if found.len() == MOST_MEMBERS {
                return Err(A::Error::custom("more members than any specification has"));
            }
            found.push(member);
        }
        Ok(found)
    }
}

/// Keeps the search for duplicate names short, whatever the document.
const MOST_MEMBERS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'a>(text: &'a str, member: &Member) -> &'a str {
        &text[member.value.clone()]
    }

    #[test]
    fn members_are_found_where_they_stand() {
        let text = " {\"a\" : 1e400 , \"b\\u0063\":[1, 2],\"d\":{\"a\":null}}\n";
        let all = document(text).unwrap();
        let found = members(text, all).unwrap();
        let names: Vec<_> = found.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["a", "bc", "d"]);
        assert_eq!(at(text, &found[0]), "1e400");
        assert_eq!(at(text, &found[1]), "[1, 2]");
        let inner = members(text, found[2].value.clone()).unwrap();
        assert_eq!(at(text, &inner[0]), "null");
        let numbers = elements(text, found[1].value.clone()).unwrap();
        assert_eq!(&text[numbers[1].clone()], "2");
    }

    #[test]
    fn what_is_added_leaves_every_other_byte() {
        for (text, member, element) in [
            ("{}", "{\"n\":1}", None),
            (" { } ", " {\"n\":1 } ", None),
            ("{\"a\":1}", "{\"n\":1,\"a\":1}", None),
            ("[]", "", Some("[1]")),
            ("[ \n]", "", Some("[1 \n]")),
            ("[ 2 \n]", "", Some("[ 2,1 \n]")),
        ] {
            let all = document(text).unwrap();
            match element {
                None => assert_eq!(with_member(text, &all, "n", "1"), member),
                Some(edited) => assert_eq!(with_element(text, &all, "1").unwrap(), edited),
            }
        }
    }

    #[test]
    fn ambiguous_and_broken_documents_are_refused() {
        for text in ["{\"a\":1,\"\\u0061\":2}", "[1]", "3", "\"{}\""] {
            let all = document(text).unwrap();
            assert!(members(text, all).is_err(), "{text}");
        }
        let error = document("{\"a\": }\n").unwrap_err();
        assert!(error.to_string().contains("line 1 column 7"), "{error}");
        assert!(document("{} {}").is_err());
    }

    #[test]
    fn a_document_of_any_depth_is_no_danger() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        let _ = document(&deep).map(|all| members(&deep, all));
    }
}

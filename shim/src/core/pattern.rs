//! Patterns of cgroup paths: `/docker/*`, `/kubepods/**`, `/system.slice/docker-*.scope`.

use std::fmt;
use std::str::FromStr;

/// More components than any real hierarchy has levels.
const MOST_PARTS: usize = 32;

/// A pattern of paths relative to the hierarchy's root. `*` stands for any characters of one name, `?`
/// for one, `**` (a component of its own) for any number of names, none included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`.
    Any,
    /// A name, with `*` and `?` in it.
    Name(String),
}

/// Why a pattern did not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a pattern of cgroup paths: {why} (as in /docker/* or /kubepods/**)")]
pub struct BadPattern {
    text: String,
    why: &'static str,
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Pattern, BadPattern> {
        let fail = |why| BadPattern { text: text.escape_default().take(80).collect(), why };
        let rest = text.strip_prefix('/').ok_or_else(|| fail("it must begin with '/'"))?;
        if text.chars().any(char::is_control) {
            return Err(fail("it has control characters"));
        }
        let mut parts = Vec::new();
        for name in rest.trim_end_matches('/').split('/') {
            parts.push(match name {
                "" => return Err(fail("a name in it is empty")),
                "." | ".." => return Err(fail("'.' and '..' name no group")),
                "**" => Part::Any,
                name if name.contains("**") => {
                    return Err(fail("'**' must be a component of its own"));
                }
                name => Part::Name(name.to_owned()),
            });
        }
        if parts.len() > MOST_PARTS {
            return Err(fail("it has more than 32 components"));
        }
        Ok(Pattern { text: text.to_owned(), parts })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    /// Whether the path (`/a/b`, relative to the hierarchy's root) matches. Never the root itself.
    pub fn matches(&self, path: &str) -> bool {
        let names = names(path);
        !names.is_empty() && self.reached(&names).contains(&self.parts.len())
    }

    /// Whether something below the path may match: whether its children are worth watching.
    pub fn may_match_below(&self, path: &str) -> bool {
        self.reached(&names(path)).iter().any(|at| *at < self.parts.len())
    }

    /// Whether it reaches groups at any depth: then only those that hold processes are meant, not the
    /// levels between.
    pub fn is_deep(&self) -> bool {
        self.parts.contains(&Part::Any)
    }

    /// How many parts are used up after `names`: every way of reading them at once, as `**` may take
    /// none or more.
    fn reached(&self, names: &[&str]) -> Vec<usize> {
        let mut at = self.skip(vec![0]);
        for name in names {
            let mut next = Vec::new();
            for at in at {
                match self.parts.get(at) {
                    Some(Part::Any) => next.push(at),
                    Some(Part::Name(pattern)) if fits(pattern.as_bytes(), name.as_bytes()) => {
                        next.push(at + 1);
                    }
                    _ => {}
                }
            }
            at = self.skip(next);
        }
        at
    }

    /// With the places that are reached by `**` standing for no name.
    fn skip(&self, mut at: Vec<usize>) -> Vec<usize> {
        let mut index = 0;
        while index < at.len() {
            if self.parts.get(at[index]) == Some(&Part::Any) && !at.contains(&(at[index] + 1)) {
                at.push(at[index] + 1);
            }
            index += 1;
        }
        at.sort_unstable();
        at.dedup();
        at
    }
}

fn names(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

/// Whether a name fits a pattern with `*` and `?`: linear, by going back to the last `*` only.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_is_one_name_and_two_are_any_number() {
        for (text, path, matches) in [
            ("/docker/*", "/docker/3f2a", true),
            ("/docker/*", "/docker", false),
            ("/docker/*", "/docker/3f2a/x", false),
            ("/docker/*", "/podman/3f2a", false),
            ("/kubepods/**", "/kubepods/burstable/pod1/c", true),
            ("/kubepods/**", "/kubepods", true),
            ("/kubepods/**", "/", false),
            ("/**", "/", false),
            ("/**/leaf", "/leaf", true),
            ("/**/leaf", "/a/b/leaf", true),
            ("/**/leaf", "/a/b/leaf/c", false),
            ("/system.slice/docker-*.scope", "/system.slice/docker-3f2a.scope", true),
            ("/system.slice/docker-*.scope", "/system.slice/docker-3f2a.service", false),
            ("/a?c", "/abc", true),
            ("/a?c", "/ac", false),
            ("/a/**/b/**/c", "/a/x/b/y/z/c", true),
        ] {
            assert_eq!(pattern(text).matches(path), matches, "{text} {path}");
        }
    }

    #[test]
    fn only_what_may_lead_to_a_match_is_watched() {
        for (text, path, watched) in [
            ("/docker/*", "/", true),
            ("/docker/*", "/docker", true),
            ("/docker/*", "/docker/3f2a", false),
            ("/docker/*", "/kubepods", false),
            ("/kubepods/**", "/kubepods/a/b/c", true),
            ("/kubepods/**", "/system.slice", false),
        ] {
            assert_eq!(pattern(text).may_match_below(path), watched, "{text} {path}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        for text in ["", "docker/*", "/a//b", "/a/../b", "/a**", "/a\nb", &"/a".repeat(40)] {
            let message = text.parse::<Pattern>().unwrap_err().to_string();
            assert!(message.contains("/kubepods/**"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn every_ancestor_of_a_match_is_watched(
            parts in proptest::collection::vec("(\\*\\*|[ab*?]{1,3})", 1..5),
            names in proptest::collection::vec("[ab]{1,3}", 1..6),
        ) {
            prop_assume!(parts.iter().all(|part| part == "**" || !part.contains("**")));
            let pattern = pattern(&format!("/{}", parts.join("/")));
            let path = format!("/{}", names.join("/"));
            if pattern.matches(&path) {
                for depth in 0..names.len() {
                    let above = format!("/{}", names[..depth].join("/"));
                    prop_assert!(pattern.may_match_below(&above), "{pattern} {path} {above}");
                }
            }
        }

        #[test]
        fn hostile_text_neither_panics_nor_takes_long(text in "/[a*?]{0,200}", path in "/a{0,200}b") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                let _ = pattern.matches(&path);
            }
        }
    }
}

//! The names of records' files.

use std::fmt;

/// `oom-TIME-PROCESS-NUMBER.json`, as numbers: a thousand are known at a time, and come and go all day, so they are
/// kept in one piece of memory. They sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// ms since boot when the record was made.
    pub(super) boot_ms: u64,
    process: u32,
    number: u64,
}

impl Name {
    /// `None` for a file that is no record's.
    pub(super) fn parse(name: &str) -> Option<Name> {
        let mut parts = name.strip_prefix("oom-")?.strip_suffix(".json")?.split('-');
        let boot_ms = u64::from_str_radix(parts.next()?, 16).ok()?;
        let process = u32::from_str_radix(parts.next()?, 16).ok()?;
        let number = u64::from_str_radix(parts.next()?, 16).ok()?;
        let parsed = Name { boot_ms, process, number };
        // Only what is written exactly as we write it is found again by its numbers.
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Name { boot_ms, process, number } = self;
        write!(f, "oom-{boot_ms:010x}-{process:x}-{number:x}.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_is_read_back_as_it_is_written(boot_ms: u64, process: u32, number: u64) {
            let name = Name { boot_ms, process, number };
            prop_assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
    }

    #[test]
    fn what_is_written_otherwise_is_no_records() {
        for other in [
            "oom-1-2-3.json",
            "oom-00000000ff-1.json",
            "oom-00000000ff-1-2-3.json",
            "oom-00000000FF-1-2.json",
            "oom-00000000ff-1-02.json",
            "oom-00000000ff-1-+2.json",
            "oom-00000000ff-1-2",
            "expired",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}

//! Flat-keyed files: one `KEY VALUE` a line.
//!
//! `memory.stat`, `memory.events`, `memory.oom_control`, `cgroup.stat`, `/proc/vmstat`, and
//! `/proc/meminfo` (`KEY:   VALUE kB`) all have this shape ("Flat keyed" in the kernel's
//! Documentation/admin-guide/cgroup-v2.rst). The keys differ from kernel to kernel, so a reader takes
//! what it knows and steps over the rest.

/// The `(key, value)` pairs of `content`, in file order, without allocating.
///
/// The value is the number as printed: a `kB` after it is accepted and not applied (see
/// [`crate::procfs::Meminfo`]). A colon that ends a key is dropped. Skipped: lines of another shape,
/// keys that are not UTF-8, numbers that are negative, signed, fractional or above `u64::MAX`.
/// Duplicates are all yielded; a caller that stores into a field lets the last one win, as
/// [`get`] does.
pub fn entries(content: &[u8]) -> Entries<'_> {
    Entries { lines: content.split(is_newline) }
}

/// The value of `key`; of duplicates the last. `None` where it is missing or not a number.
pub fn get(content: &[u8], key: &str) -> Option<u64> {
    entries(content).filter(|(name, _)| *name == key).last().map(|(_, value)| value)
}

/// The iterator of [`entries`].
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    lines: std::slice::Split<'a, u8, fn(&u8) -> bool>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, u64);

    fn next(&mut self) -> Option<Self::Item> {
        self.lines.by_ref().find_map(entry)
    }
}

fn is_newline(byte: &u8) -> bool {
    *byte == b'\n'
}

fn entry(line: &[u8]) -> Option<(&str, u64)> {
    let mut words = words(line);
    let (key, value) = (words.next()?, number(words.next()?)?);
    if !matches!(words.next(), None | Some(b"kB")) || words.next().is_some() {
        return None;
    }
    let key = std::str::from_utf8(key.strip_suffix(b":").unwrap_or(key)).ok()?;
    (!key.is_empty()).then_some((key, value))
}

/// The words of a line: what stands between blanks.
pub(crate) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The lines of a file, without their newlines; the empty one after the last newline is left out.
pub(crate) fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split(is_newline).filter(|line| !line.is_empty())
}

/// A number as the kernel's `%lu` prints it: decimal digits and nothing else. (`u64::from_str` would
/// take a leading `+` too.)
pub(crate) fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    #[test]
    fn oom_control_reads_as_three_numbers_and_el7_lacks_the_counter() {
        let control = b"oom_kill_disable 0\nunder_oom 1\noom_kill 12\n";
        assert_eq!(
            entries(control).collect::<Vec<_>>(),
            [("oom_kill_disable", 0), ("under_oom", 1), ("oom_kill", 12)]
        );
        assert_eq!(get(b"oom_kill_disable 0\nunder_oom 0\n", "oom_kill"), None);
    }

    #[test]
    fn junk_is_stepped_over() {
        let content = b"\n\nlow 1\nalone\n-1 -1\nneg -3\nplus +3\nfrac 1.5\nbig 18446744073709551616\n\
                        max 18446744073709551615\n\xff\xfe 7\nthree 1 2\nunit 3 kB\nmore 3 kB x\n: 4\n  last  9";
        assert_eq!(
            entries(content).collect::<Vec<_>>(),
            [("low", 1), ("max", u64::MAX), ("unit", 3), ("last", 9)]
        );
    }

    #[test]
    fn of_duplicates_the_last_wins() {
        assert_eq!(get(b"oom 1\noom 2\n", "oom"), Some(2));
        assert_eq!(get(b"oom 1\noom junk\n", "oom"), Some(1));
    }

    #[test]
    fn every_line_of_a_real_vmstat_is_read() {
        let vmstat = samples::read("proc/host-6.18/vmstat");
        assert_eq!(entries(&vmstat).count(), lines(&vmstat).count());
        assert!(get(&vmstat, "pgfault").is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_there_are_no_more_entries_than_lines(
            content in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            prop_assert!(entries(&content).count() <= content.split(|b| *b == b'\n').count());
        }

        #[test]
        fn what_the_kernel_prints_is_read_back(
            pairs in prop::collection::vec(("[a-z_]{1,20}", any::<u64>()), 0..20),
        ) {
            let content: String = pairs.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
            let read: Vec<_> =
                entries(content.as_bytes()).map(|(k, v)| (k.to_string(), v)).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn a_mutated_sample_never_panics(content in samples::mutated("proc/host-6.18/vmstat")) {
            entries(&content).for_each(drop);
        }
    }
}

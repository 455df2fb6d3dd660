//! The octal escapes of `/proc` (`\040` for a blank), as the kernel's `mangle_path()` and
//! `seq_file_path()` write them for blank, tab, newline and backslash.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// `field` as the absolute path it stands for. Any `\ooo` up to `\377` is decoded; a backslash without
/// three such digits stands for itself. `None` for what cannot be a path: relative, or with a NUL.
pub(crate) fn path(field: &[u8]) -> Option<PathBuf> {
    let bytes = unescape(field);
    let fine = bytes.first() == Some(&b'/') && !bytes.contains(&0);
    fine.then(|| PathBuf::from(OsString::from_vec(bytes)))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_four_escapes_of_the_kernel_are_decoded() {
        assert_eq!(path(br"/a\040b\011c\012d\134e").unwrap(), PathBuf::from("/a b\tc\nd\\e"));
        // A backslash that was decoded does not start another escape.
        assert_eq!(path(br"/\134040").unwrap(), PathBuf::from("/\\040"));
    }

    #[test]
    fn a_lone_backslash_stands_for_itself() {
        for field in [&br"/a\"[..], br"/a\0", br"/a\04", br"/a\400", br"/a\08x", br"/a\x41"] {
            assert_eq!(path(field).unwrap().as_os_str().as_bytes(), field);
        }
    }

    #[test]
    fn relative_empty_and_nul_are_no_paths() {
        for field in [&b""[..], b"a/b", br"/a\000b", b"/a\0b"] {
            assert_eq!(path(field), None);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_kept() {
        assert_eq!(path(b"/\xff\xfe").unwrap().as_os_str().as_bytes(), b"/\xff\xfe");
    }

    proptest! {
        #[test]
        fn decoding_never_grows_and_undoes_the_kernels_encoding(
            name in prop::collection::vec(1u8.., 0..80),
        ) {
            let mut plain = b"/".to_vec();
            plain.extend(&name);
            prop_assert!(unescape(&plain).len() <= plain.len());
            let escaped: Vec<u8> = plain
                .iter()
                .flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                    byte => vec![*byte],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped), plain);
        }
    }
}

//! Values as the kernel's write handlers parse them.

use nix::errno::Errno;

/// `PAGE_COUNTER_MAX`: no limit, in pages.
pub(crate) fn no_limit(page_size: u64) -> u64 {
    i64::MAX as u64 / page_size
}

/// What the handler sees: up to the first NUL, white space stripped. Longer than a page: E2BIG
/// (`kernfs_fop_write_iter`).
pub(crate) fn text(value: &[u8], page_size: u64) -> Result<&str, Errno> {
    if value.len() as u64 >= page_size {
        return Err(Errno::E2BIG);
    }
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(value[..end].trim_ascii()).map_err(|_| Errno::EINVAL)
}

/// `page_counter_memparse`: bytes with a suffix, floored to pages; `none` stands for no limit. An
/// empty value is 0.
pub(crate) fn pages(value: &str, none: &str, page_size: u64) -> Result<u64, Errno> {
    if value == none {
        return Ok(no_limit(page_size));
    }
    let (digits, shift) = match value.as_bytes().last() {
        Some(last) => match last.to_ascii_uppercase() {
            b'K' => (&value[..value.len() - 1], 10),
            b'M' => (&value[..value.len() - 1], 20),
            b'G' => (&value[..value.len() - 1], 30),
            b'T' => (&value[..value.len() - 1], 40),
            _ => (value, 0),
        },
        None => return Ok(0),
    };
    let bytes = u128::from(integer(digits)?) << shift;
    let pages = bytes / u128::from(page_size);
    Ok(u64::try_from(pages).unwrap_or(u64::MAX).min(no_limit(page_size)))
}

/// Decimal digits only.
pub(crate) fn integer(value: &str) -> Result<u64, Errno> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Errno::EINVAL);
    }
    value.parse().map_err(|_| Errno::EINVAL)
}

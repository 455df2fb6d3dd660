//! Text from strangers, made safe to show. A title holds a command line, and a command line may
//! hold an escape sequence that repaints the terminal, a character that XML forbids, or one that
//! turns the direction of all that follows.

/// One character as it may be shown: itself, or a visible stand-in. White space becomes a blank.
pub(super) fn printable_char(c: char) -> char {
    match c {
        '\t' | '\n' | '\r' | '\u{2028}' | '\u{2029}' => ' ',
        // The control pictures block mirrors C0: ESC shows as U+241B.
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        // C1 controls (a terminal may obey U+009B as CSI), soft hyphen, direction marks and
        // overrides, zero-width characters, interlinear and tag characters.
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}' => '\u{fffd}',
        // Noncharacters; XML 1.0 forbids two of them.
        _ if c as u32 & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&c) => '\u{fffd}',
        _ => c,
    }
}

/// Text as it may be shown, cut at `most` characters so that no input makes a report large.
pub(super) fn printable(s: &str, most: usize) -> String {
    let mut out: String = s.chars().take(most).map(printable_char).collect();
    if s.chars().nth(most).is_some() {
        out.push('…');
    }
    out
}

/// How many terminal columns a printable character takes. Errs to the wide side: a line that is
/// too short is untidy, a line that is too long breaks the picture.
pub(super) fn columns_of(c: char) -> usize {
    match c as u32 {
        0x1100..=0x115f
        | 0x2329..=0x232a
        | 0x2e80..=0xa4cf
        | 0xa960..=0xa97f
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe10..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f000..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// The start of `s` that fits in `room`, each character costing what `width` says, with `ellipsis`
/// at the end where something was cut (and as much of the ellipsis as fits).
pub(super) fn fit(
    s: &str,
    room: f64,
    ellipsis: &str,
    printable: impl Fn(char) -> char,
    width: impl Fn(char) -> f64,
) -> String {
    let (mut out, mut used) = (String::new(), 0.0);
    // Where the cut goes if it turns out that one is needed.
    let tail: f64 = ellipsis.chars().map(&width).sum();
    let mut cut = 0;
    for c in s.chars().map(printable) {
        used += width(c);
        if used > room {
            out.truncate(cut);
            let mut left = room - out.chars().map(&width).sum::<f64>();
            out.extend(ellipsis.chars().take_while(|&c| {
                left -= width(c);
                left >= 0.0
            }));
            return out;
        }
        out.push(c);
        if used + tail <= room {
            cut = out.len();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_or_xml_would_obey_becomes_visible() {
        let shown = printable("a\x1b[2J\u{9b}31m\u{202e}b\0\x7f\u{ffff}\nc", 100);
        assert_eq!(shown, "a\u{241b}[2J\u{fffd}31m\u{fffd}b\u{2400}\u{2421}\u{fffd} c");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
    }

    #[test]
    fn text_is_cut_only_where_it_does_not_fit() {
        let fit = |s, room| fit(s, room, "...", printable_char, |c| columns_of(c) as f64);
        assert_eq!(fit("abcdef", 6.0), "abcdef");
        assert_eq!(fit("abcdefg", 6.0), "abc...");
        assert_eq!(fit("abcdefg", 2.0), "..");
        assert_eq!(fit("abcdefg", 0.0), "");
        assert_eq!(fit("語語語", 5.0), "語...");
    }
}

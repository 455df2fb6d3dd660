//! Lines of coloured characters: their width is known, so that they can be cut and set side by
//! side; colour is written last, if at all.

use super::Style;
use crate::report::text;

/// What a character stands for, and so its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Plain,
    Dim,
    Bold,
    Usage,
    Limit,
    High,
    Wmark,
    Background,
    Direct,
    Mark,
}

impl Ink {
    /// SGR parameters, from the sixteen colours that every terminal has and lets its user choose.
    fn sgr(self) -> &'static str {
        match self {
            Ink::Plain => "0",
            Ink::Dim => "2",
            Ink::Bold => "1",
            Ink::Usage => "94",
            Ink::Limit => "31",
            Ink::High => "33",
            Ink::Wmark | Ink::Background => "36",
            Ink::Direct => "35",
            Ink::Mark => "1;31",
        }
    }
}

/// One line.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    chars: Vec<(char, Ink)>,
}

impl Line {
    pub(super) fn new() -> Line {
        Line::default()
    }

    /// Text of ours or of strangers, as much as fits in `room` columns.
    pub(super) fn text(mut self, s: &str, ink: Ink, room: usize, style: Style) -> Line {
        for c in shown(s, room, style).chars() {
            self.chars.push((c, ink));
        }
        self
    }

    pub(super) fn push(&mut self, c: char, ink: Ink) {
        self.chars.push((c, ink));
    }

    pub(super) fn append(&mut self, other: Line) {
        self.chars.extend(other.chars);
    }

    pub(super) fn columns(&self) -> usize {
        self.chars.iter().map(|&(c, _)| text::columns_of(c)).sum()
    }

    /// Blanks up to `columns`.
    pub(super) fn padded(mut self, columns: usize) -> Line {
        for _ in self.columns()..columns {
            self.chars.push((' ', Ink::Plain));
        }
        self
    }

    /// `s` at the right end of `columns`.
    pub(super) fn right(s: &str, ink: Ink, columns: usize, style: Style) -> Line {
        let text = shown(s, columns, style);
        let width: usize = text.chars().map(text::columns_of).sum();
        let mut line = Line::new().padded(columns - width.min(columns));
        for c in text.chars() {
            line.push(c, ink);
        }
        line
    }
}

/// Text as it may be shown in this style, cut to `room` columns.
pub(super) fn shown(s: &str, room: usize, style: Style) -> String {
    let printable = |c| {
        let c = text::printable_char(c);
        match c {
            _ if !style.ascii || c.is_ascii() => c,
            '·' | '—' | '–' => '-',
            '→' => '>',
            _ => '?',
        }
    };
    let ellipsis = if style.ascii { "..." } else { "…" };
    text::fit(s, room as f64, ellipsis, printable, |c| text::columns_of(c) as f64)
}

/// The lines as text, each ended; none wider than `width`, none ending in blanks.
pub(super) fn written(lines: &[Line], width: usize, style: Style) -> String {
    let mut out = String::new();
    for line in lines {
        let mut used = 0;
        let fits = line.chars.iter().take_while(|&&(c, _)| {
            used += text::columns_of(c);
            used <= width
        });
        let number = fits.count();
        let cut = &line.chars[..number];
        let end = cut.iter().rposition(|&(c, _)| c != ' ').map_or(0, |last| last + 1);
        let mut ink = Ink::Plain;
        for &(c, next) in &cut[..end] {
            // A blank has no colour of its own: fewer changes.
            if style.color && next != ink && c != ' ' {
                if ink != Ink::Plain && next != Ink::Plain {
                    out.push_str("\x1b[0m");
                }
                out.push_str("\x1b[");
                out.push_str(next.sgr());
                out.push('m');
                ink = next;
            }
            out.push(c);
        }
        if ink != Ink::Plain {
            out.push_str("\x1b[0m");
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASCII: Style = Style { color: false, ascii: true };
    const COLOR: Style = Style { color: true, ascii: false };

    #[test]
    fn colour_ends_with_its_line_and_blanks_are_not_left_behind() {
        let line = Line::new().text("a", Ink::Limit, 9, COLOR).text(" b  ", Ink::High, 9, COLOR);
        assert_eq!(written(&[line], 80, COLOR), "\x1b[31ma \x1b[0m\x1b[33mb\x1b[0m\n");
    }

    #[test]
    fn an_escape_sequence_in_a_title_never_reaches_the_terminal() {
        let line = Line::new().text("x\x1b[2J\u{9b}y语", Ink::Plain, 80, ASCII);
        assert_eq!(written(&[line], 80, ASCII), "x?[2J?y?\n");
    }
}

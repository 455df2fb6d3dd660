//! Tables for a terminal: columns aligned, numbers flush right, no text able to break the lines.

use super::Style;
use super::ink::{Ink, Line, shown, written};
use crate::report::{CompareRow, fmt, text};

/// Between two columns.
const GAP: usize = 2;
/// A column of text is not cut below this.
const NARROWEST: usize = 8;

/// Rows under headers, or rows alone where `headers` is empty. A column whose cells are all numbers
/// (with or without a unit) stands flush right. With a `width`, columns of text are cut until the
/// lines fit, the widest first; numbers are never cut, so that a line of numbers alone may be
/// wider. Rows may have more or fewer cells than there are headers. Every line ends in a newline.
pub fn table(headers: &[&str], rows: &[Vec<String>], width: Option<usize>, style: Style) -> String {
    let columns = rows.iter().map(Vec::len).chain([headers.len()]).max().unwrap_or(0);
    let cell = |row: usize, column: usize| rows[row].get(column).map_or("", String::as_str);
    let numeric: Vec<bool> = (0..columns)
        .map(|column| {
            let cells = || (0..rows.len()).map(|row| cell(row, column).trim());
            cells().any(is_number) && cells().all(|c| is_number(c) || is_nothing(c))
        })
        .collect();
    let mut widths: Vec<usize> = (0..columns)
        .map(|column| {
            let header = headers.get(column).copied().unwrap_or_default();
            let cells = (0..rows.len()).map(|row| cell(row, column));
            cells.chain([header]).map(|s| columns_of(s, style)).max().unwrap_or(0)
        })
        .collect();
    if let Some(width) = width {
        shrink(&mut widths, &numeric, width);
    }
    let line = |cells: &dyn Fn(usize) -> String, ink: Ink| {
        let mut line = Line::new();
        for (column, (&width, &numeric)) in widths.iter().zip(&numeric).enumerate() {
            let start = line.columns() + if column > 0 { GAP } else { 0 };
            line = line.padded(start);
            if numeric {
                line.append(Line::right(&cells(column), ink, width, style));
            } else {
                line = line.text(&cells(column), ink, width, style).padded(start + width);
            }
        }
        line
    };
    let mut lines = Vec::new();
    if !headers.is_empty() {
        let header = |column: usize| headers.get(column).copied().unwrap_or_default().to_owned();
        lines.push(line(&header, Ink::Bold));
    }
    for row in 0..rows.len() {
        lines.push(line(&|column| cell(row, column).to_owned(), Ink::Plain));
    }
    written(&lines, usize::MAX, style)
}

/// A comparison as a table: what, without the engine, with it, and whether that is better.
/// `names` head the two columns of values.
pub fn compare(
    names: (&str, &str),
    rows: &[CompareRow],
    width: Option<usize>,
    style: Style,
) -> String {
    let names = if names.0 == names.1 { ("off", "on") } else { names };
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let verdict = match row.better {
                Some(true) => "better",
                Some(false) => "worse",
                None => "",
            };
            let ratio = row.ratio.map(fmt::ratio).unwrap_or_default();
            vec![row.label.clone(), row.off.clone(), row.on.clone(), ratio, verdict.to_owned()]
        })
        .collect();
    table(&["", names.0, names.1, "ratio", ""], &rows, width, style)
}

/// Cuts the widest column of text, one column of the terminal at a time, until all fit or none is
/// left to cut.
fn shrink(widths: &mut [usize], numeric: &[bool], width: usize) {
    loop {
        let total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let widest = (0..widths.len())
            .filter(|&i| !numeric[i] && widths[i] > NARROWEST)
            .max_by_key(|&i| widths[i]);
        match widest {
            Some(i) if total > width => {
                // Down to the next widest at once would be faster; a cell of a megabyte is not.
                let surplus = total - width;
                let others = (0..widths.len()).filter(|&j| j != i && !numeric[j]);
                let next = others.map(|j| widths[j]).max().unwrap_or(0).max(NARROWEST);
                widths[i] -= surplus.min((widths[i] - next).max(1));
            }
            _ => return,
        }
    }
}

fn columns_of(s: &str, style: Style) -> usize {
    shown(s, usize::MAX, style).chars().map(text::columns_of).sum()
}

/// Whether a cell holds a number as [`fmt`] writes them: `12`, `166,908`, `256.0 MiB`, `0.19x`,
/// `94%`, `12.3k/s`, `3 min 05 s`. A container's ID is not one.
fn is_number(cell: &str) -> bool {
    const UNITS: [&str; 13] =
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "us", "ms", "s", "min", "h", "d"];
    let number = |word: &str| {
        let word = word.trim_start_matches(['-', '+', '<', '>', '~']);
        let end = word.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',');
        let (digits, suffix) = word.split_at(end.unwrap_or(word.len()));
        let suffix = suffix.strip_suffix("/s").unwrap_or(suffix);
        digits.starts_with(|c: char| c.is_ascii_digit())
            && (matches!(suffix, "" | "%" | "x" | "k" | "K" | "M" | "G" | "T" | "P" | "E")
                || UNITS.contains(&suffix))
    };
    let unit = |word: &str| UNITS.contains(&word.strip_suffix("/s").unwrap_or(word));
    let mut words = cell.split(' ');
    words.next().is_some_and(number) && words.all(|word| number(word) || unit(word))
}

/// Whether a cell stands for no number, in a column of numbers.
fn is_nothing(cell: &str) -> bool {
    matches!(cell, "" | "-" | "max" | "none" | "n/a" | "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { color: false, ascii: false };

    fn cells(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|&cell| cell.to_owned()).collect()).collect()
    }

    #[test]
    fn numbers_stand_flush_right_and_text_flush_left() {
        let rows = cells(&[&["web", "256.0 MiB", "0.19x"], &["database", "max", "12.30x"]]);
        assert_eq!(
            table(&["NAME", "LIMIT", "RATIO"], &rows, None, PLAIN),
            "NAME          LIMIT   RATIO\n\
             web       256.0 MiB   0.19x\n\
             database        max  12.30x\n"
        );
    }

    #[test]
    fn what_fmt_writes_is_a_number_and_an_id_is_not() {
        for cell in ["0", "166,908", "94%", "<0.0001x", "3 min 05 s", "12.3k/s", "1.5 MiB/s"] {
            assert!(is_number(cell), "{cell}");
        }
        for cell in ["", "0a1b2c3d", "12ab", "2 of 3", "v1", "1.2.3-rc", "语", "256 MiB, 240 MiB"]
        {
            assert!(!is_number(cell), "{cell}");
        }
    }

    #[test]
    fn the_widest_text_is_cut_to_fit_and_numbers_are_not() {
        let path = "/kubepods/burstable/pod0123456789abcdef/0123456789abcdef";
        let rows = cells(&[&[path, "short", "256.0 MiB"], &["/a", "text", "1.0 GiB"]]);
        let out = table(&["PATH", "NOTE", "LIMIT"], &rows, Some(40), PLAIN);
        assert!(out.lines().all(|line| line.chars().count() <= 40), "{out}");
        assert!(out.contains("256.0 MiB") && out.contains('…') && out.contains("short"), "{out}");
    }

    #[test]
    fn ragged_rows_and_no_headers_are_fine() {
        let rows = cells(&[&["a"], &[], &["b", "c", "d"]]);
        assert_eq!(table(&[], &rows, None, PLAIN), "a\n\nb  c  d\n");
        assert_eq!(table(&[], &[], None, PLAIN), "");
    }
}

//! The table under two charts: a measure a row, off and on, and what that means.

use super::canvas::{Anchor, Canvas};
use super::look::{BETTER, CELL, GRID, HEAD, WORSE};
use crate::report::{CompareRow, fmt};

const ROW: f64 = 24.0;
/// The columns: label, off, on, ratio, verdict.
const WIDTHS: [f64; 5] = [330.0, 200.0, 200.0, 90.0, 100.0];
const MOST_ROWS: usize = 60;

/// Draws the table in the middle between `from` and `to`; answers its height.
pub(super) fn draw(
    canvas: &mut Canvas,
    names: (&str, &str),
    rows: &[CompareRow],
    (from, to): (f64, f64),
    top: f64,
) -> f64 {
    if rows.is_empty() {
        return 8.0;
    }
    let left = (from + to - WIDTHS.iter().sum::<f64>()) / 2.0;
    // Where each column ends; all but the first are set flush right.
    let mut end = left;
    let ends = WIDTHS.map(|width| {
        end += width;
        end
    });
    let mut y = top + 26.0;
    // Titles that say the same (both the command) do not tell the columns apart.
    let names = if names.0 == names.1 { ("off", "on") } else { names };
    for ((name, end), width) in [names.0, names.1, "ratio"].iter().zip(&ends[1..]).zip(&WIDTHS[1..])
    {
        canvas.text((*end, y), Anchor::End, HEAD, &HEAD.fit(name, width - 16.0));
    }
    for row in rows.iter().take(MOST_ROWS) {
        canvas.line("rule", (left, y + 8.0), (ends[4], y + 8.0), GRID);
        y += ROW;
        canvas.text((left, y), Anchor::Start, CELL, &CELL.fit(&row.label, WIDTHS[0] - 16.0));
        let ratio = row.ratio.map(fmt::ratio).unwrap_or_default();
        let cells = [&row.off, &row.on, &ratio];
        for ((cell, end), width) in cells.iter().zip(&ends[1..]).zip(&WIDTHS[1..]) {
            canvas.text((*end, y), Anchor::End, CELL, &CELL.fit(cell, width - 16.0));
        }
        // In words as well as in colour.
        match row.better {
            Some(true) => canvas.text((ends[4], y), Anchor::End, BETTER, "▲ better"),
            Some(false) => canvas.text((ends[4], y), Anchor::End, WORSE, "▼ worse"),
            None => {}
        }
    }
    if let Some(more) = rows.len().checked_sub(MOST_ROWS).filter(|&more| more > 0) {
        y += ROW;
        canvas.text((left, y), Anchor::Start, HEAD, &format!("and {more} more"));
    }
    y + 22.0 - top
}

//! The picture itself: usage in braille dots (two by four a character), levels behind it.

use super::ink::Ink;
use super::{Axes, Style};
use crate::report::axis::Axis;
use crate::report::series::{LevelKind, Series};

/// More points than a line of dots on any terminal can show.
const MOST_POINTS: usize = 2000;

/// A plot's characters, row by row, and what stands at the right end of each row.
pub(super) struct Grid {
    pub(super) cells: Vec<Vec<(char, Ink)>>,
    pub(super) tags: Vec<Vec<LevelKind>>,
}

/// What a level is drawn with: a character of its own, so that it is known without colour too.
pub(super) fn pen(kind: LevelKind, style: Style) -> (char, Ink) {
    let (line, ascii, ink) = match kind {
        LevelKind::Limit => ('━', '=', Ink::Limit),
        LevelKind::High => ('─', '~', Ink::High),
        LevelKind::WmarkHigh => ('╌', '-', Ink::Wmark),
        LevelKind::WmarkLow => ('┈', '.', Ink::Wmark),
    };
    (if style.ascii { ascii } else { line }, ink)
}

/// The row in which a fraction of the axis lies, of `rows`.
pub(super) fn row_of(fraction: f64, rows: usize, style: Style) -> usize {
    let (_, high) = dots_per_cell(style);
    dot_of(1.0 - fraction, rows * high) / high
}

pub(super) fn draw(
    series: &Series<'_>,
    axes: &Axes,
    size: &Axis,
    rows: usize,
    style: Style,
) -> Grid {
    let columns = axes.columns;
    let mut cells = vec![vec![(' ', Ink::Plain); columns]; rows];
    let mut tags = vec![Vec::new(); rows];
    if columns == 0 || rows == 0 {
        return Grid { cells, tags };
    }
    for mark in &series.marks {
        let column = dot_of(axes.time.fraction(mark.t_ms), columns);
        for row in &mut cells {
            row[column] = (if style.ascii { ':' } else { '╎' }, Ink::Dim);
        }
    }
    // The least important first: of two in one row, the limit is what is seen.
    for level in series.levels().iter().rev().filter(|l| l.bytes as f64 <= axes.top) {
        let row = row_of(size.fraction(level.bytes as f64), rows, style);
        cells[row].fill(pen(level.kind, style));
        tags[row].insert(0, level.kind);
    }
    for (row, line) in dots(series, axes, size, rows, style).iter().enumerate() {
        for (column, &pattern) in line.iter().enumerate().filter(|&(_, &pattern)| pattern != 0) {
            let braille = char::from_u32(0x2800 + u32::from(pattern)).unwrap_or('*');
            cells[row][column] = (if style.ascii { '*' } else { braille }, Ink::Usage);
        }
    }
    Grid { cells, tags }
}

/// The usage as dots, a braille pattern a cell.
fn dots(series: &Series<'_>, axes: &Axes, size: &Axis, rows: usize, style: Style) -> Vec<Vec<u8>> {
    let columns = axes.columns;
    let (wide, high) = dots_per_cell(style);
    let mut patterns = vec![vec![0u8; columns]; rows];
    let mut set = |x: usize, y: usize| {
        // Bits of a braille cell, by column and then row; the ASCII cell has only the first.
        const BITS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];
        patterns[y / high][x / wide] |= BITS[x % wide][y % high];
    };
    let points: Vec<(usize, usize)> = series
        .usage(axes.span, MOST_POINTS)
        .into_iter()
        .map(|(t, bytes)| {
            let x = dot_of(axes.time.fraction(t), columns * wide);
            (x, dot_of(1.0 - size.fraction(bytes), rows * high))
        })
        .collect();
    if let Some(&(x, y)) = points.first() {
        set(x, y);
    }
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let steps = x0.abs_diff(x1).max(y0.abs_diff(y1)).max(1);
        let between = |a: usize, b: usize, i: usize| {
            (a as f64 + (b as f64 - a as f64) * i as f64 / steps as f64).round() as usize
        };
        for i in 0..=steps {
            set(between(x0, x1, i), between(y0, y1, i));
        }
    }
    patterns
}

fn dots_per_cell(style: Style) -> (usize, usize) {
    if style.ascii { (1, 1) } else { (2, 4) }
}

/// Which of `number` dots a fraction falls on; `number` is not 0.
pub(super) fn dot_of(fraction: f64, number: usize) -> usize {
    let last = number.saturating_sub(1);
    ((fraction * last as f64).round() as usize).min(last)
}

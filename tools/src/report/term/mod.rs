//! A timeline in a terminal: usage over time in braille dots, or in ASCII where the locale has
//! nothing better, with one line each for background and direct reclaim.

mod ink;
mod parts;
mod plot;
mod table;

pub use table::{compare, table};

use super::Timeline;
use super::axis::Axis;
use super::series::{self, Rates, Series, Span};
use ink::{Ink, Line, written};
use parts::Parts;

/// What the terminal can show. Whether it can is the caller's to know (`NO_COLOR`, the locale).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Colours, by SGR escape sequences. What they tell, the characters tell too.
    pub color: bool,
    /// Nothing but ASCII.
    pub ascii: bool,
}

/// Narrower than this, charts do not stand side by side.
const NARROWEST: usize = 56;
/// Between two charts side by side.
const GAP: usize = 3;
/// Rows that a plot ought to have, before anything else is shown.
const FEWEST_ROWS: usize = 5;

/// No terminal has more columns or lines; a size from nowhere must not cost gigabytes.
const MOST: usize = 2000;

/// A chart of usage over time that fits in `width` columns and `height` lines: what there is no
/// room for is left out, the plot itself last. Every line ends in a newline.
pub fn chart(timeline: &Timeline, width: usize, height: usize, style: Style) -> String {
    let series = Series::of(timeline);
    let width = width.min(MOST);
    let axes = Axes::of(&[&series], width);
    let blocks = blocks(&[&series], &axes, width, height, style);
    written(&blocks.concat(), width, style)
}

/// Two charts with the same axes: side by side where each has 56 columns or more, else one above
/// the other. Each is `height` lines high; `width` is for both.
pub fn side_by_side(
    left: &Timeline,
    right: &Timeline,
    width: usize,
    height: usize,
    style: Style,
) -> String {
    let (left, right) = (Series::of(left), Series::of(right));
    let width = width.min(MOST);
    let half = width.saturating_sub(GAP) / 2;
    let beside = half >= NARROWEST;
    let each = if beside { half } else { width };
    let axes = Axes::of(&[&left, &right], each);
    let mut blocks = blocks(&[&left, &right], &axes, each, height, style).into_iter();
    let (left, right) = (blocks.next().unwrap_or_default(), blocks.next().unwrap_or_default());
    if !beside {
        return written(&[left, vec![Line::new()], right].concat(), width, style);
    }
    let both = |(left, right): (Line, Line)| {
        let mut line = left.padded(each + GAP);
        line.append(right);
        line
    };
    let lines: Vec<Line> = left.into_iter().zip(right).map(both).collect();
    written(&lines, width, style)
}

/// The axes of one chart, or of two that are to be compared, and the columns that they take.
struct Axes {
    span: Span,
    time: Axis,
    /// What the usage axis has to reach, in bytes. The axis itself depends on the rows there are.
    top: f64,
    peak_background: f64,
    peak_direct: f64,
    /// Columns left of the plot, the axis itself among them.
    left: usize,
    /// Columns of the plot.
    columns: usize,
    /// Columns right of it, for the names of levels and the peaks.
    right: usize,
}

impl Axes {
    fn of(all: &[&Series<'_>], width: usize) -> Axes {
        let (left, right) = match width {
            NARROWEST.. => (11, 12),
            30.. => (9, 0),
            _ => (0, 0),
        };
        let columns = width - left - right;
        let span = Span::of(all);
        let rates: Vec<Rates> = all.iter().map(|s| s.rates(span, columns)).collect();
        let peak =
            |of: fn(&Rates) -> &Vec<f64>| rates.iter().flat_map(of).copied().fold(0.0, f64::max);
        Axes {
            span,
            time: Axis::time(span.start, span.end, (columns / 9).max(1)),
            top: series::top_bytes(all),
            peak_background: peak(|r| &r.background),
            peak_direct: peak(|r| &r.direct),
            left,
            columns,
            right,
        }
    }
}

/// One block of lines for each series, all of one height, so that they can stand side by side.
fn blocks(
    all: &[&Series<'_>],
    axes: &Axes,
    width: usize,
    height: usize,
    style: Style,
) -> Vec<Vec<Line>> {
    let height = height.min(MOST);
    let mut parts: Vec<Parts> = all.iter().map(|s| Parts::of(s, axes, width, style)).collect();
    // A part that only one of them has is blank in the other.
    let heights: Vec<[usize; 9]> =
        parts.iter_mut().map(|p| p.each().map(|part| part.len())).collect();
    let mut tallest: [usize; 9] =
        std::array::from_fn(|i| heights.iter().map(|h| h[i]).max().unwrap_or(0));
    for i in 0..tallest.len() {
        if tallest.iter().sum::<usize>() + FEWEST_ROWS > height {
            tallest[i] = 0;
        }
    }
    let rows = height - tallest.iter().sum::<usize>().min(height);
    let size = size_axis(all, axes.top, rows, style);
    let mut blocks = Vec::new();
    for (series, mut parts) in all.iter().zip(parts) {
        for (part, height) in parts.each().into_iter().zip(tallest) {
            part.resize(height, Line::new());
        }
        let mut block = [parts.title, parts.subtitle, parts.summary].concat();
        block.extend(plot_lines(series, axes, &size, rows, style));
        block.extend([parts.axis, parts.labels, parts.background, parts.direct].concat());
        block.extend([parts.legend, parts.marks].concat());
        blocks.push(block);
    }
    blocks
}

/// The usage axis, with as much room above (up to a tenth) as gives most levels a row of their own.
fn size_axis(all: &[&Series<'_>], top: f64, rows: usize, style: Style) -> Axis {
    let most = (rows / 2).clamp(1, 6);
    let rows_taken = |hi: f64| {
        let levels = all.iter().flat_map(|s| s.levels()).filter(|l| l.bytes as f64 <= top);
        let taken = levels.map(|l| plot::row_of(l.bytes as f64 / hi, rows, style));
        taken.collect::<std::collections::BTreeSet<usize>>().len()
    };
    // Of equals, max_by_key takes the last: the least room.
    let room = (0..=10).rev().map(|hundredths| top * (1.0 + f64::from(hundredths) / 100.0));
    Axis::sizes(room.max_by_key(|&hi| rows_taken(hi)).unwrap_or(top), most)
}

/// The plot with its y axis on the left and the names of the levels on the right.
fn plot_lines(
    series: &Series<'_>,
    axes: &Axes,
    size: &Axis,
    rows: usize,
    style: Style,
) -> Vec<Line> {
    let grid = plot::draw(series, axes, size, rows, style);
    let mut labels = vec![None; rows];
    for tick in size.ticks.iter().filter(|_| rows > 0) {
        labels[plot::row_of(size.fraction(tick.at), rows, style)] = Some(&tick.label);
    }
    let mut lines = Vec::new();
    for ((cells, tags), label) in grid.cells.into_iter().zip(&grid.tags).zip(labels) {
        let mut line = Line::new();
        if let Some(room) = axes.left.checked_sub(2) {
            line = Line::right(label.map_or("", String::as_str), Ink::Dim, room, style);
            line.push(' ', Ink::Plain);
            line.push(if label.is_some() { cross(style) } else { upright(style) }, Ink::Dim);
        }
        for (c, ink) in cells {
            line.push(c, ink);
        }
        if let (Some(&first), Some(room)) = (tags.first(), axes.right.checked_sub(1)) {
            let names: Vec<&str> = tags.iter().map(|kind| kind.name()).collect();
            let all = names.join(",");
            let name = if all.len() <= room {
                all
            } else {
                format!("{} +{}", first.name(), tags.len() - 1)
            };
            let name = if tags.len() == 1 { first.name().to_owned() } else { name };
            line.push(' ', Ink::Plain);
            line = line.text(&name, plot::pen(first, style).1, room, style);
        }
        lines.push(line);
    }
    lines
}

fn upright(style: Style) -> char {
    if style.ascii { '|' } else { '│' }
}

fn cross(style: Style) -> char {
    if style.ascii { '+' } else { '┤' }
}

//! One chart in its frame: usage over time with its levels, below it background reclaim and direct
//! reclaim on the same time axis, marks through all three.

use super::canvas::{Anchor, Canvas, Stroke, Type};
use super::look::{
    self, BACKGROUND, CAPTION, DIRECT, FROZEN, INK, NOTE, SUBTITLE, SUMMARY, SWAP, TITLE, USAGE,
};
use super::marks::{self, Placement};
use super::plot::Plot;
use crate::report::axis::Axis;
use crate::report::series::{self, LevelKind, Rates, Series, Span};
use crate::report::{MarkKind, fmt, words};

/// Points of a line, at most: more than there are pixels.
const MOST_POINTS: usize = 2000;
/// Bins of the rates, and so bars.
pub(super) const BINS: usize = 120;

/// Room left of the plots for the y labels, and right of them for the levels' names.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 160.0;
/// One row of labels of marks.
const MARK_ROW: f64 = 15.0;
/// One row of the list below.
const LIST_ROW: f64 = 17.0;

/// The axes of one chart, or of two that are to be compared.
pub(super) struct Axes {
    span: Span,
    time: Axis,
    size: Axis,
    background: Axis,
    direct: Axis,
}

/// What to draw, and how much room it needs.
pub(super) struct Chart<'a> {
    series: &'a Series<'a>,
    rates: Rates,
    marks: Placement,
}

/// Where to draw it.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) x: f64,
    pub(super) width: f64,
    /// From the top to the end of the time axis' labels; the list of marks comes below.
    pub(super) height: f64,
    /// Rows kept for labels of marks: the same in charts that stand side by side.
    pub(super) mark_rows: usize,
}

impl Axes {
    /// The axes that hold all of these, for a chart `width` wide.
    pub(super) fn of(all: &[&Series<'_>], width: f64) -> Axes {
        let span = Span::of(all);
        let rates: Vec<Rates> = all.iter().map(|s| s.rates(span, BINS)).collect();
        let peak = |of: fn(&Rates) -> &Vec<f64>| {
            rates.iter().flat_map(of).copied().fold(0.0, f64::max) * 1.08
        };
        let background = peak(|r| &r.background);
        Axes {
            span,
            time: Axis::time(span.start, span.end, ((width - LEFT - RIGHT) / 62.0) as usize),
            // Room above, so that a line at the top is not the frame.
            size: Axis::sizes(series::top_bytes(all) * 1.06, 5),
            background: match background {
                0.0 => Axis::byte_rates(f64::from(1 << 20), 2),
                peak => Axis::byte_rates(peak, 3),
            },
            direct: Axis::event_rates(peak(|r| &r.direct), 3),
        }
    }
}

impl<'a> Chart<'a> {
    pub(super) fn new(series: &'a Series<'a>, axes: &Axes, x: f64, width: f64) -> Chart<'a> {
        let (left, right) = (x + LEFT, x + width - RIGHT);
        let x_of = |t| left + axes.time.fraction(t) * (right - left);
        let marks = marks::place(series, x_of, (left, x + width - 8.0), NOTE);
        Chart { series, rates: series.rates(axes.span, BINS), marks }
    }

    pub(super) fn mark_rows(&self) -> usize {
        self.marks.rows
    }

    /// Height of the list of marks below the frame.
    pub(super) fn list_height(&self) -> f64 {
        let (_, rows) = self.list_shape();
        if rows == 0 { 0.0 } else { rows as f64 * LIST_ROW + 10.0 }
    }

    /// Columns and rows of the list of marks: a short one has the whole width.
    fn list_shape(&self) -> (usize, usize) {
        let entries = self.marks.list.len();
        if entries <= 4 { (1, entries) } else { (2, entries.div_ceil(2)) }
    }

    pub(super) fn draw(&self, canvas: &mut Canvas, axes: &Axes, frame: Frame) {
        let left = frame.x + LEFT;
        let right = frame.x + frame.width - RIGHT;
        let room = frame.x + frame.width - 12.0 - left;
        let t = self.series.timeline;
        canvas.text((left, 30.0), Anchor::Start, TITLE, &TITLE.fit(&t.title, room));
        canvas.text((left, 50.0), Anchor::Start, SUBTITLE, &SUBTITLE.fit(&t.subtitle, room));
        canvas.text((left, 68.0), Anchor::Start, SUMMARY, &self.summary(room));

        let top = 104.0 + frame.mark_rows as f64 * MARK_ROW;
        let strip = 58.0;
        let bottom = frame.height - 40.0;
        let plot =
            |top, bottom, values| Plot { left, right, top, bottom, time: &axes.time, values };
        let direct = plot(bottom - strip, bottom, &axes.direct);
        let background = plot(direct.top - 28.0 - strip, direct.top - 28.0, &axes.background);
        let usage = plot(top, background.top - 28.0, &axes.size);

        for plot in [&usage, &background, &direct] {
            plot.grid(canvas);
        }
        self.legend(canvas, &usage, 92.0);
        self.band(canvas, &usage);
        self.frozen(canvas, &usage);
        self.usage(canvas, axes.span, &usage);
        self.levels(canvas, &usage, frame.x + frame.width - 2.0);
        self.background(canvas, axes.span, &background);
        self.direct(canvas, axes.span, &direct);
        for plot in [&usage, &background, &direct] {
            plot.frame(canvas);
        }
        direct.time_labels(canvas);
        self.marks(canvas, [&usage, &background, &direct]);
        self.list(canvas, frame, left);
    }

    /// As many phrases of the summary as fit on a line.
    fn summary(&self, room: f64) -> String {
        let mut line = String::new();
        for phrase in words::summary(self.series) {
            let longer = if line.is_empty() { phrase } else { format!("{line}  ·  {phrase}") };
            if SUMMARY.width_of(&longer) > room {
                break;
            }
            line = longer;
        }
        line
    }

    fn legend(&self, canvas: &mut Canvas, plot: &Plot<'_>, y: f64) {
        let swap = self.series.has_swap().then_some(("swap", SWAP));
        let entries =
            [("usage", USAGE), ("background reclaim", BACKGROUND), ("direct reclaim", DIRECT)];
        let mut parts = vec![(0.0, CAPTION, "Memory in use")];
        let frozen = (self.series.frozen().next().is_some()).then_some(("throttled", FROZEN));
        for (name, color) in entries.into_iter().chain(swap).chain(frozen) {
            parts.push((14.0, Type::plain(11.0, color), "■"));
            parts.push((4.0, NOTE, name));
        }
        canvas.flow((plot.left, y), &parts);
    }

    fn usage(&self, canvas: &mut Canvas, span: Span, plot: &Plot<'_>) {
        let on_plot = |points: Vec<(f64, f64)>| -> Vec<(f64, f64)> {
            points.into_iter().map(|(t, v)| (plot.x(t), plot.y(v))).collect()
        };
        let usage = on_plot(self.series.usage(span, MOST_POINTS));
        canvas.area(&usage, plot.bottom, USAGE, 0.16);
        if self.series.has_swap() {
            let swap = on_plot(self.series.swap(span, MOST_POINTS));
            canvas.polyline("swap", &swap, look::SWAP_LINE);
        }
        match usage[..] {
            [] => {
                let middle = ((plot.left + plot.right) / 2.0, (plot.top + plot.bottom) / 2.0);
                canvas.text(middle, Anchor::Middle, NOTE, "no samples");
            }
            [only] => canvas.dot(only, 3.0, USAGE),
            _ => canvas.polyline("usage", &usage, look::USAGE_LINE),
        }
    }

    /// The stretch between the watermarks, where usage is meant to be.
    fn band(&self, canvas: &mut Canvas, plot: &Plot<'_>) {
        let t = self.series.timeline;
        if let (Some(high), Some(low)) = (t.wmark_high_bytes, t.wmark_low_bytes) {
            let (top, bottom) = (plot.y(high as f64), plot.y(low as f64));
            canvas.band((plot.left, top), (plot.right, bottom), BACKGROUND, 0.09);
        }
    }

    /// The spans in which the container was throttled; what is closer together than a pixel is one.
    fn frozen(&self, canvas: &mut Canvas, plot: &Plot<'_>) {
        let mut drawn: Option<(f64, f64)> = None;
        let band = |canvas: &mut Canvas, (from, to): (f64, f64)| {
            canvas.band((from, plot.top), (to, plot.bottom), FROZEN, 0.16);
        };
        for (from, to) in self.series.frozen() {
            let (from, to) = (plot.x(from).max(plot.left), plot.x(to).min(plot.right));
            drawn = match drawn {
                Some((start, end)) if from - end < 1.0 => Some((start, end.max(to))),
                Some(done) => {
                    band(canvas, done);
                    Some((from, to))
                }
                None => Some((from, to)),
            };
        }
        if let Some(last) = drawn {
            band(canvas, last);
        }
    }

    /// The horizontal lines, with their names at the right edge, pushed apart where they are close.
    fn levels(&self, canvas: &mut Canvas, plot: &Plot<'_>, right: f64) {
        const GAP: f64 = 14.0;
        let mut levels = self.series.levels();
        // Drawn from the least important, so that the limit lies on top.
        levels.reverse();
        for level in levels.iter().filter(|l| plot.holds(l.bytes)) {
            let y = plot.y(level.bytes as f64);
            canvas.line(
                level.kind.name(),
                (plot.left, y),
                (plot.right, y),
                look::level(level.kind),
            );
        }
        // Labels from the top down; a stable sort keeps the limit above a high of the same size.
        levels.reverse();
        levels.sort_by_key(|level| std::cmp::Reverse(level.bytes));
        let wanted: Vec<f64> = levels.iter().map(|l| plot.y(l.bytes as f64)).collect();
        let ys = pushed_apart(&wanted, plot.top, plot.bottom, GAP);
        for ((level, from), to) in levels.iter().zip(wanted).zip(ys) {
            let color = look::level(level.kind).color;
            if plot.holds(level.bytes) {
                let thin = Stroke::solid(color, 0.8);
                let bend = [(plot.right, from), (plot.right + 4.0, from), (plot.right + 9.0, to)];
                canvas.polyline("leader", &bend, thin);
            }
            let above = if plot.holds(level.bytes) { "" } else { " ↑" };
            let text = format!("{} {}{above}", level.kind.name(), fmt::bytes_short(level.bytes));
            let set = Type { size: 11.0, color, bold: level.kind == LevelKind::Limit };
            let x = plot.right + 12.0;
            canvas.text((x, to + 4.0), Anchor::Start, set, &set.fit(&text, right - x));
        }
    }

    fn background(&self, canvas: &mut Canvas, span: Span, plot: &Plot<'_>) {
        plot.caption(
            canvas,
            "Background reclaim",
            span,
            &self.rates.background,
            fmt::bytes_per_second,
        );
        plot.bars(canvas, "background", &self.rates.background, BACKGROUND);
        let bin = (plot.right - plot.left) / BINS as f64;
        let futile: Vec<f64> = (self.rates.futile.iter().enumerate())
            .filter(|&(_, &futile)| futile)
            .map(|(i, _)| plot.left + (i as f64 + 0.5) * bin)
            .collect();
        for &x in &futile {
            canvas.line("futile", (x, plot.bottom + 2.0), (x, plot.bottom + 7.0), look::FUTILE);
        }
        if !futile.is_empty() {
            let (x, y) = (plot.right + 12.0, plot.bottom);
            canvas.line("key", (x, y + 2.0), (x, y + 7.0), look::FUTILE);
            canvas.text((x + 6.0, y + 8.0), Anchor::Start, NOTE, "futile round");
        }
    }

    fn direct(&self, canvas: &mut Canvas, span: Span, plot: &Plot<'_>) {
        let rate = |r| format!("{}/s", fmt::count_short(r));
        plot.caption(canvas, "Direct reclaim", span, &self.rates.direct, rate);
        plot.bars(canvas, "direct", &self.rates.direct, DIRECT);
    }

    fn marks(&self, canvas: &mut Canvas, plots: [&Plot<'_>; 3]) {
        let [usage, strips @ ..] = plots;
        for mark in &self.marks.marks {
            let stroke = look::mark(mark.kind);
            let text_y = usage.top - 6.0 - mark.row as f64 * MARK_ROW;
            // A number stands on its line, a label beside it.
            let line_top = if self.marks.list.is_empty() { text_y - 9.0 } else { text_y + 3.0 };
            canvas.hinted(&mark.full, |canvas| {
                canvas.line("mark", (mark.x, line_top), (mark.x, usage.bottom), stroke);
                // Not through the captions between the plots.
                for strip in strips {
                    canvas.line("mark", (mark.x, strip.top), (mark.x, strip.bottom), stroke);
                }
                let (color, bold) = (stroke.color, mark.kind == MarkKind::Oom);
                let set = Type { color, bold, ..NOTE };
                canvas.text((mark.label_x, text_y), Anchor::Start, set, &mark.label);
            });
        }
    }

    /// The list of numbered marks, down the first column and then down the second.
    fn list(&self, canvas: &mut Canvas, frame: Frame, left: f64) {
        let (columns, rows) = self.list_shape();
        let column = (frame.x + frame.width - 12.0 - left) / columns as f64;
        for (i, (number, text)) in self.marks.list.iter().enumerate() {
            let x = left + (i / rows.max(1)) as f64 * column;
            let y = frame.height + 14.0 + (i % rows.max(1)) as f64 * LIST_ROW;
            canvas.text((x + 14.0, y), Anchor::End, Type::bold(11.0, INK), number);
            canvas.text((x + 20.0, y), Anchor::Start, NOTE, &NOTE.fit(text, column - 30.0));
        }
    }
}

/// Places `gap` apart or more, within the bounds where there is room, each as near as that allows
/// to where it is wanted. `wanted` is in ascending order.
fn pushed_apart(wanted: &[f64], top: f64, bottom: f64, gap: f64) -> Vec<f64> {
    let mut out: Vec<f64> = Vec::with_capacity(wanted.len());
    for &y in wanted {
        out.push(out.last().map_or(y.max(top), |above| y.max(above + gap)));
    }
    let mut floor = bottom;
    for y in out.iter_mut().rev() {
        *y = y.min(floor);
        floor = *y - gap;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_gap_apart_and_stay_inside() {
        for wanted in [vec![0.0, 1.0, 2.0], vec![50.0, 50.0], vec![98.0, 99.0, 100.0], vec![]] {
            let ys = pushed_apart(&wanted, 0.0, 100.0, 14.0);
            assert!(ys.windows(2).all(|p| p[1] - p[0] >= 14.0), "{ys:?}");
            assert!(ys.iter().all(|y| (0.0..=100.0).contains(y)), "{ys:?}");
        }
        assert_eq!(pushed_apart(&[10.0, 60.0], 0.0, 100.0, 14.0), [10.0, 60.0]);
    }
}

//! A timeline as a picture: one self-contained SVG, without scripts or fonts of its own, that any
//! browser opens.

mod canvas;
mod chart;
mod look;
mod marks;
mod plot;
mod table;

use super::series::Series;
use super::{CompareRow, Timeline, words};
use canvas::Canvas;
use chart::{Axes, Chart, Frame};

/// One run: usage with its limit and watermarks, and below it, on the same time axis, background
/// reclaim and direct reclaim. 960 wide, 540 high, and a list of marks below where their labels
/// would not fit above.
pub fn run(timeline: &Timeline) -> String {
    const WIDTH: f64 = 960.0;
    const HEIGHT: f64 = 540.0;
    let series = Series::of(timeline);
    let axes = Axes::of(&[&series], WIDTH);
    let chart = Chart::new(&series, &axes, 0.0, WIDTH);
    let mut canvas = Canvas::default();
    let frame = Frame { x: 0.0, width: WIDTH, height: HEIGHT, mark_rows: chart.mark_rows() };
    chart.draw(&mut canvas, &axes, frame);
    canvas.document(WIDTH, HEIGHT + chart.list_height(), &timeline.title, &about(&series))
}

/// Width of a comparison.
const WIDTH: f64 = 1360.0;

/// Two runs side by side on the same axes, and a table of `rows` below: what changed, by how much,
/// and whether for the better.
pub fn compare(left: &Timeline, right: &Timeline, rows: &[CompareRow]) -> String {
    let mut canvas = Canvas::default();
    let names = (left.title.as_str(), right.title.as_str());
    let (height, about) = pair(&mut canvas, names, left, right, rows);
    let title = format!("{} | {}", left.title, right.title);
    canvas.document(WIDTH, height, &title, &about)
}

/// Several comparisons, one below the other: each is what [`compare`] draws, but for the columns of
/// values, which `names` head.
pub fn compare_all(
    title: &str,
    names: (&str, &str),
    pairs: &[(&Timeline, &Timeline, &[CompareRow])],
) -> String {
    const GAP: f64 = 28.0;
    let mut canvas = Canvas::default();
    let (mut top, mut abouts) = (0.0, Vec::new());
    for (left, right, rows) in pairs {
        let mut part = Canvas::default();
        let (height, about) = pair(&mut part, names, left, right, rows);
        canvas.place(part, top);
        abouts.push(about);
        top += height + GAP;
    }
    canvas.document(WIDTH, (top - GAP).max(1.0), title, &abouts.join(" "))
}

/// Draws a comparison; answers its height, and what it shows in words.
fn pair(
    canvas: &mut Canvas,
    names: (&str, &str),
    left: &Timeline,
    right: &Timeline,
    rows: &[CompareRow],
) -> (f64, String) {
    const HALF: f64 = WIDTH / 2.0;
    const HEIGHT: f64 = 520.0;
    let series = [Series::of(left), Series::of(right)];
    let axes = Axes::of(&[&series[0], &series[1]], HALF);
    let charts =
        [Chart::new(&series[0], &axes, 0.0, HALF), Chart::new(&series[1], &axes, HALF, HALF)];
    let mark_rows = charts[0].mark_rows().max(charts[1].mark_rows());
    for (chart, x) in charts.iter().zip([0.0, HALF]) {
        chart.draw(canvas, &axes, Frame { x, width: HALF, height: HEIGHT, mark_rows });
    }
    let top = HEIGHT + charts[0].list_height().max(charts[1].list_height());
    let height = table::draw(canvas, names, rows, (0.0, WIDTH), top);
    (top + height, format!("Left: {}. Right: {}.", about(&series[0]), about(&series[1])))
}

/// The run in words, for those who cannot see the picture.
fn about(series: &Series<'_>) -> String {
    let levels = series
        .levels()
        .into_iter()
        .map(|level| format!("{} {}", level.kind.name(), super::fmt::bytes_short(level.bytes)));
    let phrases: Vec<String> = levels.chain(words::summary(series)).collect();
    if phrases.is_empty() { "no samples".to_owned() } else { phrases.join(", ") }
}

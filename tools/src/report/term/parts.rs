//! What stands above and below a plot: title, axis, sparklines, legend, marks.

use super::ink::{self, Ink, Line};
use super::{Axes, Style, plot};
use crate::report::series::Series;
use crate::report::{fmt, words};

/// Marks listed below a chart.
const MOST_LISTED: usize = 3;

/// What stands above and below a plot, in the order in which it goes when there is no room.
pub(super) struct Parts {
    pub(super) subtitle: Vec<Line>,
    pub(super) legend: Vec<Line>,
    pub(super) summary: Vec<Line>,
    pub(super) marks: Vec<Line>,
    pub(super) title: Vec<Line>,
    pub(super) background: Vec<Line>,
    pub(super) direct: Vec<Line>,
    pub(super) labels: Vec<Line>,
    pub(super) axis: Vec<Line>,
}

impl Parts {
    pub(super) fn of(series: &Series<'_>, axes: &Axes, width: usize, style: Style) -> Parts {
        let t = series.timeline;
        let rates = series.rates(axes.span, axes.columns);
        let text = |s: &str, ink| match s.trim() {
            "" => Vec::new(),
            _ => vec![Line::new().text(s, ink, width, style)],
        };
        // Without room for their names, nobody knows what they are.
        let spark = |name, ink, rates: &[f64], peak| match axes.left {
            0 => Vec::new(),
            _ => vec![spark_line(name, ink, rates, peak, axes, style)],
        };
        let separator = if style.ascii { " - " } else { " · " };
        let summary = wrapped(words::summary(series), separator, width);
        Parts {
            title: text(&t.title, Ink::Bold),
            subtitle: text(&t.subtitle, Ink::Dim),
            // What matters most comes first; the rest is in the report.
            summary: summary.first().map(|s| text(s, Ink::Plain)).unwrap_or_default(),
            axis: vec![axis_line(series, axes, style)],
            labels: vec![label_line(axes, style)],
            background: spark(
                "background",
                Ink::Background,
                &rates.background,
                axes.peak_background,
            ),
            direct: spark("direct", Ink::Direct, &rates.direct, axes.peak_direct),
            legend: legend(series, axes, width, style),
            marks: mark_list(series, width, style),
        }
    }

    pub(super) fn each(&mut self) -> [&mut Vec<Line>; 9] {
        [
            &mut self.subtitle,
            &mut self.legend,
            &mut self.summary,
            &mut self.marks,
            &mut self.title,
            &mut self.background,
            &mut self.direct,
            &mut self.labels,
            &mut self.axis,
        ]
    }
}

/// The x axis, with its ticks and an arrow under each mark.
fn axis_line(series: &Series<'_>, axes: &Axes, style: Style) -> Line {
    let mut chars = vec![(if style.ascii { '-' } else { '─' }, Ink::Dim); axes.columns];
    let mut put = |t: f64, c: char, ink: Ink| {
        let column = plot::dot_of(axes.time.fraction(t), axes.columns);
        if let Some(cell) = chars.get_mut(column) {
            *cell = (c, ink);
        }
    };
    for tick in &axes.time.ticks {
        put(tick.at, if style.ascii { '+' } else { '┬' }, Ink::Dim);
    }
    for mark in &series.marks {
        put(mark.t_ms, arrow(style), Ink::Mark);
    }
    let mut line = Line::new();
    if let Some(room) = axes.left.checked_sub(1) {
        line = line.padded(room);
        line.push(if style.ascii { '+' } else { '└' }, Ink::Dim);
    }
    for (c, ink) in chars {
        line.push(c, ink);
    }
    line
}

/// The times under the ticks, as many as do not touch, and the unit under the y axis.
fn label_line(axes: &Axes, style: Style) -> Line {
    let mut line = Line::new();
    if axes.left > 0 {
        line = Line::right(&format!("time ({})", axes.time.unit), Ink::Dim, axes.left - 1, style);
    }
    let end = axes.left + axes.columns + axes.right;
    for tick in &axes.time.ticks {
        let column = axes.left + plot::dot_of(axes.time.fraction(tick.at), axes.columns);
        let start = column.saturating_sub(tick.label.len() / 2);
        let start = start.min(end.saturating_sub(tick.label.len())).max(axes.left);
        if start > line.columns() || line.columns() == 0 {
            line = line.padded(start).text(&tick.label, Ink::Dim, end, style);
        }
    }
    line
}

/// One line of eighths: how much in each column, against the peak of all charts.
fn spark_line(name: &str, ink: Ink, rates: &[f64], peak: f64, axes: &Axes, style: Style) -> Line {
    const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const ASCII: [char; 8] = ['.', ':', '-', '=', '+', '*', '%', '#'];
    let levels = if style.ascii { ASCII } else { EIGHTHS };
    let mut line = Line::new();
    if let Some(room) = axes.left.checked_sub(1) {
        line = Line::right(name, ink, room, style);
        line.push(' ', Ink::Plain);
    }
    for &value in rates {
        // Nothing is a blank, and anything at all is the lowest step.
        let step = (value / peak * 8.0).ceil() as usize;
        match value > 0.0 {
            true => line.push(levels[step.clamp(1, 8) - 1], ink),
            false => line.push(' ', ink),
        }
    }
    if let Some(room) = axes.right.checked_sub(1) {
        let own = rates.iter().copied().fold(0.0, f64::max);
        let note = match ink {
            _ if own == 0.0 => "none".to_owned(),
            Ink::Background => fmt::bytes_per_second(own),
            _ => format!("{}/s", fmt::count_short(own)),
        };
        line.push(' ', Ink::Plain);
        line = line.text(&note, ink, room, style);
    }
    line
}

/// What the characters stand for, with the sizes of the levels.
fn legend(series: &Series<'_>, axes: &Axes, width: usize, style: Style) -> Vec<Line> {
    let mut entries = vec![(if style.ascii { '*' } else { '⠶' }, Ink::Usage, "usage".to_owned())];
    for level in series.levels() {
        let (c, ink) = plot::pen(level.kind, style);
        let above = if level.bytes as f64 > axes.top { " (above)" } else { "" };
        let size = fmt::bytes_short(level.bytes);
        entries.push((c, ink, format!("{} {size}{above}", level.kind.name())));
    }
    // Under the plot if one line is enough for that, else as far left as there is.
    let total: usize = entries.iter().map(|(_, _, name)| 2 + name.len() + 2).sum();
    let indent = if axes.left + total <= width + 2 { axes.left } else { 0 };
    let mut lines = vec![Line::new().padded(indent)];
    let mut at_start = true;
    for (c, ink, name) in entries {
        let mut line = lines.pop().unwrap_or_default();
        if !at_start && line.columns() + 2 + 2 + name.len() > width {
            lines.push(line);
            line = Line::new();
        } else if !at_start {
            let end = line.columns() + 2;
            line = line.padded(end);
        }
        line.push(c, ink);
        line.push(' ', Ink::Plain);
        lines.push(line.text(&name, Ink::Plain, width, style));
        at_start = false;
    }
    lines
}

/// The first few marks, a line each.
fn mark_list(series: &Series<'_>, width: usize, style: Style) -> Vec<Line> {
    let more = series.marks.len().saturating_sub(MOST_LISTED);
    // The gravest are worth the room; in order of time again once chosen.
    let mut chosen: Vec<_> = series.marks.iter().collect();
    chosen.sort_by_key(|mark| mark.kind);
    chosen.truncate(MOST_LISTED);
    chosen.sort_by(|a, b| a.t_ms.total_cmp(&b.t_ms));
    let mut lines = Vec::new();
    for (i, mark) in chosen.iter().enumerate() {
        let mut text = words::moment(&[mark]);
        if more > 0 && i + 1 == chosen.len() {
            let note = format!("   (and {} more)", fmt::count(more as u64));
            text = ink::shown(&text, width.saturating_sub(2 + note.len()), style) + &note;
        }
        let mut line = Line::new();
        line.push(arrow(style), Ink::Mark);
        line.push(' ', Ink::Plain);
        lines.push(line.text(&text, Ink::Plain, width.saturating_sub(2), style));
    }
    lines
}

/// Phrases joined into lines of at most `width`.
fn wrapped(phrases: Vec<String>, separator: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for phrase in phrases {
        match lines.last_mut() {
            Some(line)
                if line.chars().count() + separator.chars().count() + phrase.len() <= width =>
            {
                line.push_str(separator);
                line.push_str(&phrase);
            }
            _ => lines.push(phrase),
        }
    }
    lines
}

fn arrow(style: Style) -> char {
    if style.ascii { '^' } else { '▲' }
}

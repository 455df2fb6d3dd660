//! The few SVG elements that a chart needs, and the only place that writes XML: every text goes
//! through one escape, every number through one format.

use std::fmt::Write;

use crate::report::text;

/// Where a text's x is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a line is drawn.
#[derive(Clone, Copy)]
pub(super) struct Stroke {
    pub(super) color: &'static str,
    pub(super) width: f64,
    /// SVG's dash pattern; empty for a solid line.
    pub(super) dash: &'static str,
}

/// How a text is set.
#[derive(Clone, Copy)]
pub(super) struct Type {
    pub(super) size: f64,
    pub(super) color: &'static str,
    pub(super) bold: bool,
}

/// The elements written so far.
#[derive(Default)]
pub(super) struct Canvas {
    body: String,
}

impl Stroke {
    pub(super) const fn solid(color: &'static str, width: f64) -> Stroke {
        Stroke { color, width, dash: "" }
    }
}

impl Type {
    pub(super) const fn plain(size: f64, color: &'static str) -> Type {
        Type { size, color, bold: false }
    }

    pub(super) const fn bold(size: f64, color: &'static str) -> Type {
        Type { size, color, bold: true }
    }

    /// How wide `s` comes out at most, in user units: what a reader's browser picks as its
    /// sans-serif is not known, so these are the widths of DejaVu Sans, the widest of the usual.
    pub(super) fn width_of(self, s: &str) -> f64 {
        s.chars().map(|c| self.width_of_char(c)).sum()
    }

    fn width_of_char(self, c: char) -> f64 {
        let em = match c {
            'i' | 'j' | 'l' | 'I' => 0.30,
            ' ' | '.' | ',' | ':' | ';' | '|' | '\'' | '·' => 0.34,
            'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '/' | '\\' | '-' => 0.42,
            'm' | 'M' | 'W' | '%' | '@' | '…' | '—' => 1.0,
            'A'..='Z' | 'w' | '&' | '#' | '+' | '=' | '<' | '>' | '~' | '×' => 0.84,
            ' '..='~' => 0.64,
            _ => 0.55 * (1 + text::columns_of(c)) as f64,
        };
        em * self.size * if self.bold { 1.1 } else { 1.0 }
    }

    /// As much of `s`, made printable, as fits in `room`, with an ellipsis where it was cut.
    pub(super) fn fit(self, s: &str, room: f64) -> String {
        text::fit(s, room, "…", text::printable_char, |c| self.width_of_char(c))
    }
}

impl Canvas {
    /// A line; `class` names what it stands for, for those who take the picture apart.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64), stroke: Stroke) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!(
            r#"<line class="{class}" x1="{}" y1="{}" x2="{}" y2="{}"{}/>"#,
            Number(x1),
            Number(y1),
            Number(x2),
            Number(y2),
            stroke.attributes(),
        ));
    }

    /// A line through all of the points, in order.
    pub(super) fn polyline(&mut self, class: &str, points: &[(f64, f64)], stroke: Stroke) {
        self.put(format_args!(
            r#"<path class="{class}" d="{}" fill="none" stroke-linejoin="round"{}/>"#,
            path_through(points),
            stroke.attributes(),
        ));
    }

    /// The area between the points and `floor`.
    pub(super) fn area(&mut self, points: &[(f64, f64)], floor: f64, color: &str, opacity: f64) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let (first, last, floor) = (Number(first.0), Number(last.0), Number(floor));
        self.put(format_args!(
            r#"<path d="{}L{last},{floor}L{first},{floor}Z" fill="{color}" fill-opacity="{opacity}"/>"#,
            path_through(points),
        ));
    }

    /// Bars, each (left, right, top), standing on `floor`.
    pub(super) fn bars(&mut self, class: &str, bars: &[(f64, f64, f64)], floor: f64, color: &str) {
        if bars.is_empty() {
            return;
        }
        let mut d = String::new();
        for &(left, right, top) in bars {
            let (left, right, top, floor) =
                (Number(left), Number(right), Number(top), Number(floor));
            // Writing to a String cannot fail.
            let _ = write!(d, "M{left},{floor}V{top}H{right}V{floor}Z");
        }
        self.put(format_args!(r#"<path class="{class}" d="{d}" fill="{color}"/>"#));
    }

    /// A rectangle between two corners.
    pub(super) fn band(&mut self, from: (f64, f64), to: (f64, f64), color: &str, opacity: f64) {
        self.put(format_args!(
            r#"<rect x="{}" y="{}" width="{}" height="{}" fill="{color}" fill-opacity="{opacity}"/>"#,
            Number(from.0),
            Number(from.1),
            Number((to.0 - from.0).max(0.0)),
            Number((to.1 - from.1).max(0.0)),
        ));
    }

    pub(super) fn dot(&mut self, at: (f64, f64), radius: f64, color: &str) {
        self.put(format_args!(
            r#"<circle cx="{}" cy="{}" r="{}" fill="{color}"/>"#,
            Number(at.0),
            Number(at.1),
            Number(radius),
        ));
    }

    pub(super) fn text(&mut self, at: (f64, f64), anchor: Anchor, set: Type, s: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let (x, y) = (Number(at.0), Number(at.1));
        self.put(format_args!(
            r#"<text x="{x}" y="{y}"{anchor}{}>{}</text>"#,
            set.attributes(),
            escaped(s, 400),
        ));
    }

    /// Texts one after another, each (room before it, type, text): they flow, so that the distance
    /// is right whatever the font.
    pub(super) fn flow(&mut self, at: (f64, f64), parts: &[(f64, Type, &str)]) {
        let mut line = String::new();
        for &(before, set, s) in parts {
            // Writing to a String cannot fail.
            let _ = write!(
                line,
                r#"<tspan dx="{}"{}>{}</tspan>"#,
                Number(before),
                set.attributes(),
                escaped(s, 400),
            );
        }
        self.put(format_args!(r#"<text x="{}" y="{}">{line}</text>"#, Number(at.0), Number(at.1)));
    }

    /// A group around what `draw` draws, with a text that a browser shows on hovering.
    pub(super) fn hinted(&mut self, hint: &str, draw: impl FnOnce(&mut Canvas)) {
        self.put(format_args!("<g><title>{}</title>", escaped(hint, 400)));
        draw(self);
        self.put(format_args!("</g>"));
    }

    /// All of another canvas, `y` further down.
    pub(super) fn place(&mut self, other: Canvas, y: f64) {
        self.put(format_args!(r#"<g transform="translate(0,{})">"#, Number(y)));
        self.body.push_str(&other.body);
        self.put(format_args!("</g>"));
    }

    /// The whole document: `title` and `about` are for those who cannot see it.
    pub(super) fn document(self, width: f64, height: f64, title: &str, about: &str) -> String {
        let (width, height) = (Number(width), Number(height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"system-ui, 'Segoe UI', \
             Roboto, Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n\
             <title>{}</title>\n<desc>{}</desc>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            escaped(title, 400),
            escaped(about, 1000),
            self.body,
        )
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.body, "{element}");
    }
}

impl Stroke {
    fn attributes(self) -> String {
        let dash = match self.dash {
            "" => String::new(),
            dash => format!(r#" stroke-dasharray="{dash}""#),
        };
        format!(r#" stroke="{}" stroke-width="{}"{dash}"#, self.color, Number(self.width))
    }
}

impl Type {
    fn attributes(self) -> String {
        let weight = if self.bold { r#" font-weight="600""# } else { "" };
        format!(r#" font-size="{}" fill="{}"{weight}"#, Number(self.size), self.color)
    }
}

/// A coordinate to a hundredth, without needless zeros; what is not a number is 0.
#[derive(Clone, Copy)]
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = if self.0.is_finite() { (self.0 * 100.0).round() / 100.0 } else { 0.0 };
        // Display of a float is the shortest that reads back; adding zero turns -0 into 0.
        write!(f, "{}", rounded + 0.0)
    }
}

fn path_through(points: &[(f64, f64)]) -> String {
    let mut d = String::with_capacity(points.len() * 14);
    for (i, &(x, y)) in points.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(d, "{}{},{}", if i == 0 { 'M' } else { 'L' }, Number(x), Number(y));
    }
    d
}

/// Text fit to stand between tags: printable, at most `most` characters, markup escaped.
fn escaped(s: &str, most: usize) -> String {
    let mut out = String::with_capacity(s.len().min(most) + 8);
    for c in text::printable(s, most).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_always_numbers() {
        for (n, text) in [(1.0, "1"), (1.005001, "1.01"), (-0.001, "0"), (f64::NAN, "0")] {
            assert_eq!(Number(n).to_string(), text);
        }
    }

    #[test]
    fn markup_and_controls_are_text() {
        assert_eq!(escaped("<a b=\"&'\">\0", 99), "&lt;a b=&quot;&amp;&#39;&quot;&gt;\u{2400}");
    }
}

//! Where the labels of marks go, so that none lies over another or under a line: up to three rows
//! above the chart, or numbers there and a list below it.

use super::canvas::Type;
use crate::report::series::Series;
use crate::report::{Mark, MarkKind, words};

/// Rows of labels above a chart.
const ROWS: usize = 3;
/// More marks than this are numbered even if their labels would fit.
const MOST_LABELS: usize = 8;
/// A label wider than this is better off in the list.
const WIDEST_LABEL: f64 = 210.0;
/// Marks closer than this, in pixels, share a number.
const SHARE: f64 = 18.0;
/// Entries in the list below.
const MOST_LISTED: usize = 12;

/// Marks that share a place, and where their label goes.
pub(super) struct Placed {
    pub(super) x: f64,
    pub(super) kind: MarkKind,
    /// What is written at the line: the label, or a number.
    pub(super) label: String,
    /// Where the text starts.
    pub(super) label_x: f64,
    /// 0 is next to the chart.
    pub(super) row: usize,
    /// All that is known, for hovering and for the list.
    pub(super) full: String,
}

/// All marks of a chart, placed.
pub(super) struct Placement {
    pub(super) marks: Vec<Placed>,
    /// How many rows of labels there are.
    pub(super) rows: usize,
    /// The list to write below: number and text. Empty where the labels fit above.
    pub(super) list: Vec<(String, String)>,
}

/// Places the marks of a series: `x_of` says where a time is, labels may use `from` to `to`.
pub(super) fn place(
    series: &Series<'_>,
    x_of: impl Fn(f64) -> f64,
    (from, to): (f64, f64),
    set: Type,
) -> Placement {
    let at: Vec<(f64, &Mark)> = series.marks.iter().map(|&m| (x_of(m.t_ms), m)).collect();
    labelled(&at, (from, to), set).unwrap_or_else(|| numbered(&at, set))
}

/// Each label at its own line; `None` where that does not fit.
fn labelled(at: &[(f64, &Mark)], room: (f64, f64), set: Type) -> Option<Placement> {
    let wide = |mark| set.width_of(&words::label(mark)) > WIDEST_LABEL;
    if at.len() > MOST_LABELS || at.iter().any(|&(_, mark)| wide(mark)) {
        return None;
    }
    let mut marks = Vec::new();
    if !settle(at, &mut marks, room, set) {
        return None;
    }
    let rows = marks.iter().map(|m| m.row + 1).max().unwrap_or(0);
    Some(Placement { marks, rows, list: Vec::new() })
}

/// Finds a place for the last of `at`, then for those before it, and takes a place back where that
/// leaves none for them. From the right, because a label likes to run to the right of its line.
fn settle(at: &[(f64, &Mark)], placed: &mut Vec<Placed>, room: (f64, f64), set: Type) -> bool {
    let Some((&(x, mark), rest)) = at.split_last() else { return true };
    let label = words::label(mark);
    let width = set.width_of(&label);
    for label_x in [x + 4.0, x - 4.0 - width] {
        if label_x < room.0 || label_x + width > room.1 {
            continue;
        }
        for row in 0..ROWS {
            let (label, full) = (label.clone(), words::moment(&[mark]));
            let candidate = Placed { x, kind: mark.kind, label, label_x, row, full };
            if placed.iter().all(|other| go_together(&candidate, other, set)) {
                placed.push(candidate);
                if settle(rest, placed, room, set) {
                    return true;
                }
                placed.pop();
            }
        }
    }
    false
}

/// Whether neither label lies over the other, and neither line runs through the other's label.
fn go_together(a: &Placed, b: &Placed, set: Type) -> bool {
    let extent = |m: &Placed| (m.label_x, m.label_x + set.width_of(&m.label));
    let crosses = |x: f64, (from, to): (f64, f64)| from - 2.0 < x && x < to + 2.0;
    let ((a_from, a_to), (b_from, b_to)) = (extent(a), extent(b));
    // A line starts at its label's row and runs down through the rows below.
    let a_free = a.row < b.row || !crosses(a.x, (b_from, b_to));
    let b_free = b.row < a.row || !crosses(b.x, (a_from, a_to));
    let apart = a.row != b.row || a_to + 6.0 < b_from || b_to + 6.0 < a_from;
    a_free && b_free && apart
}

/// A number at each line, what it stands for in a list. Marks too close for that share a number.
fn numbered(at: &[(f64, &Mark)], set: Type) -> Placement {
    let mut groups: Vec<(f64, Vec<&Mark>)> = Vec::new();
    for &(x, mark) in at {
        match groups.last_mut() {
            Some((start, marks)) if x - *start < SHARE => marks.push(mark),
            _ => groups.push((x, vec![mark])),
        }
    }
    let mut list = Vec::new();
    let mut marks = Vec::new();
    for (i, (x, group)) in groups.iter().enumerate() {
        let label = (i + 1).to_string();
        let full = words::moment(group);
        let kind = group.iter().map(|m| m.kind).min().unwrap_or(MarkKind::Other);
        list.push((label.clone(), full.clone()));
        let label_x = x - set.width_of(&label) / 2.0;
        marks.push(Placed { x: *x, kind, label, label_x, row: 0, full });
    }
    if list.len() > MOST_LISTED {
        let more = list.len() - (MOST_LISTED - 1);
        list.truncate(MOST_LISTED - 1);
        list.push((String::new(), format!("and {more} more")));
    }
    Placement { rows: 1, marks, list }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Timeline;

    const SET: Type = Type::plain(11.0, "#000000");

    fn placed(times: &[f64], label: &str) -> Placement {
        let mark = |&t_ms| Mark { t_ms, kind: MarkKind::Oom, label: label.to_owned() };
        let timeline = Timeline { marks: times.iter().map(mark).collect(), ..Timeline::default() };
        place(&Series::of(&timeline), |t| t, (0.0, 900.0), SET)
    }

    #[test]
    fn labels_in_one_row_never_overlap_and_no_line_runs_through_a_label() {
        for times in [
            vec![10.0, 30.0, 60.0],
            vec![100.0, 500.0, 800.0, 850.0],
            vec![880.0, 890.0],
            vec![0.0, 0.0, 0.0],
        ] {
            let placement = placed(&times, "OOM: memload killed");
            assert!(placement.list.is_empty(), "{times:?} should fit");
            for a in &placement.marks {
                let extent = (a.label_x, a.label_x + SET.width_of(&a.label));
                assert!(extent.0 >= 0.0 && extent.1 <= 900.0);
                for b in placement.marks.iter().filter(|b| !std::ptr::eq(*b, a)) {
                    let theirs = (b.label_x, b.label_x + SET.width_of(&b.label));
                    let apart = extent.1 < theirs.0 || theirs.1 < extent.0;
                    assert!(a.row != b.row || apart, "{times:?}");
                    let crossed = extent.0 < b.x && b.x < extent.1;
                    assert!(!(crossed && b.row >= a.row), "{times:?}");
                }
            }
        }
    }

    #[test]
    fn too_many_or_too_long_labels_become_numbers_that_do_not_touch() {
        let many: Vec<f64> = (0..500).map(|i| f64::from(i) * 1.7).collect();
        let placement = placed(&many, "OOM");
        assert_eq!(placement.list.len(), MOST_LISTED);
        assert!(placement.list.last().is_some_and(|(_, text)| text.starts_with("and ")));
        let mut xs: Vec<f64> = placement.marks.iter().map(|m| m.x).collect();
        xs.sort_by(f64::total_cmp);
        assert!(xs.windows(2).all(|p| p[1] - p[0] >= SHARE));
        assert_eq!(placed(&[5.0], &"long ".repeat(50)).list.len(), 1);
    }
}

//! Reports, from outside: whatever a timeline holds, the picture is well-formed XML and the chart
//! fits its terminal; and what they show is where it belongs.

// The helpers below fail the test that called them.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tools::report::term::{self, Style};
use tools::report::{CompareRow, Mark, MarkKind, Round, Sample, Timeline, svg};

const MIB: u64 = 1 << 20;
const PLAIN: Style = Style { color: false, ascii: false };

/// A sawtooth between 215 and 240 MiB under a limit of 256 MiB, 20 s of it, sampled every 10 ms.
fn sawtooth() -> Timeline {
    let usage = |i: u64| if i < 400 { i * 6 / 10 } else { 215 + (i - 400) % 50 / 2 };
    let sample = |i| Sample {
        t_ms: i as f64 * 10.0,
        usage_bytes: usage(i) * MIB,
        direct_reclaim: i / 100,
        ..Sample::default()
    };
    let round = |i| Round {
        start_ms: 4500.0 + i as f64 * 500.0,
        end_ms: 4510.0 + i as f64 * 500.0,
        freed_bytes: 25 * MIB,
        futile: i == 3,
    };
    Timeline {
        title: "engine on".to_owned(),
        subtitle: "memload cold-anon".to_owned(),
        limit_bytes: Some(256 * MIB),
        high_bytes: Some(250 * MIB),
        wmark_high_bytes: Some(240 * MIB),
        wmark_low_bytes: Some(215 * MIB),
        samples: (0..2000).map(sample).collect(),
        rounds: (0..31).map(round).collect(),
        wall_ms: 20_000.0,
        ..Timeline::default()
    }
}

/// The same without the engine: at the limit, with direct reclaim all the time.
fn at_the_limit() -> Timeline {
    let mut timeline = Timeline {
        title: "engine off".to_owned(),
        wmark_high_bytes: None,
        wmark_low_bytes: None,
        rounds: Vec::new(),
        ..sawtooth()
    };
    for (i, sample) in timeline.samples.iter_mut().enumerate() {
        sample.usage_bytes = (i as u64 * MIB).min(256 * MIB);
        sample.direct_reclaim = 80 * i as u64;
    }
    timeline
}

/// A text, or a run of texts, of a picture: its box, by widths on the narrow side of real fonts.
struct TextBox {
    text: String,
    left: f64,
    right: f64,
    baseline: f64,
    size: f64,
}

fn number(node: roxmltree::Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap().parse().unwrap()
}

fn texts(document: &roxmltree::Document<'_>) -> Vec<TextBox> {
    let texts = document.descendants().filter(|n| n.has_tag_name("text"));
    texts
        .map(|node| {
            let (mut width, mut size, mut text) = (0.0, 0.0, String::new());
            let parts: Vec<_> = node.children().filter(|n| n.has_tag_name("tspan")).collect();
            for part in if parts.is_empty() { vec![node] } else { parts } {
                size = number(part, "font-size");
                let content = part.text().unwrap_or("");
                let before = part.attribute("dx").map_or(0.0, |dx| dx.parse().unwrap());
                width += before + content.chars().count() as f64 * size * 0.48;
                text.push_str(content);
            }
            let x = number(node, "x");
            let left = match node.attribute("text-anchor") {
                Some("middle") => x - width / 2.0,
                Some("end") => x - width,
                _ => x,
            };
            TextBox { text, left, right: left + width, baseline: number(node, "y"), size }
        })
        .collect()
}

fn assert_no_text_overlaps(svg: &str) -> Result<(), TestCaseError> {
    let document = roxmltree::Document::parse(svg).unwrap();
    let width = number(document.root_element(), "width");
    let height = number(document.root_element(), "height");
    let texts = texts(&document);
    for (i, a) in texts.iter().enumerate() {
        prop_assert!(a.left >= 0.0 && a.right <= width, "outside: {}", a.text);
        prop_assert!(a.baseline - a.size >= 0.0 && a.baseline <= height, "outside: {}", a.text);
        for b in &texts[i + 1..] {
            let apart = a.right <= b.left || b.right <= a.left;
            // Capitals reach up about 0.75 of the size.
            let above = a.baseline <= b.baseline - 0.75 * b.size;
            let below = b.baseline <= a.baseline - 0.75 * a.size;
            prop_assert!(apart || above || below, "{:?} overlaps {:?}", a.text, b.text);
        }
    }
    Ok(())
}

fn line_y(svg: &str, class: &str) -> Option<f64> {
    let document = roxmltree::Document::parse(svg).unwrap();
    let line = document.descendants().find(|n| n.attribute("class") == Some(class))?;
    assert_eq!(line.attribute("y1"), line.attribute("y2"));
    Some(number(line, "y1"))
}

/// The y of the tick with this label: its text is set 4 below.
fn tick_y(svg: &str, label: &str) -> f64 {
    let document = roxmltree::Document::parse(svg).unwrap();
    texts(&document).iter().find(|t| t.text == label).unwrap().baseline - 4.0
}

fn usage_points(svg: &str) -> Vec<(f64, f64)> {
    let document = roxmltree::Document::parse(svg).unwrap();
    let path = document.descendants().find(|n| n.attribute("class") == Some("usage")).unwrap();
    let points = path.attribute("d").unwrap().split(['M', 'L']).filter(|point| !point.is_empty());
    points
        .map(|point| {
            let (x, y) = point.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        })
        .collect()
}

#[test]
fn the_limit_line_is_where_the_axis_says_it_is() {
    let svg = svg::run(&sawtooth());
    assert_eq!(line_y(&svg, "limit"), Some(tick_y(&svg, "256 MiB")));
    let (limit, low) = (line_y(&svg, "limit").unwrap(), line_y(&svg, "wmark_low").unwrap());
    let floor = tick_y(&svg, "0");
    assert!(((floor - low) / (floor - limit) - 215.0 / 256.0).abs() < 1e-3);
    assert_eq!(line_y(&svg::run(&Timeline { limit_bytes: None, ..sawtooth() }), "limit"), None);
}

#[test]
fn one_peak_among_a_hundred_thousand_samples_survives() {
    let mut timeline = sawtooth();
    timeline.samples = (0..100_000)
        .map(|i| Sample { t_ms: f64::from(i), usage_bytes: 64 * MIB, ..Sample::default() })
        .collect();
    timeline.samples[61_803].usage_bytes = 256 * MIB;
    let svg = svg::run(&timeline);
    let points = usage_points(&svg);
    assert!(points.len() <= 2000, "{}", points.len());
    let top = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    assert_eq!(top, tick_y(&svg, "256 MiB"));
    assert!(svg.len() < 100_000, "{}", svg.len());
    // And in a terminal: the row of the limit has a dot in it.
    let chart = term::chart(&timeline, 80, 24, PLAIN);
    let limit = chart.lines().find(|line| line.contains("256 MiB ┤")).unwrap();
    assert!(limit.contains(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "{limit}");
}

#[test]
fn the_two_sides_of_a_comparison_have_the_same_axes() {
    let svg = svg::compare(&at_the_limit(), &sawtooth(), &[]);
    let document = roxmltree::Document::parse(&svg).unwrap();
    let half = number(document.root_element(), "width") / 2.0;
    let labels = |right: bool| -> Vec<(String, i64)> {
        let texts = texts(&document);
        let ticks = texts.iter().filter(|t| (t.left > half) == right && t.size == 11.0);
        let ticks = ticks.filter(|t| t.text.ends_with("/s") || t.text.ends_with(" MiB"));
        let ticks = ticks.filter(|t| !t.text.contains("mark") && !t.text.contains("hig"));
        ticks.map(|t| (t.text.clone(), t.baseline.round() as i64)).collect()
    };
    assert!(labels(false).len() > 6);
    assert_eq!(labels(false), labels(true));

    let chart = term::side_by_side(&at_the_limit(), &sawtooth(), 160, 24, PLAIN);
    let rows: Vec<&str> = chart.lines().filter(|line| line.contains('┤')).collect();
    assert!(rows.len() >= 4);
    for row in rows {
        let labels: Vec<&str> = row.match_indices(" ┤").map(|(end, _)| &row[..end]).collect();
        let word = |s: &str| s.rsplit("  ").next().unwrap_or("").trim().to_owned();
        assert_eq!(labels.len(), 2, "{row}");
        assert_eq!(word(labels[0]), word(labels[1]), "{row}");
    }
}

#[test]
fn a_comparison_says_what_is_better_in_words() {
    let row = |label: &str, better| CompareRow {
        label: label.to_owned(),
        off: "166,908".to_owned(),
        on: "584".to_owned(),
        ratio: Some(0.0035),
        better,
    };
    let rows = [row("failcnt", Some(true)), row("cpu", Some(false)), row("oom", None)];
    let svg = svg::compare(&at_the_limit(), &sawtooth(), &rows);
    let document = roxmltree::Document::parse(&svg).unwrap();
    let texts: Vec<String> = texts(&document).into_iter().map(|t| t.text).collect();
    for text in ["failcnt", "166,908", "584", "0.0035x", "▲ better", "▼ worse", "engine off"] {
        assert!(texts.iter().any(|t| t == text), "{text} is missing");
    }
    let table = term::compare(("off", "on"), &rows, Some(80), PLAIN);
    assert!(table.contains("failcnt  166,908  584  0.0035x  better\n"), "{table}");
}

#[test]
fn a_hostile_title_is_text_and_nothing_else() {
    let title = "sh -c '\x1b[2J\u{9b}31m\0</text><script>alert(1)</script>&bogus;]]>\u{202e}'";
    let timeline = Timeline {
        title: title.to_owned(),
        marks: vec![Mark { t_ms: 1.0, kind: MarkKind::Oom, label: title.to_owned() }],
        ..sawtooth()
    };
    let svg = svg::run(&timeline);
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert!(document.descendants().all(|n| !n.has_tag_name("script")));
    for style in [PLAIN, Style { color: true, ascii: false }, Style { color: true, ascii: true }] {
        let chart = term::chart(&timeline, 80, 24, style);
        let bare = without_colour(&chart);
        assert!(bare.chars().all(|c| c == '\n' || !c.is_control()), "{bare}");
        assert!(!style.ascii || bare.is_ascii(), "{bare}");
    }
}

#[test]
fn a_chart_has_the_height_asked_for_and_gives_up_the_least_important_first() {
    for height in 0..40 {
        let chart = term::chart(&sawtooth(), 80, height, PLAIN);
        assert_eq!(chart.lines().count(), height, "{chart}");
    }
    let chart = term::chart(&sawtooth(), 80, 12, PLAIN);
    assert!(chart.contains("time (s)") && chart.contains("background"), "{chart}");
    assert!(!chart.contains("memload"), "{chart}");
}

#[test]
fn dots_are_at_the_height_of_what_they_stand_for() {
    let flat = |bytes| {
        let mut timeline = sawtooth();
        timeline.samples.iter_mut().for_each(|s| s.usage_bytes = bytes);
        let chart = term::chart(&timeline, 80, 24, PLAIN);
        let row = |found: &dyn Fn(&str) -> bool| chart.lines().position(found).unwrap();
        let dotted = |line: &str| line.contains(|c| ('\u{2801}'..='\u{28ff}').contains(&c));
        (
            row(&|line| line.contains(['│', '┤']) && dotted(line)),
            row(&|line| line.contains("256 MiB ┤")),
            row(&|line| line.contains("128 MiB ┤")),
            row(&|line| line.contains("0 ┤")),
        )
    };
    let (dots, top, ..) = flat(256 * MIB);
    assert_eq!(dots, top);
    let (dots, _, middle, _) = flat(128 * MIB);
    assert_eq!(dots, middle);
    let (dots, .., bottom) = flat(0);
    assert_eq!(dots, bottom);
}

#[test]
fn narrow_terminals_get_the_charts_one_above_the_other() {
    let stacked = term::side_by_side(&at_the_limit(), &sawtooth(), 80, 20, PLAIN);
    assert_eq!(stacked.lines().count(), 41);
    let beside = term::side_by_side(&at_the_limit(), &sawtooth(), 120, 20, PLAIN);
    assert_eq!(beside.lines().count(), 20);
    assert!(beside.lines().any(|l| l.contains("engine off") && l.contains("engine on")));
}

#[test]
fn a_terminal_of_any_size_costs_little() {
    let chart = term::side_by_side(&at_the_limit(), &sawtooth(), usize::MAX, usize::MAX, PLAIN);
    assert!(chart.lines().count() <= 2000);
    assert!(chart.lines().all(|line| line.chars().count() <= 2000));
}

/// The text without SGR sequences, the only ones there may be.
fn without_colour(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let end = after.find('m').unwrap();
        assert!(after[..end].chars().all(|c| c.is_ascii_digit() || c == ';'), "{after:?}");
        rest = &after[end + 1..];
    }
    out + rest
}

fn any_time() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..20_000.0f64,
        1 => prop::num::f64::ANY,
        1 => Just(0.0),
    ]
}

fn any_size() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0..300 * MIB, 1 => any::<u64>(), 1 => Just(u64::MAX), 1 => Just(0)]
}

prop_compose! {
    fn any_sample()(
        t_ms in any_time(),
        usage_bytes in any_size(),
        swap_bytes in prop::option::of(any_size()),
        direct_reclaim in any::<u64>(),
        throttled_ms in any_time(),
    ) -> Sample {
        Sample { t_ms, usage_bytes, swap_bytes, direct_reclaim, throttled_ms }
    }
}

prop_compose! {
    fn any_round()(
        start_ms in any_time(), end_ms in any_time(), freed_bytes in any_size(), futile: bool,
    ) -> Round {
        Round { start_ms, end_ms, freed_bytes, futile }
    }
}

fn any_kind() -> impl Strategy<Value = MarkKind> {
    use MarkKind::{ForeignWrite, Oom, Other, StandAside};
    prop::sample::select(vec![Oom, ForeignWrite, StandAside, Other])
}

prop_compose! {
    fn any_mark()(t_ms in any_time(), kind in any_kind(), label in any::<String>()) -> Mark {
        Mark { t_ms, kind, label }
    }
}

prop_compose! {
    fn any_timeline()(
        text in (any::<String>(), any::<String>()),
        levels in prop::array::uniform4(prop::option::of(any_size())),
        samples in prop::collection::vec(any_sample(), 0..40),
        rounds in prop::collection::vec(any_round(), 0..20),
        marks in prop::collection::vec(any_mark(), 0..30),
        wall_ms in any_time(),
    ) -> Timeline {
        let [limit_bytes, high_bytes, wmark_high_bytes, wmark_low_bytes] = levels;
        Timeline {
            title: text.0,
            subtitle: text.1,
            limit_bytes,
            high_bytes,
            wmark_high_bytes,
            wmark_low_bytes,
            samples,
            rounds,
            marks,
            wall_ms,
        }
    }
}

fn any_style() -> impl Strategy<Value = Style> {
    any::<(bool, bool)>().prop_map(|(color, ascii)| Style { color, ascii })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_timeline_is_a_well_formed_picture(timeline in any_timeline()) {
        let svg = svg::run(&timeline);
        prop_assert!(roxmltree::Document::parse(&svg).is_ok(), "{svg}");
        prop_assert!(!svg.contains("NaN") && !svg.contains("inf,") && svg.len() < 200_000);
    }

    #[test]
    fn any_comparison_is_a_well_formed_picture(
        left in any_timeline(),
        right in any_timeline(),
        texts in any::<(String, String, String)>(),
        ratio in prop::option::of(prop::num::f64::ANY),
        better: Option<bool>,
        number in 0..80usize,
    ) {
        let row = CompareRow { label: texts.0, off: texts.1, on: texts.2, ratio, better };
        let svg = svg::compare(&left, &right, &vec![row; number]);
        prop_assert!(roxmltree::Document::parse(&svg).is_ok(), "{svg}");
    }

    #[test]
    fn no_text_of_a_picture_lies_over_another(
        times in prop::collection::vec((0.0..20_000.0f64, any_kind()), 0..20),
        levels in prop::array::uniform4(prop::option::of(0..300u64)),
        label in "[a-zA-Z0-9 :/]{0,40}",
    ) {
        let [limit, high, wmark_high, wmark_low] = levels.map(|l| l.map(|mib| mib * MIB));
        let timeline = Timeline {
            limit_bytes: limit,
            high_bytes: high,
            wmark_high_bytes: wmark_high,
            wmark_low_bytes: wmark_low,
            marks: times
                .into_iter()
                .map(|(t_ms, kind)| Mark { t_ms, kind, label: label.clone() })
                .collect(),
            ..sawtooth()
        };
        assert_no_text_overlaps(&svg::run(&timeline))?;
        assert_no_text_overlaps(&svg::compare(&at_the_limit(), &timeline, &[]))?;
    }

    #[test]
    fn any_chart_fits_its_terminal(
        timeline in any_timeline(),
        other in any_timeline(),
        width in 0..200usize,
        height in 0..50usize,
        style in any_style(),
    ) {
        let chart = term::chart(&timeline, width, height, style);
        prop_assert_eq!(chart.lines().count(), height);
        let both = term::side_by_side(&timeline, &other, width, height, style);
        for line in without_colour(&chart).lines().chain(without_colour(&both).lines()) {
            prop_assert!(line.chars().count() <= width, "{} > {width}: {line:?}", line.len());
            prop_assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
            prop_assert!(!style.ascii || line.is_ascii(), "{line:?}");
        }
    }

    #[test]
    fn any_table_has_one_line_a_row(
        headers in prop::collection::vec(any::<String>(), 0..5),
        rows in prop::collection::vec(prop::collection::vec(any::<String>(), 0..6), 0..8),
        width in prop::option::of(0..120usize),
        style in any_style(),
    ) {
        let names: Vec<&str> = headers.iter().map(String::as_str).collect();
        let out = without_colour(&term::table(&names, &rows, width, style));
        prop_assert_eq!(out.lines().count(), rows.len() + usize::from(!headers.is_empty()));
        prop_assert!(out.chars().all(|c| c == '\n' || !c.is_control()));
    }
}

#[test]
fn comparisons_stand_one_below_the_other_under_their_own_names() {
    let (off, on) = (at_the_limit(), sawtooth());
    let row = CompareRow { label: "p99.9".into(), ..CompareRow::default() };
    let rows = [row];
    let one = svg::compare(&off, &on, &rows);
    let pairs = [(&off, &on, &rows[..]), (&off, &on, &rows[..])];
    let both = svg::compare_all("the demo", ("without", "with"), &pairs);
    let height = |picture: &str| {
        let document = roxmltree::Document::parse(picture).unwrap();
        document.root_element().attribute("height").unwrap().parse::<f64>().unwrap()
    };
    assert!(height(&both) > 2.0 * height(&one), "{} {}", height(&both), height(&one));
    assert_eq!(both.matches(">without<").count(), 2);
    let nothing = svg::compare_all("", ("", ""), &[]);
    assert!(height(&nothing) > 0.0);
}

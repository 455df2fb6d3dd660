//! The terms a container is held to: what the operator's configuration says, and what the container's own
//! annotations may change of it.
//!
//! Annotations are untrusted. They may tighten a container's terms and never loosen them, except where
//! the operator trusts them with a key ([`Rights`]).

use super::throttle::WayOut;
use super::watermark::{WatermarkSpec, Watermarks};
use cgroupfs::{Bytes, Limit};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest that `oom = "hold=…"` and `"freeze=…"` may ask for.
pub const LONGEST_HOLD: Duration = Duration::from_secs(600);

/// Kubernetes' quality-of-service class, in the order in which memory is taken: from the first before
/// the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// No request: the first to give.
    BestEffort,
    /// A request below the limit.
    Burstable,
    /// Request and limit are one: never taken from.
    Guaranteed,
}

impl Class {
    /// As in configuration, JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::BestEffort => "besteffort",
            Class::Burstable => "burstable",
            Class::Guaranteed => "guaranteed",
        }
    }
}

/// Where `memory.high` is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum High {
    /// At this size; `max` for none.
    Size(Limit),
    /// At this share of the limit, in 1/10,000.
    OfLimit(u32),
    /// At request + this share (in 1/10,000) of what lies between request and limit: KEP-2570's formula.
    OverRequest(u32),
}

impl High {
    /// In bytes for this limit and request, page-rounded; without a limit a share of it is none.
    pub fn resolve(self, limit: Limit, request: Option<Bytes>) -> Limit {
        match (self, limit) {
            (High::Size(size), _) => size.page_floor(),
            (_, Limit::Max) => Limit::Max,
            (High::OfLimit(share), Limit::Bytes(limit)) => {
                Limit::Bytes(limit.scale(u64::from(share), 10_000).page_floor())
            }
            (High::OverRequest(share), Limit::Bytes(limit)) => {
                let request = request.unwrap_or_default().min(limit);
                let above = limit.saturating_sub(request).scale(u64::from(share), 10_000);
                Limit::Bytes(request.saturating_add(above).page_floor())
            }
        }
    }
}

/// What happens when the limit cannot be held. From tight to loose ([`OomPolicy::is_within`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomPolicy {
    /// Every process of the group is killed with the kernel's victim.
    Group,
    /// The kernel's choice.
    Kill,
    /// All of it is stopped for a look, and the OOM killer held back, so long at most.
    Freeze(Duration),
    /// The OOM killer is held back, so long at most, and the limit may be raised.
    Hold(Duration),
}

impl OomPolicy {
    /// Whether this is no looser than `granted`: what holds the killer back does so for no longer, and a freeze,
    /// which raises nothing, is tighter than a hold of the same length.
    pub fn is_within(self, granted: OomPolicy) -> bool {
        use OomPolicy::{Freeze, Group, Hold, Kill};
        match (self, granted) {
            (Group, _) | (Kill, Kill | Freeze(_) | Hold(_)) => true,
            (Freeze(asked), Freeze(most) | Hold(most)) | (Hold(asked), Hold(most)) => asked <= most,
            (Kill | Freeze(_) | Hold(_), _) => false,
        }
    }
}

/// A value that does not parse, or a key that there is not: complete for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadTerm(String);

/// The keys that terms have: of annotations (after `io.cgshim.`), of `cgctl set`, of configuration.
pub const KEYS: [&str; 7] = ["class", "request", "high", "watermark", "throttle", "oom", "way_out"];

/// What somebody asks for: every field may be unset.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wishes {
    /// Quality-of-service class.
    pub class: Option<Class>,
    /// Memory that is protected.
    pub request: Option<Bytes>,
    /// Where throttling starts.
    pub high: Option<High>,
    /// Between which marks memory is reclaimed in the background.
    pub watermark: Option<WatermarkSpec>,
    /// Whether to throttle above high.
    pub throttle: Option<bool>,
    /// What to do when the limit cannot be held.
    pub oom: Option<OomPolicy>,
    /// What ends throttling that achieves nothing.
    pub way_out: Option<WayOut>,
}

impl Wishes {
    /// These where they are set, `under` elsewhere.
    #[must_use]
    pub fn over(self, under: Wishes) -> Wishes {
        Wishes {
            class: self.class.or(under.class),
            request: self.request.or(under.request),
            high: self.high.or(under.high),
            watermark: self.watermark.or(under.watermark),
            throttle: self.throttle.or(under.throttle),
            oom: self.oom.or(under.oom),
            way_out: self.way_out.or(under.way_out),
        }
    }

    /// Sets one key from text.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), BadTerm> {
        let bad = |error: &dyn fmt::Display| BadTerm(format!("{key}: {error}"));
        match key {
            "class" => self.class = Some(value.parse()?),
            "request" => self.request = Some(value.parse().map_err(|error| bad(&error))?),
            "high" => self.high = Some(value.parse()?),
            "watermark" => self.watermark = Some(value.parse().map_err(|error| bad(&error))?),
            "throttle" => self.throttle = Some(switch(value)?),
            "oom" => self.oom = Some(value.parse()?),
            "way_out" => self.way_out = Some(value.parse().map_err(|error| bad(&error))?),
            _ => {
                let shown: String = key.escape_default().take(64).collect();
                return Err(BadTerm(format!(
                    "there is no '{shown}'; the terms are {}",
                    KEYS.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// `on` or `off`.
pub fn switch(text: &str) -> Result<bool, BadTerm> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(bad_value("throttle", text, "on or off")),
    }
}

fn bad_value(key: &str, text: &str, expected: &str) -> BadTerm {
    let shown: String = text.escape_default().take(64).collect();
    BadTerm(format!("{key}: '{shown}' is not {expected}"))
}

impl FromStr for Class {
    type Err = BadTerm;

    fn from_str(text: &str) -> Result<Class, BadTerm> {
        match text.to_ascii_lowercase().as_str() {
            "guaranteed" => Ok(Class::Guaranteed),
            "burstable" => Ok(Class::Burstable),
            "besteffort" => Ok(Class::BestEffort),
            _ => Err(bad_value("class", text, "guaranteed, burstable or besteffort")),
        }
    }
}

impl FromStr for High {
    type Err = BadTerm;

    fn from_str(text: &str) -> Result<High, BadTerm> {
        let expected =
            "a size of a page or more (512M), a share of the limit (80%), request+P%, or max";
        let fail = || bad_value("high", text, expected);
        let Some(percent) = text.trim().strip_suffix('%') else {
            let size: Limit = text.parse().map_err(|_| fail())?;
            // Of nothing nobody could run: 0 is not how to say that there is none.
            return if size.page_floor() == Limit::Bytes(Bytes(0)) {
                Err(fail())
            } else {
                Ok(High::Size(size))
            };
        };
        let (percent, over) = match percent.strip_prefix("request+") {
            Some(percent) => (percent, true),
            None => (percent, false),
        };
        let value: f64 = percent.trim().parse().map_err(|_| fail())?;
        if !(value > 0.0 && value <= 100.0) {
            return Err(fail());
        }
        let share = (value * 100.0).round() as u32;
        Ok(if over { High::OverRequest(share) } else { High::OfLimit(share) })
    }
}

impl fmt::Display for High {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            High::Size(size) => size.fmt(f),
            High::OfLimit(share) => write!(f, "{}%", f64::from(*share) / 100.0),
            High::OverRequest(share) => write!(f, "request+{}%", f64::from(*share) / 100.0),
        }
    }
}

impl FromStr for OomPolicy {
    type Err = BadTerm;

    fn from_str(text: &str) -> Result<OomPolicy, BadTerm> {
        let expected = "kill, group, freeze=30s or hold=30s (600s at most)";
        let fail = || bad_value("oom", text, expected);
        match text {
            "kill" => return Ok(OomPolicy::Kill),
            "group" => return Ok(OomPolicy::Group),
            _ => {}
        }
        let (how, time) = text.split_once('=').ok_or_else(fail)?;
        let seconds = time.strip_suffix('s').ok_or_else(fail)?.parse().map_err(|_| fail())?;
        let longest = Duration::from_secs(seconds);
        if seconds == 0 || longest > LONGEST_HOLD {
            return Err(fail());
        }
        match how {
            "hold" => Ok(OomPolicy::Hold(longest)),
            "freeze" => Ok(OomPolicy::Freeze(longest)),
            _ => Err(fail()),
        }
    }
}

impl fmt::Display for OomPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OomPolicy::Group => f.write_str("group"),
            OomPolicy::Kill => f.write_str("kill"),
            OomPolicy::Freeze(longest) => write!(f, "freeze={}s", longest.as_secs()),
            OomPolicy::Hold(longest) => write!(f, "hold={}s", longest.as_secs()),
        }
    }
}

/// What annotations may do, a flag for each of [`KEYS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// They are looked at: they may tighten.
    pub allow: [bool; KEYS.len()],
    /// They may loosen too.
    pub trust: [bool; KEYS.len()],
}

impl Default for Rights {
    fn default() -> Rights {
        Rights { allow: [true; KEYS.len()], trust: [false; KEYS.len()] }
    }
}

/// What a container is held to: no field unset, sizes resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Quality-of-service class.
    pub class: Class,
    /// Memory that is protected; `None` if nothing says.
    pub request: Option<Bytes>,
    /// `memory.high` for the limit at hand.
    pub high: Limit,
    /// Background reclaim.
    pub watermark: WatermarkSpec,
    /// Whether to throttle above high.
    pub throttle: bool,
    /// What to do when the limit cannot be held.
    pub oom: OomPolicy,
    /// What ends throttling that achieves nothing.
    pub way_out: WayOut,
}

impl Terms {
    /// What `operator` says for a container with this limit; the built-in defaults where it says
    /// nothing: Burstable without a request, no high, default watermarks, throttling on, `oom = kill`,
    /// `way_out = release=30s`.
    pub fn of(operator: Wishes, limit: Limit) -> Terms {
        Terms {
            class: operator.class.unwrap_or(Class::Burstable),
            request: operator.request,
            high: operator.high.map_or(Limit::Max, |high| high.resolve(limit, operator.request)),
            watermark: operator.watermark.unwrap_or(WatermarkSpec::Default),
            throttle: operator.throttle.unwrap_or(true),
            oom: operator.oom.unwrap_or(OomPolicy::Kill),
            way_out: operator.way_out.unwrap_or_default(),
        }
    }
}

/// The operator's terms with what the container's annotations may change of them, and the keys of those
/// that were refused: not allowed, or looser than the operator's.
pub fn effective(
    operator: Wishes,
    asked: Wishes,
    rights: Rights,
    limit: Limit,
) -> (Terms, Vec<&'static str>) {
    let mut terms = Terms::of(operator, limit);
    let mut refused = Vec::new();
    let mut judge = |key: usize, asked: bool, tighter: bool| -> bool {
        let granted = asked && rights.allow[key] && (tighter || rights.trust[key]);
        if asked && !granted {
            refused.push(KEYS[key]);
        }
        granted
    };
    if let Some(class) = asked.class
        && judge(0, true, class <= terms.class)
    {
        terms.class = class;
    }
    // Protection that nobody granted would be at the neighbours' expense.
    if let Some(request) = asked.request
        && judge(1, true, terms.request.is_some_and(|granted| request <= granted))
    {
        terms.request = Some(request);
    }
    if let Some(high) = asked.high {
        let high = high.resolve(limit, terms.request);
        if judge(2, true, high <= terms.high) {
            terms.high = high;
        }
    }
    if let Some(watermark) = asked.watermark {
        let start = |spec| Watermarks::of(spec, limit, terms.high).map(|marks| marks.high);
        let tighter = match (start(watermark), start(terms.watermark)) {
            (Some(theirs), Some(ours)) => theirs <= ours,
            // Off, or nothing to be a share of: then the words themselves count.
            _ => terms.watermark == WatermarkSpec::Off || watermark == terms.watermark,
        };
        if judge(3, true, tighter) {
            terms.watermark = watermark;
        }
    }
    if let Some(throttle) = asked.throttle
        && judge(4, true, throttle || !terms.throttle)
    {
        terms.throttle = throttle;
    }
    if let Some(oom) = asked.oom
        && judge(5, true, oom.is_within(terms.oom))
    {
        terms.oom = oom;
    }
    if let Some(way_out) = asked.way_out
        && judge(6, true, way_out.is_as_tight_as(terms.way_out))
    {
        terms.way_out = way_out;
    }
    (terms, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Limit = Limit::Bytes(Bytes::mib(1000));

    fn wishes(pairs: &[(&str, &str)]) -> Wishes {
        let mut wishes = Wishes::default();
        for (key, value) in pairs {
            wishes.set(key, value).unwrap();
        }
        wishes
    }

    #[test]
    fn an_annotation_tightens() {
        let operator = wishes(&[("high", "90%"), ("oom", "hold=30s"), ("watermark", "90%:80%")]);
        let asked = wishes(&[
            ("high", "500M"),
            ("oom", "group"),
            ("watermark", "80%:70%"),
            ("class", "besteffort"),
            ("way_out", "notify=5s"),
        ]);
        let (terms, refused) = effective(operator, asked, Rights::default(), LIMIT);
        assert_eq!(refused, [""; 0]);
        assert_eq!(terms.high, Limit::Bytes(Bytes::mib(500)));
        assert_eq!(terms.oom, OomPolicy::Group);
        assert_eq!(terms.watermark, WatermarkSpec::Ratio { high: 8000, low: 7000 });
        assert_eq!(terms.class, Class::BestEffort);
        assert_eq!(terms.way_out.to_string(), "notify=5s");
    }

    #[test]
    fn an_annotation_never_loosens_and_is_named() {
        let operator = wishes(&[
            ("high", "50%"),
            ("throttle", "on"),
            ("watermark", "80%:70%"),
            ("class", "burstable"),
            ("request", "100M"),
        ]);
        let asked = wishes(&[
            ("high", "max"),
            ("throttle", "off"),
            ("watermark", "off"),
            ("oom", "hold=30s"),
            ("class", "guaranteed"),
            ("request", "200M"),
            ("way_out", "release=1s"),
        ]);
        let (terms, refused) = effective(operator, asked, Rights::default(), LIMIT);
        assert_eq!(terms, Terms::of(operator, LIMIT));
        assert_eq!(refused, KEYS);
    }

    #[test]
    fn protection_that_nobody_granted_is_refused() {
        let (terms, refused) =
            effective(Wishes::default(), wishes(&[("request", "1M")]), Rights::default(), LIMIT);
        assert_eq!((terms.request, refused.as_slice()), (None, ["request"].as_slice()));
    }

    #[test]
    fn what_the_operator_trusts_may_loosen_and_what_is_not_allowed_does_nothing() {
        let mut rights = Rights::default();
        rights.trust[2] = true;
        rights.allow[5] = false;
        let operator = wishes(&[("high", "50%")]);
        let asked = wishes(&[("high", "80%"), ("oom", "group")]);
        let (terms, refused) = effective(operator, asked, rights, LIMIT);
        assert_eq!(terms.high, Limit::Bytes(Bytes::mib(800)));
        assert_eq!((terms.oom, refused.as_slice()), (OomPolicy::Kill, ["oom"].as_slice()));
    }

    #[test]
    fn high_over_request_is_the_keps_formula() {
        let high: High = "request+90%".parse().unwrap();
        let request = Some(Bytes::mib(100));
        assert_eq!(high.resolve(LIMIT, request), Limit::Bytes(Bytes::mib(910)));
        assert_eq!(high.resolve(LIMIT, None), Limit::Bytes(Bytes::mib(900)));
        assert_eq!(high.resolve(Limit::Max, request), Limit::Max);
        // A request above the limit counts as the limit.
        assert_eq!(high.resolve(LIMIT, Some(Bytes::mib(4000))), LIMIT);
    }

    #[test]
    fn bad_values_name_key_value_and_what_is_expected() {
        for (key, value, part) in [
            ("high", "101%", "share of the limit"),
            ("high", "0", "size of a page"),
            ("high", "1K", "size of a page"),
            ("oom", "hold=0s", "600s at most"),
            ("oom", "hold=9999999s", "600s at most"),
            ("class", "silver", "guaranteed"),
            ("throttle", "yes", "on or off"),
            ("watermark", "9", "':'"),
            ("request", "-1", "negative"),
            ("way_out", "release=0s", "above zero"),
            ("way_out", "kill=1s", "release, oom, notify or never"),
            ("frob", "1", "watermark"),
        ] {
            let message = Wishes::default().set(key, value).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(part), "{message}");
        }
    }

    fn any_wishes() -> impl Strategy<Value = Wishes> {
        let class = prop_oneof![Just("guaranteed"), Just("burstable"), Just("besteffort")];
        let mark = prop_oneof![
            Just("off".to_owned()),
            Just("default".to_owned()),
            (2u32..99).prop_map(|high| format!("{high}%:{}%", high / 2))
        ];
        (
            proptest::option::of(class),
            proptest::option::of(0u64..2000),
            proptest::option::of(1u32..101),
            proptest::option::of(mark),
            proptest::option::of(any::<bool>()),
            proptest::option::of(prop_oneof![Just("kill"), Just("group"), Just("hold=9s")]),
            proptest::option::of(prop_oneof![
                Just("never"),
                Just("notify"),
                Just("release=5s"),
                Just("release=50s"),
                Just("oom=5s"),
                Just("oom=50s"),
            ]),
        )
            .prop_map(|(class, request, high, mark, throttle, oom, way_out)| Wishes {
                class: class.map(|text| text.parse().unwrap()),
                request: request.map(Bytes::mib),
                high: high.map(|share| High::OfLimit(share * 100)),
                watermark: mark.map(|text| text.parse().unwrap()),
                throttle,
                oom: oom.map(|text| text.parse().unwrap()),
                way_out: way_out.map(|text| text.parse().unwrap()),
            })
    }

    proptest! {
        #[test]
        fn no_annotation_is_ever_looser_than_the_operator(
            operator in any_wishes(),
            asked in any_wishes(),
            limit in proptest::option::of(1u64..4000),
        ) {
            let limit = limit.map_or(Limit::Max, |mib| Limit::Bytes(Bytes::mib(mib)));
            let ours = Terms::of(operator, limit);
            let (terms, _) = effective(operator, asked, Rights::default(), limit);
            prop_assert!(terms.class <= ours.class);
            prop_assert!(terms.request.unwrap_or_default() <= ours.request.unwrap_or_default());
            prop_assert!(terms.high <= ours.high);
            prop_assert!(terms.oom.is_within(ours.oom));
            prop_assert!(terms.throttle || !ours.throttle);
            prop_assert!(terms.way_out.is_as_tight_as(ours.way_out));
            let start = |terms: &Terms| Watermarks::of(terms.watermark, limit, terms.high);
            if let Some(before) = start(&ours) {
                let after = start(&terms);
                prop_assert!(after.is_some_and(|after| after.high <= before.high));
            }
        }

        #[test]
        fn no_text_panics(key in "\\PC{0,10}", value in "\\PC{0,20}") {
            let mut wishes = Wishes::default();
            let _ = wishes.set(&key, &value);
            for key in KEYS {
                let _ = wishes.set(key, &value);
            }
        }
    }
}

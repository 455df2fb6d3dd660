//! The colours and types of the pictures, in one place.
//!
//! Direct reclaim is what hurts, background reclaim what helps: warm and cool, and the watermarks
//! have the colour of the reclaim that they start and stop. On white every text has a contrast of
//! 4 to 1 or more, and no two colours differ by red and green alone.

use super::canvas::{Stroke, Type};
use crate::report::MarkKind;
use crate::report::series::LevelKind;

pub(super) const INK: &str = "#1f2933";
pub(super) const SOFT: &str = "#52606d";
pub(super) const USAGE: &str = "#2563a8";
pub(super) const SWAP: &str = "#7b5ea7";
pub(super) const BACKGROUND: &str = "#0b7a6f";
pub(super) const FROZEN: &str = "#c26a00";
pub(super) const DIRECT: &str = "#b0125b";

pub(super) const TITLE: Type = Type::bold(18.0, INK);
pub(super) const SUBTITLE: Type = Type::plain(12.0, SOFT);
pub(super) const SUMMARY: Type = Type::plain(12.0, INK);
pub(super) const CAPTION: Type = Type::bold(12.0, INK);
pub(super) const NOTE: Type = Type::plain(11.0, SOFT);
pub(super) const HEAD: Type = Type::bold(12.0, SOFT);
pub(super) const CELL: Type = Type::plain(13.0, INK);
pub(super) const BETTER: Type = Type::bold(13.0, "#0b6b50");
pub(super) const WORSE: Type = Type::bold(13.0, "#b42318");

pub(super) const GRID: Stroke = Stroke::solid("#e4e7eb", 1.0);
pub(super) const FRAME: Stroke = Stroke::solid("#9aa5b1", 1.0);
pub(super) const USAGE_LINE: Stroke = Stroke::solid(USAGE, 1.5);
pub(super) const SWAP_LINE: Stroke = Stroke { color: SWAP, width: 1.4, dash: "1.5 2" };
pub(super) const FUTILE: Stroke = Stroke::solid(INK, 1.2);

/// How a level is drawn: what was declared is solid, what the engine goes by is dashed.
pub(super) fn level(kind: LevelKind) -> Stroke {
    match kind {
        LevelKind::Limit => Stroke::solid("#c81e1e", 1.8),
        LevelKind::High => Stroke::solid(FROZEN, 1.5),
        LevelKind::WmarkHigh => Stroke { color: BACKGROUND, width: 1.3, dash: "7 4" },
        LevelKind::WmarkLow => Stroke { color: BACKGROUND, width: 1.3, dash: "3 3" },
    }
}

/// How a mark's line is drawn; its text has the same colour.
pub(super) fn mark(kind: MarkKind) -> Stroke {
    let (color, dash) = match kind {
        MarkKind::Oom => ("#8a0f0f", ""),
        MarkKind::ForeignWrite => ("#5b3d8f", "5 3"),
        MarkKind::StandAside => ("#6b5a10", "2 3"),
        MarkKind::Other => (SOFT, "2 3"),
    };
    Stroke { color, width: 1.3, dash }
}

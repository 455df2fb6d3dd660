//! runc by itself has no configuration: its containers come from bundles, and those name the hook.

use super::{Place, Plan};

pub(super) fn plan(place: &Place<'_>) -> Plan {
    Plan {
        changes: Vec::new(),
        notes: vec![
            "runc and crun have no configuration of their own: a bundle's config.json names the hook".into(),
            "for a bundle made by hand: cgctl hook inject BUNDLE".into(),
            format!(
                "for a program that runs runc: have it run {} instead, which does that and then becomes runc \
                 (or crun, or what CGSHIM_RUNTIME names)",
                place.wrapper.display()
            ),
        ],
    }
}

//! Other terms for a throttle that goes on: it is told by its thread's control, as of an end.

use super::manager::{Manager, Woken};
use super::near::Near;
use super::pulser::Order;
use super::{Ancestor, ThrottleConfig, ThrottleEvent};
use crate::core::throttle::{Changed, WayOut};
use cgroupfs::{Limit, Result};
use std::sync::PoisonError;

/// What may change while a container is throttled.
#[derive(Clone)]
pub struct ThrottleTerms {
    /// As [`ThrottleConfig::high`].
    pub high: Limit,
    /// As [`ThrottleConfig::way_out`]. What was spent of the budget so far counts for this one, too.
    pub way_out: WayOut,
    /// As [`ThrottleConfig::ancestors`].
    pub ancestors: Vec<Ancestor>,
    /// As [`ThrottleConfig::reclaims`].
    pub reclaims: bool,
}

impl ThrottleConfig {
    /// The terms in it.
    pub fn terms(&self) -> ThrottleTerms {
        ThrottleTerms {
            high: self.high,
            way_out: self.way_out,
            ancestors: self.ancestors.clone(),
            reclaims: self.reclaims,
        }
    }
}

impl Manager {
    /// Takes note of other terms, if there are any.
    pub(super) fn take_terms(&mut self) {
        let terms = self.control.terms.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(terms) = terms else { return };
        let ThrottleTerms { high, way_out, ancestors, reclaims } = terms;
        self.config = ThrottleConfig { high, way_out, ancestors, reclaims, ..self.config.clone() };
        let before = self.levels.change(&self.config, &self.memory);
        // Of a group that is gone: that is seen soon enough.
        let levels = self.levels.now(self.memory.usage().unwrap_or_default());
        let all = self.levels.all().zip(levels).zip(before);
        let changed = all.map(|((of, level), before)| {
            let way_out = of.way_out;
            Changed { before, way_out, level }
        });
        let released = self.core.is_released();
        self.core.change(&changed.collect::<Vec<_>>());
        if released && !self.core.is_released() {
            self.tell(ThrottleEvent::Resumed);
        }
        self.publish();
        self.changes += 1;
    }

    /// Has the real-time thread know of terms that it was not told of yet. `Look` where it does; else it looks after
    /// other groups than these: a new one is needed ([`Manager::renew`]).
    pub(super) fn inform(&mut self, at: &mut Near) -> Result<Option<Woken>> {
        if at.told == self.changes {
            return Ok(None);
        }
        if at.above != self.levels.inodes_above() {
            return Ok(Some(self.settle(at)));
        }
        at.told = self.changes;
        let levels = self.levels.now(self.memory.usage()?);
        let bars = self.bars(&levels);
        let above = levels.iter().zip(&bars).any(|(level, bar)| level.usage > bar.high);
        at.pulser.order(Order::Change(bars, !above));
        Ok(None)
    }

    /// The same, with a new one where it is needed. Whoever is in the group stays there.
    pub(super) fn renew(&mut self, at: &mut Near) -> Result<()> {
        if self.inform(at)?.is_some() {
            at.renew_pulser(&self.ground())?;
            at.told = self.changes;
        }
        Ok(())
    }
}

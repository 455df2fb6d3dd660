//! What becomes of a container's terms: others change its limit, its marks and high are set anew, it is released.

use super::super::event::{Action, Notice, Now};
use super::super::watermark::{WatermarkSpec, Watermarks};
use super::{Container, Phase};
use cgroupfs::Limit;
use std::time::Duration;

/// How long no limit is stepped after somebody else wrote it (law 4).
pub const FOREIGN_PAUSE: Duration = Duration::from_secs(30);

impl Container {
    pub(super) fn adopt(&mut self, now: Now, limit: Limit, out: &mut Vec<Action>) {
        if limit == self.declared {
            return;
        }
        let quiet = self.no_steps_until.is_some_and(|until| now < until);
        if !quiet {
            out.push(Action::Tell(Notice::Adopted(self.declared, limit)));
        }
        self.no_steps_until = Some(now + FOREIGN_PAUSE);
        self.declared = limit;
        if self.begins_anew(out) {
            self.watch(now, out);
        }
    }

    pub(super) fn set_terms(
        &mut self,
        now: Now,
        spec: WatermarkSpec,
        high: Limit,
        out: &mut Vec<Action>,
    ) {
        if (spec, high) == (self.spec, self.high) {
            return;
        }
        (self.spec, self.high) = (spec, high);
        self.wide = 0;
        if self.begins_anew(out) {
            self.look(now, self.usage, out);
        }
    }

    /// Its marks are others from now on. Whether it is watched, which is up to the caller.
    fn begins_anew(&mut self, out: &mut Vec<Action>) -> bool {
        self.remark();
        self.let_be.forget();
        match self.phase {
            // Its target is of the old terms. It finds a foreign limit itself, but need not go on until then.
            Phase::Reclaiming(_) => out.push(Action::Cancel),
            Phase::Watching | Phase::Resting(_) => {
                self.phase = Phase::Watching;
                return true;
            }
            Phase::Surveying | Phase::Leaving | Phase::Gone => {}
        }
        false
    }

    pub(super) fn release(&mut self, out: &mut Vec<Action>) {
        out.push(Action::Arm(None));
        out.push(Action::Timer(None));
        if let Phase::Reclaiming(_) = self.phase {
            self.phase = Phase::Leaving;
            out.push(Action::Cancel);
        } else if self.phase != Phase::Leaving {
            self.phase = Phase::Gone;
            out.push(Action::Restore(self.declared));
            out.push(Action::Forget);
        }
    }

    pub(super) fn remark(&mut self) {
        self.marks = Watermarks::of(self.spec, self.declared, self.high)
            .map(|marks| marks.widened(self.spec, self.declared, self.high, self.wide));
    }
}

//! The highs that count for one container: its own, and those that are emulated above it. The kernel, too, lets a
//! task sleep for the largest overage among its group and all above it (`mem_find_max_overage()`).

use super::ThrottleConfig;
use super::near::near;
use crate::core::floor::Floor;
use crate::core::throttle::{Level, MOST_LEVELS, WayOut, not_slept_on};
use crate::driver::worker::survey;
use cgroupfs::events::Notification;
use cgroupfs::files::ControlDir as _;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Statistics of a group are read so often.
const SURVEY: Duration = Duration::from_millis(100);

/// No high of its own.
const NONE: Bytes = Level::NONE.high;

/// A group above the container's with an emulated high.
#[derive(Clone)]
pub struct Ancestor {
    /// Its memory group.
    pub group: Arc<Cgroup>,
    /// And the controller.
    pub memory: Arc<dyn Memory>,
    /// Growth beneath it is throttled above this.
    pub high: Bytes,
    /// How throttling ends that achieves nothing.
    pub way_out: WayOut,
    /// Somebody reclaims its page cache above high: it is not slept on.
    pub reclaims: bool,
}

/// One of them.
struct High {
    of: Ancestor,
    /// When its clean page cache was looked at, and how much there was.
    surveyed: Option<(Instant, Bytes)>,
}

/// All of them: the container's own first.
pub(super) struct Levels(Vec<High>);

impl Levels {
    pub(super) fn new(config: &ThrottleConfig, memory: &Arc<dyn Memory>) -> Levels {
        let own = Ancestor {
            group: config.group.clone(),
            memory: memory.clone(),
            high: config.high.bytes().unwrap_or(NONE),
            way_out: config.way_out,
            reclaims: config.reclaims,
        };
        let all = std::iter::once(own).chain(config.ancestors.iter().cloned());
        Levels(all.take(MOST_LEVELS).map(|of| High { of, surveyed: None }).collect())
    }

    /// As of new: which of them each was until now.
    pub(super) fn change(
        &mut self,
        config: &ThrottleConfig,
        memory: &Arc<dyn Memory>,
    ) -> Vec<Option<usize>> {
        let mut before = std::mem::replace(self, Levels::new(config, memory)).0;
        let which = self.0.iter_mut().map(|high| {
            let inode = high.of.group.inode();
            let n = before.iter().position(|before| before.of.group.inode() == inode)?;
            high.surveyed = before.get_mut(n).and_then(|before| before.surveyed.take());
            Some(n)
        });
        which.collect()
    }

    /// The container's own first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Ancestor> {
        self.0.iter().map(|high| &high.of)
    }

    /// Which groups those above are.
    pub(super) fn inodes_above(&self) -> Vec<u64> {
        self.above().map(|above| above.group.inode()).collect()
    }

    pub(super) fn get(&self, n: usize) -> Option<&Ancestor> {
        self.0.get(n).map(|high| &high.of)
    }

    /// The nearest first.
    pub(super) fn above(&self) -> impl Iterator<Item = &Ancestor> {
        self.0.iter().skip(1).map(|high| &high.of)
    }

    /// What they use now; the container's own usage is known.
    pub(super) fn now(&self, own: Bytes) -> Vec<Level> {
        let all = self.0.iter().enumerate();
        all.map(|(n, High { of, .. })| {
            // One that is gone takes us with it soon enough.
            let usage = if n == 0 { own } else { of.memory.usage().unwrap_or_default() };
            Level { usage, high: of.high }
        })
        .collect()
    }

    /// Clean page cache of each is reclaimed, not slept on: the kernel, too, reclaims before it lets anybody
    /// sleep.
    pub(super) fn reclaimable(&mut self) -> [Bytes; MOST_LEVELS] {
        let mut all = [Bytes(0); MOST_LEVELS];
        for (bytes, high) in all.iter_mut().zip(&mut self.0) {
            *bytes = high.reclaimable();
        }
        all
    }

    /// The same as it was when it was looked at last.
    pub(super) fn surveyed(&self) -> [Bytes; MOST_LEVELS] {
        let mut all = [Bytes(0); MOST_LEVELS];
        for (bytes, high) in all.iter_mut().zip(&self.0) {
            *bytes = high.surveyed.map_or(Bytes(0), |(_, bytes)| bytes);
        }
        all
    }

    /// Wakes when one of them comes near its high, or goes away from it.
    pub(super) fn near_threshold(&self) -> Result<Notification> {
        let nears = self.0.iter().map(|High { of, .. }| of.high);
        let nears = nears.map(|high| (high != NONE).then(|| near(high)));
        self.threshold(&nears.collect::<Vec<_>>())
    }

    /// Wakes when one of them crosses its threshold. A group above that is gone crosses none any more.
    pub(super) fn threshold(&self, at: &[Option<Bytes>]) -> Result<Notification> {
        let groups: Vec<(&Cgroup, Bytes)> = self
            .0
            .iter()
            .zip(at)
            .enumerate()
            .filter_map(|(n, (high, at))| {
                let there = n == 0 || !high.of.group.is_gone();
                there.then_some((&*high.of.group, (*at)?))
            })
            .collect();
        Notification::usage_thresholds(&groups)
    }
}

/// Whether none of these is near its high.
pub(super) fn all_far(levels: &[Level]) -> bool {
    levels.iter().all(|level| level.usage < near(level.high))
}

impl High {
    fn reclaimable(&mut self) -> Bytes {
        if !self.of.reclaims {
            return Bytes(0);
        }
        if let Some((when, bytes)) = self.surveyed
            && when.elapsed() < SURVEY
        {
            return bytes;
        }
        let bytes = survey(&*self.of.memory)
            .map(|survey| not_slept_on(Floor::of(&survey, 0).clean_file, self.of.high))
            .unwrap_or_default();
        self.surveyed = Some((Instant::now(), bytes));
        bytes
    }
}

//! A group with a throttle on it, whose tasks no runtime has put into a freezer group.

// Each binary uses some of it, and what fails here fails the test that called.
#![allow(dead_code, clippy::unwrap_used)]

use super::common::{Ground, Load, memory, until, without_swap};
use super::freezers;
use cgroupfs::freezer::Freezer;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Cgroup};
use cgshim::core::throttle::WayOut;
use cgshim::driver::throttle::{ThrottleConfig, ThrottleEvent, Throttler};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A group with a throttle on it.
pub(crate) struct Throttled {
    pub(crate) throttler: Throttler,
    pub(crate) group: Arc<Cgroup>,
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) events: Vec<ThrottleEvent>,
}

/// `None`, having said so, where the kernel has its own `memory.high`.
pub(crate) fn ground(test: &str) -> Option<Ground> {
    // RUST_LOG=trace shows each pulse.
    let _ = env_logger::try_init();
    let ground = Ground::new(test)?;
    freezers::emulated(test, &ground)?;
    Some(ground)
}

impl Throttled {
    pub(crate) fn new(ground: &Ground, name: &str, high: Bytes, way_out: WayOut) -> Throttled {
        let group = ground.group(name);
        without_swap(&group);
        Throttled::over(group, high, way_out)
    }

    pub(crate) fn over(group: Arc<Cgroup>, high: Bytes, way_out: WayOut) -> Throttled {
        let config = ThrottleConfig { way_out, ..ThrottleConfig::new(group.clone(), high) };
        let throttler = Throttler::start(config).unwrap();
        Throttled { throttler, memory: memory(&group), group, events: Vec::new() }
    }

    pub(crate) fn take(&mut self) {
        self.events.extend(self.throttler.events());
    }

    pub(crate) fn pulses(&mut self) -> Vec<Duration> {
        self.take();
        let pulse = |event: &ThrottleEvent| match event {
            ThrottleEvent::Pulse { frozen, .. } => Some(*frozen),
            _ => None,
        };
        self.events.iter().filter_map(pulse).collect()
    }

    pub(crate) fn overage(&self, high: Bytes) -> f64 {
        self.memory.usage().unwrap().0 as f64 / high.0 as f64 - 1.0
    }

    /// Our group in the freezer hierarchy, `None` where there is none.
    pub(crate) fn freezer_group(&self) -> Option<PathBuf> {
        let mount = Freezer::find().unwrap().mount_point;
        let name = format!("cgshim-{}-{}", std::process::id(), self.group.inode());
        let path = mount.join(name);
        path.exists().then_some(path)
    }

    /// Starts loads that fill memory, and waits until they are throttled.
    pub(crate) fn throttled(&mut self, growers: usize, high: Bytes) -> Vec<Load> {
        let mut loads: Vec<Load> = (0..growers).map(|_| Load::in_group(&self.group)).collect();
        for load in &mut loads {
            load.grow(Bytes(0), Bytes::mib(4096));
        }
        let memory = self.memory.clone();
        until("over high", 20 * SECOND, || memory.usage().unwrap() > high);
        until("pulses", 20 * SECOND, || self.throttler.totals().pulses > 3);
        loads
    }
}

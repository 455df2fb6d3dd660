//! A hot working set beside cold growth: what reclaim should spare, and what it should take.
//!
//! In the kernel: aging. The hot set is touched at random all the time, so that its pages are active
//! (or of the youngest generation), while cold memory grows as in `anon`. Reclaim that takes hot pages
//! shows in the latency of touching them (a refault from swap), reclaim that runs in the growing task
//! in the latency of growth. Both are done by one thread: between two cold chunks at least one batch
//! of hot pages is touched, and with `--rate` as many as fit into the wait.

use std::time::{Duration, Instant};

use super::anon::Growth;
use super::args::Plan;
use super::fill::PAGE;
use super::run::{Run, Turn};
use super::sys::Anon;
use super::{Failure, Fill, Workload};

/// The pages of one batch.
const BATCH: usize = 64;

/// Latency: of growth to map and fill a chunk, of the hot set to touch a batch of 64 pages.
pub(crate) struct HotCold {
    hot: Anon,
    hot_pages: usize,
    positions: Fill,
    cold: Growth,
}

impl HotCold {
    pub(crate) fn new(plan: &Plan, mut fill: Fill) -> Result<HotCold, Failure> {
        let len = usize::try_from(plan.hot).unwrap_or(usize::MAX);
        let mut hot = Anon::map(len)
            .map_err(|errno| Failure::Failed(format!("--hot {len}: cannot map it: {errno}")))?;
        fill.fill(hot.bytes_mut());
        let cold = Growth::new(plan, fill.clone(), Anon::map);
        Ok(HotCold { hot, hot_pages: len / PAGE, positions: fill, cold })
    }

    fn touch_batch(&mut self) -> Duration {
        let started = Instant::now();
        let memory = self.hot.bytes_mut();
        for _ in 0..BATCH {
            let at = self.positions.below(self.hot_pages) * PAGE + PAGE / 2;
            memory[at] = memory[at].wrapping_add(1);
        }
        started.elapsed()
    }
}

impl Workload for HotCold {
    fn run(&mut self, run: &mut Run) {
        loop {
            let took = self.touch_batch();
            if let Some(hot) = &mut run.hot {
                hot.record(took);
            }
            match run.turn() {
                Turn::Later(_) => {}
                Turn::Over => break,
                Turn::Now => match self.cold.grow() {
                    Ok(took) => run.done(took, self.cold.chunk_bytes()),
                    Err(errno) => run.failed(errno),
                },
            }
        }
    }
}

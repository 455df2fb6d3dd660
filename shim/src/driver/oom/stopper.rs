//! Ends a write to `memory.force_empty` once so many bytes are gone.
//!
//! That file takes no amount, and time is no measure for one: the write may wait 10 ms for other CPUs to put their
//! batches on the lists (`lru_add_drain_all()`), and then take 65 MiB in a quarter of a millisecond, where page cache is in
//! huge folios (measured on 6.18). So another thread looks at the usage meanwhile, and sends the signal that ends it.

use crate::driver::sys;
use cgroupfs::Bytes;
use cgroupfs::memory::Memory;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks, as long as nothing is gone.
const LOOKS: Duration = Duration::from_micros(25);

/// As soon as something is gone the thread looks without a pause, for no longer than this, where the writer has another CPU.
const SPIN: Duration = Duration::from_millis(1);

/// One write to be watched.
struct Watch {
    memory: Arc<dyn Memory>,
    /// Ended when there is no more than this; `None`: as soon as it has begun, whatever others charge meanwhile.
    least: Option<Bytes>,
    writer: sys::Thread,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The thread looks.
    looking: AtomicBool,
    /// The write has ended.
    done: AtomicBool,
}

/// The thread that looks. At real-time priority: a late look costs live groups their cache.
pub(super) struct Stopper {
    writer: sys::Thread,
    orders: Option<Sender<Watch>>,
    /// It has let go of a write.
    idle: Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Stopper {
    /// One for the calling thread's writes, which `writer` is; `None` where real-time priority is refused.
    pub(super) fn start(writer: sys::Thread) -> Option<Stopper> {
        let (orders, queue) = bounded::<Watch>(1);
        let (tell, idle) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("cgshim-sweep-end".into())
            .stack_size(64 << 10)
            .spawn(move || {
                sys::block_signals();
                let real_time = sys::may_be_real_time().is_ok();
                let alone = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1);
                let spin = if alone { Duration::ZERO } else { SPIN };
                let mut going_on = real_time;
                while tell.send(going_on).is_ok() && going_on {
                    going_on = queue.recv().map(|watch| watch.until_done(spin)).is_ok();
                }
            })
            .ok()?;
        let going_on = idle.recv() == Ok(true);
        let stopper = Stopper { writer, orders: Some(orders), idle, thread: Some(thread) };
        going_on.then_some(stopper)
    }

    /// Runs `write`, which takes from the group of `memory`, until `bytes` of it are gone. With 0 it takes next to nothing:
    /// what it does first is done. Not at all where nobody would end it.
    pub(super) fn within<T>(
        &self,
        memory: &Arc<dyn Memory>,
        bytes: u64,
        write: impl FnOnce() -> T,
    ) -> Option<T> {
        let state = Arc::new(State::default());
        let watch = Watch {
            memory: memory.clone(),
            least: (bytes > 0)
                .then(|| memory.usage().unwrap_or_default().saturating_sub(Bytes(bytes))),
            writer: self.writer,
            state: state.clone(),
        };
        self.orders.as_ref().filter(|orders| orders.send(watch).is_ok())?;
        while !state.looking.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let result = write();
        state.done.store(true, Ordering::Release);
        // No signal of its comes after this.
        let _ = self.idle.recv();
        Some(result)
    }
}

impl Watch {
    fn until_done(&self, spin: Duration) {
        let first = self.memory.usage().unwrap_or_default();
        let mut moved: Option<Instant> = None;
        self.state.looking.store(true, Ordering::Release);
        while !self.state.done.load(Ordering::Acquire) {
            // Gone: nothing is left to be taken.
            let Ok(usage) = self.memory.usage() else { return };
            let enough = self.least.is_none_or(|least| usage <= least);
            if enough {
                // Again and again: the signal may have come before the write.
                sys::interrupt(self.writer);
            }
            if usage < first || enough {
                let since = *moved.get_or_insert_with(Instant::now);
                if since.elapsed() < spin {
                    std::hint::spin_loop();
                    continue;
                }
            }
            std::thread::sleep(LOOKS);
        }
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! What is shown on standard error while the demo runs: a line per run when it is over, and on a
//! terminal a line that says how far the present one is.

use crate::cgctl::run::Progress;
use crate::report::fmt;
use crate::sys;
use nix::sys::signal::SigSet;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between two looks: often enough to be alive, seldom enough not to be in the load's way.
const INTERVAL: Duration = Duration::from_millis(250);

/// Writes a line to standard error. A terminal that is gone is no reason to end: there are groups, and
/// perhaps swap, to clean up.
pub(super) fn say(line: &str) {
    let mut stderr = std::io::stderr().lock();
    let clear = if repaints() { "\r\x1b[K" } else { "" };
    let _ = writeln!(stderr, "{clear}{line}");
}

/// Whether standard error is a terminal on which a line can be written anew.
fn repaints() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A line that shows a run, until it is dropped.
pub(super) struct Live {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Starts to show `what`, which takes about `expected`. Does nothing where standard error is no
    /// terminal.
    pub(super) fn start(
        what: String,
        expected: Duration,
        limit_bytes: Option<u64>,
        progress: Arc<Progress>,
    ) -> Live {
        let over = Arc::new(AtomicBool::new(false));
        let shown = over.clone();
        let thread = repaints().then(|| {
            thread::Builder::new().name("cgctl-progress".into()).stack_size(128 << 10).spawn(
                move || {
                    // Signals are the main thread's: one that stops us must not find a limit lowered.
                    let _ = SigSet::all().thread_block();
                    let start = Instant::now();
                    while !shown.load(Ordering::Relaxed) {
                        show(&what, start.elapsed(), expected, limit_bytes, &progress);
                        thread::park_timeout(INTERVAL);
                    }
                },
            )
        });
        Live { over, thread: thread.and_then(Result::ok) }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K");
            let _ = stderr.flush();
        }
    }
}

fn show(
    what: &str,
    elapsed: Duration,
    expected: Duration,
    limit_bytes: Option<u64>,
    progress: &Progress,
) {
    let mut line = format!(
        "{what}: {:.0} of {:.0} s",
        elapsed.as_secs_f64().min(expected.as_secs_f64()),
        expected.as_secs_f64()
    );
    let usage = progress.usage_bytes.load(Ordering::Relaxed);
    if let Some(limit) = limit_bytes {
        line += &format!(
            "; in use {} of {}, direct reclaims {}",
            fmt::bytes_short(usage),
            fmt::bytes_short(limit),
            fmt::count(progress.direct_reclaim.load(Ordering::Relaxed))
        );
    }
    let mut stderr = std::io::stderr().lock();
    let width = sys::terminal_size(stderr.as_fd()).map_or(80, |(columns, _)| columns);
    // Room for the ^C that the terminal may write after it.
    let line: String = line.chars().take(width.saturating_sub(4)).collect();
    let _ = write!(stderr, "\r\x1b[K{line}");
    let _ = stderr.flush();
}

//! Faults on demand, for tests: what happens between a change to the kernel and its undoing is too short
//! to be hit from outside (300 random kills found the limit lowered 0 times).
//!
//! In builds with debug assertions, `CGSHIM_FAULT=WHAT:WHERE:N` does WHAT at the Nth time (`*N`: at every
//! Nth time) that WHERE is passed. WHAT is `kill`, `stop`, or `sleep-MS`; WHERE is a [`Point`]. The moment
//! (nanoseconds of the monotonic clock) goes to the file that `CGSHIM_FAULT_LOG` names, a line each.

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// The journal has the step, the kernel does not: `journaled`.
    Journaled,
    /// The limit is lowered, and not restored yet: `lowered`.
    Lowered,
    /// It is restored, and the journal does not have that yet: `restored`.
    Restored,
    /// Swappiness is 0 by us: `swappiness`.
    Swappiness,
}

/// Passes a point.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) const fn point(_point: Point) {}

#[cfg(debug_assertions)]
pub(super) use on_demand::point;

#[cfg(debug_assertions)]
mod on_demand {
    use super::Point;
    use nix::sys::signal::{Signal, raise};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    struct Fault {
        what: What,
        at: Point,
        every: bool,
        nth: u64,
        passed: AtomicU64,
    }

    enum What {
        Signal(Signal),
        Sleep(Duration),
    }

    /// Passes a point.
    pub(in super::super) fn point(point: Point) {
        static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
        let fault = FAULT.get_or_init(|| parse(&std::env::var("CGSHIM_FAULT").ok()?));
        let Some(fault) = fault.as_ref().filter(|fault| fault.at == point) else { return };
        let passed = fault.passed.fetch_add(1, Ordering::SeqCst) + 1;
        if passed == fault.nth || fault.every && passed.is_multiple_of(fault.nth) {
            log_moment();
            match fault.what {
                // To the process: every thread stops, or dies, with this one.
                What::Signal(Signal::SIGKILL) => {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGKILL);
                    loop {
                        std::hint::spin_loop();
                    }
                }
                What::Signal(signal) => {
                    let _ = raise(signal);
                }
                What::Sleep(time) => std::thread::sleep(time),
            }
        }
    }

    fn log_moment() {
        use std::io::Write;
        if let Some(path) = std::env::var_os("CGSHIM_FAULT_LOG")
            && let Ok(mut file) = std::fs::File::options().append(true).create(true).open(path)
        {
            let _ = file.write_all(format!("{}\n", crate::journal::Deadline::now().0).as_bytes());
        }
    }

    fn parse(text: &str) -> Option<Fault> {
        let mut parts = text.split(':');
        let (what, at, nth) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Fault {
            what: match what {
                "kill" => What::Signal(Signal::SIGKILL),
                "stop" => What::Signal(Signal::SIGSTOP),
                what => {
                    What::Sleep(Duration::from_millis(what.strip_prefix("sleep-")?.parse().ok()?))
                }
            },
            at: match at {
                "journaled" => Point::Journaled,
                "lowered" => Point::Lowered,
                "restored" => Point::Restored,
                "swappiness" => Point::Swappiness,
                _ => return None,
            },
            every: nth.starts_with('*'),
            nth: nth.trim_start_matches('*').parse().ok().filter(|nth| *nth > 0)?,
            passed: AtomicU64::new(0),
        })
    }
}

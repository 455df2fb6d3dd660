//! The one system call that needs `unsafe`: a handler for the signal that interrupts a write.

use nix::errno::Errno;
use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction,
};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use std::sync::Once;
use std::time::Duration;

/// The signal that ends a write between two passes of reclaim.
pub(super) const INTERRUPT: Signal = Signal::SIGUSR1;

extern "C" fn nothing(_signal: i32) {}

/// Gives [`INTERRUPT`] a handler that does nothing: its only effect is the EINTR. Once a process.
pub(super) fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let action =
            SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler is an extern "C" fn that touches nothing.
        let _ = unsafe { sigaction(INTERRUPT, &action) };
    });
}

/// [`INTERRUPT`] for the calling thread, again and again, until it is dropped: from a timer, whose
/// interrupt comes wherever the thread is, a kernel write included.
pub(super) struct Signals(#[expect(dead_code, reason = "dropping it stops the timer")] Timer);

impl Signals {
    pub(super) fn every(interval: Duration) -> Result<Signals, Errno> {
        let notify = SigevNotify::SigevThreadId {
            signal: INTERRUPT,
            thread_id: nix::unistd::gettid().as_raw(),
            si_value: 0,
        };
        let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?;
        timer.set(Expiration::Interval(interval.into()), TimerSetTimeFlags::empty())?;
        Ok(Signals(timer))
    }
}

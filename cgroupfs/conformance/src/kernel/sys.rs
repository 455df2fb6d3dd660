//! The one system call that needs `unsafe`: a handler for the signal that interrupts a write.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::Once;

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

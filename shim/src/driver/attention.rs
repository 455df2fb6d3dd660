//! Noticing that somebody else is about to write a limit, in time not to overwrite it.
//!
//! Cgroup files have no compare-and-swap. But a limit write begins by looking for a pending signal, and
//! looks again before each try (`mem_cgroup_resize_max`): it then returns EINTR, and changes nothing. So
//! the kernel is asked (inotify, with `O_ASYNC`) to signal the writing thread at the instant somebody
//! opens or modifies the file. [`Attention::fresh`] forgets what was signalled so far; then the file is
//! read, and then written with the signal let through: whoever opened the file after the look makes
//! that write fail, before they can have written. A load-linked and a store-conditional, in effect.
//!
//! What remains: somebody who opened it long before, and writes in the nanoseconds between the kernel's
//! last look for a signal and its store.

use super::sys;
use cgroupfs::files::Knob;
use inotify::{Inotify, WatchDescriptor, WatchMask};
use std::os::fd::{AsFd, AsRawFd};

/// Of one worker thread, for one file at a time.
#[derive(Debug)]
pub(super) struct Attention {
    inotify: Option<Inotify>,
    watch: Option<WatchDescriptor>,
}

impl Attention {
    /// For the calling thread, which must be a worker's ([`sys::become_interruptible`]). Where the kernel
    /// refuses (a limit on inotify instances), the file is still read before each write.
    pub(super) fn new() -> Attention {
        let inotify =
            Inotify::init().ok().filter(|inotify| sys::signal_me(inotify.as_fd()).is_ok());
        if inotify.is_none() {
            log::warn!(
                "no inotify for a reclaim worker: a limit written during a step may be lost"
            );
        }
        Attention { inotify, watch: None }
    }

    /// Pays attention to this file, which must be open already: the opening would count.
    pub(super) fn pay(&mut self, knob: &Knob) {
        self.ease();
        let (Some(inotify), Some(fd)) = (&self.inotify, knob.raw().fd()) else { return };
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.watch = inotify.watches().add(path, WatchMask::OPEN | WatchMask::MODIFY).ok();
    }

    /// No more.
    pub(super) fn ease(&mut self) {
        if let (Some(inotify), Some(watch)) = (&self.inotify, self.watch.take()) {
            let _ = inotify.watches().remove(watch);
        }
        self.fresh();
    }

    /// Forgets what was noticed so far. Read the file after this.
    pub(super) fn fresh(&mut self) {
        // The signal first: an event between the two is signalled again only where the queue is empty
        // for it, as equal ones are merged.
        sys::forget_signals();
        if let Some(inotify) = &mut self.inotify {
            let mut buf = [0; 1024];
            while inotify.read_events(&mut buf).is_ok() {}
        }
    }
}

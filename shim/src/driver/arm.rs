//! Usage thresholds, armed off the loop: registering one on v1 waits for a grace period of RCU
//! (`__mem_cgroup_usage_register_event()` calls `synchronize_rcu()`), measured on 6.18 at 7 to 20 ms,
//! in which a hook would wait for its answer.

use super::engine::{Engine, Source, kernel, token};
use crate::core::{Event, Now};
use cgroupfs::events::Notification;
use cgroupfs::{Bytes, Cgroup, Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// As long as a threshold is not armed, usage is looked at so often.
const UNTIL_ARMED: Duration = Duration::from_millis(100);

/// Requests that wait; a container that finds no room is looked at until there is some.
const MOST_WAITING: usize = 256;

/// What a container has, and is to have.
#[derive(Default)]
pub(super) struct Threshold {
    armed: Option<(Bytes, Notification)>,
    wanted: Option<Bytes>,
    /// One is being armed.
    pending: bool,
    /// This one the kernel refused: usage is looked at instead.
    refused: Option<Bytes>,
    /// The container is young until then.
    not_before: Now,
}

impl Threshold {
    /// None before that time.
    pub(super) fn not_before(not_before: Now) -> Threshold {
        Threshold { not_before, ..Threshold::default() }
    }

    /// Whether the container is too young for one.
    pub(super) fn is_young(&self, now: Now) -> bool {
        now < self.not_before
    }
}

/// The group, if its container is still there when its turn comes.
type Task = (u64, Weak<Cgroup>, Bytes);
type Armed = (u64, Bytes, std::result::Result<Notification, Error>);

/// The thread that arms; started with the first threshold.
pub(super) struct Armer {
    tasks: Option<Sender<Task>>,
    answers: Option<Receiver<Armed>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Armer {
    pub(super) fn new() -> nix::Result<Armer> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Armer { tasks: None, answers: None, wake: Arc::new(wake), thread: None })
    }

    /// Readable when one is armed.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn start(&mut self, key: u64, group: Weak<Cgroup>, at: Bytes) -> bool {
        if self.thread.is_none() {
            let (tasks, waiting) = bounded::<Task>(MOST_WAITING);
            let (answer, answers) = bounded(MOST_WAITING);
            let wake = self.wake.clone();
            let thread = std::thread::Builder::new()
                .name("cgshim-arm".into())
                .stack_size(64 << 10)
                .spawn(move || {
                    super::sys::become_interruptible();
                    while let Ok((key, group, at)) = waiting.recv() {
                        let Some(group) = group.upgrade() else { continue };
                        let armed = Notification::usage_threshold(&group, at);
                        if answer.send((key, at, armed)).is_err() {
                            return;
                        }
                        let _ = wake.write(1);
                    }
                });
            match thread {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => {
                    log::warn!("cannot start the thread that arms thresholds: {error}");
                    return false;
                }
            }
            (self.tasks, self.answers) = (Some(tasks), Some(answers));
        }
        self.tasks.as_ref().is_some_and(|tasks| tasks.try_send((key, group, at)).is_ok())
    }
}

impl Drop for Armer {
    fn drop(&mut self) {
        // It ends once it finds nobody at either end.
        self.tasks = None;
        self.answers = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Arms no threshold of a container in its first `time`: usage is looked at ten times a second instead.
    /// While one is armed the group's `cgroup.event_control` is held, and its rmdir, with every other on the
    /// host behind it, waits for the grace period (law 9). Of short containers that would be most.
    pub fn arm_after(&mut self, time: Duration) {
        self.arm_after = time;
    }

    pub(super) fn crossed(&mut self, key: u64) {
        let Some(enforced) = self.containers.get(&key) else { return };
        if let Some((_, notification)) = &enforced.threshold.armed {
            notification.take();
            self.look(key, Event::Crossed);
        }
    }

    /// Wakes us when usage crosses this, from soon on; until then usage is looked at.
    pub(super) fn arm(&mut self, key: u64, wanted: Option<Bytes>) {
        // All that wait are looked at together.
        let waits = self.now().as_millis() / UNTIL_ARMED.as_millis() + 2;
        let soon = UNTIL_ARMED.saturating_mul(u32::try_from(waits).unwrap_or(u32::MAX));
        let Some(enforced) = self.containers.get_mut(&key) else { return };
        let threshold = &mut enforced.threshold;
        threshold.wanted = wanted;
        let armed = threshold.armed.as_ref().map(|(at, _)| *at);
        let Some(at) = wanted else {
            if let Some((_, old)) = threshold.armed.take() {
                let _ = self.epoll.delete(old.as_fd());
            }
            return;
        };
        if armed == wanted {
            return;
        }
        if threshold.refused == wanted {
            let later = self.start.elapsed() + crate::core::pace::LONGEST;
            enforced.timer = Some(enforced.timer.map_or(later, |timer| timer.min(later)));
            return;
        }
        if !threshold.pending && self.start.elapsed() >= threshold.not_before {
            threshold.pending = self.armer.start(key, Arc::downgrade(&enforced.group), at);
        }
        enforced.timer = Some(enforced.timer.map_or(soon, |timer| timer.min(soon)));
    }

    /// Thresholds that are armed now.
    pub(super) fn armed(&mut self) {
        let _ = self.armer.wake.read();
        while let Some((key, at, armed)) =
            self.armer.answers.as_ref().and_then(|answers| answers.try_recv().ok())
        {
            // Gone meanwhile, or wanted no more: dropped, which unregisters it.
            let Some(enforced) = self.containers.get_mut(&key) else { continue };
            enforced.threshold.pending = false;
            let wanted = enforced.threshold.wanted;
            match armed {
                Ok(notification) if wanted == Some(at) => {
                    if let Err(error) = self.install(key, at, notification) {
                        log::warn!("{error}");
                    }
                }
                Ok(_) => self.arm(key, wanted),
                Err(error) => {
                    enforced.threshold.refused = Some(at);
                    self.failed(key, &error);
                }
            }
        }
    }

    fn install(&mut self, key: u64, at: Bytes, notification: Notification) -> Result<()> {
        let Some(enforced) = self.containers.get_mut(&key) else { return Ok(()) };
        if let Some((_, old)) = enforced.threshold.armed.take() {
            let _ = self.epoll.delete(old.as_fd());
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token(Source::Threshold, key));
        self.epoll.add(notification.as_fd(), event).map_err(kernel)?;
        enforced.threshold.armed = Some((at, notification));
        // Nothing is signalled for what is above already.
        if enforced.memory.usage().is_ok_and(|usage| usage >= at) {
            enforced.timer = Some(self.start.elapsed());
        }
        Ok(())
    }
}

//! Worker threads: the only place where writes that reclaim are made.
//!
//! Threads are started when there is work for them and stay until the pool is dropped. One whose write waits for a disk
//! that does not answer, where no signal reaches it, is made up for by another until it is out. They run at
//! normal priority: a worker inside a kernel write holds things that others wait for (measured on 6.18
//! with CPU hogs: one lower and restore took up to 20 ms at normal priority, 650 ms at nice 19).

use super::attention::Attention;
use super::reclaim::{self, At, Stop};
use super::sys;
use crate::core::{Job, Report, Survey};
use crate::journal::Slot;
use cgroupfs::memory::Memory;
use cgroupfs::{Bytes, Error};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// What a worker is to do, for which container.
pub(super) enum Work {
    Survey,
    Reclaim(Job),
}

/// What it did.
pub(super) enum Answer {
    Surveyed(Result<Box<Survey>, Error>),
    Done(Report),
}

struct Task {
    key: u64,
    memory: Arc<dyn Memory>,
    work: Work,
    ticket: Arc<Ticket>,
    /// Where changes to the kernel are written down first.
    slot: Option<Arc<Slot>>,
}

/// A task in flight: how to stop it.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    pub(super) stop: Stop,
    thread: OnceLock<sys::Thread>,
    overdue: AtomicBool,
}

impl Ticket {
    /// Interrupts the write that the worker is in. Repeated by the event loop until the answer is
    /// there, for a signal may come too early.
    pub(super) fn interrupt(&self) {
        if let Some(thread) = self.thread.get() {
            sys::interrupt(*thread);
        }
    }

    /// Whether it is long past its deadline, and nothing got it out ([`Workers::make_up_for`]).
    pub(super) fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::SeqCst)
    }
}

/// So many at once are made up for: each keeps a thread. Beyond that work waits.
const MOST_OVERDUE: usize = 64;

/// The pool.
pub(super) struct Workers {
    tasks: Option<Sender<Task>>,
    queue: Receiver<Task>,
    answers: Receiver<(Arc<Ticket>, u64, Answer)>,
    answer: Sender<(Arc<Ticket>, u64, Answer)>,
    wake: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
    most: usize,
    /// What no thread was told of yet, and how much of it there may be.
    waiting: VecDeque<Task>,
    most_waiting: usize,
    /// What threads were told of and have not answered, and how much of it is overdue.
    in_flight: usize,
    overdue: usize,
}

impl Workers {
    /// A pool of which at most `most` threads are at work, none of them started, with room for `waiting` tasks.
    pub(super) fn new(most: usize, waiting: usize) -> nix::Result<Workers> {
        let (tasks, queue) = bounded(most + MOST_OVERDUE);
        let (answer, answers) = bounded(most + MOST_OVERDUE);
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Workers {
            tasks: Some(tasks),
            queue,
            answers,
            answer,
            wake: Arc::new(wake),
            threads: Vec::new(),
            most,
            waiting: VecDeque::new(),
            most_waiting: waiting,
            in_flight: 0,
            overdue: 0,
        })
    }

    /// Readable when there is an answer.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Starts `work`, or has it wait for a thread; `None` if there is no room, or no thread can be had.
    pub(super) fn start(
        &mut self,
        key: u64,
        memory: Arc<dyn Memory>,
        work: Work,
        slot: Option<Arc<Slot>>,
    ) -> Option<Arc<Ticket>> {
        if self.waiting.len() >= self.most_waiting {
            return None;
        }
        let ticket = Arc::new(Ticket::default());
        self.waiting.push_back(Task { key, memory, work, ticket: ticket.clone(), slot });
        self.hand_out();
        if self.threads.is_empty() {
            self.waiting.clear();
            return None;
        }
        Some(ticket)
    }

    /// Tells threads of what waits, as long as fewer than the most are at work.
    fn hand_out(&mut self) {
        while self.in_flight - self.overdue < self.most
            && let Some(task) = self.waiting.pop_front()
        {
            if self.in_flight >= self.threads.len() {
                self.spawn();
            }
            let refused = match &self.tasks {
                Some(tasks) if !self.threads.is_empty() => tasks.try_send(task).err(),
                _ => return self.waiting.push_front(task),
            };
            if let Some(refused) = refused {
                return self.waiting.push_front(refused.into_inner());
            }
            self.in_flight += 1;
        }
    }

    /// A task in flight is long past its deadline, and is not out for all that it was interrupted: another thread is at
    /// work for its until it is. Not for one that no thread has begun with.
    pub(super) fn make_up_for(&mut self, ticket: &Ticket) {
        if ticket.thread.get().is_some()
            && self.overdue < MOST_OVERDUE
            && !ticket.overdue.swap(true, Ordering::SeqCst)
        {
            self.overdue += 1;
            self.hand_out();
        }
    }

    /// The next answer, if one is there.
    pub(super) fn answer(&mut self) -> Option<(u64, Answer)> {
        let (ticket, key, answer) = self.answers.try_recv().ok()?;
        self.answered(&ticket);
        self.hand_out();
        Some((key, answer))
    }

    fn answered(&mut self, ticket: &Ticket) {
        self.in_flight -= 1;
        self.overdue -= usize::from(ticket.is_overdue());
    }

    /// Forgets what the wake-up descriptor was signalled for. Before taking answers, so that none is
    /// missed.
    pub(super) fn rearm(&self) {
        let _ = self.wake.read();
    }

    /// Makes the wake-up descriptor readable.
    pub(super) fn wake(&self) {
        let _ = self.wake.write(1);
    }

    /// What makes it so, for other threads.
    pub(super) fn waker(&self) -> Arc<EventFd> {
        self.wake.clone()
    }

    fn spawn(&mut self) {
        let (queue, answer, wake) = (self.queue.clone(), self.answer.clone(), self.wake.clone());
        let thread = std::thread::Builder::new()
            .name("cgshim-reclaim".into())
            .stack_size(128 << 10)
            .spawn(move || work_off(&queue, &answer, &wake));
        match thread {
            Ok(thread) => self.threads.push(thread),
            Err(error) => log::warn!("cannot start a reclaim worker: {error}"),
        }
    }
}

impl Drop for Workers {
    /// Waits for the workers: whoever drops the pool has cancelled what was in flight. Not for one that is overdue, which
    /// may be for ever: it ends when it is out, or with the process.
    fn drop(&mut self) {
        self.waiting.clear();
        while self.in_flight > self.overdue
            && let Ok((ticket, ..)) = self.answers.recv()
        {
            self.answered(&ticket);
        }
        self.tasks = None;
        if self.overdue == 0 {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

fn work_off(queue: &Receiver<Task>, answers: &Sender<(Arc<Ticket>, u64, Answer)>, wake: &EventFd) {
    let me = sys::become_interruptible();
    let mut attention = Attention::new();
    while let Ok(Task { key, memory, work, ticket, slot }) = queue.recv() {
        let _ = ticket.thread.set(me);
        let answer = match work {
            Work::Survey => Answer::Surveyed(survey(&*memory).map(Box::new)),
            Work::Reclaim(job) => {
                sys::ask_for_short_slices(!job.cheap);
                let slot = slot.as_deref();
                let mut at = At { stop: &ticket.stop, slot, me, attention: &mut attention };
                Answer::Done(reclaim::execute(&*memory, &job, &mut at))
            }
        };
        if answers.send((ticket, key, answer)).is_err() {
            return;
        }
        let _ = wake.write(1);
    }
}

/// Reads what a round is decided on.
pub(super) fn survey(memory: &dyn Memory) -> Result<Survey, Error> {
    let swap = memory.swap_rules()?;
    Ok(Survey {
        stat: memory.stat()?,
        limit: memory.limit()?,
        direct_reclaim: memory.counters()?.direct_reclaim(),
        host_swap_free: if swap.reclaim_may_swap { host_swap_free() } else { Bytes(0) },
        swap,
        usage: memory.usage()?,
    })
}

/// Free swap of the host; none if it cannot be known, so that anonymous memory counts as stuck.
fn host_swap_free() -> Bytes {
    nix::sys::sysinfo::sysinfo().map(|info| Bytes(info.swap_free())).unwrap_or_default()
}

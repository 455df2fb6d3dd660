//! Worker threads: the only place where writes that reclaim are made.
//!
//! Threads are started when there is work for them and stay until the pool is dropped. They run at
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
use std::os::fd::{AsFd, BorrowedFd};
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
}

impl Ticket {
    /// Interrupts the write that the worker is in. Repeated by the event loop until the answer is
    /// there, for a signal may come too early.
    pub(super) fn interrupt(&self) {
        if let Some(thread) = self.thread.get() {
            sys::interrupt(*thread);
        }
    }
}

/// The pool.
pub(super) struct Workers {
    tasks: Option<Sender<Task>>,
    queue: Receiver<Task>,
    answers: Receiver<(u64, Answer)>,
    answer: Sender<(u64, Answer)>,
    wake: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
    most: usize,
    in_flight: usize,
}

impl Workers {
    /// A pool of at most `most` threads, none of them started, with room for `queue` waiting tasks.
    pub(super) fn new(most: usize, queue: usize) -> nix::Result<Workers> {
        let (tasks, waiting) = bounded(queue);
        let (answer, answers) = bounded(queue + most);
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Workers {
            tasks: Some(tasks),
            queue: waiting,
            answers,
            answer,
            wake: Arc::new(wake),
            threads: Vec::new(),
            most,
            in_flight: 0,
        })
    }

    /// Readable when there is an answer.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Starts `work`; `None` if the queue is full or no thread can be had.
    pub(super) fn start(
        &mut self,
        key: u64,
        memory: Arc<dyn Memory>,
        work: Work,
        slot: Option<Arc<Slot>>,
    ) -> Option<Arc<Ticket>> {
        if self.in_flight >= self.threads.len() && self.threads.len() < self.most {
            self.spawn();
        }
        if self.threads.is_empty() {
            return None;
        }
        let ticket = Arc::new(Ticket::default());
        let task = Task { key, memory, work, ticket: ticket.clone(), slot };
        self.tasks.as_ref()?.try_send(task).ok()?;
        self.in_flight += 1;
        Some(ticket)
    }

    /// The next answer, if one is there.
    pub(super) fn answer(&mut self) -> Option<(u64, Answer)> {
        let answer = self.answers.try_recv().ok()?;
        self.in_flight -= 1;
        Some(answer)
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
    /// Waits for the workers: whoever drops the pool has cancelled what was in flight.
    fn drop(&mut self) {
        self.tasks = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work_off(queue: &Receiver<Task>, answers: &Sender<(u64, Answer)>, wake: &EventFd) {
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
        if answers.send((key, answer)).is_err() {
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

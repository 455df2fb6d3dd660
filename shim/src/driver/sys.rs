//! The system calls that need `unsafe`: a signal that interrupts a worker inside a kernel write, and
//! scheduling.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A thread that can be interrupted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thread(libc::pthread_t);

/// The real-time signal used. Above the ones glibc keeps for itself, and low enough that nothing else
/// of ours is in its way.
fn interrupt_signal() -> libc::c_int {
    libc::SIGRTMIN() + 4
}

extern "C" fn nothing(_signal: libc::c_int) {}

thread_local! {
    /// The signal came: it is gone once it was handled, which may be before the write that it is meant for.
    static TOUCHED: AtomicBool = const { AtomicBool::new(false) };
}

extern "C" fn touched(_signal: libc::c_int) {
    TOUCHED.with(|touched| touched.store(true, Ordering::SeqCst));
}

/// Whether what [`signal_me`] is about happened since [`forget_signals`].
pub(super) fn is_touched() -> bool {
    TOUCHED.with(|touched| touched.load(Ordering::SeqCst))
}

/// Installs the handlers: the signals' effect is the EINTR. Once a process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid value (no flags, empty mask); SA_RESTART stays unset.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        // SAFETY: the handler is an extern "C" fn of the right type that touches nothing.
        unsafe { libc::sigaction(interrupt_signal(), &action, std::ptr::null_mut()) };
        action.sa_sigaction = touched as *const () as libc::sighandler_t;
        // SAFETY: as above; this one stores to a thread-local that has no destructor and needs no making.
        unsafe { libc::sigaction(libc::SIGIO, &action, std::ptr::null_mut()) };
    });
}

/// The calling thread, with every signal blocked: [`interruptible`] opens it to interruption.
pub(super) fn become_interruptible() -> Thread {
    install();
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    // SAFETY: no preconditions.
    Thread(unsafe { libc::pthread_self() })
}

/// The slice asked for: the least that the scheduler gives (`kernel/sched/syscalls.c`, 0.1 to 100 ms).
const SLICE_NS: u64 = 100_000;

/// Asks for short slices for the calling thread, or for the usual ones again, at its normal weight. Short: the container's own threads then
/// preempt it sooner, and it gets its share in smaller pieces. Linux 6.12 and later (EEVDF); before that
/// `sched_runtime` means nothing to SCHED_OTHER, and the call changes nothing.
pub(super) fn ask_for_short_slices(short: bool) {
    // SAFETY: an all-zero sched_attr is a valid value: SCHED_OTHER, nice 0, no flags.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = std::mem::size_of::<libc::sched_attr>() as u32;
    attr.sched_runtime = if short { SLICE_NS } else { 0 };
    // SAFETY: `attr` is ours and of the size it says; pid 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
}

/// Has the calling thread woken as soon as its timers are due: a thread that is no real-time one may be woken 50 µs later
/// (`PR_SET_TIMERSLACK`). Those that it starts are, too.
pub(super) fn wake_on_time() {
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Has the calling thread signalled (SIGIO, which does not queue up) when `fd` becomes readable.
pub(super) fn signal_me(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // `struct f_owner_ex` and its constants (fcntl(2)).
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    let owner = Owner { kind: F_OWNER_TID, pid: nix::unistd::gettid().as_raw() };
    // SAFETY: F_SETOWN_EX reads one `f_owner_ex`, which `owner` is.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) })?;
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_ASYNC)).map(|_| ())
}

/// Takes what [`signal_me`] signalled so far.
pub(super) fn forget_signals() {
    forget(libc::SIGIO);
    TOUCHED.with(|touched| touched.store(false, Ordering::SeqCst));
}

/// Runs `call` with the interrupt signal unblocked. Everything outside runs with it blocked: a write
/// that raises a limit with a signal pending would return EINTR and do nothing (law 8).
pub(super) fn interruptible<T>(call: impl FnOnce() -> T) -> T {
    unblocked(&[interrupt_signal()], call)
}

/// As [`interruptible`], for a thread that [`interrupt`] may have come too late for.
pub(super) fn until_interrupted<T>(call: impl FnOnce() -> T) -> T {
    forget(interrupt_signal());
    interruptible(call)
}

/// Takes what was signalled so far to the calling thread, which has it blocked.
fn forget(signal: libc::c_int) {
    let set = set_of(&[signal]);
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both are ours; who sent it is not asked for.
    while unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &at_once) } > 0 {}
}

/// As [`interruptible`], and whoever touches the file that is paid attention to interrupts it too. `call`
/// looks at [`is_touched`] itself, first thing.
pub(super) fn interruptible_and_attentive<T>(call: impl FnOnce() -> T) -> T {
    unblocked(&[interrupt_signal(), libc::SIGIO], call)
}

/// Runs `call` such that only who touches the file that is paid attention to interrupts it. `call` looks
/// at [`is_touched`] itself, first thing.
pub(super) fn attentive<T>(call: impl FnOnce() -> T) -> T {
    unblocked(&[libc::SIGIO], call)
}

fn unblocked<T>(signals: &[libc::c_int], call: impl FnOnce() -> T) -> T {
    let set = set_of(signals);
    // SAFETY: `set` is ours; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
    let result = call();
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    result
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid value on Linux; sigemptyset makes it canonical.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is ours.
    unsafe { libc::sigemptyset(&mut set) };
    for signal in signals {
        // SAFETY: `set` is ours, the signal number is valid.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    set
}

/// Interrupts the write that `thread` is in, if any. May come too early or too late: repeat until the
/// thread says it is out.
///
/// # Safety contract of the caller
/// The thread must not have been joined; the pool and the force_empty monitor keep to that by joining
/// only after the last use.
pub(super) fn interrupt(thread: Thread) {
    // SAFETY: the thread has not been joined (see above), so the handle is valid.
    unsafe { libc::pthread_kill(thread.0, interrupt_signal()) };
}

/// Ends the calling thread's write after a time, by itself: no other thread has to get a CPU for that.
pub(super) struct Alarm(libc::timer_t);

/// An alarm that rang rings again after this at the latest: the signal may have come before the write.
const RING_AGAIN: Duration = Duration::from_millis(1);

impl Alarm {
    /// One for the calling thread, which alone may use it; it has called [`become_interruptible`].
    pub(super) fn new() -> Result<Alarm, Errno> {
        // SAFETY: an all-zero sigevent is a valid value.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = interrupt_signal();
        event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both are ours.
        Errno::result(unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        })?;
        Ok(Alarm(timer))
    }

    /// Runs `call`, interrupted once `bound` has passed, and again and again from then on.
    pub(super) fn within<T>(&self, bound: Duration, call: impl FnOnce() -> T) -> T {
        let bound = bound.max(Duration::from_micros(1));
        self.set(bound, bound.min(RING_AGAIN));
        let result = interruptible(call);
        self.set(Duration::ZERO, Duration::ZERO);
        // One that rang after the call is not for the next.
        forget(interrupt_signal());
        result
    }

    fn set(&self, after: Duration, every: Duration) {
        let spec = |time: Duration| libc::timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        let value = libc::itimerspec { it_value: spec(after), it_interval: spec(every) };
        // SAFETY: the timer is ours until it is dropped; the old setting is not asked for.
        unsafe { libc::timer_settime(self.0, 0, &raw const value, std::ptr::null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is ours, and not used any more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// What the calling thread has had of the CPUs.
pub(super) fn thread_cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

/// Blocks every signal for the calling thread.
pub(super) fn block_signals() {
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// The lowest real-time priority is above every normal thread, and in nobody's way but theirs.
const PRIORITY: libc::c_int = 1;

/// Makes the calling thread a real-time one (SCHED_FIFO) and locks the memory of the process that is
/// resident now, or comes to be. Children are not affected.
///
/// # Errors
/// EPERM without CAP_SYS_NICE, or in a cpu cgroup without a real-time share
/// (`cpu.rt_runtime_us`, CONFIG_RT_GROUP_SCHED). Memory that cannot be locked is no error: it
/// only may be slow after it was swapped out.
pub(super) fn become_real_time() -> Result<(), Errno> {
    lock_memory();
    may_be_real_time()
}

fn lock_memory() {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let _ = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault);
}

/// As [`become_real_time`], without locking memory: to see whether it is allowed.
pub(super) fn may_be_real_time() -> Result<(), Errno> {
    set_policy(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, PRIORITY)
}

/// While it lives, the calling thread, which made it, has real-time priority, and threads that it starts begin with it.
/// Where that is refused, short slices ([`ask_for_short_slices`]).
pub(super) struct Urgent(PhantomData<*const ()>);

impl Urgent {
    pub(super) fn new() -> Urgent {
        if set_policy(libc::SCHED_FIFO, PRIORITY).is_err() {
            ask_for_short_slices(true);
        }
        Urgent(PhantomData)
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        let _ = set_policy(libc::SCHED_OTHER, 0);
        ask_for_short_slices(false);
    }
}

fn set_policy(policy: libc::c_int, priority: libc::c_int) -> Result<(), Errno> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` is ours; pid 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const param) }).map(drop)
}

/// A descriptor of process `pid` that is readable once it has exited (5.3+).
///
/// # Errors
/// ESRCH where there is no such process, ENOSYS before 5.3.
pub(super) fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the number is a process's, and not that of another thread of one; `None` where the kernel has no pidfds
/// (before 5.3), or the process is gone.
pub fn is_process(pid: i32) -> Option<bool> {
    match pidfd_open(pid) {
        Ok(_) => Some(true),
        // 6.15 and later say ENOENT.
        Err(Errno::EINVAL | Errno::ENOENT) => Some(false),
        Err(_) => None,
    }
}

/// Kills the process of a descriptor (5.1+).
///
/// # Errors
/// ESRCH once it is gone.
pub(super) fn kill(pidfd: &OwnedFd) -> Result<(), Errno> {
    let (fd, none) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: no signal information is passed.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
    Errno::result(done).map(drop)
}

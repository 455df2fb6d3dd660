//! `/proc/PID/task/TID/syscall`: where a task is that does not run.

use crate::flat::words;
use libc::c_long;

/// What a task does not run amid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Its own code: it would go on at once, had it a CPU. So would one that has just been born, and has not come back
    /// yet from the call that made it.
    Running,
    /// A call that returns only when somebody else does something, whenever that is.
    Waiting,
    /// The same, when that is a child of its process that ends.
    ForChild,
    /// The same, when that is most likely another thread of its process: one that it joins, or that has a lock.
    ForThread,
    /// A call by which memory is charged without a page fault. That hardly waits for anybody but a disk, or a reader.
    Charging,
    /// Another call: a sleep that may be over by now, say, or one that nothing is known of.
    Called,
}

/// Calls that wait for somebody else, without any time limit.
const WAIT: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_rt_sigsuspend,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

/// Those that wait for a child.
const WAIT_FOR_CHILD: &[c_long] = &[libc::SYS_wait4, libc::SYS_waitid];

/// That which waits for a thread, likewise if its nth argument is zero: no time is given.
const WAIT_FOR_THREAD: &[(c_long, usize)] = &[(libc::SYS_futex, 3)];

/// Those that do if their nth argument is zero: no time is given.
const WAIT_WITHOUT_TIME: &[(c_long, usize)] = &[
    (libc::SYS_ppoll, 2),
    (libc::SYS_pselect6, 4),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, 4),
];

/// Those that do if their nth argument, an `int`, is less than zero.
const WAIT_IF_NEGATIVE: &[(c_long, usize)] = &[
    (libc::SYS_epoll_pwait, 3),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, 3),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, 2),
];

/// Calls by which memory is charged to who makes them, without a page fault: files on tmpfs and page cache, pipes and
/// sockets, names and inodes, pages that are filled ahead, and page tables.
const CHARGING: &[c_long] = &[
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_fallocate,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_vmsplice,
    libc::SYS_copy_file_range,
    libc::SYS_openat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_pipe2,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_brk,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
];

/// Calls by which tasks are made: the new one is in it until it first runs.
const BIRTHS: &[c_long] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
];

impl Stopped {
    /// Whether it goes on only when somebody else does something.
    pub const fn waits(self) -> bool {
        matches!(self, Stopped::Waiting | Stopped::ForChild | Stopped::ForThread)
    }

    /// From the content of the file (`proc_pid_syscall()`): the call's number and its arguments, -1 where it is in none,
    /// `running` where it runs. What is not understood is [`Stopped::Called`].
    pub fn parse(content: &[u8]) -> Stopped {
        let mut words = words(content);
        let call = words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
        let arguments: Vec<u64> = words.map_while(hex).collect();
        let Some(call): Option<c_long> = call else { return Stopped::Called };
        if call == -1 || BIRTHS.contains(&call) {
            return Stopped::Running;
        }
        if CHARGING.contains(&call) {
            return Stopped::Charging;
        }
        if WAIT_FOR_CHILD.contains(&call) {
            return Stopped::ForChild;
        }
        let is = |calls: &[(c_long, usize)], holds: fn(u64) -> bool| {
            let mut those = calls.iter().filter(|(one, _)| *one == call);
            those.any(|(_, nth)| arguments.get(*nth).is_some_and(|value| holds(*value)))
        };
        if is(WAIT_FOR_THREAD, |value| value == 0) {
            return Stopped::ForThread;
        }
        // The upper half of an int is whatever was in the register.
        let negative = |value: u64| (value as u32 as i32) < 0;
        let waits = WAIT.contains(&call)
            || is(WAIT_WITHOUT_TIME, |value| value == 0)
            || is(WAIT_IF_NEGATIVE, negative);
        if waits { Stopped::Waiting } else { Stopped::Called }
    }
}

fn hex(word: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(word).ok()?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(number: c_long, arguments: [i64; 6]) -> Stopped {
        let arguments = arguments.map(|value| format!("{value:#x}")).join(" ");
        Stopped::parse(format!("{number} {arguments} 0x7ffd1c 0x7f2e\n").as_bytes())
    }

    #[test]
    fn amid_its_own_code_and_just_born_a_task_would_go_on() {
        assert_eq!(Stopped::parse(b"-1 0x7ffd1c 0x55d0\n"), Stopped::Running);
        for birth in [libc::SYS_clone, libc::SYS_clone3] {
            assert_eq!(call(birth, [0x3d_0f00; 6]), Stopped::Running);
        }
    }

    #[test]
    fn who_waits_without_a_limit_waits_for_somebody_else() {
        assert_eq!(call(libc::SYS_read, [0, 1, 1024, 0, 0, 0]), Stopped::Waiting);
        let futex = |timeout| call(libc::SYS_futex, [0x7f00, 128, 2, timeout, 0, 0]);
        assert_eq!((futex(0), futex(0x7ffe)), (Stopped::ForThread, Stopped::Called));
        let epoll = |timeout| call(libc::SYS_epoll_pwait, [4, 0x7f00, 8, timeout, 0, 8]);
        assert_eq!((epoll(-1), epoll(0xffff_ffff), epoll(100)).1, Stopped::Waiting);
        assert_eq!((epoll(-1), epoll(100)), (Stopped::Waiting, Stopped::Called));
        assert!(Stopped::Waiting.waits() && !Stopped::Called.waits());
    }

    #[test]
    fn who_waits_for_a_child_is_told_from_others() {
        for waits in [libc::SYS_wait4, libc::SYS_waitid] {
            let stopped = call(waits, [-1, 0, 0, 0, 0, 0]);
            assert!(stopped == Stopped::ForChild && stopped.waits());
        }
    }

    #[test]
    fn who_writes_charges() {
        for charges in [libc::SYS_write, libc::SYS_fallocate, libc::SYS_sendmsg] {
            assert_eq!(call(charges, [1; 6]), Stopped::Charging);
        }
    }

    #[test]
    fn a_sleep_may_be_over_and_of_the_rest_nothing_is_known() {
        assert_eq!(call(libc::SYS_clock_nanosleep, [0; 6]), Stopped::Called);
        for unknown in [&b"running\n"[..], b"", b"-1x", b"\xff"] {
            assert_eq!(Stopped::parse(unknown), Stopped::Called);
        }
        // Without its arguments.
        assert_eq!(Stopped::parse(format!("{}\n", libc::SYS_futex).as_bytes()), Stopped::Called);
    }

    proptest! {
        #[test]
        fn any_content_parses(content: Vec<u8>) {
            let _ = Stopped::parse(&content);
        }
    }
}

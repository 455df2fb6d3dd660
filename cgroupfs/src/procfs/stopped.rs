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
    /// Another call: a sleep that may be over by now, say, or one that nothing is known of.
    Called,
}

/// Calls that wait for somebody else, without any time limit.
const WAIT: [c_long; 9] = [
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_rt_sigsuspend,
    libc::SYS_readv,
];

/// A call, and which of its arguments is the time.
type Timed = (c_long, usize);

/// Those that do if their nth argument is zero: no time is given.
const WAIT_WITHOUT_TIME: [Timed; 3] =
    [(libc::SYS_futex, 3), (libc::SYS_ppoll, 2), (libc::SYS_pselect6, 4)];

/// Those that do if their nth argument, an `int`, is less than zero.
const WAIT_IF_NEGATIVE: [Timed; 1] = [(libc::SYS_epoll_pwait, 3)];

/// The same calls where only older architectures have them.
#[cfg(target_arch = "x86_64")]
const OLDER: (c_long, &[Timed], &[Timed]) =
    (libc::SYS_pause, &[(libc::SYS_select, 4)], &[(libc::SYS_poll, 2), (libc::SYS_epoll_wait, 3)]);
#[cfg(not(target_arch = "x86_64"))]
const OLDER: (c_long, &[Timed], &[Timed]) = (-2, &[], &[]);

#[cfg(target_arch = "x86_64")]
const BIRTHS: [c_long; 3] = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork];
#[cfg(not(target_arch = "x86_64"))]
const BIRTHS: [c_long; 2] = [libc::SYS_clone, libc::SYS_clone3];

impl Stopped {
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
        let is = |calls: &[Timed], holds: fn(u64) -> bool| {
            let mut those = calls.iter().filter(|(one, _)| *one == call);
            those.any(|(_, nth)| arguments.get(*nth).is_some_and(|value| holds(*value)))
        };
        let (pause, without_time, if_negative) = OLDER;
        // The upper half of an int is whatever was in the register.
        let negative = |value: u64| (value as u32 as i32) < 0;
        let waits = WAIT.contains(&call)
            || call == pause
            || is(&WAIT_WITHOUT_TIME, |value| value == 0)
            || is(without_time, |value| value == 0)
            || is(&WAIT_IF_NEGATIVE, negative)
            || is(if_negative, negative);
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
        assert_eq!((futex(0), futex(0x7ffe)), (Stopped::Waiting, Stopped::Called));
        let epoll = |timeout| call(libc::SYS_epoll_pwait, [4, 0x7f00, 8, timeout, 0, 8]);
        assert_eq!((epoll(-1), epoll(0xffff_ffff), epoll(100)).1, Stopped::Waiting);
        assert_eq!((epoll(-1), epoll(100)), (Stopped::Waiting, Stopped::Called));
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

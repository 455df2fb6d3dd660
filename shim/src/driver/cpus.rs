//! The CPUs that a thread may run on (`sched_getaffinity(2)`), and being on one of them.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// More than these are not told apart.
const MOST: usize = 64;

/// To be on each of more than these in turn takes long (10 us each), and where there are so many one is free as a rule.
const FEW: usize = 8;

/// This thread's.
#[derive(Debug, Clone)]
pub(super) struct Allowed {
    each: Vec<Cpu>,
}

#[derive(Debug, Clone, Copy)]
struct Cpu {
    number: usize,
    only: CpuSet,
}

impl Allowed {
    /// As of now; none where there are too many.
    pub(super) fn find() -> Allowed {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let alone = |number| {
            let mut only = CpuSet::new();
            only.set(number).ok().map(|()| Cpu { number, only })
        };
        let numbers = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false));
        let mut each: Vec<Cpu> = numbers.filter_map(alone).collect();
        if each.len() > MOST {
            each.clear();
        }
        Allowed { each }
    }

    /// How many.
    pub(super) const fn len(&self) -> usize {
        self.each.len()
    }

    /// Whether they are so few that something may be done for each of them.
    pub(super) const fn are_few(&self) -> bool {
        self.each.len() <= FEW
    }

    /// Does `there` on each of them, the one this thread is on first, and not where it is not `wanted`. May run after that
    /// where it might before.
    pub(super) fn visit(&self, wanted: impl Fn(usize) -> bool, there: impl Fn()) {
        let (here, before) = (sched_getcpu().ok(), sched_getaffinity(Pid::from_raw(0)));
        let (near, far): (Vec<&Cpu>, Vec<&Cpu>) =
            self.each.iter().partition(|cpu| Some(cpu.number) == here);
        for cpu in near.into_iter().chain(far) {
            if wanted(cpu.number) && sched_setaffinity(Pid::from_raw(0), &cpu.only).is_ok() {
                there();
            }
        }
        restore(before);
    }

    /// Goes to the nth of them, counted on from the last to the first, and may run after that where it might before.
    /// Allocates nothing.
    pub(super) fn go_to(&self, n: u64) {
        let nth = n.checked_rem(self.each.len() as u64).and_then(|n| self.each.get(n as usize));
        if let Some(cpu) = nth {
            let before = sched_getaffinity(Pid::from_raw(0));
            let _ = sched_setaffinity(Pid::from_raw(0), &cpu.only);
            restore(before);
        }
    }
}

/// As it stood, which somebody may have set since these were looked for (`taskset`).
fn restore(before: nix::Result<CpuSet>) {
    if let Ok(before) = before {
        let _ = sched_setaffinity(Pid::from_raw(0), &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn each_is_visited_that_is_wanted_and_none_is_given_up() {
        let allowed = Allowed::find();
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let first = allowed.each.first().map(|cpu| cpu.number);
        let seen = RefCell::new(Vec::new());
        allowed.visit(
            |number| Some(number) != first,
            || seen.borrow_mut().extend(sched_getcpu().ok()),
        );
        let mut seen = seen.into_inner();
        seen.sort_unstable();
        let others: Vec<usize> = allowed.each.iter().skip(1).map(|cpu| cpu.number).collect();
        assert_eq!(seen, others);
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before);
    }

    #[test]
    fn it_goes_to_one_after_the_other_and_is_bound_to_none() {
        let allowed = Allowed::find();
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        for n in 0..2 * allowed.len() {
            allowed.go_to(n as u64);
            assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before);
        }
        Allowed { each: Vec::new() }.go_to(3);
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before);
        // Somebody else says where this thread is to be: so it stays.
        let only = allowed.each[0].only;
        sched_setaffinity(Pid::from_raw(0), &only).unwrap();
        allowed.go_to(1);
        allowed.visit(|_| true, || {});
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), only);
    }
}

//! The lines that the OOM killer logs (`mm/oom_kill.c`, `mm/memcontrol.c`), kernel by kernel:
//!
//! ```text
//! any    memload invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
//! <5.0   Task in /a/b killed as a result of limit of /a
//! 5.0+   oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,
//!        task_memcg=/a/b,task=memload,pid=7,uid=0                      (el8 has it too)
//! <5.2   Memory cgroup out of memory: Kill process 7 (memload) score 999 or sacrifice child
//! <5.2   Killed process 7 (memload) total-vm:38244kB, anon-rss:32000kB, file-rss:4084kB, shmem-rss:0kB
//! el7    Killed process 7, UID 0, (memload) total-vm:38244kB, ...
//! 5.2+   Memory cgroup out of memory: Killed process 7 (memload) total-vm:38244kB, anon-rss:..., UID:0
//!        pgtables:108kB oom_score_adj:0                                (the tail from 5.4 on)
//! ```
//!
//! All but "Kill(ed) process" is rate-limited (10 in 5 s). The lines of two kills never interleave: they
//! are logged under `oom_lock`. A command name is at most 15 bytes, but those may be anything, ")
//! total-vm:" included; so may the names of cgroups. Where a line can be read in two ways, its paths count
//! as unknown.

/// Why there was no memory, by the kernel's own account (`enum oom_constraint`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constraint {
    /// `CONSTRAINT_NONE`: the whole node.
    None,
    /// `CONSTRAINT_CPUSET`: the NUMA nodes that its cpuset allows.
    Cpuset,
    /// `CONSTRAINT_MEMORY_POLICY`: the NUMA nodes that its memory policy allows.
    MemoryPolicy,
    /// `CONSTRAINT_MEMCG`: a memory cgroup's limit.
    Memcg,
}

/// A kill, put together from the lines about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Killed {
    /// The victim, in the initial pid namespace.
    pub pid: i32,
    /// Its command name, 15 bytes at most, any bytes.
    pub comm: Vec<u8>,
    /// Its `oom_score_adj` (5.4+).
    pub oom_score_adj: Option<i32>,
    /// By "Memory cgroup out of memory" or "Out of memory", or by the constraint.
    pub memcg: Option<bool>,
    /// The constraint, where that line is there.
    pub constraint: Option<Constraint>,
    /// Whose limit was hit: a path from the root of the memory hierarchy.
    pub oom_memcg: Option<Vec<u8>>,
    /// Where the victim was.
    pub task_memcg: Option<Vec<u8>>,
    /// The order of the allocation that found no memory: 0 is a single page.
    pub order: Option<u32>,
}

/// Puts the lines of a kill together.
#[derive(Debug, Default)]
pub struct Lines {
    order: Option<u32>,
    summary: Option<Summary>,
    selected: Option<Selected>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Summary {
    /// `None` before 5.0: the line names no pid.
    pid: Option<i32>,
    constraint: Option<Constraint>,
    oom_memcg: Option<Vec<u8>>,
    task_memcg: Option<Vec<u8>>,
}

/// "Kill process": the next "Killed process" is it, or a child of it.
#[derive(Debug, Clone, Copy)]
struct Selected {
    memcg: bool,
}

impl Lines {
    /// Takes the next line of the kernel's; the kill that it completes, if it does.
    pub fn line(&mut self, text: &[u8]) -> Option<Killed> {
        if let Some(at) = find(text, b" invoked oom-killer: ") {
            *self = Lines { order: order(text.get(at..)?), ..Lines::default() };
            return None;
        }
        if text.starts_with(b"oom-kill:constraint=") || text.starts_with(b"Task in /") {
            self.summary = summary(text);
            return None;
        }
        if let Some(at) = find(text, b"Killed process ") {
            let (before, rest) = text.split_at(at);
            if !matches!(before, b"" | b"Memory cgroup out of memory: ")
                && !before.starts_with(b"Out of memory")
            {
                return None;
            }
            return self.killed(before, rest.get(b"Killed process ".len()..)?);
        }
        if let Some(at) = find(text, b": Kill process ") {
            let before = text.get(..at)?;
            if before == b"Memory cgroup out of memory" || before.starts_with(b"Out of memory") {
                self.selected = Some(Selected { memcg: before.starts_with(b"Memory") });
            }
        }
        None
    }

    /// Records were lost: what follows is not put together with what came before.
    pub fn lost(&mut self) {
        *self = Lines::default();
    }

    fn killed(&mut self, before: &[u8], rest: &[u8]) -> Option<Killed> {
        let lines = std::mem::take(self);
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let pid = i32::try_from(crate::files::parse_u64(rest.get(..digits)?)?).ok()?;
        // The command name may hold anything, so it ends at the last ") total-vm:" there is.
        let end = rfind(rest, b") total-vm:")?;
        let start = find(rest.get(..end)?, b"(")? + 1;
        let comm = rest.get(start..end)?.to_vec();
        let tail = rest.get(end..)?;
        let summary = lines.summary.filter(|summary| summary.pid.is_none_or(|named| named == pid));
        let constraint = summary.as_ref().and_then(|summary| summary.constraint);
        let memcg = match before {
            b"" => lines.selected.map(|selected| selected.memcg),
            before => Some(before.starts_with(b"Memory cgroup")),
        };
        Some(Killed {
            pid,
            comm,
            oom_score_adj: rfind(tail, b" oom_score_adj:")
                .and_then(|at| signed(tail.get(at + b" oom_score_adj:".len()..)?)),
            memcg: memcg.or(constraint.map(|constraint| constraint == Constraint::Memcg)),
            constraint,
            oom_memcg: summary.as_ref().and_then(|summary| summary.oom_memcg.clone()),
            task_memcg: summary.and_then(|summary| summary.task_memcg),
            order: lines.order,
        })
    }
}

fn order(text: &[u8]) -> Option<u32> {
    let at = rfind(text, b", order=")? + b", order=".len();
    let digits = text.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    // -1: sysrq asked for it.
    u32::try_from(crate::files::parse_u64(text.get(at..at + digits)?)?).ok()
}

fn summary(text: &[u8]) -> Option<Summary> {
    if let Some(rest) = text.strip_prefix(b"Task in ") {
        let between = b" killed as a result of limit of ";
        let (task, limit) = once(rest, between)?;
        return Some(Summary {
            pid: None,
            constraint: Some(Constraint::Memcg),
            oom_memcg: Some(limit.to_vec()),
            task_memcg: Some(task.to_vec()),
        });
    }
    let rest = text.strip_prefix(b"oom-kill:constraint=")?;
    let comma = rest.iter().position(|byte| *byte == b',')?;
    let constraint = match rest.get(..comma)? {
        b"CONSTRAINT_NONE" => Constraint::None,
        b"CONSTRAINT_CPUSET" => Constraint::Cpuset,
        b"CONSTRAINT_MEMORY_POLICY" => Constraint::MemoryPolicy,
        b"CONSTRAINT_MEMCG" => Constraint::Memcg,
        _ => return None,
    };
    let uid = rfind(rest, b",uid=")?;
    let pid = rfind(rest.get(..uid)?, b",pid=")?;
    let number = rest.get(pid + b",pid=".len()..uid)?;
    let mut summary = Summary {
        pid: Some(i32::try_from(crate::files::parse_u64(number)?).ok()?),
        constraint: Some(constraint),
        oom_memcg: None,
        task_memcg: None,
    };
    // Names of cgroups and of the command may hold these words themselves: then the line could be read
    // in more than one way.
    if let Some((head, rest)) = once(rest.get(..pid)?, b",task_memcg=")
        && let Some((task_memcg, _)) = once(rest, b",task=")
    {
        summary.task_memcg = Some(task_memcg.to_vec());
        summary.oom_memcg = once(head, b",oom_memcg=").map(|(_, oom_memcg)| oom_memcg.to_vec());
    }
    Some(summary)
}

/// Splits at `mark`, which must occur once.
fn once<'a>(text: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = find(text, mark)?;
    let (before, after) = (text.get(..at)?, text.get(at + mark.len()..)?);
    find(after, mark).is_none().then_some((before, after))
}

fn find(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).position(|window| window == mark)
}

fn rfind(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).rposition(|window| window == mark)
}

fn signed(text: &[u8]) -> Option<i32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// A line of the `oom:mark_victim` tracepoint, as `trace_pipe` prints it: the victim's pid, and from 6.10
/// on its command name and `oom_score_adj`. Tells nothing of whose limit was hit.
pub fn mark_victim(line: &[u8]) -> Option<Killed> {
    // What comes before the event's name holds the name of the task that allocated.
    let at = rfind(line, b": mark_victim: pid=")? + b": mark_victim: pid=".len();
    let rest = line.get(at..)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let pid = i32::try_from(crate::files::parse_u64(rest.get(..digits)?)?).ok()?;
    let rest = rest.get(digits..)?;
    let comm = rest
        .strip_prefix(b" comm=")
        .and_then(|rest| Some(rest.get(..rfind(rest, b" total-vm=")?)?.to_vec()));
    let adj = rfind(rest, b" oom_score_adj=")
        .and_then(|at| signed(rest.get(at + b" oom_score_adj=".len()..)?));
    Some(Killed {
        pid,
        comm: comm.unwrap_or_default(),
        oom_score_adj: adj,
        memcg: None,
        constraint: None,
        oom_memcg: None,
        task_memcg: None,
        order: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kills(lines: &[&[u8]]) -> Vec<Killed> {
        let mut state = Lines::default();
        lines.iter().filter_map(|line| state.line(line)).collect()
    }

    #[test]
    fn a_kill_at_a_limit_of_an_ancestor_6_18() {
        let kills = kills(&[
            b"memload invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=7",
            b"memory: usage 32768kB, limit 32768kB, failcnt 21",
            b"[  18214]     0 18214     9561     9021     8000     1021         0   110592        0             0 memload",
            b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/pod,task_memcg=/pod/c1,task=memload,pid=18214,uid=0",
            b"Memory cgroup out of memory: Killed process 18214 (memload) total-vm:38244kB, anon-rss:32000kB, file-rss:4084kB, shmem-rss:0kB, UID:0 pgtables:108kB oom_score_adj:-7",
        ]);
        assert_eq!(
            kills,
            [Killed {
                pid: 18214,
                comm: b"memload".to_vec(),
                oom_score_adj: Some(-7),
                memcg: Some(true),
                constraint: Some(Constraint::Memcg),
                oom_memcg: Some(b"/pod".to_vec()),
                task_memcg: Some(b"/pod/c1".to_vec()),
                order: Some(0),
            }]
        );
    }

    #[test]
    fn a_kill_whose_header_was_rate_limited_has_no_paths() {
        let kills = kills(&[
            b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a,task=x,pid=1,uid=0",
            b"Memory cgroup out of memory: Killed process 1 (x) total-vm:1kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0",
            b"Memory cgroup out of memory: Killed process 2 (y) total-vm:1kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0",
        ]);
        assert_eq!(kills[0].task_memcg.as_deref(), Some(&b"/a"[..]));
        assert_eq!((kills[1].pid, &kills[1].task_memcg, kills[1].memcg), (2, &None, Some(true)));
    }

    #[test]
    fn old_kernels_select_first_and_may_sacrifice_a_child() {
        let kills = kills(&[
            b"stress invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0",
            b"Task in /docker/34186 killed as a result of limit of /docker",
            b"Memory cgroup out of memory: Kill process 10 (stress) score 999 or sacrifice child",
            b"Killed process 11 (stress-vm) total-vm:270000kB, anon-rss:200000kB, file-rss:4kB",
            b"Out of memory: Kill process 12 (java) score 854 or sacrifice child",
            b"Killed process 12, UID 679, (java) total-vm:11017300kB, anon-rss:7152432kB, file-rss:1232kB",
        ]);
        assert_eq!((kills[0].pid, &kills[0].comm[..]), (11, &b"stress-vm"[..]));
        assert_eq!(kills[0].oom_memcg.as_deref(), Some(&b"/docker"[..]));
        assert_eq!(kills[0].task_memcg.as_deref(), Some(&b"/docker/34186"[..]));
        assert_eq!((kills[0].memcg, kills[0].oom_score_adj), (Some(true), None));
        assert_eq!((kills[1].pid, &kills[1].comm[..]), (12, &b"java"[..]));
        assert_eq!((kills[1].memcg, &kills[1].task_memcg), (Some(false), &None));
    }

    #[test]
    fn a_node_kill_names_no_limit() {
        let kills = kills(&[
            b"a b invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=3, oom_score_adj=0",
            b"oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/c,task=memload,pid=9,uid=1000",
            b"Out of memory: Killed process 9 (memload) total-vm:9kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:1000 pgtables:1kB oom_score_adj:1000",
        ]);
        let kill = &kills[0];
        assert_eq!((kill.memcg, kill.constraint), (Some(false), Some(Constraint::None)));
        assert_eq!((kill.oom_memcg.as_ref(), kill.order), (None, Some(3)));
        assert_eq!(kill.task_memcg.as_deref(), Some(&b"/c"[..]));
    }

    #[test]
    fn a_hostile_command_name_is_only_a_name() {
        let kills = kills(&[
            b"Memory cgroup out of memory: Killed process 5 (a) total-vm:1kB) total-vm:3kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0",
            b"Memory cgroup out of memory: Killed process 6 (\x1b[2J\n\xff) total-vm:3kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0",
        ]);
        assert_eq!(kills[0].comm, b"a) total-vm:1kB");
        assert_eq!(kills[1].comm, b"\x1b[2J\n\xff");
        // In front of another line's own words there can only be 15 bytes of a name.
        let mut lines = Lines::default();
        assert_eq!(lines.line(b"oops Killed process 1 (x) total-vm:1kB, anon-rss:1kB"), None);
    }

    #[test]
    fn a_cgroup_name_that_makes_a_line_ambiguous_costs_its_paths_only() {
        for line in [
            &b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/v,task=x,pid=1,uid=0,task_memcg=/b,task=y,pid=7,uid=0"[..],
            b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/v,task=z,task=y,pid=7,uid=0",
            b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,oom_memcg=/v,mems_allowed=0,oom_memcg=/a,task_memcg=/v,task=z,task=y,pid=7,uid=0",
        ] {
            let kills = kills(&[
                line,
                b"Memory cgroup out of memory: Killed process 7 (y) total-vm:1kB, anon-rss:1kB",
            ]);
            assert_eq!((kills[0].pid, &kills[0].task_memcg), (7, &None));
            assert_eq!(kills[0].oom_memcg, None);
            assert_eq!(kills[0].constraint, Some(Constraint::Memcg));
        }
    }

    #[test]
    fn the_tracepoint_names_the_victim() {
        let old = mark_victim(b"  memload-123   [001] .....   77.5: mark_victim: pid=123").unwrap();
        assert_eq!((old.pid, &old.comm[..], old.oom_score_adj), (123, &b""[..], None));
        let new = mark_victim(b" a: mark_victim: pid=1-9 [001] .....   77.5: mark_victim: pid=12 comm=x total-vm=1 total-vm=38244kB anon-rss=3kB file-rss:4kB shmem-rss:0kB uid=0 pgtables=108kB oom_score_adj=-5").unwrap();
        assert_eq!(
            (new.pid, &new.comm[..], new.oom_score_adj),
            (12, &b"x total-vm=1"[..], Some(-5))
        );
    }

    proptest! {
        #[test]
        fn no_lines_panic(lines in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..120),
                "(Memory cgroup out of memory: )?Kill(ed)? process [0-9]{1,12}[ (),]{0,3}.{0,15}\\) total-vm:.{0,9}"
                    .prop_map(String::into_bytes),
                "oom-kill:constraint=CONSTRAINT_(MEMCG|NONE),(oom_memcg=|task_memcg=|task=|pid=|uid=|[/a,]){0,9}"
                    .prop_map(String::into_bytes),
            ],
            0..8,
        )) {
            let mut state = Lines::default();
            for line in lines {
                let _ = state.line(&line);
                let _ = mark_victim(&line);
            }
        }

        #[test]
        fn any_command_name_comes_back(comm in prop::collection::vec(any::<u8>(), 0..16), pid in 1i32..) {
            let mut line = format!("Memory cgroup out of memory: Killed process {pid} (").into_bytes();
            line.extend(&comm);
            line.extend(b") total-vm:1kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:3");
            let killed = Lines::default().line(&line);
            // "Killed process " fits into a name; then it is the first one that counts, which is ours.
            let killed = killed.unwrap();
            prop_assert_eq!((killed.pid, killed.comm), (pid, comm));
        }
    }
}

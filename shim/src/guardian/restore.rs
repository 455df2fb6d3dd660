//! Undoing what a journal says that stands: by the guardian, by the next start, by `cgshimd --restore`.
//!
//! Only where the kernel still holds our value; somebody else's stays. Nothing here allocates, as the
//! guardian calls it while the host may be out of memory.

use super::groups::Groups;
use crate::journal::{
    Deadline, Freeze, FreezerKind, HighMark, InFlight, Journal, JournalError, Place, RunDir,
    SlotView, Step, StepFile, View,
};
use cgroupfs::files::{ControlFile, Decimal, parse_u64};
use cgroupfs::memory::Version;
use cgroupfs::{Bytes, Limit};
use nix::errno::Errno;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// The group of ours that tasks are frozen in, under the container's.
pub const FREEZER_CHILD: &str = "cgshim";

/// How often a limit is tried that memsw keeps moving under.
const TRIES: usize = 8;

/// How long `cgshimd --restore` waits for a guardian that is at it.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// What came of one thing that stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// The declared limit is back, where our value was.
    Limit(Limit, Bytes),
    /// `memory.high` is back.
    High(Limit, Bytes),
    /// What stood in `memory.high` before ours.
    Native(Limit, Limit),
    /// memsw is under the declared limit now: this was the most that the kernel took.
    Bounded(Limit, Limit),
    /// Somebody else's limit stands: left alone.
    Foreign(Limit),
    /// Swappiness is back.
    Swappiness(u64),
    /// Tasks are thawed.
    Thawed,
    /// The OOM killer works again.
    Released,
    /// And in so many groups beneath, which had it from their parent.
    ReleasedBeneath(u32),
    /// Nothing stood any more.
    Nothing,
    /// The group is gone.
    Gone,
    /// The journal does not say what stood.
    Damaged,
    /// The kernel refused, at this file.
    Failed(&'static str, Errno),
}

impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undone::Limit(declared, ours) => {
                write!(f, "limit {declared} restored, which was stepped to {ours}")
            }
            Undone::High(high, ours) => {
                write!(f, "memory.high {high} restored, which was stepped to {ours}")
            }
            Undone::Native(before, ours) => {
                write!(f, "memory.high {before} is back, where ours, {ours}, stood")
            }
            Undone::Bounded(declared, bound) => write!(
                f,
                "memory.memsw.limit_in_bytes is under the declared limit {declared} now: limit {bound} \
                 set, which is the most that the kernel takes"
            ),
            Undone::Foreign(limit) => write!(f, "somebody else's limit {limit} stays"),
            Undone::Swappiness(before) => write!(f, "memory.swappiness {before} restored"),
            Undone::Thawed => write!(f, "thawed"),
            Undone::Released => write!(f, "OOM killer on again"),
            Undone::ReleasedBeneath(groups) => {
                write!(f, "OOM killer on again in {groups} groups beneath it")
            }
            Undone::Nothing => write!(f, "nothing to undo"),
            Undone::Gone => write!(f, "gone"),
            Undone::Damaged => write!(
                f,
                "the journal is damaged here: compare limit, swappiness and freezer with what is declared"
            ),
            Undone::Failed(file, errno) => write!(f, "cannot restore {file}: {}", errno.desc()),
        }
    }
}

/// What came of all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Limits and `memory.high`s put back, bounded ones included.
    pub limits: u32,
    /// Of these, those that memsw bounds now.
    pub bounded: u32,
    /// Files that somebody else had written meanwhile.
    pub foreign: u32,
    /// Swappiness put back.
    pub swappiness: u32,
    /// Groups thawed.
    pub thawed: u32,
    /// OOM killers switched on again.
    pub released: u32,
    /// What could not be undone, or was not legible.
    pub failed: u32,
}

impl Restored {
    fn count(&mut self, undone: Undone) {
        match undone {
            Undone::Limit(..) | Undone::High(..) | Undone::Native(..) => self.limits += 1,
            Undone::Bounded(..) => {
                self.limits += 1;
                self.bounded += 1;
            }
            Undone::Foreign(_) => self.foreign += 1,
            Undone::Swappiness(_) => self.swappiness += 1,
            Undone::Thawed => self.thawed += 1,
            Undone::Released => self.released += 1,
            Undone::ReleasedBeneath(groups) => self.released += groups,
            Undone::Damaged | Undone::Failed(..) => self.failed += 1,
            Undone::Nothing | Undone::Gone => {}
        }
    }
}

/// Undoes all that `journal` says that stands. For who has the run directory's lock: its writer at its
/// start, before anything else, or whoever stands in for a dead one. `on` is told of each thing.
pub fn restore_all(
    journal: &Journal,
    groups: &impl Groups,
    on: &mut dyn FnMut(&str, Undone),
) -> Restored {
    everything(journal.view(), groups, on)
}

/// `cgshimd --restore`: undoes what the dead daemon of a run directory left.
///
/// [`JournalError::Locked`] where it is alive.
pub fn restore(
    run_dir: &Path,
    groups: &impl Groups,
    on: &mut dyn FnMut(&str, Undone),
) -> Result<(Restored, Vec<String>), JournalError> {
    let run_dir = RunDir::lock(run_dir, LOCK_PATIENCE)?;
    let (journal, opened) = Journal::open(&run_dir)?;
    Ok((restore_all(&journal, groups, on), opened.remarks))
}

/// Everything that stands, whatever its deadline; its writer is dead.
pub(super) fn everything(
    view: View<'_>,
    groups: &impl Groups,
    on: &mut dyn FnMut(&str, Undone),
) -> Restored {
    let mut restored = Restored::default();
    for slot in view.slots() {
        let failed = restored.failed;
        undo(&slot, groups, None, &mut |path, undone| {
            if let Undone::Bounded(_, limit) = undone {
                slot.declare(limit);
            }
            restored.count(undone);
            on(path, undone);
        });
        // Where its tasks are in it still, they stay: a throttle that comes after us moves them back.
        if let Some((path, Some(inode))) = slot.freezer_place() {
            groups.remove_frozen_child(path.as_str(), inode);
        }
        // What failed is tried again, by us or by who comes after us.
        if restored.failed == failed {
            slot.forget_in_flight();
        }
    }
    // There may be a thousand groups beneath one, and nobody is to wait for a limit meanwhile.
    for slot in view.slots() {
        let InFlight { hold: Some(_), beneath, .. } = slot.in_flight() else { continue };
        let Some(place) = slot.place() else { continue };
        let failed = restored.failed;
        for undone in [undo_hold(groups, &place), undo_beneath(groups, &place, beneath)] {
            let undone = undone.unwrap_or_else(Undone::from);
            restored.count(undone);
            if !matches!(undone, Undone::Nothing | Undone::Gone) {
                on(place.path.as_str(), undone);
            }
        }
        if restored.failed == failed {
            slot.forget_hold();
        }
    }
    // Last, for these writes may have to reclaim, and nobody is to wait for them.
    for slot in view.slots() {
        let (Some(high), Some(place)) = (slot.in_flight().high, slot.place()) else { continue };
        let undone = undo_high(groups, &place, &high).unwrap_or_else(Undone::from);
        restored.count(undone);
        if undone != Undone::Nothing {
            on(place.path.as_str(), undone);
        }
        if !matches!(undone, Undone::Failed(..)) {
            slot.forget_high();
        }
    }
    restored
}

/// What has stood for too long; its writer may come back.
pub(super) fn overdue(
    view: View<'_>,
    groups: &impl Groups,
    now: Deadline,
    on: &mut dyn FnMut(&str, Undone),
) {
    for slot in view.in_flight() {
        undo(&slot, groups, Some(now), on);
    }
}

/// Of one that dies everything is overdue.
const FOR_THE_DYING: Deadline = Deadline(u64::MAX);

/// What stands while a process dies: no code of its own runs any more, but a thread that waits in the kernel may
/// still lower a limit as it goes. So nothing is forgotten, and [`everything`] follows once the last one is gone.
pub(super) fn dying(view: View<'_>, groups: &impl Groups, on: &mut dyn FnMut(&str, Undone)) {
    for slot in view.in_flight() {
        undo(&slot, groups, Some(FOR_THE_DYING), &mut |path, undone| {
            if let Undone::Bounded(_, limit) = undone {
                slot.declare(limit);
            }
            on(path, undone);
        });
    }
}

fn undo(
    slot: &SlotView<'_>,
    groups: &impl Groups,
    overdue: Option<Deadline>,
    on: &mut dyn FnMut(&str, Undone),
) {
    let InFlight { step, swappiness, freeze, hold, beneath, high: _, damaged } = slot.in_flight();
    let due = |deadline: Deadline| overdue.is_none_or(|now| deadline <= now);
    let Some(place) = slot.place().filter(|_| slot.stands()) else {
        if overdue.is_none() {
            on("(damaged)", Undone::Damaged);
        }
        return;
    };
    let mut tell = |undone| {
        if undone != Undone::Nothing {
            on(place.path.as_str(), undone);
        }
    };
    if let Some(step) = step.filter(|step| due(step.deadline)) {
        tell(undo_step(groups, &place, &step).unwrap_or_else(Undone::from));
    }
    if let Some(swappiness) = swappiness.filter(|swappiness| due(swappiness.deadline)) {
        tell(undo_swappiness(groups, &place, swappiness.before).unwrap_or_else(Undone::from));
    }
    if let Some(deadline) = hold
        && due(deadline)
    {
        let undone = undo_hold(groups, &place).unwrap_or_else(Undone::from);
        tell(undone);
        // Once: there are no more copies while it is off.
        if undone == Undone::Released && overdue.is_some_and(|now| now != FOR_THE_DYING) {
            tell(undo_beneath(groups, &place, beneath).unwrap_or_else(Undone::from));
        }
    }
    let child = Freeze { kind: FreezerKind::V1Child, deadline: Deadline(0) };
    let freeze = match overdue {
        Some(_) => freeze.filter(|freeze| due(freeze.deadline)),
        // The child group is ours: what is frozen in it was by us, whatever the journal says.
        None => freeze.or((place.version == Version::V1).then_some(child)),
    };
    if let Some(freeze) = freeze {
        tell(thaw(groups, slot, &place, freeze.kind).unwrap_or_else(Undone::from));
    }
    if damaged && overdue.is_none() {
        tell(Undone::Damaged);
    }
}

/// What went wrong, and with which file.
struct Failed(&'static str, Errno);

impl From<Failed> for Undone {
    fn from(Failed(file, errno): Failed) -> Undone {
        match errno {
            // Vanished is terminal: of a group that is gone there is nothing to undo.
            Errno::ENOENT | Errno::ENODEV | Errno::ESTALE => Undone::Gone,
            errno => Undone::Failed(file, errno),
        }
    }
}

fn undo_step(groups: &impl Groups, place: &Place, step: &Step) -> Result<Undone, Failed> {
    let name = match (step.file, place.version) {
        (StepFile::High, _) => "memory.high",
        (StepFile::Limit, Version::V1) => "memory.limit_in_bytes",
        (StepFile::Limit, Version::V2) => "memory.max",
    };
    let failed = |errno| Failed(name, errno);
    let file = groups.memory(place, name).map_err(failed)?;
    let v1_limit = name == "memory.limit_in_bytes";
    for _ in 0..TRIES {
        let standing = read_limit(&file, v1_limit).map_err(failed)?;
        if standing == step.declared.page_floor() {
            return Ok(Undone::Nothing);
        }
        if standing != Limit::Bytes(step.written) {
            return Ok(Undone::Foreign(standing));
        }
        match write_limit(&file, v1_limit, step.declared) {
            Ok(()) if step.file == StepFile::High => {
                return Ok(Undone::High(step.declared, step.written));
            }
            Ok(()) => return Ok(Undone::Limit(step.declared, step.written)),
            Err(Errno::EINVAL) if v1_limit => {}
            Err(errno) => return Err(failed(errno)),
        }
        // memsw was lowered under the declared limit while the step stood: the most that it takes.
        const MEMSW: &str = "memory.memsw.limit_in_bytes";
        let memsw = groups.memory(place, MEMSW).map_err(|errno| Failed(MEMSW, errno))?;
        let bound = read_limit(&memsw, true).map_err(|errno| Failed(MEMSW, errno))?;
        let bound = bound.min(step.declared);
        match write_limit(&file, v1_limit, bound) {
            Ok(()) => return Ok(Undone::Bounded(step.declared, bound)),
            // Lowered again meanwhile.
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::EINVAL))
}

fn undo_high(groups: &impl Groups, place: &Place, high: &HighMark) -> Result<Undone, Failed> {
    const FILE: &str = "memory.high";
    let failed = |errno| Failed(FILE, errno);
    let file = groups.memory(place, FILE).map_err(failed)?;
    let standing = read_limit(&file, false).map_err(failed)?;
    if standing == high.before.page_floor() {
        return Ok(Undone::Nothing);
    }
    if standing != high.written && standing != high.last {
        return Ok(Undone::Foreign(standing));
    }
    write_limit(&file, false, high.before).map_err(failed)?;
    Ok(Undone::Native(high.before, standing))
}

fn undo_swappiness(groups: &impl Groups, place: &Place, before: u64) -> Result<Undone, Failed> {
    const FILE: &str = "memory.swappiness";
    let failed = |errno| Failed(FILE, errno);
    let file = groups.memory(place, FILE).map_err(failed)?;
    let mut buf = [0; 64];
    let n = read(&file, &mut buf).map_err(failed)?;
    // Somebody else's value stays.
    if before == 0 || parse_u64(&buf[..n]) != Some(0) {
        return Ok(Undone::Nothing);
    }
    write(&file, Decimal::new(before).as_bytes()).map_err(failed)?;
    Ok(Undone::Swappiness(before))
}

const OOM_CONTROL: &str = "memory.oom_control";

fn undo_hold(groups: &impl Groups, place: &Place) -> Result<Undone, Failed> {
    let failed = |errno| Failed(OOM_CONTROL, errno);
    let file = groups.memory(place, OOM_CONTROL).map_err(failed)?;
    Ok(if release(&file).map_err(failed)? { Undone::Released } else { Undone::Nothing })
}

/// In the groups that were made beneath since its enforcer looked last: they have the flag from their parent, and
/// nobody else would take it from them. Those up to `seen` are seen to. The one above is released before, so that
/// none is missed.
fn undo_beneath(groups: &impl Groups, place: &Place, seen: Option<u64>) -> Result<Undone, Failed> {
    let Some(seen) = seen.filter(|seen| *seen != u64::MAX) else { return Ok(Undone::Nothing) };
    let mut released = 0;
    let mut each = |file| {
        released += u32::from(release(&file)?);
        Ok(())
    };
    groups
        .beneath(place, seen, OOM_CONTROL, &mut each)
        .map_err(|errno| Failed("memory.oom_control of a group beneath", errno))?;
    Ok(if released > 0 { Undone::ReleasedBeneath(released) } else { Undone::Nothing })
}

/// Has the killer work in a group; whether it did not.
fn release(file: &impl ControlFile) -> Result<bool, Errno> {
    let mut buf = [0; 256];
    let n = read(file, &mut buf)?;
    if cgroupfs::flat::get(&buf[..n], "oom_kill_disable") != Some(1) {
        return Ok(false);
    }
    write(file, b"0")?;
    Ok(true)
}

fn thaw(
    groups: &impl Groups,
    slot: &SlotView<'_>,
    place: &Place,
    kind: FreezerKind,
) -> Result<Undone, Failed> {
    let mut buf = [0; 64];
    match kind {
        FreezerKind::V2 => {
            const FILE: &str = "cgroup.freeze";
            let failed = |errno| Failed(FILE, errno);
            let file = groups.memory(place, FILE).map_err(failed)?;
            let n = read(&file, &mut buf).map_err(failed)?;
            if buf[..n].trim_ascii() != b"1" {
                return Ok(Undone::Nothing);
            }
            write(&file, b"0").map_err(failed)?;
        }
        FreezerKind::V1Child | FreezerKind::UnifiedChild => {
            let (name, thawed, thaw): (_, &[u8], &[u8]) = match kind {
                FreezerKind::V1Child => ("freezer.state", b"THAWED", b"THAWED"),
                _ => ("cgroup.freeze", b"0", b"0"),
            };
            let failed = |errno| Failed(name, errno);
            let Some((path, inode)) = slot.freezer_place() else { return Ok(Undone::Nothing) };
            let file = match groups.frozen_child(path.as_str(), inode, name) {
                // Nothing was frozen there yet, or any more.
                Err(Errno::ENOENT | Errno::ENODEV | Errno::ESTALE) => return Ok(Undone::Nothing),
                file => file.map_err(failed)?,
            };
            let n = read(&file, &mut buf).map_err(failed)?;
            if buf[..n].trim_ascii() == thawed {
                return Ok(Undone::Nothing);
            }
            write(&file, thaw).map_err(failed)?;
        }
    }
    Ok(Undone::Thawed)
}

fn read_limit(file: &impl ControlFile, v1: bool) -> Result<Limit, Errno> {
    let mut buf = [0; 64];
    let n = read(file, &mut buf)?;
    let content = buf[..n].trim_ascii();
    match parse_u64(content) {
        Some(bytes) if v1 => Ok(Limit::from_v1(bytes)),
        Some(bytes) => Ok(Limit::Bytes(Bytes(bytes))),
        None if content == b"max" => Ok(Limit::Max),
        None => Err(Errno::EBADMSG),
    }
}

fn write_limit(file: &impl ControlFile, v1: bool, limit: Limit) -> Result<(), Errno> {
    match limit {
        Limit::Bytes(bytes) => write(file, Decimal::new(bytes.0).as_bytes()),
        Limit::Max if v1 => write(file, b"-1"),
        Limit::Max => write(file, b"max"),
    }
}

fn read(file: &impl ControlFile, buf: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match file.read(buf) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Goes on after EINTR: a raise that a signal interrupted did nothing.
fn write(file: &impl ControlFile, value: &[u8]) -> Result<(), Errno> {
    loop {
        match file.write(value) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

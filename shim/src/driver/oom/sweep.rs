//! Sweeping what ended containers left behind, through the group they were in ([`crate::core::sweep`]
//! says when).
//!
//! No limit is touched: `memory.force_empty` of the parent (v2: `memory.reclaim`), ended once a few MiB are gone
//! ([`Stopper`]; where real time is refused, by an alarm of this thread's own after a fraction of a millisecond), opens no
//! window in which a live sibling could meet a limit, and leaves nothing to undo. After each write it is seen what live
//! groups have less, and once they pay too much for what dead ones let go the sweep is over. A thread at normal priority: nobody waits
//! for it but who removes the parent, for one write.

use super::stopper::Stopper;
use crate::core::sweep::{Budget, Sweeps, Swept};
use crate::driver::{open_memory, sys};
use cgroupfs::files::{Access, ControlDir, Knob};
use cgroupfs::memory::{Memory, Version};
use cgroupfs::{Cgroup, MemoryHierarchy, flat};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The first write of a gentle sweep, and the longest. One that ends before the kernel has got to
/// reclaim (it first collects what CPUs have in batches) is followed by one of twice the time.
const SLICE: Duration = Duration::from_micros(250);
const LONGEST_SLICE: Duration = Duration::from_micros(500);

/// What one write takes: half of what dead groups have that is clean, within these bounds, as the rest would be taken from
/// live ones.
const LEAST: u64 = 512 << 10;
const MOST: u64 = 4 << 20;

/// One that is ended by what it has taken ends after this, too.
const PATIENCE: Duration = Duration::from_millis(50);

/// One in which nobody lives.
const WHOLE_SLICE: Duration = Duration::from_millis(5);

/// Between two writes, and how many a sweep has.
const PAUSE: Duration = Duration::from_millis(2);
const MOST_WRITES: u32 = 200;

/// Writes in a row that let nothing go are the last.
const MOST_FUTILE: u32 = 4;

/// With this much inactive page cache beneath it, reclaim of a group leaves anonymous memory alone
/// (`cache_trim_mode`: more than 2^12 pages).
const PLENTY_OF_CACHE: u64 = 32 << 20;

/// Groups beneath a parent that are looked at.
const MOST_GROUPS: usize = 4096;

/// The thread.
pub(super) struct Sweeper {
    exits: Option<Exits>,
    thread: Option<JoinHandle<()>>,
}

/// Tells it of exits.
#[derive(Clone)]
pub(super) struct Exits(Sender<(Arc<Path>, bool)>);

impl Exits {
    /// A container in the group at `parent` has ended, and was emptied or not. `None`: the root, which cannot be
    /// reclaimed from.
    pub(super) fn ended(&self, parent: Option<Arc<Path>>, emptied: bool) {
        if let Some(parent) = parent {
            // More than it can take: the next exit there is soon enough.
            let _ = self.0.try_send((parent, emptied));
        }
    }
}

impl Sweeper {
    pub(super) fn start(hierarchy: MemoryHierarchy) -> Sweeper {
        let (exits, queue) = bounded(1024);
        let thread = std::thread::Builder::new()
            .name("cgshim-sweep".into())
            .stack_size(128 << 10)
            .spawn(move || work(&hierarchy, &queue));
        let thread = thread
            .inspect_err(|error| log::warn!("what ended containers left is not swept: {error}"));
        Sweeper { exits: Some(Exits(exits)), thread: thread.ok() }
    }

    pub(super) fn exits(&self) -> Option<&Exits> {
        self.exits.as_ref()
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.exits = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The group that this one is in, but for the root, which cannot be reclaimed from.
fn above(hierarchy: &MemoryHierarchy, directory: &Path) -> Option<PathBuf> {
    let parent = directory.parent()?;
    let beneath = parent.starts_with(&hierarchy.mount_point) && parent != hierarchy.mount_point;
    beneath.then(|| parent.to_owned())
}

fn work(hierarchy: &MemoryHierarchy, exits: &Receiver<(Arc<Path>, bool)>) {
    let writer = sys::become_interruptible();
    let alarm = match sys::Alarm::new() {
        Ok(alarm) => alarm,
        Err(errno) => return log::warn!("nothing is swept: no timer: {errno}"),
    };
    let end = End { alarm, stopper: Stopper::start(writer) };
    let (start, mut sweeps, mut said) = (Instant::now(), Sweeps::default(), false);
    loop {
        let now = start.elapsed();
        let exit = match sweeps.deadline() {
            Some(at) => exits.recv_timeout(at.saturating_sub(now)),
            None => exits.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match exit {
            Ok((parent, emptied)) => sweeps.ended(start.elapsed(), &parent, emptied),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while let Some((parent, mut budget)) = sweeps.begin(start.elapsed()) {
            let swept = Parent::open(hierarchy, &parent).map_or_else(
                |why| {
                    if let NotSwept::Flat = why
                        && !std::mem::replace(&mut said, true)
                    {
                        log::warn!(
                            "{}: use_hierarchy is 0: what ended containers leave behind cannot be \
                             reached from here, and stays until the kernel itself needs memory",
                            parent.display()
                        );
                    }
                    Swept { gone: true, ..Swept::default() }
                },
                |mut parent| parent.sweep(&end, budget.as_mut()),
            );
            sweeps.swept(start.elapsed(), &parent, &swept, budget);
            // Dead with all that was in it: its pages are on the account of the next one up.
            if swept.gone
                && !parent.exists()
                && let Some(next) = above(hierarchy, &parent)
            {
                sweeps.ended(start.elapsed(), &next, false);
            }
        }
    }
}

/// What ends a write.
struct End {
    alarm: sys::Alarm,
    stopper: Option<Stopper>,
}

/// Why there is nothing to be done with a parent.
enum NotSwept {
    /// Gone, or not ours to write.
    Not,
    /// `use_hierarchy` is 0.
    Flat,
}

impl From<cgroupfs::Error> for NotSwept {
    fn from(_: cgroupfs::Error) -> NotSwept {
        NotSwept::Not
    }
}

/// A group that containers ended in.
struct Parent {
    group: Arc<Cgroup>,
    account: Account,
    file: Knob,
    /// By name: those that are there now.
    children: BTreeMap<String, Child>,
}

/// A group in it.
struct Child {
    group: Arc<Cgroup>,
    account: Account,
    /// Nobody was in it when it was found.
    idle: bool,
}

impl Child {
    /// A container that has ended meanwhile was emptied, or let go what it had, as it ended: no sweep took that. What
    /// nobody uses for a while, as between two runs of a service, is its.
    fn pays(&self) -> bool {
        self.idle || has_processes(&self.group, &mut MOST_GROUPS.clone())
    }
}

/// What is on a group's account.
struct Account {
    memory: Arc<dyn Memory>,
    /// v1: in usage, and not to be had by reclaim.
    kmem: Option<Knob>,
    stat: Knob,
}

impl Account {
    fn open(group: &Arc<Cgroup>) -> cgroupfs::Result<Account> {
        let dir: Arc<dyn ControlDir> = group.clone();
        let kmem = Knob::open(&dir, "memory.kmem.usage_in_bytes", Access::Read).ok();
        let stat = Knob::open(&dir, "memory.stat", Access::Read)?;
        Ok(Account { memory: open_memory(group)?, kmem, stat })
    }

    /// The sum of some lines of its `memory.stat`: of v1, and of v2.
    fn sum(&self, v1: [&str; 2], v2: [&str; 2]) -> u64 {
        let stat = self.stat.read().unwrap_or_default();
        let keys = match self.memory.version() {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        keys.iter().filter_map(|key| flat::get(&stat, key)).sum()
    }

    /// Dirty, or on its way to the disk, its children's too.
    fn to_write(&self) -> u64 {
        self.sum(["total_dirty", "total_writeback"], ["file_dirty", "file_writeback"])
    }

    /// Usage without the kernel's own; `None` once the group is gone.
    fn pages(&self) -> Option<u64> {
        let kmem = self.kmem.as_ref().and_then(|knob| knob.read_u64().ok()).unwrap_or(0);
        Some(self.memory.usage().ok()?.0.saturating_sub(kmem))
    }
}

impl Parent {
    fn open(hierarchy: &MemoryHierarchy, directory: &Path) -> Result<Parent, NotSwept> {
        let group = Arc::new(hierarchy.open(directory)?);
        let dir: Arc<dyn ControlDir> = group.clone();
        let file = match hierarchy.version {
            Version::V1 => {
                // Gone from kernels that know nothing else than 1 (5.11).
                let hierarchical = Knob::open(&dir, "memory.use_hierarchy", Access::Read);
                if hierarchical.and_then(|knob| knob.read_u64()).is_ok_and(|value| value == 0) {
                    return Err(NotSwept::Flat);
                }
                "memory.force_empty"
            }
            Version::V2 => "memory.reclaim",
        };
        let mut parent = Parent {
            account: Account::open(&group)?,
            file: Knob::open(&dir, file, Access::Write)?,
            children: BTreeMap::new(),
            group,
        };
        parent.find_children();
        Ok(parent)
    }

    /// Containers come and go meanwhile. What one of them has is not to be taken for what dead ones hold.
    fn find_children(&mut self) {
        self.children.retain(|_, child| child.account.pages().is_some());
        for name in self.group.children().unwrap_or_default() {
            if self.children.len() < MOST_GROUPS
                && !self.children.contains_key(&name)
                && let Ok(group) = self.group.child(&name).map(Arc::new)
                && let Ok(account) = Account::open(&group)
            {
                let idle = !has_processes(&group, &mut MOST_GROUPS.clone());
                self.children.insert(name, Child { group, account, idle });
            }
        }
    }

    fn sweep(&mut self, end: &End, mut budget: Option<&mut Budget>) -> Swept {
        let live = has_processes(&self.group, &mut MOST_GROUPS.clone());
        let held = self.held();
        let mut swept = Swept { held_before: held, held_after: held, live, ..Swept::default() };
        let may_lose = match &mut budget {
            _ if !live => u64::MAX,
            Some(budget) => budget.before(held),
            None => 0,
        };
        if live && self.would_swap() {
            return swept;
        }
        // What CPUs have in batches is less than containers that come and go blur `held` by.
        if held == 0 || may_lose == 0 {
            self.drain(end);
            return swept;
        }
        let live_to_write: u64 = self.children.values().map(|child| child.account.to_write()).sum();
        swept.to_write = self.account.to_write().saturating_sub(live_to_write);
        let (mut writes, mut longest) = (0, Duration::ZERO);
        let (mut slice, mut futile) = (if live { SLICE } else { WHOLE_SLICE }, 0);
        for _ in 0..MOST_WRITES {
            let before = self.lives();
            let began = Instant::now();
            let amount = match self.account.memory.version() {
                Version::V1 => "0".to_owned(),
                Version::V2 => swept.held_after.min(1 << 20).to_string(),
            };
            // EINTR: its time is up, or it has taken enough. EAGAIN: v2 got less.
            let write = || self.file.raw().write(amount.as_bytes());
            let clean = swept.held_after.saturating_sub(swept.to_write);
            let _ = match &end.stopper {
                Some(stopper) if live => end.alarm.within(PATIENCE, || {
                    stopper.within(&self.account.memory, (clean / 2).clamp(LEAST, MOST), write)
                }),
                _ => Some(end.alarm.within(slice, write)),
            };
            longest = longest.max(began.elapsed());
            writes += 1;
            swept.from_live += self.paid(&before);
            let left = self.held();
            if left >= swept.held_after {
                futile += 1;
                slice = (slice * 2).min(if live { LONGEST_SLICE } else { WHOLE_SLICE });
            } else {
                futile = 0;
            }
            swept.held_after = left;
            swept.gone = self.group.is_gone();
            swept.to_write = self.account.to_write().saturating_sub(live_to_write);
            let enough = swept.from_live >= may_lose || (live && swept.is_dear());
            if left == 0 || futile >= MOST_FUTILE || enough || swept.gone {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        if let Some(budget) = budget {
            budget.after(&swept);
        }
        log::debug!(
            "{}: {swept:?} by {writes} writes of {longest:?} at most",
            self.group.path().display()
        );
        swept
    }

    /// Has CPUs let go of what they have in batches of dead groups, their charges too, and takes nothing
    /// (`mem_cgroup_force_empty()`: `lru_add_drain_all()`, `drain_all_stock()`, and then it looks for signals).
    fn drain(&self, end: &End) {
        if let (Some(stopper), Version::V1) = (&end.stopper, self.account.memory.version()) {
            let _ = end.alarm.within(PATIENCE, || {
                stopper.within(&self.account.memory, 0, || self.file.raw().write(b"0"))
            });
        }
    }

    /// What is on the parent's account, and neither its own nor a live child's: dead ones hold it. Groups
    /// that are at work meanwhile blur it: the least of a few looks.
    fn held(&mut self) -> u64 {
        self.find_children();
        // Without `total_` it is the group's own; v2 has none, but for the root.
        let own = self.account.sum(["cache", "rss"], ["", ""]);
        let look = || {
            let all = self.account.pages().unwrap_or(0);
            let live: u64 = self.children.values().filter_map(|child| child.account.pages()).sum();
            all.saturating_sub(live).saturating_sub(own)
        };
        (0..3).map(|_| look()).min().unwrap_or(0)
    }

    fn lives(&self) -> BTreeMap<String, u64> {
        self.children
            .iter()
            .filter_map(|(name, child)| Some((name.clone(), child.account.pages()?)))
            .collect()
    }

    /// What those that live have less than before.
    fn paid(&self, before: &BTreeMap<String, u64>) -> u64 {
        let less = before.iter().filter_map(|(name, before)| {
            let child = self.children.get(name)?;
            let less = before.saturating_sub(child.account.pages()?);
            (less > 0 && child.pays()).then_some(less)
        });
        less.sum()
    }

    /// Whether a sweep might swap out what the kernel never would at that group's own limit (law 2).
    fn would_swap(&self) -> bool {
        let swap = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.swap_free());
        if swap == 0 {
            return false;
        }
        let stat = self.account.memory.stat().unwrap_or_default();
        if stat.inactive_file.is_some_and(|cache| cache.0 > PLENTY_OF_CACHE) {
            return false;
        }
        self.children
            .values()
            .filter_map(|child| child.account.memory.swap_rules().ok())
            .any(|rules| rules.reclaim_may_swap && !rules.swaps_at_limit)
    }
}

/// Whether anybody is in a group or beneath it.
fn has_processes(group: &Arc<Cgroup>, most: &mut usize) -> bool {
    if *most == 0 || group.procs().is_ok_and(|procs| !procs.is_empty()) {
        return true;
    }
    *most -= 1;
    group
        .children()
        .unwrap_or_default()
        .iter()
        .any(|name| group.child(name).is_ok_and(|child| has_processes(&Arc::new(child), most)))
}

//! What we changed in the kernel, and what we told people: written down before it is done.
//!
//! One file in the run directory, mapped into memory. It outlives a `kill -9` of its writer, being on
//! tmpfs; a reboot takes it along with the cgroups that it is about. A container has a slot of fixed
//! layout (`layout.rs`): who it is, its terms, its counters, and what of ours stands in the kernel at
//! this moment. The last is written on hot paths, by a few atomic stores each ([`Slot::begin_step`]).
//!
//! Whoever reads it ([`Reader`], the guardian, the writer's successor) sees whole records or none: each
//! part has a check of its own, and what may be rewritten has two copies. What is not whole is said to
//! be damaged, and never guessed at. A file of another layout, another boot, or of no known kind is
//! moved aside by name.

mod layout;
mod lock;
mod map;
mod reader;
mod record;
mod slot;
mod words;

pub use lock::RunDir;
pub use reader::Reader;
pub(crate) use reader::{SlotView, View};
pub use record::{
    Class, Counters, Deadline, Freeze, FreezerKind, HighMark, Identity, InFlight, OomPolicy,
    PathText, Record, Step, StepFile, Swappiness, Terms,
};
pub use slot::{Place, Slot};

use layout::header;
use map::Map;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use words::SlotWords;

/// The file's name in the run directory.
pub const FILE: &str = "journal";

/// Slots of a journal in a run directory: 48 MiB of holes. A slot that is in use takes 3 KiB.
pub const SLOTS: usize = layout::MOST_SLOTS;

/// Slots of a journal of one process's own.
const PRIVATE_SLOTS: usize = 64;

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has the run directory.
    #[error("{} is in use by {}; only one can enforce there: stop it, or choose another run directory",
            path.display(), holder(*pid))]
    Locked {
        /// The run directory.
        path: PathBuf,
        /// Who has it, if that is known.
        pid: Option<i32>,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {error}{}", path.display(), way_out(error))]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Every slot is taken.
    #[error("the journal has no room for more than {slots} containers: this one is not stepped")]
    Full {
        /// How many there are.
        slots: usize,
    },
    /// A text that has no room in a slot.
    #[error("a {what} of {len} bytes is too long for the journal, which takes {most}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The most there is room for.
        most: usize,
    },
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space there",
        _ => "",
    }
}

fn holder(pid: Option<i32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

/// Wakes the guardian when something is in flight while it sleeps: once a burst, not once a step.
#[derive(Debug)]
pub(crate) struct Bell(EventFd);

impl Bell {
    fn new() -> nix::Result<Bell> {
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(Bell)
    }

    pub(crate) fn ring(&self, map: &Map) {
        let awake = &map.words()[header::AWAKE];
        if awake.load(Ordering::SeqCst) == 0 && awake.swap(1, Ordering::SeqCst) == 0 {
            let _ = self.0.write(1);
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn take(&self) {
        let _ = self.0.read();
    }
}

/// A container that was in the journal when it was opened.
#[derive(Debug)]
pub struct Found {
    /// Its place, to go on with.
    pub slot: Arc<Slot>,
    /// What is known of it.
    pub record: Record,
    /// It was released, and its slot not free yet: nobody is to go on with it.
    pub released: bool,
    /// What of ours stood in the kernel when the journal was last written. To be undone before anything
    /// else: [`crate::guardian::restore_all`].
    pub in_flight: InFlight,
}

/// What [`Journal::open`] found.
#[derive(Debug, Default)]
pub struct Opened {
    /// Containers of the writer before us.
    pub found: Vec<Found>,
    /// For people: what was moved aside, which slots were damaged.
    pub remarks: Vec<String>,
}

/// The journal, for the one process that writes it.
#[derive(Debug)]
pub struct Journal {
    map: Arc<Map>,
    bell: Arc<Bell>,
    file: File,
    path: PathBuf,
    slots: usize,
    free: Arc<Mutex<Vec<usize>>>,
}

impl Journal {
    /// Opens the journal of a run directory, or makes it. What is there goes on to be there until the
    /// container is removed: a crash during a restart loses nothing.
    pub fn open(run_dir: &RunDir) -> Result<(Journal, Opened), JournalError> {
        let path = run_dir.path().join(FILE);
        let mut opened = Opened::default();
        if let Some(file) = existing(&path, &mut opened.remarks)? {
            let journal = Journal::on(file, &path, SLOTS)?;
            journal.take_over(&mut opened);
            return Ok((journal, opened));
        }
        // Made whole under another name: no reader sees half a header.
        let new = run_dir.path().join("journal.new");
        let failed = |what| io_error(what, &new);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&new)
            .map_err(failed("make"))?;
        prepare(&file, SLOTS).map_err(failed("make room for"))?;
        std::fs::rename(&new, &path).map_err(failed("rename"))?;
        let journal = Journal::on(file, &path, SLOTS)?;
        Ok((journal, opened))
    }

    /// A journal that no other process finds, for one that enforces without a run directory: a guardian
    /// forked by it shares it.
    pub fn private() -> Result<Journal, JournalError> {
        let path = PathBuf::from("(memory)");
        let failed = |what, errno: Errno| io_error(what, &path)(io::Error::from(errno));
        let file: File = memfd_create(c"cgshim-journal", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| failed("make", errno))?
            .into();
        prepare(&file, PRIVATE_SLOTS).map_err(io_error("make room for", &path))?;
        Journal::on(file, &path, PRIVATE_SLOTS)
    }

    fn on(file: File, path: &Path, slots: usize) -> Result<Journal, JournalError> {
        let map = Map::writable(&file, layout::file_bytes(slots)).map_err(io_error("map", path))?;
        // A guardian makes its own: it locks what it maps, and this may be mostly holes.
        map.leave_out_of_children().map_err(io_error("map", path))?;
        let words = map.words();
        words[header::WRITER].store(u64::from(std::process::id()), Ordering::Relaxed);
        words[header::AWAKE].store(0, Ordering::SeqCst);
        let bell = Bell::new().map_err(|errno| io_error("watch", path)(io::Error::from(errno)))?;
        Ok(Journal {
            map: Arc::new(map),
            bell: Arc::new(bell),
            file,
            path: path.to_path_buf(),
            slots,
            free: Arc::default(),
        })
    }

    fn take_over(&self, opened: &mut Opened) {
        let words = self.map.words();
        let used = (words[header::USED].load(Ordering::Relaxed) as usize).min(self.slots);
        words[header::USED].store(used as u64, Ordering::Relaxed);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest = words[header::NEXT_GENERATION].load(Ordering::Relaxed);
        for index in (0..used).rev() {
            let Some(slot) = SlotWords::new(words, index) else { continue };
            let generation = slot.generation();
            if generation == 0 {
                free.push(index);
                continue;
            }
            let Some(record) = slot::record(&slot, generation) else {
                opened.remarks.push(format!(
                    "{}: slot {index} is damaged; what its container is held to is read from the kernel \
                     when it is registered again",
                    self.path.display()
                ));
                slot.clear();
                free.push(index);
                continue;
            };
            newest = newest.max(generation);
            let in_flight = slot::in_flight(&slot, generation);
            if in_flight.damaged {
                opened.remarks.push(format!(
                    "{}: what was in flight for {} is damaged; see its limit",
                    self.path.display(),
                    record.identity.id.escape_debug(),
                ));
            }
            let released = slot.is_released();
            let slot = self.slot(index, generation);
            opened.found.push(Found { slot, record, released, in_flight });
        }
        opened.found.reverse();
        words[header::NEXT_GENERATION].store(newest, Ordering::Relaxed);
    }

    fn slot(&self, index: usize, generation: u64) -> Arc<Slot> {
        Arc::new(Slot {
            map: self.map.clone(),
            bell: self.bell.clone(),
            index,
            generation,
            sections: Mutex::new(()),
            free: self.free.clone(),
            removed: AtomicBool::new(false),
        })
    }

    /// Takes a slot for a container.
    ///
    /// [`JournalError::Full`] where there is none, or no room on the file system: such a container must
    /// not be stepped. [`JournalError::TooLong`] where its id or path has no room.
    pub fn insert(&self, record: &Record) -> Result<Arc<Slot>, JournalError> {
        let words = self.map.words();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match free.last() {
            Some(index) => *index,
            None => {
                let index = words[header::USED].load(Ordering::Relaxed) as usize;
                if index >= self.slots {
                    return Err(JournalError::Full { slots: self.slots });
                }
                // On a full file system touching a hole is a SIGBUS: better to be refused here.
                let at = layout::slot_at(index) as i64 * 8;
                fallocate(&self.file, FallocateFlags::empty(), at, layout::SLOT_WORDS as i64 * 8)
                    .map_err(|errno| io_error("make room in", &self.path)(errno.into()))?;
                index
            }
        };
        let slot = SlotWords::new(words, index).ok_or(JournalError::Full { slots: self.slots })?;
        slot.clear();
        let generation = words[header::NEXT_GENERATION].load(Ordering::Relaxed) + 1;
        slot::write_record(&slot, generation, record)?;
        words[header::NEXT_GENERATION].store(generation, Ordering::Relaxed);
        slot.set_generation(generation);
        if free.pop().is_none() {
            words[header::USED].store(index as u64 + 1, Ordering::Release);
        }
        Ok(self.slot(index, generation))
    }

    /// Frees a container's slot, as soon as nobody has it any more. Nobody goes on with it from now on; what
    /// of ours still stands in the kernel for it is undone all the same.
    pub fn remove(&self, slot: Arc<Slot>) {
        slot.set_released();
        slot.removed.store(true, Ordering::SeqCst);
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(self.map.words())
    }

    /// What it holds, as far as slots were used.
    #[cfg(test)]
    pub(crate) fn words(&self) -> Vec<u64> {
        let words = self.map.words();
        let used = words[header::USED].load(Ordering::SeqCst) as usize;
        words[..layout::slot_at(used)].iter().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// Holds this instead.
    #[cfg(test)]
    pub(crate) fn set_words(&self, words: &[u64]) {
        for (word, value) in self.map.words().iter().zip(words) {
            word.store(*value, Ordering::SeqCst);
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(crate) fn bytes(&self) -> u64 {
        layout::file_bytes(self.slots)
    }
}

/// The guardian's own mapping of the journal.
#[derive(Debug)]
pub(crate) struct Shared(Map);

impl Shared {
    pub(crate) fn map(file: &File, bytes: u64) -> io::Result<Shared> {
        Map::writable(file, bytes).map(Shared)
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(self.0.words())
    }

    /// The guardian sleeps, or not: asleep it is to be rung for.
    pub(crate) fn set_awake(&self, awake: bool) {
        self.0.words()[header::AWAKE].store(u64::from(awake), Ordering::SeqCst);
    }
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError {
    let path = path.to_path_buf();
    move |error| JournalError::Io { what, path: path.clone(), error }
}

/// Gives a new file its size and its header.
fn prepare(file: &File, slots: usize) -> io::Result<()> {
    file.set_len(layout::file_bytes(slots))?;
    fallocate(file, FallocateFlags::empty(), 0, layout::HEADER_WORDS as i64 * 8)
        .map_err(io::Error::from)?;
    let boot = boot_id()?;
    let mut words = [0; header::CHECK + 1];
    words[header::MAGIC] = layout::MAGIC;
    words[header::LAYOUT] = layout::LAYOUT;
    words[header::SLOT_WORDS] = layout::SLOT_WORDS as u64;
    words[header::SLOTS] = slots as u64;
    words[header::BOOT_ID..header::BOOT_ID + 2].copy_from_slice(&boot);
    words[header::CHECK] = header_check(&words);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.write_all_at(&bytes, 0)
}

fn header_check(words: &[u64; header::CHECK + 1]) -> u64 {
    let check = layout::Check::new(0, 0, 0);
    words[..header::CHECK].iter().fold(check, |check, word| check.word(*word)).done()
}

fn boot_id() -> io::Result<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let whole = u128::from_str_radix(&digits, 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok([(whole >> 64) as u64, whole as u64])
}

/// What a file is, by its header and size.
enum Kind {
    Ours,
    OtherBoot,
    OtherLayout(u64),
    Damaged(&'static str),
}

fn kind(file: &File) -> io::Result<(Kind, usize)> {
    let mut bytes = [0; (header::CHECK + 1) * 8];
    let len = file.metadata()?.len();
    if len < layout::file_bytes(0) || file.read_exact_at(&mut bytes, 0).is_err() {
        return Ok((Kind::Damaged("too short"), 0));
    }
    let mut words = [0; header::CHECK + 1];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    let slots = words[header::SLOTS] as usize;
    let kind = if words[header::MAGIC] != layout::MAGIC {
        Kind::Damaged("no journal")
    } else if words[header::LAYOUT] != layout::LAYOUT {
        Kind::OtherLayout(words[header::LAYOUT])
    } else if words[header::CHECK] != header_check(&words)
        || words[header::SLOT_WORDS] != layout::SLOT_WORDS as u64
        || slots > layout::MOST_SLOTS
    {
        Kind::Damaged("a header that does not check")
    } else if len < layout::file_bytes(slots) {
        Kind::Damaged("cut short")
    } else if words[header::BOOT_ID..header::BOOT_ID + 2] != boot_id()? {
        Kind::OtherBoot
    } else {
        Kind::Ours
    };
    Ok((kind, slots))
}

/// The journal that is there, if it can be gone on with; else it is moved aside.
fn existing(path: &Path, remarks: &mut Vec<String>) -> Result<Option<File>, JournalError> {
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let (kind, slots) = kind(&file).map_err(io_error("read", path))?;
    let (suffix, why) = match kind {
        Kind::Ours if slots == SLOTS => return Ok(Some(file)),
        Kind::OtherBoot => {
            // Its cgroups are gone with that boot.
            std::fs::remove_file(path).map_err(io_error("remove", path))?;
            return Ok(None);
        }
        Kind::Ours => ("slots".to_owned(), format!("it has {slots} slots, not {SLOTS}")),
        Kind::OtherLayout(other) => (
            format!("layout-{other}"),
            format!("it has layout {other}, and this program reads {}", layout::LAYOUT),
        ),
        Kind::Damaged(what) => ("damaged".to_owned(), format!("it is damaged: {what}")),
    };
    let aside = path.with_extension(&suffix);
    std::fs::rename(path, &aside).map_err(io_error("move aside", path))?;
    remarks.push(format!(
        "{}: {why}; moved to {}. Limits that it alone knew of are not restored from it: compare the \
         limits of containers with what their runtime declares",
        path.display(),
        aside.display()
    ));
    Ok(None)
}

#[cfg(test)]
mod tests;

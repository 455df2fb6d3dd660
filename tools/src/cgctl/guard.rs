//! What stands by while `cgctl` itself changes limits, so that a `kill -9` leaves the declared ones: a
//! journal, and a guardian process that reads it.

use cgroupfs::Result;
use cgshim::guardian::{Guardian, Kernel, restore};
use cgshim::journal::{Journal, RunDir};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where runs have a directory each. `CGSHIM_RUN_DIR` says otherwise.
const RUN_DIR: &str = "/run/cgshim";

/// The journal and the guardian of this process. To be made before any thread is, and to go after the
/// engine.
pub(super) struct Guard {
    pub(super) journal: Arc<Journal>,
    kernel: Kernel,
    guardian: Option<Guardian>,
    run_dir: Option<RunDir>,
}

impl Guard {
    /// Sets them up. Fails open, loudly: a run without a guardian is better than none.
    pub(super) fn set_up() -> Result<Guard> {
        let base = std::env::var_os("CGSHIM_RUN_DIR").map_or_else(|| RUN_DIR.into(), PathBuf::from);
        let kernel = Kernel::find()?;
        sweep(&base, &kernel);
        let (run_dir, journal) = match in_run_dir(&base) {
            Some((run_dir, journal)) => (Some(run_dir), Ok(journal)),
            None => (None, Journal::private()),
        };
        let journal = Arc::new(journal.map_err(|error| {
            let errno = nix::errno::Errno::EIO;
            log::error!("{error}");
            cgroupfs::Error::refused(cgroupfs::Op::Create, "the journal", errno)
        })?);
        let mut guard = Guard { journal, kernel, guardian: None, run_dir };
        guard.post();
        Ok(guard)
    }

    /// Posts a guardian: at first, and again where something has killed it. Readable is the descriptor
    /// once that one is gone too.
    pub(super) fn post(&mut self) -> Option<BorrowedFd<'_>> {
        if self.guardian.take().is_some() {
            log::warn!("the guardian process was killed: starting another");
        }
        let started = Guardian::start(&self.journal, self.run_dir.as_ref(), &self.kernel);
        match started {
            Ok(guardian) => self.guardian = Some(guardian),
            Err(error) => log::warn!(
                "no guardian process ({error}): a kill -9 of cgctl between a step and its restore would \
                 leave the limit lowered"
            ),
        }
        self.gone()
    }

    /// Readable once the guardian is gone.
    pub(super) fn gone(&self) -> Option<BorrowedFd<'_>> {
        self.guardian.as_ref().map(Guardian::gone)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It has the journal mapped, and its last look at it.
        self.guardian = None;
        if let Some(run_dir) = self.run_dir.take() {
            let _ = std::fs::remove_dir_all(run_dir.path());
        }
    }
}

/// A journal that outlives us and the guardian, where there is a directory in memory for it.
fn in_run_dir(base: &Path) -> Option<(RunDir, Journal)> {
    let path = base.join(format!("run-{}", std::process::id()));
    let run_dir =
        RunDir::lock(&path, Duration::ZERO).inspect_err(|error| log::debug!("{error}")).ok()?;
    let opened = match run_dir.is_in_memory() {
        true => Journal::open(&run_dir).inspect_err(|error| log::debug!("{error}")).ok(),
        false => None,
    };
    if opened.is_none() {
        let _ = std::fs::remove_dir_all(&path);
    }
    opened.map(|(journal, _)| (run_dir, journal))
}

/// Puts right what runs left that were killed together with their guardians.
fn sweep(base: &Path, kernel: &Kernel) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_run = name.to_str().is_some_and(|name| name.starts_with("run-"));
        if !is_run || RunDir::is_locked(&entry.path()) {
            continue;
        }
        let path = entry.path();
        let mut say =
            |group: &str, undone| log::warn!("left by one that was killed: {group}: {undone}");
        match restore(&path, kernel, &mut say) {
            Ok((restored, _)) if restored.failed == 0 => {
                let _ = std::fs::remove_dir_all(&path);
            }
            Ok(_) => {}
            Err(error) => log::debug!("{error}"),
        }
    }
}

//! The daemon: an engine, the containers it is told of or finds, and whoever asks about them.
//!
//! One loop ([`Daemon::run`]). It waits on the engine's epoll, where everything else is a descriptor:
//! the socket (`api::server`), signals, the spool (`spool`), the configuration's directories (`reload`),
//! the hierarchy's (`discovery`). What is asked over the socket is in `requests`, what comes and goes in
//! `containers`.

mod adoption;
pub mod config;
mod containers;
mod discovery;
mod ended;
mod history;
mod lock;
mod logging;
mod notify;
mod oom_hook;
mod privileges;
mod registering;
mod registry;
mod reload;
mod requests;
mod spool;
mod verify;
mod witness;

use crate::api::message::Feature;
use crate::api::server::{Incoming, ServeError, Server};
use crate::core::Now;
use crate::driver::oom::Identity;
use crate::driver::throttle::remove_left;
use crate::driver::{Engine, Happened, Key};
use crate::guardian::{Guardian, Kernel, restore_all};
use crate::journal::{Journal, JournalError, RunDir};
use adoption::Notes;
use cgroupfs::Bytes;
use config::{Config, ConfigError};
use discovery::Discovery;
use history::History;
use lock::{Lock, LockError};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use notify::Notify;
use oom_hook::OomHooks;
use registering::Registering;
use registry::Registry;
use reload::Watcher;
use requests::Waiting;
pub use requests::stopped_because;
use spool::Spool;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use verify::Host;

/// The descriptors of the loop, as [`Happened::Fd`] names them.
const SERVER: u64 = 1;
const SIGNALS: u64 = 2;
const SPOOL: u64 = 3;
const CONFIG: u64 = 4;
const DISCOVERY: u64 = 5;
const GUARDIAN: u64 = 6;

/// A container that has ended by then never had a threshold: most of a batch cluster's.
const YOUNG: Duration = Duration::from_secs(1);

/// How long the guardian of a daemon that was killed may still be at work.
const GUARDIAN_PATIENCE: Duration = Duration::from_secs(5);

/// How long a stop waits for what is in flight: a write that waits for the disk cannot be interrupted.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How the program is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Another configuration than [`config::CONFIG`].
    pub config: Option<PathBuf>,
    /// Where socket, spool and journal are.
    pub run_dir: PathBuf,
}

/// Why there is no daemon. Complete for a person.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The run directory cannot be used.
    #[error(
        "cannot use the run directory '{}': {why}{}", path.display(), way_out(why)
    )]
    RunDir {
        /// The directory, or what is in it.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// Another daemon has it.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The socket cannot be had.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The journal cannot be had.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The kernel's files, or the kernel.
    #[error(transparent)]
    Kernel(#[from] cgroupfs::Error),
    /// Anything else of the system's.
    #[error("cannot {what}: {why}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        why: io::Error,
    },
}

fn way_out(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::PermissionDenied => "; run it as root, or name a directory with --run-dir",
        io::ErrorKind::ReadOnlyFilesystem => "; name one on a writable file system with --run-dir",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space there",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            "; it is no directory: name one with --run-dir"
        }
        _ => "; name another with --run-dir",
    }
}

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// All of it.
pub struct Daemon {
    options: Options,
    started: Instant,
    host: Host,
    capacity: Bytes,
    config: Config,
    config_error: Option<String>,
    features: Vec<Feature>,
    engine: Engine,
    registry: Registry,
    notes: Notes,
    history: History,
    hooks: OomHooks,
    server: Server,
    spool: Spool,
    /// The spool had more than was taken.
    spool_more: bool,
    discovery: Discovery,
    watcher: Watcher,
    notify: Notify,
    signals: SignalFd,
    /// Registered, and not with the OOM watch yet.
    unwitnessed: Vec<(Key, Identity)>,
    /// Who has registered a container, and has no answer yet.
    registering: Registering,
    /// Who waits for a reclaim, by container.
    asked: HashMap<Key, Waiting>,
    /// Connections that ended, and requests, until they are handled.
    incoming: Vec<Incoming>,
    watchdog_at: Option<Instant>,
    said: String,
    stopping: bool,
    /// Goes after the engine, which leaves nothing to undo.
    guardian: Option<Guardian>,
    journal: Arc<Journal>,
    kernel: Kernel,
    run_dir: RunDir,
    _lock: Lock,
}

impl Daemon {
    /// Everything up to the point where hooks are answered.
    pub fn start(options: Options) -> Result<Daemon, StartError> {
        let config = Config::load(options.config.as_deref())?;
        let system = |what| move |why: io::Error| StartError::System { what, why };
        let errno =
            |what| move |errno: nix::errno::Errno| StartError::System { what, why: errno.into() };
        make_run_dir(&options.run_dir)?;
        let lock = Lock::take(&options.run_dir)?;
        // Blocked before there is a thread: no other takes them.
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().map_err(errno("block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags).map_err(errno("take signals"))?;
        let mut features = privileges::settle();
        let host = Host::find()?;
        // After memory is locked: the journal is mostly holes, which locking would fill.
        let kernel = Kernel::find()?;
        let run_dir = RunDir::lock(&options.run_dir, GUARDIAN_PATIENCE)?;
        if !run_dir.is_in_memory() {
            log::warn!(
                "{} is not on tmpfs: what is in flight may wait for a disk, and does not go with a reboot",
                run_dir.path().display()
            );
        }
        let (journal, opened) = Journal::open(&run_dir)?;
        for remark in opened.remarks {
            log::error!("{remark}");
        }
        restore_all(&journal, &kernel, &mut |path, undone| log::warn!("{path}: {undone}"));
        remove_left();
        let journal = Arc::new(journal);
        let guardian = Guardian::start(&journal, Some(&run_dir), &kernel)
            .map_err(system("start the guardian process"))?;
        let mut engine = Engine::new(config.workers, journal.clone())?;
        engine.arm_after(YOUNG);
        features.extend(witness::start(&mut engine, &options.run_dir, &host.hierarchy));
        let notes = Notes::open(&options.run_dir)
            .map_err(|why| StartError::RunDir { path: options.run_dir.join("containers"), why })?;
        let spool = Spool::open(&options.run_dir).map_err(|why| StartError::RunDir {
            path: options.run_dir.join(crate::api::SPOOL),
            why,
        })?;
        let server = Server::listen(&options.run_dir)?;
        let discovery = Discovery::new().map_err(system("watch the hierarchy"))?;
        let watcher =
            Watcher::new(options.config.as_deref()).map_err(system("watch the configuration"))?;
        for (fd, number) in [
            (server.fd(), SERVER),
            (signals.as_fd(), SIGNALS),
            (spool.fd(), SPOOL),
            (watcher.fd(), CONFIG),
            (discovery.fd(), DISCOVERY),
            (guardian.gone(), GUARDIAN),
        ] {
            engine.watch(fd, number)?;
        }
        let memory = cgroupfs::procfs::Meminfo::read().ok().and_then(|info| info.total);
        let notify = Notify::from_env();
        let history = History::new(&options.run_dir);
        let mut daemon = Daemon {
            started: Instant::now(),
            watchdog_at: notify.watchdog().map(|_| Instant::now()),
            options,
            host,
            capacity: memory.unwrap_or_default(),
            config,
            config_error: None,
            features,
            engine,
            registry: Registry::new(),
            notes,
            history,
            hooks: OomHooks::default(),
            server,
            spool,
            spool_more: true,
            discovery,
            watcher,
            notify,
            signals,
            unwitnessed: Vec::new(),
            registering: Registering::default(),
            asked: HashMap::new(),
            incoming: Vec::new(),
            said: String::new(),
            stopping: false,
            guardian: Some(guardian),
            journal,
            kernel,
            run_dir,
            _lock: lock,
        };
        daemon.adopt(opened.found);
        daemon.take_spool();
        daemon.discover_anew();
        Ok(daemon)
    }

    /// Serves until a signal ends it. Then every declared limit stands.
    pub fn run(mut self) -> Result<(), StartError> {
        log::info!(
            "at work on {} ({}), {} containers",
            self.host.hierarchy.mount_point.display(),
            self.host.hierarchy.version.as_str(),
            self.registry.len()
        );
        self.notify.send("READY=1");
        let mut happened = Vec::new();
        while !self.stopping {
            self.watchdog();
            self.status();
            self.witness_the_new();
            self.engine.turn(self.patience(), &mut happened)?;
            for event in happened.drain(..) {
                self.happened(event);
            }
            self.serve();
            self.answer_the_patient();
            if self.spool_more {
                self.take_spool();
            }
            if self.watcher.due(Instant::now()) {
                self.reload(false);
            }
        }
        self.stop()
    }

    /// How long the loop may sleep if nothing happens. Nothing of this is needed by an idle daemon
    /// without a watchdog.
    fn patience(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        [
            self.server.timeout(now),
            self.spool_more.then_some(Duration::ZERO),
            (!self.incoming.is_empty()).then_some(Duration::ZERO),
            self.watcher.at().map(until),
            self.registering.at().map(until),
            self.watchdog_at.map(until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Something has killed the guardian: another takes its place.
    fn post_guardian(&mut self) {
        // Reaped; and its descriptor, readable for good, wakes the loop no more.
        self.guardian = None;
        match Guardian::start(&self.journal, Some(&self.run_dir), &self.kernel) {
            Ok(guardian) => {
                log::warn!("the guardian process was killed: there is another");
                if let Err(error) = self.engine.watch(guardian.gone(), GUARDIAN) {
                    log::error!("nobody watches over the guardian process: {error}");
                }
                self.guardian = Some(guardian);
            }
            Err(error) => log::error!(
                "no guardian process: {error}; a kill of the daemon between a step and its restore leaves \
                 the limit lowered until its next start"
            ),
        }
    }

    fn happened(&mut self, event: Happened) {
        match event {
            // Served after every turn anyway.
            Happened::Fd(SERVER) => {}
            Happened::Fd(SIGNALS) => self.signalled(),
            Happened::Fd(SPOOL) => self.spool_more = true,
            Happened::Fd(CONFIG) => self.watcher.changed(Instant::now()),
            Happened::Fd(DISCOVERY) => self.discover(),
            Happened::Fd(GUARDIAN) => self.post_guardian(),
            Happened::Asked(key, _, once) => self.reclaimed(key, &once),
            event => self.of_container(event),
        }
    }

    fn signalled(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGHUP) => self.reload(true),
                Ok(signal) => {
                    log::info!("{signal}: letting {} containers be", self.registry.len());
                    self.stopping = true;
                }
                Err(_) => {}
            }
        }
    }

    fn serve(&mut self) {
        self.server.turn(&mut self.incoming);
        // Answers may bring more.
        for incoming in std::mem::take(&mut self.incoming) {
            match incoming {
                Incoming::Request(client, request) => self.request(client, request),
                Incoming::Gone(client) => self.client_gone(client),
            }
        }
    }

    fn watchdog(&mut self) {
        let now = Instant::now();
        if self.watchdog_at.is_some_and(|at| at <= now) {
            self.notify.send("WATCHDOG=1");
            self.watchdog_at = self.notify.watchdog().map(|period| now + period);
        }
    }

    /// Tells systemd how many containers there are, when that has changed.
    fn status(&mut self) {
        let wrong = if self.config_error.is_some() { "; newer configuration refused" } else { "" };
        let status = format!("STATUS={} containers{wrong}", self.registry.len());
        if status != self.said {
            self.notify.send(&status);
            self.said = status;
        }
    }

    /// Every declared limit stands when this returns.
    fn stop(mut self) -> Result<(), StartError> {
        self.notify.send("STOPPING=1");
        self.answer_all();
        // They are there when we come back.
        self.engine.keep_records();
        for id in self.registry.ids() {
            if let Some(container) = self.registry.get(&id) {
                self.engine.release(container.key);
            }
        }
        let start = Instant::now();
        let mut happened = Vec::new();
        while !self.engine.is_empty() && start.elapsed() < STOP_PATIENCE {
            self.engine.turn(Some(Duration::from_millis(50)), &mut happened)?;
            happened.clear();
        }
        // What is left is interrupted and waited for as the engine is dropped.
        log::info!("stopped");
        Ok(())
    }

    fn now(&self) -> Now {
        self.engine.now()
    }
}

/// The directory, 0755. What is there already stays as it is.
fn make_run_dir(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |why| StartError::RunDir { path: path.into(), why };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(())
}

pub use logging::filter as log_filter;

/// Starts the program's log. Once a process.
pub fn init_log() {
    logging::init();
}

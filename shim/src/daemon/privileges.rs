//! What the daemon asks the system for, and what it gives up.
//!
//! Every request may be refused (a container, a hardened unit): that is named once, shown by `cgctl caps`,
//! and costs no more than what it says (law 12).

use crate::api::message::Feature;
use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is kept: control files of delegated groups (DAC_OVERRIDE), killing what is left of a group
/// (KILL), locked memory (IPC_LOCK), real-time threads (SYS_NICE), what /proc says of
/// containers' processes where it is mounted with hidepid (SYS_PTRACE), `oom_score_adj` (SYS_RESOURCE), the
/// kernel log (SYSLOG).
const KEPT: [Capability; 7] = [
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_KILL,
    Capability::CAP_IPC_LOCK,
    Capability::CAP_SYS_NICE,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_SYSLOG,
];

/// The adjustment asked for: the kernel takes the daemon last but one.
const OOM_SCORE_ADJ: i32 = -999;

fn feature(name: &str, done: Result<String, String>) -> Feature {
    let (support, why) = match done {
        Ok(how) => ("native", how),
        Err(why) => {
            log::warn!("{name}: {why}");
            ("absent", why)
        }
    };
    Feature { name: name.into(), support: support.into(), why }
}

/// Asks for everything, then gives up what is not needed any more. Before any thread is started:
/// capabilities are a thread's.
pub(super) fn settle() -> Vec<Feature> {
    vec![
        feature("open_files", raise_open_files()),
        feature("oom_score_adj", adjust_oom_score()),
        feature("locked_memory", lock_memory()),
        feature("capabilities", drop_capabilities()),
    ]
}

/// Descriptors that a container takes: its files for the engine, and for the OOM watch.
const A_CONTAINER: u64 = 17;

/// Thousands of containers.
fn raise_open_files() -> Result<String, String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| errno.to_string())?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|errno| format!("stays at {soft}: {errno}"))?;
    }
    make_room_for_files(hard);
    Ok(format!("{hard} descriptors, enough for {} containers", hard / A_CONTAINER))
}

/// Has the kernel's table of descriptors be as large at once as thousands of containers want it, which takes it 0.5 MiB.
/// Where a process has threads the table is doubled after a grace period of RCU (`expand_fdtable()` calls
/// `synchronize_rcu()`), measured on 6.18 at 6 to 13 ms: the hooks that wait then would be the 14th, 30th, 62nd...
fn make_room_for_files(most: u64) {
    const ROOM: u64 = 64 << 10;
    let last = i32::try_from(ROOM.min(most).saturating_sub(1)).unwrap_or(0);
    // The table never shrinks. Refused, it grows when it has to.
    if let Ok(there) = fcntl(std::io::stderr(), FcntlArg::F_DUPFD_CLOEXEC(last)) {
        let _ = nix::unistd::close(there);
    }
}

fn adjust_oom_score() -> Result<String, String> {
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ.to_string())
        .map(|()| format!("{OOM_SCORE_ADJ}"))
        .map_err(|error| {
            format!("the OOM killer may take the daemon: {error}; it needs CAP_SYS_RESOURCE")
        })
}

/// What is there is made resident and stays; what comes later stays once it is touched.
fn lock_memory() -> Result<String, String> {
    let future = MlockAllFlags::MCL_FUTURE | MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT)
        .and_then(|()| mlockall(future))
        .map(|()| "all of it".into())
        .map_err(|errno| {
            format!("a page fault may come between a step and its restore: {errno}; it needs CAP_IPC_LOCK")
        })
}

fn drop_capabilities() -> Result<String, String> {
    let failed = |error: caps::errors::CapsError| format!("more are held than needed: {error}");
    let kept: CapsHashSet = KEPT.into_iter().collect();
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let held: CapsHashSet = permitted.intersection(&kept).copied().collect();
    // Without CAP_SETPCAP the bounding set stays: nothing is executed here anyway.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(failed)? {
            if !kept.contains(&capability) {
                let _ = caps::drop(None, CapSet::Bounding, capability);
            }
        }
    }
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    caps::set(None, CapSet::Effective, &held).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &held).map_err(failed)?;
    let mut names: Vec<String> = held.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(format!("kept {}", if names.is_empty() { "none".into() } else { names.join(" ") }))
}

//! Anonymous memory in huge pages: grows like `anon`, in aligned chunks with MADV_HUGEPAGE.
//!
//! In the kernel: huge page faults (`do_huge_pmd_anonymous_page`): 512 pages charged at once, direct
//! compaction, and the fallback to small pages when a charge or an allocation fails.

use log::warn;
use nix::errno::Errno;

use super::anon::Growth;
use super::args::{HUGE_PAGE, Plan};
use super::sys::Anon;
use super::{Failure, Fill};

const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Latency: to map, advise and fill one chunk.
pub(crate) fn growth(plan: &Plan, fill: Fill) -> Result<Growth, Failure> {
    match map(plan.chunk_len()) {
        Ok(_) => {}
        Err(Errno::EINVAL) => {
            let message = "thp: madvise(MADV_HUGEPAGE): EINVAL: the kernel is built without \
                           transparent huge pages";
            return Err(Failure::Failed(message.to_string()));
        }
        // Whatever else fails here fails in the run too, and is counted there.
        Err(_) => {}
    }
    if std::fs::read_to_string(ENABLED).is_ok_and(|text| text.contains("[never]")) {
        warn!("thp: {ENABLED} is never: the load runs with small pages");
    }
    Ok(Growth::new(plan, fill, map))
}

fn map(len: usize) -> nix::Result<Anon> {
    let mut memory = Anon::map_aligned(len, HUGE_PAGE as usize)?;
    memory.want_huge_pages()?;
    Ok(memory)
}

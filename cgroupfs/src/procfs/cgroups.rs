//! `/proc/cgroups`: the controllers the kernel has, and how many cgroups each holds, dying ones too.

use super::slurp;
use crate::error::Result;
use crate::flat::{lines, number, words};
use std::path::Path;

/// One controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// `memory`, `freezer`, ...
    pub name: String,
    /// The id of the v1 hierarchy it is in; 0: in none, so free for v2.
    pub hierarchy: u32,
    /// Cgroups in that hierarchy. Dying ones count: on v1 this number less the directories is how many
    /// there are (kernel-facts: dying memcgs).
    pub num_cgroups: u64,
    /// False where the kernel was booted with `cgroup_disable=`.
    pub enabled: bool,
}

/// The controllers of this kernel. Source: `proc_cgroupstats_show()`, cgroups(7). Recent
/// kernels leave out controllers that have no v1 files (`memory` with `CONFIG_MEMCG_V1` off).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Controllers {
    /// In file order.
    pub controllers: Vec<Controller>,
}

impl Controllers {
    /// Reads `/proc/cgroups`.
    ///
    /// # Errors
    /// `Absent` where the kernel has no v1 cgroups; `Refused` with the errno otherwise.
    pub fn read() -> Result<Controllers> {
        slurp(Path::new("/proc/cgroups"), "the kernel has no v1 cgroups")
            .map(|content| Controllers::parse(&content))
    }

    /// Takes the lines of four columns; comments and others are skipped.
    pub fn parse(content: &[u8]) -> Controllers {
        Controllers { controllers: lines(content).filter_map(controller).collect() }
    }

    /// The controller of that name.
    pub fn get(&self, name: &str) -> Option<&Controller> {
        self.controllers.iter().find(|controller| controller.name == name)
    }
}

/// `memory 4 15 1`, separated by tabs.
fn controller(line: &[u8]) -> Option<Controller> {
    let mut words = words(line);
    let name = words.next().filter(|name| !name.starts_with(b"#"))?;
    let name = std::str::from_utf8(name).ok()?.to_string();
    let mut next = || number(words.next()?);
    let (hierarchy, num_cgroups, enabled) = (next()?, next()?, next()?);
    let hierarchy = u32::try_from(hierarchy).ok()?;
    words.next().is_none().then_some(Controller {
        name,
        hierarchy,
        num_cgroups,
        enabled: enabled != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use proptest::prelude::*;

    #[test]
    fn the_memory_controller_of_a_v1_host_has_a_hierarchy_and_a_count() {
        let controllers = Controllers::parse(&samples::read("proc/host-6.18/cgroups"));
        assert_eq!(controllers.controllers.len(), 12);
        let memory = controllers.get("memory").unwrap();
        assert_eq!(memory.hierarchy, 4);
        assert!(memory.num_cgroups > 1 && memory.enabled);
        assert_eq!(controllers.get("hugetlb").unwrap().hierarchy, 0);
        assert_eq!(controllers.get("no"), None);
    }

    #[test]
    fn a_disabled_controller_says_so() {
        let controllers = Controllers::parse(b"#subsys_name\thierarchy\nmemory\t0\t1\t0\n");
        assert!(!controllers.get("memory").unwrap().enabled);
    }

    proptest! {
        #[test]
        fn a_mutated_sample_never_panics(
            content in samples::mutated("proc/host-6.18/cgroups"),
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let count = Controllers::parse(&content).controllers.len();
            prop_assert!(count <= lines(&content).count());
            Controllers::parse(&bytes);
        }
    }
}

//! Class and request of a container without an API server: Kubernetes writes both into what every
//! runtime passes on, the OOM score adjustment and the cgroup path.

use super::terms::{Class, Wishes};
use cgroupfs::Bytes;

/// The kubelet's adjustment for Guaranteed containers (`pkg/kubelet/qos/policy.go`); lower ones are of
/// the node's own services.
const GUARANTEED: i32 = -997;

/// And for BestEffort ones.
const BEST_EFFORT: i32 = 1000;

/// The least it gives Burstable ones (`1000 + guaranteedOOMScoreAdj`, at least 3).
const LEAST_BURSTABLE: i32 = 3;

/// What the adjustment and the path say. The path wins where both give a class: the kubelet made it,
/// while the adjustment may come from an image's own settings.
///
/// `request ≈ (1000 − adj) / 1000 × node capacity`, as the kubelet computes the adjustment from it:
/// exact to a thousandth of the node. For Guaranteed containers it is the limit, which the caller has.
pub fn from_runtime(path: &str, oom_score_adj: Option<i32>, capacity: Bytes) -> Wishes {
    let class = class_of_path(path).or(match oom_score_adj {
        Some(adj) if adj <= GUARANTEED => Some(Class::Guaranteed),
        Some(BEST_EFFORT) => Some(Class::BestEffort),
        Some(adj) if (LEAST_BURSTABLE..BEST_EFFORT).contains(&adj) => Some(Class::Burstable),
        // 0 is every container's that nobody gave one: it says nothing.
        _ => None,
    });
    let request = match (class, oom_score_adj) {
        (Some(Class::Burstable), Some(adj)) if (LEAST_BURSTABLE..BEST_EFFORT).contains(&adj) => {
            let share = u64::from(adj.unsigned_abs());
            Some(capacity.scale(1000 - share, 1000))
        }
        _ => None,
    };
    Wishes { class, request, ..Wishes::default() }
}

/// `/kubepods/besteffort/pod…`, `/kubepods.slice/kubepods-burstable.slice/…`, and pods right under
/// kubepods, which are Guaranteed. `None` outside of kubepods.
fn class_of_path(path: &str) -> Option<Class> {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    names.find(|name| matches!(*name, "kubepods" | "kubepods.slice"))?;
    match names.next()? {
        "besteffort" | "kubepods-besteffort.slice" => Some(Class::BestEffort),
        "burstable" | "kubepods-burstable.slice" => Some(Class::Burstable),
        name if name.starts_with("pod") || name.starts_with("kubepods-pod") => {
            Some(Class::Guaranteed)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Bytes = Bytes::mib(10_000);

    #[test]
    fn the_adjustment_gives_class_and_request() {
        for (adj, class, request) in [
            (Some(-997), Some(Class::Guaranteed), None),
            (Some(-999), Some(Class::Guaranteed), None),
            (Some(1000), Some(Class::BestEffort), None),
            (Some(900), Some(Class::Burstable), Some(Bytes::mib(1000))),
            (Some(3), Some(Class::Burstable), Some(Bytes::mib(9970))),
            (Some(0), None, None),
            (Some(-500), None, None),
            (Some(i32::MIN), Some(Class::Guaranteed), None),
            (Some(i32::MAX), None, None),
            (None, None, None),
        ] {
            let wishes = from_runtime("/docker/x", adj, NODE);
            assert_eq!((wishes.class, wishes.request), (class, request), "{adj:?}");
        }
    }

    #[test]
    fn the_path_gives_the_class_whatever_the_cgroup_driver() {
        for (path, class) in [
            ("/kubepods/besteffort/pod1/c", Some(Class::BestEffort)),
            ("/kubepods/burstable/pod1/c", Some(Class::Burstable)),
            ("/kubepods/pod1/c", Some(Class::Guaranteed)),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/c.scope",
                Some(Class::BestEffort),
            ),
            ("/kubepods.slice/kubepods-pod1.slice/c.scope", Some(Class::Guaranteed)),
            ("/kind/kubepods/burstable/pod1/c", Some(Class::Burstable)),
            ("/kubepods", None),
            ("/docker/3f2a", None),
        ] {
            assert_eq!(from_runtime(path, None, NODE).class, class, "{path}");
        }
        // The path wins.
        assert_eq!(
            from_runtime("/kubepods/besteffort/pod1/c", Some(-997), NODE).class,
            Some(Class::BestEffort)
        );
    }
}

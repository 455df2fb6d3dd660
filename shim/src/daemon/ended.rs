//! What is remembered of a container that has ended: as a thousand of them are (law 10), in little room.

use crate::api::message::{Reclaim, Throttled, View};
use std::sync::Arc;

/// One of them.
#[derive(Debug)]
pub(super) struct Ended {
    id: Box<str>,
    generation: u64,
    /// Where its group was: the directory that it was in, and its name there if that is not its id.
    above: Arc<str>,
    name: Option<Box<str>>,
    inode: u64,
    pid: Option<i32>,
    since_ms: u64,
    ended_ms: Option<u64>,
    /// `None` where nothing was done.
    reclaim: Option<Box<Reclaim>>,
    throttled: Option<Box<Throttled>>,
    oom_kills: u64,
    kind: Arc<Kind>,
}

/// What it mostly has in common with the one before it.
#[derive(Debug, PartialEq)]
struct Kind {
    source: String,
    runtime: Option<String>,
    class: String,
    request_bytes: Option<u64>,
    limit_bytes: Option<u64>,
    high_bytes: Option<u64>,
    wmark_high_bytes: Option<u64>,
    wmark_low_bytes: Option<u64>,
    throttle: bool,
    oom: String,
    way_out: String,
    state: String,
    refused: Vec<String>,
}

impl Ended {
    /// Of a container as it was last seen. `before`: the one that ended before it.
    pub(super) fn new(view: View, before: Option<&Ended>) -> Ended {
        let kind = Kind {
            source: view.source,
            runtime: view.runtime,
            class: view.class,
            request_bytes: view.request_bytes,
            limit_bytes: view.limit_bytes,
            high_bytes: view.high_bytes,
            wmark_high_bytes: view.wmark_high_bytes,
            wmark_low_bytes: view.wmark_low_bytes,
            throttle: view.throttle,
            oom: view.oom,
            way_out: view.way_out,
            state: view.state,
            refused: view.refused,
        };
        let (above, name) = view.cgroup.rsplit_once('/').unwrap_or(("", &view.cgroup));
        let name = (name != view.id).then(|| name.into());
        let above = match before {
            Some(before) if *before.above == *above => before.above.clone(),
            _ => above.into(),
        };
        let same = before.filter(|before| *before.kind == kind).map(|before| before.kind.clone());
        Ended {
            id: view.id.into(),
            generation: view.generation,
            above,
            name,
            inode: view.inode,
            pid: view.pid,
            since_ms: view.since_ms,
            ended_ms: view.ended_ms,
            reclaim: (view.reclaim != Reclaim::default()).then(|| Box::new(view.reclaim)),
            throttled: view.throttled.map(Box::new),
            oom_kills: view.oom_kills,
            kind: same.unwrap_or_else(|| Arc::new(kind)),
        }
    }

    /// Whether it is this registration of this id.
    pub(super) fn is(&self, id: &str, generation: u64) -> bool {
        self.generation == generation && *self.id == *id
    }

    /// So many tasks of it were killed that nobody had told of.
    pub(super) fn count_kills(&mut self, kills: u64) {
        self.oom_kills += kills;
    }

    /// As everybody sees it.
    pub(super) fn view(&self) -> View {
        let kind = &*self.kind;
        View {
            id: self.id.to_string(),
            generation: self.generation,
            cgroup: format!("{}/{}", self.above, self.name.as_ref().unwrap_or(&self.id)),
            inode: self.inode,
            pid: self.pid,
            source: kind.source.clone(),
            runtime: kind.runtime.clone(),
            class: kind.class.clone(),
            request_bytes: kind.request_bytes,
            usage_bytes: None,
            limit_bytes: kind.limit_bytes,
            high_bytes: kind.high_bytes,
            wmark_high_bytes: kind.wmark_high_bytes,
            wmark_low_bytes: kind.wmark_low_bytes,
            throttle: kind.throttle,
            oom: kind.oom.clone(),
            way_out: kind.way_out.clone(),
            state: kind.state.clone(),
            refused: kind.refused.clone(),
            since_ms: self.since_ms,
            ended_ms: self.ended_ms,
            reclaim: self.reclaim.as_deref().copied().unwrap_or_default(),
            oom_kills: self.oom_kills,
            throttled: self.throttled.as_deref().copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(id: &str) -> View {
        View {
            id: id.into(),
            generation: 7,
            cgroup: format!("/sys/fs/cgroup/memory/{id}"),
            inode: 8,
            pid: Some(9),
            source: "hook".into(),
            runtime: Some("runc".into()),
            class: "burstable".into(),
            request_bytes: Some(1),
            usage_bytes: None,
            limit_bytes: Some(2),
            high_bytes: Some(3),
            wmark_high_bytes: Some(4),
            wmark_low_bytes: Some(5),
            throttle: true,
            oom: "kill".into(),
            way_out: "never".into(),
            state: "ended".into(),
            refused: vec!["high".into()],
            since_ms: 10,
            ended_ms: Some(11),
            reclaim: Reclaim { rounds: 12, ..Reclaim::default() },
            oom_kills: 13,
            throttled: Some(Throttled { pulses: 14, ..Throttled::default() }),
        }
    }

    #[test]
    fn nothing_of_it_is_lost() {
        let before = Ended::new(view("a"), None);
        for seen in [
            view("b"),
            View { throttled: None, reclaim: Reclaim::default(), ..view("c") },
            View { oom: "group".into(), ..view("d") },
            View { cgroup: "/sys/fs/cgroup/kubepods/poda/e".into(), ..view("e") },
            View { cgroup: "/sys/fs/cgroup/docker-f.scope".into(), ..view("f") },
        ] {
            assert_eq!(Ended::new(seen.clone(), Some(&before)).view(), seen);
        }
    }

    #[test]
    fn it_takes_little_room() {
        let before = Ended::new(view("a"), None);
        let next = Ended::new(view("b"), Some(&before));
        assert!(Arc::ptr_eq(&next.kind, &before.kind) && Arc::ptr_eq(&next.above, &before.above));
        assert_eq!(next.name, None);
        assert!(std::mem::size_of::<Ended>() <= 128, "{}", std::mem::size_of::<Ended>());
    }
}

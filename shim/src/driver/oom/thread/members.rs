//! Containers come and go: their groups, and those that they are in, which are watched once for all of them.

use super::{
    ABOVE, Above, AtLimit, INIT, OWN, SHIFT, SLOW_POLL, Told, UNKNOWN_LEVEL, Watched, Watcher,
};
use crate::core::oom::Event;
use crate::driver::oom::ToWatch;
use crate::driver::oom::group::{Group, open_level};
use crate::driver::oom::log::Log;
use crate::driver::sys;
use cgroupfs::Result;
use cgroupfs::events::Notification;
use cgroupfs::files::ControlDir;
use cgroupfs::memory::Version;
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

impl Watcher {
    pub(super) fn watch(
        &mut self,
        key: u64,
        ToWatch { group, memory, mut identity, deeds }: ToWatch,
        tell: &mut impl FnMut(Told),
    ) -> Result<()> {
        let directory = group.path().to_path_buf();
        let (mut levels, mut ids) = (Vec::new(), Vec::new());
        let (mut looks, mut quiet_since) = (Vec::new(), vec![self.start.elapsed()]);
        let ancestors = self.host.ancestors(&directory);
        let mut parent = ancestors.first().map(|path| Arc::from(path.as_path()));
        for (n, path) in ancestors.into_iter().enumerate() {
            // A group above that cannot be read (a delegated subtree) ends the chain.
            let Ok(id) = self.share(&path) else { break };
            if let Some(above) = self.above.get_mut(&id) {
                above.users.insert((key, n + 1));
                if n == 0 {
                    parent = Some(above.directory.clone());
                }
                let look = above.level.look();
                if above.looked.hits() != look.hits() {
                    above.quiet_since = self.start.elapsed();
                }
                above.looked = look;
                looks.push(look);
                quiet_since.push(above.quiet_since);
                levels.push((path, above.level.clone()));
                ids.push(id);
            }
        }
        let path = self.host.path(&directory);
        let mut group = Group::open(group, memory, levels, path, deeds)?;
        if let Some(oom) = &group.oom {
            self.listen(oom.as_fd(), OWN, key)?;
        }
        let watch = match &mut self.modified {
            Some(modified) => modified.watch(&group.group, "memory.events", key << 1).ok(),
            None => None,
        };
        let recorded =
            self.recorded.remove(&(directory.display().to_string(), group.group.inode()));
        let told_of = identity.oom_kill;
        identity.oom_kill = identity.oom_kill.max(recorded);
        let since = identity.since.map(|since| since.saturating_duration_since(self.start));
        let subject = group.subject(&identity, since, &self.host, quiet_since, looks)?;
        // Registering its eventfd signals then, which does not say whose limit it is.
        let under_oom = group.is_under_oom();
        if let (true, Some(oom)) = (under_oom, &group.oom) {
            oom.take();
        }
        // Whoever was before us wrote them down, and ended before it could tell.
        if let (Some(told_of), Some(now)) = (told_of, subject.oom_kill)
            && now > told_of
        {
            tell(Told::Killed(key, now - told_of, group.usage(), Some(now)));
        }
        let own = subject.levels.first().copied().unwrap_or_default();
        let ooms = (own.oom_local.unwrap_or(0), own.oom.unwrap_or(0));
        let watched = Watched {
            group,
            above: ids,
            parent,
            watch,
            ooms,
            full: AtLimit::new(own.failcnt.unwrap_or(0)),
            gone: false,
            unheard: 0,
            ended: false,
        };
        self.groups.insert(key, Box::new(watched));
        self.queue.push_back(Event::Watch(key, Box::new(subject)));
        if let Some(pid) = identity.init {
            self.init(key, pid);
        }
        if under_oom {
            self.queue.push_back(Event::Signal(key, UNKNOWN_LEVEL));
        }
        // Between the books' first page and the first event.
        self.look(key, false);
        if self.slow.is_none()
            && !matches!(self.log, Some(Log::Kmsg(..)))
            && self.host.hierarchy.version == Version::V1
        {
            self.slow = Some(self.start.elapsed() + SLOW_POLL);
        }
        Ok(())
    }

    /// The group at `directory`, opened and listened to once.
    fn share(&mut self, directory: &Path) -> Result<u64> {
        let known = self
            .above
            .iter()
            .find(|(_, above)| *above.directory == *directory && !above.group.is_gone());
        if let Some((id, _)) = known {
            return Ok(*id);
        }
        let (group, level) = open_level(&self.host, directory)?;
        self.next_above += 1;
        let id = self.next_above;
        let (mut oom, mut watch) = (None, None);
        match &mut self.modified {
            None => oom = Notification::oom(&group).ok(),
            Some(modified) => {
                watch = modified.watch(&group, "memory.events.local", id << 1 | 1).ok();
            }
        }
        if let Some(oom) = &oom {
            self.listen(oom.as_fd(), ABOVE, id)?;
        }
        let looked = level.look();
        let above = Above {
            directory: Arc::from(directory),
            group,
            level: Arc::new(level),
            oom,
            watch,
            oom_local: looked.oom_local.unwrap_or(0),
            users: BTreeSet::new(),
            looked,
            quiet_since: self.start.elapsed(),
        };
        self.above.insert(id, above);
        Ok(id)
    }

    pub(super) fn init(&mut self, key: u64, pid: i32) {
        let Some(watched) = self.groups.get_mut(&key) else { return };
        self.queue.push_back(Event::Init(key, pid));
        watched.group.has_init(pid);
        match sys::pidfd_open(pid) {
            Ok(pidfd) => {
                let added = self
                    .epoll
                    .add(pidfd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, INIT << SHIFT | key));
                if added.is_ok() {
                    if let Some(emptier) = &self.emptier {
                        emptier.expect(pidfd.as_fd());
                        watched.group.prepare_to_empty();
                    }
                    watched.group.pidfd = Some(pidfd);
                }
            }
            Err(Errno::ESRCH) => {
                watched.group.init_is_gone();
                self.look(key, false);
                self.queue.push_back(Event::InitExited(key));
            }
            // Before 5.3: whether it survived stays unknown.
            Err(errno) => log::debug!("pidfd of {pid}: {errno}"),
        }
    }

    pub(super) fn drop_group(&mut self, key: u64) {
        let above = match self.groups.remove(&key) {
            Some(watched) => {
                if let (Some(modified), Some(watch)) = (&mut self.modified, &watched.watch) {
                    modified.forget(watch);
                }
                watched.above
            }
            None => self.above.keys().copied().collect(),
        };
        for id in above {
            let Some(shared) = self.above.get_mut(&id) else { continue };
            shared.users.retain(|(user, _)| *user != key);
            if shared.users.is_empty()
                && let Some(shared) = self.above.remove(&id)
                && let (Some(modified), Some(watch)) = (&mut self.modified, &shared.watch)
            {
                modified.forget(watch);
            }
        }
        if self.groups.is_empty() {
            self.slow = None;
        }
    }
}

//! The trees: mkdir, rmdir, dying groups.

use crate::group::{Counter, Counts, Group, GroupId, Hierarchy, MemoryEvents};
use crate::host::State;
use crate::lru::Lru;
use crate::mutation::Mutation;
use crate::parse::no_limit;
use nix::errno::Errno;
use std::path::PathBuf;

impl State {
    pub(crate) fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0]
    }

    pub(crate) fn group_mut(&mut self, id: GroupId) -> &mut Group {
        &mut self.groups[id.0]
    }

    pub(crate) fn new_group(
        &mut self,
        hierarchy: Hierarchy,
        parent: Option<GroupId>,
        name: &str,
    ) -> GroupId {
        let id = GroupId(self.groups.len());
        let none = no_limit(self.config.page_size);
        let counter = Counter { usage: 0, limit: none, peak: 0, failcnt: 0 };
        let base = match hierarchy {
            Hierarchy::Memory => PathBuf::from("/model/memory"),
            Hierarchy::Freezer => PathBuf::from("/model/freezer"),
        };
        let (path, use_hierarchy, swappiness, oom_kill_disable) = match parent {
            None => (base, self.config.use_hierarchy, 60, false),
            Some(parent) => {
                let copied = !self.broken(Mutation::FlagIsNotCopied);
                let parent = self.group(parent);
                (
                    parent.path.join(name),
                    parent.use_hierarchy,
                    parent.swappiness,
                    parent.oom_kill_disable && copied,
                )
            }
        };
        self.groups.push(Group {
            path,
            name: name.to_owned(),
            hierarchy,
            parent,
            children: Vec::new(),
            removed: false,
            freed: false,
            active: 0,
            lru: Lru::default(),
            kernel: 0,
            memory: counter,
            memsw: counter,
            swap: counter,
            stock: vec![0; self.config.cpus],
            page_events: vec![0; self.config.cpus],
            counts: Counts::default(),
            registrations: Vec::new(),
            use_hierarchy,
            swappiness,
            oom_kill_disable,
            under_oom: false,
            oom_kill: 0,
            high: none,
            low: 0,
            min: 0,
            oom_group: false,
            events: MemoryEvents::default(),
            events_local: MemoryEvents::default(),
            subtree_memory: parent.is_none(),
            frozen_at: None,
        });
        if let Some(parent) = parent {
            self.group_mut(parent).children.push(id);
        }
        id
    }

    /// Makes a child group (`mem_cgroup_css_alloc`). ENOMEM when the ids are spent, by living and
    /// dying groups; EEXIST; ENODEV under a removed group.
    pub fn mkdir(&mut self, parent: GroupId, name: &str) -> Result<GroupId, Errno> {
        if self.group(parent).removed {
            return Err(Errno::ENODEV);
        }
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Errno::EINVAL);
        }
        if self.child(parent, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let hierarchy = self.group(parent).hierarchy;
        let ids = self.groups.iter().filter(|group| !group.freed).count();
        if hierarchy == Hierarchy::Memory && ids >= self.config.ids {
            return Err(Errno::ENOMEM);
        }
        Ok(self.new_group(hierarchy, Some(parent), name))
    }

    /// The living child of that name.
    pub fn child(&self, parent: GroupId, name: &str) -> Option<GroupId> {
        let children = &self.group(parent).children;
        children.iter().copied().find(|id| {
            let child = self.group(*id);
            !child.removed && child.name == name
        })
    }

    /// Removes a group (`cgroup_rmdir`). EBUSY with tasks or living children, and while a write to one
    /// of its files is in flight: there the kernel's rmdir waits, with `cgroup_mutex` held. Kernel
    /// memory goes to the parent; page cache, shared memory and swap pin it: it is dying.
    pub fn rmdir(&mut self, id: GroupId) -> Result<(), Errno> {
        let group = self.group(id);
        if group.removed {
            return Err(Errno::ENOENT);
        }
        let living = group.children.iter().any(|child| !self.group(*child).removed);
        let active = group.active > 0 && !self.broken(Mutation::RmdirIgnoresWrites);
        let tasks = self.populated(id, false) && !self.broken(Mutation::RmdirIgnoresTasks);
        if group.parent.is_none() || active || living || tasks {
            return Err(Errno::EBUSY);
        }
        self.drain_stock(id);
        self.group_mut(id).removed = true;
        let kernel = std::mem::take(&mut self.group_mut(id).kernel);
        if let Some(parent) = self.group(id).parent {
            // memcg_reparent_objcgs: the parent's counters hold it already where they are hierarchical.
            let moves = self.counter_parent(id).is_none();
            self.uncharge_one(id, kernel);
            self.group_mut(parent).kernel += kernel;
            if moves {
                self.charge_anyway(parent, kernel);
            }
            for task in &mut self.tasks {
                if let Some(pages) = task.owned.remove(&id) {
                    let at = task.owned.entry(parent).or_default();
                    at.kernel += pages.kernel;
                }
            }
        }
        if self.broken(Mutation::RemovalTakesCache) {
            let cache = std::mem::take(&mut self.group_mut(id).lru.inactive_file);
            self.uncharge(id, cache, false);
        }
        let mut waiting: Vec<_> = self.group_mut(id).registrations.drain(..).collect();
        if self.broken(Mutation::RemovalIsNotTold) {
            waiting.clear();
        }
        for registration in waiting {
            self.signal(registration.eventfd);
        }
        self.free_if_empty(id);
        Ok(())
    }

    /// Lets a dying group go once nothing pins it.
    pub(crate) fn free_if_empty(&mut self, id: GroupId) {
        let group = self.group(id);
        let pinned = group.charged() + group.lru.swapped() > 0
            || group.children.iter().any(|child| !self.group(*child).freed);
        if !group.removed || group.freed || pinned {
            return;
        }
        self.group_mut(id).freed = true;
        if let Some(parent) = self.group(id).parent {
            self.group_mut(parent).children.retain(|child| *child != id);
            self.free_if_empty(parent);
        }
    }

    /// Removed groups that pages still pin.
    pub fn dying(&self) -> usize {
        self.groups.iter().filter(|group| group.removed && !group.freed).count()
    }

    /// The group and all below it, dying ones included.
    pub(crate) fn subtree(&self, root: GroupId) -> Vec<GroupId> {
        let mut all = vec![root];
        let mut next = 0;
        while next < all.len() {
            all.extend(self.group(all[next]).children.iter().copied());
            next += 1;
        }
        all
    }

    /// Whether a task is in it (or, with `deep`, below it).
    pub(crate) fn populated(&self, id: GroupId, deep: bool) -> bool {
        let groups = if deep { self.subtree(id) } else { vec![id] };
        self.tasks.iter().any(|task| {
            !task.dead() && (groups.contains(&task.memory) || groups.contains(&task.freezer))
        })
    }
}

//! v1 event registrations: usage thresholds and OOM, by eventfd (`memcg_write_event_control`).

use crate::group::GroupId;
use crate::host::State;
use crate::mutation::Mutation;
use crate::parse;
use nix::errno::Errno;

/// `THRESHOLDS_EVENTS_TARGET`: page events on one CPU between two looks at the thresholds.
pub(crate) const EVENTS_TARGET: u64 = 128;

/// A model eventfd; the number is what is written to `cgroup.event_control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventFd(pub i32);

/// What an eventfd is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Usage at or above so many pages, when last looked at: `above`.
    Threshold {
        pages: u64,
        above: bool,
    },
    Oom,
    /// A control file that is written, or changes by itself (inotify IN_MODIFY).
    File(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Registration {
    pub(crate) eventfd: EventFd,
    pub(crate) watched: Watched,
}

impl State {
    /// A new eventfd.
    pub fn eventfd(&mut self) -> EventFd {
        let eventfd = EventFd(1000 + i32::try_from(self.signals.len()).unwrap_or(i32::MAX - 1000));
        self.signals.push(0);
        eventfd
    }

    /// Signals since the last call.
    pub fn take_signals(&mut self, eventfd: EventFd) -> u64 {
        self.slot(eventfd).map_or(0, std::mem::take)
    }

    /// Closes an eventfd, which unregisters it.
    pub fn close(&mut self, eventfd: EventFd) {
        for group in &mut self.groups {
            group.registrations.retain(|registration| registration.eventfd != eventfd);
        }
    }

    /// A descriptor of a control file, as a registration names it.
    pub fn control_fd(&mut self, group: GroupId, file: &'static str) -> i32 {
        self.control_fds.push((group, file));
        1_000_000 + i32::try_from(self.control_fds.len() - 1).unwrap_or(0)
    }

    /// An eventfd that stands for an inotify watch of a control file (IN_MODIFY).
    pub fn watch_file(&mut self, group: GroupId, file: &'static str, eventfd: EventFd) {
        let registration = Registration { eventfd, watched: Watched::File(file) };
        self.group_mut(group).registrations.push(registration);
    }

    /// `fsnotify_modify` after a write, `cgroup_file_notify` of a file that changes by itself.
    pub(crate) fn file_modified(&mut self, id: GroupId, file: &str) {
        let told: Vec<_> = self
            .group(id)
            .registrations
            .iter()
            .filter(|to| matches!(to.watched, Watched::File(name) if name == file))
            .map(|to| to.eventfd)
            .collect();
        for eventfd in told {
            self.signal(eventfd);
        }
    }

    fn slot(&mut self, eventfd: EventFd) -> Option<&mut u64> {
        let index = usize::try_from(eventfd.0.checked_sub(1000)?).ok()?;
        self.signals.get_mut(index)
    }

    pub(crate) fn signal(&mut self, eventfd: EventFd) {
        if let Some(slot) = self.slot(eventfd) {
            *slot += 1;
        }
    }

    /// `"<eventfd> <fd> [arguments]"`. Nothing is signalled for a threshold that is passed already; an
    /// OOM registration is told at once of a group that is under OOM.
    pub(crate) fn register(&mut self, id: GroupId, line: &str) -> Result<(), Errno> {
        let mut words = line.split_ascii_whitespace();
        let mut number = || -> Result<i32, Errno> {
            words.next().and_then(|word| word.parse().ok()).ok_or(Errno::EINVAL)
        };
        let (eventfd, fd) = (EventFd(number()?), number()?);
        if self.slot(eventfd).is_none() {
            return Err(Errno::EBADF);
        }
        let index = fd.checked_sub(1_000_000).and_then(|index| usize::try_from(index).ok());
        let watched = index.and_then(|index| self.control_fds.get(index)).copied();
        let (watched, file) = watched.ok_or(Errno::EBADF)?;
        if watched != id {
            return Err(Errno::EINVAL);
        }
        let page_size = self.config.page_size;
        let watched = match file {
            "memory.usage_in_bytes" => {
                let pages = parse::pages(words.next().unwrap_or_default(), "-1", page_size)?;
                let above = self.group(id).memory.usage >= pages;
                Watched::Threshold { pages, above }
            }
            "memory.oom_control" => Watched::Oom,
            _ => return Err(Errno::EINVAL),
        };
        self.group_mut(id).registrations.push(Registration { eventfd, watched });
        let past = matches!(watched, Watched::Threshold { above: true, .. });
        if past && self.broken(Mutation::ThresholdTellsAtRegistration) {
            self.signal(eventfd);
        }
        let tells = !self.broken(Mutation::UnderOomIsNotTold);
        if watched == Watched::Oom && tells && self.group(id).under_oom {
            self.signal(eventfd);
        }
        Ok(())
    }

    /// Pages came or went on a CPU; every 128 the thresholds up to the root are looked at
    /// (`memcg_check_events`). Kernel memory does not come here.
    pub(crate) fn page_event(&mut self, id: GroupId, cpu: usize, pages: u64) {
        let seldom = self.broken(Mutation::ThresholdsAreSeldomLookedAt);
        let target = if seldom { 64 * EVENTS_TARGET } else { EVENTS_TARGET };
        let events = &mut self.group_mut(id).page_events[cpu];
        *events += pages;
        if *events < target {
            return;
        }
        *events %= target;
        let up_only = self.broken(Mutation::ThresholdTellsUpOnly);
        let always = self.broken(Mutation::ThresholdTellsAlways);
        for id in self.chain(id) {
            let mut told = Vec::new();
            let group = self.group_mut(id);
            let usage = group.memory.usage;
            for registration in &mut group.registrations {
                if let Watched::Threshold { pages, above } = &mut registration.watched
                    && (*above != (usage >= *pages) || always)
                {
                    *above = usage >= *pages;
                    if *above || !up_only {
                        told.push(registration.eventfd);
                    }
                }
            }
            for eventfd in told {
                self.signal(eventfd);
            }
        }
    }
}

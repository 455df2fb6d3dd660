//! What every claim starts from.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use cgroupfs_model::{Actor, Config, GroupId, Hierarchy, Host, Kind, Load, TaskId, Via};
use nix::errno::Errno;

/// Pages of so many MiB.
pub const fn mib(n: u64) -> u64 {
    n * 256
}

/// A host with one group under the root and one task in it that does nothing.
pub struct Bed {
    pub host: Host,
    pub group: GroupId,
    pub task: TaskId,
}

pub fn bed(config: Config) -> Bed {
    let host = Host::new(config);
    let root = host.root(Hierarchy::Memory);
    let group = host.lock().mkdir(root, "a").unwrap();
    let task = host.lock().spawn(group, Load::hold());
    Bed { host, group, task }
}

impl Bed {
    pub fn write(&self, file: &str, value: impl ToString) -> Result<(), Errno> {
        self.write_to(self.group, file, value)
    }

    pub fn write_to(&self, to: GroupId, file: &str, value: impl ToString) -> Result<(), Errno> {
        self.host.lock().write(Actor(0), to, file, value.to_string().as_bytes())
    }

    pub fn read(&self, file: &str) -> String {
        self.read_of(self.group, file)
    }

    pub fn read_of(&self, group: GroupId, file: &str) -> String {
        self.host.lock().read(group, file).unwrap().trim().to_owned()
    }

    /// In pages.
    pub fn size(&self, file: &str) -> u64 {
        self.read(file).parse::<u64>().unwrap() / 4096
    }

    pub fn key(&self, file: &str, key: &str) -> u64 {
        let content = self.read(file);
        cgroupfs::flat::get(content.as_bytes(), key).unwrap()
    }

    pub fn charge(&self, kind: Kind, pages: u64) -> (u64, Option<cgroupfs_model::Denied>) {
        self.host.lock().allocate(self.task, kind, Via::Fault, pages)
    }

    /// A limit in MiB, as this version's file has it.
    pub fn limit(&self, mib: u64) -> Result<(), Errno> {
        self.write("memory.limit_in_bytes", mib << 20)
    }

    pub fn max(&self, mib: u64) -> Result<(), Errno> {
        self.write("memory.max", mib << 20)
    }
}

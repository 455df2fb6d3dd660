//! `cgctl record`: a group's control files as a directory that can be sent to somebody, and that tests can run
//! over. The form is that of [`cgroupfs::recording`].

use super::cli::RecordArgs;
use super::error::{self, Failure, cannot_write};
use super::find;
use cgroupfs::files::{Access, ControlDir, Knob, MAX_FILE};
use cgroupfs::recording::{Line, Outcome};
use cgroupfs::{Cgroup, MemoryHierarchy};
use nix::errno::Errno;
use serde::Serialize;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// `cgctl record --json`.
#[derive(Debug, Serialize)]
struct Summary {
    schema: u32,
    directory: String,
    cgroup: String,
    kernel: String,
    hierarchy: &'static str,
    files: Counts,
    proc_files: usize,
    content_bytes: u64,
}

/// How many control files came to what.
#[derive(Debug, Default, Serialize)]
struct Counts {
    read: usize,
    refused: usize,
    write_only: usize,
    left_out: usize,
}

pub(super) fn main(args: &RecordArgs) -> Result<ExitCode, Failure> {
    let hierarchy = MemoryHierarchy::find()?;
    let group = find::group(&hierarchy, &args.group)?;
    let uname = nix::sys::utsname::uname()
        .map_err(|errno| Failure::new(error::FAILED, format!("uname: {errno}")))?;
    let kernel = uname.release().to_string_lossy().into_owned();
    let out = args.output.clone().unwrap_or_else(|| {
        PathBuf::from(format!("recording-{kernel}-{}", hierarchy.version.as_str()))
    });
    make_empty(&out)?;

    // Everything is read before anything is written: what is recorded is one moment, nearly.
    let files = control_files(&group)?;
    let proc = proc_files();
    let own = [
        ("form", "1".into()),
        ("recorded_by", format!("cgctl {}", env!("CARGO_PKG_VERSION"))),
        ("kernel", kernel.clone()),
        ("machine", uname.machine().to_string_lossy().into_owned()),
        ("hierarchy", hierarchy.version.as_str().into()),
        ("openat2", if cgroupfs::dir::has_openat2() { "yes" } else { "no" }.into()),
        ("processes", count_lines(&group, "cgroup.procs")),
        (
            "threads",
            count_lines(&group, if group.has("tasks") { "tasks" } else { "cgroup.threads" }),
        ),
        ("children", group.children()?.len().to_string()),
    ];
    let about: String = own.iter().map(|(key, value)| format!("{key} {value}\n")).collect();

    write(out.join("about"), about.as_bytes())?;
    let (mut index, mut counts, mut content_bytes) = (String::new(), Counts::default(), 0);
    make_dir(&out.join("group"))?;
    for (line, content) in &files {
        index += &format!("{line}\n");
        match line.outcome {
            Outcome::Read(_) => counts.read += 1,
            Outcome::Refused(_) => counts.refused += 1,
            Outcome::WriteOnly => counts.write_only += 1,
            Outcome::LeftOut => counts.left_out += 1,
        }
        if let Some(content) = content {
            content_bytes += content.len() as u64;
            write(out.join("group").join(&line.name), content)?;
        }
    }
    write(out.join("files"), index.as_bytes())?;
    make_dir(&out.join("proc"))?;
    for (name, content) in &proc {
        content_bytes += content.len() as u64;
        write(out.join("proc").join(name), content)?;
    }

    let summary = Summary {
        schema: 1,
        directory: out.display().to_string(),
        cgroup: group.path().display().to_string(),
        kernel,
        hierarchy: hierarchy.version.as_str(),
        files: counts,
        proc_files: proc.len(),
        content_bytes,
    };
    if args.json {
        super::print_json(&summary)?;
    } else {
        super::print(&words(&summary));
    }
    Ok(ExitCode::SUCCESS)
}

fn words(summary: &Summary) -> String {
    let Counts { read, refused, write_only, left_out } = summary.files;
    format!(
        "recorded {} in {}: {} control files ({read} read, {refused} refused by the kernel, {write_only} write-only, \
         {left_out} left out) and {} files of /proc, {}\n\
         In it: the kernel's release, the group's memory.* and cgroup.* files, how many processes it has, the host's \
         memory, zones, swap devices and cgroup mounts. Not in it: process ids, names, command lines, other mounts, \
         the group's own name. Look before you send it.\n",
        summary.cgroup,
        summary.directory,
        read + refused + write_only + left_out,
        summary.proc_files,
        crate::report::fmt::bytes(summary.content_bytes),
    )
}

/// A file of the group: what is said of it, and its content where it was read.
type Captured = (Line, Option<Vec<u8>>);

/// The group's files by name.
fn control_files(group: &Arc<Cgroup>) -> Result<Vec<Captured>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(error::FAILED, format!("cannot read {}: {error}", group.path().display()))
    };
    let mut files = Vec::new();
    // By path, but then opened beneath the descriptor: a group of this name made later has no part in it.
    for entry in fs::read_dir(group.path()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(about) = entry.metadata() else { continue };
        if !about.is_file() {
            continue;
        }
        let mode = about.permissions().mode() & 0o7777;
        let (outcome, content) = if mode & 0o444 == 0 {
            (Outcome::WriteOnly, None)
        } else if !is_about_memory(&name) {
            (Outcome::LeftOut, None)
        } else {
            match read(group, &name) {
                Ok(content) => (Outcome::Read(content.len()), Some(content)),
                Err(errno) => (Outcome::Refused(errno), None),
            }
        };
        files.push((Line { name, mode, outcome }, content));
    }
    files.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(files)
}

/// Whose content is recorded: not lists of processes, nor what other controllers know of devices and programs.
fn is_about_memory(name: &str) -> bool {
    let tasks = ["cgroup.procs", "cgroup.threads", "tasks"].contains(&name);
    let ours =
        name.starts_with("memory.") || name.starts_with("cgroup.") || name == "notify_on_release";
    ours && !tasks
}

fn read(group: &Arc<Cgroup>, name: &str) -> Result<Vec<u8>, Errno> {
    let file = ControlDir::open(&**group, name, Access::Read)
        .map_err(|error| error.errno().unwrap_or(Errno::ENOENT))?;
    let mut content = vec![0; MAX_FILE];
    loop {
        match file.read(&mut content) {
            Ok(length) => {
                content.truncate(length);
                return Ok(content);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn count_lines(group: &Arc<Cgroup>, file: &'static str) -> String {
    let dir: Arc<dyn ControlDir> = group.clone();
    let content = Knob::open(&dir, file, Access::Read).and_then(|knob| knob.read());
    let lines = |content: Vec<u8>| content.iter().filter(|byte| **byte == b'\n').count();
    content.map_or_else(|_| "unknown".into(), |content| lines(content).to_string())
}

/// What this host has of [`cgroupfs::recording::PROC_FILES`]; of mounts only those of cgroups.
fn proc_files() -> Vec<(&'static str, Vec<u8>)> {
    cgroupfs::recording::PROC_FILES
        .into_iter()
        .filter_map(|name| {
            let path = match name {
                "mountinfo" => Path::new("/proc/self/mountinfo").into(),
                "pressure-memory" => Path::new("/proc/pressure/memory").into(),
                name => Path::new("/proc").join(name),
            };
            let mut content = fs::read(path).ok()?;
            if name == "mountinfo" {
                content = cgroup_mounts(&content);
            }
            content.truncate(MAX_FILE);
            Some((name, content))
        })
        .collect()
}

fn cgroup_mounts(mountinfo: &[u8]) -> Vec<u8> {
    let is_cgroup = |line: &&[u8]| {
        let after = line.windows(3).position(|three| three == b" - ").map(|at| &line[at + 3..]);
        after.is_some_and(|rest| rest.starts_with(b"cgroup ") || rest.starts_with(b"cgroup2 "))
    };
    mountinfo.split_inclusive(|byte| *byte == b'\n').filter(is_cgroup).flatten().copied().collect()
}

/// A directory of ours: made, or there and empty. Nothing of somebody else's is written over.
fn make_empty(dir: &Path) -> Result<(), Failure> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::new(
                error::FAILED,
                format!("{} is not empty; name another directory with -o", dir.display()),
            )),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_dir(dir),
        Err(error) => Err(cannot_write(dir.into(), &error)),
    }
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::create_dir(dir).map_err(|error| cannot_write(dir.into(), &error))
}

fn write(path: PathBuf, content: &[u8]) -> Result<(), Failure> {
    fs::write(&path, content).map_err(|error| cannot_write(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroup_mounts_are_recorded() {
        let mountinfo = b"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            35 21 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            36 21 0:33 / /mnt/cgroup rw - nfs server:/secret rw\n\
            37 21 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let kept = String::from_utf8(cgroup_mounts(mountinfo)).unwrap();
        assert_eq!(kept.lines().count(), 2, "{kept}");
        assert!(!kept.contains("secret") && !kept.contains("ext4"), "{kept}");
    }

    #[test]
    fn no_list_of_processes_is_recorded() {
        for name in ["cgroup.procs", "cgroup.threads", "tasks", "release_agent", "cpuset.cpus"] {
            assert!(!is_about_memory(name), "{name}");
        }
        for name in ["memory.stat", "cgroup.stat", "memory.wmark_ratio"] {
            assert!(is_about_memory(name), "{name}");
        }
    }
}

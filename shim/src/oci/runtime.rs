//! `cgshim-runtime`: runc or crun, with the hook brought into the bundle first. For callers that can
//! name a runtime but not a hook: docker, and containerd with `BinaryName`.

use super::inject::{Entry, HOOK_PATH};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a runtime's command line says that we need. Everything else passes by unread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invocation {
    /// The `config.json` of a container that is about to be made (`create`, `run`, `restore`).
    pub config: Option<PathBuf>,
    /// `--log`: where callers look for what went wrong.
    pub log: Option<PathBuf>,
    /// `--log-format json`.
    pub log_is_json: bool,
}

/// Options before the subcommand that take a value, of runc and of crun.
const GLOBAL_VALUES: [&str; 7] =
    ["log", "log-format", "log-level", "root", "criu", "rootless", "cgroup-manager"];

/// Options of these three that take a value, bundle and config apart.
const CREATE_VALUES: [&str; 5] = ["console-socket", "pid-file", "preserve-fds", "bundle", "config"];

/// Subcommands of runc and crun.
const COMMANDS: [&str; 19] = [
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "help",
    "init",
    "kill",
    "list",
    "mounts",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
];

impl Invocation {
    /// Reads a command line, without the program's name.
    pub fn parse(words: &[OsString]) -> Invocation {
        let mut found = Invocation::default();
        let mut words = words.iter().map(OsString::as_os_str);
        let command = loop {
            let Some(word) = words.next() else { return found };
            let Some((name, value)) = option(word) else {
                // Or the value of an option that we do not know.
                if COMMANDS.iter().any(|command| word == *command) { break word } else { continue }
            };
            let takes = GLOBAL_VALUES.iter().any(|known| name == *known);
            let value = value.or_else(|| takes.then(|| words.next()).flatten());
            match (name.to_str(), value) {
                (Some("log"), Some(file)) => found.log = Some(file.into()),
                (Some("log-format"), Some(format)) => found.log_is_json = format == "json",
                _ => {}
            }
        };
        if !["create", "run", "restore"].iter().any(|makes| command == *makes) {
            return found;
        }
        let (mut bundle, mut config) = (PathBuf::from("."), PathBuf::from("config.json"));
        while let Some(word) = words.next() {
            let Some((name, value)) = option(word) else { continue };
            let name = match name.to_str() {
                Some("b") => "bundle",
                Some("f") => "config",
                Some(name) => name,
                None => continue,
            };
            let takes = CREATE_VALUES.contains(&name);
            match (name, value.or_else(|| takes.then(|| words.next()).flatten())) {
                ("bundle", Some(path)) => bundle = path.into(),
                ("config", Some(path)) => config = path.into(),
                _ => {}
            }
        }
        found.config = Some(bundle.join(config));
        found
    }
}

/// An option's name without dashes, and the value after its `=` (`--bundle=B`), or right behind its one
/// letter (`-bB`).
fn option(word: &OsStr) -> Option<(&OsStr, Option<&OsStr>)> {
    let bytes = word.as_bytes();
    let name = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-"))?;
    let short = !bytes.starts_with(b"--");
    let (name, value) = match name.iter().position(|byte| *byte == b'=') {
        Some(at) => (&name[..at], Some(&name[at + 1..])),
        None if short && name.len() > 1 && matches!(name[0], b'b' | b'f') => {
            // Go's flags have long names with one dash too.
            match name {
                b"bundle" => (name, None),
                _ => (&name[..1], Some(&name[1..])),
            }
        }
        None => (name, None),
    };
    Some((OsStr::from_bytes(name), value.map(OsStr::from_bytes)))
}

/// The runtime to become: `wanted` (`CGSHIM_RUNTIME`, a path or a name), else runc, else crun, in
/// `path`; never the program `own` (device, inode) itself. With a complaint where `wanted` is no good.
///
/// # Errors
/// None is to be found: where was looked.
pub fn find(
    wanted: Option<&OsStr>,
    path: &OsStr,
    own: Option<(u64, u64)>,
) -> Result<(PathBuf, Option<String>), String> {
    let usable = |candidate: &Path| match fs::metadata(candidate) {
        Ok(file) => {
            file.is_file()
                && file.permissions().mode() & 0o111 != 0
                && Some((file.dev(), file.ino())) != own
        }
        Err(_) => false,
    };
    let search = |name: &OsStr| {
        let dirs = std::env::split_paths(path).filter(|dir| dir.is_absolute());
        dirs.map(|dir| dir.join(name)).find(|candidate| usable(candidate))
    };
    let wanted = wanted.filter(|name| !name.is_empty());
    let chosen = wanted.and_then(|name| match name.as_bytes().contains(&b'/') {
        true => Some(PathBuf::from(name)).filter(|candidate| usable(candidate)),
        false => search(name),
    });
    let complaint = match (&chosen, wanted) {
        (None, Some(name)) => Some(format!(
            "CGSHIM_RUNTIME={}: no program, or this one; looking for runc and crun",
            name.to_string_lossy()
        )),
        _ => None,
    };
    chosen
        .or_else(|| ["runc", "crun"].iter().find_map(|name| search(OsStr::new(name))))
        .map(|found| (found, complaint))
        .ok_or_else(|| format!("neither runc nor crun in {}", path.to_string_lossy()))
}

/// The hook to bring in: `wanted` (`CGSHIM_HOOK`), else where it is installed, else beside `own`. A hook
/// that is not there would keep every container from starting, so what is not there is not brought in.
///
/// # Errors
/// It is nowhere: where was looked.
pub fn hook(
    wanted: Option<&OsStr>,
    own: Option<&Path>,
    run_dir: Option<PathBuf>,
) -> Result<Entry, String> {
    let places: Vec<PathBuf> = match wanted.filter(|path| !path.is_empty()) {
        Some(path) => vec![path.into()],
        None => [Some(HOOK_PATH.into()), own.map(|own| own.with_file_name("cgshim-hook"))]
            .into_iter()
            .flatten()
            .collect(),
    };
    let runs = |path: &Path| {
        let file = fs::metadata(path);
        path.is_absolute()
            && file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    match places.iter().find(|path| runs(path)) {
        Some(path) => Ok(Entry { path: path.clone(), run_dir }),
        None => {
            let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
            Err(format!("no hook program at {}", places.join(" or ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Option<PathBuf> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Invocation::parse(&words).config
    }

    #[test]
    fn the_bundle_is_found_as_each_caller_names_it() {
        for (line, expected) in [
            // containerd-shim-runc-v2, docker
            (
                "--root /run/docker/runtime-runc/moby --log /run/x/log.json --log-format json \
                 --systemd-cgroup create --bundle /run/x --pid-file /run/x/init.pid 4f2a",
                Some("/run/x/config.json"),
            ),
            // conmon for podman and CRI-O
            (
                "--log-format=json --log=/p/oci-log create --bundle /b --pid-file /p/pid 4f2a",
                Some("/b/config.json"),
            ),
            ("--systemd-cgroup --root=/run/crun create -b /b 4f2a", Some("/b/config.json")),
            ("run -b/b c", Some("/b/config.json")),
            ("run -b=/b c", Some("/b/config.json")),
            ("run --bundle=/b --config=c2.json c", Some("/b/c2.json")),
            ("run -f /etc/c.json c", Some("/etc/c.json")),
            ("run c", Some("./config.json")),
            ("--debug run -d c", Some("./config.json")),
            // A value that looks like something else.
            ("--root create run --pid-file --bundle c", Some("./config.json")),
            ("--new-option value create -b /b c", Some("/b/config.json")),
            ("restore --image-path /i --bundle /b c", Some("/b/config.json")),
            ("exec --bundle /b c", None),
            ("delete --force c", None),
            ("--version", None),
            ("state create", None),
            ("--log create", None),
            ("", None),
        ] {
            assert_eq!(config(line), expected.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn the_log_is_where_the_caller_wants_it() {
        let words = ["--log", "/l", "--log-format", "json", "create", "c"].map(OsString::from);
        let found = Invocation::parse(&words);
        assert_eq!((found.log, found.log_is_json), (Some("/l".into()), true));
    }

    fn program(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn it_never_becomes_itself() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = std::env::join_paths([a.path(), b.path()]).unwrap();
        let own = program(a.path(), "runc");
        let id = fs::metadata(&own).map(|own| (own.dev(), own.ino())).unwrap();
        assert!(find(None, &path, Some(id)).is_err());
        let crun = program(b.path(), "crun");
        assert_eq!(find(None, &path, Some(id)).unwrap(), (crun.clone(), None));
        let runc = program(b.path(), "runc");
        assert_eq!(find(None, &path, Some(id)).unwrap(), (runc.clone(), None));
        let wanted = find(Some(OsStr::new("crun")), &path, Some(id)).unwrap();
        assert_eq!(wanted, (crun.clone(), None));
        let wanted = find(Some(crun.as_os_str()), &path, Some(id)).unwrap();
        assert_eq!(wanted, (crun, None));
        // Named as the runtime all the same: said, and a real one taken.
        let (found, complaint) = find(Some(own.as_os_str()), &path, Some(id)).unwrap();
        assert_eq!(found, runc);
        assert!(complaint.unwrap().contains("CGSHIM_RUNTIME"));
    }

    #[test]
    fn a_hook_that_is_not_there_is_not_brought_in() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("cgshim-runtime");
        let missing = dir.path().join("cgshim-hook");
        assert!(hook(Some(missing.as_os_str()), Some(&own), None).is_err());
        program(dir.path(), "cgshim-hook");
        let entry = hook(Some(missing.as_os_str()), Some(&own), None).unwrap();
        assert_eq!(entry.path, missing);
        assert!(hook(Some(OsStr::new("cgshim-hook")), Some(&own), None).is_err());
    }
}

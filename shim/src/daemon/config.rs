//! The configuration: `/etc/cgshim/config.toml`, then `config.d/*.toml` beside it in the order of their
//! names. Of a value given twice the later counts; policies and patterns add up.

use crate::core::pattern::Pattern;
use crate::core::terms::{self, KEYS};
use crate::core::throttle::WayOut;
use crate::core::{Class, High, OomPolicy, Rights, WatermarkSpec, Wishes};
use cgroupfs::{Bytes, Limit};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where it is unless told otherwise.
pub const CONFIG: &str = "/etc/cgshim/config.toml";

/// No file of it is longer.
const MOST_BYTES: u64 = 1 << 20;
/// No more files are read, nor policies or patterns kept.
const MOST_FILES: usize = 256;
const MOST_RULES: usize = 1024;

/// What the operator wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    defaults: Wishes,
    classes: BTreeMap<&'static str, Wishes>,
    policies: Vec<(Pattern, Wishes)>,
    /// What annotations may do.
    pub rights: Rights,
    /// Groups to enforce without being told of them.
    pub discovery: Vec<Pattern>,
    /// Reclaim threads; only the next start sees a change.
    pub workers: usize,
    /// Containers at most.
    pub most_containers: usize,
    /// A program with its arguments that is run for every OOM; empty for none.
    pub oom_hook: Vec<String>,
    /// Up to where the limit of a container may be raised while its OOM is held; `None`: it is not.
    pub hold_limit: Option<Bytes>,
    /// The files it was read from.
    pub files: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            defaults: Wishes::default(),
            classes: BTreeMap::new(),
            policies: Vec::new(),
            rights: Rights::default(),
            discovery: Vec::new(),
            workers: 2,
            most_containers: 4096,
            oom_hook: Vec::new(),
            hold_limit: None,
            files: Vec::new(),
        }
    }
}

/// Why it cannot be used. Complete for a person.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {why}{}", path.display(), way_out(why))]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// A file says what it must not.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong.
        message: String,
    },
}

fn way_out(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::NotFound => "; name another with --config",
        io::ErrorKind::PermissionDenied => "; it must be readable by root",
        _ => "",
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: Asked,
    #[serde(default)]
    class: Classes,
    #[serde(default)]
    policy: Vec<Policy>,
    #[serde(default)]
    annotations: Annotations,
    #[serde(default)]
    discovery: Discovery,
    #[serde(default)]
    daemon: Daemon,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default, deserialize_with = "text")]
    class: Option<Class>,
    #[serde(default, deserialize_with = "text")]
    request: Option<Bytes>,
    #[serde(default, deserialize_with = "text")]
    high: Option<High>,
    #[serde(default, deserialize_with = "text")]
    watermark: Option<WatermarkSpec>,
    #[serde(default, deserialize_with = "on_or_off")]
    throttle: Option<bool>,
    #[serde(default, deserialize_with = "text")]
    oom: Option<OomPolicy>,
    #[serde(default, deserialize_with = "text")]
    way_out: Option<WayOut>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Classes {
    #[serde(default)]
    guaranteed: Asked,
    #[serde(default)]
    burstable: Asked,
    #[serde(default)]
    besteffort: Asked,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    #[serde(rename = "match", deserialize_with = "pattern")]
    pattern: Pattern,
    // `deny_unknown_fields` does not go with `flatten`: the keys of `Asked` again.
    #[serde(default, deserialize_with = "text")]
    class: Option<Class>,
    #[serde(default, deserialize_with = "text")]
    request: Option<Bytes>,
    #[serde(default, deserialize_with = "text")]
    high: Option<High>,
    #[serde(default, deserialize_with = "text")]
    watermark: Option<WatermarkSpec>,
    #[serde(default, deserialize_with = "on_or_off")]
    throttle: Option<bool>,
    #[serde(default, deserialize_with = "text")]
    oom: Option<OomPolicy>,
    #[serde(default, deserialize_with = "text")]
    way_out: Option<WayOut>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    #[serde(default, deserialize_with = "keys")]
    allow: Option<[bool; KEYS.len()]>,
    #[serde(default, deserialize_with = "keys")]
    trust: Option<[bool; KEYS.len()]>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Discovery {
    #[serde(default, deserialize_with = "patterns")]
    patterns: Vec<Pattern>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Daemon {
    #[serde(default, deserialize_with = "workers")]
    workers: Option<usize>,
    #[serde(default, deserialize_with = "containers")]
    max_containers: Option<usize>,
    #[serde(default, deserialize_with = "program")]
    oom_hook: Option<Vec<String>>,
    #[serde(default, deserialize_with = "text")]
    hold_limit: Option<Bytes>,
}

fn text<'de, D: Deserializer<'de>, T: FromStr>(from: D) -> Result<Option<T>, D::Error>
where
    T::Err: std::fmt::Display,
{
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

fn program<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let words = Vec::<String>::deserialize(from)?;
    match words.first() {
        Some(program) if !program.starts_with('/') => {
            Err(D::Error::custom(format!("oom_hook: {program}: give its whole path")))
        }
        _ => Ok(Some(words)),
    }
}

fn on_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    terms::switch(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

fn pattern<'de, D: Deserializer<'de>>(from: D) -> Result<Pattern, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn patterns<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Pattern>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[bool; KEYS.len()]>, D::Error> {
    let mut chosen = [false; KEYS.len()];
    for name in Vec::<String>::deserialize(from)? {
        let at = KEYS.iter().position(|key| *key == name).ok_or_else(|| {
            D::Error::custom(format!("there is no annotation '{name}': {}", KEYS.join(", ")))
        })?;
        chosen[at] = true;
    }
    Ok(Some(chosen))
}

fn workers<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    between(from, 1, 64)
}

fn containers<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    between(from, 1, 65_536)
}

fn between<'de, D: Deserializer<'de>>(
    from: D,
    least: usize,
    most: usize,
) -> Result<Option<usize>, D::Error> {
    let value = i64::deserialize(from)?;
    let found = usize::try_from(value).ok().filter(|value| (least..=most).contains(value));
    found.map(Some).ok_or_else(|| D::Error::custom(format!("{value} is not {least} to {most}")))
}

impl From<Asked> for Wishes {
    fn from(asked: Asked) -> Wishes {
        let Asked { class, request, high, watermark, throttle, oom, way_out } = asked;
        Wishes { class, request, high, watermark, throttle, oom, way_out }
    }
}

impl Config {
    /// Reads it. A default configuration that is not there is an empty one; `path` otherwise must be.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let main = path.unwrap_or(Path::new(CONFIG));
        let mut config = Config::default();
        match slurp(main) {
            Ok(content) => config.add(main, &content)?,
            Err(why) if path.is_none() && why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(ConfigError::Unreadable { path: main.into(), why }),
        }
        let directory = drop_ins(main);
        let unreadable = |why| ConfigError::Unreadable { path: directory.clone(), why };
        let mut files = Vec::new();
        match std::fs::read_dir(&directory) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(unreadable)?.path();
                    let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes()[0] == b'.');
                    if path.extension().is_some_and(|extension| extension == "toml") && !hidden {
                        files.push(path);
                    }
                }
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(unreadable(why)),
        }
        files.sort();
        if files.len() > MOST_FILES {
            let why = io::Error::other(format!("it has more than {MOST_FILES} files"));
            return Err(unreadable(why));
        }
        for path in files {
            let content =
                slurp(&path).map_err(|why| ConfigError::Unreadable { path: path.clone(), why })?;
            config.add(&path, &content)?;
        }
        Ok(config)
    }

    /// What one file says, read as `path`.
    pub fn parse(path: &Path, content: &[u8]) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.add(path, content).map(|()| config)
    }

    /// Adds what a file says.
    fn add(&mut self, path: &Path, content: &[u8]) -> Result<(), ConfigError> {
        let wrong = |at: usize, message: String| {
            let before = String::from_utf8_lossy(&content[..at.min(content.len())]);
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let line = before.matches('\n').count() + 1;
            ConfigError::Wrong { path: path.into(), line, column, message }
        };
        let text = std::str::from_utf8(content)
            .map_err(|error| wrong(error.valid_up_to(), "it is not UTF-8".into()))?;
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            wrong(at, error.message().trim().replace('\n', "; "))
        })?;
        self.defaults = Wishes::from(file.defaults).over(self.defaults);
        for (class, asked) in [
            (Class::Guaranteed, file.class.guaranteed),
            (Class::Burstable, file.class.burstable),
            (Class::BestEffort, file.class.besteffort),
        ] {
            let before = self.classes.get(class.as_str()).copied().unwrap_or_default();
            self.classes.insert(class.as_str(), Wishes::from(asked).over(before));
        }
        for policy in file.policy {
            let Policy { pattern, class, request, high, watermark, throttle, oom, way_out } =
                policy;
            let wishes = Wishes { class, request, high, watermark, throttle, oom, way_out };
            self.policies.push((pattern, wishes));
        }
        self.rights.allow = file.annotations.allow.unwrap_or(self.rights.allow);
        self.rights.trust = file.annotations.trust.unwrap_or(self.rights.trust);
        self.discovery.extend(file.discovery.patterns);
        self.workers = file.daemon.workers.unwrap_or(self.workers);
        self.most_containers = file.daemon.max_containers.unwrap_or(self.most_containers);
        self.hold_limit = file.daemon.hold_limit.or(self.hold_limit);
        if let Some(program) = file.daemon.oom_hook {
            self.oom_hook = program;
        }
        if self.policies.len() > MOST_RULES || self.discovery.len() > MOST_RULES {
            let message = format!("more than {MOST_RULES} policies or patterns in all");
            return Err(wrong(content.len(), message));
        }
        self.files.push(path.into());
        Ok(())
    }

    /// What it says for a group: policies that match, the later over the earlier, over what the runtime
    /// says (class and request), over the class's section, over the defaults.
    pub fn wishes(&self, path: &str, runtime: Wishes, limit: Limit) -> Wishes {
        let policy = self
            .policies
            .iter()
            .filter(|(pattern, _)| pattern.matches(path))
            .fold(Wishes::default(), |below, (_, wishes)| wishes.over(below));
        let specific = policy.over(runtime);
        let class = specific.class.or(self.defaults.class).unwrap_or(Class::Burstable);
        let of_class = self.classes.get(class.as_str()).copied().unwrap_or_default();
        let mut wishes = specific.over(Wishes { class: None, ..of_class }).over(self.defaults);
        wishes.class = Some(class);
        if class == Class::Guaranteed {
            wishes.request = wishes.request.or(limit.bytes());
        }
        wishes
    }
}

/// The directory of further files, beside the main one.
pub fn drop_ins(main: &Path) -> PathBuf {
    main.parent().unwrap_or(Path::new("/")).join("config.d")
}

fn slurp(path: &Path) -> io::Result<Vec<u8>> {
    // Nobody is waited for who might write into a FIFO.
    let nonblock = nix::libc::O_NONBLOCK;
    let file = std::fs::File::options().read(true).custom_flags(nonblock).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST_BYTES {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Limit = Limit::Bytes(Bytes::mib(1000));

    fn parse(content: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.add(Path::new("c.toml"), content.as_bytes()).map(|()| config)
    }

    #[test]
    fn policies_go_over_the_runtime_over_the_class_over_the_defaults() {
        let config = parse(
            r#"
            [defaults]
            high = "95%"
            watermark = "92%:86%"
            oom = "kill"
            [class.besteffort]
            high = "60%"
            throttle = "on"
            [[policy]]
            match = "/docker/*"
            high = "512M"
            [[policy]]
            match = "/docker/web"
            throttle = "off"
            oom = "hold=30s"
            way_out = "oom=10s"
            "#,
        )
        .unwrap();
        let besteffort = Wishes { class: Some(Class::BestEffort), ..Wishes::default() };
        let wishes = config.wishes("/kubepods/x", besteffort, LIMIT);
        assert_eq!(wishes.high, Some(High::OfLimit(6000)));
        assert_eq!(wishes.watermark, Some(WatermarkSpec::Ratio { high: 9200, low: 8600 }));
        let wishes = config.wishes("/docker/web", besteffort, LIMIT);
        assert_eq!(wishes.high, Some(High::Size(Limit::Bytes(Bytes::mib(512)))));
        assert_eq!(wishes.throttle, Some(false));
        assert_eq!(wishes.oom.unwrap().to_string(), "hold=30s");
        assert_eq!(wishes.way_out.unwrap().to_string(), "oom=10s");
        let guaranteed = Wishes { class: Some(Class::Guaranteed), ..Wishes::default() };
        assert_eq!(config.wishes("/x", guaranteed, LIMIT).request, Some(Bytes::mib(1000)));
    }

    #[test]
    fn what_is_wrong_is_said_with_line_and_column() {
        for (content, line, column, part) in [
            ("[defaults]\nhigh = \"101%\"\n", 2, 8, "share of the limit"),
            ("[defaults]\nhihg = \"80%\"\n", 2, 1, "unknown field"),
            ("[defaults\n", 1, 10, "table"),
            ("[defaults]\nhigh = 5\n", 2, 8, "invalid type"),
            ("\n\n[[policy]]\nhigh = \"5%\"\n", 3, 1, "match"),
            ("[[policy]]\nmatch = \"docker\"\n", 2, 9, "begin with '/'"),
            ("[discovery]\npatterns = [\"/a\", \"b\"]\n", 2, 12, "begin with '/'"),
            ("[annotations]\nallow = [\"hihg\"]\n", 2, 9, "no annotation 'hihg'"),
            ("[daemon]\nworkers = 0\n", 2, 11, "1 to 64"),
            ("[defaults]\noom = \"hold=1h\"\n", 2, 7, "hold="),
            ("[defaults]\nthrottle = \"maybe\"\n", 2, 12, "on or off"),
            ("[defaults]\nway_out = \"30s\"\n", 2, 11, "release, oom, notify or never"),
        ] {
            match parse(content) {
                Err(ConfigError::Wrong { line: l, column: c, message, .. }) => {
                    assert!(message.contains(part), "{content}: {message}");
                    assert_eq!((l, c), (line, column), "{content}: {message}");
                }
                other => panic!("{content}: {other:?}"),
            }
        }
        let text = parse("[x]").unwrap_err().to_string();
        assert!(text.starts_with("c.toml:1:"), "{text}");
    }

    #[test]
    fn later_files_win_and_lists_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        let write = |name: &str, content: &str| std::fs::write(dir.path().join(name), content);
        write(
            "config.toml",
            "[defaults]\nhigh='80%'\noom='group'\n[discovery]\npatterns=['/a/*']\n",
        )
        .unwrap();
        write("config.d/20.toml", "[defaults]\nhigh='70%'\n[discovery]\npatterns=['/b/*']\n")
            .unwrap();
        write("config.d/10.toml", "[defaults]\nhigh='60%'\n").unwrap();
        write("config.d/notes.txt", "not toml").unwrap();
        let config = Config::load(Some(&main)).unwrap();
        let wishes = config.wishes("/x", Wishes::default(), LIMIT);
        assert_eq!(wishes.high, Some(High::OfLimit(7000)));
        assert_eq!(wishes.oom, Some(OomPolicy::Group));
        assert_eq!(config.discovery.len(), 2);
        assert_eq!(config.files.len(), 3);
        // One that is asked for must be there.
        let error = Config::load(Some(&dir.path().join("none.toml"))).unwrap_err().to_string();
        assert!(error.contains("none.toml") && error.contains("--config"), "{error}");
        let error = Config::load(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    proptest! {
        #[test]
        fn no_content_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Config::default().add(Path::new("c.toml"), &content);
        }
    }
}

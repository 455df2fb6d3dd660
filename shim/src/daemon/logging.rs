//! Log lines on standard error: with the journal's `<N>` priorities where that reads them, and no more of
//! them than somebody can want (laws 6 and 10).

use log::Level;
use nix::sys::stat::fstat;
use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

/// So many lines at once, and so many a second after that.
const BURST: f64 = 200.0;
const A_SECOND: f64 = 10.0;

/// A bucket of lines that may be written.
struct Budget {
    left: f64,
    at: Instant,
    suppressed: u64,
}

impl Budget {
    /// Whether another line may go; how many did not since the last one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * A_SECOND).min(BURST);
        self.at = now;
        if self.left < 1.0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// How much is logged: what `CGSHIM_LOG` says (a level, or filters as env_logger has them), else `default`. A word that
/// is no level would silence everything: that is said on standard error instead.
pub fn filter(program: &str, default: &str) -> String {
    let asked = std::env::var("CGSHIM_LOG").unwrap_or_default();
    let filters = asked.contains(['=', ',', '/']);
    if filters || asked.parse::<log::LevelFilter>().is_ok() {
        return asked;
    }
    if !asked.is_empty() {
        let _ = writeln!(
            std::io::stderr(),
            "{program}: CGSHIM_LOG: {asked:?} is none of error, warn, info, debug and off; taken as {default}"
        );
    }
    default.to_owned()
}

/// Sets it up: `CGSHIM_LOG` says how much (`info` by default).
pub(super) fn init() {
    let journal = stderr_is_the_journal();
    let start = Budget { left: BURST, at: Instant::now(), suppressed: 0 };
    let budget = Mutex::new(start);
    let _ = env_logger::Builder::new()
        .parse_filters(&filter("cgshimd", "info"))
        .format(move |out, record| {
            let mut budget = budget.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let Some(suppressed) = budget.take(Instant::now()) else { return Ok(()) };
            let prefix = |level| match journal {
                true => format!("<{}>", priority(level)),
                false => "cgshimd: ".into(),
            };
            if suppressed > 0 {
                writeln!(out, "{}{suppressed} lines were not logged", prefix(Level::Warn))?;
            }
            // One line a message, and no control characters of anybody else's.
            let text = record.args().to_string();
            let clean: String = text.chars().flat_map(printable).collect();
            writeln!(out, "{}{clean}", prefix(record.level()))
        })
        .try_init();
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let kept = (!c.is_control()).then_some(c);
    escaped.into_iter().flatten().chain(kept)
}

/// syslog(3)'s numbers.
const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// `JOURNAL_STREAM` names device and inode of the journal's stream (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Some((device, inode)) = stream.split_once(':') else { return false };
    fstat(std::io::stderr())
        .is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let start = Instant::now();
        let mut budget = Budget { left: BURST, at: start, suppressed: 0 };
        let written = (0..10_000).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(written, 200);
        // A second later there is room again, and the first line says what is missing.
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(9_800));
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn control_characters_of_others_are_escaped() {
        let clean: String = "a\u{1b}[2J\nb".chars().flat_map(printable).collect();
        assert_eq!(clean, "a\\u{1b}[2J\\nb");
    }
}

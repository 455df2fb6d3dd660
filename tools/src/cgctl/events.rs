//! `cgctl events`: what has happened, and what happens.

use super::cli::{EventsArgs, EventsFormat};
use super::daemon;
use super::error::Failure;
use super::print_json;
use cgshim::api::client::Client;
use cgshim::api::message::{EventLine, Request};
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A daemon that is started anew is waited for this long.
const SUCCESSOR: Duration = Duration::from_secs(15);

/// Events that are remembered, so that none is shown twice: as many as a daemon tells again.
const MOST_SEEN: usize = 1024;

pub(super) fn main(args: &EventsArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let (mut client, mut seen) = (daemon::connect(run_dir)?, Seen::default());
    loop {
        let over = show(args, client, &mut seen);
        if !args.follow {
            over?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Ok(Over::Reader) = over {
            return Ok(ExitCode::SUCCESS);
        }
        // What happened meanwhile its successor tells.
        let _ = writeln!(std::io::stderr(), "cgctl: the daemon is gone; waiting for another");
        client = successor(run_dir)?;
    }
}

/// Why there is no more.
enum Over {
    /// The daemon has ended, or has told all.
    Daemon,
    /// Nobody reads.
    Reader,
}

/// The next daemon.
fn successor(run_dir: Option<&Path>) -> Result<Client, Failure> {
    let start = Instant::now();
    loop {
        match daemon::connect(run_dir) {
            Ok(client) => return Ok(client),
            Err(failure) if start.elapsed() > SUCCESSOR => return Err(failure),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Shows what a daemon tells, until one of the two has ended.
fn show(args: &EventsArgs, mut client: Client, seen: &mut Seen) -> Result<Over, Failure> {
    client.ask::<serde_json::Value>(Request::Events { follow: args.follow })?;
    if args.follow {
        client.patience(None)?;
    }
    while let Some(event) = client.next_line::<EventLine>()? {
        if !seen.is_new(&event) {
            continue;
        }
        let line = if args.format == Some(EventsFormat::Runc) {
            let Some(line) = runc(&event) else { continue };
            line
        } else if args.json {
            print_json(&event)?;
            continue;
        } else {
            let id = event.id.as_deref().unwrap_or("-");
            format!("{} {:<16} {id}: {}\n", time(event.at_ms), event.event, event.message)
        };
        // A reader that has gone ends it.
        if std::io::stdout().write_all(line.as_bytes()).is_err() {
            return Ok(Over::Reader);
        }
    }
    Ok(Over::Daemon)
}

/// Events that were shown.
#[derive(Default)]
struct Seen {
    order: VecDeque<u64>,
    all: HashSet<u64>,
}

impl Seen {
    /// Remembers it. Several at once that say the same are one; a daemon numbers no events.
    fn is_new(&mut self, event: &EventLine) -> bool {
        let mut hasher = DefaultHasher::new();
        (event.at_ms, &event.event, &event.id, &event.message).hash(&mut hasher);
        event.detail.get("id").and_then(serde_json::Value::as_str).hash(&mut hasher);
        let hash = hasher.finish();
        if !self.all.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > MOST_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
        true
    }
}

/// An OOM kill as `runc events` has it (`types.Event`); what is no kill is not shown there.
fn runc(event: &EventLine) -> Option<String> {
    let kills = event.detail.get("kills").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let id = event.id.as_deref().filter(|_| event.event == "oom" && kills > 0)?;
    Some(format!("{}\n", serde_json::json!({ "type": "oom", "id": id })))
}

/// `2026-01-31T12:34:56.789Z`: civil_from_days of
/// <https://howardhinnant.github.io/date_algorithms.html>.
fn time(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oom_kill_is_as_runc_has_it_and_nothing_else_is_shown() {
        let event = |event: &str, kills: u64| EventLine {
            schema: 1,
            at_ms: 0,
            event: event.into(),
            id: Some("web".into()),
            generation: None,
            message: String::new(),
            detail: serde_json::json!({ "kills": kills }),
        };
        assert_eq!(runc(&event("oom", 1)).unwrap(), "{\"id\":\"web\",\"type\":\"oom\"}\n");
        assert_eq!(runc(&event("oom", 0)), None);
        assert_eq!(runc(&event("oom_kill", 1)), None);
    }

    #[test]
    fn what_a_daemon_tells_again_is_shown_once() {
        let event = |at_ms: u64, record: &str| EventLine {
            schema: 1,
            at_ms,
            event: "oom".into(),
            id: Some("web".into()),
            generation: None,
            message: "own_limit".into(),
            detail: serde_json::json!({ "id": record }),
        };
        let mut seen = Seen::default();
        // Two at once are two, by their records.
        let told = [event(1, "oom-1"), event(1, "oom-2"), event(2, "oom-3")];
        assert!(told.iter().all(|event| seen.is_new(event)));
        assert!(!told.iter().any(|event| seen.is_new(event)));
        // No more than a daemon remembers is remembered here.
        (3..).take(MOST_SEEN).for_each(|at| assert!(seen.is_new(&event(at, "oom"))));
        assert_eq!((seen.order.len(), seen.all.len()), (MOST_SEEN, MOST_SEEN));
        assert!(seen.is_new(&told[0]));
    }

    #[test]
    fn times_are_utc() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_329_497_466, "2026-11-22T06:38:17.466Z"),
        ] {
            assert_eq!(time(ms), text);
        }
    }
}

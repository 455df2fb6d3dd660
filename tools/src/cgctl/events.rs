//! `cgctl events`: what has happened, and what happens.

use super::cli::{EventsArgs, EventsFormat};
use super::daemon;
use super::error::Failure;
use super::print_json;
use cgshim::api::message::{EventLine, Request};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn main(args: &EventsArgs, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let mut client = daemon::connect(run_dir)?;
    client.ask::<serde_json::Value>(Request::Events { follow: args.follow })?;
    if args.follow {
        client.patience(None)?;
    }
    while let Some(event) = client.next_line::<EventLine>()? {
        if args.format == Some(EventsFormat::Runc) {
            if let Some(line) = runc(&event)
                && std::io::stdout().write_all(line.as_bytes()).is_err()
            {
                break;
            }
            continue;
        }
        if args.json {
            print_json(&event)?;
            continue;
        }
        let id = event.id.as_deref().unwrap_or("-");
        let line = format!("{} {:<16} {id}: {}\n", time(event.at_ms), event.event, event.message);
        // A reader that has gone ends it.
        if std::io::stdout().write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
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

//! `TABLE.md`: what each claim came to on each kernel. Generated, read by people, and compared with
//! every run.

use crate::{Claim, Feature, Outcome, claims};
use cgroupfs::memory::Version;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The table as it is kept.
const KEPT: &str = include_str!("../TABLE.md");

const HEAD: &str = "\
# What the kernels do: claim × kernel

Made by `ci/conformance --record`, and compared with every run of the suite: a kernel that comes to
another outcome than is written here fails. *no X* means that the kernel lacks X, which was probed; then
the claim does not apply. *differs* is a difference that is known, and found by the claim itself.

`model-*` is the model kernel (`cgroupfs/model`), `host-*` a real machine, the rest are lanes of
`ci/vm/lanes`.
";

/// Outcomes by column and claim, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    columns: Vec<String>,
    cells: BTreeMap<(String, String), String>,
}

/// The line by which a run tells of an outcome, for [`Table::record`].
pub fn line(column: &str, claim: &Claim, outcome: &Outcome) -> String {
    format!("CONFORMANCE {column} {} {}", claim.name, outcome.text())
}

impl Table {
    /// As it is in `TABLE.md`.
    pub fn kept() -> Table {
        Table::parse(KEPT)
    }

    /// Reads a table; what is no row of one is skipped.
    pub fn parse(text: &str) -> Table {
        let mut table = Table::default();
        let mut columns: Vec<String> = Vec::new();
        for line in text.lines() {
            let Some(line) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
                continue;
            };
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match cells.split_first() {
                Some((&"claim", names)) => columns = names.iter().map(|s| s.to_string()).collect(),
                Some((claim, cells)) if !claim.starts_with("---") => {
                    let claim = claim.trim_matches('`');
                    for (column, cell) in columns.iter().zip(cells) {
                        if !cell.is_empty() {
                            table.set(column, claim, cell);
                        }
                    }
                }
                _ => {}
            }
        }
        table
    }

    /// Takes the outcomes of a run, from its console: [`line()`]s among others. Failures are not taken. The
    /// number taken.
    pub fn record(&mut self, console: &str) -> usize {
        let mut taken = 0;
        for line in console.lines() {
            let Some((_, rest)) = line.split_once("CONFORMANCE ") else { continue };
            let mut words = rest.trim_end().splitn(3, ' ');
            if let (Some(column), Some(claim), Some(text)) =
                (words.next(), words.next(), words.next())
                && !text.starts_with("FAILS")
            {
                self.set(column, claim, text);
                taken += 1;
            }
        }
        taken
    }

    fn set(&mut self, column: &str, claim: &str, text: &str) {
        if !self.columns.iter().any(|name| name == column) {
            self.columns.push(column.to_owned());
        }
        self.cells.insert((column.to_owned(), claim.to_owned()), text.to_owned());
    }

    /// What is written for a claim on a kernel.
    pub fn get(&self, column: &str, claim: &str) -> Option<&str> {
        self.cells.get(&(column.to_owned(), claim.to_owned())).map(String::as_str)
    }

    /// Whether there is anything of that kernel.
    pub fn knows(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    /// How an outcome is otherwise than is written; `None` where it is not. Whether swap is on is up to
    /// the machine: a claim that lacks it has not drifted.
    pub fn drift(&self, column: &str, claim: &Claim, outcome: &Outcome) -> Option<String> {
        let now = outcome.text();
        match self.get(column, claim.name) {
            Some(written) if written == now => None,
            _ if *outcome == Outcome::Lacks(Feature::Swap.name()) => None,
            Some(written) => Some(format!("TABLE.md has '{written}', this run '{now}'")),
            None => Some(format!("TABLE.md has nothing, this run '{now}'")),
        }
    }

    /// The text of `TABLE.md`: one table for each version, claims in the order of the suite, what they
    /// are about above them.
    pub fn render(&self) -> String {
        let mut text = HEAD.to_owned();
        for version in [Version::V1, Version::V2] {
            let claims = claims::of(version);
            let mut columns: Vec<&String> = self
                .columns
                .iter()
                .filter(|column| of_version(column, version))
                .filter(|column| claims.iter().any(|c| self.get(column, c.name).is_some()))
                .collect();
            columns.sort_by_key(|column| order(column));
            let mut about = "";
            for claim in &claims {
                if claim.about != about {
                    about = claim.about;
                    let _ = write!(text, "\n## cgroup {}: {about}\n\n| claim |", version.as_str());
                    for column in &columns {
                        let _ = write!(text, " {column} |");
                    }
                    let _ = writeln!(text, "\n|---|{}", "---|".repeat(columns.len()));
                }
                let _ = write!(text, "| `{}` |", claim.name);
                for column in &columns {
                    let _ = write!(text, " {} |", self.get(column, claim.name).unwrap_or(""));
                }
                text.push('\n');
            }
        }
        text
    }
}

/// Columns say their version: `v1-5.10`, `v1h-5.10`, `model-v2-6.1`, `host-v1-6.18`.
fn of_version(column: &str, version: Version) -> bool {
    let name = column.trim_start_matches("model-").trim_start_matches("host-");
    name.starts_with(version.as_str())
}

fn order(column: &str) -> (u8, String) {
    let rank = match column {
        _ if column.starts_with("model-") => 0,
        _ if column.starts_with("host-") => 1,
        _ => 2,
    };
    (rank, column.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_is_read_again() {
        let mut table = Table::default();
        let claims = claims::all();
        for claim in &claims {
            for (column, outcome) in [("v1-6.1", Outcome::Holds), ("v2-6.1", Outcome::Lacks("x"))] {
                table.record(&format!("[ 1.0] {}\r", line(column, claim, &outcome)));
            }
        }
        let again = Table::parse(&table.render());
        for claim in claims::of(Version::V1) {
            assert_eq!(again.get("v1-6.1", claim.name), Some("holds"));
            assert_eq!(again.drift("v1-6.1", &claim, &Outcome::Holds), None);
            assert!(again.drift("v1-6.1", &claim, &Outcome::Lacks("y")).is_some());
        }
        assert_eq!(Table::parse(&again.render()), again);
    }

    #[test]
    fn every_claim_has_a_name_of_its_own_and_the_kept_table_is_as_it_is_rendered() {
        let names: std::collections::BTreeSet<_> = claims::all().iter().map(|c| c.name).collect();
        assert_eq!(names.len(), claims::all().len());
        assert_eq!(Table::kept().render(), KEPT, "run ci/conformance --record");
    }
}

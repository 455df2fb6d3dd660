//! Takes the outcomes of runs of the suite from standard input and writes `TABLE.md` anew:
//! `table PATH < console`.

use cgroupfs_conformance::table::Table;
use std::io::Read;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "cgroupfs/conformance/TABLE.md".into());
    let mut console = String::new();
    std::io::stdin().read_to_string(&mut console)?;
    let mut table = Table::parse(&std::fs::read_to_string(&path)?);
    let taken = table.record(&console);
    std::fs::write(&path, table.render())?;
    println!("{taken} outcomes written to {path}");
    Ok(())
}

//! The suite over wrong kernels: for every rule that the model can break, claims that notice.

use cgroupfs_conformance::table::Table;
use cgroupfs_conformance::{Features, Outcome, claims, model, run};
use cgroupfs_model::{Config, Mutation};

/// The claims that come to another outcome than the table has, by preset.
fn noticed(mutation: Mutation) -> Vec<String> {
    let kept = Table::kept();
    let mut noticed = Vec::new();
    for (column, config) in model::presets() {
        let config = Config { mutation: Some(mutation), ..config };
        let features = Features::probe(&mut model::ModelWorld::new(&config));
        let Ok(features) = features else {
            noticed.push(format!("{column}: the probe"));
            continue;
        };
        for claim in claims::of(config.version) {
            let outcome = run(&claim, &features, &mut model::ModelWorld::new(&config));
            let fails = matches!(outcome, Outcome::Fails(_));
            if fails || kept.drift(column, &claim, &outcome).is_some() {
                noticed.push(format!("{column}: {}", claim.name));
            }
        }
    }
    noticed
}

#[test]
fn every_rule_that_is_broken_is_noticed_by_a_claim() {
    let mut unnoticed = Vec::new();
    for mutation in Mutation::ALL {
        let claims = noticed(*mutation);
        println!("{mutation:?}:");
        for claim in &claims {
            println!("    {claim}");
        }
        if claims.is_empty() {
            unnoticed.push(mutation);
        }
    }
    println!("{} rules broken, {} unnoticed", Mutation::ALL.len(), unnoticed.len());
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

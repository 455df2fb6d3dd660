//! The suite over wrong kernels: for every rule that the model can break, claims that notice.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

use cgroupfs_conformance::table::Table;
use cgroupfs_conformance::{Features, Outcome, claims, model, run};
use cgroupfs_model::{Config, Mutation};
use std::collections::{BTreeMap, BTreeSet};

/// The claims that come to another outcome than the table has, with the first preset where they do.
fn noticed(mutation: Mutation, kept: &Table) -> BTreeMap<&'static str, &'static str> {
    let mut noticed = BTreeMap::new();
    for (column, config) in model::presets() {
        let config = Config { mutation: Some(mutation), ..config };
        let features = Features::probe(&mut model::ModelWorld::new(&config).unwrap()).unwrap();
        for claim in claims::of(config.version) {
            let mut world = model::ModelWorld::new(&config).unwrap();
            let outcome = run(&claim, &features, &mut world);
            let fails = matches!(outcome, Outcome::Fails(_));
            if fails || kept.drift(column, &claim, &outcome).is_some() {
                noticed.entry(claim.name).or_insert(column);
            }
        }
    }
    noticed
}

#[test]
fn every_rule_that_is_broken_is_noticed_and_every_claim_notices_some() {
    let kept = Table::kept();
    let mut unnoticed = Vec::new();
    let mut idle: BTreeSet<_> = claims::all().iter().map(|claim| claim.name).collect();
    for mutation in Mutation::ALL {
        let claims = noticed(*mutation, &kept);
        println!("{mutation:?}:");
        for (claim, column) in &claims {
            println!("    {claim} ({column})");
            idle.remove(claim);
        }
        if claims.is_empty() {
            unnoticed.push(mutation);
        }
    }
    println!("{} rules broken, {} unnoticed", Mutation::ALL.len(), unnoticed.len());
    assert!(unnoticed.is_empty(), "no claim notices {unnoticed:?}");
    assert!(idle.is_empty(), "claims that nothing makes fail: {idle:?}");
}

//! The suite over the model kernel: each preset comes to what `TABLE.md` has.

use cgroupfs_conformance::table::{Table, line};
use cgroupfs_conformance::{Features, Outcome, claims, model, run};

#[test]
fn the_model_keeps_what_the_kernels_keep() {
    let kept = Table::kept();
    let mut wrong = Vec::new();
    for (column, config) in model::presets() {
        let features = Features::probe(&mut model::ModelWorld::new(&config).unwrap()).unwrap();
        for claim in claims::of(config.version) {
            let outcome = run(&claim, &features, &mut model::ModelWorld::new(&config).unwrap());
            println!("{}", line(column, &claim, &outcome));
            if let Outcome::Fails(what) = &outcome {
                wrong.push(format!("{column}: {}: {what}", claim.name));
            } else if let Some(drift) = kept.drift(column, &claim, &outcome) {
                wrong.push(format!("{column}: {}: {drift}", claim.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! A rehearsal of any cluster ends, breaks no promise, and says the same every time.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions, not in their helpers")]

use jiff::SignedDuration;
use kopsline_rolling::{History, RollOptions, classify};
use kopsline_simulator::{Case, Chance, Mix, Rehearsed, rehearse};

/// How many clusters are rehearsed.
const CLUSTERS: u64 = 60;

/// Rehearses a cluster as it is seen in the beginning of a case.
fn rehearsed(case: &Case, chance: Chance) -> Rehearsed {
    let mut world = case.world();
    world.begin();
    // Pods have had time to become ready.
    world.advance(SignedDuration::from_mins(10));
    let raw = world.answer();
    let inventory = classify(&raw, &world.spec).unwrap();
    rehearse(&inventory, raw.kubernetes.as_ref(), &case.drive.options, &History::default(), chance)
}

#[test]
fn a_rehearsal_ends_and_breaks_nothing() {
    for seed in 0..CLUSTERS {
        let case = Case::of(seed, Mix::default());
        for faults in [false, true] {
            let rehearsed = rehearsed(&case, Chance { seed, faults });
            assert!(rehearsed.violations.is_empty(), "seed {seed}, faults {faults}\n{case}{rehearsed}");
            assert!(rehearsed.outcome.is_some(), "seed {seed}, faults {faults}\n{case}{rehearsed}");
        }
    }
}

#[test]
fn a_rehearsal_replays() {
    let case = Case::of(3, Mix::default());
    let chance = Chance { seed: 7, faults: true };
    assert_eq!(rehearsed(&case, chance).to_string(), rehearsed(&case, chance).to_string());
}

#[test]
fn a_rehearsal_reads_well() {
    let mut case = Case::of(12, Mix { kubernetes: Some(true), faults: false });
    case.drive.options = RollOptions::default();
    insta::assert_snapshot!(rehearsed(&case, Chance { seed: 1, faults: false }));
}

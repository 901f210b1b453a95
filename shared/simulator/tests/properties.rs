//! What holds for every roll, whatever the cluster, the settings and the faults.
#![allow(clippy::panic, clippy::indexing_slicing, reason = "clippy allows them in test functions, not in their helpers")]

use kopsline_rolling::Outcome;
use kopsline_simulator::{Case, Kill, Mix, Rolled, transcript};
use proptest::prelude::*;

/// So many cases instead of proptest's usual 256; `PROPTEST_CASES` asks for more.
fn cases(usual: u32) -> ProptestConfig {
    let given = ProptestConfig::default();
    ProptestConfig { cases: given.cases * usual / 256, failure_persistence: None, max_shrink_iters: 0, ..given }
}

/// Fails with what it takes to find out why.
fn unbroken(case: &Case, mix: Mix, rolled: &Rolled) {
    if let Some(first) = rolled.violations.first() {
        let told = transcript(case.told().world.happenings.as_deref().unwrap_or_default());
        panic!("seed {} of {mix:?}: {first}\n{case}{told}", case.seed);
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn no_fault_breaks_a_promise(seed in any::<u64>()) {
        let mix = Mix::default();
        let case = Case::of(seed, mix);
        unbroken(&case, mix, &case.roll());
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_quiet_cluster_is_rolled_to_the_end(seed in any::<u64>(), kubernetes in any::<bool>()) {
        let mix = Mix { kubernetes: Some(kubernetes), faults: false };
        let mut case = Case::of(seed, mix);
        // Nothing that holds a drain up for good, nobody who stops the roll; where every node was cordoned before, critical
        // pods are pending from the beginning.
        case.drive.options.validation_baseline = true;
        case.touched_before = 0;
        case.workloads.iter_mut().for_each(|workload| workload.budget = None);
        case.drive.options.interactive = false;
        case.drive.options.pause_after = None;
        case.groups.iter_mut().for_each(|group| group.refuses.clear());
        let rolled = case.roll();
        unbroken(&case, mix, &rolled);
        let outcome = rolled.state.map(|state| state.outcome);
        prop_assert!(matches!(outcome, Some(Outcome::Done { .. })), "seed {seed} of {mix:?}: {outcome:?}");
    }
}

/// How a roll ended, as far as it must not depend on its pace.
fn end(rolled: &Rolled) -> String {
    match rolled.state.as_ref().map(|state| &state.outcome) {
        Some(Outcome::Done { still_need_update }) => format!("done, but {still_need_update:?}; removed {:?}", rolled.removed),
        Some(Outcome::Failed { .. }) => format!("failed; removed {:?}", rolled.removed),
        other => format!("{other:?}; removed {:?}", rolled.removed),
    }
}

/// Kills the host before and after every single effect of a roll; says how many kills that were. A roll of more effects
/// than that is left out.
fn kill_everywhere(seed: u64, mix: Mix, most: u64) -> u64 {
    let case = Case::of(seed, mix);
    let undisturbed = case.roll();
    if undisturbed.effects > most {
        return 0;
    }
    let mut kills = 0;
    for effect in 1..=undisturbed.effects {
        for kill in [Kill::Before(effect), Kill::After(effect)] {
            let mut case = case.clone();
            case.drive.kill = kill;
            let rolled = case.roll();
            assert!(rolled.violations.is_empty(), "seed {seed} of {mix:?}, {kill:?}: {}", rolled.violations[0]);
            assert_eq!(end(&rolled), end(&undisturbed), "seed {seed} of {mix:?}, {kill:?}");
            kills += 1;
        }
    }
    kills
}

/// `KILLS` asks for more than the usual number of kills.
#[test]
fn a_kill_at_any_effect_gives_the_same_end() {
    let wanted: u64 = std::env::var("KILLS").map_or(1000, |kills| kills.parse().unwrap());
    let mut kills = 0;
    for seed in 0.. {
        kills += kill_everywhere(seed, Mix { kubernetes: Some(seed % 4 > 0), faults: false }, 120);
        if kills >= wanted {
            break;
        }
    }
    println!("{kills} kills");
}

#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        let case = Case::of(seed, Mix::default());
        let (one, other) = (case.told(), case.told());
        assert_eq!(one.world.happenings, other.world.happenings, "seed {seed}");
        assert_eq!((one.state, one.decisions), (other.state, other.decisions), "seed {seed}");
    }
}

//! Rolls by the thousand.
use kopsline_simulator::{Case, Mix};
use std::time::Instant;
fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let n: u64 = args.get(1).and_then(|a| a.parse().ok()).unwrap_or(1000);
    let first: u64 = args.get(2).and_then(|a| a.parse().ok()).unwrap_or(0);
    let k = args.get(3).and_then(|a| a.parse().ok());
    let started = Instant::now();
    let mut broken = 0;
    let (mut decisions, mut effects, mut done) = (0, 0, 0);
    for seed in first..first + n {
        let case = Case::of(seed, Mix { kubernetes: k, faults: true });
        let rolled = case.roll();
        decisions += rolled.decisions;
        effects += rolled.effects;
        if matches!(rolled.state.as_ref().map(|s| &s.outcome), Some(kopsline_rolling::Outcome::Done { .. })) {
            done += 1;
        }
        if let Some(v) = rolled.violations.first() {
            broken += 1;
            if broken <= 15 {
                println!("seed {seed}: {v} ({} in all)", rolled.violations.len());
            }
        }
    }
    println!(
        "{n} rolls, {broken} broken, {done} done, {decisions} decisions, {effects} effects, {:.0} rolls/s",
        n as f64 / started.elapsed().as_secs_f64()
    );
    Ok(())
}

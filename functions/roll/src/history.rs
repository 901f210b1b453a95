//! What earlier rolls of the cluster took.

use kopsline_core::{Failure, Run, keys};
use kopsline_rolling::{History, RollState};
use kopsline_state::{Runs, Update};

/// What is known of earlier rolls; nothing before the first.
pub(crate) async fn read(runs: &Runs, run: &Run) -> Result<History, Failure> {
    let found = runs.documents().read::<History>(&key(run)).await?;
    Ok(found.map(|found| found.value).unwrap_or_default())
}

/// Takes in what a roll measured.
pub(crate) async fn learn(runs: &Runs, run: &Run, roll: &RollState) -> Result<(), Failure> {
    let learn = |history: Option<History>| {
        let mut history = history.unwrap_or_default();
        history.learn(roll);
        Ok::<_, std::convert::Infallible>(Update::Put(history, ()))
    };
    Ok(runs.documents().update(&key(run), learn).await?)
}

fn key(run: &Run) -> String {
    keys::roll_history(&run.cluster.state_store, &run.cluster.name)
}

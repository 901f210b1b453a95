//! `kopsline retry`: a finished run's commit once more, as a run of its own.

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use kopsline_core::{Phase, Run, RunId, RunState};
use kopsline_state::Runs;
use serde_json::json;

use crate::context::Context;
use crate::output::{self, Format};
use crate::{Ended, executions};

/// More attempts than this are a sign of something that another attempt does not cure.
const MAX_ATTEMPTS: u32 = 100;

/// Options of `kopsline retry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run, or any earlier attempt of its commit
    run: RunId,
}

/// Runs the command.
pub(crate) async fn run(context: &Context, format: Format, args: &Args) -> anyhow::Result<Ended> {
    let runs = context.runs()?;
    let machine = context.pipeline_arn()?;
    let given = runs.read(&args.run).await?;
    let (attempt, newest) = newest_attempt(&runs, given).await?;
    let run = match newest.state {
        state if state.is_final() => {
            let run = again(&newest, attempt + 1, Timestamp::now());
            runs.create(&run).await?;
            run
        }
        // Recorded, but perhaps never started: its creator may have died in between. Starting twice is harmless.
        RunState::Queued => newest,
        _ => bail!("{} is still under way: `kopsline status {}` shows what it waits for", newest.id, newest.id),
    };
    let execution = executions::start(&context.step_functions(), machine, run.id.as_str(), &json!({"run": run.id})).await?;
    match format {
        Format::Json => output::json(&json!({"run": run.id, "execution": execution}))?,
        Format::Text => output::line(&format!("started {}\nfollow it with `kopsline status {} --wait`", run.id, run.id)),
    }
    Ok(Ended::Well)
}

/// The number and record of the newest attempt of a run's commit.
async fn newest_attempt(runs: &Runs, given: Run) -> anyhow::Result<(u32, Run)> {
    let id = |attempt| RunId::of(&given.cluster.state_store, &given.cluster.name, &given.merge.commit, attempt);
    let mut newest = None;
    for attempt in 1..=MAX_ATTEMPTS {
        let found = runs.find(&id(attempt)).await.with_context(|| format!("attempt {attempt} of {}", given.merge.commit.short()))?;
        match found {
            Some(run) => newest = Some((attempt, run)),
            None => return newest.with_context(|| format!("{} is not an attempt of its commit {}", given.id, given.merge.commit)),
        }
    }
    bail!("{} was tried {MAX_ATTEMPTS} times: merge a change instead", given.merge.commit.short())
}

/// A fresh run of the same commit.
fn again(run: &Run, attempt: u32, now: Timestamp) -> Run {
    Run {
        id: RunId::of(&run.cluster.state_store, &run.cluster.name, &run.merge.commit, attempt),
        cluster: run.cluster.clone(),
        merge: run.merge.clone(),
        delivery: format!("retry of {}", run.id),
        received_at: now,
        state: RunState::Queued,
        execution: None,
        stages: Vec::new(),
        approvals: Vec::new(),
        update_begun: false,
        phase: Phase::All,
        plan_digest: None,
        ended_at: None,
        failure: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kopsline_core::Stage;
    use kopsline_state::Documents;
    use kopsline_state::testing::MemoryStore;

    use super::*;
    use crate::follow::tests::{at, run};

    #[tokio::test]
    async fn the_newest_attempt_counts() {
        let runs = Runs::new(Documents::new(Arc::new(MemoryStore::default())));
        let mut first = run();
        first.id = RunId::of(&first.cluster.state_store, &first.cluster.name, &first.merge.commit, 1);
        first.enter(Stage::Replace, at(1));
        first.end(RunState::Failed, None, at(2));
        runs.create(&first).await.unwrap();
        let second = again(&first, 2, at(9));
        assert_eq!((second.state, second.stages.len(), second.received_at), (RunState::Queued, 0, at(9)));
        runs.create(&second).await.unwrap();
        let (attempt, newest) = newest_attempt(&runs, first.clone()).await.unwrap();
        assert_eq!((attempt, &newest), (2, &second));

        let mut stranger = run();
        stranger.merge.commit = kopsline_core::CommitId::new(&"2".repeat(40)).unwrap();
        assert!(newest_attempt(&runs, stranger).await.is_err());
    }
}

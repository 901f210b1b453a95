//! A bounded piece of the rolling update.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kopsline_cloud::{Budget, StepOutcome, SystemClock, run_step};
use kopsline_core::{Failure, FailureKind, Run, RunId, Stage, StageState};
use kopsline_rolling::Leftover;

use crate::checkpoints::RecordCheckpoints;
use crate::{Answer, Roll, options};

/// How long a step works: a state machine waits for less money than a function does.
const LONGEST_STEP: Duration = Duration::from_mins(1);
/// What a round of observing, deciding and acting takes at most where AWS is well.
const ROUND: SignedDuration = SignedDuration::from_secs(20);
const LONGEST_SLEEP: SignedDuration = SignedDuration::from_secs(5);

impl Roll {
    /// Rolls for a while. The checkpoint in the run's record says where to go on, so it may be repeated or killed anywhere.
    pub(crate) async fn step(&self, id: &RunId, remaining: Duration, now: Timestamp) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        self.renew(&run, now, SignedDuration::ZERO).await?;
        self.runs.change(id, |record| record.enter(Stage::Roll, now)).await?;

        let total = SignedDuration::try_from(remaining.min(LONGEST_STEP)).unwrap_or(SignedDuration::ZERO);
        let outcome = run_step(&kopsline_cloud::Roll {
            cloud: &*(self.cloud)(&run.cluster.region),
            checkpoints: &RecordCheckpoints::new(&self.runs, id),
            clock: &SystemClock,
            cluster: &self.cluster(&run).await?,
            options: &options(&run)?,
            budget: Budget { total, round: ROUND, longest_sleep: LONGEST_SLEEP },
        })
        .await?;
        self.record(&run, outcome, Timestamp::now()).await
    }

    async fn record(&self, run: &Run, outcome: StepOutcome, now: Timestamp) -> Result<Answer, Failure> {
        let leave =
            async |state: StageState, note: &str| self.runs.change(&run.id, |record| record.leave(Stage::Roll, state, note, now)).await;
        match outcome {
            StepOutcome::Progress { wait_seconds, waits_for, summary } => {
                leave(StageState::Waiting, &format!("{summary}; {waits_for}")).await?;
                // Intervals may be longer than a working lease.
                let wait = SignedDuration::from_secs(wait_seconds.try_into().unwrap_or(i64::MAX));
                self.renew(run, now, wait).await?;
                Ok(Answer::Progress { wait_seconds })
            }
            StepOutcome::Done { still_need_update, summary } => {
                let note = format!("{summary}{}", leftovers(&still_need_update));
                leave(StageState::Succeeded, &note).await?;
                self.runs.event(&run.id, now, Some(Stage::Roll), "rolled", note).await?;
                Ok(Answer::Done)
            }
            StepOutcome::Failed { reason, summary } => {
                let message = format!("the rolling update stopped: {summary}; {reason}");
                leave(StageState::Failed, &message).await?;
                self.runs.event(&run.id, now, Some(Stage::Roll), "roll-failed", message.clone()).await?;
                Err(Failure::new(FailureKind::Failed, message))
            }
        }
    }
}

fn leftovers(leftovers: &[Leftover]) -> String {
    if leftovers.is_empty() {
        return String::new();
    }
    let names: Vec<_> = leftovers.iter().map(|Leftover { group, instance, .. }| format!("{instance} ({group})")).collect();
    format!("; still need an update: {}", names.join(", "))
}

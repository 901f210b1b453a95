//! Whose turn it is.

use aws_sdk_sfn::error::{DisplayErrorContext, ProvideErrorMetadata};
use aws_sdk_sfn::types::ExecutionStatus;
use jiff::Timestamp;
use kopsline_core::lock::{Acquire, Claim, Relation};
use kopsline_core::{CommitId, Failure, FailureKind, Run, Stage, StageState};
use kopsline_gitlab::{Ancestry, Source, SourceError};
use kopsline_state::locks::Facts;

use crate::{Answer, Replace};

/// How the wait for a busy lock grows: a tenth of the time waited so far, between these bounds (seconds).
const SHORTEST_WAIT: u64 = 5;
const LONGEST_WAIT: u64 = 300;

/// Asks Step Functions and git.
struct World<'a> {
    executions: &'a aws_sdk_sfn::Client,
    source: &'a dyn Source,
    commit: &'a CommitId,
}

impl Facts for World<'_> {
    type Error = Failure;

    async fn alive(&self, execution: &str) -> Result<bool, Failure> {
        match self.executions.describe_execution().execution_arn(execution).send().await {
            Ok(found) => Ok(matches!(found.status, ExecutionStatus::Running | ExecutionStatus::PendingRedrive)),
            // Step Functions forgets executions 90 days after their end.
            Err(error) if error.code() == Some("ExecutionDoesNotExist") => Ok(false),
            Err(error) => {
                Err(Failure::new(FailureKind::Transient, format!("DescribeExecution {execution} failed: {}", DisplayErrorContext(&error))))
            }
        }
    }

    async fn relation(&self, commit: &CommitId) -> Result<Relation, Failure> {
        match self.source.ancestry(commit, self.commit).await {
            Ok(Ancestry::Same) => Ok(Relation::Same),
            Ok(Ancestry::Older) => Ok(Relation::Older),
            Ok(Ancestry::Newer) => Ok(Relation::Newer),
            // A commit that a force push removed is related to nothing that is there.
            Ok(Ancestry::Diverged) | Err(SourceError::NoCommit { .. }) => Ok(Relation::Unrelated),
            Err(error) => Err(error.into()),
        }
    }
}

/// The lock is taken, or there is an answer without it.
pub(crate) enum Turn {
    Ours { abandoned: Option<Claim> },
    Answer(Answer),
}

impl Replace {
    /// Takes the lock, or says what to do without it.
    pub(crate) async fn take_turn(&self, run: &Run, execution: &str, source: &dyn Source, now: Timestamp) -> Result<Turn, Failure> {
        let world = World { executions: &self.executions, source, commit: &run.merge.commit };
        match self.lock(run).acquire(&run.claim(), execution, now, &world).await? {
            Acquire::Take { lock, abandoned } => {
                let message = format!("the lock of {} is ours, fencing token {}", run.cluster.name, lock.fence);
                self.runs.event(&run.id, now, Some(Stage::Replace), "lock-acquired", message).await?;
                Ok(Turn::Ours { abandoned })
            }
            Acquire::Renew(lock) => {
                // A call before this one may have died between taking the lock and restoring what it found.
                let abandoned = lock.holder.and_then(|holder| holder.restores);
                Ok(Turn::Ours { abandoned })
            }
            Acquire::Wait { holder, .. } => {
                let note = format!("waits for the cluster's lock, held by {holder}");
                let change = |record: &mut Run| record.leave(Stage::Replace, StageState::Waiting, note.clone(), now);
                let record = self.runs.change(&run.id, change).await?;
                let since = record.stage(Stage::Replace).map_or(now, |stage| stage.started_at);
                let waited = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
                Ok(Turn::Answer(Answer::Busy { wait_seconds: (waited / 10).clamp(SHORTEST_WAIT, LONGEST_WAIT) }))
            }
            Acquire::Superseded { by } => {
                let note = format!("a newer merge took its place: {by}");
                self.runs.change(&run.id, |record| record.leave(Stage::Replace, StageState::Skipped, note.clone(), now)).await?;
                self.runs.event(&run.id, now, Some(Stage::Replace), "superseded", note).await?;
                Ok(Turn::Answer(Answer::Superseded))
            }
        }
    }
}

//! The end of a run, however it ends: nobody waits for it afterwards, and everybody sees how it went.

use jiff::Timestamp;
use kopsline_core::{Failure, FailureKind, RunId, RunState};
use kopsline_gitlab::{CommitState, CommitStatus};
use kopsline_report::run_page;
use kopsline_state::LockFile;
use serde::Deserialize;

use crate::{Answer, Console};

/// How the state machine ended.
#[derive(Debug, Deserialize)]
pub(crate) struct Ending {
    result: RunResult,
    error: Option<String>,
    cause: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RunResult {
    Succeeded,
    NoChanges,
    Rejected,
    Superseded,
    Expired,
    Failed,
}

impl RunResult {
    fn state(self) -> RunState {
        match self {
            Self::Succeeded => RunState::Succeeded,
            Self::NoChanges => RunState::NoChanges,
            Self::Rejected => RunState::Rejected,
            Self::Superseded => RunState::Superseded,
            Self::Expired => RunState::Expired,
            Self::Failed => RunState::Failed,
        }
    }
}

impl Ending {
    fn failure(&self) -> Option<Failure> {
        if self.result.state() != RunState::Failed {
            return None;
        }
        let message = message_of(self.cause.as_deref().unwrap_or("the state machine gave no cause"));
        let kinds = [FailureKind::Transient, FailureKind::BadInput, FailureKind::Conflict, FailureKind::KopsFailed, FailureKind::LockLost];
        let named = |kind: &FailureKind| self.error.as_deref() == Some(kind.error_name());
        let kind = kinds.into_iter().find(named).unwrap_or(FailureKind::Failed);
        let message = match &self.error {
            Some(error) if kind == FailureKind::Failed && error != kind.error_name() => format!("{error}: {message}"),
            _ => message,
        };
        Some(Failure::new(kind, message))
    }
}

/// Step Functions gives a function's error as JSON; people want its message.
fn message_of(cause: &str) -> String {
    let message =
        serde_json::from_str::<serde_json::Value>(cause).ok().and_then(|json| Some(json.get("errorMessage")?.as_str()?.to_owned()));
    message.unwrap_or_else(|| cause.to_owned())
}

impl Console {
    /// Closes a run: its record ends, open questions are withdrawn, the lock is free, page and commit status tell.
    /// Every part may be repeated; the lock goes last but for the reports, so that a next run finds this one closed.
    pub(crate) async fn finish(&self, run: &RunId, ending: Ending, now: Timestamp) -> Result<Answer, Failure> {
        let (state, failure) = (ending.result.state(), ending.failure());
        let record = self.runs.change(run, |record| record.end(state, failure.clone(), now)).await?;
        for id in &record.approvals {
            self.withdraw(id).await?;
        }
        let message =
            record.failure.as_ref().map_or_else(|| format!("the run {}", record.state.as_str()), |failure| failure.message.clone());
        self.runs.event(run, record.ended_at.unwrap_or(now), None, record.state.as_str(), message.clone()).await?;
        LockFile::new(self.runs.documents().clone(), &record.cluster).release(run).await?;
        self.publish(run).await;
        Ok(Answer { outcome: record.state.as_str(), approval: None, message: Some(message) })
    }

    /// Renders the run's page and tells GitLab. Reports never decide a run's fate: what fails here is logged.
    pub(crate) async fn publish(&self, run: &RunId) {
        match run_page(&self.runs, std::slice::from_ref(run)).await {
            Ok(page) => {
                if let Err(error) = self.runs.put_text(run, "index.html", page).await {
                    tracing::warn!(%error, "the run's page was not written");
                }
            }
            Err(error) => tracing::warn!(%error, "the run's page was not rendered"),
        }
        if let Err(error) = self.commit_status(run).await {
            tracing::warn!(%error, "GitLab was not told");
        }
    }

    async fn commit_status(&self, run: &RunId) -> Result<(), Failure> {
        let Some(gitlab) = self.origin.gitlab() else { return Ok(()) };
        let record = self.runs.read(run).await?;
        let state = match record.state {
            RunState::Queued | RunState::Running => CommitState::Running,
            RunState::Succeeded | RunState::NoChanges => CommitState::Success,
            RunState::Rejected | RunState::Superseded | RunState::Expired => CommitState::Canceled,
            RunState::Failed => CommitState::Failed,
        };
        let description = match (&record.failure, record.current()) {
            (Some(failure), _) => failure.message.clone(),
            (None, Some(stage)) => stage.note.clone(),
            (None, None) => record.state.as_str().to_owned(),
        };
        let name = format!("kopsline/{}", record.cluster.name);
        let target_url = record.execution.as_deref().map(execution_page);
        let status = CommitStatus { state, name: &name, description: &description, target_url: target_url.as_deref() };
        gitlab
            .commit_status(&record.merge.project, &record.merge.commit, status)
            .await
            .map_err(|error| Failure::new(Failure::transient_or(error.is_transient(), FailureKind::Failed), error.to_string()))
    }
}

/// An execution's page in the Step Functions console.
fn execution_page(arn: &str) -> String {
    let region = arn.split(':').nth(3).unwrap_or("us-east-1");
    format!("https://{region}.console.aws.amazon.com/states/home?region={region}#/v2/executions/details/{arn}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(error: &str, cause: &str) -> Failure {
        Ending { result: RunResult::Failed, error: Some(error.into()), cause: Some(cause.into()) }.failure().unwrap()
    }

    #[test]
    fn a_functions_error_keeps_its_class_and_message() {
        let failure = ending("Kopsline.BadInput", r#"{"errorType":"Kopsline.BadInput","errorMessage":"cluster.yaml:3: no"}"#);
        assert_eq!(failure, Failure::bad_input("cluster.yaml:3: no"));
        let failure = ending("States.Timeout", "");
        assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Failed, "States.Timeout: "));
    }

    #[test]
    fn pages_of_executions() {
        let page = execution_page("arn:aws:states:eu-central-1:1:execution:pipeline:run");
        assert!(page.starts_with("https://eu-central-1.console") && page.ends_with("execution:pipeline:run"));
    }
}

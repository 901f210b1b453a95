//! The run's record: what was asked, what happened, when.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::approval::ApprovalId;
use crate::config::ClusterConfig;
use crate::failure::Failure;
use crate::ids::{CommitId, RunId};
use crate::lock::Claim;

/// A stage of a run, in the order they are gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Manifests into the state store.
    Replace,
    /// kops' dry run.
    Plan,
    /// A person looks at the plan.
    ApproveUpdate,
    /// `kops update cluster --yes`.
    Update,
    /// What would be rolled.
    RollPreview,
    /// A person looks at the preview.
    ApproveRoll,
    /// The rolling update.
    Roll,
    /// The state store put back as it was.
    Restore,
}

impl Stage {
    /// The stage's word in logs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Plan => "plan",
            Self::ApproveUpdate => "approve update",
            Self::Update => "update",
            Self::RollPreview => "roll preview",
            Self::ApproveRoll => "approve roll",
            Self::Roll => "roll",
            Self::Restore => "restore",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a stage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageState {
    /// At work.
    Running,
    /// Waits for a person, a lock or a machine.
    Waiting,
    /// Done.
    Succeeded,
    /// Not needed.
    Skipped,
    /// Ended without success.
    Failed,
}

impl StageState {
    /// Whether nothing more happens in the stage.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Skipped | Self::Failed)
    }

    /// The state's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// Which part of a change the update and the roll are at.
///
/// Nodes must not be newer than the control plane, and an Auto Scaling group launches from its newest template at any
/// time. So a new minor version of Kubernetes is brought as `kops reconcile cluster` does (kOps 1.36
/// `cmd/kops/reconcile_cluster.go`): the control plane is updated and rolled, then the nodes are, then what only the old
/// version needed is pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Everything at once: no new minor version.
    #[default]
    All,
    /// The control plane and the API servers.
    ControlPlane,
    /// The rest.
    Nodes,
    /// What only the old version needed.
    Prune,
}

impl Phase {
    /// The folder of the phase's rolling update in the run's record.
    pub fn roll_folder(self) -> &'static str {
        match self {
            Self::ControlPlane => "roll/control-plane",
            Self::All | Self::Nodes | Self::Prune => "roll",
        }
    }

    /// The name of a document of the phase's rolling update, such as `preview.txt`.
    pub fn roll_document(self, name: &str) -> String {
        format!("{}/{name}", self.roll_folder())
    }
}

/// A stage as it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Which.
    pub stage: Stage,
    /// How it stands.
    pub state: StageState,
    /// When it was first entered.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How often it was entered: retries, waits and rounds.
    pub entered: u32,
    /// One line for people: what came of it, or what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Recorded; its execution is about to start.
    Queued,
    /// At work or waiting; the last stage tells.
    Running,
    /// Everything was done.
    Succeeded,
    /// There was nothing to do.
    NoChanges,
    /// A person said no; before the update, the state store was put back.
    Rejected,
    /// Nobody answered in time; before the update, the state store was put back.
    Expired,
    /// A newer merge took its place.
    Superseded,
    /// It failed.
    Failed,
}

impl RunState {
    /// Whether the run is over.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The state's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::NoChanges => "no changes",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
        }
    }
}

/// The merge that started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The GitLab project's numeric id.
    pub project_id: u64,
    /// The project's full path.
    pub project: String,
    /// The branch.
    pub branch: String,
    /// The branch's head after the merge: what is applied.
    pub commit: CommitId,
    /// The branch's head before.
    pub before: CommitId,
    /// The commit's title.
    pub title: String,
    /// Who pushed or merged, GitLab's user name.
    pub user: String,
    /// The commit's page.
    pub url: String,
}

/// A run's record. Written conditionally: of two writers one reads again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The cluster's settings at the commit.
    pub cluster: ClusterConfig,
    /// What started it.
    pub merge: Merge,
    /// The delivery that brought it.
    pub delivery: String,
    /// When that was received.
    pub received_at: Timestamp,
    /// How it stands.
    pub state: RunState,
    /// Its Step Functions execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// Its stages, in the order they were entered.
    #[serde(default)]
    pub stages: Vec<StageRecord>,
    /// The part of the change that it is at.
    #[serde(default)]
    pub phase: Phase,
    /// Its questions, in the order they were asked.
    #[serde(default)]
    pub approvals: Vec<ApprovalId>,
    /// Whether `kops update cluster --yes` was begun: from then on nothing is put back.
    #[serde(default)]
    pub update_begun: bool,
    /// The newest plan's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_digest: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl Run {
    /// The run as the cluster's lock knows it.
    pub fn claim(&self) -> Claim {
        Claim { run: self.id.clone(), commit: self.merge.commit.clone(), received_at: self.received_at }
    }

    /// The record of a stage, if it was entered.
    pub fn stage(&self, stage: Stage) -> Option<&StageRecord> {
        self.stages.iter().find(|record| record.stage == stage)
    }

    /// The stage that is under way.
    pub fn current(&self) -> Option<&StageRecord> {
        self.stages.iter().rev().find(|record| !record.state.is_final())
    }

    /// Enters a stage, for the first time or again.
    pub fn enter(&mut self, stage: Stage, now: Timestamp) {
        if !self.state.is_final() {
            self.state = RunState::Running;
        }
        match self.stages.iter_mut().find(|record| record.stage == stage) {
            Some(record) => {
                record.state = StageState::Running;
                record.ended_at = None;
                // What it waited for or came to before is not what it does now.
                record.note.clear();
                record.entered = record.entered.saturating_add(1);
            }
            None => self.stages.push(StageRecord {
                stage,
                state: StageState::Running,
                started_at: now,
                ended_at: None,
                entered: 1,
                note: String::new(),
            }),
        }
    }

    /// Says how a stage stands now. A stage that was never entered is entered by it.
    pub fn leave(&mut self, stage: Stage, state: StageState, note: impl Into<String>, now: Timestamp) {
        if self.stage(stage).is_none() {
            self.enter(stage, now);
        }
        if let Some(record) = self.stages.iter_mut().find(|record| record.stage == stage) {
            record.state = state;
            record.note = note.into();
            record.ended_at = state.is_final().then_some(now);
        }
    }

    /// Ends the run; the first end counts. Stages still under way end with it.
    pub fn end(&mut self, state: RunState, failure: Option<Failure>, now: Timestamp) {
        if self.state.is_final() {
            return;
        }
        self.state = state;
        self.ended_at = Some(now);
        for record in self.stages.iter_mut().filter(|record| !record.state.is_final()) {
            record.state = StageState::Failed;
            record.ended_at = Some(now);
            // A run that failed says why elsewhere; the other ends are the stage's own news.
            if record.note.is_empty() && state != RunState::Failed {
                state.as_str().clone_into(&mut record.note);
            }
        }
        self.failure = failure;
    }
}

/// Something worth knowing later: the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// In which stage, if in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// A short word for what happened, such as `lock-acquired`.
    pub what: String,
    /// One line for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn run() -> Run {
        let text = r#"{"id":"demo-1","delivery":"d","received_at":"2026-01-01T00:00:00Z","state":"queued",
            "cluster":{"name":"demo.k8s.local","stateStore":"s3://state","region":"eu-central-1","kops":{"version":"1.36.2"},"sources":["c.yaml"]},
            "merge":{"project_id":1,"project":"a/b","branch":"main","commit":"1111111111111111111111111111111111111111",
                     "before":"0000000000000000000000000000000000000000","title":"t","user":"ann","url":"https://gitlab.example.com/x"}}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_stage_entered_again_keeps_its_start() {
        let mut run = run();
        run.enter(Stage::Replace, at(1));
        run.leave(Stage::Replace, StageState::Waiting, "lock is held by x", at(2));
        assert_eq!(run.current().unwrap().note, "lock is held by x");
        run.enter(Stage::Replace, at(3));
        run.leave(Stage::Replace, StageState::Succeeded, "2 objects", at(4));
        let record = run.stage(Stage::Replace).unwrap();
        assert_eq!((record.started_at, record.ended_at, record.entered), (at(1), Some(at(4)), 2));
        assert!(run.current().is_none());
    }

    #[test]
    fn the_first_end_counts() {
        let mut run = run();
        run.enter(Stage::Plan, at(1));
        run.end(RunState::Rejected, None, at(2));
        run.end(RunState::Failed, None, at(3));
        assert_eq!((run.state, run.ended_at), (RunState::Rejected, Some(at(2))));
        assert_eq!(run.stage(Stage::Plan).unwrap().state, StageState::Failed);
    }

    #[test]
    fn the_record_reads_back() {
        let run = run();
        let text = serde_json::to_string(&run).unwrap();
        assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), run);
    }
}

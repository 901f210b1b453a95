//! The loop around the planner: observe, decide, store, act, wait.

use jiff::{SignedDuration, Timestamp};
use kopsline_cloud::{Cloud, CloudError};
use kopsline_core::{Classify, FailureKind};
use kopsline_kube::Kubernetes;
use kopsline_rolling::{
    ClusterFacts, ClusterSpec, Inventory, InventoryError, Leftover, Observation, Outcome, Preview, Question, RollOptions, RollState,
    SelectionError, StartError, Summary, Until, WaitReason, classify, next,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::commands::execute;
use crate::ports::{CheckpointError, Checkpoints, Clock, Desk, DeskError, Saved};

/// How much time a step may take.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// The time until the step should have returned.
    pub total: SignedDuration,
    /// What a round (observe, decide, store, act) may take: none is begun with less time left.
    pub round: SignedDuration,
    /// The longest wait that is slept through; a longer one is returned to the caller.
    pub longest_sleep: SignedDuration,
}

impl Default for Budget {
    /// Of a Lambda function with a timeout of 5 minutes, waited for by a state machine.
    fn default() -> Self {
        Self { total: SignedDuration::from_secs(240), round: SignedDuration::from_secs(120), longest_sleep: SignedDuration::from_secs(3) }
    }
}

/// What a step works with.
pub struct Roll<'a> {
    /// The cloud.
    pub cloud: &'a dyn Cloud,
    /// The Kubernetes API; `None` for a roll that is `cloudonly`.
    pub kubernetes: Option<&'a dyn Kubernetes>,
    /// Where the state is kept.
    pub checkpoints: &'a dyn Checkpoints,
    /// Where people speak to the roll, and hear of it.
    pub desk: &'a dyn Desk,
    /// The time.
    pub clock: &'a dyn Clock,
    /// The cluster as the state store has it.
    pub cluster: &'a ClusterSpec,
    /// How to roll. Only the first step reads them; later ones go on as the checkpoint says.
    pub options: &'a RollOptions,
    /// The preview that was approved: what is not in it is not touched. Only the first step reads it.
    pub approved: Option<&'a Preview>,
    /// How much time the step may take.
    pub budget: Budget,
}

/// How far a step got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum StepOutcome {
    /// The roll goes on: call again after a while.
    Progress {
        /// Seconds to wait before the next step.
        wait_seconds: u64,
        /// What for, for people.
        waits_for: String,
        /// How far the roll is.
        summary: Summary,
    },
    /// The roll does nothing until somebody answers, or the question's own deadline decides.
    Asks {
        /// What it asks.
        question: Question,
        /// How far the roll is.
        summary: Summary,
    },
    /// The roll does nothing until somebody lets it go on.
    Paused {
        /// How far the roll is.
        summary: Summary,
    },
    /// The roll has ended.
    Done {
        /// Instances that need an update even so.
        still_need_update: Vec<Leftover>,
        /// How far the roll is.
        summary: Summary,
    },
    /// The roll has failed and touches nothing further.
    Failed {
        /// Why, for people.
        reason: String,
        /// How far the roll is.
        summary: Summary,
    },
    /// Somebody ended the roll; it touches nothing further.
    Aborted {
        /// Who and why, for people.
        reason: String,
        /// How far the roll is.
        summary: Summary,
    },
}

/// Why a step did not get anywhere. The roll itself is as its checkpoint says.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The cloud could not be observed.
    #[error("the cloud could not be observed")]
    Cloud(#[from] CloudError),
    /// The cloud's answers make no sense.
    #[error("the cluster's inventory makes no sense")]
    Inventory(#[from] InventoryError),
    /// The selection names something that does not exist.
    #[error("the selection of instance groups is wrong")]
    Selection(#[from] SelectionError),
    /// The roll cannot be started.
    #[error("the rolling update cannot be started")]
    Start(#[from] StartError),
    /// The checkpoint could not be loaded or saved.
    #[error("the checkpoint is not available")]
    Checkpoint(#[from] CheckpointError),
    /// People could not be heard or told.
    #[error("the roll's record is not available")]
    Desk(#[from] DeskError),
    /// The checkpoint is another cluster's.
    #[error("the checkpoint is of cluster {found:?}, not of {wanted:?}")]
    OtherCluster {
        /// The checkpoint's cluster.
        found: String,
        /// The cluster to roll.
        wanted: String,
    },
}

impl StepError {
    /// Whether the same step may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Cloud(error) => error.is_transient(),
            Self::Checkpoint(CheckpointError::Store { transient, .. }) => *transient,
            Self::Desk(error) => error.transient,
            Self::Start(StartError::NoKubernetes) => true,
            Self::Checkpoint(CheckpointError::Conflict | CheckpointError::State(_))
            | Self::Inventory(_)
            | Self::Selection(_)
            | Self::Start(StartError::Selection(_))
            | Self::OtherCluster { .. } => false,
        }
    }

    /// Whether another step of the same roll is running: it goes on, this one must not.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Checkpoint(CheckpointError::Conflict))
    }
}

impl Classify for StepError {
    fn kind(&self) -> FailureKind {
        match self {
            // The other step goes on; called again, this one goes on from where that one came to.
            _ if self.is_transient() || self.is_conflict() => FailureKind::Transient,
            Self::Selection(_) | Self::Start(StartError::Selection(_)) => FailureKind::BadInput,
            _ => FailureKind::Failed,
        }
    }
}

/// Does as much of a rolling update as the budget allows.
///
/// Every state is stored before its commands are executed, so a step may be killed at any instruction and called again.
/// Of two steps at the same time one fails with a conflict before it has done anything.
pub async fn run_step(roll: &Roll<'_>) -> Result<StepOutcome, StepError> {
    let deadline = roll.clock.now().saturating_add(roll.budget.total).unwrap_or(Timestamp::MAX);
    let mut saved = roll.checkpoints.load().await?;
    loop {
        if let Some(Saved { state, .. }) = &saved {
            if state.cluster != roll.cluster.name {
                return Err(StepError::OtherCluster { found: state.cluster.clone(), wanted: roll.cluster.name.clone() });
            }
            if let Some(outcome) = ended(state) {
                return Ok(outcome);
            }
        }
        let seen = observe(roll).await?;
        let (after, until) = round(roll, saved, &seen).await?;
        let Some(until) = until else {
            saved = Some(after);
            continue;
        };
        let now = roll.clock.now();
        let wait = until.at.duration_since(now).max(SignedDuration::ZERO);
        let left = deadline.duration_since(now);
        // What waits for a person is told at once: nobody answers what nobody was asked.
        let for_a_person = matches!(until.reason, WaitReason::Question { .. } | WaitReason::Paused);
        if for_a_person || wait > roll.budget.longest_sleep || wait.saturating_add(roll.budget.round) > left {
            return Ok(waiting(&after.state, &until, wait));
        }
        roll.clock.sleep(wait).await;
        saved = Some(after);
    }
}

/// What is seen in one look.
struct Seen {
    inventory: Inventory,
    /// Or why the API does not answer.
    cluster: Result<ClusterFacts, String>,
}

/// Looks at the cloud and at the cluster side by side. An API that does not answer is not an error here: a roll may have
/// to wait for it.
async fn observe(roll: &Roll<'_>) -> Result<Seen, StepError> {
    let cluster = async {
        match roll.kubernetes {
            Some(kubernetes) => kubernetes.observe().await.map_err(|error| {
                warn!(%error, "the Kubernetes API does not answer");
                error.to_string()
            }),
            None => Err("no Kubernetes API is configured".to_owned()),
        }
    };
    let (raw, cluster) = futures::join!(roll.cloud.observe(&roll.cluster.name), cluster);
    let mut raw = raw?;
    // The inventory is about instances and their nodes; the pods may be a hundred thousand.
    let nodes = |facts: &ClusterFacts| ClusterFacts { nodes: facts.nodes.clone(), ..ClusterFacts::default() };
    raw.kubernetes = cluster.as_ref().ok().map(nodes);
    Ok(Seen { inventory: classify(&raw, roll.cluster)?, cluster })
}

/// What to tell the caller about a wait that is not slept through.
fn waiting(state: &RollState, until: &Until, wait: SignedDuration) -> StepOutcome {
    let summary = state.summary();
    info!(%summary, waits_for = %until.reason, "rolling update goes on");
    match (&until.reason, state.questions.first()) {
        (WaitReason::Question { .. }, Some(question)) => StepOutcome::Asks { question: question.clone(), summary },
        (WaitReason::Paused, _) => StepOutcome::Paused { summary },
        _ => StepOutcome::Progress { wait_seconds: whole_seconds(wait), waits_for: until.reason.to_string(), summary },
    }
}

/// Decides, stores and acts until there is something to wait for, or the roll has ended (then there is no wait).
async fn round(roll: &Roll<'_>, saved: Option<Saved>, seen: &Seen) -> Result<(Saved, Option<Until>), StepError> {
    let (mut state, mut version) = match saved {
        Some(Saved { state, version }) => (state, Some(version)),
        None => (RollState::start(&seen.inventory, roll.options.clone(), roll.clock.now(), roll.approved)?, None),
    };
    let mut results = Vec::new();
    loop {
        let now = roll.clock.now();
        let control = roll.desk.control(now).await?;
        let kubernetes = seen.cluster.as_ref().map_err(String::as_str);
        let decision = next(&state, &Observation { now, inventory: &seen.inventory, kubernetes, results: &results, control: &control });
        let stored = match version {
            Some(version) if decision.state == state => version,
            expected => save(roll.checkpoints, &decision.state, expected.as_deref()).await?,
        };
        if !decision.events.is_empty() {
            roll.desk.tell(&decision.events).await?;
        }
        state = decision.state;
        if decision.commands.is_empty() {
            return Ok((Saved { state, version: stored }, decision.wait));
        }
        version = Some(stored);
        results = execute(roll.cloud, roll.kubernetes, decision.commands).await;
    }
}

/// Saves, and recognises its own write when the answer to it was lost and the store's retry met it.
async fn save(checkpoints: &dyn Checkpoints, state: &RollState, expected: Option<&str>) -> Result<String, CheckpointError> {
    match checkpoints.save(state, expected).await {
        Err(CheckpointError::Conflict) => match checkpoints.load().await? {
            Some(found) if found.state == *state => Ok(found.version),
            _ => Err(CheckpointError::Conflict),
        },
        result => result,
    }
}

fn ended(state: &RollState) -> Option<StepOutcome> {
    let summary = state.summary();
    match &state.outcome {
        Outcome::Running | Outcome::Unwinding { .. } => None,
        Outcome::Done { still_need_update } => Some(StepOutcome::Done { still_need_update: still_need_update.clone(), summary }),
        Outcome::Failed { reason } => Some(StepOutcome::Failed { reason: reason.clone(), summary }),
        Outcome::Aborted { reason } => Some(StepOutcome::Aborted { reason: reason.clone(), summary }),
    }
}

/// Rounded up: a step called a moment too early would only have to wait again.
fn whole_seconds(wait: SignedDuration) -> u64 {
    let seconds = wait.as_secs() + i64::from(wait.subsec_nanos() > 0);
    u64::try_from(seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests;

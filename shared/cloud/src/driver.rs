//! The loop around the planner: observe, decide, store, act, wait.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use kopsline_core::{Classify, FailureKind};
use kopsline_rolling::{
    Action, ClusterSpec, Command, CommandError, CommandResult, Control, Inventory, InventoryError, Leftover, Observation, Outcome, Refusal,
    RollOptions, RollState, SelectionError, StartError, StateError, Summary, Until, classify, next,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::{Cloud, CloudError};

/// A stored state and the version under which it was stored (an S3 `ETag`, for example).
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// The state.
    pub state: RollState,
    /// Its version, to be given back when it is replaced.
    pub version: String,
}

/// Why a checkpoint was not loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Someone else has stored another state since.
    #[error("the checkpoint was changed by someone else")]
    Conflict,
    /// The stored state cannot be used.
    #[error("the checkpoint cannot be used")]
    State(#[from] StateError),
    /// The store failed, after its own retries.
    #[error("the checkpoint could not be read or written")]
    Store {
        /// Whether it may work later.
        transient: bool,
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where the state of one rolling update is kept.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// The newest state, if the roll has begun.
    async fn load(&self) -> Result<Option<Saved>, CheckpointError>;

    /// Replaces the state of version `expected` (`None`: there is none yet) and returns the new version;
    /// [`CheckpointError::Conflict`] if the stored version is another.
    async fn save(&self, state: &RollState, expected: Option<&str>) -> Result<String, CheckpointError>;
}

/// The time.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
    /// Waits.
    async fn sleep(&self, duration: SignedDuration);
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn sleep(&self, duration: SignedDuration) {
        tokio::time::sleep(Duration::try_from(duration).unwrap_or_default()).await;
    }
}

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
    /// Where the state is kept.
    pub checkpoints: &'a dyn Checkpoints,
    /// The time.
    pub clock: &'a dyn Clock,
    /// The cluster as the state store has it.
    pub cluster: &'a ClusterSpec,
    /// How to roll. Only the first step reads them; later ones go on as the checkpoint says.
    pub options: &'a RollOptions,
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
        let inventory = classify(&roll.cloud.observe(&roll.cluster.name).await?, roll.cluster)?;
        let (after, until) = round(roll, saved, &inventory).await?;
        let Some(until) = until else {
            saved = Some(after);
            continue;
        };
        let now = roll.clock.now();
        let wait = until.at.duration_since(now).max(SignedDuration::ZERO);
        let left = deadline.duration_since(now);
        if wait > roll.budget.longest_sleep || wait.saturating_add(roll.budget.round) > left {
            let summary = after.state.summary();
            info!(%summary, waits_for = %until.reason, "rolling update goes on");
            return Ok(StepOutcome::Progress { wait_seconds: whole_seconds(wait), waits_for: until.reason.to_string(), summary });
        }
        roll.clock.sleep(wait).await;
        saved = Some(after);
    }
}

/// Decides, stores and acts until there is something to wait for, or the roll has ended (then there is no wait).
async fn round(roll: &Roll<'_>, saved: Option<Saved>, inventory: &Inventory) -> Result<(Saved, Option<Until>), StepError> {
    let (mut state, mut version) = match saved {
        Some(Saved { state, version }) => (state, Some(version)),
        None => (RollState::start(inventory, roll.options.clone(), roll.clock.now(), None)?, None),
    };
    let mut results = Vec::new();
    loop {
        let observation = Observation {
            now: roll.clock.now(),
            inventory,
            kubernetes: Err("this host does not speak to it"),
            results: &results,
            control: &Control::default(),
        };
        let decision = next(&state, &observation);
        let stored = match version {
            Some(version) if decision.state == state => version,
            expected => save(roll.checkpoints, &decision.state, expected.as_deref()).await?,
        };
        state = decision.state;
        if decision.commands.is_empty() {
            return Ok((Saved { state, version: stored }, decision.wait));
        }
        version = Some(stored);
        results = execute(roll.cloud, decision.commands).await;
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

async fn execute(cloud: &dyn Cloud, commands: Vec<Command>) -> Vec<CommandResult> {
    let instance_of = |command: &Command| match &command.action {
        Action::Terminate { instance } => Some(instance.clone()),
        _ => None,
    };
    let ids: Vec<String> = commands.iter().filter_map(instance_of).collect();
    info!(instances = ids.join(","), "terminating");
    let mut results: BTreeMap<_, _> = cloud.terminate(&ids).await.into_iter().collect();
    commands
        .into_iter()
        .filter_map(|command| {
            let result = results.remove(&instance_of(&command)?)?.map_err(|error| {
                warn!(group = command.group, %error, "termination failed");
                let kind = if error.is_transient() { Refusal::Transient } else { Refusal::Permanent };
                CommandError { kind, message: error.to_string() }
            });
            Some(CommandResult { command, result })
        })
        .collect()
}

fn ended(state: &RollState) -> Option<StepOutcome> {
    let summary = state.summary();
    match &state.outcome {
        Outcome::Running | Outcome::Unwinding { .. } => None,
        Outcome::Done { still_need_update } => Some(StepOutcome::Done { still_need_update: still_need_update.clone(), summary }),
        Outcome::Failed { reason } | Outcome::Aborted { reason } => Some(StepOutcome::Failed { reason: reason.clone(), summary }),
    }
}

/// Rounded up: a step called a moment too early would only have to wait again.
fn whole_seconds(wait: SignedDuration) -> u64 {
    let seconds = wait.as_secs() + i64::from(wait.subsec_nanos() > 0);
    u64::try_from(seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests;

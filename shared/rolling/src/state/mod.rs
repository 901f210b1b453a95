//! The checkpoint of a rolling update: everything that must outlive a process.

mod group;
mod instance;

use std::collections::HashSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::control::Question;
use crate::inventory::Inventory;
use crate::options::RollOptions;
use crate::preview::Preview;
use crate::spec::SelectionError;
use crate::validation::Failure;
pub use group::{Call, Gate, GateAfter, GroupError, GroupPhase, GroupRoll, GroupStep};
pub use instance::{Blocker, Drain, Held, InstancePhase, InstanceRoll, Origin, Preparation, Replaced};

/// The version of [`RollState`]'s JSON. A state of another version is refused, never guessed at.
pub const SCHEMA_VERSION: u32 = 2;

/// A rolling update, from its start to its end.
///
/// A state is stored before the commands that came with it are executed, so it always says at least as much as was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollState {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// The cluster.
    pub cluster: String,
    /// How to roll.
    pub options: RollOptions,
    /// When the roll started; the instances to replace were fixed then.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Whether and how it ended.
    pub outcome: Outcome,
    /// The groups that have instances to replace, in the order of the roll.
    pub groups: Vec<GroupRoll>,
    /// The failures that were there when the roll began, and do not block it; unset until the cluster was seen.
    #[serde(default)]
    pub baseline: Option<Vec<Failure>>,
    /// Questions that are open.
    #[serde(default)]
    pub questions: Vec<Question>,
    /// Instances that needed an update at the start, but were not in the preview that was approved: never touched.
    #[serde(default)]
    pub not_approved: Vec<Leftover>,
    /// The pause of `pause_after` in per cent is over.
    #[serde(default)]
    pub checkpoint_passed: bool,
    /// Somebody answered an interactive question with [`Choice::Always`](crate::Choice::Always).
    #[serde(default)]
    pub asks_no_more: bool,
}

/// Whether and how a roll ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on.
    Running,
    /// It will end without having replaced everything; what was not replaced is being given back: nodes are made
    /// schedulable, instances registered, `AZRebalance` resumed.
    Unwinding {
        /// Why, for people.
        reason: String,
        /// Whether somebody wanted it so.
        aborted: bool,
    },
    /// Every instance had its turn.
    Done {
        /// Instances that need an update even so: launched from an old template meanwhile, or in a group whose
        /// `drainAndTerminate` is false.
        still_need_update: Vec<Leftover>,
    },
    /// It stopped and touches nothing further.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// Somebody stopped it; it touches nothing further.
    Aborted {
        /// Who and why, for people.
        reason: String,
    },
}

impl Outcome {
    /// Whether the roll has ended.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Running | Self::Unwinding { .. })
    }
}

/// An instance that needs an update after the roll.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Leftover {
    /// The instance group.
    pub group: String,
    /// The instance.
    pub instance: String,
    /// Why it was left.
    #[serde(default)]
    pub why: LeftoverReason,
}

/// Why an instance still needs an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverReason {
    /// It was launched from an old template meanwhile, or the template changed again.
    #[default]
    Late,
    /// Its group's `drainAndTerminate` is false.
    Disabled,
    /// It was not in the preview that was approved.
    NotApproved,
    /// Its drain was stuck, and it was decided to leave it.
    Skipped,
}

/// How far a roll is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Instances to replace.
    pub total: usize,
    /// Those that had their turn, those that vanished included.
    pub finished: usize,
    /// Those that are down now.
    pub in_flight: usize,
    /// Those whose turn has not come.
    pub waiting: usize,
    /// Those that could not be drained or terminated.
    pub failed: usize,
    /// Those that were left as they were.
    #[serde(default)]
    pub skipped: usize,
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not a checkpoint.
    #[error("the checkpoint of the rolling update cannot be read")]
    Malformed(#[from] serde_json::Error),
    /// A checkpoint of another version of this program.
    #[error(
        "the checkpoint has schema version {found}, this program reads {SCHEMA_VERSION}; finish the roll with the version that started it"
    )]
    Version {
        /// The version found.
        found: u32,
    },
}

/// A roll that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The selection is wrong.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// The Kubernetes API was not looked at, or does not answer.
    #[error(
        "the Kubernetes API does not answer; without it nodes cannot be drained nor the cluster validated (cloudonly rolls without both)"
    )]
    NoKubernetes,
}

impl RollState {
    /// Fixes which instances will be replaced, and in which order. Instances launched later are never touched. With an
    /// approved preview only instances that it names are replaced; the others are reported as left over.
    pub fn start(inventory: &Inventory, options: RollOptions, now: Timestamp, approved: Option<&Preview>) -> Result<Self, StartError> {
        if !options.cloudonly && !inventory.nodes_known {
            return Err(StartError::NoKubernetes);
        }
        let selected = options.selection.resolve(&inventory.cluster)?;
        let approved: Option<HashSet<&str>> =
            approved.map(|preview| preview.rows.iter().flat_map(|row| &row.replace).map(|instance| instance.id.as_str()).collect());
        let mut not_approved = Vec::new();
        let mut groups: Vec<_> = inventory
            .groups
            .values()
            .filter(|group| selected.contains(&group.spec.name))
            .map(|group| GroupRoll::new(inventory, group, &options, approved.as_ref(), &mut not_approved))
            .filter(|group| !group.instances.is_empty())
            .collect();
        groups.sort_by(|a, b| (a.role, &a.name).cmp(&(b.role, &b.name)));
        Ok(Self {
            version: SCHEMA_VERSION,
            cluster: inventory.cluster.name.clone(),
            options,
            started: now,
            finished: None,
            outcome: Outcome::Running,
            groups,
            baseline: None,
            questions: Vec::new(),
            not_approved,
            checkpoint_passed: false,
            asks_no_more: false,
        })
    }

    /// The checkpoint as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, StateError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads a checkpoint, of this schema version only.
    pub fn from_json(bytes: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != SCHEMA_VERSION {
            return Err(StateError::Version { found: version });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// How far the roll is.
    pub fn summary(&self) -> Summary {
        Summary::of(self.groups.iter().flat_map(|group| &group.instances))
    }
}

impl Summary {
    pub(crate) fn of<'a>(instances: impl Iterator<Item = &'a InstanceRoll>) -> Self {
        let mut summary = Self::default();
        for instance in instances {
            summary.total += 1;
            *match instance.phase {
                InstancePhase::Waiting | InstancePhase::Detaching { .. } => &mut summary.waiting,
                InstancePhase::Preparing { .. }
                | InstancePhase::Draining(_)
                | InstancePhase::Settling { .. }
                | InstancePhase::Terminating { .. }
                | InstancePhase::Terminated
                | InstancePhase::Returning { .. } => &mut summary.in_flight,
                InstancePhase::Done | InstancePhase::Vanished => &mut summary.finished,
                InstancePhase::Skipped { .. } => &mut summary.skipped,
                InstancePhase::Failed { .. } => &mut summary.failed,
            } += 1;
        }
        summary
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} instances replaced", self.finished, self.total)?;
        if self.in_flight > 0 {
            write!(f, ", {} in progress", self.in_flight)?;
        }
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

//! What happened in a roll, one record per effect: a host appends the events of each decision to the run's record.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::command::{Action, Refusal};
use crate::control::Choice;
use crate::validation::Failure;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollEvent {
    /// When.
    pub at: Timestamp,
    /// The instance group, unless it concerns the whole roll.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// The instance.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A command was decided on; it is executed once the state is stored.
    Effect {
        /// The command.
        effect: Action,
    },
    /// A command was not done. Evictions that a budget refuses are told once per instance, not each time.
    Refused {
        /// The command.
        effect: Action,
        /// What may come of it.
        kind: Refusal,
        /// What the other side said.
        message: String,
    },
    /// The failures that were there when the roll began, and do not block it.
    Baseline {
        /// The failures.
        failures: Vec<Failure>,
    },
    /// The group's turn came.
    GroupStarted {
        /// How many instances are to be replaced.
        instances: usize,
    },
    /// The cluster validated.
    ValidationPassed {
        /// How often in a row.
        passed: u32,
        /// How often it must.
        wanted: u32,
    },
    /// The cluster did not validate.
    ValidationFailed {
        /// What stands in the way, shortened.
        failures: Vec<String>,
    },
    /// The cluster did not validate in time, and `fail_on_validate_error` says to go on.
    ValidationIgnored {
        /// What stood in the way, shortened.
        failures: Vec<String>,
    },
    /// No pod is left that could be evicted.
    Drained,
    /// An instance could not be prepared or drained, and is terminated anyway.
    DrainIgnored {
        /// Why it could not.
        error: String,
    },
    /// The cloud accepted the instance's termination.
    Terminated,
    /// The instance went away before its turn.
    Vanished,
    /// Another instance is in service in its place.
    Joined {
        /// The new instance.
        by: String,
    },
    /// The instance is left as it was before its turn.
    Skipped {
        /// Why.
        why: String,
    },
    /// A question was put.
    Asked {
        /// Its id.
        question: String,
        /// The question.
        text: String,
    },
    /// A question was decided.
    Decided {
        /// Its id.
        question: String,
        /// How.
        choice: Choice,
        /// By whom; empty where the deadline or an option decided.
        by: String,
    },
    /// A question solved itself.
    Withdrawn {
        /// Its id.
        question: String,
    },
    /// The group is through.
    GroupEnded {
        /// Why it stopped, if it did.
        error: Option<String>,
    },
    /// An abort or a failure: what was not replaced is given back.
    Unwinding {
        /// Why.
        reason: String,
    },
    /// The roll ended.
    Ended {
        /// How.
        outcome: String,
    },
}

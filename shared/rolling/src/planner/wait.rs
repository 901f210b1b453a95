//! What a roll waits for, and until when.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// When to look again, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Until {
    /// Not before this.
    pub at: Timestamp,
    /// What the roll waits for.
    pub reason: WaitReason,
}

/// What a roll waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wait", rename_all = "snake_case")]
pub enum WaitReason {
    /// The interval after a termination or a detachment.
    Interval {
        /// The instance group.
        group: String,
        /// The terminated or detached instance.
        instance: String,
    },
    /// The group has too few instances in service.
    InService {
        /// The instance group that lacks instances.
        group: String,
        /// How many are in service.
        in_service: usize,
        /// How many should be.
        target: usize,
        /// When the roll gives up.
        deadline: Timestamp,
    },
    /// The group is not in the cloud's answer.
    Missing {
        /// The instance group.
        group: String,
        /// When the roll gives up.
        deadline: Timestamp,
    },
    /// The cluster does not validate.
    Validation {
        /// The instance group.
        group: String,
        /// What stands in the way, shortened.
        failures: Vec<String>,
        /// When the roll gives up.
        deadline: Timestamp,
    },
    /// The cluster validated; it must do so again.
    Validated {
        /// The instance group.
        group: String,
        /// How often it did.
        passed: u32,
        /// How often it must.
        wanted: u32,
    },
    /// A call failed and will be made again.
    Retry {
        /// The instance group.
        group: String,
        /// The instance; the group's own calls have none.
        instance: String,
        /// The call.
        call: String,
    },
    /// Connections of an instance that leaves its load balancers are drained.
    Deregistration {
        /// The instance group.
        group: String,
        /// The instance.
        instance: String,
    },
    /// Pods of a node are on their way out.
    Drain {
        /// The instance group.
        group: String,
        /// The instance.
        instance: String,
        /// The node.
        node: String,
        /// How many pods are left.
        remaining: usize,
        /// One of them that does not go, as `namespace/name`.
        pod: Option<String>,
        /// The budget that refuses its eviction, as `namespace/name`.
        budget: Option<String>,
        /// When the drain counts as stuck.
        deadline: Option<Timestamp>,
    },
    /// The pause between a drain and the termination.
    PostDrainDelay {
        /// The instance group.
        group: String,
        /// The instance.
        instance: String,
    },
    /// An answer.
    Question {
        /// The question's id.
        id: String,
        /// The question.
        text: String,
        /// When it is decided without one.
        deadline: Option<Timestamp>,
    },
    /// Somebody paused the roll.
    Paused,
    /// The change window is closed.
    Closed {
        /// Until then.
        until: Timestamp,
    },
    /// The Kubernetes API.
    Kubernetes {
        /// What it said last.
        message: String,
    },
    /// What was just done has to show.
    News {
        /// The instance group.
        group: String,
    },
}

impl std::fmt::Display for WaitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interval { group, instance } => write!(f, "the interval after terminating {instance} of {group}"),
            Self::InService { group, in_service, target, .. } => {
                write!(f, "{group} to be complete: {in_service} of {target} instances in service")
            }
            Self::Missing { group, .. } => write!(f, "{group} to appear in the cloud"),
            Self::Validation { group, failures, .. } => write!(f, "the cluster to validate for {group}: {}", failures.join("; ")),
            Self::Validated { group, passed, wanted } => {
                write!(f, "the cluster to validate again for {group}: {passed} of {wanted} times in a row")
            }
            Self::Retry { group, instance, call } if instance.is_empty() => write!(f, "another attempt to {call} for {group}"),
            Self::Retry { group, instance, call } => write!(f, "another attempt to {call} {instance} of {group}"),
            Self::Deregistration { group, instance } => write!(f, "the load balancers to let go of {instance} of {group}"),
            Self::Drain { group, instance, node, remaining, pod, budget, .. } => {
                let pods = if *remaining == 1 { "1 pod".to_owned() } else { format!("{remaining} pods") };
                write!(f, "{pods} to leave node {node} ({instance} of {group})")?;
                match (pod, budget) {
                    (Some(pod), Some(budget)) => write!(f, "; {pod} is held by PodDisruptionBudget {budget}"),
                    (Some(pod), None) => write!(f, "; {pod} is one of them"),
                    (None, _) => Ok(()),
                }
            }
            Self::PostDrainDelay { group, instance } => write!(f, "the pause between the drain of {instance} of {group} and its end"),
            Self::Question { id, text, .. } => write!(f, "an answer to question {id}: {text}"),
            Self::Paused => f.write_str("somebody to resume the roll"),
            Self::Closed { until } => write!(f, "the change window, which is closed until {until}"),
            Self::Kubernetes { message } => write!(f, "the Kubernetes API to answer: {message}"),
            Self::News { group } => write!(f, "the last calls for {group} to show"),
        }
    }
}

/// The earlier of the two; the one that was there first if they are at the same time.
pub(super) fn earliest(one: Option<Until>, other: Until) -> Until {
    match one {
        Some(one) if one.at <= other.at => one,
        _ => other,
    }
}

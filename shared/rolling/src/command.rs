//! What a rolling update does to the cloud and the cluster.

use serde::{Deserialize, Serialize};

use crate::kubernetes::PodRef;

/// Something to do. Every command may be executed again: the second time changes nothing. What it concerns being gone
/// already is a success.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Command {
    /// The instance group that it belongs to.
    pub group: String,
    /// What to do.
    #[serde(flatten)]
    pub action: Action,
}

/// What to do to a group, a node, a pod or an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Suspend the process `AZRebalance` of an Auto Scaling group, which would terminate instances by itself.
    SuspendRebalance {
        /// The Auto Scaling group.
        auto_scaling_group: String,
    },
    /// Resume it.
    ResumeRebalance {
        /// The Auto Scaling group.
        auto_scaling_group: String,
    },
    /// Give a node the taint `kops.k8s.io/scheduled-for-update:PreferNoSchedule`.
    Taint {
        /// The node.
        node: String,
    },
    /// Take the taint away.
    Untaint {
        /// The node.
        node: String,
    },
    /// Make a node unschedulable.
    Cordon {
        /// The node.
        node: String,
    },
    /// Make it schedulable again.
    Uncordon {
        /// The node.
        node: String,
    },
    /// Give a node the label `node.kubernetes.io/exclude-from-external-load-balancers`.
    ExcludeFromLoadBalancers {
        /// The node.
        node: String,
    },
    /// Take the label away.
    IncludeInLoadBalancers {
        /// The node.
        node: String,
    },
    /// Take an instance out of its group's load balancers and target groups; pending until the last connection is drained.
    Deregister {
        /// The Auto Scaling group.
        auto_scaling_group: String,
        /// The instance.
        instance: String,
    },
    /// Put an instance back into its group's load balancers and target groups.
    Register {
        /// The Auto Scaling group.
        auto_scaling_group: String,
        /// The instance.
        instance: String,
    },
    /// Evict a pod through the Eviction API, which its budgets may refuse.
    Evict {
        /// The pod.
        pod: PodRef,
    },
    /// Delete a pod whatever its budgets say.
    DeletePod {
        /// The pod.
        pod: PodRef,
    },
    /// Tag an instance `kops.k8s.io/detached-from-asg`, before it is detached, so that nobody loses it.
    MarkDetached {
        /// The Auto Scaling group.
        auto_scaling_group: String,
        /// The instance.
        instance: String,
    },
    /// Detach an instance from its group, which launches another one.
    Detach {
        /// The Auto Scaling group.
        auto_scaling_group: String,
        /// The instance.
        instance: String,
    },
    /// Terminate an instance.
    Terminate {
        /// The instance.
        instance: String,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandResult {
    /// The command.
    pub command: Command,
    /// Whether it is done.
    pub result: Result<(), CommandError>,
}

/// Why a command is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    /// What may come of it.
    pub kind: Refusal,
    /// What the other side said.
    pub message: String,
}

/// What may come of a command that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It was accepted and needs time; the same command asks how far it is.
    Pending,
    /// A `PodDisruptionBudget` does not allow it now.
    Blocked,
    /// A passing fault: throttling, an outage, a lost answer.
    Transient,
    /// It will not be done.
    Permanent,
}

//! One instance of a roll, and where it stands.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::group::Call;
use crate::inventory::{Instance, Status};

/// One instance of a roll and its times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRoll {
    /// The instance.
    pub id: String,
    /// Availability zone.
    pub zone: String,
    /// Why it is replaced.
    pub origin: Origin,
    /// Where it stands.
    #[serde(flatten)]
    pub phase: InstancePhase,
    /// Its node, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What the roll did to it and gives back unless it is replaced.
    #[serde(default, skip_serializing_if = "Held::is_nothing")]
    pub held: Held,
    /// When its replacement was decided.
    pub started: Option<Timestamp>,
    /// When its node was made unschedulable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<Timestamp>,
    /// When no pod was left on it that could be evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Timestamp>,
    /// When it was detached from its group by this roll.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<Timestamp>,
    /// It could not be detached; another one was instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_detached: bool,
    /// When its termination was last asked for. It may have been carried out, whatever is seen: an answer may be lost, and
    /// what is observed may be old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condemned: Option<Timestamp>,
    /// When the cloud accepted its termination.
    pub terminated: Option<Timestamp>,
    /// When it was first seen to be gone.
    pub gone: Option<Timestamp>,
    /// What came in its place. By zone and time: a group does not say which instance replaces which.
    pub replaced: Option<Replaced>,
}

/// Why an instance is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It needs an update.
    NeedsUpdate,
    /// It is up to date, and force was asked for.
    Forced,
    /// It was detached by an earlier roll of kOps; nothing replaces it.
    Detached,
    /// It waits in the warm pool; it is deleted first and at once.
    WarmPool,
}

/// What a roll did to an instance and gives back unless it replaces it. What was so before the roll is not held. Each is
/// set before the command that does it, so it may not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct Held {
    /// Its node has the taint.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tainted: bool,
    /// Its node is unschedulable.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cordoned: bool,
    /// Its node has the label that excludes it from load balancers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// It is out of its group's load balancers and target groups.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deregistered: bool,
}

impl Held {
    /// Whether there is nothing to give back.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Where an instance stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum InstancePhase {
    /// Its turn has not come.
    Waiting,
    /// Intent: it is to be tagged as detached and detached then; afterwards it waits for its turn.
    Detaching {
        /// Whether it is tagged.
        marked: bool,
        /// The call in progress.
        #[serde(flatten)]
        call: Call,
    },
    /// Intent: its node or the instance is made ready for the drain.
    Preparing {
        /// By what.
        step: Preparation,
        /// The call in progress.
        #[serde(flatten)]
        call: Call,
    },
    /// Its pods are evicted.
    Draining(Drain),
    /// Its drain is over; `post_drain_delay` runs from here.
    Settling {
        /// Since when.
        since: Timestamp,
    },
    /// Intent: it is to be terminated. The call may have been made or not, so it may be made again.
    Terminating {
        /// How often the call was decided on.
        attempts: u32,
        /// No call before this.
        not_before: Timestamp,
    },
    /// Its termination was accepted; the interval of its role runs from its `terminated`.
    Terminated,
    /// Its interval is over.
    Done,
    /// It went away before its turn.
    Vanished,
    /// It is being given back as it was before its turn.
    Returning {
        /// Why.
        why: String,
        /// The call in progress.
        #[serde(flatten)]
        call: Call,
    },
    /// It was left as it was.
    Skipped {
        /// Why.
        why: String,
    },
    /// It could not be drained or terminated.
    Failed {
        /// What went wrong.
        error: String,
    },
}

/// What makes an instance ready for its drain, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preparation {
    /// Its node is made unschedulable.
    Cordon,
    /// Its node is labelled, so that load balancers leave it out.
    Exclude,
    /// The instance is taken out of its group's load balancers and target groups.
    Deregister,
}

/// A drain in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When it began; pods that came later tolerate the cordon and are not waited for.
    pub began: Timestamp,
    /// Since when `drain_timeout` counts: from the beginning, or the last decision to wait.
    pub since: Timestamp,
    /// No further look at the pods before this.
    pub not_before: Timestamp,
    /// How many questions were asked about it.
    #[serde(default)]
    pub asked: u32,
    /// Since when its pods are deleted whatever their budgets say.
    #[serde(default)]
    pub forced: Option<Timestamp>,
    /// How many pods were left when last looked.
    #[serde(default)]
    pub remaining: usize,
    /// One of them that does not go.
    #[serde(default)]
    pub blocker: Option<Blocker>,
}

/// A pod that does not go, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// The budget that refuses its eviction, as `namespace/name`.
    #[serde(default)]
    pub budget: Option<String>,
    /// Why the budget can never allow it, if that is so.
    #[serde(default)]
    pub hopeless: Option<String>,
}

/// The replacement of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The new instance.
    pub by: String,
    /// When it was first seen in service.
    pub at: Timestamp,
}

pub(super) fn origin(instance: &Instance, otherwise: Origin) -> Origin {
    match instance.status {
        _ if instance.warm => Origin::WarmPool,
        Status::Detached => Origin::Detached,
        Status::Ready | Status::NeedsUpdate => otherwise,
    }
}

impl InstanceRoll {
    pub(super) fn new(instance: &Instance, origin: Origin) -> Self {
        Self {
            id: instance.id.clone(),
            zone: instance.zone.clone(),
            origin,
            phase: InstancePhase::Waiting,
            node: instance.node.clone(),
            held: Held::default(),
            started: None,
            cordoned: None,
            drained: None,
            detached: None,
            not_detached: false,
            condemned: None,
            terminated: None,
            gone: None,
            replaced: None,
        }
    }

    /// Whether it runs outside its group, by this roll or an earlier one.
    pub fn is_detached(&self) -> bool {
        self.origin == Origin::Detached || self.detached.is_some()
    }
}

impl InstancePhase {
    /// Whether it takes one of the group's slots: it is about to be taken out of service or is out of it.
    pub fn is_in_flight(&self) -> bool {
        self.is_draining() || matches!(self, Self::Terminating { .. } | Self::Terminated | Self::Returning { .. })
    }

    /// Whether its turn has come, and its termination is not decided yet.
    pub fn is_draining(&self) -> bool {
        matches!(self, Self::Preparing { .. } | Self::Draining(_) | Self::Settling { .. })
    }

    /// Whether the roll has decided on its termination, so that it must not count as serving any more.
    pub fn is_condemned(&self) -> bool {
        matches!(self, Self::Terminating { .. } | Self::Terminated | Self::Done)
    }
}

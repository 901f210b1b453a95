//! One group of a roll.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::instance::{InstanceRoll, Origin, origin};
use super::{Leftover, LeftoverReason};
use crate::inventory::{CloudGroup, Inventory};
use crate::options::RollOptions;
use crate::settings::Settings;
use crate::spec::{Manager, Role};

/// One group of a roll.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct GroupRoll {
    /// The instance group.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Who manages its instances.
    pub manager: Manager,
    /// The settings in force, resolved at the start.
    pub settings: Settings,
    /// How many of its instances may be down at once.
    pub concurrency: usize,
    /// No instance was up to date at the start, so the first one is replaced alone, in case the new configuration does
    /// not give usable instances.
    pub first_alone: bool,
    /// Where the group stands.
    pub phase: GroupPhase,
    /// How many instances are detached first, so that their replacements come before they go.
    #[serde(default)]
    pub surge: usize,
    /// How many instances in service it lacked from the beginning, and still does: with `validation_baseline` they are not
    /// waited for. Always 0 for the control plane.
    #[serde(default)]
    pub lacking: usize,
    /// What comes next in the group.
    #[serde(default)]
    pub step: GroupStep,
    /// What must hold before the next instance is touched.
    pub gate: Option<Gate>,
    /// The new configuration has given a usable instance, so `first_alone` is satisfied.
    #[serde(default)]
    pub proven: bool,
    /// Instances were replaced after which nothing was validated yet.
    #[serde(default)]
    pub unvalidated: bool,
    /// The pause after the group's first instance is over.
    #[serde(default)]
    pub checkpoint_passed: bool,
    /// `AZRebalance` was suspended by this roll, or is to be: it is resumed at the group's end.
    #[serde(default)]
    pub holds_rebalance: bool,
    /// Why no further instance is started.
    #[serde(default)]
    pub error: Option<GroupError>,
    /// The call of the whole group that is in progress.
    #[serde(default)]
    pub call: Option<Call>,
    /// When its turn came.
    pub started: Option<Timestamp>,
    /// When it was through.
    pub finished: Option<Timestamp>,
    /// The instances to replace, in this order: warm pool, attached, detached.
    pub instances: Vec<InstanceRoll>,
    /// Instances that were there at the start, or appeared since, and replace none of `instances`.
    pub bystanders: BTreeSet<String>,
}

/// What comes next in a group; kOps' order (kOps 1.36 `pkg/instancegroups/instancegroups.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupStep {
    /// `AZRebalance` is suspended.
    #[default]
    Suspend,
    /// All nodes to be updated are tainted.
    Taint,
    /// The warm pool's old instances are deleted.
    WarmPool,
    /// Instances are detached, so that their replacements come first.
    Surge,
    /// Instances are drained and terminated.
    Replace,
}

/// Why a group stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupError {
    /// Why, for people.
    pub message: String,
    /// Whether the groups after it are not rolled either: the cluster did not validate in time, or an instance could not
    /// be taken out of its load balancers.
    pub stops_roll: bool,
}

/// A call that is decided on and not known to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Since when it is wanted; it is given up `validation_timeout` later.
    pub since: Timestamp,
    /// How often it was decided on.
    pub attempts: u32,
    /// Not again before this.
    pub not_before: Timestamp,
}

/// Where a group stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GroupPhase {
    /// Its turn has not come.
    Waiting,
    /// Its instances are being replaced.
    Rolling,
    /// What the roll did to it and did not need is being given back.
    Unwinding,
    /// Its `drainAndTerminate` is false: its warm pool was emptied and, but for `cloudonly`, its old nodes were tainted and
    /// the surge was launched; as in kOps they stay so.
    Disabled,
    /// Every instance had its turn.
    Done,
    /// An instance could not be replaced, and no further one was started.
    Failed {
        /// Why, for people.
        error: String,
    },
}

/// A condition of the whole group that the roll waits for. kOps validates the cluster at these points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Since when; the timeout counts from here.
    pub since: Timestamp,
    /// How many validations in a row must pass; 0 where only the instances in service are counted.
    #[serde(default)]
    pub wanted: u32,
    /// How many have passed.
    #[serde(default)]
    pub passed: u32,
    /// No look before this.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// What came before.
    #[serde(default)]
    pub after: GateAfter,
}

impl Gate {
    pub(crate) fn cloudonly(since: Timestamp) -> Self {
        Self { since, wanted: 0, passed: 0, not_before: None, after: GateAfter::Start }
    }
}

/// What came before a [`Gate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateAfter {
    /// Nothing: the group's turn came.
    #[default]
    Start,
    /// An instance was detached.
    Detaching,
    /// An instance was terminated.
    Terminating,
}

impl GroupRoll {
    pub(super) fn new(
        inventory: &Inventory,
        group: &CloudGroup,
        options: &RollOptions,
        approved: Option<&HashSet<&str>>,
        not_approved: &mut Vec<Leftover>,
    ) -> Self {
        let name = &group.spec.name;
        let forced = if options.force { group.ready.as_slice() } else { &[] };
        let mut bystanders: BTreeSet<String> = BTreeSet::new();
        if !options.force {
            bystanders.extend(group.ready.iter().map(|instance| instance.id.clone()));
        }
        let wanted = group.need_update.iter().map(|instance| (instance, origin(instance, Origin::NeedsUpdate)));
        let mut instances = Vec::new();
        for (instance, origin) in wanted.chain(forced.iter().map(|instance| (instance, origin(instance, Origin::Forced)))) {
            if approved.is_none_or(|approved| approved.contains(instance.id.as_str())) {
                instances.push(InstanceRoll::new(instance, origin));
            } else {
                bystanders.insert(instance.id.clone());
                not_approved.push(Leftover { group: name.clone(), instance: instance.id.clone(), why: LeftoverReason::NotApproved });
            }
        }
        // Stable, so that kOps' order within these classes stays.
        instances.sort_by_key(|instance| match instance.origin {
            Origin::WarmPool => 0,
            Origin::NeedsUpdate | Origin::Forced => 1,
            Origin::Detached => 2,
        });
        let all = group.ready.len() + group.need_update.len();
        let joined = instances.iter().filter(|instance| instance.origin != Origin::WarmPool).count();
        let settings = Settings::resolve(&inventory.cluster.rolling_update, &group.spec.rolling_update, group.spec.manager, all);
        let (role, manager) = (group.spec.role, group.spec.manager);
        // A control plane joins through its own API server and etcd, and Karpenter has no group to detach from.
        let can_surge = !options.cloudonly && role != Role::ControlPlane && manager != Manager::Karpenter;
        let surge = if can_surge { settings.max_surge.min(joined).min(if options.interactive { 1 } else { usize::MAX }) } else { 0 };
        Self {
            name: name.clone(),
            role,
            manager,
            settings,
            concurrency: if options.interactive { 1 } else { settings.concurrency(role, joined) },
            first_alone: group.ready.is_empty(),
            phase: GroupPhase::Waiting,
            surge,
            lacking: if options.cloudonly || !options.validation_baseline || role == Role::ControlPlane { 0 } else { lacking(group) },
            step: GroupStep::default(),
            gate: None,
            proven: false,
            unvalidated: false,
            checkpoint_passed: false,
            holds_rebalance: false,
            error: None,
            call: None,
            started: None,
            finished: None,
            instances,
            bystanders,
        }
    }

    /// Whether the group needs no further step.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, GroupPhase::Disabled | GroupPhase::Done | GroupPhase::Failed { .. })
    }

    /// How many of its slots are taken. Warm instances serve nobody, so they take none.
    pub(crate) fn in_flight(&self) -> usize {
        self.instances.iter().filter(|instance| instance.origin != Origin::WarmPool && instance.phase.is_in_flight()).count()
    }
}

/// How many instances in service a group lacks; the size of a Karpenter group is not known.
fn lacking(group: &CloudGroup) -> usize {
    (group.target as usize).saturating_sub(group.instances().filter(|instance| instance.in_service).count())
}

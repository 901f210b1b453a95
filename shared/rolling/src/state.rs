//! The checkpoint of a rolling update: everything that must outlive a process.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::control::Question;
use crate::inventory::{CloudGroup, Instance, Inventory, Status};
use crate::options::RollOptions;
use crate::preview::Preview;
use crate::settings::Settings;
use crate::spec::{Manager, Role, SelectionError};
use crate::validation::Failure;

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

/// One group of a roll.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        let mut summary = Summary::default();
        for instance in self.groups.iter().flat_map(|group| &group.instances) {
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

impl GroupRoll {
    fn new(
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

fn origin(instance: &Instance, otherwise: Origin) -> Origin {
    match instance.status {
        _ if instance.warm => Origin::WarmPool,
        Status::Detached => Origin::Detached,
        Status::Ready | Status::NeedsUpdate => otherwise,
    }
}

impl InstanceRoll {
    fn new(instance: &Instance, origin: Origin) -> Self {
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

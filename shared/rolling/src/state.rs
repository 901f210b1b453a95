//! The checkpoint of a rolling update: everything that must outlive a process.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::inventory::{CloudGroup, Instance, Inventory, Status};
use crate::settings::Settings;
use crate::spec::{Manager, Role, Selection, SelectionError};

/// The version of [`RollState`]'s JSON. A state of another version is refused, never guessed at.
pub const SCHEMA_VERSION: u32 = 1;

/// How to roll. Durations are ISO 8601 (`PT15S`) in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RollOptions {
    /// Which groups.
    #[serde(flatten)]
    pub selection: Selection,
    /// Replace up-to-date instances too.
    pub force: bool,
    /// How long to wait after a bastion was terminated; kOps: 15 s.
    pub bastion_interval: SignedDuration,
    /// How long to wait after a control-plane instance was terminated; kOps: 15 s.
    pub control_plane_interval: SignedDuration,
    /// How long to wait after a node or API server was terminated; kOps: 15 s.
    pub node_interval: SignedDuration,
    /// Wait until a group has its target number of instances in service before it loses another one. kOps with
    /// `--cloudonly` only sleeps the interval. Without this, two control-plane instances may be down at once.
    pub wait_for_replacement: bool,
    /// How long to wait for that before the roll fails; kOps: 15 min.
    pub validation_timeout: SignedDuration,
}

impl Default for RollOptions {
    fn default() -> Self {
        Self {
            selection: Selection::default(),
            force: false,
            bastion_interval: SignedDuration::from_secs(15),
            control_plane_interval: SignedDuration::from_secs(15),
            node_interval: SignedDuration::from_secs(15),
            wait_for_replacement: true,
            validation_timeout: SignedDuration::from_mins(15),
        }
    }
}

impl RollOptions {
    pub(crate) fn interval(&self, role: Role) -> SignedDuration {
        match role {
            Role::Bastion => self.bastion_interval,
            Role::ControlPlane => self.control_plane_interval,
            Role::ApiServer | Role::Node => self.node_interval,
        }
    }
}

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
}

/// Whether and how a roll ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on.
    Running,
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
}

/// An instance that needs an update after the roll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// The instance group.
    pub group: String,
    /// The instance.
    pub instance: String,
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
    /// What must hold before the next instance is touched.
    pub gate: Option<Gate>,
    /// When its turn came.
    pub started: Option<Timestamp>,
    /// When it was through.
    pub finished: Option<Timestamp>,
    /// The instances to replace, in this order: warm pool, attached, detached.
    pub instances: Vec<InstanceRoll>,
    /// Instances that were there at the start, or appeared since, and replace none of `instances`.
    pub bystanders: BTreeSet<String>,
}

/// Where a group stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GroupPhase {
    /// Its turn has not come.
    Waiting,
    /// Its instances are being replaced.
    Rolling,
    /// Its `drainAndTerminate` is false: only its warm pool was emptied.
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
    /// When its replacement was decided.
    pub started: Option<Timestamp>,
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

/// Where an instance stands. The steps of a drain belong between `Waiting` and `Terminating`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum InstancePhase {
    /// Its turn has not come.
    Waiting,
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
    /// The cloud refused to terminate it.
    Failed {
        /// What the cloud said.
        error: String,
    },
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
    /// Those that could not be terminated.
    pub failed: usize,
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

impl RollState {
    /// Fixes which instances will be replaced, and in which order. Instances launched later are never touched.
    pub fn start(inventory: &Inventory, options: RollOptions, now: Timestamp) -> Result<Self, SelectionError> {
        let selected = options.selection.resolve(&inventory.cluster)?;
        let mut groups: Vec<_> = inventory
            .groups
            .values()
            .filter(|group| selected.contains(&group.spec.name))
            .map(|group| GroupRoll::new(inventory, group, options.force))
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
                InstancePhase::Waiting => &mut summary.waiting,
                InstancePhase::Terminating { .. } | InstancePhase::Terminated => &mut summary.in_flight,
                InstancePhase::Done | InstancePhase::Vanished => &mut summary.finished,
                InstancePhase::Failed { .. } => &mut summary.failed,
            } += 1;
        }
        summary
    }
}

impl GroupRoll {
    fn new(inventory: &Inventory, group: &CloudGroup, force: bool) -> Self {
        let forced = if force { group.ready.as_slice() } else { &[] };
        let chosen = |instance: &Instance, origin| InstanceRoll {
            id: instance.id.clone(),
            zone: instance.zone.clone(),
            origin,
            phase: InstancePhase::Waiting,
            started: None,
            terminated: None,
            gone: None,
            replaced: None,
        };
        let mut instances: Vec<_> =
            group.need_update.iter().map(|instance| chosen(instance, origin(instance, Origin::NeedsUpdate))).collect();
        instances.extend(forced.iter().map(|instance| chosen(instance, origin(instance, Origin::Forced))));
        // Stable, so that kOps' order within these classes stays.
        instances.sort_by_key(|instance| match instance.origin {
            Origin::WarmPool => 0,
            Origin::NeedsUpdate | Origin::Forced => 1,
            Origin::Detached => 2,
        });
        let all = group.ready.len() + group.need_update.len();
        let joined = instances.iter().filter(|instance| instance.origin != Origin::WarmPool).count();
        let settings = Settings::resolve(&inventory.cluster.rolling_update, &group.spec.rolling_update, group.spec.manager, all);
        Self {
            name: group.spec.name.clone(),
            role: group.spec.role,
            manager: group.spec.manager,
            settings,
            concurrency: settings.concurrency(group.spec.role, joined),
            first_alone: group.ready.is_empty(),
            phase: GroupPhase::Waiting,
            gate: None,
            started: None,
            finished: None,
            instances,
            bystanders: if force { BTreeSet::new() } else { group.ready.iter().map(|instance| instance.id.clone()).collect() },
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

fn origin(instance: &Instance, otherwise: Origin) -> Origin {
    match instance.status {
        _ if instance.warm => Origin::WarmPool,
        Status::Detached => Origin::Detached,
        Status::Ready | Status::NeedsUpdate => otherwise,
    }
}

impl InstancePhase {
    pub(crate) fn is_in_flight(&self) -> bool {
        matches!(self, Self::Terminating { .. } | Self::Terminated)
    }

    /// Whether the roll has decided on its termination, so that it must not count as serving any more.
    pub(crate) fn is_condemned(&self) -> bool {
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
        Ok(())
    }
}

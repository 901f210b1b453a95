//! The rolling update: inventory, settings, preview and a pure planner.
//!
//! Nothing here reads a clock, the network or a file. A host observes the cloud, lets [`classify`] say what each
//! instance is, and asks [`next`] what to do; the answer is a new [`RollState`] to store and the commands to execute
//! after it is stored. Semantics are those of kOps 1.36 (`pkg/instancegroups`, `upup/pkg/fi/cloudup/awsup`); where this
//! crate differs on purpose, the item's documentation says so.

mod command;
mod invariants;
mod inventory;
mod kubernetes;
mod planner;
mod preview;
mod settings;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod spec;
mod state;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod properties;

pub use command::{Action, Command, CommandError, CommandResult, Refusal};
pub use inventory::{
    CloudGroup, Instance, Inventory, InventoryError, LaunchTemplateRef, LaunchTemplateVersions, RawGroup, RawInstance, RawInventory,
    RawMember, Status, classify,
};
pub use kubernetes::{ApiName, BudgetFacts, ClusterFacts, NodeFacts, Owner, PodFacts, PodRef, Requirement, Selector};
pub use planner::{Decision, Observation, Until, WaitReason, next};
pub use preview::{Preview, PreviewRow, Replacement, preview};
pub use settings::{FieldError, FieldErrorKind, IntOrString, NotAPercentage, RollingUpdate, Settings};
pub use spec::{ClusterSpec, GroupSpec, Manager, Role, Selection, SelectionError, SpecError};
pub use state::{
    Gate, GroupPhase, GroupRoll, InstancePhase, InstanceRoll, Leftover, Origin, Outcome, Replaced, RollOptions, RollState, SCHEMA_VERSION,
    StateError, Summary,
};

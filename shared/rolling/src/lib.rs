//! The rolling update: inventory, settings, preview and a pure planner.
//!
//! Nothing here reads a clock, the network or a file. A host observes the cloud, lets [`classify`] say what each
//! instance is, and asks [`next`] what to do; the answer is a new [`RollState`] to store and the commands to execute
//! after it is stored. Semantics are those of kOps 1.36 (`pkg/instancegroups`, `upup/pkg/fi/cloudup/awsup`); where this
//! crate differs on purpose, the item's documentation says so.

mod command;
mod control;
mod event;
mod forecast;
mod invariants;
mod inventory;
mod kubernetes;
mod options;
mod planner;
mod preview;
mod progress;
mod settings;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod spec;
mod state;
mod tell;
mod validation;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod properties;

pub use command::{Action, Command, CommandError, CommandResult, Refusal};
pub use control::{About, Answer, Choice, Control, Question};
pub use event::{RollEvent, What};
pub use forecast::{Forecast, GroupForecast, HeldPod, History, InstanceForecast, Names, Why, forecast};
pub use inventory::{
    CloudGroup, Instance, Inventory, InventoryError, LaunchTemplateRef, LaunchTemplateVersions, RawGroup, RawInstance, RawInventory,
    RawMember, Status, classify,
};
pub use kubernetes::{ApiName, BudgetFacts, ClusterFacts, NodeFacts, Owner, PodFacts, PodRef, Requirement, Selector};
pub use options::{PauseAfter, RollOptions, StuckDrain};
pub use planner::{Decision, Observation, Until, WaitReason, next};
pub use preview::{Preview, PreviewRow, Replacement, preview};
pub use progress::{GroupProgress, InstanceProgress, RollProgress};
pub use settings::{FieldError, FieldErrorKind, IntOrString, NotAPercentage, RollingUpdate, Settings};
pub use spec::{ClusterSpec, GroupSpec, Manager, Role, Selection, SelectionError, SpecError};
pub use state::{
    Blocker, Call, Drain, Gate, GateAfter, GroupError, GroupPhase, GroupRoll, GroupStep, Held, InstancePhase, InstanceRoll, Leftover,
    LeftoverReason, Origin, Outcome, Preparation, Replaced, RollState, SCHEMA_VERSION, StartError, StateError, Summary,
};
pub use validation::{Failure, FailureKind, Leaving, validate};

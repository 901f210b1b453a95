//! A simulated cloud and cluster for rolling updates: a clock, faults, properties, and a host that drives the planner.
//!
//! Nothing here reads a clock, the network or a file: everything follows from a seed. A [`World`] has Auto Scaling groups,
//! instances, load balancers, nodes, pods, budgets and their controllers; it answers as the APIs do, late news included.
//! [`roll`] drives the planner through it as the functions do, killed and doubled as a [`Case`]'s faults have it, while a
//! [`Monitor`] checks every effect against the promises.

mod arena;
mod case;
mod faults;
mod happening;
mod host;
mod monitor;
mod person;
mod random;
mod reading;
mod scenario;
mod transcript;
mod world;

pub use arena::{Arena, BudgetId, GroupId, InstanceId, Key, NodeId, PodId, WorkloadId};
pub use case::{Case, Mix};
pub use faults::Faults;
pub use happening::{Happening, What};
pub use host::{Drive, Flaw, Kill, Planner, Real, Rolled, roll};
pub use monitor::{Monitor, Rule, Said, View, Violation};
pub use person::Wishes;
pub use random::Random;
pub use reading::{Ailment, Reading, Seen};
pub use scenario::{Chance, Rehearsed, rehearse};
pub use transcript::transcript;
pub use world::{
    Allowance, Balancer, Budget, BudgetPlan, Effect, Executed, Group, GroupPlan, Instance, Kind, Life, Limit, Moment, Node, Observed, Pace,
    Phase, Pod, Refused, Template, Unobserved, Workload, WorkloadPlan, World,
};

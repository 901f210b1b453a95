//! Runs, approvals, locks and configuration: types and decisions without IO, clock or async.
//!
//! Whoever needs the time is given it; whoever needs a document is given it. That makes every rule here testable by table
//! and property, and the same on Lambda, in a shell and in a test.

pub mod approval;
pub mod config;
pub mod failure;
pub mod ids;
pub mod keys;
pub mod lock;
pub mod orders;
pub mod run;
pub mod window;

pub use approval::{Approval, ApprovalId, Decision, Gate};
pub use config::{ClusterConfig, ClustersFile};
pub use failure::{Classify, Failure, FailureKind};
pub use ids::{ClusterName, CommitId, InvalidId, RunId, StateStoreUri};
pub use orders::{Answered, Order, Ordered, RollOrders};
pub use run::{Event, Phase, Run, RunState, Stage, StageRecord, StageState};
pub use window::ChangeWindow;

//! The host of a rolling update: observe, decide, store, act, until there is nothing to do but wait.
//!
//! [`run_step`] is the loop that a Lambda function and the command line share. What it works with are ports: the cloud and
//! the Kubernetes API ([`kopsline_cloud::Cloud`], [`kopsline_kube::Kubernetes`]), the checkpoint, what people order, the
//! record of what happened, and the time.

mod cluster;
mod commands;
mod driver;
mod ports;

pub use cluster::{Target, options};
pub use driver::{Budget, Roll, StepError, StepOutcome, run_step};
pub use ports::{CheckpointError, Checkpoints, Clock, Desk, DeskError, Saved, SystemClock};

//! EC2 and Auto Scaling: what a rolling update observes and does.
//!
//! [`Cloud`] is the port of the rolling update, [`AwsCloud`] its adapter, and [`run_step`] the loop that a Lambda function,
//! the command line and tests share: observe, decide, store, act, until there is nothing to do but wait.

mod aws;
mod driver;
mod error;

use async_trait::async_trait;
use kopsline_rolling::RawInventory;

pub use aws::AwsCloud;
pub use driver::{Budget, CheckpointError, Checkpoints, Clock, Roll, Saved, StepError, StepOutcome, SystemClock, run_step};
pub use error::CloudError;

/// The cloud as a rolling update uses it.
#[async_trait]
pub trait Cloud: Send + Sync {
    /// Everything the cloud has for a cluster.
    async fn observe(&self, cluster: &str) -> Result<RawInventory, CloudError>;

    /// Terminates instances, and says of each whether the cloud accepted it. An instance that does not exist any more is
    /// a success, so the call may be repeated.
    async fn terminate(&self, instances: &[String]) -> Vec<(String, Result<(), CloudError>)>;
}

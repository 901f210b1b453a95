//! EC2, Auto Scaling and load balancers: what a rolling update observes and does.
//!
//! [`Cloud`] is the port of the rolling update, [`AwsCloud`] its adapter.

mod aws;
mod error;

use async_trait::async_trait;
use kopsline_rolling::RawInventory;

pub use aws::AwsCloud;
pub use error::CloudError;

/// How far a deregistration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deregistration {
    /// No load balancer sends it anything any more.
    Done,
    /// Connections are still being drained.
    Draining,
}

/// A load balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    /// Its DNS name.
    pub dns_name: String,
    /// The value of its tag `kops.k8s.io/revision`, by which kOps tells a network load balancer from its successor.
    pub revision: Option<String>,
}

/// The kind of load balancer in front of the Kubernetes API (`spec.api.loadBalancer.class`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancerClass {
    /// An ELB of the first generation.
    Classic,
    /// An NLB.
    Network,
}

/// The cloud as a rolling update uses it. Every call may be repeated; what is gone already is a success.
#[async_trait]
pub trait Cloud: Send + Sync {
    /// Everything the cloud has for a cluster.
    async fn observe(&self, cluster: &str) -> Result<RawInventory, CloudError>;

    /// Terminates instances, and says of each whether the cloud accepted it.
    async fn terminate(&self, instances: &[String]) -> Vec<(String, Result<(), CloudError>)>;

    /// Suspends the process `AZRebalance` of an Auto Scaling group.
    async fn suspend_rebalance(&self, group: &str) -> Result<(), CloudError>;

    /// Resumes it.
    async fn resume_rebalance(&self, group: &str) -> Result<(), CloudError>;

    /// Tags an instance as detached from its Auto Scaling group, before it is.
    async fn mark_detached(&self, group: &str, instance: &str) -> Result<(), CloudError>;

    /// Detaches an instance from its Auto Scaling group, which keeps its desired capacity and so launches another one.
    async fn detach(&self, group: &str, instance: &str) -> Result<(), CloudError>;

    /// Takes an instance out of the load balancers of its Auto Scaling group, and says how far that is.
    async fn deregister(&self, group: &str, instance: &str) -> Result<Deregistration, CloudError>;

    /// Puts an instance back into the load balancers of its Auto Scaling group.
    async fn register(&self, group: &str, instance: &str) -> Result<(), CloudError>;

    /// The load balancers of a class with this value of the tag `Name`.
    async fn load_balancers(&self, class: LoadBalancerClass, name: &str) -> Result<Vec<LoadBalancer>, CloudError>;
}

//! The Kubernetes API: what a rolling update observes and does, and the credentials for it.
//!
//! [`Kubernetes`] is the port of the rolling update, [`KubeClient`] its adapter. It gets in with a short-lived certificate
//! that [`mint`] makes from the cluster's own CA, as `kops export kubecfg --admin` does, or by a given kubeconfig;
//! [`ApiSpec`] says where the API is. Keys are wiped from memory when they are done with and are shown nowhere.

mod access;
mod api_name;
mod client;
mod connect;
mod decode;
mod error;
mod keyset;
mod mint;
mod taints;
#[cfg(test)]
mod testing;

use async_trait::async_trait;
use kopsline_rolling::{ClusterFacts, PodRef};

pub use access::{
    Access, AccessOptions, ApiSpec, ApiSpecError, FoundLoadBalancer, LoadBalancer, LoadBalancerKind, LookUp, REVISION_TAG,
    pick_load_balancer,
};
pub use api_name::api_name;
pub use client::KubeClient;
pub use connect::{ConnectError, Credentials, KeysetSource, Minted, StoredKeyset};
pub use error::KubeError;
pub use keyset::{Keyset, KeysetError};
pub use mint::{ClientCertificate, MintError, mint};

/// A cluster's Kubernetes API as a rolling update uses it. Every method but `observe` may be called again: the second
/// time changes nothing. What it concerns being gone already is a success.
#[async_trait]
pub trait Kubernetes: Send + Sync {
    /// All nodes, pods and `PodDisruptionBudget`s, and the API's name as DNS has it.
    async fn observe(&self) -> Result<ClusterFacts, KubeError>;

    /// Gives a node the taint `kops.k8s.io/scheduled-for-update:PreferNoSchedule`.
    async fn taint(&self, node: &str) -> Result<(), KubeError>;

    /// Takes the taint away.
    async fn untaint(&self, node: &str) -> Result<(), KubeError>;

    /// Makes a node unschedulable.
    async fn cordon(&self, node: &str) -> Result<(), KubeError>;

    /// Makes it schedulable again.
    async fn uncordon(&self, node: &str) -> Result<(), KubeError>;

    /// Gives a node the label `node.kubernetes.io/exclude-from-external-load-balancers`.
    async fn exclude_from_load_balancers(&self, node: &str) -> Result<(), KubeError>;

    /// Takes the label away.
    async fn include_in_load_balancers(&self, node: &str) -> Result<(), KubeError>;

    /// Evicts a pod, if its budgets allow it: [`KubeError::Blocked`] if not. Another pod of the same name is left alone.
    async fn evict(&self, pod: &PodRef) -> Result<(), KubeError>;

    /// Deletes a pod whatever its budgets say. Another pod of the same name is left alone.
    async fn delete_pod(&self, pod: &PodRef) -> Result<(), KubeError>;
}

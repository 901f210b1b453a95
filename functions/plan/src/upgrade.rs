//! Whether a plan brings nodes a new minor version of Kubernetes.

use kopsline_core::{Failure, FailureKind};
use kopsline_state::registry::{CONFIG, INSTANCE_GROUPS};
use kopsline_state::{ClusterState, Stores};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct Object<Spec> {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterSpec {
    kubernetes_version: Option<String>,
}

#[derive(Deserialize)]
struct GroupSpec {
    role: Option<String>,
}

/// What `kops update cluster --yes` last gave the machines of a group (kOps 1.36 `pkg/apis/nodeup/config.go`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeupConfig {
    kubernetes_version: Option<String>,
}

/// Whether some group of nodes was last configured for an older minor version of Kubernetes than the cluster wants: then
/// the control plane goes first. An upgrade that stopped half-way is found again, because it is looked at what the nodes
/// were given, not at what changed.
pub(crate) async fn is_upgrade(stores: &dyn Stores, live: &ClusterState) -> Result<bool, Failure> {
    let Some(config) = live.registry.get(CONFIG) else { return Ok(false) };
    let wanted = read::<Object<ClusterSpec>>(CONFIG, &config.bytes)?.spec.kubernetes_version;
    let Some(wanted) = wanted.as_deref().and_then(minor) else { return Ok(false) };
    let place = &live.places.config_base;
    for (name, object) in &live.registry {
        let Some(group) = name.strip_prefix(INSTANCE_GROUPS) else { continue };
        if read::<Object<GroupSpec>>(name, &object.bytes)?.spec.role.as_deref() != Some("Node") {
            continue;
        }
        // Absent for a group that no update has made yet: its first machines get the new version anyway.
        let key = format!("igconfig/node/{group}/nodeupconfig.yaml");
        let Some(given) = stores.store(place).get(&key).await.map_err(kopsline_state::registry::RegistryError::from)? else { continue };
        let given = read::<NodeupConfig>(&key, &given.bytes)?.kubernetes_version;
        if given.as_deref().and_then(minor).is_some_and(|given| given < wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, Failure> {
    serde_saphyr::from_slice(bytes)
        .map_err(|error| Failure::new(FailureKind::Failed, format!("{name} of the state store cannot be read: {error}")))
}

/// `(1, 33)` of `v1.33.5`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use kopsline_state::testing::MemoryStores;

    use super::*;

    async fn upgrade(wanted: &str, given: Option<&str>) -> bool {
        let stores = MemoryStores::default();
        let bucket = stores.bucket("state");
        bucket.set("demo.k8s.local/config", format!("spec: {{kubernetesVersion: {wanted}, configBase: 's3://state/base'}}"));
        bucket.set("demo.k8s.local/instancegroup/cp", "spec: {role: Master}");
        bucket.set("demo.k8s.local/instancegroup/nodes", "spec: {role: Node}");
        bucket.set("base/igconfig/control-plane/cp/nodeupconfig.yaml", "KubernetesVersion: 1.1.0");
        if let Some(given) = given {
            bucket.set("base/igconfig/node/nodes/nodeupconfig.yaml", format!("CloudProvider: aws\nKubernetesVersion: {given}\n"));
        }
        let live = ClusterState::read(&stores, &"s3://state".parse().unwrap(), &"demo.k8s.local".parse().unwrap()).await.unwrap();
        is_upgrade(&stores, &live).await.unwrap()
    }

    #[tokio::test]
    async fn a_minor_version_that_the_nodes_do_not_have_yet() {
        assert!(upgrade("1.33.1", Some("1.32.9")).await);
        assert!(upgrade("v1.33.1", Some("v1.9.9")).await, "numbers, not texts");
        assert!(!upgrade("1.33.1", Some("1.33.0")).await);
        assert!(!upgrade("1.32.1", Some("1.33.0")).await, "a downgrade is for the checks to refuse");
        assert!(!upgrade("1.33.1", None).await, "a new cluster");
    }
}

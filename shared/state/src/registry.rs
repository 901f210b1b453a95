//! A cluster's kOps registry as it is in the live state store.
//!
//! kOps 1.36 spreads it over three places (`pkg/client/simple/vfsclientset`, `upup/pkg/fi/vfs_castore.go`): the cluster,
//! its instance groups and its addons under the state store; `kops-version.txt` under `spec.configBase`; SSH public keys
//! under `spec.keyStore`, or `pki` of `configBase`. Here every object has one name, relative to the cluster, as if all lay
//! together, which is also how a scratch registry lays them out.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt, TryStreamExt};
use kopsline_core::{Classify, ClusterName, Failure, FailureKind, InvalidId, StateStoreUri};
use kopsline_manifests::{ReadError, Registry, StoredObject};

use crate::object::{ETag, Object, StoreError, Stores};

/// The cluster's manifest.
pub const CONFIG: &str = "config";
/// Prefix of the instance groups' manifests.
pub const INSTANCE_GROUPS: &str = "instancegroup/";
/// The cluster's additional objects.
pub const ADDONS: &str = "clusteraddons/default";
/// Prefix of the administrator's SSH public keys, named by their MD5 fingerprint.
pub const SSH_KEYS: &str = "pki/ssh/public/admin/";
/// The version of the kops that last updated the cluster.
pub const KOPS_VERSION: &str = "kops-version.txt";

/// How many objects are read at a time.
const CONCURRENT_READS: usize = 8;

/// A cluster's registry as it was read; not a snapshot of one instant, which the versions make up for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterState {
    /// The cluster.
    pub cluster: ClusterName,
    /// The state store.
    pub state_store: StateStoreUri,
    /// Where its objects lie.
    pub places: Places,
    /// The objects by name; empty for a cluster that does not exist yet.
    pub registry: Registry,
    /// `kops-version.txt`: the version of the kops that last updated the cluster.
    pub kops_version: Option<String>,
}

/// A registry that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The cluster's manifest in the store is not YAML of the shape kOps writes.
    #[error("{registry}/config cannot be read; restore an earlier version of the object")]
    Config {
        /// The cluster's place in the state store.
        registry: StateStoreUri,
        /// Where and why.
        source: ReadError,
    },
    /// The manifest points to a place that is no S3 address.
    #[error("spec.{field} of {registry}/config is not usable")]
    Place {
        /// The manifest's field.
        field: &'static str,
        /// The cluster's place in the state store.
        registry: String,
        /// What is wrong with it.
        source: InvalidId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

impl Classify for RegistryError {
    fn kind(&self) -> FailureKind {
        Failure::transient_or(self.is_transient(), FailureKind::Failed)
    }
}

/// Where a cluster's objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `<state store>/<cluster>`: `config`, `instancegroup/*`, `clusteraddons/default`.
    pub registry: StateStoreUri,
    /// `spec.configBase`, by default the same.
    pub config_base: StateStoreUri,
    /// `spec.keyStore`, by default `pki` under `configBase`.
    pub key_store: StateStoreUri,
}

impl Places {
    /// The places of a cluster whose manifest names these stores.
    pub fn of(state_store: &StateStoreUri, cluster: &ClusterName, named: &kopsline_manifests::Stores) -> Result<Self, RegistryError> {
        let registry = format!("{state_store}/{cluster}");
        let place = |field, text: &str| {
            StateStoreUri::new(text).map_err(|source| RegistryError::Place { field, registry: registry.clone(), source })
        };
        let config_base = place("configBase", named.config_base.as_ref().unwrap_or(&registry))?;
        let key_store = match &named.key_store {
            Some(store) => place("keyStore", store)?,
            None => place("keyStore", &format!("{config_base}/pki"))?,
        };
        Ok(Self { registry: place("configBase", &registry)?, config_base, key_store })
    }

    /// The store and key of an object, by its name.
    pub fn locate<'a>(&self, name: &'a str) -> (&StateStoreUri, &'a str) {
        if let Some(key) = name.strip_prefix("pki/") {
            (&self.key_store, key)
        } else if name == KOPS_VERSION {
            (&self.config_base, name)
        } else {
            (&self.registry, name)
        }
    }
}

impl ClusterState {
    /// Reads a cluster's registry. For a cluster that does not exist yet there are no objects.
    pub async fn read(stores: &dyn Stores, state_store: &StateStoreUri, cluster: &ClusterName) -> Result<Self, RegistryError> {
        let mut places = Places::of(state_store, cluster, &kopsline_manifests::Stores::default())?;
        let config = read(stores, &places, CONFIG).await?;
        if let Some(config) = &config {
            let named = kopsline_manifests::Stores::of(&String::from_utf8_lossy(&config.bytes));
            let named = named.map_err(|source| RegistryError::Config { registry: places.registry.clone(), source })?;
            places = Places::of(state_store, cluster, &named)?;
        }
        let (groups, keys, kops_version) = futures::try_join!(
            children(stores, &places, INSTANCE_GROUPS),
            children(stores, &places, SSH_KEYS),
            read(stores, &places, KOPS_VERSION),
        )?;
        let names = [vec![ADDONS.to_owned()], groups, keys].concat();
        let places_ref = &places;
        let others: Vec<_> = stream::iter(names)
            .map(|name| async move { Ok::<_, StoreError>(read(stores, places_ref, &name).await?.map(|object| (name, object))) })
            .buffer_unordered(CONCURRENT_READS)
            .try_collect()
            .await?;
        let keep = |object: Object| StoredObject { bytes: object.bytes, etag: Some(object.etag.0) };
        Ok(Self {
            cluster: cluster.clone(),
            state_store: state_store.clone(),
            registry: others
                .into_iter()
                .flatten()
                .chain(config.map(|object| (CONFIG.to_owned(), object)))
                .map(|(name, object)| (name, keep(object)))
                .collect(),
            kops_version: kops_version.map(|object| String::from_utf8_lossy(&object.bytes).trim().to_owned()),
            places,
        })
    }

    /// Whether the cluster exists.
    pub fn exists(&self) -> bool {
        self.registry.contains_key(CONFIG)
    }

    /// The cluster's manifest, if it exists.
    pub fn config(&self) -> Option<String> {
        self.registry.get(CONFIG).map(|object| String::from_utf8_lossy(&object.bytes).into_owned())
    }

    /// The objects' versions by name, for a plan's digest.
    pub fn etags(&self) -> BTreeMap<String, ETag> {
        let etag = |object: &StoredObject| ETag(object.etag.clone().unwrap_or_default());
        self.registry.iter().map(|(name, object)| (name.clone(), etag(object))).collect()
    }

    /// The view of it that the checks of manifests take.
    pub fn for_checks(&self) -> kopsline_manifests::LiveRegistry<'_> {
        kopsline_manifests::LiveRegistry {
            state_store: self.state_store.as_str(),
            registry: &self.registry,
            kops_version: self.kops_version.as_deref(),
        }
    }
}

/// The names of the objects directly below a prefix: kOps reads no deeper.
async fn children(stores: &dyn Stores, places: &Places, prefix: &str) -> Result<Vec<String>, StoreError> {
    let (place, key) = places.locate(prefix);
    let listed = stores.store(place).list(key).await?;
    let names = listed.iter().filter_map(|object| object.key.strip_prefix(key));
    Ok(names.filter(|name| !name.is_empty() && !name.contains('/')).map(|name| format!("{prefix}{name}")).collect())
}

async fn read(stores: &dyn Stores, places: &Places, name: &str) -> Result<Option<Object>, StoreError> {
    let (place, key) = places.locate(name);
    stores.store(place).get(key).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fault, Faults, FaultyStores, MemoryStores};

    fn store() -> StateStoreUri {
        StateStoreUri::new("s3://state/team").unwrap()
    }

    fn cluster() -> ClusterName {
        ClusterName::new("demo.k8s.local").unwrap()
    }

    #[tokio::test]
    async fn reads_every_object_of_the_cluster_and_no_other() {
        let stores = MemoryStores::default();
        let bucket = stores.bucket("state");
        for (key, text) in [
            ("config", "spec: {kubernetesVersion: 1.33.0}"),
            ("instancegroup/nodes", "nodes"),
            ("instancegroup/deep/er", "ignored"),
            ("clusteraddons/default", "addons"),
            ("kops-version.txt", "1.36.2\n"),
            ("pki/ssh/public/admin/aa", "ssh-ed25519 AAAA"),
            ("pki/private/kubernetes-ca/keyset.yaml", "secret"),
            ("cluster-completed.spec", "ignored"),
        ] {
            bucket.set(&format!("team/demo.k8s.local/{key}"), text);
        }
        bucket.set("team/demo.k8s.local2/config", "other");
        let state = ClusterState::read(&stores, &store(), &cluster()).await.unwrap();
        let names: Vec<_> = state.registry.keys().map(String::as_str).collect();
        assert_eq!(names, ["clusteraddons/default", "config", "instancegroup/nodes", "pki/ssh/public/admin/aa"]);
        assert!(state.exists());
        assert_eq!(state.for_checks().kops_version, Some("1.36.2"));
        assert_eq!(Some(&state.etags()["config"].0), state.registry["config"].etag.as_ref());
        assert!(bucket.writes().is_empty());
    }

    #[tokio::test]
    async fn follows_config_base_and_key_store_into_other_buckets() {
        let stores = MemoryStores::default();
        stores.bucket("state").set("team/demo.k8s.local/config", "spec:\n  configBase: s3://other/base/\n  keyStore: s3://keys/k\n");
        stores.bucket("other").set("base/kops-version.txt", "1.36.1");
        stores.bucket("keys").set("k/ssh/public/admin/bb", "key");
        let state = ClusterState::read(&stores, &store(), &cluster()).await.unwrap();
        assert_eq!(state.kops_version.as_deref(), Some("1.36.1"));
        assert_eq!(state.registry["pki/ssh/public/admin/bb"].bytes, b"key");
        assert_eq!(state.places.config_base.as_str(), "s3://other/base");
    }

    #[tokio::test]
    async fn a_new_cluster_has_no_objects() {
        let state = ClusterState::read(&MemoryStores::default(), &store(), &cluster()).await.unwrap();
        assert!(!state.exists() && state.registry.is_empty() && state.config().is_none());
        assert_eq!(state.places.key_store.as_str(), "s3://state/team/demo.k8s.local/pki");
    }

    #[tokio::test]
    async fn says_what_cannot_be_read() {
        for (config, expected) in [
            ("spec: [", "s3://state/team/demo.k8s.local/config cannot be read"),
            ("spec: {configBase: \"gs://x/y\"}", "spec.configBase of s3://state/team/demo.k8s.local/config"),
            ("spec: {keyStore: \"../x\"}", "spec.keyStore of s3://state/team/demo.k8s.local/config"),
        ] {
            let stores = MemoryStores::default();
            stores.bucket("state").set("team/demo.k8s.local/config", config);
            let error = ClusterState::read(&stores, &store(), &cluster()).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!error.is_transient());
        }
        let faulty = FaultyStores::new(MemoryStores::default(), Faults::killing(0, Fault::NotApplied));
        assert!(ClusterState::read(&faulty, &store(), &cluster()).await.unwrap_err().is_transient());
    }
}

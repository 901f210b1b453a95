//! A cluster as the state store has it, and the way into its Kubernetes API.

use std::error::Error as _;
use std::sync::Arc;

use jiff::SignedDuration;
use kopsline_cloud::{Cloud, LoadBalancerClass};
use kopsline_core::config::{PauseAfterConfig, StuckDrainConfig};
use kopsline_core::{ClusterConfig, Failure, FailureKind};
use kopsline_kube::{
    AccessOptions, ApiSpec, Credentials, FoundLoadBalancer, KubeClient, Kubernetes, LoadBalancerKind, Minted, StoredKeyset,
    pick_load_balancer,
};
use kopsline_rolling::{ClusterFacts, ClusterSpec, Inventory, PauseAfter, Role, RollOptions, Selection, StuckDrain, classify};
use kopsline_state::registry::{CONFIG, INSTANCE_GROUPS};
use kopsline_state::{ClusterState, Stores};
use serde_json::Value;
use tracing::warn;

use crate::driver::StepError;

/// How long a certificate lives; it is made anew at half of it. kops' own are good for 18 hours.
const CERTIFICATE_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// The cluster and its instance groups, as far as a roll needs them.
fn cluster_spec(live: &ClusterState) -> Result<ClusterSpec, Failure> {
    let object = |name: &str, bytes: &[u8]| -> Result<Value, Failure> {
        serde_saphyr::from_slice(bytes).map_err(|error| {
            let place = &live.places.registry;
            Failure::new(FailureKind::Failed, format!("{place}/{name} cannot be read; restore an earlier version of the object: {error}"))
        })
    };
    let config = object(CONFIG, config(live)?)?;
    let groups = live.registry.iter().filter(|(name, _)| name.starts_with(INSTANCE_GROUPS));
    let groups = groups.map(|(name, stored)| object(name, &stored.bytes)).collect::<Result<Vec<_>, _>>()?;
    ClusterSpec::from_json(&config, &groups).map_err(|error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::bad_input(format!("{error}{cause}"))
    })
}

/// A cluster to roll, and the ways to it.
pub struct Target {
    /// The cloud of its region.
    pub cloud: Arc<dyn Cloud>,
    /// Its Kubernetes API; `None` for a roll that does without.
    pub kubernetes: Option<KubeClient>,
    /// The cluster as the state store has it.
    pub cluster: ClusterSpec,
}

impl Target {
    /// Finds the ways to a cluster; `access` says how to find its Kubernetes API, and is `None` for a roll that does without.
    pub async fn find(
        live: &ClusterState,
        stores: &dyn Stores,
        cloud: Arc<dyn Cloud>,
        access: Option<&AccessOptions>,
    ) -> Result<Self, Failure> {
        let cluster = cluster_spec(live)?;
        let kubernetes = match access {
            Some(access) => Some(kubernetes(live, stores, &*cloud, access).await?),
            None => None,
        };
        Ok(Self { cloud, kubernetes, cluster })
    }

    /// The Kubernetes API as a roll takes it.
    pub fn kubernetes(&self) -> Option<&dyn Kubernetes> {
        self.kubernetes.as_ref().map(|client| client as &dyn Kubernetes)
    }

    /// One look at the cloud and the cluster, for a preview or a forecast. A new cluster's API may need a while.
    pub async fn look(&self) -> Result<(Inventory, Option<ClusterFacts>), Failure> {
        let (observed, facts) = futures::join!(self.cloud.observe(&self.cluster.name), self.facts());
        let mut observed = observed?;
        observed.kubernetes = facts?;
        let inventory = classify(&observed, &self.cluster).map_err(StepError::from)?;
        Ok((inventory, observed.kubernetes))
    }

    async fn facts(&self) -> Result<Option<ClusterFacts>, Failure> {
        let Some(kubernetes) = &self.kubernetes else { return Ok(None) };
        let facts = kubernetes.observe().await.map_err(|error| {
            let message = format!("{error}; without the Kubernetes API a roll cannot drain or validate (cloudonly rolls without both)");
            Failure::new(Failure::transient_or(error.is_transient(), FailureKind::Failed), message)
        })?;
        Ok(Some(facts))
    }
}

/// The settings of `kopsline.yaml` as the planner takes them. An unknown role is refused: left out, it could leave none,
/// which stands for all.
pub fn options(cluster: &ClusterConfig) -> Result<RollOptions, Failure> {
    let config = &cluster.rolling_update;
    let role = |name: &String| {
        Role::parse(name).ok_or_else(|| {
            Failure::bad_input(format!(
                "kopsline.yaml: cluster {}: rollingUpdate.instanceGroupRoles has the unknown role {name:?} (use {})",
                cluster.name,
                Role::NAMES
            ))
        })
    };
    let roles = config.instance_group_roles.iter().map(role).collect::<Result<_, _>>()?;
    Ok(RollOptions {
        selection: Selection { instance_groups: config.instance_groups.clone(), roles },
        force: config.force,
        cloudonly: config.cloudonly,
        bastion_interval: config.bastion_interval,
        control_plane_interval: config.control_plane_interval,
        node_interval: config.node_interval,
        wait_for_replacement: config.wait_for_replacement,
        validation_timeout: config.validation_timeout,
        validate_count: config.validate_count,
        fail_on_validate_error: config.fail_on_validate_error,
        validation_baseline: config.validation_baseline,
        post_drain_delay: config.post_drain_delay,
        drain_timeout: config.drain_timeout,
        fail_on_drain_error: config.fail_on_drain_error,
        on_stuck_drain: config.on_stuck_drain.map(|choice| match choice {
            StuckDrainConfig::Fail => StuckDrain::Fail,
            StuckDrainConfig::Force => StuckDrain::Force,
            StuckDrainConfig::Skip => StuckDrain::Skip,
            StuckDrainConfig::Ask => StuckDrain::Ask,
        }),
        drain_decision_timeout: config.drain_decision_timeout,
        detect_hopeless_budgets: config.detect_hopeless_budgets,
        suspend_rebalance: config.suspend_rebalance,
        // A question of terminals; elsewhere `pauseAfter` and approvals take its place.
        interactive: false,
        pause_after: config.pause_after.map(|after| match after {
            PauseAfterConfig::Percent(percent) => PauseAfter::Percent(percent),
            PauseAfterConfig::FirstOfEachGroup => PauseAfter::FirstOfEachGroup,
        }),
        pause_for: config.pause_for,
    })
}

/// The cluster's Kubernetes API, entered as `kops export kubecfg --admin` does. Nothing is sent to it yet.
async fn kubernetes(live: &ClusterState, stores: &dyn Stores, cloud: &dyn Cloud, options: &AccessOptions) -> Result<KubeClient, Failure> {
    let config = String::from_utf8_lossy(config(live)?);
    let api = ApiSpec::parse(&config).map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))?;
    let mut balancer = None;
    if let Some(wanted) = api.look_up(options) {
        let class = match wanted.kind {
            LoadBalancerKind::Classic => LoadBalancerClass::Classic,
            LoadBalancerKind::Network => LoadBalancerClass::Network,
        };
        let found = cloud.load_balancers(class, &wanted.name_tag).await?;
        let found: Vec<_> = found
            .into_iter()
            .map(|found| FoundLoadBalancer { dns_name: found.dns_name, name_tag: wanted.name_tag.clone(), revision: found.revision })
            .collect();
        balancer = pick_load_balancer(&wanted, &found).map(str::to_owned);
        if balancer.is_none() {
            warn!(name = wanted.name_tag, "the API's load balancer was not found; its DNS name is tried");
        }
    }
    let access = api.access(options, balancer.as_deref());
    let dns_host = api.publishes_dns.then(|| host(&access.server).to_owned());
    let keysets = Arc::new(StoredKeyset::new(stores.store(&live.places.key_store)));
    Ok(KubeClient::new(Credentials::Minted(Minted { access, keysets, lifetime: CERTIFICATE_LIFETIME }), dns_host))
}

fn config(live: &ClusterState) -> Result<&[u8], Failure> {
    let stored = live.registry.get(CONFIG).map(|stored| stored.bytes.as_slice());
    stored.ok_or_else(|| {
        let (name, store) = (&live.cluster, &live.state_store);
        Failure::new(FailureKind::Failed, format!("there is no cluster {name} in {store}: run again to create it"))
    })
}

/// The host of `https://host:port`.
fn host(server: &str) -> &str {
    let host = server.trim_start_matches("https://").split('/').next().unwrap_or_default();
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(rolling_update: &Value) -> ClusterConfig {
        serde_json::from_value(serde_json::json!({
            "name": "demo.k8s.local", "stateStore": "s3://state", "region": "eu-central-1", "kops": {"version": "1.36.2"},
            "sources": ["c.yaml"], "rollingUpdate": rolling_update,
        }))
        .unwrap()
    }

    #[test]
    fn the_defaults_of_the_file_are_the_planners() {
        assert_eq!(options(&configured(&serde_json::json!({}))).unwrap(), RollOptions::default());
    }

    #[test]
    fn a_misspelled_role_does_not_stand_for_all() {
        let roles = |names: &[&str]| options(&configured(&serde_json::json!({"instanceGroupRoles": names})));
        assert_eq!(roles(&["node"]).unwrap().selection.roles, [Role::Node]);
        let refused = roles(&["workers"]).unwrap_err();
        assert!(refused.kind == FailureKind::BadInput && refused.message.contains(r#"unknown role "workers""#), "{refused}");
    }

    #[test]
    fn a_servers_host() {
        for (server, expected) in [
            ("https://api.demo.example.com", "api.demo.example.com"),
            ("https://api.demo.example.com:8443/", "api.demo.example.com"),
            ("https://[2001:db8::1]:443", "[2001:db8::1]"),
        ] {
            assert_eq!(host(server), expected);
        }
    }
}

//! A cluster as the state store has it, and the way into its Kubernetes API.

use std::error::Error as _;
use std::sync::Arc;

use jiff::SignedDuration;
use kopsline_cloud::{Cloud, LoadBalancerClass};
use kopsline_core::config::{PauseAfterConfig, RollingUpdateConfig, StuckDrainConfig};
use kopsline_core::{Failure, FailureKind};
use kopsline_kube::{
    AccessOptions, ApiSpec, Credentials, FoundLoadBalancer, KubeClient, LoadBalancerKind, Minted, StoredKeyset, pick_load_balancer,
};
use kopsline_rolling::{ClusterSpec, PauseAfter, Role, RollOptions, Selection, StuckDrain};
use kopsline_state::registry::{CONFIG, INSTANCE_GROUPS};
use kopsline_state::{ClusterState, Stores};
use serde_json::Value;
use tracing::warn;

/// How long a certificate lives; it is made anew at half of it. kops' own are good for 18 hours.
const CERTIFICATE_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// The cluster and its instance groups, as far as a roll needs them.
pub fn cluster_spec(live: &ClusterState) -> Result<ClusterSpec, Failure> {
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

/// The settings of `kopsline.yaml` as the planner takes them. Unknown roles are left out: who reads the file refuses them.
pub fn options(config: &RollingUpdateConfig) -> RollOptions {
    RollOptions {
        selection: Selection {
            instance_groups: config.instance_groups.clone(),
            roles: config.instance_group_roles.iter().filter_map(|name| Role::parse(name)).collect(),
        },
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
    }
}

/// The cluster's Kubernetes API, entered as `kops export kubecfg --admin` does. Nothing is sent to it yet.
pub async fn kubernetes(
    live: &ClusterState,
    stores: &dyn Stores,
    cloud: &dyn Cloud,
    options: &AccessOptions,
) -> Result<KubeClient, Failure> {
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

    #[test]
    fn the_defaults_of_the_file_are_the_planners() {
        assert_eq!(options(&RollingUpdateConfig::default()), RollOptions::default());
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

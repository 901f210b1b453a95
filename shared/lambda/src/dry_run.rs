//! The dry run as `plan` makes it and `update` makes it again.

use std::collections::BTreeMap;

use kopsline_core::{Failure, FailureKind, Run};
use kopsline_kops::Runner;
use kopsline_plan::{DigestInputs, Plan, parse, scrub};
use kopsline_state::{ClusterState, Stores};

/// A dry run and everything it follows from.
#[derive(Debug, Clone)]
pub struct DryRun {
    /// The plan with its secrets: not for records.
    pub plan: Plan,
    /// What an approval is for.
    pub inputs: DigestInputs,
    /// The registry that it was made from.
    pub live: ClusterState,
}

/// Runs `kops update cluster` without `--yes` on the live state store. It writes nothing.
pub async fn make(runner: &Runner, stores: &dyn Stores, run: &Run) -> Result<DryRun, Failure> {
    let cluster = &run.cluster;
    let live = ClusterState::read(stores, &cluster.state_store, &cluster.name).await?;
    let output = runner.update_dry_run(cluster.state_store.as_str(), &cluster.name).await.map_err(scrubbed)?;
    let plan = parse(&output.stdout).map_err(|error| Failure::new(FailureKind::KopsFailed, error.to_string()))?;
    let inputs = DigestInputs {
        cluster: cluster.name.to_string(),
        commit: run.merge.commit.to_string(),
        kops_version: runner.kops().version.to_string(),
        kops_sha256: runner.kops().sha256.clone(),
        registry: hashes(&live),
        dry_run: DigestInputs::hash(plan.normal_form()),
    };
    Ok(DryRun { plan, inputs, live })
}

/// The SHA-256 of each object of a registry, by its name.
pub fn hashes(live: &ClusterState) -> BTreeMap<String, String> {
    live.registry.iter().map(|(key, object)| (key.clone(), DigestInputs::hash(&object.bytes))).collect()
}

/// kops' own words without secrets.
pub fn scrubbed(error: impl Into<Failure>) -> Failure {
    let failure = error.into();
    Failure::new(failure.kind, scrub(&failure.message))
}

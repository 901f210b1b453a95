//! Previews and rolls, one bounded step an invocation.

mod checkpoints;
mod preview;
mod step;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use aws_config::Region;
use jiff::{SignedDuration, Timestamp};
use kopsline_cloud::{AwsCloud, Cloud};
use kopsline_core::lock::WORKING_LEASE;
use kopsline_core::{Failure, FailureKind, Run, RunId};
use kopsline_lambda::{Deadline, clients, serve, telemetry};
use kopsline_rolling::{ClusterSpec, Role, RollOptions, Selection};
use kopsline_state::registry::{CONFIG, INSTANCE_GROUPS};
use kopsline_state::{ClusterState, LockFile, Runs, Stores};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is kept of an invocation's time for recording what happened.
const RESERVE: Duration = Duration::from_secs(30);

/// What the pipeline asks for.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
enum Request {
    /// Find out what would be rolled.
    Preview { run: RunId },
    /// Roll for a while.
    Step { run: RunId },
}

/// What the function answers.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
enum Answer {
    /// No instance needs an update.
    Nothing,
    /// There are instances to replace.
    Needed { gate: Approval, approval_timeout_seconds: u64 },
    /// The roll goes on: ask again.
    Progress { wait_seconds: u64 },
    /// The roll is through.
    Done,
}

/// Whether a person must say yes.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Approval {
    Manual,
    Automatic,
}

/// The clients behind the requests.
struct Roll {
    runs: Runs,
    stores: Arc<dyn Stores>,
    /// The cloud of a region: clusters need not be where the functions are.
    cloud: Box<dyn Fn(&str) -> Arc<dyn Cloud> + Send + Sync>,
}

impl Roll {
    async fn handle(&self, request: Request, deadline: Deadline, now: Timestamp) -> Result<Answer, Failure> {
        match request {
            Request::Preview { run } => self.preview(&run, now).await,
            Request::Step { run } => self.step(&run, deadline.remaining(RESERVE), now).await,
        }
    }

    /// Keeps the cluster's lock for another working lease after `wait`; fails when the lock is not the run's any more.
    async fn renew(&self, run: &Run, now: Timestamp, wait: SignedDuration) -> Result<(), Failure> {
        let until = now.saturating_add(WORKING_LEASE.saturating_add(wait)).unwrap_or(Timestamp::MAX);
        LockFile::new(self.runs.documents().clone(), &run.cluster).renew(&run.id, until).await?;
        Ok(())
    }

    /// The cluster and its instance groups as the state store has them now.
    async fn cluster(&self, run: &Run) -> Result<ClusterSpec, Failure> {
        let state = ClusterState::read(&*self.stores, &run.cluster.state_store, &run.cluster.name).await?;
        let object = |name: &str, bytes: &[u8]| -> Result<Value, Failure> {
            serde_saphyr::from_slice(bytes).map_err(|error| {
                let place = &state.places.registry;
                Failure::new(
                    FailureKind::Failed,
                    format!("{place}/{name} cannot be read; restore an earlier version of the object: {error}"),
                )
            })
        };
        let Some(config) = state.registry.get(CONFIG) else {
            let (name, store) = (&run.cluster.name, &run.cluster.state_store);
            return Err(Failure::new(FailureKind::Failed, format!("there is no cluster {name} in {store}: run again to create it")));
        };
        let config = object(CONFIG, &config.bytes)?;
        let groups = state.registry.iter().filter(|(name, _)| name.starts_with(INSTANCE_GROUPS));
        let groups = groups.map(|(name, stored)| object(name, &stored.bytes)).collect::<Result<Vec<_>, _>>()?;
        ClusterSpec::from_json(&config, &groups).map_err(|error| {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            Failure::bad_input(format!("{error}{cause}"))
        })
    }
}

/// The cluster's settings as the planner takes them.
fn options(run: &Run) -> Result<RollOptions, Failure> {
    let config = &run.cluster.rolling_update;
    let role = |name: &String| {
        Role::parse(name).ok_or_else(|| {
            Failure::bad_input(format!(
                "kopsline.yaml: cluster {}: rollingUpdate.instanceGroupRoles has the unknown role {name:?} (use control-plane, apiserver, node or bastion)",
                run.cluster.name
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
        ..RollOptions::default()
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    let aws = clients::aws().await;
    let roll = Arc::new(Roll {
        runs: clients::runs(&aws)?,
        stores: Arc::new(clients::state_stores(&aws)),
        cloud: Box::new(move |region| Arc::new(AwsCloud::new(&aws.to_builder().region(Region::new(region.to_owned())).build()))),
    });
    serve("roll", |request: Request, deadline| {
        let roll = Arc::clone(&roll);
        async move { roll.handle(request, deadline, Timestamp::now()).await }
    })
    .await
}

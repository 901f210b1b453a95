//! Previews and rolls, one bounded step an invocation.

mod checkpoints;
mod desk;
mod history;
mod preview;
mod step;

use std::sync::Arc;
use std::time::Duration;

use aws_config::Region;
use jiff::{SignedDuration, Timestamp};
use kopsline_cloud::{AwsCloud, Cloud};
use kopsline_core::lock::WORKING_LEASE;
use kopsline_core::{Failure, Phase, Run, RunId};
use kopsline_kube::AccessOptions;
use kopsline_lambda::{Deadline, clients, serve, telemetry};
use kopsline_roller::Target;
use kopsline_rolling::{Role, RollOptions, StuckDrain};
use kopsline_state::{ClusterState, LockFile, Runs, Stores};
use serde::{Deserialize, Serialize};

/// What is kept of an invocation's time for recording what happened.
const RESERVE: Duration = Duration::from_secs(30);

/// What the pipeline asks for.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
enum Request {
    /// Say what the roll will be like once the plan is applied, for the person who approves the plan.
    Forecast { run: RunId },
    /// Find out what would be rolled.
    Preview {
        run: RunId,
        #[serde(default)]
        phase: Phase,
    },
    /// Roll for a while.
    Step {
        run: RunId,
        #[serde(default)]
        phase: Phase,
    },
}

/// What the function answers.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
enum Answer {
    /// The forecast is in the record.
    Forecast,
    /// No instance needs an update.
    Nothing,
    /// There are instances to replace.
    Needed { gate: Approval, approval_timeout_seconds: u64 },
    /// The roll goes on: ask again.
    Progress {
        wait_seconds: u64,
        /// Whether the wait is long enough to tell people of it.
        tell: bool,
    },
    /// The roll asks a person, at this gate.
    Question { gate: &'static str, timeout_seconds: u64 },
    /// The roll was told to pause, and has nothing in flight.
    Paused,
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
            Request::Forecast { run } => self.forecast(&run).await,
            Request::Preview { run, phase } => self.preview(&run, phase, now).await,
            Request::Step { run, phase } => self.step(&run, phase, deadline.remaining(RESERVE), now).await,
        }
    }

    /// Keeps the cluster's lock for another working lease after `wait`; fails when the lock is not the run's any more.
    async fn renew(&self, run: &Run, now: Timestamp, wait: SignedDuration) -> Result<(), Failure> {
        let until = now.saturating_add(WORKING_LEASE.saturating_add(wait)).unwrap_or(Timestamp::MAX);
        LockFile::new(self.runs.documents().clone(), &run.cluster).renew(&run.id, until).await?;
        Ok(())
    }

    /// The cluster as the state store has it now, and its Kubernetes API unless the roll does without.
    async fn target(&self, run: &Run) -> Result<Target, Failure> {
        let cloud = (self.cloud)(&run.cluster.region);
        let live = ClusterState::read(&*self.stores, &run.cluster.state_store, &run.cluster.name).await?;
        let settings = &run.cluster.rolling_update;
        let access = AccessOptions { api_server: settings.api_server.clone(), internal: settings.internal, admin: true };
        Target::find(&live, &*self.stores, cloud, Some(&access).filter(|_| !settings.cloudonly)).await
    }
}

/// The cluster's settings as the planner takes them; `None` when the phase concerns none of the wanted roles.
fn options(run: &Run, phase: Phase) -> Result<Option<RollOptions>, Failure> {
    let mut options = kopsline_roller::options(&run.cluster)?;
    // Whoever approved the roll by hand can be asked in the middle of it, too.
    if options.on_stuck_drain.is_none() && run.cluster.approvals.roll.asks(false) {
        options.on_stuck_drain = Some(StuckDrain::Ask);
    }
    if phase == Phase::ControlPlane {
        let first = [Role::ControlPlane, Role::ApiServer];
        let wanted = &mut options.selection.roles;
        if wanted.is_empty() {
            wanted.extend(first);
        } else {
            wanted.retain(|role| first.contains(role));
        }
        if wanted.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(options))
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

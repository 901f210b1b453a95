//! Applies the approved plan, and no other; a new minor version of Kubernetes in phases.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kopsline_core::lock::WORKING_LEASE;
use kopsline_core::{Failure, FailureKind, Phase, Run, RunId, Stage, StageState};
use kopsline_kops::{KopsBinaries, UpdateScope};
use kopsline_lambda::{Deadline, clients, dry_run, serve, telemetry};
use kopsline_plan::{DigestInputs, PlanDocument, scrub};
use kopsline_state::{ClusterState, LockFile, Runs, Stores};
use serde::{Deserialize, Serialize};

/// What is kept of the invocation's time for recording.
const RESERVE: Duration = Duration::from_secs(30);

/// What the pipeline asks for.
#[derive(Debug, Deserialize)]
struct Request {
    run: RunId,
    #[serde(default)]
    phase: Phase,
}

/// What the function answers.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
enum Answer {
    /// The plan is applied.
    Applied,
    /// Something moved since the plan was made; nothing was applied.
    Moved,
}

/// The clients behind the requests.
struct Update {
    runs: Runs,
    stores: Arc<dyn Stores>,
    kops: KopsBinaries,
}

impl Update {
    /// Killed in the middle and run again, it completes: a half-done update is repaired by running kops again, never left.
    async fn update(&self, id: &RunId, phase: Phase, deadline: Deadline, now: Timestamp) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        let lock = LockFile::new(self.runs.documents().clone(), &run.cluster);
        let entered = async {
            lock.renew(id, now.saturating_add(WORKING_LEASE).unwrap_or(Timestamp::MAX)).await?;
            self.runs
                .change(id, |record| {
                    record.phase = phase;
                    record.enter(Stage::Update, now);
                })
                .await?;
            Ok::<_, Failure>(())
        };
        let (runner, ()) = tokio::try_join!(clients::kops_runner(&self.kops, &run.cluster, deadline.remaining(RESERVE)), entered)?;

        // Once begun, what is there differs from the plan because of ourselves.
        if !run.update_begun {
            let approved = self.approved(id).await?;
            let fresh = dry_run::make(&runner, &*self.stores, &run).await?;
            let moved = approved.inputs.moved(&fresh.inputs);
            if !moved.is_empty() {
                let note = format!("not applied, planning again: {}", moved.join("; "));
                self.runs.change(id, |record| record.leave(Stage::Update, StageState::Waiting, note.clone(), now)).await?;
                self.runs.event(id, now, Some(Stage::Update), "moved", note).await?;
                return Ok(Answer::Moved);
            }
            self.runs.change(id, |record| record.update_begun = true).await?;
            self.runs.event(id, now, Some(Stage::Update), "update-begun", format!("applies the plan {}", approved.digest)).await?;
        } else if matches!(phase, Phase::Nodes | Phase::Prune) {
            self.refuse_another_registry(&run).await?;
        }
        lock.mark_unapplied(id, false).await?;

        let (scope, what, output_name) = match phase {
            Phase::All => (UpdateScope::Everything, "", "update.txt"),
            Phase::ControlPlane => (UpdateScope::ControlPlane, "the control plane ", "update.txt"),
            Phase::Nodes => (UpdateScope::Everything, "the nodes ", "update-nodes.txt"),
            Phase::Prune => (UpdateScope::Prune, "the pruning ", "update-prune.txt"),
        };
        let store = run.cluster.state_store.as_str();
        let applied = runner.update_apply(store, &run.cluster.name, scope).await.map_err(dry_run::scrubbed);
        let now = Timestamp::now();
        match applied {
            Ok(output) => {
                self.runs.put_text(id, output_name, scrub(&format!("{}\n{}", output.stdout, output.stderr))).await?;
                let note = format!("{what}applied in {} s", output.duration.as_secs());
                self.runs.change(id, |record| record.leave(Stage::Update, StageState::Succeeded, note.clone(), now)).await?;
                self.runs.event(id, now, Some(Stage::Update), "updated", note).await?;
                Ok(Answer::Applied)
            }
            Err(failure) => {
                self.runs.put_text(id, output_name, failure.message.clone()).await?;
                self.runs.event(id, now, Some(Stage::Update), "update-failed", failure.message.clone()).await?;
                Err(failure)
            }
        }
    }

    async fn approved(&self, id: &RunId) -> Result<PlanDocument, Failure> {
        let plan = self.runs.document(id, "plan.json").await?;
        plan.ok_or_else(|| Failure::new(FailureKind::Failed, format!("the record of {id} has no plan.json")))
    }

    /// The cloud differs from the approved plan by now, because of ourselves; the registry must not.
    async fn refuse_another_registry(&self, run: &Run) -> Result<(), Failure> {
        let approved = self.approved(&run.id).await?.inputs;
        let live = ClusterState::read(&*self.stores, &run.cluster.state_store, &run.cluster.name).await?;
        let moved = approved.moved(&DigestInputs { registry: dry_run::hashes(&live), ..approved.clone() });
        if moved.is_empty() {
            return Ok(());
        }
        Err(Failure::new(
            FailureKind::Conflict,
            format!(
                "the state store changed while the upgrade was under way, so the rest of it was not applied: {}; merge again",
                moved.join("; ")
            ),
        ))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    let aws = clients::aws().await;
    let update = Arc::new(Update { runs: clients::runs(&aws)?, stores: Arc::new(clients::state_stores(&aws)), kops: clients::kops(&aws)? });
    serve("update", |request: Request, deadline| {
        let update = Arc::clone(&update);
        async move { update.update(&request.run, request.phase, deadline, Timestamp::now()).await }
    })
    .await
}

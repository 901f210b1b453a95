//! Runs kops' dry run and makes the plan that is approved. Writes nothing but the run's record: its role cannot.

mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kopsline_core::lock::WORKING_LEASE;
use kopsline_core::{Failure, FailureKind, RunId, Stage, StageState};
use kopsline_kops::KopsBinaries;
use kopsline_lambda::{Deadline, clients, dry_run, serve, telemetry};
use kopsline_manifests::Notice;
use kopsline_plan::{PlanDocument, Summary, digest, html, markdown, redact};
use kopsline_state::{LockFile, Runs, Stores};
use serde::{Deserialize, Serialize};

/// What is kept of the invocation's time for recording.
const RESERVE: Duration = Duration::from_secs(30);

/// What the pipeline asks for.
#[derive(Debug, Deserialize)]
struct Request {
    run: RunId,
}

/// What the function answers.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
enum Answer {
    /// There is nothing to do, and nothing to approve.
    NoChanges,
    /// There is something to do.
    Changes {
        gate: &'static str,
        approval_timeout_seconds: u64,
        /// Whether the control plane must be updated and rolled before the nodes are touched.
        upgrade: bool,
    },
}

/// The clients behind the requests.
struct Planner {
    runs: Runs,
    stores: Arc<dyn Stores>,
    kops: KopsBinaries,
}

impl Planner {
    async fn plan(&self, id: &RunId, deadline: Deadline, now: Timestamp) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        let entered = async {
            let lease = now.saturating_add(WORKING_LEASE).unwrap_or(Timestamp::MAX);
            LockFile::new(self.runs.documents().clone(), &run.cluster).renew(id, lease).await?;
            self.runs.change(id, |record| record.enter(Stage::Plan, now)).await?;
            Ok::<_, Failure>(())
        };
        let (runner, ()) = tokio::try_join!(clients::kops_runner(&self.kops, &run.cluster, deadline.remaining(RESERVE)), entered)?;
        let made = dry_run::make(&runner, &*self.stores, &run).await?;
        // A plan without changes brings nodes nothing.
        let upgrade = !made.plan.is_empty() && upgrade::is_upgrade(&*self.stores, &made.live).await?;
        let notices: Vec<Notice> = self.runs.document(id, "notices.json").await?.unwrap_or_default();
        let plan = redact(&made.plan);
        let document = PlanDocument {
            run: id.to_string(),
            made_at: now,
            digest: digest(&made.inputs),
            summary: Summary::of(&plan),
            destructive: made.plan.destructive(),
            changed_groups: made.plan.changed_groups().into_iter().map(str::to_owned).collect(),
            notices: notices.into_iter().map(|notice| format!("{} ({})", notice.what, notice.remedy)).collect(),
            inputs: made.inputs,
            plan,
        };
        tokio::try_join!(
            self.runs.put_text(id, "plan.txt", document.plan.to_text()),
            self.runs.put_text(id, "plan.md", markdown(&document)),
            self.runs.put_text(id, "plan.html", html(&document)),
            self.runs.put_document(id, "plan.json", &document),
        )?;

        let order = if upgrade { "; the control plane first, then the nodes" } else { "" };
        let (note, now) = (format!("{}{order}", document.summary), Timestamp::now());
        self.runs
            .change(id, |record| {
                record.plan_digest = Some(document.digest.clone());
                record.leave(Stage::Plan, StageState::Succeeded, note.clone(), now);
            })
            .await?;
        let short = document.digest.get(..12).unwrap_or(&document.digest);
        self.runs.event(id, now, Some(Stage::Plan), "planned", format!("{note}, digest {short}")).await?;
        if document.plan.is_empty() {
            return Ok(Answer::NoChanges);
        }
        let approvals = &run.cluster.approvals;
        let approval_timeout_seconds =
            u64::try_from(approvals.timeout.as_secs()).map_err(|_| Failure::new(FailureKind::BadInput, "approvals.timeout is negative"))?;
        let gate = if approvals.update.asks(!document.destructive.is_empty()) { "manual" } else { "automatic" };
        Ok(Answer::Changes { gate, approval_timeout_seconds, upgrade })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    let aws = clients::aws().await;
    let planner =
        Arc::new(Planner { runs: clients::runs(&aws)?, stores: Arc::new(clients::state_stores(&aws)), kops: clients::kops(&aws)? });
    serve("plan", |request: Request, deadline| {
        let planner = Arc::clone(&planner);
        async move { planner.plan(&request.run, deadline, Timestamp::now()).await }
    })
    .await
}

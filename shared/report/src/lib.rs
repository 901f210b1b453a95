//! A run's documents gathered into its page, and into the line that an approval shows.

use kopsline_core::{Approval, Event, Failure, FailureKind, Gate, Run, RunId, RunState, Stage, StageRecord, StageState};
use kopsline_plan::{ApprovalView, EventView, PlanDocument, PreviewRowView, RollStepView, RunOutcome, RunView, StageOutcome, StageView};
use kopsline_rolling::{InstancePhase, InstanceRoll, Preview, RollState};
use kopsline_state::Runs;
use sha2::{Digest, Sha256};

/// One self-contained HTML page of one or several runs, in the order given.
pub async fn run_page(runs: &Runs, ids: &[RunId]) -> Result<String, Failure> {
    let mut views = Vec::new();
    for id in ids {
        views.push(view(runs, runs.read(id).await?).await?);
    }
    Ok(kopsline_plan::run_page(&views))
}

/// What is approved at a gate: its digest, and one line for people.
pub async fn plan_summary(runs: &Runs, run: &RunId, gate: Gate) -> Result<(String, String), Failure> {
    let missing = |name: &str| Failure::new(FailureKind::Failed, format!("the record of {run} has no {name}"));
    match gate {
        Gate::Update => {
            let plan: PlanDocument = runs.document(run, "plan.json").await?.ok_or_else(|| missing("plan.json"))?;
            Ok((plan.digest, plan.summary.to_string()))
        }
        Gate::Roll => {
            let preview = runs.text(run, "roll/preview.txt").await?.ok_or_else(|| missing("roll/preview.txt"))?;
            let note = runs.read(run).await?.stage(Stage::RollPreview).map(|stage| stage.note.clone());
            Ok((hex::encode(Sha256::digest(&preview)), note.unwrap_or_default()))
        }
    }
}

async fn view(runs: &Runs, run: Run) -> Result<RunView, Failure> {
    let mut approvals = Vec::new();
    for id in &run.approvals {
        approvals.extend(runs.approval(id).await?.map(approval));
    }
    let preview: Option<Preview> = runs.document(&run.id, "roll/preview.json").await?;
    let roll: Option<RollState> = runs.document(&run.id, "roll/checkpoint.json").await?;
    Ok(RunView {
        plan: runs.document(&run.id, "plan.json").await?,
        update_output: runs.text(&run.id, "update.txt").await?,
        preview: preview.map(preview_rows).unwrap_or_default(),
        roll: roll.map(|roll| roll_steps(&roll)).unwrap_or_default(),
        events: runs.events(&run.id).await?.into_iter().map(event).collect(),
        approvals,
        stages: run.stages.iter().map(stage).collect(),
        outcome: outcome(run.state),
        started_at: run.received_at,
        ended_at: run.ended_at,
        failure: run.failure.map(|failure| failure.message),
        id: run.id.to_string(),
        cluster: run.cluster.name.to_string(),
        kops: run.cluster.kops.version.to_string(),
        project: run.merge.project,
        branch: run.merge.branch,
        commit: run.merge.commit.to_string(),
        title: run.merge.title,
        url: run.merge.url,
        user: run.merge.user,
    })
}

fn outcome(state: RunState) -> RunOutcome {
    match state {
        RunState::Queued => RunOutcome::Queued,
        RunState::Running => RunOutcome::Running,
        RunState::Succeeded => RunOutcome::Succeeded,
        RunState::NoChanges => RunOutcome::NoChanges,
        RunState::Rejected => RunOutcome::Rejected,
        RunState::Expired => RunOutcome::Expired,
        RunState::Superseded => RunOutcome::Superseded,
        RunState::Failed => RunOutcome::Failed,
    }
}

fn stage(record: &StageRecord) -> StageView {
    // An approval is a wait from its beginning to its end.
    let waits = matches!(record.stage, Stage::ApproveUpdate | Stage::ApproveRoll);
    StageView {
        name: record.stage.to_string(),
        outcome: match record.state {
            StageState::Running => StageOutcome::Running,
            StageState::Waiting => StageOutcome::Waiting,
            StageState::Succeeded => StageOutcome::Succeeded,
            StageState::Skipped => StageOutcome::Skipped,
            StageState::Failed => StageOutcome::Failed,
        },
        started_at: record.started_at,
        ended_at: record.ended_at,
        waits: if waits { vec![(record.started_at, record.ended_at)] } else { Vec::new() },
        note: record.note.clone(),
    }
}

fn approval(approval: Approval) -> ApprovalView {
    let answer = approval.answer;
    ApprovalView {
        gate: approval.gate.as_str().to_owned(),
        digest: approval.digest,
        approved: answer.as_ref().map(|answer| answer.decision == kopsline_core::Decision::Approve),
        by: answer.as_ref().and_then(|answer| answer.by.clone()),
        at: answer.as_ref().map(|answer| answer.at),
        comment: answer.and_then(|answer| answer.comment),
    }
}

fn preview_rows(preview: Preview) -> Vec<PreviewRowView> {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let row = |row: kopsline_rolling::PreviewRow| PreviewRowView {
        name: row.name,
        status: if row.needs_update { "NeedsUpdate" } else { "Ready" }.to_owned(),
        need_update: count(row.need_update),
        ready: count(row.ready),
        min: row.min,
        target: row.target,
        max: row.max,
    };
    preview.rows.into_iter().map(row).collect()
}

fn roll_steps(roll: &RollState) -> Vec<RollStepView> {
    let steps = roll.groups.iter().flat_map(|group| {
        group.instances.iter().filter_map(|instance| {
            Some(RollStepView {
                started_at: instance.started.or(instance.gone)?,
                ended_at: instance.replaced.as_ref().map(|replaced| replaced.at).or(instance.gone),
                group: group.name.clone(),
                instance: instance.id.clone(),
                what: what(instance),
            })
        })
    });
    steps.collect()
}

fn what(instance: &InstanceRoll) -> String {
    match (&instance.phase, &instance.replaced) {
        (_, Some(replaced)) => format!("replaced by {}", replaced.by),
        (InstancePhase::Failed { error }, _) => format!("not terminated: {error}"),
        (InstancePhase::Vanished, _) => "went away before its turn".to_owned(),
        (InstancePhase::Skipped { why } | InstancePhase::Returning { why, .. }, _) => format!("left as it was: {why}"),
        (InstancePhase::Waiting, _) => "waits".to_owned(),
        (InstancePhase::Detaching { .. }, _) => "is being detached".to_owned(),
        (InstancePhase::Preparing { .. } | InstancePhase::Draining(_) | InstancePhase::Settling { .. }, _) => "is being drained".to_owned(),
        (InstancePhase::Terminating { .. }, _) => "is being terminated".to_owned(),
        (InstancePhase::Terminated | InstancePhase::Done, _) => "terminated".to_owned(),
    }
}

fn event(event: Event) -> EventView {
    let stage = event.stage.map(|stage| stage.to_string()).unwrap_or_default();
    EventView { at: event.at, stage, what: event.what, message: event.message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use kopsline_state::Documents;
    use kopsline_state::testing::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn a_run_that_has_only_begun_has_a_page_and_what_people_wrote_is_escaped() {
        let runs = Runs::new(Documents::new(Arc::new(MemoryStore::default())));
        let run: Run = serde_json::from_value(serde_json::json!({
            "id": "demo-1", "delivery": "d", "received_at": "2026-01-01T00:00:00Z", "state": "queued",
            "cluster": {"name": "demo.k8s.local", "stateStore": "s3://state", "region": "eu-central-1", "kops": {"version": "1.36.2"}, "sources": ["c.yaml"]},
            "merge": {"project_id": 1, "project": "a/b", "branch": "main", "commit": "1".repeat(40), "before": "0".repeat(40),
                      "title": "<script>alert(1)</script>", "user": "ann", "url": "https://gitlab.example.com/x"},
        }))
        .unwrap();
        runs.create(&run).await.unwrap();
        runs.change(&run.id, |run| run.enter(Stage::Replace, Timestamp::UNIX_EPOCH)).await.unwrap();
        let page = run_page(&runs, std::slice::from_ref(&run.id)).await.unwrap();
        assert!(page.contains("demo.k8s.local") && !page.contains("<script>alert"), "{page}");
        let missing = plan_summary(&runs, &run.id, Gate::Update).await.unwrap_err();
        assert!(missing.message.contains("plan.json"), "{missing}");
    }
}

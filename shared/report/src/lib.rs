//! A run's documents gathered into its page, and into the line that an approval shows.

use kopsline_core::{Approval, Event, Failure, FailureKind, Gate, Phase, Run, RunId, RunState, Stage, StageRecord, StageState};
use kopsline_plan::{
    ApprovalView, EventView, PlanDocument, PreviewRowView, RollSpan, RollSpanKind, RollStepView, RunOutcome, RunView, StageOutcome,
    StageView,
};
use kopsline_rolling::{InstanceRoll, Preview, RollState};
use kopsline_state::{RunError, Runs};
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
            let record = runs.read(run).await?;
            let name = record.phase.roll_document("preview.txt");
            let preview = runs.text(run, &name).await?.ok_or_else(|| missing(&name))?;
            let note = record.stage(Stage::RollPreview).map(|stage| stage.note.clone());
            Ok((hex::encode(Sha256::digest(&preview)), note.unwrap_or_default()))
        }
        Gate::Checkpoint | Gate::Drain => {
            let name = runs.read(run).await?.phase.roll_document("checkpoint.json");
            let roll: RollState = runs.document(run, &name).await?.ok_or_else(|| missing(&name))?;
            let question = roll.questions.first();
            let question = question.ok_or_else(|| Failure::new(FailureKind::Failed, format!("the roll of {run} asks nothing")))?;
            Ok((question.id.clone(), question.to_string()))
        }
    }
}

/// The ids of the questions that a run's roll asks now; an approval's digest is its question's id.
pub async fn open_questions(runs: &Runs, run: &RunId) -> Result<Vec<String>, Failure> {
    let name = runs.read(run).await?.phase.roll_document("checkpoint.json");
    let roll: Option<RollState> = runs.document(run, &name).await?;
    Ok(roll.into_iter().flat_map(|roll| roll.questions).map(|question| question.id).collect())
}

async fn view(runs: &Runs, run: Run) -> Result<RunView, Failure> {
    let approvals = async {
        let mut found = Vec::new();
        for id in &run.approvals {
            found.extend(runs.approval(id).await?.map(approval));
        }
        Ok::<_, RunError>(found)
    };
    // The parts of an upgrade are looked for only where there are such.
    let whole = run.phase == Phase::All;
    let phases: &[Phase] = if whole { &[Phase::All] } else { &[Phase::ControlPlane, Phase::All] };
    let updates: &[&str] = if whole { &["update.txt"] } else { &["update.txt", "update-nodes.txt", "update-prune.txt"] };
    let forecast = async {
        // The newest one, which is made beside the preview, knows best.
        for name in phases.iter().rev().map(|phase| phase.roll_document("forecast.txt")).chain(["forecast.txt".to_owned()]) {
            if let Some(text) = runs.text(&run.id, &name).await? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    };
    let rolls = async {
        let (mut rows, mut steps) = (Vec::new(), Vec::new());
        for phase in phases {
            let (preview, checkpoint) = (phase.roll_document("preview.json"), phase.roll_document("checkpoint.json"));
            let (preview, roll) =
                futures::try_join!(runs.document::<Preview>(&run.id, &preview), runs.document::<RollState>(&run.id, &checkpoint))?;
            rows.extend(preview.map(preview_rows).unwrap_or_default());
            steps.extend(roll.map(|roll| roll_steps(&roll)).unwrap_or_default());
        }
        Ok((rows, steps))
    };
    let update_output = async {
        let mut whole: Option<String> = None;
        for name in updates {
            let Some(text) = runs.text(&run.id, name).await? else { continue };
            whole = Some(whole.map_or_else(|| text.clone(), |before| format!("{before}\n{text}")));
        }
        Ok(whole)
    };
    let (approvals, (preview, roll), forecast, plan, update_output, events) = futures::try_join!(
        approvals,
        rolls,
        forecast,
        runs.document::<PlanDocument>(&run.id, "plan.json"),
        update_output,
        runs.events(&run.id),
    )?;
    Ok(RunView {
        plan,
        update_output,
        forecast,
        preview,
        roll,
        events: events.into_iter().map(event).collect(),
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
        answer: answer.as_ref().map(|answer| answer.decision.done().to_owned()),
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
            let replaced = instance.replaced.as_ref().map(|replaced| replaced.at);
            let begun = [instance.detached, instance.started, instance.gone].into_iter().flatten().min()?;
            // The replacement of a detached instance comes before that one goes.
            let ended = replaced.max(instance.gone.or(instance.terminated));
            Some(RollStepView {
                started_at: begun,
                ended_at: ended.filter(|_| replaced.is_some() || instance.gone.is_some()),
                group: group.name.clone(),
                instance: instance.id.clone(),
                what: instance.to_string(),
                spans: spans(instance),
            })
        })
    });
    let mut steps: Vec<_> = steps.collect();
    steps.sort_by_key(|step| step.started_at);
    steps
}

/// What the instance spent its time with, as far as that is known.
fn spans(instance: &InstanceRoll) -> Vec<RollSpan> {
    let replaced = instance.replaced.as_ref().map(|replaced| replaced.at);
    let mut spans = Vec::new();
    if let Some(from) = instance.started {
        spans.push(RollSpan { kind: RollSpanKind::Draining, from, to: instance.terminated });
    }
    // Its place was empty from here on; that of a detached one is filled while it still serves.
    if let Some(from) = instance.detached.or(instance.terminated).or(instance.gone) {
        spans.push(RollSpan { kind: RollSpanKind::Replacing, from, to: replaced.or(instance.gone).map(|at| at.max(from)) });
    }
    spans
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

    #[test]
    fn an_instance_that_surges_is_replaced_before_it_goes() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let instance = |detached: Option<i64>, replaced: i64| -> InstanceRoll {
            serde_json::from_value(serde_json::json!({
                "id": "i-1", "zone": "a", "origin": "needs_update", "phase": "done", "detached": detached.map(at), "started": at(20),
                "terminated": at(25), "gone": at(26), "replaced": {"by": "i-2", "at": at(replaced)},
            }))
            .unwrap()
        };
        let bars = |instance: &InstanceRoll| -> Vec<_> {
            spans(instance).iter().map(|span| (span.kind, span.from.as_second(), span.to.unwrap().as_second())).collect()
        };
        let (draining, replacing) = (RollSpanKind::Draining, RollSpanKind::Replacing);
        assert_eq!(bars(&instance(Some(5), 9)), [(draining, 20, 25), (replacing, 5, 9)]);
        assert_eq!(bars(&instance(None, 40)), [(draining, 20, 25), (replacing, 25, 40)]);
    }

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

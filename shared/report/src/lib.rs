//! A run's documents gathered into its page, and into the line that an approval shows.

use askama::Template;
use kopsline_core::{Failure, FailureKind, Gate, Run, RunId, RunState};
use kopsline_plan::PlanDocument;
use kopsline_state::Runs;
use sha2::{Digest, Sha256};

#[derive(Template)]
#[template(path = "runs.html")]
struct Page {
    title: String,
    runs: Vec<RunView>,
}

#[derive(Default)]
struct RunView {
    id: String,
    cluster: String,
    title: String,
    state: &'static str,
    good: bool,
    bad: bool,
    commit: String,
    url: String,
    user: String,
    branch: String,
    received: String,
    ended: String,
    failure: String,
    stages: Vec<StageView>,
    approvals: Vec<ApprovalView>,
    plan_summary: String,
    plan: Vec<Line>,
    update: String,
    preview: String,
    events: Vec<EventView>,
}

struct StageView {
    name: &'static str,
    state: &'static str,
    began: String,
    took: String,
    note: String,
}

struct ApprovalView {
    id: String,
    digest: String,
    asked: String,
    answer: String,
}

struct Line {
    class: &'static str,
    text: String,
}

struct EventView {
    at: String,
    what: String,
    message: String,
}

/// One self-contained HTML page of one or several runs, in the order given.
pub async fn run_page(runs: &Runs, ids: &[RunId]) -> Result<String, Failure> {
    let mut views = Vec::new();
    for id in ids {
        views.push(view(runs, runs.read(id).await?).await?);
    }
    let title = views.first().map_or_else(String::new, |run| run.cluster.clone());
    let page = Page { title, runs: views };
    page.render().map_err(|error| Failure::new(FailureKind::Failed, format!("the page cannot be rendered: {error}")))
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
            let note = runs.read(run).await?.stage(kopsline_core::Stage::RollPreview).map(|stage| stage.note.clone());
            Ok((hex::encode(Sha256::digest(&preview)), note.unwrap_or_default()))
        }
    }
}

async fn view(runs: &Runs, run: Run) -> Result<RunView, Failure> {
    let mut approvals = Vec::new();
    for id in &run.approvals {
        if let Some(approval) = runs.approval(id).await? {
            let answer = match &approval.answer {
                Some(answer) => {
                    let by = answer.by.as_deref().unwrap_or("an unnamed caller");
                    let comment = answer.comment.as_deref().map(|comment| format!(": {comment}")).unwrap_or_default();
                    format!("{} by {by} at {:.0}{comment}", answer.decision.done(), answer.at)
                }
                None if approval.withdrawn => "no longer asked".to_owned(),
                None => format!("open until {:.0}", approval.expires_at),
            };
            approvals.push(ApprovalView {
                id: id.to_string(),
                digest: approval.digest.chars().take(12).collect(),
                asked: format!("{:.0}", approval.asked_at),
                answer,
            });
        }
    }
    let plan: Option<PlanDocument> = runs.document(&run.id, "plan.json").await?;
    let stages = run.stages.iter().map(|stage| StageView {
        name: stage.stage.as_str(),
        state: stage.state.as_str(),
        began: format!("{:.0}", stage.started_at),
        took: stage.ended_at.map(|end| format!("{:#}", end.duration_since(stage.started_at))).unwrap_or_default(),
        note: stage.note.clone(),
    });
    let events = runs.events(&run.id).await?.into_iter();
    Ok(RunView {
        stages: stages.collect(),
        approvals,
        plan_summary: plan.as_ref().map(|plan| plan.summary.to_string()).unwrap_or_default(),
        plan: plan.map(|plan| lines(&plan.plan.to_text())).unwrap_or_default(),
        update: runs.text(&run.id, "update.txt").await?.unwrap_or_default(),
        preview: runs.text(&run.id, "roll/preview.txt").await?.unwrap_or_default(),
        events: events.map(|event| EventView { at: format!("{:.0}", event.at), what: event.what, message: event.message }).collect(),
        id: run.id.to_string(),
        cluster: run.cluster.name.to_string(),
        title: run.merge.title,
        state: run.state.as_str(),
        good: matches!(run.state, RunState::Succeeded | RunState::NoChanges),
        bad: run.state == RunState::Failed,
        commit: run.merge.commit.short().to_owned(),
        url: run.merge.url,
        user: run.merge.user,
        branch: run.merge.branch,
        received: format!("{:.0}", run.received_at),
        ended: run.ended_at.map(|at| format!("{at:.0}")).unwrap_or_default(),
        failure: run.failure.map(|failure| failure.message).unwrap_or_default(),
    })
}

/// kOps' text with the diffs' lines marked; the marks are in the text, too, so that colour is not alone.
fn lines(text: &str) -> Vec<Line> {
    let class = |line: &str| match line.rsplit('\t').next().unwrap_or_default() {
        changed if changed.starts_with("+ ") => "add",
        changed if changed.starts_with("- ") => "del",
        _ => "ctx",
    };
    text.lines().map(|line| Line { class: class(line), text: format!("{line}\n") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_is_escaped() {
        let run = RunView { id: "run".into(), title: "<script>alert(1)</script>".into(), ..RunView::default() };
        let page = Page { title: "demo".into(), runs: vec![run] }.render().unwrap();
        assert!(!page.contains("<script>") && page.contains("&#60;script&#62;"), "{page}");
    }

    #[test]
    fn diffs_are_marked() {
        let lines = lines("  \tUserData            \n  \t                    \t+ a\n  \t                    \t- b\n");
        assert_eq!(lines.iter().map(|line| line.class).collect::<Vec<_>>(), ["ctx", "add", "del"]);
    }
}

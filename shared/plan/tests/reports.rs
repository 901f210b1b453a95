//! What people read: the reports of real dry runs, kept as golden files.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "the helpers of a test are part of it")]

use jiff::Timestamp;
use kopsline_plan::{
    ApprovalView, DigestInputs, EventView, PlanDocument, PreviewRowView, RollSpan, RollSpanKind, RollStepView, RunOutcome, RunView,
    StageOutcome, StageView, Summary, digest, html, markdown, parse, redact, run_page,
};

const RUN: &str = "main-example-com-5d41402abc4b-9f86d081";

fn document(text: &str) -> PlanDocument {
    let plan = parse(text).unwrap();
    let inputs = DigestInputs {
        cluster: "main.example.com".into(),
        commit: "5d41402abc4b2a76b9719d911017c592aaaabbbb".into(),
        kops_version: "1.36.2".into(),
        kops_sha256: "4be0643fb88ac66e2df3c3a6c1b1fe5c0c8ef2b5ba6d7e0f5c0c5d4b2c4b8a11".into(),
        registry: [("config".to_owned(), "a".repeat(64)), ("instancegroup/nodes-general".to_owned(), "b".repeat(64))].into(),
        dry_run: DigestInputs::hash(plan.normal_form()),
    };
    let plan = redact(&plan);
    PlanDocument {
        run: RUN.into(),
        made_at: at("09:42:31"),
        digest: digest(&inputs),
        inputs,
        summary: Summary::of(&plan),
        destructive: plan.destructive(),
        changed_groups: plan.changed_groups().into_iter().map(str::to_owned).collect(),
        notices: vec!["A new kops version is available: 1.36.3".into()],
        plan,
    }
}

fn at(clock: &str) -> Timestamp {
    format!("2026-11-23T{clock}Z").parse().unwrap()
}

fn stage(name: &str, outcome: StageOutcome, from: &str, to: &str, note: &str) -> StageView {
    StageView { name: name.into(), outcome, started_at: at(from), ended_at: Some(at(to)), waits: Vec::new(), note: note.into() }
}

fn approval(gate: &str, digest: &str, by: &str, clock: &str, comment: &str) -> ApprovalView {
    ApprovalView {
        gate: gate.into(),
        digest: digest.into(),
        answer: Some("approved".to_owned()),
        by: Some(by.into()),
        at: Some(at(clock)),
        comment: Some(comment.into()),
    }
}

fn preview(name: &str, need_update: u32, ready: u32, min: u32, max: u32) -> PreviewRowView {
    let status = if need_update > 0 { "NeedsUpdate" } else { "Ready" }.into();
    PreviewRowView { name: name.into(), status, need_update, ready, min, target: min, max }
}

fn event(clock: &str, stage: &str, what: &str, message: &str) -> EventView {
    EventView { at: at(clock), stage: stage.into(), what: what.into(), message: message.into() }
}

fn finished() -> RunView {
    let plan = document(include_str!("fixtures/change.txt"));
    let digest = plan.digest.clone();
    let wait = |mut stage: StageView| {
        stage.waits = vec![(stage.started_at, stage.ended_at)];
        stage
    };
    let mut roll = stage("roll", StageOutcome::Succeeded, "09:47:40", "09:56:02", "3 instances replaced");
    roll.waits =
        vec![(at("09:48:10"), Some(at("09:50:00"))), (at("09:50:35"), Some(at("09:52:40"))), (at("09:53:20"), Some(at("09:55:31")))];
    let step = |instance: &str, from: &str, terminated: &str, to: &str| RollStepView {
        started_at: at(from),
        ended_at: Some(at(to)),
        group: "nodes-general".into(),
        instance: instance.into(),
        what: "drained, terminated, replacement ready".into(),
        spans: vec![
            RollSpan { kind: RollSpanKind::Draining, from: at(from), to: Some(at(terminated)) },
            RollSpan { kind: RollSpanKind::Replacing, from: at(terminated), to: Some(at(to)) },
        ],
    };
    RunView {
        id: RUN.into(),
        cluster: "main.example.com".into(),
        kops: "1.36.2".into(),
        project: "platform/clusters".into(),
        branch: "main".into(),
        commit: "5d41402abc4b2a76b9719d911017c592aaaabbbb".into(),
        title: "Larger machines for nodes-general, label them for the API".into(),
        url: "https://gitlab.example.com/platform/clusters/-/commit/5d41402abc4b".into(),
        user: "ann".into(),
        outcome: RunOutcome::Succeeded,
        started_at: at("09:42:07"),
        ended_at: Some(at("09:56:04")),
        failure: None,
        stages: vec![
            stage("replace", StageOutcome::Succeeded, "09:42:09", "09:42:12", "2 objects written"),
            stage("plan", StageOutcome::Succeeded, "09:42:14", "09:42:31", "4 to modify"),
            wait(stage("approve update", StageOutcome::Succeeded, "09:42:32", "09:46:10", "approved by ben")),
            stage("update", StageOutcome::Succeeded, "09:46:11", "09:46:31", "applied"),
            stage("roll preview", StageOutcome::Succeeded, "09:46:32", "09:46:34", "3 of 8 instances need an update"),
            wait(stage("approve roll", StageOutcome::Succeeded, "09:46:35", "09:47:38", "approved by ben")),
            roll,
        ],
        approvals: vec![
            approval("update", &digest, "ben", "09:46:10", "Machine type checked against the budget."),
            approval("roll", &"c".repeat(64), "ben", "09:47:38", ""),
        ],
        plan: Some(plan),
        update_output: Some(
            "\nCluster changes have been applied to the cloud.\n\n\nChanges may require instances to restart: kops rolling-update cluster\n"
                .into(),
        ),
        forecast: Some("GROUP          ROLE  INSTANCES\nnodes-general  node  3\n".into()),
        preview: vec![
            preview("bastions", 0, 1, 1, 1),
            preview("control-plane-us-east-1a", 0, 1, 1, 1),
            preview("nodes-general", 3, 0, 3, 6),
            preview("nodes-spot", 0, 2, 2, 4),
        ],
        roll: vec![
            step("i-0a1b2c3d4e5f60001", "09:47:41", "09:48:12", "09:50:05"),
            step("i-0a1b2c3d4e5f60002", "09:50:06", "09:50:35", "09:52:44"),
            step("i-0a1b2c3d4e5f60003", "09:52:46", "09:53:20", "09:56:01"),
        ],
        events: vec![
            event("09:42:07", "", "received", "push by ann, delivery 3f1c"),
            event("09:42:09", "replace", "lock-acquired", "fencing token 41"),
            event("09:42:31", "plan", "planned", "4 to modify"),
            event("09:46:10", "approve update", "approved", "by ben"),
            event("09:56:02", "roll", "rolled", "3 instances"),
            event("09:56:04", "", "lock-released", ""),
        ],
    }
}

fn failed() -> RunView {
    let mut run = finished();
    run.id = "main-example-com-7c211433f021-1b4f0e98".into();
    run.title = "Drop the second network <script>alert(1)</script>".into();
    run.url = "javascript:alert(1)".into();
    run.outcome = RunOutcome::Failed;
    run.ended_at = Some(at("09:46:31"));
    run.failure = Some("kops update cluster --yes failed: error deleting VPCCIDRBlock: DependencyViolation, password: hunter2".into());
    run.stages.truncate(4);
    run.stages[3].outcome = StageOutcome::Failed;
    run.stages[3].note = "kops ended with code 1".into();
    run.plan = Some(document(include_str!("fixtures/delete.txt")));
    run.preview.clear();
    run.roll.clear();
    run.approvals.truncate(1);
    run
}

fn waiting() -> RunView {
    let mut run = finished();
    run.outcome = RunOutcome::Running;
    run.ended_at = None;
    run.stages.truncate(3);
    run.stages[2] = StageView {
        name: "approve update".into(),
        outcome: StageOutcome::Waiting,
        started_at: at("09:42:32"),
        ended_at: None,
        waits: vec![(at("09:42:32"), None)],
        note: "kopsline approve main-example-com-5d41402abc4b-9f86d081.update.1".into(),
    };
    run.plan = Some(document(include_str!("fixtures/create.txt")));
    run.forecast = None;
    (run.approvals, run.preview, run.roll, run.update_output) = (Vec::new(), Vec::new(), Vec::new(), None);
    run
}

#[test]
fn markdown_of_real_plans() {
    insta::assert_snapshot!("markdown_change", markdown(&document(include_str!("fixtures/change.txt"))));
    insta::assert_snapshot!("markdown_delete", markdown(&document(include_str!("fixtures/delete.txt"))));
    insta::assert_snapshot!("markdown_user_data", markdown(&document(include_str!("fixtures/ud.txt"))));
    insta::assert_snapshot!("markdown_none", markdown(&document(include_str!("fixtures/none.txt"))));
}

#[test]
fn html_of_a_real_plan() {
    insta::assert_snapshot!("html_change", html(&document(include_str!("fixtures/change.txt"))));
}

#[test]
fn json_of_a_real_plan() {
    insta::assert_json_snapshot!("json_change", document(include_str!("fixtures/change.txt")));
}

#[test]
fn page_of_runs() {
    insta::assert_snapshot!("page_one", run_page(&[finished()]));
    let several = run_page(&[failed(), finished()]);
    insta::assert_snapshot!("page_several", several);
    for page in [&several, &run_page(&[waiting()]), &run_page(&[])] {
        assert!(!page.contains("<script") && !page.contains("javascript:") && !page.contains("hunter2"));
        assert!(!page.contains("src=") && !page.contains("@import") && !page.contains("could not be written"));
        for tag in ["details", "table", "section", "article", "pre", "div", "ul", "ol", "li", "dl", "span", "ins", "del"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "<{tag}> is closed as often as it is opened");
        }
    }
}

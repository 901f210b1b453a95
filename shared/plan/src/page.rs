//! The page of one or several runs. The caller gathers the data; nothing here knows how runs are stored.

use askama::Template;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::document::PlanDocument;
use crate::html::{body, finish};
use crate::redact::scrub;

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOutcome {
    /// Recorded, not begun.
    Queued,
    /// At work or waiting.
    Running,
    /// Everything was done.
    Succeeded,
    /// There was nothing to do.
    NoChanges,
    /// A person said no.
    Rejected,
    /// Nobody answered in time.
    Expired,
    /// A newer merge took its place.
    Superseded,
    /// It failed.
    Failed,
}

/// How a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageOutcome {
    /// At work.
    Running,
    /// Waits for a person, a lock or a machine.
    Waiting,
    /// Done.
    Succeeded,
    /// Not needed.
    Skipped,
    /// Ended without success.
    Failed,
}

/// A run as its page shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// The run's id.
    pub id: String,
    /// The cluster's name.
    pub cluster: String,
    /// The version of kops.
    pub kops: String,
    /// The GitLab project's path.
    pub project: String,
    /// The branch that was merged into.
    pub branch: String,
    /// The commit.
    pub commit: String,
    /// The commit's title.
    pub title: String,
    /// The commit's page; shown as a link if it is an `https` or `http` address.
    pub url: String,
    /// Who merged.
    pub user: String,
    /// How the run stands.
    pub outcome: RunOutcome,
    /// When the merge was received.
    pub started_at: Timestamp,
    /// When the run ended.
    pub ended_at: Option<Timestamp>,
    /// Why it ended without success.
    pub failure: Option<String>,
    /// The stages in the order they were entered.
    pub stages: Vec<StageView>,
    /// The newest plan.
    pub plan: Option<PlanDocument>,
    /// The questions and their answers.
    pub approvals: Vec<ApprovalView>,
    /// What `kops update cluster --yes` printed.
    pub update_output: Option<String>,
    /// What the rolling update is foreseen to be like, for people.
    pub forecast: Option<String>,
    /// The roll's preview, one row for each instance group.
    pub preview: Vec<PreviewRowView>,
    /// What the roll did, instance by instance.
    pub roll: Vec<RollStepView>,
    /// The audit trail.
    pub events: Vec<EventView>,
}

/// A stage as it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    /// The stage's word.
    pub name: String,
    /// How it stands.
    pub outcome: StageOutcome,
    /// When it was first entered.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When it waited; a wait without an end is still going on.
    pub waits: Vec<(Timestamp, Option<Timestamp>)>,
    /// What came of it, or what it waits for.
    pub note: String,
}

/// A question to a person, and the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApprovalView {
    /// What it opens.
    pub gate: String,
    /// What is approved.
    pub digest: String,
    /// The answer in the past, such as `approved`; `None` while there is none.
    pub answer: Option<String>,
    /// Who answered, as far as that is known.
    pub by: Option<String>,
    /// When it was answered.
    pub at: Option<Timestamp>,
    /// Their words.
    pub comment: Option<String>,
}

/// An instance group in `kops rolling-update cluster`'s table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewRowView {
    /// The instance group.
    pub name: String,
    /// `NeedsUpdate` or `Ready`.
    pub status: String,
    /// Instances that need an update.
    pub need_update: u32,
    /// Instances that do not.
    pub ready: u32,
    /// The group's minimum.
    pub min: u32,
    /// The group's desired size.
    pub target: u32,
    /// The group's maximum.
    pub max: u32,
}

/// Something that the roll did to an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollStepView {
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The instance group.
    pub group: String,
    /// The instance's id.
    pub instance: String,
    /// What was done.
    pub what: String,
    /// What it spent its time with; a span without an end is still going on.
    pub spans: Vec<RollSpan>,
}

/// What an instance of a roll spent some time with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollSpan {
    /// With what.
    pub kind: RollSpanKind,
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub to: Option<Timestamp>,
}

/// See [`RollSpan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollSpanKind {
    /// Its pods were evicted, or whatever else comes before its termination.
    Draining,
    /// It is gone, and its replacement has not come yet.
    Replacing,
}

/// An entry of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// When.
    pub at: Timestamp,
    /// In which stage; empty if in none.
    pub stage: String,
    /// A short word for what happened.
    pub what: String,
    /// One line for people.
    pub message: String,
}

/// The page of one or several runs: one file, no scripts, nothing loaded from elsewhere. Free text is scrubbed again.
pub fn run_page(runs: &[RunView]) -> String {
    let title = if let [run] = runs {
        format!("{}: {}", run.cluster, word(run.outcome).2)
    } else {
        let mut clusters: Vec<&str> = runs.iter().map(|run| run.cluster.as_str()).collect();
        clusters.sort_unstable();
        clusters.dedup();
        format!("Runs of {}", clusters.join(", "))
    };
    finish(RunPage { title, single: runs.len() == 1, runs: runs.iter().map(run).collect() }.render())
}

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage<'a> {
    title: String,
    single: bool,
    runs: Vec<RunPart<'a>>,
}

struct RunPart<'a> {
    id: &'a str,
    cluster: &'a str,
    kops: &'a str,
    project: &'a str,
    branch: &'a str,
    commit: &'a str,
    title: &'a str,
    link: Option<&'a str>,
    user: &'a str,
    mark: &'static str,
    tone: &'static str,
    state: &'static str,
    started: String,
    took: String,
    /// From when to when the bars go.
    span: String,
    failure: Option<String>,
    stages: Vec<StagePart<'a>>,
    plan: Option<PlanPart<'a>>,
    approvals: Vec<ApprovalPart<'a>>,
    update_output: Option<String>,
    forecast: Option<String>,
    preview: &'a [PreviewRowView],
    roll: Vec<StepPart<'a>>,
    /// From when to when the bars of the roll go.
    roll_span: String,
    events: Vec<EventPart<'a>>,
}

struct StagePart<'a> {
    name: &'a str,
    mark: &'static str,
    tone: &'static str,
    state: &'static str,
    started: String,
    took: String,
    note: String,
    bars: Vec<Bar>,
}

struct Bar {
    class: &'static str,
    left: String,
    width: String,
}

struct PlanPart<'a> {
    digest: &'a str,
    body: String,
}

struct ApprovalPart<'a> {
    gate: &'a str,
    answer: String,
    tone: &'static str,
    by: &'a str,
    at: String,
    digest: &'a str,
    short: &'a str,
    comment: String,
}

struct StepPart<'a> {
    started: String,
    took: String,
    bars: Vec<Bar>,
    group: &'a str,
    instance: &'a str,
    what: &'a str,
}

struct EventPart<'a> {
    at: String,
    stage: &'a str,
    what: &'a str,
    message: String,
}

/// Mark, tone and word: the tone is never the only sign.
fn word(outcome: RunOutcome) -> (&'static str, &'static str, &'static str) {
    match outcome {
        RunOutcome::Queued => ("○", "quiet", "queued"),
        RunOutcome::Running => ("●", "busy", "running"),
        RunOutcome::Succeeded => ("✓", "good", "succeeded"),
        RunOutcome::NoChanges => ("✓", "good", "no changes"),
        RunOutcome::Rejected => ("✕", "bad", "rejected"),
        RunOutcome::Expired => ("✕", "bad", "expired"),
        RunOutcome::Superseded => ("–", "quiet", "superseded"),
        RunOutcome::Failed => ("✕", "bad", "failed"),
    }
}

fn stage_word(outcome: StageOutcome) -> (&'static str, &'static str, &'static str) {
    match outcome {
        StageOutcome::Running => ("●", "busy", "running"),
        StageOutcome::Waiting => ("◌", "wait", "waiting"),
        StageOutcome::Succeeded => ("✓", "good", "succeeded"),
        StageOutcome::Skipped => ("–", "quiet", "skipped"),
        StageOutcome::Failed => ("✕", "bad", "failed"),
    }
}

fn run(run: &RunView) -> RunPart<'_> {
    let (mark, tone, state) = word(run.outcome);
    let end = run.ended_at.unwrap_or_else(|| latest(run));
    let waited: i64 =
        run.stages.iter().flat_map(|stage| stage.waits.iter().map(|(from, to)| between(*from, to.or(stage.ended_at).unwrap_or(end)))).sum();
    let total = between(run.started_at, end);
    let roll_start = run.roll.iter().map(|step| step.started_at).min().unwrap_or(run.started_at);
    let roll_end = run.roll.iter().map(|step| step.ended_at.unwrap_or(end)).max().unwrap_or(end);
    let so_far = if run.ended_at.is_none() { " so far" } else { "" };
    let of_which = if waited >= 1000 { format!(", of which {} waiting", duration(waited)) } else { String::new() };
    RunPart {
        id: &run.id,
        cluster: &run.cluster,
        kops: &run.kops,
        project: &run.project,
        branch: &run.branch,
        commit: run.commit.get(..12).unwrap_or(&run.commit),
        title: &run.title,
        link: Some(run.url.as_str()).filter(|url| url.starts_with("https://") || url.starts_with("http://")),
        user: &run.user,
        mark,
        tone,
        state,
        started: full(run.started_at),
        took: format!("{}{so_far}{of_which}", duration(total)),
        span: format!("{} to {}", clock(run.started_at), clock(end)),
        failure: run.failure.as_deref().map(scrub),
        stages: run.stages.iter().map(|part| stage(part, run.started_at, end)).collect(),
        plan: run.plan.as_ref().map(|plan| PlanPart { digest: &plan.digest, body: body(plan) }),
        approvals: run.approvals.iter().map(approval).collect(),
        update_output: run.update_output.as_deref().map(scrub),
        forecast: run.forecast.as_deref().map(scrub),
        preview: &run.preview,
        roll: run.roll.iter().map(|part| step(part, roll_start, roll_end)).collect(),
        roll_span: format!("{} to {}", clock(roll_start), clock(roll_end)),
        events: run
            .events
            .iter()
            .map(|event| EventPart { at: clock(event.at), stage: &event.stage, what: &event.what, message: scrub(&event.message) })
            .collect(),
    }
}

/// The newest time that the run knows of: where the bars of a run under way end.
fn latest(run: &RunView) -> Timestamp {
    let stages = run.stages.iter().flat_map(|stage| [Some(stage.started_at), stage.ended_at]);
    let events = run.events.iter().map(|event| Some(event.at));
    stages.chain(events).flatten().fold(run.started_at, Timestamp::max)
}

fn stage(view: &StageView, start: Timestamp, end: Timestamp) -> StagePart<'_> {
    let (mark, tone, state) = stage_word(view.outcome);
    let until = view.ended_at.unwrap_or(end);
    let bar = |class, from, to| bar(class, (from, to), (start, end));
    let mut bars = Vec::new();
    let mut at = view.started_at;
    for (from, to) in &view.waits {
        let to = to.unwrap_or(until);
        if *from > at {
            bars.push(bar(tone, at, *from));
        }
        bars.push(bar("wait", *from, to));
        at = at.max(to);
    }
    if until > at || bars.is_empty() {
        bars.push(bar(tone, at, until));
    }
    if view.outcome == StageOutcome::Skipped {
        bars.clear();
    }
    StagePart {
        name: &view.name,
        mark,
        tone,
        state,
        started: clock(view.started_at),
        took: view.ended_at.map(|end| duration(between(view.started_at, end))).unwrap_or_default(),
        note: scrub(&view.note),
        bars,
    }
}

/// A bar from and to a time, on a line that goes from and to others.
fn bar(class: &'static str, (from, to): (Timestamp, Timestamp), (start, end): (Timestamp, Timestamp)) -> Bar {
    let whole = between(start, end).max(1);
    Bar { class, left: percent(between(start, from), whole), width: percent(between(from, to), whole) }
}

fn step(view: &RollStepView, start: Timestamp, end: Timestamp) -> StepPart<'_> {
    let span = |span: &RollSpan| {
        let class = match span.kind {
            RollSpanKind::Draining => "busy",
            RollSpanKind::Replacing => "wait",
        };
        bar(class, (span.from, span.to.unwrap_or(end)), (start, end))
    };
    StepPart {
        started: clock(view.started_at),
        took: view.ended_at.map(|end| duration(between(view.started_at, end))).unwrap_or_default(),
        bars: view.spans.iter().map(span).collect(),
        group: &view.group,
        instance: &view.instance,
        what: &view.what,
    }
}

fn approval(approval: &ApprovalView) -> ApprovalPart<'_> {
    let (mark, answer, tone) = match approval.answer.as_deref() {
        Some(answer @ "approved") => ("✓", answer, "good"),
        Some(answer @ ("rejected" | "aborted" | "failed")) => ("✕", answer, "bad"),
        Some(answer) => ("●", answer, "quiet"),
        None => ("◌", "no answer", "wait"),
    };
    let answer = format!("{mark} {answer}");
    let digits = approval.digest.strip_prefix("sha256:").unwrap_or(&approval.digest);
    ApprovalPart {
        gate: &approval.gate,
        answer,
        tone,
        by: approval.by.as_deref().unwrap_or_default(),
        at: approval.at.map(full).unwrap_or_default(),
        digest: &approval.digest,
        short: digits.get(..12).unwrap_or(digits),
        comment: approval.comment.as_deref().map(scrub).unwrap_or_default(),
    }
}

/// Milliseconds; zero if the clocks of two machines disagree.
fn between(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millisecond().saturating_sub(from.as_millisecond()).max(0)
}

/// Hundredths of a per cent, at most 100.
fn percent(part: i64, whole: i64) -> String {
    let hundredths = (part.saturating_mul(10_000) / whole).min(10_000);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// `0.4 s`, `12.0 s`, `3 min 20 s`, `2 h 5 min`.
fn duration(milliseconds: i64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

fn full(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S").to_string()
}

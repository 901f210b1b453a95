//! `kopsline status`: the newest runs, or one run in full.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use kopsline_core::{Approval, ApprovalId, Run, RunId, RunState, StageState, keys};
use kopsline_rolling::{History, RollProgress, RollState, Summary};
use kopsline_state::Runs;
use serde::Serialize;

use crate::context::Context;
use crate::follow::{self, Follower, GUTTER};
use crate::output::{self, Format, Paint, Style, Table};
use crate::progress::Progress;
use crate::{Ended, NOT_AS_WISHED};

const LOOK_EVERY: Duration = Duration::from_secs(1);
const REFRESH_EVERY: Duration = Duration::from_secs(2);

/// Options of `kopsline status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run; without it the newest runs are listed
    run: Option<RunId>,
    /// How many runs to list
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
    /// Follow the run until it ends; exit code 3 if it ends other than succeeded or without changes
    #[arg(long, requires = "run", conflicts_with = "watch")]
    wait: bool,
    /// Show again every two seconds, until Ctrl-C or the run's end
    #[arg(long)]
    watch: bool,
}

/// A run with its questions, as `--output json` shows it.
#[derive(Debug, Serialize)]
struct Detail {
    run: Run,
    approvals: Vec<Approval>,
    /// How far its rolling update is, once it has begun.
    roll: Option<RollProgress>,
    /// The run bucket's prefix of all its documents, the page `index.html` among them.
    documents: String,
}

/// Runs the command.
pub(crate) async fn run(context: &Context, format: Format, args: &Args) -> anyhow::Result<Ended> {
    let runs = context.runs()?;
    let style = Style::detect();
    match &args.run {
        None => loop {
            let newest = runs.recent(args.limit.into()).await?;
            show(args.watch && format == Format::Text, || match format {
                Format::Json => output::json(&newest),
                Format::Text => {
                    output::print(&list(&newest, Timestamp::now(), style));
                    Ok(())
                }
            })?;
            if !args.watch {
                return Ok(Ended::Well);
            }
            tokio::time::sleep(REFRESH_EVERY).await;
        },
        Some(id) if args.wait => wait(&runs, id, format, style, context).await,
        Some(id) => loop {
            let detail = detail(&runs, id, context).await?;
            show(args.watch && format == Format::Text, || match format {
                Format::Json => output::json(&detail),
                Format::Text => {
                    output::print(&describe(&detail, Timestamp::now(), style));
                    Ok(())
                }
            })?;
            if !args.watch || detail.run.state.is_final() {
                return Ok(Ended::Well);
            }
            tokio::time::sleep(REFRESH_EVERY).await;
        },
    }
}

/// Shows something, on a terminal in place of what was shown before.
fn show(again: bool, print: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if again && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        output::print("\u{1b}[H\u{1b}[2J");
    }
    print()
}

async fn wait(runs: &Runs, id: &RunId, format: Format, style: Style, context: &Context) -> anyhow::Result<Ended> {
    let progress = if format == Format::Text { Progress::new() } else { Progress::silent() };
    let mut follower = Follower::new(runs.clone(), id.clone());
    let mut told = String::new();
    let run = loop {
        let (run, changes) = follower.look().await?;
        for change in &changes {
            progress.say(&follow::line(&run, change, Timestamp::now(), style));
        }
        if run.state.is_final() {
            break run;
        }
        let waits = follow::waits_for(&run);
        if waits.starts_with("kopsline approve") && waits != told {
            progress.say(&format!("{:>GUTTER$}  {}", "", style.paint(Paint::Attention, &waits)));
            told.clone_from(&waits);
        }
        progress.spin(&if waits.is_empty() { run.current().map_or_else(String::new, |stage| stage.stage.to_string()) } else { waits });
        tokio::time::sleep(LOOK_EVERY).await;
    };
    progress.clear();
    match format {
        Format::Json => output::json(&detail(runs, id, context).await?)?,
        Format::Text => {
            if let Some(failure) = &run.failure {
                output::print(&output::indented(&output::printable(&failure.message), 2));
            }
        }
    }
    Ok(if matches!(run.state, RunState::Succeeded | RunState::NoChanges) { Ended::Well } else { Ended::With(NOT_AS_WISHED) })
}

async fn detail(runs: &Runs, id: &RunId, context: &Context) -> anyhow::Result<Detail> {
    let run = runs.read(id).await?;
    let mut approvals = Vec::new();
    for approval in &run.approvals {
        approvals.extend(runs.approval(approval).await?);
    }
    let documents = format!("s3://{}/{}", context.run_bucket()?, keys::document(id, ""));
    let roll: Option<RollState> = runs.document(id, &run.phase.roll_document("checkpoint.json")).await?;
    let roll = match roll {
        Some(roll) => {
            let key = keys::roll_history(&run.cluster.state_store, &run.cluster.name);
            let history = runs.documents().read::<History>(&key).await?;
            Some(roll.progress(&history.map(|found| found.value).unwrap_or_default()))
        }
        None => None,
    };
    Ok(Detail { run, approvals, roll, documents })
}

/// The newest runs as a table.
fn list(runs: &[Run], now: Timestamp, style: Style) -> String {
    if runs.is_empty() {
        return "No runs yet: a merge on the watched branch starts the first.\n".to_owned();
    }
    let mut table = Table::new(&["RUN", "CLUSTER", "COMMIT", "USER", "STATE", "STAGE", "AGE", "WAITS FOR"]);
    for run in runs {
        table.row([
            (run.id.to_string(), Paint::Bold),
            (run.cluster.name.to_string(), Paint::Plain),
            (run.merge.commit.short().to_owned(), Paint::Plain),
            (output::shorten(&run.merge.user, 20), Paint::Plain),
            (run.state.as_str().to_owned(), Paint::of_run(run.state)),
            (run.current().map_or_else(String::new, |record| record.stage.to_string()), Paint::Plain),
            (output::age(run.received_at, now), Paint::Dim),
            (follow::waits_for(run), Paint::Attention),
        ]);
    }
    table.render(style, 0)
}

/// One run in full.
fn describe(detail: &Detail, now: Timestamp, style: Style) -> String {
    let run = &detail.run;
    let mut head = Table::headless();
    let mut fact = |name: &str, value: String, paint| head.row([(name.to_owned(), Paint::Dim), (value, paint)]);
    fact("run", run.id.to_string(), Paint::Bold);
    let cluster = &run.cluster;
    fact("cluster", format!("{}, {}, kops {}, {}", cluster.name, cluster.region, cluster.kops.version, cluster.state_store), Paint::Plain);
    let merge = &run.merge;
    fact(
        "merge",
        format!("{} \"{}\" by {} on {} of {}", merge.commit.short(), merge.title, merge.user, merge.branch, merge.project),
        Paint::Plain,
    );
    fact("", merge.url.clone(), Paint::Plain);
    let ended = run.ended_at.map_or_else(String::new, |at| format!(" after {}", output::duration(at.duration_since(run.received_at))));
    fact("state", format!("{}{ended}", run.state.as_str()), Paint::of_run(run.state));
    fact("received", format!("{} ({} ago)", output::moment(run.received_at), output::age(run.received_at, now)), Paint::Plain);
    if let Some(digest) = &run.plan_digest {
        fact("plan", output::short_digest(digest).to_owned(), Paint::Plain);
    }
    fact("documents", detail.documents.clone(), Paint::Plain);
    let mut text = head.render(style, 0);

    if !run.stages.is_empty() {
        text.push('\n');
        text.push_str(&stages(run, now).render(style, 0));
    }
    if !detail.approvals.is_empty() {
        let mut table = Table::new(&["APPROVAL", "DIGEST", "OPEN UNTIL", "ANSWER"]);
        for approval in &detail.approvals {
            let (answer, paint) = answer(approval, now);
            table.row([
                (approval.id.to_string(), Paint::Plain),
                (output::short_digest(&approval.digest).to_owned(), Paint::Plain),
                (output::moment(approval.expires_at), Paint::Plain),
                (answer, paint),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(style, 0));
    }
    if let Some(roll) = &detail.roll {
        text.push('\n');
        text.push_str(&rolling(roll, style));
    }
    if let Some(failure) = &run.failure {
        text.push('\n');
        text.push_str(&style.paint(Paint::Bad, failure.kind.error_name()));
        text.push('\n');
        text.push_str(&output::indented(&output::printable(&failure.message), 2));
    }
    let waits = follow::waits_for(run);
    if !waits.is_empty() {
        let _ = writeln!(text, "\nwaits for: {}", style.paint(Paint::Attention, &waits));
    }
    text
}

/// The stages of a run with their times.
pub(crate) fn stages(run: &Run, now: Timestamp) -> Table {
    let mut table = Table::new(&["STAGE", "STATE", "START", "TOOK", "ENTERED", "NOTE"]);
    for record in &run.stages {
        let took = record.ended_at.unwrap_or(now).duration_since(record.started_at);
        table.row([
            (record.stage.to_string(), Paint::Plain),
            (record.state.as_str().to_owned(), Paint::of_stage(record.state)),
            (format!("+{}", output::duration(record.started_at.duration_since(run.received_at))), Paint::Dim),
            (if record.state == StageState::Skipped { "-".to_owned() } else { output::duration(took) }, Paint::Plain),
            (if record.entered > 1 { format!("{} x", record.entered) } else { "once".to_owned() }, Paint::Dim),
            (output::shorten(&record.note, 100), Paint::Plain),
        ]);
    }
    table
}

/// How far a rolling update is: its groups, and the instances that something is done to.
pub(crate) fn rolling(roll: &RollProgress, style: Style) -> String {
    let mut table = Table::new(&["GROUP", "ROLE", "STATE", "REPLACED", "AT ONCE", "NOW"]);
    let mut instances = Table::new(&["NODE", "INSTANCE", "GROUP", "WHAT BECOMES OF IT"]);
    let mut busy = false;
    for group in &roll.groups {
        let paint = match group.state.as_str() {
            "done" => Paint::Good,
            "failed" => Paint::Bad,
            "rolling" => Paint::Attention,
            _ => Paint::Dim,
        };
        let now = |count: usize, word: &str| if count == 0 { String::new() } else { format!("{count} {word}") };
        let Summary { total, finished, in_flight, failed, skipped, .. } = group.summary;
        let counts = [now(in_flight, "in progress"), now(failed, "failed"), now(skipped, "skipped")];
        table.row([
            (group.name.clone(), Paint::Bold),
            (group.role.to_string(), Paint::Plain),
            (group.state.clone(), paint),
            (format!("{finished} of {total}"), Paint::Plain),
            (group.at_once.to_string(), Paint::Dim),
            (counts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", "), Paint::Plain),
        ]);
        for instance in &group.instances {
            busy = true;
            instances.row([
                (instance.node.clone().unwrap_or_else(|| "-".to_owned()), Paint::Plain),
                (instance.id.clone(), Paint::Plain),
                (group.name.clone(), Paint::Dim),
                (instance.what.clone(), Paint::Plain),
            ]);
        }
    }
    let mut text = table.render(style, 0);
    if busy {
        text.push('\n');
        text.push_str(&instances.render(style, 0));
    }
    if let Some(remaining) = roll.remaining {
        let _ = writeln!(text, "about {} left, waiting for people left out", output::duration(remaining));
    }
    text
}

fn answer(approval: &Approval, now: Timestamp) -> (String, Paint) {
    match &approval.answer {
        Some(answer) => {
            let by = answer.by.as_deref().map_or_else(String::new, |by| format!(" by {by}"));
            let comment = answer.comment.as_deref().map_or_else(String::new, |comment| format!(": {comment}"));
            let paint = if answer.decision == kopsline_core::Decision::Approve { Paint::Good } else { Paint::Attention };
            (format!("{}{by} at {}{comment}", answer.decision.done(), output::moment(answer.at)), paint)
        }
        None if approval.withdrawn => ("withdrawn".to_owned(), Paint::Dim),
        None if approval.is_open(now) => (open(&approval.id), Paint::Attention),
        None => ("expired".to_owned(), Paint::Dim),
    }
}

fn open(id: &ApprovalId) -> String {
    format!("open: kopsline approve {id}")
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use kopsline_core::approval::Answer;
    use kopsline_core::{Decision, Failure, FailureKind, Gate, Stage};

    use kopsline_rolling::{GroupProgress, InstanceProgress, Outcome, Role};

    use super::*;
    use crate::follow::tests::{at, run};

    fn asked() -> (Run, Approval) {
        let mut run = run();
        run.enter(Stage::Replace, at(1));
        run.leave(Stage::Replace, StageState::Succeeded, "7 objects written", at(3));
        run.enter(Stage::Plan, at(3));
        run.leave(Stage::Plan, StageState::Succeeded, "104 to create", at(12));
        run.enter(Stage::ApproveUpdate, at(12));
        run.leave(Stage::ApproveUpdate, StageState::Waiting, "waits for a person", at(12));
        run.plan_digest = Some("sha256:0123456789abcdef0123456789abcdef".into());
        let id = ApprovalId::of(&run.id, Gate::Update, 1);
        run.approvals.push(id.clone());
        let approval = Approval {
            id,
            run: run.id.clone(),
            gate: Gate::Update,
            digest: "sha256:0123456789abcdef0123456789abcdef".into(),
            summary: "104 to create".into(),
            asked_at: at(12),
            expires_at: at(12) + SignedDuration::from_hours(1),
            answer: None,
            withdrawn: false,
        };
        (run, approval)
    }

    #[test]
    fn lists_runs() {
        let (waiting, _) = asked();
        let mut done = run();
        done.id = RunId::new("demo-k8s-example-com-222222222222-ffffffff").unwrap();
        done.end(RunState::Superseded, None, at(5));
        insta::assert_snapshot!(list(&[waiting, done], at(3700), Style::plain()));
        assert!(list(&[], at(0), Style::plain()).starts_with("No runs yet"));
    }

    #[test]
    fn describes_a_run_that_waits() {
        let (run, approval) = asked();
        let detail = Detail { run, approvals: vec![approval], roll: None, documents: "s3://runs/runs/x/".into() };
        insta::assert_snapshot!(describe(&detail, at(72), Style::plain()));
    }

    #[test]
    fn describes_a_rolling_update_under_way() {
        let count = |total, finished, in_flight| Summary {
            total,
            finished,
            in_flight,
            waiting: total - finished - in_flight,
            ..Default::default()
        };
        let group = |name: &str, role, state: &str, summary, instances| GroupProgress {
            name: name.into(),
            role,
            state: state.into(),
            at_once: 2,
            summary,
            instances,
        };
        let draining = InstanceProgress {
            id: "i-0a1b2c3d4e5f60001".into(),
            node: Some("ip-10-20-32-4.ec2.internal".into()),
            what: "is being drained, 2 pods left; waits for shop/db-0".into(),
        };
        let terminated = InstanceProgress { id: "i-0a1b2c3d4e5f60002".into(), node: None, what: "terminated".into() };
        let roll = RollProgress {
            summary: count(23, 9, 2),
            outcome: Outcome::Running,
            groups: vec![
                group("control-plane-a", Role::ControlPlane, "done", count(3, 3, 0), vec![]),
                group("nodes-general", Role::Node, "rolling", count(20, 6, 2), vec![draining, terminated]),
            ],
            questions: vec![],
            remaining: Some(jiff::SignedDuration::from_mins(34)),
        };
        insta::assert_snapshot!(rolling(&roll, Style::plain()));
    }

    #[test]
    fn describes_a_run_that_failed() {
        let (mut run, mut approval) = asked();
        run.leave(Stage::ApproveUpdate, StageState::Succeeded, "approved by ann", at(20));
        run.enter(Stage::Update, at(20));
        run.leave(Stage::Update, StageState::Running, "", at(21));
        run.end(RunState::Failed, Some(Failure::new(FailureKind::KopsFailed, "kops said:\n  error: \u{1b}[31mno capacity")), at(200));
        approval.answer = Some(Answer {
            decision: Decision::Approve,
            by: Some("ann".into()),
            comment: Some("go".into()),
            at: at(20),
            execution: "arn".into(),
        });
        let detail = Detail { run, approvals: vec![approval], roll: None, documents: "s3://runs/runs/x/".into() };
        insta::assert_snapshot!(describe(&detail, at(4000), Style::plain()));
    }
}

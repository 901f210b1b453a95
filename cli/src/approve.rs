//! `kopsline approve`, `reject`, `answer`, `pause`, `resume` and `abort`: what a person says, by way of the `approve` state
//! machine.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use kopsline_core::{Approval, ApprovalId, Decision, Gate, Order, Run, RunId};
use kopsline_state::Runs;
use serde_json::{Value, json};

use crate::Ended;
use crate::context::Context;
use crate::executions::{self, Outcome};
use crate::output::{self, Format, Paint, Style, Table};

/// How long the answer may take: the state machine retries what is transient.
const AT_MOST: Duration = Duration::from_mins(5);
/// How much of a plan is shown before the question.
const PLAN_LINES: usize = 60;

/// Options of `kopsline approve` and `kopsline reject`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The approval, as `kopsline status` shows it
    approval: ApprovalId,
    #[command(flatten)]
    says: Says,
}

/// Options of `kopsline answer`.
#[derive(Debug, clap::Args)]
pub(crate) struct AnswerArgs {
    /// The approval, as `kopsline status` shows it
    approval: ApprovalId,
    /// approve or reject; of a stuck drain: wait, skip, force, fail or abort
    decision: Decision,
    #[command(flatten)]
    says: Says,
}

/// Options of `kopsline pause`, `resume` and `abort`.
#[derive(Debug, clap::Args)]
pub(crate) struct OrderArgs {
    /// The run whose rolling update it is
    run: RunId,
    #[command(flatten)]
    says: Says,
}

/// Who says it, and how.
#[derive(Debug, clap::Args)]
struct Says {
    /// A comment for the record
    #[arg(long, default_value = "", hide_default_value = true)]
    comment: String,
    /// Who answers; AWS itself records whose credentials started the state machine
    #[arg(long, env = "USER", hide_env_values = true)]
    by: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

impl Says {
    /// Whether a person at a terminal wants it so.
    fn confirmed(&self, question: &str) -> anyhow::Result<bool> {
        Ok(self.yes || !std::io::stdin().is_terminal() || ask(&Style::detect().paint(Paint::Bold, &format!("{question} [y/N] ")))?)
    }

    /// Adds who says it to the state machine's input.
    fn sign(&self, input: Value) -> Value {
        signed(input, self.by.as_deref(), &self.comment)
    }
}

/// Runs `kopsline approve` or `kopsline reject`.
pub(crate) async fn run(context: &Context, format: Format, decision: Decision, args: &Args) -> anyhow::Result<Ended> {
    decide(context, format, &args.approval, decision, &args.says).await
}

/// Runs `kopsline answer`.
pub(crate) async fn run_answer(context: &Context, format: Format, args: &AnswerArgs) -> anyhow::Result<Ended> {
    decide(context, format, &args.approval, args.decision, &args.says).await
}

/// Runs `kopsline pause`, `resume` or `abort`.
pub(crate) async fn run_order(context: &Context, format: Format, order: Order, args: &OrderArgs) -> anyhow::Result<Ended> {
    if format == Format::Text && order == Order::Abort {
        let run = context.runs()?.read(&args.run).await?;
        output::line(&format!("{} of {}: what was begun is finished, the rest stays as it is.", args.run, run.cluster.name));
        if !args.says.confirmed("Abort its rolling update?")? {
            output::line("Nothing was ordered.");
            return Ok(Ended::Well);
        }
    }
    let input = args.says.sign(json!({"run": args.run, "order": order}));
    tell(format, &say(context, &input).await?)
}

async fn decide(context: &Context, format: Format, id: &ApprovalId, decision: Decision, says: &Says) -> anyhow::Result<Ended> {
    if format == Format::Text {
        let runs = context.runs()?;
        let (run, approval) = question(&runs, id).await?;
        output::print(&describe(&run, &approval, Style::detect()));
        output::print(&output::indented(&material(&runs, &run, &approval).await?, 2));
        if !says.confirmed(&format!("Answer it with {:?}?", decision.as_str()))? {
            output::line("Nothing was answered.");
            return Ok(Ended::Well);
        }
    }
    tell(format, &answer(context, id, decision, says.by.as_deref(), &says.comment).await?)
}

fn tell(format: Format, answer: &Value) -> anyhow::Result<Ended> {
    match format {
        Format::Json => output::json(answer)?,
        Format::Text => output::line(&said(answer)),
    }
    Ok(Ended::Well)
}

/// An approval and the run that asks.
pub(crate) async fn question(runs: &Runs, id: &ApprovalId) -> anyhow::Result<(Run, Approval)> {
    let approval = runs.approval(id).await?;
    let approval = approval.ok_or_else(|| anyhow!("there is no approval {id}: `kopsline status RUN` shows those of a run"))?;
    Ok((runs.read(&approval.run).await?, approval))
}

/// What is to be approved, for people: the plan, or the roll's preview; not more than fits a terminal. A question in the
/// middle of a roll says everything in its summary.
pub(crate) async fn material(runs: &Runs, run: &Run, approval: &Approval) -> anyhow::Result<String> {
    let phase = run.phase;
    let names = match approval.gate {
        Gate::Update => ["plan.txt".to_owned(), "forecast.txt".to_owned()],
        Gate::Roll => [phase.roll_document("preview.txt"), phase.roll_document("forecast.txt")],
        Gate::Checkpoint | Gate::Drain => return Ok(String::new()),
    };
    let mut material = String::new();
    for name in names {
        let Some(text) = runs.text(&run.id, &name).await? else { continue };
        let rest = format!("the whole is in runs/{}/{name} of the run bucket", run.id);
        if !material.is_empty() {
            material.push_str("\nThe rolling update that follows:\n\n");
        }
        material.push_str(&head(&output::printable(&text), PLAN_LINES, &rest));
    }
    Ok(material)
}

/// The first lines of a text, and how many were left out.
pub(crate) fn head(text: &str, lines: usize, rest: &str) -> String {
    let total = text.lines().count();
    if total <= lines {
        return text.to_owned();
    }
    let shown: String = text.lines().take(lines).flat_map(|line| [line, "\n"]).collect();
    format!("{shown}… {} more; {rest}\n", output::count(total - lines, "line"))
}

/// Starts the `approve` state machine as a person would, and returns what it answered.
pub(crate) async fn answer(
    context: &Context,
    approval: &ApprovalId,
    decision: Decision,
    by: Option<&str>,
    comment: &str,
) -> anyhow::Result<Value> {
    say(context, &signed(json!({"approval": approval, "decision": decision}), by, comment)).await
}

async fn say(context: &Context, input: &Value) -> anyhow::Result<Value> {
    let client = context.step_functions();
    // Unique, so that answering again asks again: the state machine knows what stands already.
    let name = format!("cli-{}-{}", Timestamp::now().as_microsecond(), std::process::id());
    let execution = executions::start(&client, context.approve_arn()?, &name, input).await?;
    match executions::wait(&client, &execution, AT_MOST).await? {
        Outcome::Succeeded(output) => Ok(output),
        Outcome::Failed { error, cause } if cause.is_empty() => bail!("{error} ({execution})"),
        Outcome::Failed { error, cause } => bail!("{cause} ({error})"),
    }
}

fn signed(mut input: Value, by: Option<&str>, comment: &str) -> Value {
    if let Some(fields) = input.as_object_mut() {
        if let Some(by) = by.filter(|by| !by.is_empty()) {
            fields.insert("by".into(), by.into());
        }
        if !comment.is_empty() {
            fields.insert("comment".into(), comment.into());
        }
    }
    input
}

/// The console function's answer in its own words.
pub(crate) fn said(answer: &Value) -> String {
    let field = |name: &str| answer.get(name).and_then(Value::as_str);
    let words = field("message").or_else(|| field("outcome")).map(output::one_line);
    words.unwrap_or_else(|| answer.to_string())
}

/// The question, as it is shown before it is answered.
pub(crate) fn describe(run: &Run, approval: &Approval, style: Style) -> String {
    let what = match approval.gate {
        Gate::Update => "kops update cluster --yes",
        Gate::Roll => "rolling update",
        Gate::Checkpoint => "the rest of the rolling update",
        Gate::Drain => "a stuck drain in the rolling update",
    };
    let mut table = Table::headless();
    let mut fact = |name: &str, value: String, paint| table.row([(name.to_owned(), Paint::Dim), (value, paint)]);
    fact("approval of", format!("{what} on {}", run.cluster.name), Paint::Bold);
    fact("merge", format!("{} \"{}\" by {}", run.merge.commit.short(), run.merge.title, run.merge.user), Paint::Plain);
    fact("would", approval.summary.clone(), Paint::Plain);
    fact("digest", approval.digest.clone(), Paint::Plain);
    fact("open until", output::moment(approval.expires_at), Paint::Plain);
    table.render(style, 0)
}

/// Asks a question on the terminal; anything but `y` or `yes` is no.
pub(crate) fn ask(question: &str) -> anyhow::Result<bool> {
    output::print(question);
    std::io::stdout().flush().context("cannot write to the terminal")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read from the terminal")?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_is_what_the_state_machine_takes() {
        let id = ApprovalId::new("demo-1.update.1").unwrap();
        let input = |decision: Decision| json!({"approval": id, "decision": decision});
        assert_eq!(
            signed(input(Decision::Reject), Some("ann"), "not on a Friday"),
            json!({"approval": "demo-1.update.1", "decision": "reject", "by": "ann", "comment": "not on a Friday"})
        );
        assert_eq!(signed(input(Decision::Approve), None, ""), json!({"approval": "demo-1.update.1", "decision": "approve"}));
    }

    #[test]
    fn the_answer_is_told_in_its_own_words() {
        assert_eq!(said(&json!({"outcome": "decided", "message": "demo-1.update.1 is approved"})), "demo-1.update.1 is approved");
        assert_eq!(said(&json!({"outcome": "decided"})), "decided");
        assert_eq!(said(&json!(null)), "null");
    }

    #[test]
    fn a_long_plan_says_how_much_was_left_out() {
        assert_eq!(head("a\nb\n", 2, "there"), "a\nb\n");
        assert_eq!(head("a\nb\nc\n", 2, "there"), "a\nb\n… 1 line more; there\n");
    }
}

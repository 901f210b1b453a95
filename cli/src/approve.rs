//! `kopsline approve` and `kopsline reject`: a person's answer, by way of the `approve` state machine.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use kopsline_core::{Approval, ApprovalId, Decision, Gate, Run};
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

/// Runs the command.
pub(crate) async fn run(context: &Context, format: Format, decision: Decision, args: &Args) -> anyhow::Result<Ended> {
    let runs = context.runs()?;
    let style = Style::detect();
    if format == Format::Text {
        let (run, approval) = question(&runs, &args.approval).await?;
        output::print(&describe(&run, &approval, style));
        output::print(&output::indented(&material(&runs, &approval).await?, 2));
        if !args.yes && std::io::stdin().is_terminal() && !confirmed(decision, style)? {
            output::line("Nothing was answered.");
            return Ok(Ended::Well);
        }
    }
    let answer = answer(context, &args.approval, decision, args.by.as_deref(), &args.comment).await?;
    match format {
        Format::Json => output::json(&answer)?,
        Format::Text => output::line(&said(&answer)),
    }
    Ok(Ended::Well)
}

/// An approval and the run that asks.
pub(crate) async fn question(runs: &Runs, id: &ApprovalId) -> anyhow::Result<(Run, Approval)> {
    let approval = runs.approval(id).await?;
    let approval = approval.ok_or_else(|| anyhow!("there is no approval {id}: `kopsline status RUN` shows those of a run"))?;
    Ok((runs.read(&approval.run).await?, approval))
}

/// What is to be approved, for people: the plan, or the roll's preview; not more than fits a terminal.
pub(crate) async fn material(runs: &Runs, approval: &Approval) -> anyhow::Result<String> {
    let name = match approval.gate {
        Gate::Update => "plan.txt",
        Gate::Roll => "roll/preview.txt",
    };
    let text = runs.text(&approval.run, name).await?.unwrap_or_default();
    Ok(head(&output::printable(&text), PLAN_LINES, &format!("the whole is in runs/{}/{name} of the run bucket", approval.run)))
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
    let client = context.step_functions();
    let input = input(approval, decision, by, comment)?;
    // Unique, so that answering again asks again: the state machine knows what stands already.
    let name = format!("cli-{}-{}", Timestamp::now().as_microsecond(), std::process::id());
    let execution = executions::start(&client, context.approve_arn()?, &name, &input).await?;
    match executions::wait(&client, &execution, AT_MOST).await? {
        Outcome::Succeeded(output) => Ok(output),
        Outcome::Failed { error, cause } if cause.is_empty() => bail!("{error} ({execution})"),
        Outcome::Failed { error, cause } => bail!("{cause} ({error})"),
    }
}

fn input(approval: &ApprovalId, decision: Decision, by: Option<&str>, comment: &str) -> anyhow::Result<Value> {
    let mut input = json!({"approval": approval, "decision": decision});
    let fields = input.as_object_mut().context("an input is an object")?;
    if let Some(by) = by.filter(|by| !by.is_empty()) {
        fields.insert("by".into(), by.into());
    }
    if !comment.is_empty() {
        fields.insert("comment".into(), comment.into());
    }
    Ok(input)
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

fn confirmed(decision: Decision, style: Style) -> anyhow::Result<bool> {
    let verb = match decision {
        Decision::Approve => "Approve",
        Decision::Reject => "Reject",
    };
    ask(&style.paint(Paint::Bold, &format!("{verb} this? [y/N] ")))
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
        assert_eq!(
            input(&id, Decision::Reject, Some("ann"), "not on a Friday").unwrap(),
            json!({"approval": "demo-1.update.1", "decision": "reject", "by": "ann", "comment": "not on a Friday"})
        );
        assert_eq!(input(&id, Decision::Approve, None, "").unwrap(), json!({"approval": "demo-1.update.1", "decision": "approve"}));
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

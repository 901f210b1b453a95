//! Follows a run for somebody who watches: its stages, what it would do, its questions and their answers.

use std::cell::RefCell;
use std::time::Duration;

use jiff::Timestamp;
use kopsline_core::{Approval, ApprovalId, Decision, Gate, Run, RunId, Stage, StageState};
use kopsline_rolling::RollState;
use kopsline_state::Runs;

use crate::context::Context;
use crate::follow::{self, Change, Follower, GUTTER};
use crate::output::{self, Paint, Style};
use crate::progress::Progress;
use crate::terminal::Terminal;
use crate::{approve, executions, local};

const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How long a run may take to be closed once it has ended.
const CLOSED_AT_MOST: Duration = Duration::from_mins(2);
/// How many lines of a plan are shown; the page has all of it.
const PLAN_LINES: usize = 40;
/// How far texts between the lines are indented: as far as what stands behind the times.
const TEXT: usize = GUTTER + 2;
/// In whose name the demonstration answers.
const SOMEBODY: &str = "demo";

/// Follows runs of a local deployment.
#[derive(Debug)]
pub(crate) struct Guide<'a> {
    /// The local deployment.
    pub(crate) context: &'a Context,
    /// The runs' records.
    pub(crate) runs: Runs,
    /// Where it is told.
    pub(crate) progress: &'a Progress,
    /// How.
    pub(crate) style: Style,
    /// Whether a person is asked; else every question is answered with yes, as a person would answer it.
    pub(crate) interactive: bool,
    /// Where that person types.
    pub(crate) terminal: Terminal,
    /// The last line about an instance that was told.
    pub(crate) rolled: RefCell<Option<RollState>>,
}

impl Guide<'_> {
    /// Follows a run until it ends.
    pub(crate) async fn follow(&self, id: &RunId) -> anyhow::Result<Run> {
        self.rolled.take();
        let mut follower = Follower::new(self.runs.clone(), id.clone());
        let mut answered = Vec::new();
        loop {
            let (run, changes) = follower.look().await?;
            let begun = run.stage(Stage::Roll).is_some();
            for change in &changes {
                // The instances first: they ended before their stage did.
                if begun && matches!(change, Change::Left { record } if record.stage == Stage::Roll) {
                    self.instances(&run).await?;
                }
                // The question says that it waits, in more words.
                if !matches!(change, Change::Note { stage: Stage::ApproveUpdate | Stage::ApproveRoll, .. }) {
                    self.progress.say(&follow::line(&run, change, Timestamp::now(), self.style));
                }
                if let Change::Left { record } = change
                    && record.state == StageState::Succeeded
                {
                    self.result(&run, record.stage).await?;
                }
            }
            if run.state.is_final() {
                self.closed(&run.id).await?;
                if let Some(failure) = &run.failure {
                    self.progress.text(&output::indented(&output::printable(&failure.message), TEXT));
                }
                return Ok(run);
            }
            if begun {
                self.instances(&run).await?;
            }
            match self.open_question(&run).await? {
                Some(approval) if !answered.contains(&approval.id) => {
                    self.answer(&approval).await?;
                    answered.push(approval.id);
                }
                _ => self.progress.waiting_for(&explanation(&run)),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns when the run's execution is over too: the last stage renders the page and frees the lock once the record says
    /// how the run ended.
    async fn closed(&self, id: &RunId) -> anyhow::Result<()> {
        let execution = executions::arn(self.context.pipeline_arn()?, id.as_str());
        let client = self.context.step_functions();
        let ended = executions::wait(&client, &execution, CLOSED_AT_MOST);
        // How it ended is in the record already.
        self.progress.during("the run to be closed: its page is rendered and its lock freed", ended).await.map(drop)
    }

    /// What a stage came to, where that is worth reading.
    async fn result(&self, run: &Run, stage: Stage) -> anyhow::Result<()> {
        let (title, name) = match stage {
            Stage::Plan => ("what kops would change", "plan.txt"),
            Stage::RollPreview => ("which nodes a rolling update would replace", "roll/preview.txt"),
            _ => return Ok(()),
        };
        let Some(text) = self.runs.text(&run.id, name).await? else { return Ok(()) };
        let text = approve::head(&output::printable(&text), PLAN_LINES, "all of it is in the run's page");
        self.progress.say(&format!("\n{:>TEXT$}{}", "", self.style.paint(Paint::Bold, title)));
        self.progress.text(&output::indented(&text, TEXT));
        self.progress.say("");
        Ok(())
    }

    /// What happened to the instances since the last look.
    async fn instances(&self, run: &Run) -> anyhow::Result<()> {
        let Some(text) = self.runs.text(&run.id, "roll/checkpoint.json").await? else { return Ok(()) };
        let state = RollState::from_json(text.as_bytes())?;
        let lines = local::roll::lines(self.rolled.borrow().as_ref(), &state);
        for line in lines {
            self.progress.say(&format!("{:>GUTTER$}  {:<14}  {line}", "", ""));
        }
        self.rolled.replace(Some(state));
        Ok(())
    }

    /// The question that the run waits for an answer to.
    async fn open_question(&self, run: &Run) -> anyhow::Result<Option<Approval>> {
        let asks = run.current().is_some_and(|record| matches!(record.stage, Stage::ApproveUpdate | Stage::ApproveRoll | Stage::Roll));
        let Some(id) = run.approvals.last().filter(|_| asks) else { return Ok(None) };
        Ok(self.runs.approval(id).await?.filter(|approval| approval.is_open(Timestamp::now())))
    }

    async fn answer(&self, approval: &Approval) -> anyhow::Result<()> {
        let what = match approval.gate {
            Gate::Update => "Apply this plan?",
            Gate::Roll => "Replace these nodes?",
            Gate::Checkpoint => "Go on with the others?",
            Gate::Drain => "What about this node?",
        };
        let digest = output::short_digest(&approval.digest);
        self.progress.clear();
        self.progress.say(
            &self.style.paint(Paint::Bold, &format!("{:>GUTTER$}  {what} {} (digest {digest})", "?", output::one_line(&approval.summary))),
        );
        let yes_or_no = approval.gate != Gate::Drain;
        let decision = match (yes_or_no, self.interactive) {
            (true, true) => self.decide(&approval.id).await?,
            (true, false) => Decision::Approve,
            (false, _) => Decision::Wait,
        };
        let said = if yes_or_no { decision.as_str().to_owned() } else { format!("answer {}", decision.as_str()) };
        self.progress.say(&format!(
            "{:>GUTTER$}  {}",
            "",
            self.style.paint(Paint::Dim, &format!("$ kopsline --local {said} {}", approval.id))
        ));
        let said = approve::answer(self.context, &approval.id, decision, Some(SOMEBODY), "").await?;
        self.progress.say(&format!("{:>GUTTER$}  {}", "", approve::said(&said)));
        Ok(())
    }

    async fn decide(&self, id: &ApprovalId) -> anyhow::Result<Decision> {
        loop {
            let answer = self.terminal.ask(&format!("{:>GUTTER$}  approve or reject {id}? [a/r] ", "")).await?;
            match answer.trim().to_lowercase().as_str() {
                "a" | "approve" | "y" | "yes" => return Ok(Decision::Approve),
                "r" | "reject" | "n" | "no" => return Ok(Decision::Reject),
                _ => {}
            }
        }
    }
}

/// What a run waits for now and why that takes its time.
fn explanation(run: &Run) -> String {
    let Some(current) = run.current() else { return "Step Functions to go on to the next stage".to_owned() };
    let what = match current.stage {
        Stage::Replace if current.state == StageState::Waiting => "the cluster's lock: another run holds it",
        Stage::Replace => {
            "replace: manifests are fetched at the commit, checked, and committed to the state store; a first start also fetches kops into the function"
        }
        Stage::Plan => "plan: kops' dry run compares the whole cluster with the cloud",
        Stage::ApproveUpdate | Stage::ApproveRoll => "the answer to reach the waiting stage",
        Stage::Update => "update: the plan is derived again and compared, then kops applies it resource by resource",
        Stage::RollPreview => "roll preview: instances are compared with their launch templates",
        Stage::Roll => "roll: after each instance its interval, and its replacement to be in service",
        Stage::Restore => "restore: the state store is put back as it was",
    };
    what.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::follow::tests::{at, run};

    #[test]
    fn every_wait_is_explained() {
        let mut run = run();
        assert!(explanation(&run).contains("Step Functions"));
        run.enter(Stage::Replace, at(1));
        assert!(explanation(&run).contains("checked"));
        run.leave(Stage::Replace, StageState::Waiting, "held", at(2));
        assert!(explanation(&run).contains("lock"));
    }
}

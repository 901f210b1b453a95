//! A bounded piece of the rolling update.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kopsline_core::{Failure, FailureKind, Phase, Run, RunId, Stage, StageState};
use kopsline_roller::{Budget, StepOutcome, SystemClock, run_step};
use kopsline_rolling::{Leftover, Preview, RollState};

use crate::checkpoints::RecordCheckpoints;
use crate::desk::{RecordDesk, gate_of};
use crate::{Answer, Roll, history, options};

/// How long a step works: a state machine waits for less money than a function does.
const LONGEST_STEP: Duration = Duration::from_mins(1);
/// What a round of observing, deciding and acting takes at most where AWS is well.
const ROUND: SignedDuration = SignedDuration::from_secs(20);
const LONGEST_SLEEP: SignedDuration = SignedDuration::from_secs(5);
/// However long there is nothing to do: an order to pause or to abort is found at the next step.
const LONGEST_WAIT_SECONDS: u64 = 120;
/// A wait of which the run's page and GitLab are told.
const WORTH_TELLING_SECONDS: u64 = 10;
/// How long a question without a deadline of its own is put before it is put again.
const QUESTION_TIMEOUT: SignedDuration = SignedDuration::from_hours(24 * 30);

impl Roll {
    /// Rolls for a while. The checkpoint in the run's record says where to go on, so it may be repeated or killed anywhere.
    pub(crate) async fn step(&self, id: &RunId, phase: Phase, remaining: Duration, now: Timestamp) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        self.renew(&run, now, SignedDuration::ZERO).await?;
        self.runs.change(id, |record| record.enter(Stage::Roll, now)).await?;

        let Some(options) = options(&run, phase)? else { return Ok(Answer::Done) };
        let target = self.target(&run).await?;
        let approved: Option<Preview> = self.runs.document(id, &phase.roll_document("preview.json")).await?;
        let total = SignedDuration::try_from(remaining.min(LONGEST_STEP)).unwrap_or(SignedDuration::ZERO);
        let outcome = run_step(&kopsline_roller::Roll {
            cloud: &*target.cloud,
            kubernetes: target.kubernetes(),
            checkpoints: &RecordCheckpoints::new(&self.runs, id, phase),
            desk: &RecordDesk::new(&self.runs, &run),
            clock: &SystemClock,
            cluster: &target.cluster,
            options: &options,
            approved: approved.as_ref(),
            budget: Budget { total, round: ROUND, longest_sleep: LONGEST_SLEEP },
        })
        .await?;
        if matches!(outcome, StepOutcome::Done { .. } | StepOutcome::Failed { .. } | StepOutcome::Aborted { .. })
            && let Some(roll) = self.runs.document(id, &phase.roll_document("checkpoint.json")).await?
        {
            history::learn(&self.runs, &run, &roll).await?;
        }
        self.record(&run, phase, outcome, Timestamp::now()).await
    }

    /// About how long the rest of the roll takes, in words.
    async fn left(&self, run: &Run, phase: Phase) -> Result<String, Failure> {
        let roll: Option<RollState> = self.runs.document(&run.id, &phase.roll_document("checkpoint.json")).await?;
        let history = history::read(&self.runs, run).await?;
        let remaining = roll.and_then(|roll| roll.progress(&history).remaining);
        // Nobody believes more of an estimate than its minutes.
        let minutes = remaining.map(|remaining| SignedDuration::from_mins((remaining.as_secs() + 59) / 60));
        Ok(minutes.map_or_else(String::new, |minutes| format!("; about {minutes:#} left")))
    }

    async fn record(&self, run: &Run, phase: Phase, outcome: StepOutcome, now: Timestamp) -> Result<Answer, Failure> {
        let leave =
            async |state: StageState, note: &str| self.runs.change(&run.id, |record| record.leave(Stage::Roll, state, note, now)).await;
        match outcome {
            StepOutcome::Progress { wait_seconds, waits_for, summary } => {
                let wait_seconds = wait_seconds.min(LONGEST_WAIT_SECONDS);
                let tell = wait_seconds >= WORTH_TELLING_SECONDS;
                let left = if tell { self.left(run, phase).await? } else { String::new() };
                leave(StageState::Waiting, &format!("{summary}; waits for {waits_for}{left}")).await?;
                self.renew(run, now, seconds(wait_seconds)).await?;
                Ok(Answer::Progress { wait_seconds, tell })
            }
            StepOutcome::Asks { question, summary } => {
                leave(StageState::Waiting, &format!("{summary}; {question}")).await?;
                let left = question.deadline.map_or(QUESTION_TIMEOUT, |deadline| deadline.duration_since(now));
                let timeout_seconds = u64::try_from(left.as_secs()).unwrap_or(0).max(1);
                self.renew(run, now, seconds(timeout_seconds)).await?;
                Ok(Answer::Question { gate: gate_of(&question).as_str(), timeout_seconds })
            }
            StepOutcome::Paused { summary } => {
                leave(StageState::Waiting, &format!("{summary}; paused")).await?;
                Ok(Answer::Paused)
            }
            StepOutcome::Done { still_need_update, summary } => {
                let note = format!("{summary}{}", leftovers(&still_need_update));
                leave(StageState::Succeeded, &note).await?;
                self.runs.event(&run.id, now, Some(Stage::Roll), "rolled", note).await?;
                Ok(Answer::Done)
            }
            StepOutcome::Failed { reason, summary } => {
                self.stopped(run, format!("the rolling update stopped: {summary}; {reason}"), now).await
            }
            StepOutcome::Aborted { reason, summary } => {
                self.stopped(run, format!("the rolling update was aborted {reason}; {summary}"), now).await
            }
        }
    }

    async fn stopped(&self, run: &Run, message: String, now: Timestamp) -> Result<Answer, Failure> {
        self.runs.change(&run.id, |record| record.leave(Stage::Roll, StageState::Failed, &message, now)).await?;
        self.runs.event(&run.id, now, Some(Stage::Roll), "roll-failed", message.clone()).await?;
        Err(Failure::new(FailureKind::Failed, message))
    }
}

fn seconds(seconds: u64) -> SignedDuration {
    SignedDuration::from_secs(seconds.try_into().unwrap_or(i64::MAX))
}

fn leftovers(leftovers: &[Leftover]) -> String {
    if leftovers.is_empty() {
        return String::new();
    }
    let names: Vec<_> = leftovers.iter().map(|leftover| format!("{} ({}: {})", leftover.instance, leftover.group, leftover.why)).collect();
    format!("; still need an update: {}", names.join(", "))
}

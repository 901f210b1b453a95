//! Questions and answers.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kopsline_core::approval::{Answer as Given, Approval};
use kopsline_core::{Answered, ApprovalId, Failure, Gate, RunId, RunState, Stage, StageState, keys, lock};
use kopsline_report::{open_questions, plan_summary};
use kopsline_state::{Condition, LockFile, RunError, Update};

use crate::tasks::Taken;
use crate::{Answer, Console};

/// An answer may come a moment before the task behind it is known to wait; it is sent again this often.
const DELIVERIES: u32 = 3;

pub(crate) fn stage_of(gate: Gate) -> Stage {
    match gate {
        Gate::Update => Stage::ApproveUpdate,
        Gate::Roll => Stage::ApproveRoll,
        Gate::Checkpoint | Gate::Drain => Stage::Roll,
    }
}

impl Console {
    /// Puts a question. Repeated with another token (the state machine tries again), it is the same question, whose answer
    /// goes to the newest token; an answer that came meanwhile is passed on at once.
    pub(crate) async fn ask(
        &self,
        run: &RunId,
        gate: Gate,
        token: String,
        timeout_seconds: u64,
        now: Timestamp,
    ) -> Result<Answer, Failure> {
        let record = self.runs.read(run).await?;
        let stage = stage_of(gate);
        let expires_at =
            now.saturating_add(SignedDuration::from_secs(timeout_seconds.try_into().unwrap_or(i64::MAX))).unwrap_or(Timestamp::MAX);
        // The lock outlasts the question, and a little: the stage after it renews.
        let lease = expires_at.saturating_add(lock::WORKING_LEASE).unwrap_or(Timestamp::MAX);
        LockFile::new(self.runs.documents().clone(), &record.cluster).renew(run, lease).await?;

        let (digest, summary) = plan_summary(&self.runs, run, gate).await?;
        let id = self.question(&record.approvals, run, gate, &digest).await?;
        self.runs.documents().store().put(&keys::token(&id), token.into_bytes(), Condition::Unconditional).await.map_err(RunError::from)?;
        let question = Approval {
            id: id.clone(),
            run: run.clone(),
            gate,
            digest,
            summary: summary.clone(),
            asked_at: now,
            expires_at,
            answer: None,
            withdrawn: false,
        };
        let question = self
            .runs
            .documents()
            .update(&keys::approval(&id), |before: Option<Approval>| {
                Ok::<_, std::convert::Infallible>(match before {
                    Some(answered) if answered.answer.is_some() => Update::Keep(answered),
                    before => {
                        let asked = Approval { asked_at: before.map_or(now, |before| before.asked_at), ..question.clone() };
                        Update::Put(asked.clone(), asked)
                    }
                })
            })
            .await?;
        self.runs
            .change(run, |record| {
                if !record.approvals.contains(&id) {
                    record.approvals.push(id.clone());
                }
                record.enter(stage, now);
                record.leave(stage, StageState::Waiting, format!("waits for an answer to {id} ({summary})"), now);
            })
            .await?;
        // The state machine asks anew from time to time, to see whether the question still stands: that is one event, of
        // when it was asked first, and a call that was killed before it could tell is made good.
        self.runs.event(run, question.asked_at, Some(stage), "asked", format!("{id}: {summary}; open until {expires_at}")).await?;
        self.publish(run).await;
        if let Some(answer) = question.answer.clone() {
            self.pass_on(&question, &answer, now).await?;
        }
        Ok(Answer { outcome: "asked", approval: Some(id), message: None })
    }

    /// The run's question at a gate: the open one if it asks for the same digest, else a new one that withdraws it.
    async fn question(&self, asked: &[ApprovalId], run: &RunId, gate: Gate, digest: &str) -> Result<ApprovalId, Failure> {
        let mut round = 1;
        loop {
            let id = ApprovalId::of(run, gate, round);
            let Some(before) = self.runs.approval(&id).await? else { return Ok(id) };
            if before.digest == digest && !before.withdrawn {
                return Ok(id);
            }
            self.withdraw(&id).await?;
            round = round.saturating_add(1);
            if round > 99 {
                return Err(Failure::bad_input(format!("{run} asked {} times already: start a new run", asked.len())));
            }
        }
    }

    /// Takes an answer and passes it on to the task that waits.
    pub(crate) async fn decide(&self, id: &ApprovalId, given: Given) -> Result<Answer, Failure> {
        let (decision, now) = (given.decision, given.at);
        let decided = self
            .runs
            .documents()
            .update(&keys::approval(id), |approval: Option<Approval>| {
                let approval = approval
                    .ok_or_else(|| Failure::bad_input(format!("there is no approval {id}: `kopsline status` lists what is open")))?;
                let decided = approval.decide(given.clone()).map_err(|error| Failure::bad_input(error.to_string()))?;
                Ok::<_, Failure>(if decided == approval { Update::Keep(decided) } else { Update::Put(decided.clone(), decided) })
            })
            .await
            .map_err(|error| match error {
                kopsline_state::UpdateError::Refused(failure) => failure,
                other => {
                    let kind = Failure::transient_or(other.is_transient(), kopsline_core::FailureKind::Failed);
                    Failure::new(kind, other.to_string())
                }
            })?;
        let by = given.by.as_deref().unwrap_or("an unnamed caller");
        let comment = given.comment.as_deref().map(|comment| format!(": {comment}")).unwrap_or_default();
        let message = format!("{id} {} by {by}{comment}", decision.done());
        self.runs
            .event(
                &decided.run,
                decided.answer.as_ref().map_or(now, |answer| answer.at),
                Some(stage_of(decided.gate)),
                decision.done(),
                message.clone(),
            )
            .await?;
        self.pass_on(&decided, &given, now).await?;
        Ok(Answer { outcome: decision.done(), approval: Some(id.clone()), message: Some(message) })
    }

    /// Gives the answer to the task and records that the stage is over. Repeating it is harmless.
    async fn pass_on(&self, question: &Approval, given: &Given, now: Timestamp) -> Result<(), Failure> {
        let Approval { id, run, gate, digest, .. } = question;
        let (decision, by) = (given.decision, given.by.clone());
        if matches!(gate, Gate::Checkpoint | Gate::Drain) {
            self.note_answer(run, digest, Answered { decision, by }).await?;
        }
        let Some(token) = self.token(&keys::token(id)).await? else {
            return Err(Failure::new(kopsline_core::FailureKind::Transient, format!("nothing waits for {id} yet")));
        };
        let stage = stage_of(*gate);
        self.runs
            .change(run, |record| {
                if record.stage(stage).is_some_and(|record| record.state == StageState::Waiting) {
                    // A question in the middle of a stage does not end it.
                    let state = if stage == Stage::Roll { StageState::Waiting } else { StageState::Succeeded };
                    record.leave(stage, state, format!("{} ({id})", decision.done()), now);
                }
            })
            .await?;
        for attempt in 1..=DELIVERIES {
            let taken = self.tasks.answer(&token, decision).await?;
            if taken == Taken::Yes || attempt == DELIVERIES {
                break;
            }
            // Answered before, unless the task is only about to wait.
            if self.runs.read(run).await?.state != RunState::Running {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Shows how far a run is, on its page and in GitLab. Questions that its roll has found an end to by itself, such as a
    /// drain that got through, are withdrawn.
    pub(crate) async fn tell(&self, run: &RunId) -> Result<Answer, Failure> {
        let record = self.runs.read(run).await?;
        let open = open_questions(&self.runs, run).await?;
        for id in &record.approvals {
            let Some(question) = self.runs.approval(id).await? else { continue };
            if matches!(question.gate, Gate::Checkpoint | Gate::Drain) && !open.contains(&question.digest) {
                self.withdraw(id).await?;
            }
        }
        self.publish(run).await;
        Ok(Answer { outcome: "told", approval: None, message: None })
    }

    /// Marks a question as no longer asked.
    pub(crate) async fn withdraw(&self, id: &ApprovalId) -> Result<(), Failure> {
        self.runs
            .documents()
            .update(&keys::approval(id), |approval: Option<Approval>| {
                Ok::<_, std::convert::Infallible>(match approval {
                    Some(approval) if approval.answer.is_none() && !approval.withdrawn => {
                        Update::Put(Approval { withdrawn: true, ..approval }, ())
                    }
                    _ => Update::Keep(()),
                })
            })
            .await?;
        Ok(())
    }
}

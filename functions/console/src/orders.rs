//! Orders to a rolling update: pause, resume, abort.

use jiff::{SignedDuration, Timestamp};
use kopsline_core::{Answered, ApprovalId, Decision, Failure, Gate, Ordered, RollOrders, RunId, Stage, StageState, keys, orders};
use kopsline_state::{Condition, LockFile, RunError, Update};
use secrecy::SecretString;

use crate::{Answer, Console};

/// How long a pause may last: as long as an execution.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(365 * 24);

impl Console {
    /// Takes an order; the next step of the roll obeys it. Repeating an order is harmless.
    pub(crate) async fn order(&self, run: &RunId, ordered: Ordered) -> Result<Answer, Failure> {
        let record = self.runs.read(run).await?;
        let order = ordered.order;
        if record.state.is_final() {
            return Err(Failure::bad_input(format!(
                "{run} is over ({}): there is no rolling update to order about",
                record.state.as_str()
            )));
        }
        let orders = self.take(run, &ordered).await?;
        let by = ordered.by.as_deref().unwrap_or("an unnamed caller");
        let comment = ordered.comment.as_deref().map(|comment| format!(": {comment}")).unwrap_or_default();
        let message = format!("the rolling update of {run} is {} by {by}{comment}", order.done());
        self.runs.event(run, ordered.at, Some(Stage::Roll), order.done(), message.clone()).await?;
        if !orders.paused || orders.aborted {
            self.release(run, &orders).await?;
        }
        if orders.aborted {
            self.overtake_questions(run, &record.approvals).await?;
        }
        self.publish(run).await;
        Ok(Answer { outcome: order.done(), approval: None, message: Some(message) })
    }

    /// Keeps the token of a paused roll, unless the order to go on came meanwhile.
    pub(crate) async fn hold(&self, run: &RunId, token: String, now: Timestamp) -> Result<Answer, Failure> {
        let record = self.runs.read(run).await?;
        // Whoever wants the lock finds out whether its holder's execution lives, however long the lease is.
        let lease = now.saturating_add(LONGEST_PAUSE).unwrap_or(Timestamp::MAX);
        LockFile::new(self.runs.documents().clone(), &record.cluster).renew(run, lease).await?;
        let key = keys::hold(run);
        self.runs.documents().store().put(&key, token.into_bytes(), Condition::Unconditional).await.map_err(RunError::from)?;
        let orders: RollOrders = self.runs.document(run, orders::DOCUMENT).await?.unwrap_or_default();
        let note = "paused: `kopsline resume` or `kopsline abort` ends it";
        self.runs.change(run, |record| record.leave(Stage::Roll, StageState::Waiting, note, now)).await?;
        if !orders.paused || orders.aborted {
            self.release(run, &orders).await?;
        }
        self.publish(run).await;
        Ok(Answer { outcome: "held", approval: None, message: None })
    }

    async fn take(&self, run: &RunId, ordered: &Ordered) -> Result<RollOrders, Failure> {
        let change = |orders: Option<RollOrders>| {
            let before = orders.unwrap_or_default();
            let after = before.clone().take(ordered.clone());
            Ok::<_, std::convert::Infallible>(if after == before { Update::Keep(after) } else { Update::Put(after.clone(), after) })
        };
        Ok(self.runs.documents().update(&keys::document(run, orders::DOCUMENT), change).await?)
    }

    /// Wakes the task that waits for the end of the pause, if one does.
    async fn release(&self, run: &RunId, orders: &RollOrders) -> Result<(), Failure> {
        if let Some(token) = self.token(&keys::hold(run)).await? {
            // Too late is fine: it was woken before, and the step reads the orders by itself.
            self.tasks.answer(&token, if orders.aborted { Decision::Abort } else { Decision::Approve }).await?;
        }
        Ok(())
    }

    /// An abort answers what the roll asks, too: its questions are withdrawn, and what waits for an answer goes on.
    async fn overtake_questions(&self, run: &RunId, asked: &[ApprovalId]) -> Result<(), Failure> {
        for id in asked {
            let Some(question) = self.runs.approval(id).await? else { continue };
            if question.answer.is_some() || !matches!(question.gate, Gate::Checkpoint | Gate::Drain) {
                continue;
            }
            self.withdraw(id).await?;
            if let Some(token) = self.token(&keys::token(id)).await? {
                self.tasks.answer(&token, Decision::Abort).await?;
            }
            tracing::info!(%run, approval = %id, "overtaken by an abort");
        }
        Ok(())
    }

    /// Notes the answer to a question of the roll where its next step finds it.
    pub(crate) async fn note_answer(&self, run: &RunId, question: &str, answer: Answered) -> Result<(), Failure> {
        let change = |orders: Option<RollOrders>| {
            let mut orders = orders.unwrap_or_default();
            let known = orders.answers.insert(question.to_owned(), answer.clone()) == Some(answer.clone());
            Ok::<_, std::convert::Infallible>(if known { Update::Keep(()) } else { Update::Put(orders, ()) })
        };
        Ok(self.runs.documents().update(&keys::document(run, orders::DOCUMENT), change).await?)
    }

    /// A task token that was kept.
    pub(crate) async fn token(&self, key: &str) -> Result<Option<SecretString>, Failure> {
        let token = self.runs.documents().store().get(key).await.map_err(RunError::from)?;
        Ok(token.and_then(|object| String::from_utf8(object.bytes).ok()).map(SecretString::from))
    }
}

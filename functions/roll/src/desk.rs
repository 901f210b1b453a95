//! What people order, and the audit trail, in the run's record.

use async_trait::async_trait;
use jiff::Timestamp;
use kopsline_core::window::closed_until;
use kopsline_core::{Answered, Decision, Event, Gate, RollOrders, Run, Stage, orders};
use kopsline_roller::{Desk, DeskError};
use kopsline_rolling::{About, Answer, Choice, Control, Question, RollEvent};
use kopsline_state::{RunError, Runs};

/// The gate at which a question of the roll is put.
pub(crate) fn gate_of(question: &Question) -> Gate {
    match question.about {
        About::StuckDrain { .. } => Gate::Drain,
        About::Checkpoint { .. } | About::NextInstance { .. } => Gate::Checkpoint,
    }
}

/// What an answer given at a gate means to the planner.
fn choice(decision: Decision) -> Choice {
    match decision {
        Decision::Approve => Choice::Continue,
        Decision::Reject | Decision::Abort => Choice::Abort,
        Decision::Wait => Choice::Wait,
        Decision::Skip => Choice::Skip,
        Decision::Force => Choice::Force,
        Decision::Fail => Choice::Fail,
    }
}

/// `roll/orders.json` and `events/` of a run.
pub(crate) struct RecordDesk<'a> {
    runs: &'a Runs,
    run: &'a Run,
}

impl<'a> RecordDesk<'a> {
    pub(crate) fn new(runs: &'a Runs, run: &'a Run) -> Self {
        Self { runs, run }
    }
}

#[async_trait]
impl Desk for RecordDesk<'_> {
    async fn control(&self, now: Timestamp) -> Result<Control, DeskError> {
        let orders: RollOrders = self.runs.document(&self.run.id, orders::DOCUMENT).await.map_err(failed)?.unwrap_or_default();
        let aborted = orders.aborted.then(|| {
            let order = orders.history.iter().rev().find(|ordered| ordered.order == kopsline_core::Order::Abort);
            let by = order.and_then(|ordered| ordered.by.clone()).unwrap_or_else(|| "an unnamed caller".to_owned());
            let comment = order.and_then(|ordered| ordered.comment.clone()).map(|comment| format!(": {comment}")).unwrap_or_default();
            format!("by {by}{comment}")
        });
        let answer =
            |(question, given): (String, Answered)| Answer { question, choice: choice(given.decision), by: given.by.unwrap_or_default() };
        Ok(Control {
            paused: orders.paused,
            aborted,
            closed_until: closed_until(&self.run.cluster.change_windows, now),
            answers: orders.answers.into_iter().map(answer).collect(),
        })
    }

    async fn tell(&self, events: &[RollEvent]) -> Result<(), DeskError> {
        let event =
            |event: &RollEvent| Event { at: event.at, stage: Some(Stage::Roll), what: event.word().to_owned(), message: event.to_string() };
        let events: Vec<_> = events.iter().map(event).collect();
        self.runs.happened(&self.run.id, "rolling", &events).await.map_err(failed)
    }
}

fn failed(error: RunError) -> DeskError {
    DeskError { transient: error.is_transient(), source: Box::new(error) }
}

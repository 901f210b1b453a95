//! Asks for approvals, takes decisions and orders, and closes runs. The only function that may read task tokens.

mod approvals;
mod finish;
mod orders;
mod tasks;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use kopsline_core::approval::{Decision, Gate};
use kopsline_core::{ApprovalId, Failure, Order, Ordered, RunId};
use kopsline_lambda::clients::{self, Origin};
use kopsline_lambda::{serve, telemetry};
use kopsline_state::Runs;
use serde::{Deserialize, Serialize};

use crate::finish::Ending;
use crate::tasks::{StepFunctions, Tasks};

/// What the state machines ask for.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
enum Request {
    /// Put a question to a person; the task behind `token` waits for the answer.
    Ask { run: RunId, gate: Gate, token: String, timeout_seconds: u64 },
    /// Answer a question.
    Decide { approval: ApprovalId, decision: Decision, comment: Option<String>, by: Option<String>, execution: String },
    /// Pause, resume or abort a rolling update.
    Order { run: RunId, order: Order, comment: Option<String>, by: Option<String>, execution: String },
    /// Keep a paused rolling update; the task behind `token` waits for the order to resume or to abort.
    Hold { run: RunId, token: String },
    /// Tell people how far a run is.
    Tell { run: RunId },
    /// Close a run.
    Finish {
        run: RunId,
        #[serde(flatten)]
        ending: Ending,
    },
}

/// What the function answers.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Answer {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<ApprovalId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// The clients behind the requests.
struct Console {
    runs: Runs,
    tasks: Box<dyn Tasks>,
    origin: Origin,
}

impl Console {
    async fn handle(&self, request: Request, now: Timestamp) -> Result<Answer, Failure> {
        match request {
            Request::Ask { run, gate, token, timeout_seconds } => self.ask(&run, gate, token, timeout_seconds, now).await,
            Request::Decide { approval, decision, comment, by, execution } => {
                let answer = kopsline_core::approval::Answer { decision, by, comment, at: now, execution };
                self.decide(&approval, answer).await
            }
            Request::Order { run, order, comment, by, execution } => {
                self.order(&run, Ordered { order, by, comment, at: now, execution }).await
            }
            Request::Hold { run, token } => self.hold(&run, token, now).await,
            Request::Tell { run } => self.tell(&run).await,
            Request::Finish { run, ending } => self.finish(&run, ending, now).await,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    let aws = clients::aws().await;
    let console = Arc::new(Console {
        runs: clients::runs(&aws)?,
        tasks: Box::new(StepFunctions::new(&aws)),
        origin: Origin::from_settings(&aws).await?,
    });
    serve("console", |request: Request, _| {
        let console = Arc::clone(&console);
        async move { console.handle(request, Timestamp::now()).await }
    })
    .await
}

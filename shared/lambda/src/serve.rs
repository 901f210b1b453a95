//! The frame around every function's handler.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use kopsline_core::Failure;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::Instrument;

use crate::metrics;

/// When Lambda will end the invocation.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(SystemTime);

impl Deadline {
    /// A deadline at a moment.
    pub fn at(moment: SystemTime) -> Self {
        Self(moment)
    }

    /// The time that is left, less `reserve` for recording what happened.
    pub fn remaining(&self, reserve: Duration) -> Duration {
        self.0.duration_since(SystemTime::now()).unwrap_or_default().saturating_sub(reserve)
    }
}

/// Runs a function: reads its event, calls the handler within a span of run, stage and cluster, and gives its failure to Step
/// Functions under the name that the state machine routes by.
pub async fn serve<E, A, F>(function: &'static str, handler: impl Fn(E, Deadline) -> F) -> anyhow::Result<()>
where
    E: DeserializeOwned,
    A: Serialize,
    F: Future<Output = Result<A, Failure>>,
{
    let cold = AtomicBool::new(true);
    let serve_one = |event: LambdaEvent<Value>| {
        let cold = cold.swap(false, Ordering::Relaxed);
        let deadline = Deadline(event.context.deadline());
        let run = event.payload.get("run").or_else(|| event.payload.get("approval")).and_then(Value::as_str).unwrap_or("-");
        let action = event.payload.get("action").and_then(Value::as_str).unwrap_or(function);
        let span = tracing::info_span!("invocation", run, stage = action, request_id = %event.context.request_id);
        let handler = &handler;
        async move {
            let started = Instant::now();
            let answer = match serde_json::from_value::<E>(event.payload) {
                Ok(event) => handler(event, deadline).await,
                // serde's message names fields and types, never the values of strings it did not expect to hold secrets.
                Err(error) => Err(Failure::bad_input(format!("the event of {function} cannot be read: {error}"))),
            };
            let answer = answer.and_then(|answer| {
                serde_json::to_value(answer)
                    .map_err(|error| Failure::bad_input(format!("the answer of {function} cannot be written: {error}")))
            });
            let outcome = match &answer {
                Ok(answer) => answer.get("outcome").and_then(Value::as_str).unwrap_or("ok").to_owned(),
                Err(failure) => failure.kind.error_name().to_owned(),
            };
            metrics::invocation(function, &outcome, started.elapsed(), cold, Timestamp::now());
            match answer {
                Ok(answer) => {
                    tracing::info!(outcome, "done");
                    Ok(answer)
                }
                Err(failure) => {
                    tracing::error!(error = outcome, cause = %failure.message, "failed");
                    Err(Diagnostic { error_type: outcome, error_message: failure.message })
                }
            }
        }
        .instrument(span)
    };
    lambda_runtime::run(service_fn(serve_one)).await.map_err(|error| anyhow::anyhow!("the Lambda runtime ended: {error}"))
}

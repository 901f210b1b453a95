//! Executions of state machines: started, and awaited where a person waits for the answer.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use aws_sdk_sfn::Client;
use aws_sdk_sfn::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::Value;
use tokio::time::Instant;

/// How often an execution is looked at: a person waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How an execution ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// With this output.
    Succeeded(Value),
    /// With this error and its cause in words.
    Failed {
        /// The error's name.
        error: String,
        /// What happened.
        cause: String,
    },
}

/// Starts an execution and returns its ARN. The same name with the same input is the running execution, not an error.
pub(crate) async fn start(client: &Client, machine: &str, name: &str, input: &Value) -> anyhow::Result<String> {
    let answer = client.start_execution().state_machine_arn(machine).name(name).input(input.to_string()).send().await;
    match answer {
        Ok(started) => Ok(started.execution_arn),
        Err(error) => Err(aws_error(&error)).with_context(|| format!("StartExecution of {machine} failed")),
    }
}

/// The ARN of the execution with this name of a state machine.
pub(crate) fn arn(machine: &str, name: &str) -> String {
    format!("{}:{name}", machine.replacen(":stateMachine:", ":execution:", 1))
}

/// Waits until an execution has ended.
pub(crate) async fn wait(client: &Client, execution: &str, at_most: Duration) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + at_most;
    loop {
        let described = client.describe_execution().execution_arn(execution).send().await;
        let described = described.map_err(|error| aws_error(&error)).with_context(|| format!("DescribeExecution of {execution} failed"))?;
        match described.status() {
            ExecutionStatus::Running | ExecutionStatus::PendingRedrive => {}
            ExecutionStatus::Succeeded => {
                let output = described.output().unwrap_or("null");
                return Ok(Outcome::Succeeded(
                    serde_json::from_str(output).with_context(|| format!("the output of {execution} is not JSON"))?,
                ));
            }
            status => {
                let error = described.error().unwrap_or_else(|| status.as_str()).to_owned();
                return Ok(Outcome::Failed { error, cause: cause_text(described.cause().unwrap_or_default()) });
            }
        }
        if Instant::now() > deadline {
            bail!("{execution} has not ended within {} s; look at it in the Step Functions console", at_most.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A failure's cause in words. Lambda wraps a function's message into JSON.
pub(crate) fn cause_text(cause: &str) -> String {
    let message = serde_json::from_str::<Value>(cause).ok().and_then(|value| Some(value.get("errorMessage")?.as_str()?.to_owned()));
    message.unwrap_or_else(|| cause.to_owned())
}

/// What AWS said, in a line: its code and message, or why no answer came.
pub(crate) fn aws_error<E>(error: &SdkError<E>) -> anyhow::Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    if let Some(code) = error.code() {
        return anyhow!("{code}: {}", error.message().unwrap_or("no message"));
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let frame = inner.to_string();
        if !text.ends_with(&frame) {
            text = format!("{text}: {frame}");
        }
        cause = inner.source();
    }
    anyhow!(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executions_arn_follows_from_its_machine() {
        let machine = "arn:aws:states:us-east-1:000000000000:stateMachine:kopsline-pipeline";
        assert_eq!(arn(machine, "demo-1"), "arn:aws:states:us-east-1:000000000000:execution:kopsline-pipeline:demo-1");
    }

    #[test]
    fn a_functions_message_is_unwrapped() {
        assert_eq!(cause_text(r#"{"errorType":"Kopsline.Conflict","errorMessage":"it expired"}"#), "it expired");
        assert_eq!(cause_text("The input must look like {}"), "The input must look like {}");
        assert_eq!(cause_text(r#"{"other": 1}"#), r#"{"other": 1}"#);
    }
}

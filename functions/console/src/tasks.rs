//! Step Functions tasks that wait for an answer.

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sfn::error::{DisplayErrorContext, ProvideErrorMetadata};
use kopsline_core::{Decision, Failure, FailureKind};
use secrecy::{ExposeSecret, SecretString};

/// Whether a task took the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It goes on.
    Yes,
    /// It no longer waits: it was answered before, timed out, or its execution ended.
    TooLate,
}

/// Tasks by their tokens.
#[async_trait]
pub(crate) trait Tasks: Send + Sync {
    /// Answers a task.
    async fn answer(&self, token: &SecretString, decision: Decision) -> Result<Taken, Failure>;
}

/// Step Functions itself.
pub(crate) struct StepFunctions {
    client: aws_sdk_sfn::Client,
}

impl StepFunctions {
    pub(crate) fn new(aws: &SdkConfig) -> Self {
        Self { client: aws_sdk_sfn::Client::new(aws) }
    }
}

#[async_trait]
impl Tasks for StepFunctions {
    async fn answer(&self, token: &SecretString, decision: Decision) -> Result<Taken, Failure> {
        let output = serde_json::json!({ "decision": decision }).to_string();
        let sent = self.client.send_task_success().task_token(token.expose_secret()).output(output).send().await;
        match sent {
            Ok(_) => Ok(Taken::Yes),
            // What a second answer gets, too.
            Err(error) if matches!(error.code(), Some("TaskTimedOut" | "TaskDoesNotExist")) => Ok(Taken::TooLate),
            // The request holds the token; the error's context does not.
            Err(error) => Err(Failure::new(FailureKind::Transient, format!("SendTaskSuccess failed: {}", DisplayErrorContext(&error)))),
        }
    }
}

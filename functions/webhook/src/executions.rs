//! Step Functions executions of the pipeline.

use async_trait::async_trait;
use aws_sdk_sfn::error::{DisplayErrorContext, ProvideErrorMetadata};
use kopsline_core::{Failure, FailureKind, RunId};

/// Starts a run's execution. Starting one that was started before is no error, whether it still runs or has ended.
#[async_trait]
pub(crate) trait Executions: Send + Sync {
    async fn start(&self, run: &RunId) -> Result<(), Failure>;
}

/// The pipeline's state machine.
pub(crate) struct StateMachine {
    client: aws_sdk_sfn::Client,
    arn: String,
}

impl StateMachine {
    pub(crate) fn new(aws: &aws_config::SdkConfig, arn: String) -> Self {
        Self { client: aws_sdk_sfn::Client::new(aws), arn }
    }
}

#[async_trait]
impl Executions for StateMachine {
    async fn start(&self, run: &RunId) -> Result<(), Failure> {
        let input = serde_json::json!({ "run": run }).to_string();
        let started = self.client.start_execution().state_machine_arn(&self.arn).name(run.as_str()).input(input).send().await;
        match started {
            Ok(_) => Ok(()),
            // An execution of this name has ended: this run is over.
            Err(error) if error.code() == Some("ExecutionAlreadyExists") => Ok(()),
            Err(error) => {
                Err(Failure::new(FailureKind::Transient, format!("StartExecution of {run} failed: {}", DisplayErrorContext(&error))))
            }
        }
    }
}

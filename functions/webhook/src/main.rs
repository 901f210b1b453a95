//! Receives GitLab's deliveries and starts runs, behind a Lambda Function URL or an HTTP API.

mod executions;
mod receive;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use kopsline_gitlab::{Mode, Verifier};
use kopsline_lambda::clients::{self, Origin};
use kopsline_lambda::{metrics, settings, telemetry};
use lambda_http::{Body, Request, Response, service_fn};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::executions::StateMachine;
use crate::receive::{Answer, Receiver};

/// GitLab gives up after 10 s, and counts that as a failure of the webhook.
const GITLAB_PATIENCE: Duration = Duration::from_secs(8);

/// What the webhook's secret holds; several of a kind, separated by white space, while they are rotated.
#[derive(Deserialize)]
struct WebhookSecrets {
    #[serde(default)]
    signing_token: String,
    #[serde(default)]
    token: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    let receiver = Arc::new(receiver().await?);
    let handle = |request: Request| {
        let receiver = Arc::clone(&receiver);
        async move { Ok::<_, lambda_http::Error>(handle(&receiver, request).await?) }
    };
    lambda_http::run(service_fn(handle)).await.map_err(|error| anyhow::anyhow!("the Lambda runtime ended: {error}"))
}

async fn receiver() -> anyhow::Result<Receiver> {
    let aws = clients::aws().await;
    let secrets = clients::secret(&aws, settings::WEBHOOK_SECRET_ARN).await?;
    let verifier = verifier(&settings::required(settings::WEBHOOK_AUTH)?, &secrets)?;
    let max_body_bytes = settings::required(settings::MAX_BODY_BYTES)?
        .parse()
        .with_context(|| format!("the environment variable {} is no number of bytes", settings::MAX_BODY_BYTES))?;
    Ok(Receiver::new(
        verifier,
        max_body_bytes,
        settings::limits()?,
        clients::runs(&aws)?,
        Origin::from_settings(&aws).await?.impatient(),
        Box::new(StateMachine::new(&aws, settings::required(settings::PIPELINE_ARN)?)),
    ))
}

fn verifier(mode: &str, secrets: &SecretString) -> anyhow::Result<Verifier> {
    // Not serde's own message: it may quote the secret.
    let secrets: WebhookSecrets = serde_json::from_str(secrets.expose_secret())
        .map_err(|_| anyhow::anyhow!(r#"the webhook's secret must be JSON such as {{"signing_token": "whsec_...", "token": "..."}}"#))?;
    let split = |text: &str| text.split_whitespace().map(SecretString::from).collect::<Vec<_>>();
    let mode: Mode = mode.parse().with_context(|| format!("in the environment variable {}", settings::WEBHOOK_AUTH))?;
    Ok(Verifier::new(mode, &split(&secrets.signing_token), &split(&secrets.token))?)
}

async fn handle(receiver: &Receiver, request: Request) -> anyhow::Result<Response<Body>> {
    let started = Instant::now();
    let now = Timestamp::now();
    let (head, body) = request.into_parts();
    let answer = match tokio::time::timeout(GITLAB_PATIENCE, receiver.receive(&head.method, &head.headers, &body, now)).await {
        Ok(answer) => answer,
        Err(_) => Answer::unavailable(format!("not done within {} s; deliver again", GITLAB_PATIENCE.as_secs())),
    };
    metrics::invocation("webhook", answer.outcome, started.elapsed(), false, now);
    let response = Response::builder().status(answer.status).header("content-type", "application/json");
    Ok(response.body(Body::Text(answer.body.to_string()))?)
}

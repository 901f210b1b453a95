//! Settings from the environment, which `template.yaml` fills. A missing or wrong one says its name and its remedy at the
//! cold start, not in the middle of a run.

use std::env;

use anyhow::{Context, anyhow, bail};
use kopsline_core::config::Limits;
use kopsline_core::ids::StateStoreUri;

/// The bucket of runs, approvals and locks.
pub const RUN_BUCKET: &str = "KOPSLINE_RUN_BUCKET";
/// The ARN of the `pipeline` state machine.
pub const PIPELINE_ARN: &str = "KOPSLINE_PIPELINE_ARN";
/// GitLab's address; `file:///folder` stands for local repositories named by their project paths.
pub const GITLAB_URL: &str = "KOPSLINE_GITLAB_URL";
/// The Secrets Manager secret that holds GitLab's access token.
pub const GITLAB_TOKEN_SECRET_ARN: &str = "KOPSLINE_GITLAB_TOKEN_SECRET_ARN";
/// GitLab projects whose deliveries count, separated by commas.
pub const ALLOWED_PROJECTS: &str = "KOPSLINE_ALLOWED_PROJECTS";
/// kOps state stores that may be written, separated by commas.
pub const STATE_STORES: &str = "KOPSLINE_STATE_STORES";
/// How deliveries prove themselves: `signed`, `token` or `either`.
pub const WEBHOOK_AUTH: &str = "KOPSLINE_WEBHOOK_AUTH";
/// The Secrets Manager secret that holds the webhook's secrets.
pub const WEBHOOK_SECRET_ARN: &str = "KOPSLINE_WEBHOOK_SECRET_ARN";
/// The largest delivery that is read, in bytes.
pub const MAX_BODY_BYTES: &str = "KOPSLINE_MAX_BODY_BYTES";
/// Where kops binaries come from, separated by commas.
pub const KOPS_SOURCE: &str = "KOPSLINE_KOPS_SOURCE";
/// kops' feature flags; they must be the same in every run.
pub const KOPS_FEATURE_FLAGS: &str = "KOPSLINE_KOPS_FEATURE_FLAGS";
/// Where kops binaries are kept between invocations.
pub const CACHE_DIR: &str = "KOPSLINE_CACHE_DIR";

/// A setting that must be there.
pub fn required(name: &str) -> anyhow::Result<String> {
    optional(name).ok_or_else(|| anyhow!("the environment variable {name} is not set: deploy with template.yaml, which sets it"))
}

/// A setting that may be left out or empty.
pub fn optional(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A setting that is a comma-separated list.
pub fn list(name: &str) -> Vec<String> {
    let text = optional(name).unwrap_or_default();
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The deployment's limits, which win over what a repository says.
pub fn limits() -> anyhow::Result<Limits> {
    let state_stores = list(STATE_STORES)
        .iter()
        .map(|uri| StateStoreUri::new(uri).with_context(|| format!("in the environment variable {STATE_STORES}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if state_stores.is_empty() {
        bail!("the environment variable {STATE_STORES} names no state store: set the template's StateStores parameter");
    }
    Ok(Limits { projects: list(ALLOWED_PROJECTS), state_stores })
}

//! Clients as every function makes them: with timeouts, bounded retries with jitter, and secrets that do not print.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use kopsline_core::{ClusterConfig, Failure};
use kopsline_gitlab::{GitLab, GitLabSource, GitRepository, Retry, Source, SourceError};
use kopsline_kops::{Arch, Environment, KopsBinaries, Runner, Timeouts};
use kopsline_state::{Documents, Runs, S3Store, S3Stores, s3};
use secrecy::SecretString;

use crate::settings;

/// The most that kept kops binaries may take, in bytes: a few versions, of about 200 MB each.
const KOPS_CACHE_LIMIT: u64 = 768 * 1024 * 1024;

/// The SDK's configuration: credentials and region from the environment, a bound on every attempt and on the whole.
pub async fn aws() -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(Duration::from_secs(15))
        .operation_timeout(Duration::from_secs(45))
        .build();
    let retries = RetryConfig::standard().with_max_attempts(4);
    aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts).retry_config(retries).load().await
}

/// The run bucket's records.
pub fn runs(aws: &SdkConfig) -> anyhow::Result<Runs> {
    let bucket = settings::required(settings::RUN_BUCKET)?;
    Ok(Runs::new(Documents::new(Arc::new(S3Store::new(s3::client(aws), bucket, "")))))
}

/// The kOps state stores.
pub fn state_stores(aws: &SdkConfig) -> S3Stores {
    S3Stores::new(s3::client(aws))
}

/// The kops binaries, from `KOPSLINE_KOPS_SOURCE`: `s3://bucket[/prefix]` and `https://` addresses with a release's layout,
/// tried in their order; kOps' own releases if it is empty.
pub fn kops(aws: &SdkConfig) -> anyhow::Result<KopsBinaries> {
    let cache = settings::optional(settings::CACHE_DIR).map_or_else(|| PathBuf::from(KopsBinaries::LAMBDA_CACHE), PathBuf::from);
    let sources = settings::list(settings::KOPS_SOURCE);
    let sources = if sources.is_empty() {
        vec![kopsline_kops::Source::official()?]
    } else {
        let source =
            |address: &String| kops_source(aws, address).with_context(|| format!("in the environment variable {}", settings::KOPS_SOURCE));
        sources.iter().map(source).collect::<anyhow::Result<_>>()?
    };
    Ok(KopsBinaries::new(cache, KOPS_CACHE_LIMIT, sources))
}

fn kops_source(aws: &SdkConfig, address: &str) -> anyhow::Result<kopsline_kops::Source> {
    let Some(place) = address.strip_prefix("s3://") else { return Ok(kopsline_kops::Source::release(address)?) };
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() {
        bail!("{address} names no bucket: write s3://<bucket>/<prefix>");
    }
    Ok(kopsline_kops::Source::store(Arc::new(S3Store::new(s3::client(aws), bucket, prefix.trim_matches('/')))))
}

/// A runner of the cluster's pinned kops, checked to be of that version. No command may take longer than `limit`, which
/// is what the invocation has left.
pub async fn kops_runner(binaries: &KopsBinaries, cluster: &ClusterConfig, limit: Duration) -> Result<Runner, Failure> {
    let kops = binaries.ensure(&cluster.kops.version, Arch::current(), cluster.kops.sha256.as_deref()).await?;
    let mut environment = Environment::of_this_process().in_region(&cluster.region);
    // kops' own name is for runs on a desk; a deployment sets Kopsline's.
    if let Some(flags) = settings::optional(settings::KOPS_FEATURE_FLAGS).or_else(|| settings::optional("KOPS_FEATURE_FLAGS")) {
        environment = environment.with_feature_flags(&flags);
    }
    let runner = Runner::new(kops, environment, std::env::temp_dir()).with_timeouts(capped(Timeouts::default(), limit));
    runner.check_version().await?;
    Ok(runner)
}

fn capped(usual: Timeouts, limit: Duration) -> Timeouts {
    Timeouts { local: usual.local.min(limit), replace: usual.replace.min(limit), update: usual.update.min(limit) }
}

/// A secret of Secrets Manager, named by an environment variable. The error names the secret, never its value.
pub async fn secret(aws: &SdkConfig, variable: &str) -> anyhow::Result<SecretString> {
    let id = settings::required(variable)?;
    let answer = aws_sdk_secretsmanager::Client::new(aws).get_secret_value().secret_id(&id).send().await;
    let answer = answer.map_err(aws_sdk_secretsmanager::Error::from).with_context(|| {
        format!("the secret {id} cannot be read: give it a value, and the function's role secretsmanager:GetSecretValue on it")
    })?;
    let value = answer.secret_string.ok_or_else(|| anyhow!("the secret {id} is binary: store it as text"))?;
    Ok(SecretString::from(value))
}

/// Where manifests come from: a GitLab, or a folder of local repositories.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A GitLab.
    GitLab(GitLab),
    /// `file:///folder`: the project `a/b` is the repository `folder/a/b.git`.
    Folder(String),
}

impl Origin {
    /// As the settings say.
    pub async fn from_settings(aws: &SdkConfig) -> anyhow::Result<Self> {
        let url = settings::required(settings::GITLAB_URL)?;
        if let Some(folder) = url.strip_prefix("file://") {
            return Ok(Self::Folder(folder.trim_end_matches('/').to_owned()));
        }
        let token = secret(aws, settings::GITLAB_TOKEN_SECRET_ARN).await?;
        Ok(Self::GitLab(GitLab::new(&url, &token)?))
    }

    /// The same with short time-outs and one retry, for whoever is waited for.
    #[must_use]
    pub fn impatient(self) -> Self {
        match self {
            Self::GitLab(client) => {
                let retry = Retry { attempts: 2, base: Duration::from_millis(200), max_wait: Duration::from_secs(1) };
                Self::GitLab(client.with_timeout(Duration::from_secs(3)).with_retry(retry))
            }
            Self::Folder(folder) => Self::Folder(folder),
        }
    }

    /// A project's repository. The project was checked against the deployment's limits.
    pub async fn source(&self, project: &str) -> Result<Box<dyn Source>, SourceError> {
        Ok(match self {
            Self::GitLab(client) => Box::new(GitLabSource::new(client.clone(), project)),
            Self::Folder(folder) => Box::new(GitRepository::open(Path::new(&format!("{folder}/{project}.git"))).await?),
        })
    }

    /// GitLab, for reports; none for local repositories.
    pub fn gitlab(&self) -> Option<&GitLab> {
        match self {
            Self::GitLab(client) => Some(client),
            Self::Folder(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_kops_are_buckets_or_releases() {
        let aws = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
        let place = |address: &str| format!("{:?}", kops_source(&aws, address).unwrap());
        assert!(place("s3://artifacts").contains("s3://artifacts"));
        assert!(place("s3://artifacts/kops/").contains("s3://artifacts/kops"));
        assert!(place("https://mirror.example/kops/").contains("https://mirror.example/kops/"));
        for wrong in ["s3://", "s3:///kops", "http://mirror.example", "artifacts"] {
            assert!(kops_source(&aws, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn commands_get_no_more_time_than_is_left() {
        let (usual, limit) = (Timeouts::default(), Duration::from_secs(100));
        let capped = capped(usual, limit);
        assert_eq!((capped.local, capped.replace, capped.update), (usual.local, limit, limit));
    }
}

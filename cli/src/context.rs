//! Where things are, and the clients that reach them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use kopsline_state::{Documents, Runs, S3Store, s3};
use serde::{Deserialize, Serialize};

/// The folder of `kopsline local`, at the root of this repository; not committed.
pub(crate) const LOCAL_FOLDER: &str = ".kopsline";
/// Locked by the `kopsline local` that runs.
pub(crate) const LOCK_FILE: &str = "lock";
const LOCAL_FILE: &str = "local.json";

/// The options that say where things are. `sam deploy` prints the values as outputs of the stack.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PlaceArgs {
    /// The bucket of runs, approvals and locks (output `RunBucket`)
    #[arg(long, global = true, env = "KOPSLINE_RUN_BUCKET", value_name = "BUCKET", help_heading = "Where things are")]
    pub(crate) run_bucket: Option<String>,
    /// The pipeline's state machine (output `PipelineArn`)
    #[arg(long, global = true, env = "KOPSLINE_PIPELINE_ARN", value_name = "ARN", help_heading = "Where things are")]
    pub(crate) pipeline_arn: Option<String>,
    /// The state machine that answers approvals (output `ApproveArn`)
    #[arg(long, global = true, env = "KOPSLINE_APPROVE_ARN", value_name = "ARN", help_heading = "Where things are")]
    pub(crate) approve_arn: Option<String>,
    /// GitLab's address, for `doctor`
    #[arg(long, global = true, env = "KOPSLINE_GITLAB_URL", value_name = "URL", help_heading = "Where things are")]
    pub(crate) gitlab_url: Option<String>,
    /// Use what `kopsline local` runs on this machine
    #[arg(long, global = true, help_heading = "Where things are")]
    pub(crate) local: bool,
}

/// What `kopsline local` runs, as it tells other processes of the same user. The credentials are the emulator's, made up
/// and worth nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalDeployment {
    /// The emulated region.
    pub(crate) region: String,
    /// Emulated AWS but for Step Functions.
    pub(crate) aws_url: String,
    /// Emulated Step Functions.
    pub(crate) sfn_url: String,
    /// The run bucket.
    pub(crate) run_bucket: String,
    /// The pipeline's state machine.
    pub(crate) pipeline_arn: String,
    /// The state machine that answers approvals.
    pub(crate) approve_arn: String,
    /// The GitLab stand-in.
    pub(crate) gitlab_url: String,
    /// The kops binary that the functions run.
    pub(crate) kops: PathBuf,
    /// The environment in which kops finds the emulated AWS.
    pub(crate) kops_env: BTreeMap<String, String>,
}

impl LocalDeployment {
    /// Writes the description for other processes.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(LOCAL_FILE);
        std::fs::write(&path, serde_json::to_vec_pretty(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the description of what does not run any more.
    pub(crate) fn forget(folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(LOCAL_FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Reads the description from `.kopsline/` here or in a folder above.
    fn find() -> anyhow::Result<Self> {
        let here = std::env::current_dir().context("cannot tell the current folder")?;
        let found = here.ancestors().map(|folder| folder.join(LOCAL_FOLDER)).find(|folder| folder.join(LOCAL_FILE).is_file());
        let folder = found.with_context(|| {
            format!("no {LOCAL_FOLDER}/{LOCAL_FILE} here or above: `kopsline local` writes it while it runs; start that first, in another terminal")
        })?;
        Self::read(&folder)
    }

    fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(LOCAL_FILE);
        // Who runs the deployment holds the lock; the kernel takes it from one that was killed.
        let free = File::open(folder.join(LOCK_FILE)).is_ok_and(|lock| lock.try_lock_shared().is_ok());
        if free {
            bail!("{} is left over from a `kopsline local` that was killed: start it again", path.display());
        }
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not of this version of kopsline; start `kopsline local` again", path.display()))
    }

    fn credentials(&self) -> anyhow::Result<Credentials> {
        let value = |name: &str| self.kops_env.get(name).cloned().with_context(|| format!("{LOCAL_FILE} lacks {name}"));
        Ok(Credentials::new(value("AWS_ACCESS_KEY_ID")?, value("AWS_SECRET_ACCESS_KEY")?, None, None, "kopsline local"))
    }
}

/// Clients and addresses for one command.
#[derive(Debug)]
pub(crate) struct Context {
    place: PlaceArgs,
    local: Option<LocalDeployment>,
    /// The AWS settings that every client starts from.
    pub(crate) sdk: SdkConfig,
}

impl Context {
    /// The context of a command: the local deployment with `--local`, else AWS as the usual environment describes it.
    pub(crate) async fn new(place: &PlaceArgs) -> anyhow::Result<Self> {
        if place.local {
            return Self::of_local(LocalDeployment::find()?).await;
        }
        let sdk = aws_config::defaults(BehaviorVersion::latest()).load().await;
        Ok(Self { place: place.clone(), local: None, sdk })
    }

    /// The context of a local deployment.
    pub(crate) async fn of_local(local: LocalDeployment) -> anyhow::Result<Self> {
        let sdk = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(local.region.clone()))
            .endpoint_url(&local.aws_url)
            .credentials_provider(SharedCredentialsProvider::new(local.credentials()?))
            .load()
            .await;
        let place = PlaceArgs {
            run_bucket: Some(local.run_bucket.clone()),
            pipeline_arn: Some(local.pipeline_arn.clone()),
            approve_arn: Some(local.approve_arn.clone()),
            gitlab_url: Some(local.gitlab_url.clone()),
            local: true,
        };
        Ok(Self { place, local: Some(local), sdk })
    }

    /// The local deployment, if it is one.
    pub(crate) fn local(&self) -> Option<&LocalDeployment> {
        self.local.as_ref()
    }

    /// The run bucket's name.
    pub(crate) fn run_bucket(&self) -> anyhow::Result<&str> {
        needed(self.place.run_bucket.as_deref(), "--run-bucket", "KOPSLINE_RUN_BUCKET", "RunBucket")
    }

    /// The pipeline's ARN.
    pub(crate) fn pipeline_arn(&self) -> anyhow::Result<&str> {
        needed(self.place.pipeline_arn.as_deref(), "--pipeline-arn", "KOPSLINE_PIPELINE_ARN", "PipelineArn")
    }

    /// The ARN of the state machine that answers approvals.
    pub(crate) fn approve_arn(&self) -> anyhow::Result<&str> {
        needed(self.place.approve_arn.as_deref(), "--approve-arn", "KOPSLINE_APPROVE_ARN", "ApproveArn")
    }

    /// GitLab's address, if it was given.
    pub(crate) fn gitlab_url(&self) -> Option<&str> {
        self.place.gitlab_url.as_deref()
    }

    /// The records of runs.
    pub(crate) fn runs(&self) -> anyhow::Result<Runs> {
        let store = S3Store::new(s3::client(&self.sdk), self.run_bucket()?, "");
        Ok(Runs::new(Documents::new(Arc::new(store))))
    }

    /// Step Functions.
    pub(crate) fn step_functions(&self) -> aws_sdk_sfn::Client {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(3))
            .operation_attempt_timeout(Duration::from_secs(10))
            .operation_timeout(Duration::from_secs(40))
            .build();
        let mut builder = aws_sdk_sfn::config::Builder::from(&self.sdk)
            .retry_config(RetryConfig::standard().with_max_attempts(4))
            .timeout_config(timeouts);
        if let Some(local) = &self.local {
            builder.set_endpoint_url(Some(local.sfn_url.clone()));
        }
        aws_sdk_sfn::Client::from_conf(builder.build())
    }
}

fn needed<'a>(value: Option<&'a str>, flag: &str, variable: &str, output: &str) -> anyhow::Result<&'a str> {
    value.filter(|value| !value.is_empty()).with_context(|| {
        format!("{flag} is not given: set it or {variable} to the stack's output {output}, or use --local beside `kopsline local`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_place_names_its_remedies() {
        let error = needed(Some(""), "--run-bucket", "KOPSLINE_RUN_BUCKET", "RunBucket").unwrap_err().to_string();
        for word in ["--run-bucket", "KOPSLINE_RUN_BUCKET", "RunBucket", "--local"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn a_local_deployment_reads_back_and_gives_a_context() {
        let folder = tempfile::tempdir().unwrap();
        let env =
            [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let local = LocalDeployment {
            region: "us-east-1".into(),
            aws_url: "http://127.0.0.1:1".into(),
            sfn_url: "http://127.0.0.1:2".into(),
            run_bucket: "runs".into(),
            pipeline_arn: "arn:pipeline".into(),
            approve_arn: "arn:approve".into(),
            gitlab_url: "http://127.0.0.1:3".into(),
            kops: "/kops".into(),
            kops_env: env.into(),
        };
        local.write(folder.path()).unwrap();
        let lock = File::create(folder.path().join(LOCK_FILE)).unwrap();
        lock.try_lock().unwrap();
        assert_eq!(LocalDeployment::read(folder.path()).unwrap(), local);
        drop(lock);
        assert!(LocalDeployment::read(folder.path()).unwrap_err().to_string().contains("killed"));
        LocalDeployment::forget(folder.path()).unwrap();
        LocalDeployment::forget(folder.path()).unwrap();
        let context = Context::of_local(local).await.unwrap();
        assert_eq!((context.run_bucket().unwrap(), context.approve_arn().unwrap()), ("runs", "arn:approve"));
        assert_eq!(context.sdk.endpoint_url(), Some("http://127.0.0.1:1"));
    }
}

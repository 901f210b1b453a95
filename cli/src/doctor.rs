//! `kopsline doctor`: whether everything that Kopsline needs is there, and what to do about what is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use aws_sdk_s3::config::ProvideCredentials;
use aws_sdk_s3::types::BucketVersioningStatus;
use aws_sdk_sfn::types::StateMachineStatus;
use kopsline_core::config::FILE_NAME;
use kopsline_kops::Arch;
use kopsline_state::s3;
use serde::Serialize;
use tokio::process::Command;

use crate::context::Context;
use crate::executions::aws_error;
use crate::kops::{KopsArgs, Place};
use crate::local::project::Project;
use crate::output::{self, Format, Paint, Style, Table};
use crate::{Ended, NOT_AS_WISHED, clusters};

/// How long anything may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options of `kopsline doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A working tree of the clusters' repository, for the versions of kops that it pins
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    #[command(flatten)]
    kops: KopsArgs,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Ok,
    /// Something does not work without it, other things do.
    Warn,
    Fail,
}

/// A check and what came of it.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Runs the command.
pub(crate) async fn run(context: &Context, format: Format, args: &Args) -> anyhow::Result<Ended> {
    let mut checks = vec![region(context), credentials(context).await, run_bucket(context).await];
    checks.push(state_machine(context, "pipeline", context.pipeline_arn()).await);
    checks.push(state_machine(context, "approve", context.approve_arn()).await);
    checks.push(kops(context, args).await);
    checks.push(gitlab(context).await);
    checks.extend(local_tools().await);
    match format {
        Format::Json => output::json(&checks)?,
        Format::Text => output::print(&describe(&checks, Style::detect())),
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { Ended::With(NOT_AS_WISHED) } else { Ended::Well })
}

fn region(context: &Context) -> Check {
    match context.sdk.region() {
        Some(region) => Check::ok("region", region.as_ref()),
        None => Check::fail("region", "no AWS region is configured", "set AWS_REGION, or region in your profile"),
    }
}

async fn credentials(context: &Context) -> Check {
    const REMEDY: &str = "log in (`aws configure`, `aws sso login` and `aws configure export-credentials`), or set AWS_PROFILE";
    let Some(provider) = context.sdk.credentials_provider() else {
        return Check::fail("credentials", "no AWS credentials are configured", REMEDY);
    };
    match tokio::time::timeout(PATIENCE, provider.provide_credentials()).await {
        Ok(Ok(_)) => Check::ok("credentials", "there are some"),
        Ok(Err(error)) => Check::fail("credentials", error.to_string(), REMEDY),
        Err(_) => Check::fail("credentials", format!("none came within {} s", PATIENCE.as_secs()), REMEDY),
    }
}

async fn run_bucket(context: &Context) -> Check {
    const NAME: &str = "run bucket";
    let bucket = match context.run_bucket() {
        Ok(bucket) => bucket,
        Err(error) => return Check::fail(NAME, "it is not known", error.to_string()),
    };
    match s3::client(&context.sdk).get_bucket_versioning().bucket(bucket).send().await {
        Ok(versioning) if versioning.status() == Some(&BucketVersioningStatus::Enabled) => Check::ok(NAME, format!("{bucket}, versioned")),
        Ok(_) => {
            Check::warn(NAME, format!("{bucket} is not versioned"), "enable versioning, so that records cannot be lost: template.yaml does")
        }
        Err(error) => Check::fail(
            NAME,
            format!("{bucket}: {}", aws_error(&error)),
            "compare its name with the stack's output RunBucket, and give yourself s3:GetBucketVersioning and s3:GetObject on it",
        ),
    }
}

async fn state_machine(context: &Context, name: &'static str, arn: anyhow::Result<&str>) -> Check {
    let arn = match arn {
        Ok(arn) => arn,
        Err(error) => return Check::fail(name, "its state machine is not known", error.to_string()),
    };
    match context.step_functions().describe_state_machine().state_machine_arn(arn).send().await {
        Ok(machine) if machine.status().is_none_or(|status| *status == StateMachineStatus::Active) => Check::ok(name, arn),
        Ok(_) => Check::fail(name, format!("{arn} is being deleted"), "deploy again"),
        Err(error) => Check::fail(
            name,
            format!("{arn}: {}", aws_error(&error)),
            "compare it with the stack's outputs PipelineArn and ApproveArn, and give yourself states:DescribeStateMachine",
        ),
    }
}

/// Whether the pinned versions of kops can be had, by the checksums beside them: the binaries themselves are large.
async fn kops(context: &Context, args: &Args) -> Check {
    const NAME: &str = "kops";
    let file = match clusters::read(&args.directory) {
        Ok(file) => file,
        Err(_) if !args.directory.join(FILE_NAME).exists() => {
            let found = format!("no {FILE_NAME} in {}, so no version to look for", args.directory.display());
            return Check::warn(NAME, found, "run this in a clusters' repository, or name one with --directory");
        }
        Err(error) => return Check::fail(NAME, format!("{error:#}"), "correct the file"),
    };
    let mut versions: Vec<_> = file.clusters.iter().map(|cluster| cluster.kops.version.clone()).collect();
    versions.sort();
    versions.dedup();
    let places = match args.kops.places(context) {
        Ok(places) => places,
        Err(error) => return Check::fail(NAME, error.to_string(), "correct --kops-source"),
    };
    let mut found = Vec::new();
    for version in &versions {
        let key = format!("{version}/linux/{}/kops.sha256", Arch::current().as_str());
        let mut tried = Vec::new();
        let mut at = None;
        for place in &places {
            match published(place, &key).await {
                Ok(place) => {
                    at = Some(place);
                    break;
                }
                Err(error) => tried.push(format!("{error:#}")),
            }
        }
        let Some(at) = at else {
            let remedy = "put the binary and its kops.sha256 into the run bucket under kops/<version>/linux/<arch>/, or open the way to kOps' releases";
            return Check::fail(NAME, format!("{version} cannot be had: {}", tried.join("; ")), remedy);
        };
        found.push(format!("{version} from {at}"));
    }
    Check::ok(NAME, found.join(", "))
}

/// Where a published checksum was found.
async fn published(place: &Place, key: &str) -> anyhow::Result<String> {
    match place {
        Place::Store(store) => {
            store.get(key).await?.with_context(|| format!("{} is not there", store.place(key)))?;
            Ok(store.place(""))
        }
        Place::Release(base) => {
            let url = format!("{base}/{key}");
            let answer = client()?.get(&url).send().await.map_err(|error| anyhow::anyhow!("{url}: {}", without_url(error)))?;
            anyhow::ensure!(answer.status().is_success(), "{url}: HTTP {}", answer.status());
            Ok(base.clone())
        }
    }
}

async fn gitlab(context: &Context) -> Check {
    const NAME: &str = "GitLab";
    let Some(url) = context.gitlab_url() else {
        return Check::warn(NAME, "its address is not known", "set --gitlab-url or KOPSLINE_GITLAB_URL to have it checked");
    };
    let api = format!("{}/api/v4/version", url.trim_end_matches('/'));
    let answer = match client() {
        Ok(client) => client.get(&api).send().await.map_err(without_url),
        Err(error) => return Check::fail(NAME, error.to_string(), "this is a defect"),
    };
    match answer {
        // Without a token GitLab answers 401, which is an answer.
        Ok(answer) if !answer.status().is_server_error() => Check::ok(NAME, format!("{url} answers")),
        Ok(answer) => Check::fail(NAME, format!("{api}: HTTP {}", answer.status()), "look at GitLab's own status"),
        Err(error) => Check::fail(NAME, format!("{api}: {error}"), "check the address and the way to it"),
    }
}

fn client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder().timeout(PATIENCE).connect_timeout(Duration::from_secs(5)).build().context("cannot make an HTTP client")
}

/// The innermost cause, without the address, which the caller tells.
fn without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What `kopsline local` needs, where its repository is at hand.
async fn local_tools() -> Vec<Check> {
    let Ok(project) = Project::find(None) else { return Vec::new() };
    let mut checks = Vec::new();
    for (name, tool, argument, remedy) in [
        ("git", "git", "--version", "install git: `kopsline local` keeps repositories with it"),
        ("Rust", "cargo", "--version", "get Rust from https://rustup.rs: the functions are built with it"),
    ] {
        checks.push(match version_of(tool, argument).await {
            Some(version) => Check::ok(name, version),
            None => Check::warn(name, format!("{tool} does not run"), remedy),
        });
    }
    let pythons = project.python("STACK_PYTHON").and_then(|python| Ok((python, project.python("STACK_LOCALSTACK_PYTHON")?)));
    checks.push(match pythons {
        Ok((python, _)) => Check::ok("emulators", python.parent().and_then(Path::parent).unwrap_or(&python).display().to_string()),
        Err(error) => Check::warn("emulators", error.to_string(), "run tools/setup; only `kopsline local` and the tests need them"),
    });
    checks.push(match project.functions(None) {
        Ok(folder) => Check::ok("functions", format!("built in {}", folder.display())),
        Err(error) => Check::warn("functions", error.to_string(), "run tools/build; only `kopsline local` and the tests need them"),
    });
    checks
}

async fn version_of(tool: &str, argument: &str) -> Option<String> {
    let running = Command::new(tool).arg(argument).stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, running).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn describe(checks: &[Check], style: Style) -> String {
    let mut table = Table::headless();
    for check in checks {
        let (word, paint) = match check.verdict {
            Verdict::Ok => ("ok", Paint::Good),
            Verdict::Warn => ("warn", Paint::Attention),
            Verdict::Fail => ("fail", Paint::Bad),
        };
        table.row([(word.to_owned(), paint), (check.name.to_owned(), Paint::Bold), (check.found.clone(), Paint::Plain)]);
        if let Some(remedy) = &check.remedy {
            table.row([(String::new(), Paint::Plain), (String::new(), Paint::Plain), (format!("-> {remedy}"), Paint::Plain)]);
        }
    }
    table.render(style, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_not_ok_has_its_remedy() {
        let checks = [
            Check::ok("region", "eu-central-1"),
            Check::warn("GitLab", "its address is not known", "set it"),
            Check::fail("kops", "none", "get one"),
        ];
        assert_eq!(
            describe(&checks, Style::plain()),
            "ok    region  eu-central-1\nwarn  GitLab  its address is not known\n              -> set it\nfail  kops    none\n              -> get one\n"
        );
    }

    #[tokio::test]
    async fn what_does_not_answer_is_named() {
        let error =
            published(&Place::Release("http://127.0.0.1:1".into()), "1.36.2/linux/amd64/kops.sha256").await.unwrap_err().to_string();
        assert!(error.starts_with("http://127.0.0.1:1/1.36.2/linux/amd64/kops.sha256: "), "{error}");
        assert_eq!(version_of("no-such-tool", "--version").await, None);
    }
}

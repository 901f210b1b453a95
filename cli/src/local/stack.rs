//! The local stack as a child process: started, awaited, stopped, never left behind.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::context::LocalDeployment;
use crate::local::project::Kops;
use crate::progress::Progress;

/// How long the stack may take to stop by itself. It stops its own programs within 3 s, and kills what is left.
const STOP_AT_MOST: Duration = Duration::from_secs(20);
/// How much of what the stack said is shown when it fails.
const REMEMBERED_LINES: usize = 30;

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The Python that has the emulators.
    pub(crate) python: PathBuf,
    /// The Python that has Step Functions.
    pub(crate) localstack_python: PathBuf,
    /// The folder of the Python module `stack`.
    pub(crate) module: PathBuf,
    /// A fresh folder for logs, repositories and scratch files.
    pub(crate) home: PathBuf,
    /// The SAM template.
    pub(crate) template: PathBuf,
    /// The template's local values.
    pub(crate) values: PathBuf,
    /// The functions' binaries.
    pub(crate) functions: PathBuf,
    /// The kops that the functions find.
    pub(crate) kops: Kops,
    /// More options.
    pub(crate) more: Vec<String>,
}

/// Where everything is, as the stack reports it once it is ready.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Report {
    region: String,
    aws_url: String,
    sfn_url: String,
    /// The server of checksums that kops asks for.
    pub(crate) files_url: String,
    /// The GitLab stand-in.
    pub(crate) gitlab: GitLab,
    buckets: BTreeMap<String, String>,
    state_machines: BTreeMap<String, String>,
    kops_env: BTreeMap<String, String>,
    /// Resources of the template that are not emulated.
    pub(crate) not_created: Vec<String>,
}

/// The GitLab stand-in.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct GitLab {
    /// Its address.
    pub(crate) url: String,
    /// The project's path.
    pub(crate) project: String,
    /// The project's watched branch.
    pub(crate) default_branch: String,
    /// The project's bare repository.
    pub(crate) repository: PathBuf,
}

impl Report {
    /// What other `kopsline` commands need to know.
    pub(crate) fn deployment(&self, kops: &Kops) -> anyhow::Result<LocalDeployment> {
        let of = |map: &BTreeMap<String, String>, name: &str| {
            map.get(name)
                .cloned()
                .with_context(|| format!("template.yaml has no resource {name} any more; kopsline local is of another version"))
        };
        Ok(LocalDeployment {
            region: self.region.clone(),
            aws_url: self.aws_url.clone(),
            sfn_url: self.sfn_url.clone(),
            run_bucket: of(&self.buckets, "RunBucket")?,
            pipeline_arn: of(&self.state_machines, "Pipeline")?,
            approve_arn: of(&self.state_machines, "Approve")?,
            gitlab_url: self.gitlab.url.clone(),
            kops: kops.binary.clone(),
            kops_env: self.kops_env.clone(),
        })
    }
}

/// The running stack. It ends when this process does, however that ends: its standard input closes then.
#[derive(Debug)]
pub(crate) struct Stack {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
    said: VecDeque<String>,
    ready: bool,
}

impl Stack {
    /// Starts the stack; [`ready`](Self::ready) awaits it.
    pub(crate) fn spawn(plan: &Plan) -> anyhow::Result<Self> {
        let mut child = Command::new(&plan.python)
            .args(["-m", "stack", "up"])
            .arg("--home")
            .arg(&plan.home)
            .arg("--localstack-python")
            .arg(&plan.localstack_python)
            .arg("--template")
            .arg(&plan.template)
            .arg("--values")
            .arg(&plan.values)
            .arg("--functions")
            .arg(&plan.functions)
            .arg("--kops")
            .arg(format!("{}={}", plan.kops.version, plan.kops.binary.display()))
            .args(&plan.more)
            .env("PYTHONPATH", &plan.module)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C reaches this program alone, which then stops the stack in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", plan.python.display()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the stack has no standard output")?;
        let stderr = child.stderr.take().context("the stack has no standard error")?;
        let (stdout, stderr) = (BufReader::new(stdout).lines(), BufReader::new(stderr).lines());
        Ok(Self { child, stdin, stdout, stderr, said: VecDeque::new(), ready: false })
    }

    /// Returns when all of the stack is ready.
    pub(crate) async fn ready(&mut self, progress: &Progress) -> anyhow::Result<Report> {
        let line = loop {
            tokio::select! {
                line = self.stdout.next_line() => break line.context("cannot read what the stack says")?,
                Ok(Some(line)) = self.stderr.next_line() => {
                    progress.say(&format!("  {line}"));
                    remember(&mut self.said, line);
                }
            }
        };
        let Some(line) = line else { return Err(self.ended().await.context("the local stack did not start")) };
        self.ready = true;
        serde_json::from_str(&line).context("the stack's report is not what this version of kopsline reads")
    }

    /// Returns only when the stack ends by itself, which it should not.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        // A pipe nobody reads fills up, and then whoever writes to it waits for ever.
        while let Ok(Some(line)) = self.stderr.next_line().await {
            remember(&mut self.said, line);
        }
        let status = self.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        let said: Vec<String> = self.said.iter().map(|line| format!("  {line}")).collect();
        anyhow!("the local stack ended by itself ({status}):\n{}", said.join("\n"))
    }

    /// Stops the stack and everything it started; returns when nothing of it is left.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        if !self.ready {
            // While it starts it does not look at its input. The child that does its work outlives it and cleans up.
            self.child.start_kill().context("cannot stop the stack")?;
        }
        // The last process of the stack to end is the last that has its standard error.
        let gone = async { while let Ok(Some(_)) = self.stderr.next_line().await {} };
        if tokio::time::timeout(STOP_AT_MOST, gone).await.is_err() {
            self.child.kill().await.context("cannot kill the stack")?;
            bail!("the local stack did not stop within {} s and was killed", STOP_AT_MOST.as_secs());
        }
        self.child.wait().await.context("cannot wait for the stack")?;
        Ok(())
    }
}

fn remember(said: &mut VecDeque<String>, line: String) {
    said.push_back(line);
    if said.len() > REMEMBERED_LINES {
        said.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    const REPORT: &str = r#"{"region": "us-east-1", "aws_url": "http://127.0.0.1:1", "sfn_url": "http://127.0.0.1:2", "files_url": "http://127.0.0.1:3/files",
        "gitlab": {"url": "http://127.0.0.1:4", "project": "platform/clusters", "default_branch": "main", "repository": "/r.git", "token": "x"},
        "buckets": {"RunBucket": "runs"}, "state_machines": {"Pipeline": "arn:p", "Approve": "arn:a"}, "kops_env": {}, "not_created": [], "pids": {}}"#;

    /// A plan whose Python is a shell script.
    fn plan(folder: &Path, script: &str) -> Plan {
        let python = folder.join("python");
        std::fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        Plan {
            localstack_python: python.clone(),
            python,
            module: folder.into(),
            home: folder.join("home"),
            template: "template.yaml".into(),
            values: "values.json".into(),
            functions: "functions".into(),
            kops: kops(),
            more: Vec::new(),
        }
    }

    fn kops() -> Kops {
        Kops { binary: "/kops".into(), version: "1.36.2".into() }
    }

    #[tokio::test]
    async fn starts_reports_and_stops_when_its_input_closes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("report"), REPORT.replace('\n', " ")).unwrap();
        let script =
            format!("echo 'moto: ready' >&2\ncat {0}/report\necho\ncat >/dev/null\necho stopped >{0}/stopped", folder.path().display());
        let mut stack = Stack::spawn(&plan(folder.path(), &script)).unwrap();
        let report = stack.ready(&Progress::silent()).await.unwrap();
        let deployment = report.deployment(&kops()).unwrap();
        assert_eq!((deployment.run_bucket.as_str(), deployment.approve_arn.as_str()), ("runs", "arn:a"));
        assert!(!folder.path().join("stopped").exists());
        stack.stop().await.unwrap();
        assert!(folder.path().join("stopped").exists());
    }

    #[tokio::test]
    async fn stopping_while_it_starts_waits_for_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("(sleep 1; echo cleaned >{}/cleaned) &\nexec sleep 600", folder.path().display());
        let stack = Stack::spawn(&plan(folder.path(), &script)).unwrap();
        // Let the shell start its child; a shell killed before that has nothing to clean up either.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let stopped = stack.stop();
        tokio::time::timeout(STOP_AT_MOST * 2, stopped).await.unwrap().ok();
        assert!(folder.path().join("cleaned").exists());
    }

    #[tokio::test]
    async fn a_stack_that_does_not_start_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut stack = Stack::spawn(&plan(folder.path(), "echo 'error: no binary webhook' >&2\nexit 1")).unwrap();
        let error = stack.ready(&Progress::silent()).await.unwrap_err();
        assert!(format!("{error:#}").contains("no binary webhook"), "{error:#}");
    }

    #[tokio::test]
    async fn a_stack_that_ends_by_itself_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("report"), REPORT.replace('\n', " ")).unwrap();
        let script = format!("cat {}/report\necho\necho 'error: moto ended' >&2\nexit 1", folder.path().display());
        let mut stack = Stack::spawn(&plan(folder.path(), &script)).unwrap();
        stack.ready(&Progress::silent()).await.unwrap();
        let error = stack.ended().await.to_string();
        assert!(error.contains("moto ended") && error.contains("exit status: 1"), "{error}");
    }
}

//! `kopsline local`: all of Kopsline on one machine, with emulated AWS and a stand-in for GitLab.

mod cloud;
mod demo;
mod guide;
pub(crate) mod project;
mod repository;
mod roll;
mod stack;

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kopsline_core::{CommitId, RunState};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::project::Project;
use self::repository::Merged;
use self::stack::{Plan, Report, Stack};
use crate::context::{Context, LOCK_FILE, LocalDeployment};
use crate::output::{self, Format, Paint, Style};
use crate::progress::Progress;
use crate::{Ended, NOT_AS_WISHED, clusters};

/// How often the stand-in's repository is looked at for pushes, which GitLab notices at once.
const LOOK_FOR_PUSHES_EVERY: Duration = Duration::from_secs(1);
/// The exit code of a program that Ctrl-C ended (128 + SIGINT), as shells know it.
const INTERRUPTED: u8 = 130;

/// Options of `kopsline local`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Play the demonstration: a sample cluster is created by one merge and changed by the next
    #[arg(long)]
    demo: bool,
    /// Ask before each approval; without it the demonstration approves by itself
    #[arg(long, requires = "demo")]
    interactive: bool,
    /// Keep everything running after the demonstration, until Ctrl-C
    #[arg(long, requires = "demo")]
    keep: bool,
    /// A clusters' repository of your own, whose current commit is pushed and run
    #[arg(long, value_name = "DIR", conflicts_with = "demo")]
    repository: Option<PathBuf>,
    /// Kopsline's own repository, if it is not the current folder
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// The functions' binaries, if not of the newest build
    #[arg(long, value_name = "DIR", env = "KOPSLINE_FUNCTIONS")]
    functions: Option<PathBuf>,
    /// The kops that the functions run, if not the one that tools/kops/get gives
    #[arg(long, value_name = "FILE", env = "STACK_KOPS")]
    kops: Option<PathBuf>,
}

/// Runs the command.
pub(crate) async fn run(format: Format, args: &Args) -> anyhow::Result<Ended> {
    let progress = if format == Format::Json { Progress::silent() } else { Progress::new() };
    let style = Style::detect();
    let project = Project::find(args.project.as_deref())?;
    let _only_one = lock(&project)?;
    // From here on Ctrl-C stops things in order.
    let mut stop = Stop::listen()?;
    let plan = tokio::select! {
        plan = plan(&project, args, &progress) => plan?,
        () = stop.wanted() => return Ok(Ended::With(INTERRUPTED)),
    };
    progress.say(&style.paint(Paint::Bold, "== The stack: kops itself, emulated AWS, a stand-in for GitLab; all on loopback"));
    let mut stack = Stack::spawn(&plan)?;
    let ready = tokio::select! {
        ready = progress.during("the emulated AWS: Step Functions takes longest, 10 to 20 s", stack.ready(&progress)) => ready.map(Some),
        () = stop.wanted() => Ok(None),
    };
    let ended = match ready {
        Ok(Some(report)) => {
            let described = report.deployment(&plan.kops).and_then(|deployment| {
                deployment.write(&project.folder())?;
                Ok(deployment)
            });
            match described {
                Ok(deployment) => {
                    let context = Context::of_local(deployment).await?;
                    let local = Local { project: &project, context: &context, report: &report, format, progress: &progress, style };
                    let ended = tokio::select! {
                        ended = local.work(args, &plan.home) => ended,
                        () = stop.wanted() => Ok(local.interrupted(args)),
                        error = stack.ended() => Err(error),
                    };
                    LocalDeployment::forget(&project.folder())?;
                    ended
                }
                Err(error) => Err(error),
            }
        }
        Ok(None) => Ok(Ended::With(INTERRUPTED)),
        Err(error) => Err(error),
    };
    progress.clear();
    progress.say("\nstopping what was started");
    match stack.stop().await {
        Ok(()) => progress.say("nothing is left running"),
        // What went wrong first says more.
        Err(error) if ended.is_ok() => return Err(error),
        Err(_) => {}
    }
    ended
}

/// One local stack at a time: its folder is made anew each time.
fn lock(project: &Project) -> anyhow::Result<File> {
    let path = project.folder().join(LOCK_FILE);
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another `kopsline local` of this folder is running: stop it first, or use a clone of the repository")
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Gathers what the stack needs, and makes its folder anew.
async fn plan(project: &Project, args: &Args, progress: &Progress) -> anyhow::Result<Plan> {
    let home = project.folder().join("local");
    LocalDeployment::forget(&project.folder())?;
    for old in [&home, &project.folder().join("pages")] {
        match std::fs::remove_dir_all(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove what an earlier run left in {}", old.display()));
            }
            _ => {}
        }
    }
    std::fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let values = project.path("tests/stack/kopsline-values.json");
    let mut more = Vec::new();
    if let Some(repository) = &args.repository {
        more = own_stores(repository, &values)?;
    }
    let kops = progress.during("kops for this machine", project.kops(args.kops.as_deref())).await?;
    Ok(Plan {
        python: project.python("STACK_PYTHON")?,
        localstack_python: project.python("STACK_LOCALSTACK_PYTHON")?,
        module: project.path("tests"),
        home,
        template: project.path("template.yaml"),
        values,
        functions: project.functions(args.functions.as_deref())?,
        kops,
        more,
    })
}

/// The options by which the stack has, and the functions may use, the state stores that a repository of one's own names.
fn own_stores(repository: &Path, values: &Path) -> anyhow::Result<Vec<String>> {
    let file = clusters::read(repository)?;
    let given = std::fs::read_to_string(values).with_context(|| format!("cannot read {}", values.display()))?;
    let given: serde_json::Value = serde_json::from_str(&given).with_context(|| format!("{} is not JSON", values.display()))?;
    let there: Vec<&str> =
        given.get("buckets").and_then(|buckets| buckets.as_array()).into_iter().flatten().filter_map(|name| name.as_str()).collect();
    let stores: Vec<&str> = file.clusters.iter().map(|cluster| cluster.state_store.as_str()).collect();
    let mut buckets: Vec<&str> = file.clusters.iter().map(|cluster| cluster.state_store.bucket()).collect();
    buckets.sort_unstable();
    buckets.dedup();
    let arns: Vec<String> = buckets.iter().map(|bucket| format!("arn:aws:s3:::{bucket}")).collect();
    let mut options = vec!["--parameter".to_owned(), format!("StateStores={}", stores.join(","))];
    options.extend(["--parameter".to_owned(), format!("StateStoreBucketArns={}", arns.join(","))]);
    for bucket in buckets.iter().filter(|bucket| !there.contains(bucket)) {
        options.extend(["--bucket".to_owned(), (*bucket).to_owned()]);
    }
    Ok(options)
}

/// A running local deployment.
struct Local<'a> {
    project: &'a Project,
    context: &'a Context,
    report: &'a Report,
    format: Format,
    progress: &'a Progress,
    style: Style,
}

impl Local<'_> {
    async fn work(&self, args: &Args, home: &Path) -> anyhow::Result<Ended> {
        if !args.demo {
            return self.serve(args.repository.as_deref()).await;
        }
        let stage = demo::Stage {
            project: self.project,
            context: self.context,
            report: self.report,
            workspace: home.join("clusters"),
            progress: self.progress,
            style: self.style,
            interactive: args.interactive,
        };
        let result = demo::play(&stage).await?;
        if self.format == Format::Json {
            output::json(&result)?;
        }
        if args.keep {
            return self.serve(None).await;
        }
        let done = |state| result.runs.iter().all(|run| run.state == state);
        if result.runs.iter().any(|run| run.state == RunState::Failed) {
            bail!("a run of the demonstration failed; logs are in {}", home.join("logs").display());
        }
        Ok(if done(RunState::Succeeded) { Ended::Well } else { Ended::With(NOT_AS_WISHED) })
    }

    /// Ctrl-C is the way to end what serves, but cuts a demonstration short.
    fn interrupted(&self, args: &Args) -> Ended {
        self.progress.clear();
        if args.demo && !args.keep { Ended::With(INTERRUPTED) } else { Ended::Well }
    }

    /// Keeps everything running and delivers pushes, as GitLab does, until the caller is dropped.
    async fn serve(&self, own: Option<&Path>) -> anyhow::Result<Ended> {
        let gitlab = &self.report.gitlab;
        let mut before = repository::tip(&gitlab.repository, &gitlab.default_branch).await?;
        match self.format {
            Format::Json => output::json(&self.context.local())?,
            Format::Text => output::print(&how_to(self.report, self.style)),
        }
        if let Some(own) = own {
            repository::push_head(own, gitlab).await?;
        }
        loop {
            let after = repository::tip(&gitlab.repository, &gitlab.default_branch).await?;
            if let Some(after) = after
                && before.as_ref() != Some(&after)
            {
                self.pushed(before.as_ref(), &after).await?;
                before = Some(after);
            }
            tokio::time::sleep(LOOK_FOR_PUSHES_EVERY).await;
        }
    }

    async fn pushed(&self, before: Option<&CommitId>, after: &CommitId) -> anyhow::Result<()> {
        let before = before.cloned().map_or_else(|| CommitId::new(&"0".repeat(40)), Ok)?;
        let delivery = repository::deliver(&self.report.gitlab, &Merged { before, after: after.clone() }).await?;
        match delivery.runs() {
            Ok(runs) => {
                for run in runs {
                    self.progress.say(&format!("push of {}: started {run}\n  kopsline --local status {run} --wait", after.short()));
                }
            }
            Err(error) => self.progress.say(&format!("push of {}: {error}", after.short())),
        }
        Ok(())
    }
}

fn how_to(report: &Report, style: Style) -> String {
    let gitlab = &report.gitlab;
    let title = style.paint(Paint::Bold, "\nReady. In another terminal:");
    format!(
        "{title}\n  git clone {repository} clusters      the clusters' repository; a push to {branch} starts a run\n  \
         kopsline --local status                 what runs, and what it waits for\n  \
         kopsline --local approve APPROVAL       answer a question\n  \
         kopsline --local doctor                 check what is there\n\
         A cluster here needs `assets.fileRepository: {files}` and what the sample in tests/fixtures/demo has.\n\
         Not emulated: {left_out}.\nCtrl-C stops everything.\n",
        repository = gitlab.repository.display(),
        branch = gitlab.default_branch,
        files = report.files_url,
        left_out = kinds(&report.not_created),
    )
}

/// The kinds of resources in texts such as `RunBucketPolicy (AWS::S3::BucketPolicy)`.
fn kinds(resources: &[String]) -> String {
    let kinds: BTreeSet<&str> = resources.iter().filter_map(|text| text.split_once('(')?.1.strip_suffix(')')).collect();
    if kinds.is_empty() { "nothing that the template has".to_owned() } else { kinds.into_iter().collect::<Vec<_>>().join(", ") }
}

/// Ctrl-C, or being asked to end in another way.
struct Stop([Signal; 3]);

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self([on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?]))
    }

    async fn wanted(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_state_stores_are_there_and_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = |name: &str, store: &str| {
            format!(
                "- {{name: {name}.k8s.local, stateStore: {store}, region: us-east-1, kops: {{version: 1.36.2}}, sources: [a.yaml], rollingUpdate: {{cloudonly: true}}}}\n"
            )
        };
        let text = format!(
            "version: 1\nclusters:\n{}{}{}",
            cluster("a", "s3://mine/x"),
            cluster("b", "s3://mine/y"),
            cluster("c", "s3://kops-state")
        );
        std::fs::write(folder.path().join("kopsline.yaml"), text).unwrap();
        let values = folder.path().join("values.json");
        std::fs::write(&values, r#"{"buckets": ["kops-state"]}"#).unwrap();
        assert_eq!(
            own_stores(folder.path(), &values).unwrap(),
            [
                "--parameter",
                "StateStores=s3://mine/x,s3://mine/y,s3://kops-state",
                "--parameter",
                "StateStoreBucketArns=arn:aws:s3:::kops-state,arn:aws:s3:::mine",
                "--bucket",
                "mine",
            ]
        );
    }

    #[test]
    fn what_is_not_emulated_is_told_by_its_kind() {
        let resources = ["A (AWS::Logs::LogGroup)", "B (AWS::Logs::LogGroup)", "C (AWS::CloudWatch::Alarm)"].map(str::to_owned);
        assert_eq!(kinds(&resources), "AWS::CloudWatch::Alarm, AWS::Logs::LogGroup");
        assert_eq!(kinds(&[]), "nothing that the template has");
    }

    #[test]
    fn one_local_stack_at_a_time() {
        let project = Project::find(None).unwrap();
        // Another process may really be running one; then the first lock is already refused, which is the rule as well.
        if let Ok(first) = lock(&project) {
            assert!(lock(&project).unwrap_err().to_string().contains("stop it first"));
            drop(first);
        }
    }
}

//! `kopsline plan`: what a working tree would change, against the live store and cloud, with nothing written to either.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use kopsline_core::config::FILE_NAME;
use kopsline_core::{ClusterConfig, ClusterName};
use kopsline_kops::{KopsBinaries, dry_run, rehearse};
use kopsline_manifests::{Change, ChangeKind, Notice, PinnedKops, Problem, SourceFile, check_against_live, parse};
use kopsline_plan::{Plan, Summary, redact, scrub};
use kopsline_state::{ClusterState, S3Stores, s3};
use serde::Serialize;

use crate::context::Context;
use crate::kops::KopsArgs;
use crate::output::{self, Format, Paint, Style};
use crate::progress::Progress;
use crate::{Ended, NOT_AS_WISHED, clusters};

/// Options of `kopsline plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cluster; without it every cluster of the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The working tree of the clusters' repository
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Exit with code 3 if there are changes
    #[arg(long)]
    detailed_exitcode: bool,
    #[command(flatten)]
    kops: KopsArgs,
}

/// What a working tree would change of one cluster, as `--output json` shows it.
#[derive(Debug, Serialize)]
struct Planned {
    cluster: ClusterName,
    /// The kops that said so.
    kops: String,
    /// Whether anything would change, in the state store or in the cloud.
    changes: bool,
    summary: Summary,
    /// The state store's objects that would be written.
    objects: Vec<Object>,
    /// Why it may lose data or capacity.
    destructive: Vec<String>,
    /// What a person should know besides.
    notices: Vec<Notice>,
    /// kops' dry run, without secrets.
    plan: Plan,
}

#[derive(Debug, Serialize)]
struct Object {
    key: String,
    change: ChangeKind,
}

/// A cluster's outcome: what would change, or what is wrong with its manifests.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome {
    Planned(Box<Planned>),
    Problems { cluster: ClusterName, problems: Vec<Problem> },
}

/// Runs the command.
pub(crate) async fn run(context: &Context, format: Format, args: &Args) -> anyhow::Result<Ended> {
    let file = clusters::read(&args.directory)?;
    let chosen = |cluster: &&ClusterConfig| args.cluster.as_ref().is_none_or(|name| *name == cluster.name);
    let wanted: Vec<&ClusterConfig> = file.clusters.iter().filter(chosen).collect();
    if wanted.is_empty() {
        return Err(clusters::no_such(&file));
    }
    let progress = if format == Format::Json { Progress::silent() } else { Progress::aside() };
    let binaries = args.kops.binaries(context)?;
    let mut outcomes = Vec::new();
    for cluster in wanted {
        let outcome = plan(context, args, &binaries, cluster, &progress).await;
        // kops' own words may hold secrets of the cluster.
        outcomes.push(outcome.map_err(|error| anyhow!("{}: {}", cluster.name, scrub(&format!("{error:#}"))))?);
    }
    match format {
        Format::Json => output::json(&outcomes)?,
        Format::Text => outcomes.iter().for_each(|outcome| output::print(&describe(outcome, Style::detect()))),
    }
    if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Problems { .. })) {
        return Ok(Ended::With(1));
    }
    let changes = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Planned(planned) if planned.changes));
    Ok(if changes && args.detailed_exitcode { Ended::With(NOT_AS_WISHED) } else { Ended::Well })
}

async fn plan(
    context: &Context,
    args: &Args,
    binaries: &KopsBinaries,
    cluster: &ClusterConfig,
    progress: &Progress,
) -> anyhow::Result<Outcome> {
    let problems = |problems| Ok(Outcome::Problems { cluster: cluster.name.clone(), problems });
    let files = match sources(&args.directory, cluster)? {
        Ok(files) => files,
        Err(found) => return problems(found),
    };
    let manifests = match parse(&files, cluster.name.as_str()) {
        Ok(manifests) => manifests,
        Err(found) => return problems(found),
    };
    let stores = S3Stores::new(s3::client(&context.sdk));
    let reading = ClusterState::read(&stores, &cluster.state_store, &cluster.name);
    let live = progress.during(&format!("the state store of {}", cluster.name), reading).await?;
    let version = cluster.kops.version.to_string();
    let pinned = PinnedKops { version: &version, file: FILE_NAME, line: clusters::line_of_kops(&args.directory, &cluster.name) };
    let found = check_against_live(&manifests, &live.for_checks(), &pinned);
    if !found.is_empty() {
        return problems(found);
    }
    let fetching = args.kops.runner(context, binaries, cluster);
    let runner = progress.during(&format!("kops {version}, which is fetched once"), fetching).await?;
    let rehearsing = rehearse(&runner, &live, &manifests);
    let rehearsal = progress.during("kops replace, in a scratch copy of the state store", rehearsing).await?;
    if !rehearsal.problems.is_empty() {
        return problems(rehearsal.problems);
    }
    let running = dry_run(&runner, &live, &rehearsal.changes);
    let output = progress.during("kops update cluster, as a dry run: it compares the whole cluster with the cloud", running).await?;
    let plan = redact(&kopsline_plan::parse(&output.stdout).context("kops' dry run cannot be read")?);
    Ok(Outcome::Planned(Box::new(planned(cluster, &rehearsal.changes, rehearsal.notices, plan))))
}

/// The cluster's manifests of a working tree, or what is wrong with the files themselves.
fn sources(directory: &Path, cluster: &ClusterConfig) -> anyhow::Result<Result<Vec<SourceFile>, Vec<Problem>>> {
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for source in &cluster.sources {
        let path = directory.join(source);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("cannot read {}, which {FILE_NAME} lists as a source of {}", path.display(), cluster.name))?;
        match SourceFile::from_bytes(source, bytes) {
            Ok(file) => files.push(file),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(if problems.is_empty() { Ok(files) } else { Err(problems) })
}

fn planned(cluster: &ClusterConfig, changes: &[Change], notices: Vec<Notice>, plan: Plan) -> Planned {
    Planned {
        cluster: cluster.name.clone(),
        kops: cluster.kops.version.to_string(),
        changes: !(changes.is_empty() && plan.is_empty()),
        summary: Summary::of(&plan),
        objects: changes.iter().map(|change| Object { key: change.key.clone(), change: change.kind }).collect(),
        destructive: plan.destructive(),
        notices,
        plan,
    }
}

fn describe(outcome: &Outcome, style: Style) -> String {
    let mut text = String::new();
    match outcome {
        Outcome::Problems { cluster, problems } => {
            let title = format!("{cluster}: {} in the manifests", output::count(problems.len(), "problem"));
            let _ = writeln!(text, "{}", style.paint(Paint::Bad, &title));
            for problem in problems {
                let _ = writeln!(text, "  {}", output::one_line(&problem.to_string()));
            }
        }
        Outcome::Planned(planned) => {
            let what = if planned.changes {
                planned.summary.to_string()
            } else {
                "no changes: cloud and state store are as the manifests say".to_owned()
            };
            let _ = writeln!(text, "{}", style.paint(Paint::Bold, &format!("{}: {what}", planned.cluster)));
            for object in &planned.objects {
                let verb = match object.change {
                    ChangeKind::Create => "creates",
                    ChangeKind::Modify => "changes",
                };
                let _ = writeln!(text, "  {verb} {} in the state store", object.key);
            }
            for reason in &planned.destructive {
                let _ = writeln!(text, "  {}", style.paint(Paint::Attention, &format!("careful: {}", output::one_line(reason))));
            }
            for notice in &planned.notices {
                let _ = writeln!(text, "  note: {} ({})", output::one_line(&notice.what), output::one_line(&notice.remedy));
            }
            if planned.changes {
                let _ = writeln!(text, "\n{}\nNothing was written.", output::printable(planned.plan.to_text().trim_end()));
            }
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterConfig {
        serde_json::from_value(serde_json::json!({"name": "a.k8s.local", "stateStore": "s3://state", "region": "us-east-1",
            "kops": {"version": "1.36.2"}, "sources": ["cluster.yaml", "groups.yaml"]}))
        .unwrap()
    }

    #[test]
    fn no_changes_are_told_clearly() {
        let plan = kopsline_plan::parse("No changes need to be applied\n").unwrap();
        let outcome = Outcome::Planned(Box::new(planned(&cluster(), &[], Vec::new(), plan)));
        assert_eq!(describe(&outcome, Style::plain()), "a.k8s.local: no changes: cloud and state store are as the manifests say\n\n");
    }

    #[test]
    fn changes_are_told_with_kops_own_text() {
        let text = "Will modify resources:\n  AutoscalingGroup/nodes.a.k8s.local\n  \tMinSize             \t 2 -> 3\n\nMust specify --yes to apply changes\n";
        let change =
            Change { key: "instancegroup/nodes".into(), kind: ChangeKind::Modify, previous: None, content: Vec::new(), generation: None };
        let notice = Notice { what: "the live group old is not in the manifests".into(), remedy: "delete it with kops".into() };
        let outcome = Outcome::Planned(Box::new(planned(&cluster(), &[change], vec![notice], kopsline_plan::parse(text).unwrap())));
        insta::assert_snapshot!(describe(&outcome, Style::plain()));
    }

    #[test]
    fn problems_name_file_and_line() {
        let problem = Problem { file: "cluster.yaml".into(), line: 7, what: "unknown kind".into(), remedy: "use Cluster".into() };
        let outcome = Outcome::Problems { cluster: cluster().name, problems: vec![problem] };
        assert_eq!(
            describe(&outcome, Style::plain()),
            "a.k8s.local: 1 problem in the manifests\n  cluster.yaml:7: unknown kind (use Cluster)\n\n"
        );
    }

    #[test]
    fn a_missing_source_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cluster.yaml"), [0xff]).unwrap();
        let error = sources(folder.path(), &cluster()).unwrap_err().to_string();
        assert!(error.contains("groups.yaml") && error.contains("a.k8s.local"), "{error}");
        std::fs::write(folder.path().join("groups.yaml"), "").unwrap();
        let problems = sources(folder.path(), &cluster()).unwrap().unwrap_err();
        assert_eq!((problems.len(), problems[0].file.as_str()), (1, "cluster.yaml"));
    }
}

//! The demonstration: a cluster is born by one merge and changed by the next.

use std::cell::RefCell;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use kopsline_core::{Run, RunId, RunState};

use crate::context::Context;
use crate::local::cloud::{self, Group};
use crate::local::guide::Guide;
use crate::local::project::Project;
use crate::local::repository::{self, Merged, Repository};
use crate::local::stack::{GitLab, Report};
use crate::output::{self, Paint, Style, Table};
use crate::progress::Progress;
use crate::status;
use crate::terminal::Terminal;

/// The sample repository and its files.
const SAMPLE: &str = "tests/fixtures/demo";
const README: &str = "README.md";
const CLUSTERS: &str = "kopsline.yaml";
const MANIFEST: &str = "cluster.yaml";
/// What the sample's manifest names in place of the local file server.
const FILES_PLACEHOLDER: &str = "https://kops-files.example.com";

/// What the second merge changes: (in the manifest, becomes).
const BIGGER_NODES: (&str, &str) = ("machineType: m6i.large\n", "machineType: m6i.xlarge\n");
const NEW_LABEL: (&str, &str) = ("    example.com/pool: batch\n", "    example.com/pool: batch\n    example.com/team: data\n");

/// What the demonstration needs.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// This repository.
    pub(crate) project: &'a Project,
    /// The local deployment.
    pub(crate) context: &'a Context,
    /// Where its parts are.
    pub(crate) report: &'a Report,
    /// A fresh folder for the sample repository's working copy.
    pub(crate) workspace: PathBuf,
    /// Where it is told, and how.
    pub(crate) progress: &'a Progress,
    pub(crate) style: Style,
    /// Whether a person answers.
    pub(crate) interactive: bool,
}

/// What came of it.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Result {
    /// The runs, in their order.
    pub(crate) runs: Vec<Run>,
    /// Their pages.
    pub(crate) pages: Vec<PathBuf>,
}

/// Plays it.
pub(crate) async fn play(stage: &Stage<'_>) -> anyhow::Result<Result> {
    let sample = Sample::read(stage.project, &stage.report.files_url)?;
    let guide = Guide {
        context: stage.context,
        runs: stage.context.runs()?,
        progress: stage.progress,
        style: stage.style,
        interactive: stage.interactive,
        terminal: Terminal::default(),
        rolled: RefCell::default(),
    };
    let mut result = Result::default();

    stage.title("A repository of clusters");
    let repository = Repository::create(&stage.workspace, &stage.report.gitlab, &[(README, sample.readme.clone())]).await?;
    stage.say(&format!("working copy  {}", stage.workspace.display()));
    stage.say(&format!("GitLab        {}/{} (a stand-in with GitLab's API)", stage.report.gitlab.url, stage.report.gitlab.project));

    stage.title("First merge: a cluster of three control planes, two node groups and a bastion");
    let files = [(CLUSTERS, sample.clusters.clone()), (MANIFEST, sample.manifest.clone())];
    let merged = repository.merge("add-demo-cluster", &[("Add the demo cluster", &files)]).await?;
    let run = stage.deliver_and_follow(&guide, &merged).await?;
    let created = run.state == RunState::Succeeded;
    result.runs.push(run);
    if created {
        let before = stage.show_cloud(&[]).await?;

        stage.title("Second merge: a larger machine type for nodes-general, a new label for nodes-batch");
        let larger = sample.changed(&[BIGGER_NODES])?;
        let labelled = sample.changed(&[BIGGER_NODES, NEW_LABEL])?;
        let commits: [(&str, &[(&str, String)]); 2] =
            [("Give general nodes more memory", &[(MANIFEST, larger)]), ("Label batch nodes with their team", &[(MANIFEST, labelled)])];
        let merged = repository.merge("larger-nodes", &commits).await?;
        let run = stage.deliver_and_follow(&guide, &merged).await?;
        let rolled = run.state == RunState::Succeeded;
        result.runs.push(run);
        if rolled {
            let after = stage.show_cloud(&before).await?;
            if cloud::new_instances(&before, &after) == 0 {
                bail!("the run succeeded, but no instance is new");
            }
        }
    }
    stage.finish(&guide, &mut result).await?;
    Ok(result)
}

impl Stage<'_> {
    fn title(&self, title: &str) {
        self.progress.say(&format!("\n{}", self.style.paint(Paint::Bold, &format!("== {title}"))));
    }

    fn say(&self, text: &str) {
        self.progress.say(&format!("  {text}"));
    }

    async fn deliver_and_follow(&self, guide: &Guide<'_>, merged: &Merged) -> anyhow::Result<Run> {
        let gitlab: &GitLab = &self.report.gitlab;
        self.say(&format!("merged        {} into {} and pushed", merged.after.short(), gitlab.default_branch));
        let what = "the webhook function: a cold start, then it verifies the signature and starts the pipeline";
        let delivery = self.progress.during(what, repository::deliver(gitlab, merged)).await?;
        let runs: Vec<RunId> = delivery.runs()?;
        let [run] = runs.as_slice() else {
            bail!("the delivery started {} instead of one: {}", output::count(runs.len(), "run"), delivery.body)
        };
        self.say(&format!("delivered     a signed push webhook, answered with {}", delivery.status));
        self.say(&format!("run           {run}\n"));
        guide.follow(run).await
    }

    /// Shows what is there, and returns it; what was not there before counts as new.
    async fn show_cloud(&self, before: &[Group]) -> anyhow::Result<Vec<Group>> {
        self.title("What the cloud has now, asked of EC2 and Auto Scaling");
        let groups = cloud::groups(self.context).await?;
        if groups.is_empty() {
            bail!("the run succeeded, but Auto Scaling has no group");
        }
        self.progress.text(&cloud::table(before, &groups).render(self.style, 2));
        let instances: usize = groups.iter().map(|group| group.instances.len()).sum();
        let new = if before.is_empty() { String::new() } else { format!(", {} of them new", cloud::new_instances(before, &groups)) };
        self.say(&format!("{}, {}{new}", output::count(groups.len(), "Auto Scaling group"), output::count(instances, "instance")));
        Ok(groups)
    }

    /// How long everything took, and where to read on.
    async fn finish(&self, guide: &Guide<'_>, result: &mut Result) -> anyhow::Result<()> {
        self.title("What happened");
        let pages = self.project.folder().join("pages");
        std::fs::create_dir_all(&pages).with_context(|| format!("cannot create {}", pages.display()))?;
        for run in &result.runs {
            let state = self.style.paint(Paint::of_run(run.state), run.state.as_str());
            let took = run.ended_at.map_or_else(String::new, |at| format!(" in {}", output::duration(at.duration_since(run.received_at))));
            self.progress.say(&format!("\n  {} {state}{took}", self.style.paint(Paint::Bold, run.id.as_str())));
            self.progress.text(&status::stages(run, Timestamp::now()).render(self.style, 4));
        }
        let runs: Vec<RunId> = result.runs.iter().map(|run| run.id.clone()).collect();
        let path = pages.join("runs.html");
        let page = kopsline_report::run_page(&guide.runs, &runs).await?;
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        result.pages.push(path);
        let mut table = Table::headless();
        for page in &result.pages {
            table.row([("page".to_owned(), Paint::Dim), (page.display().to_string(), Paint::Plain)]);
        }
        self.progress.text(&format!("\n{}", table.render(self.style, 2)));
        Ok(())
    }
}

/// The sample repository's files, with this machine's addresses in them.
#[derive(Debug)]
struct Sample {
    readme: String,
    clusters: String,
    manifest: String,
}

impl Sample {
    fn read(project: &Project, files_url: &str) -> anyhow::Result<Self> {
        let file = |name: &str| {
            let path = project.path(SAMPLE).join(name);
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            anyhow::Ok(text.replace(FILES_PLACEHOLDER, files_url))
        };
        Ok(Self { readme: file(README)?, clusters: file(CLUSTERS)?, manifest: file(MANIFEST)? })
    }

    /// The manifest with texts replaced, each of which must be there exactly once.
    fn changed(&self, changes: &[(&str, &str)]) -> anyhow::Result<String> {
        let mut manifest = self.manifest.clone();
        for (from, to) in changes {
            if manifest.matches(from).count() != 1 {
                bail!("{SAMPLE}/{MANIFEST} does not have {:?} exactly once, so the demonstration cannot change it", from.trim());
            }
            manifest = manifest.replace(from, to);
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use kopsline_core::ClustersFile;
    use kopsline_core::config::{GateMode, Limits};

    use super::*;

    fn sample() -> Sample {
        Sample::read(&Project::find(None).unwrap(), "http://127.0.0.1:9/files").unwrap()
    }

    #[test]
    fn the_second_merge_changes_what_it_says() {
        let sample = sample();
        let changed = sample.changed(&[BIGGER_NODES, NEW_LABEL]).unwrap();
        assert!(changed.contains("m6i.xlarge") && changed.contains("example.com/team: data"));
        assert_eq!(changed.lines().count(), sample.manifest.lines().count() + 1);
        assert!(changed.contains("fileRepository: http://127.0.0.1:9/files\n") && !changed.contains(FILES_PLACEHOLDER));
        assert!(sample.changed(&[("role: Node\n", "")]).is_err(), "twice in the manifest");
    }

    #[test]
    fn the_sample_asks_a_person_twice() {
        let sample = sample();
        let limits = Limits { projects: vec![], state_stores: vec!["s3://kops-state".parse().unwrap()] };
        let file = ClustersFile::parse(&sample.clusters, &limits).unwrap();
        let [cluster] = file.clusters.as_slice() else { panic!() };
        assert_eq!((cluster.approvals.update, cluster.approvals.roll), (GateMode::Manual, GateMode::Manual));
        assert_eq!((cluster.kops.version.to_string().as_str(), cluster.sources.as_slice()), ("1.36.2", [MANIFEST.to_owned()].as_slice()));
        assert!(cluster.rolling_update.cloudonly && sample.manifest.contains(cluster.name.as_str()));
    }
}

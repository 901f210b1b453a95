//! A clusters' repository on this machine, and the GitLab stand-in that it is pushed to.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kopsline_core::{CommitId, RunId};
use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;

use crate::local::stack::GitLab;

/// GitLab waits 10 s for a webhook's receiver; the stand-in does, too.
const DELIVERY_AT_MOST: Duration = Duration::from_secs(20);

/// A working copy.
#[derive(Debug)]
pub(crate) struct Repository {
    folder: PathBuf,
    remote: PathBuf,
    branch: String,
}

/// A branch before and after a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merged {
    /// The branch's tip before.
    pub(crate) before: CommitId,
    /// The merge commit.
    pub(crate) after: CommitId,
}

impl Repository {
    /// A new repository whose first commit has these files, pushed to the stand-in.
    pub(crate) async fn create(folder: &Path, gitlab: &GitLab, files: &[(&str, String)]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let repository = Self { folder: folder.to_path_buf(), remote: gitlab.repository.clone(), branch: gitlab.default_branch.clone() };
        repository.git(&["init", "--quiet", &format!("--initial-branch={}", repository.branch)]).await?;
        repository.write(files)?;
        repository.commit("Describe the repository").await?;
        repository.push().await?;
        Ok(repository)
    }

    /// A merge as GitLab makes it: commits on a branch, then a merge commit; pushed to the stand-in. Each commit is a
    /// message and the files it changes.
    pub(crate) async fn merge(&self, topic: &str, commits: &[(&str, &[(&str, String)])]) -> anyhow::Result<Merged> {
        let before = self.head().await?;
        self.git(&["switch", "--quiet", "--create", topic]).await?;
        for (message, files) in commits {
            self.write(files)?;
            self.commit(message).await?;
        }
        self.git(&["switch", "--quiet", &self.branch]).await?;
        self.git(&["merge", "--quiet", "--no-ff", "-m", &format!("Merge branch '{topic}' into '{}'", self.branch), topic]).await?;
        self.push().await?;
        Ok(Merged { before, after: self.head().await? })
    }

    fn write(&self, files: &[(&str, String)]) -> anyhow::Result<()> {
        for (name, text) in files {
            let path = self.folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    async fn commit(&self, message: &str) -> anyhow::Result<()> {
        self.git(&["add", "--all"]).await?;
        self.git(&["commit", "--quiet", "--message", message]).await.map(drop)
    }

    async fn push(&self) -> anyhow::Result<()> {
        let remote = self.remote.display().to_string();
        self.git(&["push", "--quiet", &remote, &self.branch]).await.map(drop)
    }

    async fn head(&self) -> anyhow::Result<CommitId> {
        Ok(CommitId::new(&self.git(&["rev-parse", "HEAD"]).await?)?)
    }

    async fn git(&self, arguments: &[&str]) -> anyhow::Result<String> {
        git(&self.folder, arguments).await
    }
}

/// The commit at the tip of a bare repository's branch, if there is one.
pub(crate) async fn tip(repository: &Path, branch: &str) -> anyhow::Result<Option<CommitId>> {
    let listed = git(repository, &["for-each-ref", "--format=%(objectname)", &format!("refs/heads/{branch}")]).await?;
    if listed.is_empty() { Ok(None) } else { Ok(Some(CommitId::new(&listed)?)) }
}

/// Pushes a working copy's current commit to the stand-in's watched branch.
pub(crate) async fn push_head(folder: &Path, gitlab: &GitLab) -> anyhow::Result<()> {
    let remote = gitlab.repository.display().to_string();
    git(folder, &["push", "--quiet", "--force", &remote, &format!("HEAD:refs/heads/{}", gitlab.default_branch)]).await.map(drop)
}

async fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    // Neither the user's configuration (signing, hooks, templates) nor a repository around may change what happens.
    let output = Command::new("git")
        .args(arguments)
        .current_dir(folder)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null"), ("GIT_TERMINAL_PROMPT", "0")])
        .envs([("GIT_AUTHOR_NAME", "John Smith"), ("GIT_AUTHOR_EMAIL", "john@example.com")])
        .envs([("GIT_COMMITTER_NAME", "John Smith"), ("GIT_COMMITTER_EMAIL", "john@example.com")])
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run git: is it installed?")?;
    if !output.status.success() {
        bail!("git {} in {} failed: {}", arguments.join(" "), folder.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What a delivery of the stand-in came to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Delivery {
    /// The HTTP status that the webhook answered.
    pub(crate) status: u16,
    /// Its answer's body.
    pub(crate) body: String,
}

impl Delivery {
    /// The runs that the delivery started.
    pub(crate) fn runs(&self) -> anyhow::Result<Vec<RunId>> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            runs: Vec<RunId>,
        }
        if self.status != 202 {
            bail!("the webhook answered {}: {}", self.status, self.body);
        }
        let answer: Answer =
            serde_json::from_str(&self.body).with_context(|| format!("the webhook's answer is not JSON: {}", self.body))?;
        Ok(answer.runs)
    }
}

/// Asks the GitLab stand-in to deliver the signed push webhook of a merge, as GitLab does by itself.
pub(crate) async fn deliver(gitlab: &GitLab, merged: &Merged) -> anyhow::Result<Delivery> {
    let client = reqwest::Client::builder().timeout(DELIVERY_AT_MOST).no_proxy().build().context("cannot make an HTTP client")?;
    let order = json!({
        "project": gitlab.project,
        "ref": format!("refs/heads/{}", gitlab.default_branch),
        "before": merged.before,
        "after": merged.after,
    });
    let answer =
        client.post(format!("{}/_control/push", gitlab.url)).json(&order).send().await.context("the GitLab stand-in does not answer")?;
    let answer = answer.error_for_status().context("the GitLab stand-in could not deliver")?;
    answer.json().await.context("the GitLab stand-in's answer cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn gitlab(folder: &Path) -> GitLab {
        let repository = folder.join("clusters.git");
        std::fs::create_dir_all(&repository).unwrap();
        git(&repository, &["init", "--quiet", "--bare", "--initial-branch=main"]).await.unwrap();
        GitLab { url: "http://127.0.0.1:1".into(), project: "platform/clusters".into(), default_branch: "main".into(), repository }
    }

    #[tokio::test]
    async fn a_merge_is_a_merge_commit_on_the_watched_branch() {
        let folder = tempfile::tempdir().unwrap();
        let gitlab = gitlab(folder.path()).await;
        assert_eq!(tip(&gitlab.repository, "main").await.unwrap(), None);
        let repository = Repository::create(&folder.path().join("work"), &gitlab, &[("README.md", "hello\n".into())]).await.unwrap();
        let first = tip(&gitlab.repository, "main").await.unwrap().unwrap();
        let commits: [(&str, &[(&str, String)]); 2] = [("One", &[("a", "1".into())]), ("Two", &[("a", "2".into())])];
        let merged = repository.merge("topic", &commits).await.unwrap();
        assert_eq!(merged.before, first);
        assert_eq!(tip(&gitlab.repository, "main").await.unwrap(), Some(merged.after.clone()));
        let parents = git(&gitlab.repository, &["log", "-1", "--format=%P %s", "main"]).await.unwrap();
        assert_eq!(parents.split(' ').count(), 2 + "Merge branch 'topic' into 'main'".split(' ').count());
        assert_eq!(std::fs::read_to_string(folder.path().join("work/a")).unwrap(), "2");
    }

    #[test]
    fn only_an_accepted_delivery_has_runs() {
        let accepted = Delivery { status: 202, body: r#"{"runs": ["demo-1"]}"#.into() };
        assert_eq!(accepted.runs().unwrap(), [RunId::new("demo-1").unwrap()]);
        let refused = Delivery { status: 200, body: r#"{"error": "kopsline.yaml: no"}"#.into() };
        assert!(refused.runs().unwrap_err().to_string().contains("kopsline.yaml: no"));
    }
}

//! Where manifests come from: a repository, read at one exact commit.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::Timestamp;
use kopsline_core::{Classify, CommitId, Failure, FailureKind};

use crate::client::GitLabError;

/// The largest file that is read, in bytes. Manifests and `kopsline.yaml` are far smaller; a larger one is a mistake.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// What differs between two commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// It could not be told in full, so everything must be taken as changed.
    All,
    /// These paths; of a renamed file both.
    Paths(BTreeSet<String>),
}

impl Changes {
    /// Whether a file, or a folder with anything below it, changed.
    pub fn touches(&self, path: &str) -> bool {
        let below = |changed: &String| changed.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match self {
            Self::All => true,
            Self::Paths(paths) => paths.iter().any(below),
        }
    }
}

/// How one commit stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestry {
    /// They are one.
    Same,
    /// The first is an ancestor of the second.
    Older,
    /// The second is an ancestor of the first.
    Newer,
    /// Neither is an ancestor of the other.
    Diverged,
}

/// A commit, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// Its id.
    pub sha: CommitId,
    /// The author's name.
    pub author: String,
    /// The message's first line.
    pub title: String,
    /// Its page; none for a repository without pages.
    pub web_url: Option<String>,
    /// When it was committed.
    pub committed_at: Timestamp,
}

/// What a source cannot give. Names file, commit, project and remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The commit has no such file.
    #[error("{path}: there is no such file in {project} at commit {}: add it, or correct the path where it is named", commit.short())]
    NoFile {
        /// The path.
        path: String,
        /// The commit.
        commit: CommitId,
        /// The project.
        project: String,
    },
    /// The project has no such commit.
    #[error("{project} has no commit {commit}: it may have been removed by a force push; push again")]
    NoCommit {
        /// The commit.
        commit: CommitId,
        /// The project.
        project: String,
    },
    /// The project has no such branch.
    #[error("{project} has no branch {branch:?}: correct the branch's name, or push it")]
    NoBranch {
        /// The branch.
        branch: String,
        /// The project.
        project: String,
    },
    /// The path cannot be one of a repository's.
    #[error("{path:?} is no path in a repository ({why}): use a relative path such as \"clusters/prod.yaml\"")]
    BadPath {
        /// The path, shortened.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error("{path}: the file in {project} at commit {} is larger than {MAX_FILE_BYTES} bytes: split it, or correct the path", commit.short())]
    TooLarge {
        /// The path.
        path: String,
        /// The commit.
        commit: CommitId,
        /// The project.
        project: String,
    },
    /// The file is not UTF-8.
    #[error("{path}, line {line}: the file in {project} at commit {} is not UTF-8 text: save it as UTF-8", commit.short())]
    NotText {
        /// The path.
        path: String,
        /// The first line that is not UTF-8; 1 is the first.
        line: usize,
        /// The commit.
        commit: CommitId,
        /// The project.
        project: String,
    },
    /// GitLab did not give it.
    #[error(transparent)]
    GitLab(#[from] GitLabError),
    /// git did not give it.
    #[error("git {command} in {repository}: {what}")]
    Git {
        /// git's subcommand.
        command: String,
        /// The repository.
        repository: String,
        /// What went wrong and what helps.
        what: String,
    },
}

impl SourceError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::GitLab(error) if error.is_transient())
    }
}

impl Classify for SourceError {
    fn kind(&self) -> FailureKind {
        let otherwise = match self {
            Self::GitLab(_) | Self::Git { .. } => FailureKind::Failed,
            _ => FailureKind::BadInput,
        };
        Failure::transient_or(self.is_transient(), otherwise)
    }
}

/// A repository of manifests. Nothing but full commit ids names a version: branches move.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The project's name for people: its full path in GitLab, or its folder.
    fn project(&self) -> &str;

    /// Files at a commit, in the order of `paths`.
    async fn files(&self, paths: &[String], commit: &CommitId) -> Result<Vec<String>, SourceError>;

    /// A file at a commit.
    async fn file(&self, path: &str, commit: &CommitId) -> Result<String, SourceError> {
        let files = self.files(&[path.to_owned()], commit).await?;
        files.into_iter().next().ok_or_else(|| self.no_file(path, commit))
    }

    /// What differs between the trees of two commits, whatever their ancestry. [`Changes::All`] when `from` is unknown here,
    /// which it is after a force push.
    async fn changed_paths(&self, from: &CommitId, to: &CommitId) -> Result<Changes, SourceError>;

    /// How `a` stands to `b`.
    async fn ancestry(&self, a: &CommitId, b: &CommitId) -> Result<Ancestry, SourceError>;

    /// A commit.
    async fn commit(&self, commit: &CommitId) -> Result<CommitInfo, SourceError>;

    /// The newest commit of a branch.
    async fn head(&self, branch: &str) -> Result<CommitId, SourceError>;

    /// The error for a file that is not there.
    fn no_file(&self, path: &str, commit: &CommitId) -> SourceError {
        SourceError::NoFile { path: path.to_owned(), commit: commit.clone(), project: self.project().to_owned() }
    }
}

/// Refuses what is no path in a repository, before it reaches a URL or a command line.
pub(crate) fn check_path(path: &str) -> Result<(), SourceError> {
    let bad = |why| Err(SourceError::BadPath { path: path.chars().take(200).collect(), why });
    if path.is_empty() {
        return bad("it is empty");
    }
    if path.len() > 1024 {
        return bad("it is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return bad("it is absolute");
    }
    if path.chars().any(char::is_control) {
        return bad("it holds control characters");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("a part of it is empty, \".\" or \"..\"");
    }
    Ok(())
}

/// Whether a name can be a branch's (the rules of git-check-ref-format(1) that matter to URLs and command lines).
pub(crate) fn is_branch_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
    name.len() <= 255
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name.contains(forbidden)
        && name.split('/').all(part)
}

/// A file's bytes as text.
pub(crate) fn text(bytes: Vec<u8>, path: &str, commit: &CommitId, project: &str) -> Result<String, SourceError> {
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        SourceError::NotText {
            path: path.to_owned(),
            line: good.filter(|byte| **byte == b'\n').count() + 1,
            commit: commit.clone(),
            project: project.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        for good in ["kopsline.yaml", "clusters/prod/cluster.yml", "a b/ä.yaml", "..a/b..", "-x", ":(top)x"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\nb", "a\0b", &"a/".repeat(600)] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        let error = check_path("a/../b").unwrap_err().to_string();
        assert!(error.contains(r#""a/../b""#) && error.contains("relative path"), "{error}");
    }

    #[test]
    fn branches() {
        for good in ["master", "feature/x", "release-1.36", "ä"] {
            assert!(is_branch_name(good), "{good}");
        }
        for bad in ["", "-x", "a..b", "a b", "a^", "a:b", "..", ".", "a//b", "/a", "a/", "a.lock", "a@{1}", "a\n"] {
            assert!(!is_branch_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_is_touched() {
        let changes = Changes::Paths(["clusters/prod/cluster.yml".to_owned(), "README.md".to_owned()].into());
        for path in ["README.md", "clusters/prod/cluster.yml", "clusters/prod", "clusters"] {
            assert!(changes.touches(path), "{path}");
        }
        for path in ["README", "clusters/pro", "clusters/prod/cluster.yml/x", "cluster.yml"] {
            assert!(!changes.touches(path), "{path}");
        }
        assert!(Changes::All.touches("anything"));
        assert!(!Changes::Paths(BTreeSet::new()).touches("anything"));
    }

    #[test]
    fn text_that_is_none_names_its_line() {
        let commit = CommitId::new(&"a".repeat(40)).unwrap();
        let error = text(b"one\ntwo\nthr\xffee\n".to_vec(), "cluster.yml", &commit, "platform/clusters").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cluster.yml, line 3: the file in platform/clusters at commit aaaaaaaaaaaa is not UTF-8 text: save it as UTF-8"
        );
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_inside(path in "[a./\\\\ \\n-]{0,12}") {
            if check_path(&path).is_ok() {
                let inside = std::path::Path::new("root").join(&path);
                prop_assert!(inside.starts_with("root"));
                prop_assert!(inside.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }
}

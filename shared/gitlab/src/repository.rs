//! A git repository on disk as a source, read through the `git` binary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use kopsline_core::CommitId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::source::{self, Ancestry, Changes, CommitInfo, MAX_FILE_BYTES, Source, SourceError};

/// git on a local disk answers in milliseconds; a call that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The most that is read of git's output where the output's size is not known beforehand, in bytes.
const MAX_OUTPUT_BYTES: usize = 8 * 1024 * 1024;

/// A git repository on disk, bare or with a work tree. Only what is committed is read.
#[derive(Debug, Clone)]
pub struct GitRepository {
    git_dir: PathBuf,
    project: String,
}

/// What git said.
struct Output {
    code: Option<i32>,
    stdout: Vec<u8>,
    /// Whether there was more than the limit.
    cut: bool,
    stderr: String,
}

impl GitRepository {
    /// The repository in a folder. Fails when the folder is none, or `git` is not installed.
    pub async fn open(folder: &Path) -> Result<Self, SourceError> {
        // `.git` is a file in a linked work tree; git follows it.
        let inner = folder.join(".git");
        let git_dir = if inner.exists() { inner } else { folder.to_owned() };
        let repository = Self { git_dir, project: folder.display().to_string() };
        let output = repository.git(&["rev-parse", "--git-dir"], "", MAX_OUTPUT_BYTES).await?;
        if output.code == Some(0) { Ok(repository) } else { Err(repository.failed("rev-parse", &output)) }
    }

    /// Runs git on this repository and nothing else: without the caller's environment and configuration, and without prompts.
    /// Naming the git directory also keeps git from looking into parent folders, and from refusing another user's repository,
    /// which is meant for repositories found by chance.
    async fn git(&self, args: &[&str], input: &str, limit: usize) -> Result<Output, SourceError> {
        let command = *args.first().unwrap_or(&"");
        let error = |what: String| SourceError::Git { command: command.to_owned(), repository: self.project.clone(), what };
        let mut child = Command::new("git")
            .arg("--git-dir")
            .arg(&self.git_dir)
            .args(["-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-c", "i18n.logOutputEncoding=UTF-8"])
            .args(args)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            // A replacement would give another content than the commit's id promises.
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|cause| error(format!("git cannot be started ({cause}): install git")))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(error("git has no pipes".to_owned()));
        };
        let write = async {
            // A git that ends early closes its side; its exit code tells why.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        };
        let bytes = |limit: usize| u64::try_from(limit).unwrap_or(u64::MAX);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut stdout = stdout.take(bytes(limit.saturating_add(1)));
        let mut stderr = stderr.take(bytes(4096));
        let talk = async {
            let ((), read_out, read_err) = tokio::join!(write, stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
            read_out.and(read_err)
        };
        match tokio::time::timeout(TIMEOUT, talk).await {
            Err(_) => return Err(error(format!("no answer within {} s: check the disk that holds it", TIMEOUT.as_secs()))),
            Ok(Err(cause)) => return Err(error(format!("its output cannot be read: {cause}"))),
            Ok(Ok(_)) => {}
        }
        let cut = out.len() > limit;
        // What is cut is not waited for; dropping the child ends it.
        let code = if cut {
            None
        } else {
            let waited = tokio::time::timeout(TIMEOUT, child.wait()).await;
            waited.map_err(|_| error("it does not end".to_owned()))?.map_err(|cause| error(cause.to_string()))?.code()
        };
        Ok(Output { code, stdout: out, cut, stderr: String::from_utf8_lossy(&err).trim().to_owned() })
    }

    fn failed(&self, command: &str, output: &Output) -> SourceError {
        let what = match (output.cut, output.stderr.lines().next()) {
            (true, _) => "its output is too large".to_owned(),
            (false, Some(line)) => line.to_owned(),
            (false, None) => output.code.map_or_else(|| "it was killed".to_owned(), |code| format!("exit code {code}")),
        };
        SourceError::Git { command: command.to_owned(), repository: self.project.clone(), what }
    }

    /// What a name resolves to as a commit.
    async fn resolve(&self, name: &str) -> Result<Option<CommitId>, SourceError> {
        let output = self.git(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")], "", MAX_OUTPUT_BYTES).await?;
        let line = String::from_utf8_lossy(&output.stdout);
        match output.code {
            Some(0) => CommitId::new(line.trim()).map(Some).map_err(|_| self.failed("rev-parse", &output)),
            // 128 without a word is an unknown object under --quiet.
            Some(1 | 128) => Ok(None),
            _ => Err(self.failed("rev-parse", &output)),
        }
    }

    /// The full id of an annotated tag resolves too, but to another id: only a commit's own counts.
    async fn exists(&self, commit: &CommitId) -> Result<bool, SourceError> {
        Ok(self.resolve(commit.as_str()).await?.as_ref() == Some(commit))
    }

    async fn require(&self, commit: &CommitId) -> Result<(), SourceError> {
        if self.exists(commit).await? {
            return Ok(());
        }
        Err(SourceError::NoCommit { commit: commit.clone(), project: self.project.clone() })
    }

    /// The ids and sizes of files at a commit.
    async fn blobs(&self, paths: &[String], commit: &CommitId) -> Result<Vec<(String, usize)>, SourceError> {
        let names: Vec<String> = paths.iter().map(|path| format!("{commit}:{path}")).collect();
        let check = "--batch-check=%(objecttype) %(objectsize) %(objectname)";
        let output = self.git(&["cat-file", check], &lines(&names), MAX_OUTPUT_BYTES).await?;
        let answers = String::from_utf8_lossy(&output.stdout);
        let answers: Vec<&str> = answers.lines().collect();
        if output.code != Some(0) || answers.len() != paths.len() {
            return Err(self.failed("cat-file", &output));
        }
        let blob = |(path, line): (&String, &&str)| {
            // "<name> missing" begins with the commit's id, which is no type.
            let mut words = line.split(' ');
            let (Some("blob"), Some(size), Some(id)) = (words.next(), words.next().and_then(|size| size.parse().ok()), words.next()) else {
                return Err(self.no_file(path, commit));
            };
            if size > MAX_FILE_BYTES {
                return Err(SourceError::TooLarge { path: path.clone(), commit: commit.clone(), project: self.project.clone() });
            }
            Ok((id.to_owned(), size))
        };
        paths.iter().zip(&answers).map(blob).collect()
    }
}

/// What git reads line by line: each line ends with a line break, also the last.
fn lines<T: AsRef<str>>(items: &[T]) -> String {
    items.iter().flat_map(|item| [item.as_ref(), "\n"]).collect()
}

#[async_trait]
impl Source for GitRepository {
    fn project(&self) -> &str {
        &self.project
    }

    async fn files(&self, paths: &[String], commit: &CommitId) -> Result<Vec<String>, SourceError> {
        paths.iter().try_for_each(|path| source::check_path(path))?;
        self.require(commit).await?;
        let blobs = self.blobs(paths, commit).await?;
        let ids: Vec<&str> = blobs.iter().map(|(id, _)| id.as_str()).collect();
        // Each content follows a line "<id> blob <size>" and ends with a line break of git's own.
        let limit = blobs.iter().map(|(_, size)| size.saturating_add(128)).sum();
        let output = self.git(&["cat-file", "--batch"], &lines(&ids), limit).await?;
        let mut rest = output.stdout.as_slice();
        let mut content = |(id, size): &(String, usize)| {
            let after = rest.strip_prefix(format!("{id} blob {size}\n").as_bytes())?;
            let (content, after) = after.split_at_checked(*size)?;
            rest = after.strip_prefix(b"\n")?;
            Some(content.to_vec())
        };
        let mut files = Vec::new();
        for (path, blob) in paths.iter().zip(&blobs) {
            let bytes = content(blob).ok_or_else(|| self.failed("cat-file", &output))?;
            files.push(source::text(bytes, path, commit, &self.project)?);
        }
        Ok(files)
    }

    async fn changed_paths(&self, from: &CommitId, to: &CommitId) -> Result<Changes, SourceError> {
        self.require(to).await?;
        if !self.exists(from).await? {
            return Ok(Changes::All);
        }
        let args = ["diff-tree", "-r", "-z", "--name-only", "--no-renames", "--no-ext-diff", from.as_str(), to.as_str()];
        let output = self.git(&args, "", MAX_OUTPUT_BYTES).await?;
        if output.cut {
            return Ok(Changes::All);
        }
        if output.code != Some(0) {
            return Err(self.failed("diff-tree", &output));
        }
        let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let paths: BTreeSet<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        Ok(Changes::Paths(paths))
    }

    async fn ancestry(&self, a: &CommitId, b: &CommitId) -> Result<Ancestry, SourceError> {
        self.require(a).await?;
        if a == b {
            return Ok(Ancestry::Same);
        }
        self.require(b).await?;
        let output = self.git(&["merge-base", a.as_str(), b.as_str()], "", MAX_OUTPUT_BYTES).await?;
        let base = String::from_utf8_lossy(&output.stdout);
        match output.code {
            Some(0) if base.trim() == a.as_str() => Ok(Ancestry::Older),
            Some(0) if base.trim() == b.as_str() => Ok(Ancestry::Newer),
            // 1: they have no common ancestor.
            Some(0 | 1) => Ok(Ancestry::Diverged),
            _ => Err(self.failed("merge-base", &output)),
        }
    }

    async fn commit(&self, commit: &CommitId) -> Result<CommitInfo, SourceError> {
        self.require(commit).await?;
        let args = ["log", "-1", "--no-show-signature", "--format=%an%x00%ct%x00%s", commit.as_str()];
        let output = self.git(&args, "", MAX_OUTPUT_BYTES).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut fields = text.trim_end_matches('\n').split('\0');
        let (Some(0), Some(author), Some(seconds), Some(title)) = (output.code, fields.next(), fields.next(), fields.next()) else {
            return Err(self.failed("log", &output));
        };
        let committed_at = seconds.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        Ok(CommitInfo {
            sha: commit.clone(),
            author: author.to_owned(),
            title: title.to_owned(),
            web_url: None,
            committed_at: committed_at.ok_or_else(|| self.failed("log", &output))?,
        })
    }

    async fn head(&self, branch: &str) -> Result<CommitId, SourceError> {
        let no_branch = || SourceError::NoBranch { branch: branch.to_owned(), project: self.project.clone() };
        if !source::is_branch_name(branch) {
            return Err(no_branch());
        }
        self.resolve(&format!("refs/heads/{branch}")).await?.ok_or_else(no_branch)
    }
}

//! A git repository with every shape of history that a source is asked about.

use std::path::{Path, PathBuf};
use std::process::Command;

use kopsline_core::CommitId;
use tempfile::TempDir;

/// The repository and its commits.
pub(crate) struct Fixture {
    folder: TempDir,
    /// cluster.yml, nodes/a.yml, README.md
    pub(crate) first: CommitId,
    /// changes cluster.yml
    pub(crate) second: CommitId,
    /// on a branch from the first: adds side.yml
    pub(crate) side: CommitId,
    /// merges the side into the second
    pub(crate) merge: CommitId,
    /// renames nodes/a.yml to nodes/b.yml
    pub(crate) renamed: CommitId,
    /// deletes README.md; the head of master
    pub(crate) deleted: CommitId,
    /// a history of its own: large.yml, binary.yml, "ä b.yml", link.yml
    pub(crate) unrelated: CommitId,
    /// an annotated tag's own id
    pub(crate) tag: CommitId,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository(folder.path().to_owned());
        repository.git(&["init", "--quiet", "--initial-branch=master"]);
        repository.write("cluster.yml", b"kind: Cluster\n");
        repository.write("nodes/a.yml", b"kind: InstanceGroup\nmetadata:\n  name: a\nspec:\n  machineType: m5.large\n");
        repository.write("README.md", b"clusters\n");
        let first = repository.commit("first");
        repository.write("cluster.yml", b"kind: Cluster\nspec: {}\n");
        let second = repository.commit("Give the cluster a spec\n\nwith a body");
        repository.git(&["checkout", "--quiet", "-b", "feature/side", first.as_str()]);
        repository.write("side.yml", b"kind: SSHCredential\n");
        let side = repository.commit("side");
        repository.git(&["checkout", "--quiet", "master"]);
        repository.git(&["merge", "--quiet", "--no-ff", "-m", "Merge branch 'feature/side'", "feature/side"]);
        let merge = repository.id("HEAD");
        repository.git(&["mv", "nodes/a.yml", "nodes/b.yml"]);
        let renamed = repository.commit("rename");
        repository.git(&["rm", "--quiet", "README.md"]);
        let deleted = repository.commit("delete");
        repository.git(&["tag", "--annotate", "-m", "a release", "v1", "HEAD"]);
        let tag = repository.id("refs/tags/v1");
        repository.git(&["checkout", "--quiet", "--orphan", "unrelated"]);
        repository.git(&["rm", "--quiet", "-r", "--force", "."]);
        repository.write("large.yml", &vec![b'#'; kopsline_gitlab::MAX_FILE_BYTES + 1]);
        repository.write("binary.yml", b"kind: Cluster\n\xff\n");
        repository.write("ä b.yml", "name: ä\r\n".as_bytes());
        let unrelated = repository.commit("unrelated");
        repository.git(&["checkout", "--quiet", "master"]);
        Self { folder, first, second, side, merge, renamed, deleted, unrelated, tag }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        Repository(self.folder.path().to_owned()).git(args)
    }
}

struct Repository(PathBuf);

impl Repository {
    fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(&self.0)
            .args(["-c", "user.name=Jane Doe", "-c", "user.email=jane@example.com", "-c", "commit.gpgSign=false"])
            .args(args)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "2026-03-21T09:06:12+0300")
            .env("GIT_AUTHOR_DATE", "2026-03-20T09:06:12+0300")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn write(&self, path: &str, content: &[u8]) {
        let file = self.0.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    fn commit(&self, message: &str) -> CommitId {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", message]);
        self.id("HEAD")
    }

    fn id(&self, name: &str) -> CommitId {
        CommitId::new(self.git(&["rev-parse", name]).trim()).unwrap()
    }
}

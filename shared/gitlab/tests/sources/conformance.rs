//! The same questions to every source, with the same answers expected.
//!
//! The repository on disk is always asked. GitLab, or a stand-in for it, is asked too when it is named:
//! `KOPSLINE_TEST_GITLAB_URL` (base URL), `KOPSLINE_TEST_GITLAB_TOKEN`, `KOPSLINE_TEST_GITLAB_PROJECT` (full path) and
//! `KOPSLINE_TEST_GITLAB_REMOTE` (what `git push` reaches the project by: a URL or a folder). The test pushes to branches of
//! names of its own, `conformance-...`, and removes them.

use crate::fixture::Fixture;
use kopsline_core::CommitId;
use kopsline_gitlab::{Ancestry, Changes, GitLab, GitLabSource, GitRepository, Source, SourceError};
use secrecy::SecretString;

/// Asks everything. `prefix` precedes the names of branches.
async fn conforms(source: &dyn Source, fixture: &Fixture, prefix: &str) {
    files(source, fixture).await;
    missing_files(source, fixture).await;
    changes(source, fixture).await;
    ancestry(source, fixture).await;
    commits(source, fixture).await;
    heads(source, fixture, prefix).await;
}

async fn files(source: &dyn Source, fixture: &Fixture) {
    assert_eq!(source.file("cluster.yml", &fixture.first).await.unwrap(), "kind: Cluster\n");
    assert_eq!(source.file("cluster.yml", &fixture.second).await.unwrap(), "kind: Cluster\nspec: {}\n");
    assert_eq!(source.file("cluster.yml", &fixture.side).await.unwrap(), "kind: Cluster\n");
    assert_eq!(source.file("ä b.yml", &fixture.unrelated).await.unwrap(), "name: ä\r\n");
    let paths = ["side.yml", "cluster.yml", "nodes/b.yml", "cluster.yml"].map(str::to_owned);
    let contents = source.files(&paths, &fixture.deleted).await.unwrap();
    let starts: Vec<&str> = contents.iter().map(|content| content.lines().next().unwrap()).collect();
    assert_eq!(starts, ["kind: SSHCredential", "kind: Cluster", "kind: InstanceGroup", "kind: Cluster"]);
}

async fn missing_files(source: &dyn Source, fixture: &Fixture) {
    for path in ["no.yml", "nodes/a.yml", "README.md", "nodes", "cluster.yml/x", "no such file 5"] {
        match source.file(path, &fixture.deleted).await {
            Err(SourceError::NoFile { path: named, commit, project }) => {
                assert_eq!((named.as_str(), &commit, project.as_str()), (path, &fixture.deleted, source.project()));
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    let paths = ["cluster.yml", "no.yml"].map(str::to_owned);
    assert!(matches!(source.files(&paths, &fixture.first).await, Err(SourceError::NoFile { path, .. }) if path == "no.yml"));
    for path in ["../cluster.yml", "/etc/passwd", "nodes/../cluster.yml", "./cluster.yml", "cluster.yml\n", ""] {
        assert!(matches!(source.file(path, &fixture.first).await, Err(SourceError::BadPath { .. })), "{path}");
    }
    assert!(matches!(source.file("large.yml", &fixture.unrelated).await, Err(SourceError::TooLarge { .. })));
    assert!(matches!(source.file("binary.yml", &fixture.unrelated).await, Err(SourceError::NotText { line: 2, .. })));
}

async fn changes(source: &dyn Source, fixture: &Fixture) {
    let paths = |paths: &[&str]| Changes::Paths(paths.iter().map(|path| (*path).to_owned()).collect());
    for (from, to, expected) in [
        (&fixture.first, &fixture.first, paths(&[])),
        (&fixture.first, &fixture.second, paths(&["cluster.yml"])),
        // Backwards, as after a force push.
        (&fixture.second, &fixture.first, paths(&["cluster.yml"])),
        // Between two branches: what differs, not what each added.
        (&fixture.second, &fixture.side, paths(&["cluster.yml", "side.yml"])),
        (&fixture.second, &fixture.merge, paths(&["side.yml"])),
        (&fixture.side, &fixture.merge, paths(&["cluster.yml"])),
        (&fixture.merge, &fixture.renamed, paths(&["nodes/a.yml", "nodes/b.yml"])),
        (&fixture.renamed, &fixture.deleted, paths(&["README.md"])),
        (&fixture.deleted, &fixture.unrelated, paths(&["cluster.yml", "nodes/b.yml", "side.yml", "large.yml", "binary.yml", "ä b.yml"])),
        (&unknown(), &fixture.first, Changes::All),
    ] {
        assert_eq!(source.changed_paths(from, to).await.unwrap(), expected, "{from} to {to}");
    }
    assert!(
        matches!(source.changed_paths(&fixture.first, &unknown()).await, Err(SourceError::NoCommit { commit, .. }) if commit == unknown())
    );
}

async fn ancestry(source: &dyn Source, fixture: &Fixture) {
    for (a, b, expected) in [
        (&fixture.first, &fixture.first, Ancestry::Same),
        (&fixture.first, &fixture.deleted, Ancestry::Older),
        (&fixture.deleted, &fixture.first, Ancestry::Newer),
        (&fixture.side, &fixture.merge, Ancestry::Older),
        (&fixture.merge, &fixture.second, Ancestry::Newer),
        (&fixture.side, &fixture.second, Ancestry::Diverged),
        (&fixture.unrelated, &fixture.deleted, Ancestry::Diverged),
    ] {
        assert_eq!(source.ancestry(a, b).await.unwrap(), expected, "{a} to {b}");
    }
    for (a, b) in [(&fixture.first, &unknown()), (&unknown(), &fixture.first)] {
        assert!(matches!(source.ancestry(a, b).await, Err(SourceError::NoCommit { commit, .. }) if commit == unknown()));
    }
}

async fn commits(source: &dyn Source, fixture: &Fixture) {
    let commit = source.commit(&fixture.second).await.unwrap();
    assert_eq!((&commit.sha, commit.author.as_str(), commit.title.as_str()), (&fixture.second, "Jane Doe", "Give the cluster a spec"));
    assert_eq!(commit.committed_at.to_string(), "2026-03-21T06:06:12Z");
    assert_eq!(source.commit(&fixture.merge).await.unwrap().title, "Merge branch 'feature/side'");
    for unknown in [&unknown(), &CommitId::new(&"0".repeat(40)).unwrap(), &CommitId::new(&"a".repeat(64)).unwrap()] {
        assert!(matches!(source.commit(unknown).await, Err(SourceError::NoCommit { commit, .. }) if commit == *unknown));
        assert!(matches!(source.file("cluster.yml", unknown).await, Err(SourceError::NoCommit { .. })));
    }
}

async fn heads(source: &dyn Source, fixture: &Fixture, prefix: &str) {
    for (branch, head) in [("master", &fixture.deleted), ("feature/side", &fixture.side)] {
        assert_eq!(source.head(&format!("{prefix}{branch}")).await.unwrap(), *head);
    }
    for branch in [format!("{prefix}gone"), "../master".into(), "v1".into(), fixture.first.to_string(), String::new()] {
        assert!(matches!(source.head(&branch).await, Err(SourceError::NoBranch { .. })), "{branch}");
    }
}

fn unknown() -> CommitId {
    CommitId::new(&"d".repeat(40)).unwrap()
}

#[tokio::test]
async fn a_repository_on_disk() {
    let fixture = Fixture::new();
    let source = GitRepository::open(fixture.folder()).await.unwrap();
    conforms(&source, &fixture, "").await;
}

#[tokio::test]
async fn gitlab() {
    let Ok(url) = std::env::var("KOPSLINE_TEST_GITLAB_URL") else {
        eprintln!("KOPSLINE_TEST_GITLAB_URL is not set: GitLab is not asked");
        return;
    };
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let fixture = Fixture::new();
    let client = GitLab::new(&url, &SecretString::from(variable("KOPSLINE_TEST_GITLAB_TOKEN"))).unwrap();
    let source = GitLabSource::new(client, variable("KOPSLINE_TEST_GITLAB_PROJECT"));
    let remote = variable("KOPSLINE_TEST_GITLAB_REMOTE");
    let prefix = format!("conformance-{}-", std::process::id());
    let branches = ["master", "feature/side", "unrelated"];
    for branch in branches {
        fixture.git(&["push", "--quiet", &remote, &format!("{branch}:refs/heads/{prefix}{branch}")]);
    }
    conforms(&source, &fixture, &prefix).await;
    for branch in branches {
        fixture.git(&["push", "--quiet", &remote, &format!(":refs/heads/{prefix}{branch}")]);
    }
}

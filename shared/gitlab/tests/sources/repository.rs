//! What only a repository on disk can do, or be attacked by.

use crate::fixture::Fixture;
use kopsline_gitlab::{GitRepository, Source, SourceError};

#[tokio::test]
async fn bare_repositories_and_linked_work_trees() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().unwrap();
    let (bare, linked) = (folder.path().join("bare.git"), folder.path().join("linked"));
    fixture.git(&["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
    fixture.git(&["worktree", "add", "--quiet", linked.to_str().unwrap(), "feature/side"]);
    for path in [&bare, &linked] {
        let source = GitRepository::open(path).await.unwrap();
        assert_eq!(source.head("master").await.unwrap(), fixture.deleted);
        assert_eq!(source.file("side.yml", &fixture.side).await.unwrap(), "kind: SSHCredential\n");
    }
}

#[tokio::test]
async fn what_is_not_committed_is_not_read() {
    let fixture = Fixture::new();
    std::fs::write(fixture.folder().join("cluster.yml"), "kind: Draft\n").unwrap();
    std::fs::write(fixture.folder().join("new.yml"), "kind: Draft\n").unwrap();
    let source = GitRepository::open(fixture.folder()).await.unwrap();
    assert_eq!(source.file("cluster.yml", &fixture.deleted).await.unwrap(), "kind: Cluster\nspec: {}\n");
    assert!(matches!(source.file("new.yml", &fixture.deleted).await, Err(SourceError::NoFile { .. })));
}

#[tokio::test]
async fn a_tags_own_id_is_no_commit() {
    let fixture = Fixture::new();
    let source = GitRepository::open(fixture.folder()).await.unwrap();
    assert!(matches!(source.commit(&fixture.tag).await, Err(SourceError::NoCommit { .. })));
    assert!(matches!(source.file("cluster.yml", &fixture.tag).await, Err(SourceError::NoCommit { .. })));
}

#[tokio::test]
async fn replacements_do_not_change_what_a_commit_means() {
    let fixture = Fixture::new();
    fixture.git(&["replace", fixture.first.as_str(), fixture.second.as_str()]);
    let source = GitRepository::open(fixture.folder()).await.unwrap();
    assert_eq!(source.file("cluster.yml", &fixture.first).await.unwrap(), "kind: Cluster\n");
}

#[tokio::test]
async fn the_repositorys_configuration_runs_nothing() {
    let fixture = Fixture::new();
    let trace = fixture.folder().join("ran");
    let run = format!("touch {}; false", trace.display());
    for key in ["core.fsmonitor", "diff.external", "gpg.program", "core.pager", "diff.yaml.textconv"] {
        fixture.git(&["config", key, &run]);
    }
    fixture.git(&["config", "log.showSignature", "true"]);
    fixture.git(&["config", "pager.log", "true"]);
    std::fs::write(fixture.folder().join(".git/info/attributes"), "* diff=yaml\n").unwrap();
    let source = GitRepository::open(fixture.folder()).await.unwrap();
    source.commit(&fixture.merge).await.unwrap();
    source.changed_paths(&fixture.first, &fixture.deleted).await.unwrap();
    source.file("cluster.yml", &fixture.first).await.unwrap();
    assert!(!trace.exists());
}

#[tokio::test]
async fn what_is_no_repository() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("missing")] {
        let error = GitRepository::open(&path).await.unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains(&path.display().to_string()) && shown.contains("not a git repository"), "{shown}");
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn a_folder_inside_a_repository_is_none_itself() {
    let fixture = Fixture::new();
    assert!(GitRepository::open(&fixture.folder().join("nodes")).await.is_err());
}

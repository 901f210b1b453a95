//! A project in GitLab as a source, through the REST API.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use kopsline_core::CommitId;
use reqwest::StatusCode;
use serde::Deserialize;

use crate::client::{Answer, GitLab, GitLabError};
use crate::source::{self, Ancestry, Changes, CommitInfo, MAX_FILE_BYTES, Source, SourceError};

/// A comparison carries the text of every difference, wanted or not. Beyond this many bytes it is not read on.
const MAX_COMPARE_BYTES: usize = 8 * 1024 * 1024;

/// GitLab's default limit of files in a difference (`diff_max_files`). A comparison at it may have been cut without saying so.
const MAX_COMPARED_FILES: usize = 1000;

/// Requests for files at the same time: GitLab's default rate limit for raw files is 300 per minute.
const CONCURRENT_FILES: usize = 4;

/// A project in GitLab.
#[derive(Debug, Clone)]
pub struct GitLabSource {
    client: GitLab,
    project: String,
}

#[derive(Deserialize)]
struct RawCommit {
    id: CommitId,
    title: String,
    author_name: String,
    committed_date: Timestamp,
    web_url: Option<String>,
}

#[derive(Deserialize)]
struct RawBranch {
    commit: RawHead,
}

#[derive(Deserialize)]
struct RawHead {
    id: CommitId,
}

#[derive(Deserialize)]
struct RawCompare {
    diffs: Option<Vec<RawDiff>>,
    #[serde(default)]
    compare_timeout: bool,
}

#[derive(Deserialize)]
struct RawDiff {
    old_path: String,
    new_path: String,
}

impl GitLabSource {
    /// The project with this number or full path.
    pub fn new(client: GitLab, project: impl Into<String>) -> Self {
        Self { client, project: project.into() }
    }

    async fn bytes(&self, path: &str, commit: &CommitId) -> Result<Vec<u8>, SourceError> {
        let segments = ["projects", &self.project, "repository", "files", path, "raw"];
        let answer = self.client.get(&segments, &[("ref", commit.as_str())], MAX_FILE_BYTES).await?;
        if answer.status == StatusCode::NOT_FOUND && answer.message.contains("File Not Found") {
            return Err(self.no_file(path, commit));
        }
        if is_unknown_commit(&answer) {
            return Err(self.no_commit(commit));
        }
        if !answer.status.is_success() {
            return Err(answer.refused().into());
        }
        answer.body.ok_or_else(|| SourceError::TooLarge { path: path.to_owned(), commit: commit.clone(), project: self.project.clone() })
    }

    fn no_commit(&self, commit: &CommitId) -> SourceError {
        SourceError::NoCommit { commit: commit.clone(), project: self.project.clone() }
    }
}

/// GitLab says "404 Commit Not Found" and "404 Ref Not Found" (lib/api/files.rb, commits.rb and repositories.rb).
fn is_unknown_commit(answer: &Answer) -> bool {
    answer.status == StatusCode::NOT_FOUND && ["Commit Not Found", "Ref Not Found"].iter().any(|text| answer.message.contains(text))
}

#[async_trait]
impl Source for GitLabSource {
    fn project(&self) -> &str {
        &self.project
    }

    async fn files(&self, paths: &[String], commit: &CommitId) -> Result<Vec<String>, SourceError> {
        paths.iter().try_for_each(|path| source::check_path(path))?;
        let file = async |path: &String| source::text(self.bytes(path, commit).await?, path, commit, &self.project);
        // Boxed: the compiler cannot yet prove a borrowing async closure's future `Send` inside a stream.
        let files: Vec<_> = paths.iter().map(|path| -> futures::future::BoxFuture<'_, _> { Box::pin(file(path)) }).collect();
        futures::stream::iter(files).buffered(CONCURRENT_FILES).try_collect().await
    }

    async fn changed_paths(&self, from: &CommitId, to: &CommitId) -> Result<Changes, SourceError> {
        let segments = ["projects", &self.project, "repository", "compare"];
        // Straight: between the two trees. The default compares with the merge base, which misses what a force push took away.
        let query = [("from", from.as_str()), ("to", to.as_str()), ("straight", "true")];
        let answer = self.client.get(&segments, &query, MAX_COMPARE_BYTES).await?;
        if is_unknown_commit(&answer) {
            // The answer does not say which of the two.
            self.commit(to).await?;
            return Ok(Changes::All);
        }
        if answer.status.is_success() && answer.body.is_none() {
            return Ok(Changes::All);
        }
        let compare: RawCompare = answer.json()?;
        Ok(match compare.diffs {
            Some(diffs) if !compare.compare_timeout && diffs.len() < MAX_COMPARED_FILES => {
                let paths: BTreeSet<String> = diffs.into_iter().flat_map(|diff| [diff.old_path, diff.new_path]).collect();
                Changes::Paths(paths)
            }
            _ => Changes::All,
        })
    }

    async fn ancestry(&self, a: &CommitId, b: &CommitId) -> Result<Ancestry, SourceError> {
        let segments = ["projects", &self.project, "repository", "merge_base"];
        let answer = self.client.get_document(&segments, &[("refs[]", a.as_str()), ("refs[]", b.as_str())]).await?;
        if answer.status == StatusCode::NOT_FOUND && answer.message.contains("Merge Base") {
            return Ok(Ancestry::Diverged);
        }
        if answer.status == StatusCode::BAD_REQUEST {
            // "Could not find ref: <sha>" names the one, or both.
            if let Some(unknown) = [a, b].into_iter().find(|commit| answer.message.contains(commit.as_str())) {
                return Err(self.no_commit(unknown));
            }
        }
        let base: RawHead = answer.json()?;
        Ok(match (base.id == *a, base.id == *b) {
            (true, true) => Ancestry::Same,
            (true, false) => Ancestry::Older,
            (false, true) => Ancestry::Newer,
            (false, false) => Ancestry::Diverged,
        })
    }

    async fn commit(&self, commit: &CommitId) -> Result<CommitInfo, SourceError> {
        let segments = ["projects", &self.project, "repository", "commits", commit.as_str()];
        let answer = self.client.get_document(&segments, &[]).await?;
        if is_unknown_commit(&answer) {
            return Err(self.no_commit(commit));
        }
        let (method, path) = (answer.method.clone(), answer.path.clone());
        let raw: RawCommit = answer.json()?;
        if raw.id != *commit {
            let what = format!("it is about commit {}", raw.id);
            return Err(GitLabError::Answer { method, path, what }.into());
        }
        Ok(CommitInfo { sha: raw.id, author: raw.author_name, title: raw.title, web_url: raw.web_url, committed_at: raw.committed_date })
    }

    async fn head(&self, branch: &str) -> Result<CommitId, SourceError> {
        let no_branch = || SourceError::NoBranch { branch: branch.to_owned(), project: self.project.clone() };
        if !source::is_branch_name(branch) {
            return Err(no_branch());
        }
        let answer = self.client.get_document(&["projects", &self.project, "repository", "branches", branch], &[]).await?;
        if answer.status == StatusCode::NOT_FOUND && answer.message.contains("Branch Not Found") {
            return Err(no_branch());
        }
        let raw: RawBranch = answer.json()?;
        Ok(raw.commit.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{SHA, TOKEN, client};
    use serde_json::{Value, json};
    use wiremock::matchers::{header, method, path, query_param};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    const OTHER: &str = "95790bf891e76fee5e1747ab589903a6a1f80f22";
    const PROJECT: &str = "/gitlab/api/v4/projects/platform%2Fclusters";

    fn sha(text: &str) -> CommitId {
        CommitId::new(text).unwrap()
    }

    async fn server() -> (MockServer, GitLabSource) {
        let server = MockServer::start().await;
        let source = GitLabSource::new(client(&format!("{}/gitlab/", server.uri())), "platform/clusters");
        (server, source)
    }

    async fn answer(server: &MockServer, endpoint: &str, response: ResponseTemplate) {
        Mock::given(method("GET"))
            .and(path(format!("{PROJECT}/repository/{endpoint}")))
            .and(header("PRIVATE-TOKEN", TOKEN))
            .respond_with(response)
            .mount(server)
            .await;
    }

    fn ok(body: &Value) -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(body)
    }

    fn not_found(what: &str) -> ResponseTemplate {
        ResponseTemplate::new(404).set_body_json(json!({"message": format!("404 {what} Not Found")}))
    }

    #[tokio::test]
    async fn a_file_at_a_commit() {
        let (server, source) = server().await;
        Mock::given(path(format!("{PROJECT}/repository/files/clusters%2Fprod%20eu.yaml/raw")))
            .and(query_param("ref", SHA))
            .respond_with(ResponseTemplate::new(200).set_body_string("kind: Cluster\n"))
            .expect(1)
            .mount(&server)
            .await;
        assert_eq!(source.file("clusters/prod eu.yaml", &sha(SHA)).await.unwrap(), "kind: Cluster\n");
    }

    #[tokio::test]
    async fn files_keep_their_order() {
        let (server, source) = server().await;
        let paths: Vec<String> = (0..9).map(|number| format!("{number}.yaml")).collect();
        for (path, delay) in paths.iter().zip([50, 40, 30, 20, 10, 0, 5, 0, 0]) {
            let response = ResponseTemplate::new(200).set_body_string(path).set_delay(std::time::Duration::from_millis(delay));
            answer(&server, &format!("files/{path}/raw"), response).await;
        }
        assert_eq!(source.files(&paths, &sha(SHA)).await.unwrap(), paths);
        assert_eq!(source.files(&[], &sha(SHA)).await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let (server, source) = server().await;
        answer(&server, "files/kopsline.yaml/raw", not_found("File")).await;
        let error = source.file("kopsline.yaml", &sha(SHA)).await.unwrap_err();
        assert!(matches!(error, SourceError::NoFile { .. }));
        assert_eq!(
            error.to_string(),
            "kopsline.yaml: there is no such file in platform/clusters at commit da1560886d4f: add it, or correct the path where it is named"
        );
    }

    #[tokio::test]
    async fn unknown_commits_and_projects_are_told_apart() {
        let (server, source) = server().await;
        answer(&server, "files/a.yaml/raw", not_found("Commit")).await;
        answer(&server, "files/b.yaml/raw", not_found("Project")).await;
        answer(&server, &format!("commits/{SHA}"), not_found("Commit")).await;
        assert!(matches!(source.file("a.yaml", &sha(SHA)).await, Err(SourceError::NoCommit { .. })));
        assert!(matches!(source.commit(&sha(SHA)).await, Err(SourceError::NoCommit { .. })));
        let error = source.file("b.yaml", &sha(SHA)).await.unwrap_err().to_string();
        assert!(error.contains("404 (404 Project Not Found); check the project's path"), "{error}");
    }

    #[tokio::test]
    async fn files_too_large_or_not_text() {
        let (server, source) = server().await;
        answer(&server, "files/most/raw", ResponseTemplate::new(200).set_body_bytes(vec![b'x'; MAX_FILE_BYTES])).await;
        answer(&server, "files/large/raw", ResponseTemplate::new(200).set_body_bytes(vec![b'x'; MAX_FILE_BYTES + 1])).await;
        answer(&server, "files/binary/raw", ResponseTemplate::new(200).set_body_bytes(b"a\n\xff".to_vec())).await;
        assert_eq!(source.file("most", &sha(SHA)).await.unwrap().len(), MAX_FILE_BYTES);
        assert!(matches!(source.file("large", &sha(SHA)).await, Err(SourceError::TooLarge { .. })));
        assert!(matches!(source.file("binary", &sha(SHA)).await, Err(SourceError::NotText { line: 2, .. })));
    }

    #[tokio::test]
    async fn paths_that_lead_outside_are_never_asked_for() {
        let (server, source) = server().await;
        assert!(matches!(source.file("../../secret", &sha(SHA)).await, Err(SourceError::BadPath { .. })));
        assert!(matches!(source.head("../x").await, Err(SourceError::NoBranch { .. })));
        assert!(server.received_requests().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_outage_is_transient_and_says_what_was_tried() {
        let (server, source) = server().await;
        answer(&server, "files/kopsline.yaml/raw", ResponseTemplate::new(502)).await;
        let error = source.file("kopsline.yaml", &sha(SHA)).await.unwrap_err();
        assert!(error.is_transient());
        let shown = error.to_string();
        assert!(shown.contains("GET /gitlab/api/v4/projects/platform%2Fclusters/repository/files/kopsline.yaml/raw"), "{shown}");
        assert!(shown.contains("after 3 attempts") && shown.contains("502 Bad Gateway") && !shown.contains("ref="), "{shown}");
    }

    async fn compare(body: &Value) -> Changes {
        let (server, source) = server().await;
        Mock::given(path(format!("{PROJECT}/repository/compare")))
            .and(query_param("from", OTHER))
            .and(query_param("to", SHA))
            .and(query_param("straight", "true"))
            .respond_with(ok(body))
            .mount(&server)
            .await;
        source.changed_paths(&sha(OTHER), &sha(SHA)).await.unwrap()
    }

    fn diff(old: &str, new: &str) -> Value {
        json!({"old_path": old, "new_path": new, "a_mode": "100644", "b_mode": "100644", "diff": "@@ -1 +1 @@", "new_file": false, "renamed_file": old != new, "deleted_file": false})
    }

    #[tokio::test]
    async fn changed_paths_hold_both_names_of_a_rename() {
        let body = json!({"commit": null, "commits": [], "diffs": [diff("a", "a"), diff("b", "c")], "compare_timeout": false, "compare_same_ref": false});
        let paths = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(compare(&body).await, Changes::Paths(paths));
        assert_eq!(compare(&json!({"diffs": [], "compare_same_ref": true})).await, Changes::Paths(BTreeSet::new()));
    }

    #[tokio::test]
    async fn a_comparison_that_is_cut_means_everything() {
        assert_eq!(compare(&json!({"diffs": [diff("a", "a")], "compare_timeout": true})).await, Changes::All);
        assert_eq!(compare(&json!({"diffs": vec![diff("a", "a"); MAX_COMPARED_FILES]})).await, Changes::All);
        assert_eq!(compare(&json!({"commits": []})).await, Changes::All);
        let mut huge = diff("a", "a");
        huge["diff"] = "x".repeat(MAX_COMPARE_BYTES).into();
        assert_eq!(compare(&json!({"diffs": [huge]})).await, Changes::All);
    }

    #[tokio::test]
    async fn comparing_from_a_commit_that_is_gone() {
        let (server, source) = server().await;
        answer(&server, "compare", not_found("Ref")).await;
        assert!(
            matches!(source.changed_paths(&sha(OTHER), &sha(SHA)).await, Err(SourceError::GitLab(_))),
            "the newer commit is not known either"
        );
        answer(&server, &format!("commits/{SHA}"), ok(&commit_body())).await;
        assert_eq!(source.changed_paths(&sha(OTHER), &sha(SHA)).await.unwrap(), Changes::All);
    }

    fn commit_body() -> Value {
        json!({
            "id": SHA,
            "short_id": "da156088",
            "title": "More nodes",
            "message": "More nodes\n\nfor the launch",
            "author_name": "Jane Doe",
            "committed_date": "2026-03-21T09:06:12.000+03:00",
            "web_url": format!("https://gitlab.example.com/platform/clusters/-/commit/{SHA}")
        })
    }

    #[tokio::test]
    async fn a_commit() {
        let (server, source) = server().await;
        answer(&server, &format!("commits/{SHA}"), ok(&commit_body())).await;
        let expected = CommitInfo {
            sha: sha(SHA),
            author: "Jane Doe".into(),
            title: "More nodes".into(),
            web_url: Some(format!("https://gitlab.example.com/platform/clusters/-/commit/{SHA}")),
            committed_at: "2026-03-21T06:06:12Z".parse().unwrap(),
        };
        assert_eq!(source.commit(&sha(SHA)).await.unwrap(), expected);
        answer(&server, &format!("commits/{OTHER}"), ok(&commit_body())).await;
        let error = source.commit(&sha(OTHER)).await.unwrap_err().to_string();
        assert!(error.contains(&format!("it is about commit {SHA}")), "{error}");
    }

    #[tokio::test]
    async fn ancestry_follows_from_the_merge_base() {
        let third = "c".repeat(40);
        for (base, expected) in [(SHA, Ancestry::Older), (OTHER, Ancestry::Newer), (&third, Ancestry::Diverged)] {
            let (server, source) = server().await;
            answer(&server, "merge_base", ok(&json!({"id": base}))).await;
            assert_eq!(source.ancestry(&sha(SHA), &sha(OTHER)).await.unwrap(), expected);
            let requests = server.received_requests().await.unwrap();
            assert_eq!(requests[0].url.query().unwrap(), format!("refs%5B%5D={SHA}&refs%5B%5D={OTHER}"));
        }
        let (server, source) = server().await;
        answer(&server, "merge_base", ok(&json!({"id": SHA}))).await;
        assert_eq!(source.ancestry(&sha(SHA), &sha(SHA)).await.unwrap(), Ancestry::Same);
    }

    #[tokio::test]
    async fn ancestry_without_a_base_and_of_unknown_commits() {
        let (server, source) = server().await;
        answer(&server, "merge_base", not_found("Merge Base")).await;
        assert_eq!(source.ancestry(&sha(SHA), &sha(OTHER)).await.unwrap(), Ancestry::Diverged);
        server.reset().await;
        let unknown = ResponseTemplate::new(400).set_body_json(json!({"message": format!("Could not find ref: {OTHER}")}));
        answer(&server, "merge_base", unknown).await;
        match source.ancestry(&sha(SHA), &sha(OTHER)).await {
            Err(SourceError::NoCommit { commit, .. }) => assert_eq!(commit, sha(OTHER)),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_head_of_a_branch() {
        let (server, source) = server().await;
        answer(&server, "branches/release%2F1.36", ok(&json!({"name": "release/1.36", "commit": {"id": SHA}}))).await;
        answer(&server, "branches/gone", not_found("Branch")).await;
        answer(&server, "branches/odd", ok(&json!({"commit": {"id": "short"}}))).await;
        assert_eq!(source.head("release/1.36").await.unwrap(), sha(SHA));
        assert!(matches!(source.head("gone").await, Err(SourceError::NoBranch { .. })));
        let error = source.head("odd").await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("not understood"), "{error}");
    }
}

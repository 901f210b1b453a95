//! From a delivery to its runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use kopsline_core::config::{FILE_NAME, Limits};
use kopsline_core::run::Merge;
use kopsline_core::{ClusterConfig, ClustersFile, CommitId, Failure, FailureKind, Phase, Run, RunId, RunState, keys};
use kopsline_gitlab::{Changes, Event, Push, SourceError, Verifier};
use kopsline_lambda::clients::Origin;
use kopsline_state::Runs;
use lambda_http::http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::executions::Executions;

/// Deliveries, and pushes, that one warm instance remembers.
const REMEMBERED: usize = 1024;

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The metric's word for it.
    pub(crate) outcome: &'static str,
    pub(crate) body: Value,
}

impl Answer {
    fn new(status: u16, outcome: &'static str, body: Value) -> Self {
        Self { status, outcome, body }
    }

    /// GitLab disables a webhook that answers errors, so what is no concern of ours is a success.
    fn ignored(reason: impl Into<String>) -> Self {
        Self::new(200, "ignored", json!({ "ignored": reason.into() }))
    }

    pub(crate) fn unavailable(error: impl Into<String>) -> Self {
        Self::new(503, "unavailable", json!({ "error": error.into() }))
    }
}

/// What a delivery came to: `deliveries/<digest>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    delivery: String,
    received_at: Timestamp,
    runs: Vec<RunId>,
}

/// Receives deliveries.
pub(crate) struct Receiver {
    verifier: Verifier,
    max_body_bytes: usize,
    limits: Limits,
    runs: Runs,
    origin: Origin,
    executions: Box<dyn Executions>,
    /// By the digest of their ids: a repeated one costs no call.
    deliveries: Remembered,
    /// By what was pushed, whose runs are all started: a further delivery of it is only recorded.
    pushes: Remembered,
}

/// The runs of the newest deliveries or pushes.
#[derive(Default)]
struct Remembered(Mutex<Newest>);

#[derive(Default)]
struct Newest {
    runs: BTreeMap<String, Vec<RunId>>,
    order: VecDeque<String>,
}

impl Remembered {
    fn get(&self, key: &str) -> Option<Vec<RunId>> {
        self.newest().runs.get(key).cloned()
    }

    fn insert(&self, key: String, runs: Vec<RunId>) {
        let mut newest = self.newest();
        if newest.runs.insert(key.clone(), runs).is_none() {
            newest.order.push_back(key);
        }
        if newest.order.len() > REMEMBERED
            && let Some(oldest) = newest.order.pop_front()
        {
            newest.runs.remove(&oldest);
        }
    }

    fn newest(&self) -> std::sync::MutexGuard<'_, Newest> {
        // A panic elsewhere leaves the map whole: every change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver {
    pub(crate) fn new(
        verifier: Verifier,
        max_body_bytes: usize,
        limits: Limits,
        runs: Runs,
        origin: Origin,
        executions: Box<dyn Executions>,
    ) -> Self {
        Self {
            verifier,
            max_body_bytes,
            limits,
            runs,
            origin,
            executions,
            deliveries: Remembered::default(),
            pushes: Remembered::default(),
        }
    }

    /// Answers one request. Nothing of the body is parsed before its sender is known.
    pub(crate) async fn receive(&self, method: &Method, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Answer {
        if method != Method::POST {
            return Answer::new(405, "bad-request", json!({ "error": "use POST" }));
        }
        if body.len() > self.max_body_bytes {
            return Answer::new(413, "too-large", json!({ "error": format!("more than {} bytes", self.max_body_bytes) }));
        }
        let delivery = match self.verifier.verify(headers, body, now) {
            Ok(authenticated) => authenticated.delivery_id,
            Err(rejected) => {
                tracing::warn!(reason = %rejected.reason(), "delivery rejected");
                return Answer::new(401, "unauthorized", json!({ "error": rejected.to_string() }));
            }
        };
        let push = match Event::parse(body) {
            Ok(Event::Push(push)) => push,
            Ok(Event::Ignored { event }) => return Answer::ignored(format!("{event} events start nothing")),
            Err(error) => return Answer::new(400, "bad-request", json!({ "error": error.to_string() })),
        };
        if !self.limits.allows_project(&push.project.path_with_namespace) {
            tracing::warn!(project = push.project.path_with_namespace, "project is not allowed");
            return Answer::ignored("this project is not allowed here: add it to the deployment's AllowedProjects parameter");
        }
        if !push.is_to(None) {
            return Answer::ignored("only pushes to the default branch start runs");
        }
        match self.start(&push, &delivery, now).await {
            Ok(answer) => answer,
            Err(failure) if failure.kind == FailureKind::BadInput => {
                tracing::error!(cause = failure.message, project = push.project.path_with_namespace, commit = %push.after, "refused");
                // The delivery is fine, its contents are not: an HTTP error would count against the webhook.
                Answer::new(200, "refused", json!({ "error": failure.message }))
            }
            Err(failure) => {
                tracing::error!(cause = failure.message, error = failure.kind.error_name(), "not received");
                Answer::unavailable("a service behind did not answer; deliver again")
            }
        }
    }

    async fn start(&self, push: &Push, delivery: &str, now: Timestamp) -> Result<Answer, Failure> {
        let digest = hex::encode(Sha256::digest(delivery));
        let duplicate = |runs| Ok(Answer::new(202, "duplicate", json!({ "runs": runs, "duplicate": true })));
        if let Some(runs) = self.deliveries.get(&digest) {
            return duplicate(runs);
        }
        let pushed = pushed(push);
        if let Some(runs) = self.pushes.get(&pushed) {
            self.record(digest, delivery, &runs, now).await?;
            return duplicate(runs);
        }
        if let Some(runs) = self.recorded(&digest).await? {
            return duplicate(runs);
        }
        let clusters = match self.concerned(push).await? {
            Ok(clusters) => clusters,
            Err(reason) => return Ok(Answer::ignored(reason)),
        };
        let mut runs = Vec::new();
        for cluster in clusters {
            let run = new_run(push, cluster, delivery, now);
            self.runs.create(&run).await?;
            self.executions.start(&run.id).await?;
            tracing::info!(run = %run.id, cluster = %run.cluster.name, commit = %push.after, "run started");
            runs.push(run.id);
        }
        // Last, so that a delivery whose runs did not all start is received anew when it is sent again.
        self.record(digest, delivery, &runs, now).await?;
        self.pushes.insert(pushed, runs.clone());
        Ok(Answer::new(202, "started", json!({ "runs": runs })))
    }

    /// Records what a delivery came to.
    async fn record(&self, digest: String, delivery: &str, runs: &[RunId], now: Timestamp) -> Result<(), Failure> {
        let seen = Seen { delivery: delivery.to_owned(), received_at: now, runs: runs.to_vec() };
        self.runs.documents().create(&keys::delivery(&digest), &seen).await?;
        self.deliveries.insert(digest, seen.runs);
        Ok(())
    }

    /// The clusters that a push concerns, or why there are none.
    async fn concerned(&self, push: &Push) -> Result<Result<Vec<ClusterConfig>, String>, Failure> {
        let source = self.origin.source(&push.project.path_with_namespace).await?;
        let changes = async {
            match &push.before {
                Some(before) => source.changed_paths(before, &push.after).await,
                None => Ok(Changes::All),
            }
        };
        let (file, changes) = tokio::join!(source.file(FILE_NAME, &push.after), changes);
        let file = match file {
            Ok(text) => ClustersFile::parse(&text, &self.limits)?,
            Err(SourceError::NoFile { .. }) => return Ok(Err(format!("there is no {FILE_NAME} at the repository's root"))),
            Err(error) => return Err(error.into()),
        };
        let changes = changes?;
        let watches = |cluster: &ClusterConfig| match &changes {
            Changes::All => true,
            Changes::Paths(paths) => paths.iter().any(|path| cluster.watches(path)),
        };
        let clusters: Vec<_> = file.clusters.into_iter().filter(watches).collect();
        Ok(if clusters.is_empty() { Err("no watched file changed".to_owned()) } else { Ok(clusters) })
    }

    /// What a delivery came to, if another instance received it before, or this one before it forgot.
    async fn recorded(&self, digest: &str) -> Result<Option<Vec<RunId>>, Failure> {
        let found = self.runs.documents().read::<Seen>(&keys::delivery(digest)).await?;
        Ok(found.map(|seen| {
            self.deliveries.insert(digest.to_owned(), seen.value.runs.clone());
            seen.value.runs
        }))
    }
}

/// What tells a push from every other: the commits are whole histories, so its runs follow from these.
fn pushed(push: &Push) -> String {
    let before = push.before.as_ref().map_or("", CommitId::as_str);
    format!("{}:{before}..{}", push.project.path_with_namespace, push.after)
}

/// The record of a run that is about to start.
fn new_run(push: &Push, cluster: ClusterConfig, delivery: &str, now: Timestamp) -> Run {
    let project = &push.project;
    let null = || CommitId::new(&"0".repeat(push.after.as_str().len())).unwrap_or_else(|_| push.after.clone());
    Run {
        id: RunId::of(&cluster.state_store, &cluster.name, &push.after, 1),
        cluster,
        merge: Merge {
            project_id: project.id,
            project: project.path_with_namespace.clone(),
            branch: push.branch.clone(),
            commit: push.after.clone(),
            before: push.before.clone().unwrap_or_else(null),
            title: push.title.clone(),
            user: if push.user_username.is_empty() { push.user_name.clone() } else { push.user_username.clone() },
            url: format!("{}/-/commit/{}", project.web_url, push.after),
        },
        delivery: delivery.to_owned(),
        received_at: now,
        state: RunState::Queued,
        execution: None,
        stages: Vec::new(),
        approvals: Vec::new(),
        update_begun: false,
        phase: Phase::All,
        plan_digest: None,
        ended_at: None,
        failure: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use async_trait::async_trait;
    use base64::Engine;
    use hmac::{Hmac, KeyInit, Mac};
    use kopsline_core::StateStoreUri;
    use kopsline_gitlab::Mode;
    use kopsline_state::Documents;
    use kopsline_state::testing::{Fault, Faults, FaultyStore, MemoryStore};
    use secrecy::SecretString;

    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const CONFIG: &str = "version: 1\nclusters:\n- {name: a.k8s.local, stateStore: s3://state, region: eu-central-1, kops: {version: 1.36.2}, sources: [a.yaml], rollingUpdate: {cloudonly: true}}\n- {name: b.k8s.local, stateStore: s3://state, region: eu-central-1, kops: {version: 1.36.2}, sources: [b.yaml], rollingUpdate: {cloudonly: true}}\n";

    /// Remembers what was started; may fail the first starts.
    #[derive(Clone, Default)]
    struct Recorder {
        started: Arc<Mutex<Vec<RunId>>>,
        failures: Arc<Mutex<usize>>,
    }

    #[async_trait]
    impl Executions for Recorder {
        async fn start(&self, run: &RunId) -> Result<(), Failure> {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(Failure::new(FailureKind::Transient, "throttled"));
            }
            self.started.lock().unwrap().push(run.clone());
            Ok(())
        }
    }

    struct World {
        folder: tempfile::TempDir,
        store: MemoryStore,
        executions: Recorder,
        receiver: Receiver,
        commits: Vec<String>,
    }

    fn git(folder: &Path, args: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(folder)
            .args(["-c", "user.name=ann", "-c", "user.email=ann@example.com", "-c", "init.defaultBranch=main"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A project with three commits: the clusters' file and both manifests; a change of one manifest; a change of the README.
    fn world() -> World {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("platform/clusters.git");
        std::fs::create_dir_all(&repository).unwrap();
        git(&repository, &["init", "-q"]);
        let mut commits = Vec::new();
        for files in [&[("kopsline.yaml", CONFIG), ("a.yaml", "1"), ("b.yaml", "1")][..], &[("a.yaml", "2")], &[("README.md", "hi")]] {
            for (name, text) in files {
                std::fs::write(repository.join(name), text).unwrap();
            }
            git(&repository, &["add", "-A"]);
            git(&repository, &["commit", "-q", "-m", "change"]);
            commits.push(git(&repository, &["rev-parse", "HEAD"]));
        }
        let (store, executions) = (MemoryStore::default(), Recorder::default());
        let receiver = receiver(folder.path(), Arc::new(store.clone()), &executions);
        World { folder, store, executions, receiver, commits }
    }

    fn receiver(folder: &Path, store: Arc<dyn kopsline_state::ObjectStore>, executions: &Recorder) -> Receiver {
        let token = format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(KEY));
        Receiver::new(
            Verifier::new(Mode::Signed, &[SecretString::from(token)], &[]).unwrap(),
            4096,
            Limits { projects: vec!["platform/*".into()], state_stores: vec![StateStoreUri::new("s3://state").unwrap()] },
            Runs::new(Documents::new(store)),
            Origin::Folder(folder.display().to_string()),
            Box::new(executions.clone()),
        )
    }

    fn push(before: &str, after: &str) -> Value {
        json!({
            "object_kind": "push", "ref": "refs/heads/main", "before": before, "after": after, "checkout_sha": after,
            "user_username": "ann", "project_id": 7, "total_commits_count": 1, "commits": [{"id": after, "title": "change"}],
            "project": {"id": 7, "path_with_namespace": "platform/clusters", "default_branch": "main", "web_url": "https://gitlab.example.com/platform/clusters"},
        })
    }

    async fn deliver(receiver: &Receiver, id: &str, event: &Value) -> Answer {
        let (body, now) = (event.to_string(), Timestamp::now());
        let timestamp = now.as_second().to_string();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&KEY).unwrap();
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        let signature = format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes()));
        let mut headers = HeaderMap::new();
        for (name, value) in [("webhook-id", id), ("webhook-timestamp", &timestamp), ("webhook-signature", &signature)] {
            headers.insert(name, value.parse().unwrap());
        }
        receiver.receive(&Method::POST, &headers, body.as_bytes(), now).await
    }

    fn started(world: &World) -> usize {
        world.executions.started.lock().unwrap().len()
    }

    #[tokio::test]
    async fn a_push_starts_a_run_for_each_cluster_it_concerns() {
        let world = world();
        let [first, second, third] = world.commits.as_slice() else { panic!() };
        let null = "0".repeat(40);
        let answer = deliver(&world.receiver, "d1", &push(&null, first)).await;
        assert_eq!((answer.status, started(&world)), (202, 2), "{answer:?}");
        let answer = deliver(&world.receiver, "d2", &push(first, second)).await;
        assert_eq!((answer.status, started(&world)), (202, 3), "{answer:?}");
        let run = RunId::new(answer.body["runs"][0].as_str().unwrap()).unwrap();
        let run = world.receiver.runs.read(&run).await.unwrap();
        assert_eq!((run.cluster.name.as_str(), run.merge.title.as_str(), run.merge.user.as_str()), ("a.k8s.local", "change", "ann"));
        let answer = deliver(&world.receiver, "d3", &push(second, third)).await;
        assert_eq!((answer.status, answer.outcome, started(&world)), (200, "ignored", 3), "{answer:?}");
    }

    #[tokio::test]
    async fn a_repeated_delivery_or_commit_starts_nothing_twice() {
        let world = world();
        let event = push(&world.commits[0], &world.commits[1]);
        let answer = deliver(&world.receiver, "d1", &event).await;
        let again = deliver(&world.receiver, "d1", &event).await;
        assert_eq!((again.outcome, &again.body["runs"]), ("duplicate", &answer.body["runs"]));
        // Another instance has no memory of its own.
        let other = receiver(world.folder.path(), Arc::new(world.store.clone()), &world.executions);
        assert_eq!(deliver(&other, "d1", &event).await.outcome, "duplicate");
        assert_eq!(started(&world), 1);
        // Another delivery of the same commit: the same run, whose execution's name makes the second start none.
        let answer2 = deliver(&world.receiver, "d2", &event).await;
        assert_eq!(answer2.body["runs"], answer.body["runs"]);
        let recorded = |end| world.store.snapshot().keys().filter(|key| key.starts_with(end) || key.ends_with(end)).count();
        assert_eq!((recorded("run.json"), recorded("deliveries/")), (1, 2));
    }

    #[tokio::test]
    async fn a_further_delivery_of_a_push_costs_one_call() {
        let world = world();
        let faults = Faults::new(|_| Fault::None);
        let faulty = FaultyStore::new(world.store.clone(), faults.clone());
        let receiver = receiver(world.folder.path(), Arc::new(faulty), &world.executions);
        let event = push(&world.commits[0], &world.commits[1]);
        let first = deliver(&receiver, "d1", &event).await;
        let (calls, again) = (faults.calls(), deliver(&receiver, "d2", &event).await);
        assert_eq!((again.status, &again.body["runs"]), (202, &first.body["runs"]));
        assert_eq!((faults.calls() - calls, started(&world)), (1, 1));
        // Another push up to the same commit may concern more clusters.
        assert_eq!(deliver(&receiver, "d3", &push(&"0".repeat(40), &world.commits[1])).await.body["runs"].as_array().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_failure_anywhere_is_made_good_by_the_next_delivery() {
        for kill in 0..12 {
            let world = world();
            let event = push(&world.commits[0], &world.commits[1]);
            for fate in [Fault::NotApplied, Fault::AnswerLost] {
                let faulty = FaultyStore::new(world.store.clone(), Faults::killing(kill, fate));
                deliver(&receiver(world.folder.path(), Arc::new(faulty), &world.executions), "d1", &event).await;
            }
            *world.executions.failures.lock().unwrap() = usize::from(kill % 2 == 0);
            deliver(&world.receiver, "d1", &event).await;
            let answer = deliver(&world.receiver, "d1", &event).await;
            assert_eq!(answer.status, 202, "killed at {kill}: {answer:?}");
            let mut runs = world.executions.started.lock().unwrap().clone();
            runs.dedup();
            assert_eq!(runs.len(), 1, "killed at {kill}");
        }
    }

    #[tokio::test]
    async fn what_is_no_concern_is_a_success_and_what_is_forged_is_not() {
        let world = world();
        let event = push(&world.commits[0], &world.commits[1]);
        for (path, value) in [("/ref", "refs/heads/topic"), ("/project/path_with_namespace", "other/clusters"), ("/object_kind", "note")] {
            let mut other = event.clone();
            *other.pointer_mut(path).unwrap() = json!(value);
            let answer = deliver(&world.receiver, path, &other).await;
            assert_eq!((answer.status, answer.outcome), (200, "ignored"), "{path}");
        }
        let forged = world.receiver.receive(&Method::POST, &HeaderMap::new(), event.to_string().as_bytes(), Timestamp::now()).await;
        assert_eq!((forged.status, forged.body), (401, json!({"error": "unauthorized"})));
        let large = world.receiver.receive(&Method::POST, &HeaderMap::new(), &[b'x'; 5000], Timestamp::now()).await;
        assert_eq!(large.status, 413);
        let get = world.receiver.receive(&Method::GET, &HeaderMap::new(), b"", Timestamp::now()).await;
        assert_eq!(get.status, 405);
        assert_eq!(deliver(&world.receiver, "d9", &json!({"object_kind": "push"})).await.status, 400);
        assert_eq!(started(&world), 0);
    }

    #[tokio::test]
    async fn a_wrong_clusters_file_starts_nothing_and_keeps_the_webhook_enabled() {
        let world = world();
        let repository = world.folder.path().join("platform/clusters.git");
        std::fs::write(repository.join("kopsline.yaml"), CONFIG.replace("s3://state", "s3://elsewhere")).unwrap();
        git(&repository, &["commit", "-qam", "wrong"]);
        let head = git(&repository, &["rev-parse", "HEAD"]);
        let answer = deliver(&world.receiver, "d1", &push(&world.commits[2], &head)).await;
        assert_eq!((answer.status, answer.outcome, started(&world)), (200, "refused", 0));
        assert!(answer.body["error"].as_str().unwrap().contains("not allowed here"), "{answer:?}");
    }

    #[test]
    fn the_memory_is_bounded() {
        let world = world();
        for n in 0..REMEMBERED + 10 {
            world.receiver.pushes.insert(n.to_string(), Vec::new());
        }
        assert_eq!(world.receiver.pushes.newest().runs.len(), REMEMBERED);
        assert!(world.receiver.pushes.get("0").is_none());
    }
}

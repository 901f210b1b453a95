//! The adapter against a real kube-apiserver, with its controllers and simulated kubelets.
//!
//! `STACK_KUBERNETES` is what `tools/kubernetes/get` prints and `STACK_PYTHON` a Python with
//! `tests/stack/requirements-aws.txt`; without them these tests say so and check nothing.

// The lints' exception for tests does not reach helper functions of integration tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Request;
use jiff::SignedDuration;
use kopsline_core::StateStoreUri;
use kopsline_kube::{Access, ConnectError, Credentials, Keyset, KeysetSource, KubeClient, KubeError, Kubernetes, Minted, StoredKeyset};
use kopsline_rolling::{ApiName, NodeFacts, PodFacts, PodRef, Refusal};
use kopsline_state::Stores as _;
use kopsline_state::testing::MemoryStores;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::testing::{Authority, Form, Keys, keyset};

#[path = "../src/testing.rs"]
#[allow(dead_code, reason = "not every kind of key is needed here")]
mod testing;

const PATIENCE: Duration = Duration::from_mins(3);
const CLUSTER: &str = "demo.k8s.example.com";
/// An enterprise's CA: its names are many, and one kind comes twice.
const NAMES: [(&str, &str); 4] = [("DC", "com"), ("DC again", "example"), ("O", "Beispiel & Söhne"), ("CN", "kubernetes-ca")];

/// A control plane that all tests share. It ends when this process does, because its stdin closes then.
struct Plane {
    url: String,
    kubeconfig: String,
    /// As kOps makes its CA.
    rsa: Authority,
    ec: Authority,
    _process: Child,
    _home: tempfile::TempDir,
}

fn plane() -> Option<&'static Plane> {
    static PLANE: OnceLock<Option<Plane>> = OnceLock::new();
    PLANE.get_or_init(start).as_ref()
}

fn start() -> Option<Plane> {
    let (Ok(program), Ok(python)) = (env::var("STACK_KUBERNETES"), env::var("STACK_PYTHON")) else {
        eprintln!("skipped: STACK_KUBERNETES (what tools/kubernetes/get prints) or STACK_PYTHON is not set");
        return None;
    };
    let home = tempfile::tempdir().unwrap();
    let (rsa, ec) = (Authority::new(Keys::Rsa, "kubernetes-ca"), Authority::with_names(Keys::P256, &NAMES));
    let given = home.path().join("keyset.yaml");
    fs::write(&given, both(&rsa, &ec, Some("1"))).unwrap();
    let mut process = Command::new(python)
        .args(["-m", "stack.kubernetes", "--program", &program, "--cluster", CLUSTER])
        .arg(format!("--home={}", home.path().join("plane").display()))
        .arg(format!("--keyset={}", given.display()))
        .env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let report: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the control plane did not start: {line:?}"));
    let text = |name: &str| report[name].as_str().unwrap().to_owned();
    let kubeconfig = fs::read_to_string(text("kubeconfig")).unwrap();
    Some(Plane { url: text("url"), kubeconfig, rsa, ec, _process: process, _home: home })
}

fn both(rsa: &Authority, ec: &Authority, primary: Option<&str>) -> String {
    keyset(primary, &[("1", false, rsa), ("2", false, ec)], Form::Own)
}

impl Plane {
    /// The adapter with certificates minted from a keyset that lies where kOps puts it.
    fn minted(&self, keyset: &str, lifetime: SignedDuration) -> KubeClient {
        let stores = MemoryStores::default();
        stores.bucket("state").set("demo/pki/private/kubernetes-ca/keyset.yaml", keyset);
        let keysets = Arc::new(StoredKeyset::new(stores.store(&StateStoreUri::new("s3://state/demo/pki").unwrap())));
        self.client(keysets, lifetime)
    }

    fn client(&self, keysets: Arc<dyn KeysetSource>, lifetime: SignedDuration) -> KubeClient {
        let access = Access { server: self.url.clone(), tls_server_name: format!("api.internal.{CLUSTER}"), by_cluster_ca: true };
        KubeClient::new(Credentials::Minted(Minted { access, keysets, lifetime }), Some("localhost".to_owned()))
    }

    fn admin(&self) -> KubeClient {
        self.minted(&both(&self.rsa, &self.ec, Some("1")), SignedDuration::from_mins(10))
    }

    /// Requests that the adapter does not know, to set a stage.
    async fn stage(&self) -> Stage {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Stage(Client::try_from(config).unwrap())
    }
}

struct Stage(Client);

impl Stage {
    async fn send(&self, method: &str, path: &str, body: Value) -> Result<Value, kube::Error> {
        let form = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", form);
        self.0.request(request.body(if body.is_null() { Vec::new() } else { body.to_string().into_bytes() }).unwrap()).await
    }

    async fn create(&self, path: &str, body: Value) -> Value {
        self.send("POST", path, body).await.unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        self.send("GET", path, Value::Null).await.unwrap()
    }

    async fn namespace(&self, name: &str) {
        self.create("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
    }

    /// A node with a simulated kubelet that takes only pods that ask for it.
    async fn node(&self, name: &str) {
        let body = json!({
            "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"only": name}},
            "spec": {"providerID": format!("aws:///eu-central-1a/{name}")},
            "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}},
        });
        self.create("/api/v1/nodes", body).await;
    }
}

/// The first value that is there.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn facts_of(client: &KubeClient, node: &str) -> NodeFacts {
    client.observe().await.unwrap().nodes.into_iter().find(|facts| facts.name == node).unwrap()
}

#[tokio::test]
async fn certificates_of_the_clusters_ca_get_in() {
    let Some(plane) = plane() else { return };
    for primary in ["1", "2"] {
        let client = plane.minted(&both(&plane.rsa, &plane.ec, Some(primary)), SignedDuration::from_mins(10));
        let facts = client.observe().await.unwrap_or_else(|error| panic!("key {primary}: {error}"));
        assert_eq!(facts.api_name, ApiName::Fine);
    }
    let given = KubeClient::new(Credentials::Kubeconfig(plane.kubeconfig.clone().into()), None);
    given.observe().await.unwrap();
}

fn status(error: &KubeError) -> Option<u16> {
    match error {
        KubeError::Refused { status, .. } => Some(*status),
        _ => None,
    }
}

#[tokio::test]
async fn expired_and_foreign_certificates_do_not_get_in() {
    let Some(plane) = plane() else { return };
    let expired = plane.minted(&both(&plane.rsa, &plane.ec, Some("1")), SignedDuration::from_hours(-1));
    let error = expired.observe().await.unwrap_err();
    assert_eq!((status(&error), error.refusal()), (Some(401), Refusal::Permanent), "{error}");

    // It signs with a key that the API does not know, and trusts the API.
    let foreign = Authority::new(Keys::P256, "kubernetes-ca");
    let mixed = keyset(Some("9"), &[("1", false, &plane.rsa), ("9", false, &foreign)], Form::Own);
    let error = plane.minted(&mixed, SignedDuration::from_mins(10)).observe().await.unwrap_err();
    assert_eq!(status(&error), Some(401), "{error}");
}

#[tokio::test]
async fn an_api_of_another_ca_is_not_trusted() {
    let Some(plane) = plane() else { return };
    let foreign = Authority::new(Keys::P256, "kubernetes-ca");
    let client = plane.minted(&keyset(None, &[("9", false, &foreign)], Form::Own), SignedDuration::from_mins(10));
    let error = client.cordon("nobody").await.unwrap_err();
    assert!(matches!(error, KubeError::Unanswered { .. }) && error.to_string().contains("certificate"), "{error}");
}

/// The CA before a rotation, then the one after it.
struct Rotated {
    texts: [String; 2],
    asked: std::sync::atomic::AtomicUsize,
}

#[async_trait]
impl KeysetSource for Rotated {
    async fn keyset(&self) -> Result<Keyset, ConnectError> {
        let asked = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Keyset::parse(&self.texts[asked.min(1)]).unwrap())
    }
}

#[tokio::test]
async fn a_rotated_ca_is_read_again_when_the_old_one_is_refused() {
    let Some(plane) = plane() else { return };
    let old = Authority::new(Keys::P256, "kubernetes-ca");
    let before = keyset(Some("9"), &[("1", false, &plane.rsa), ("9", false, &old)], Form::Own);
    let rotated = Rotated { texts: [before, both(&plane.rsa, &plane.ec, Some("1"))], asked: 0.into() };
    let client = plane.client(Arc::new(rotated), SignedDuration::from_mins(10));
    client.observe().await.unwrap();
}

#[tokio::test]
async fn nodes_are_changed_once_and_back_again() {
    let Some(plane) = plane() else { return };
    let (stage, client, name) = (plane.stage().await, plane.admin(), "i-changed");
    stage.node(name).await;
    eventually("a ready node", async || facts_of(&client, name).await.ready.then_some(())).await;
    let path = format!("/api/v1/nodes/{name}");
    // The API takes the taint of unready nodes away by itself.
    eventually("no taints", async || stage.get(&path).await["spec"].get("taints").is_none().then_some(())).await;
    let theirs = json!({"key": "example.com/theirs", "effect": "PreferNoSchedule"});
    stage.send("PATCH", &path, json!({"spec": {"taints": [theirs]}})).await.unwrap();
    let keys = async || -> BTreeSet<String> {
        let node = stage.get(&path).await;
        node["spec"]["taints"].as_array().into_iter().flatten().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
    };

    for _ in 0..2 {
        client.taint(name).await.unwrap();
        client.cordon(name).await.unwrap();
        client.exclude_from_load_balancers(name).await.unwrap();
        let facts = facts_of(&client, name).await;
        assert!(facts.scheduled_for_update && facts.unschedulable && facts.excluded_from_load_balancers, "{facts:?}");
        assert_eq!(facts.provider_id, "aws:///eu-central-1a/i-changed");
    }
    let version = async || stage.get(&path).await["metadata"]["resourceVersion"].clone();
    eventually("the API's own taint", async || keys().await.contains("node.kubernetes.io/unschedulable").then_some(())).await;
    assert!(keys().await.is_superset(&["example.com/theirs".to_owned(), "kops.k8s.io/scheduled-for-update".to_owned()].into()));
    let before = version().await;
    client.taint(name).await.unwrap();
    client.cordon(name).await.unwrap();
    client.exclude_from_load_balancers(name).await.unwrap();
    assert_eq!(version().await, before, "the second time changes nothing");

    for _ in 0..2 {
        client.untaint(name).await.unwrap();
        client.uncordon(name).await.unwrap();
        client.include_in_load_balancers(name).await.unwrap();
        let facts = facts_of(&client, name).await;
        assert!(!facts.scheduled_for_update && !facts.unschedulable && !facts.excluded_from_load_balancers, "{facts:?}");
    }
    eventually("only their taint", async || (keys().await == ["example.com/theirs".to_owned()].into()).then_some(())).await;
}

#[tokio::test]
async fn what_is_gone_is_done() {
    let Some(plane) = plane() else { return };
    let client = plane.admin();
    let pod = PodRef { namespace: "default".to_owned(), name: "gone".to_owned(), uid: "u".to_owned() };
    client.taint("gone").await.unwrap();
    client.untaint("gone").await.unwrap();
    client.cordon("gone").await.unwrap();
    client.uncordon("gone").await.unwrap();
    client.exclude_from_load_balancers("gone").await.unwrap();
    client.include_in_load_balancers("gone").await.unwrap();
    client.evict(&pod).await.unwrap();
    client.delete_pod(&pod).await.unwrap();
}

#[tokio::test]
async fn many_at_once_lose_no_taint() {
    let Some(plane) = plane() else { return };
    let (stage, client, name) = (plane.stage().await, plane.admin(), "i-contended");
    stage.node(name).await;
    // Somebody else labels the node all the while, so that versions change under us.
    let path = format!("/api/v1/nodes/{name}");
    let noise = stream::iter(0..20).for_each(|n| {
        let patch = stage.send("PATCH", &path, json!({"metadata": {"labels": {"noise": n.to_string()}}}));
        async move {
            patch.await.unwrap();
        }
    });
    let taints = async {
        client.taint(name).await.unwrap();
        client.untaint(name).await.unwrap();
        client.taint(name).await.unwrap();
    };
    futures::join!(noise, taints);
    assert!(facts_of(&client, name).await.scheduled_for_update);
}

/// A deployment on a node of its own, with all of its pods ready.
async fn deployment(stage: &Stage, client: &KubeClient, name: &str, replicas: usize) -> Vec<PodRef> {
    stage.namespace(name).await;
    stage.node(&format!("i-{name}")).await;
    let labels = json!({"app": name});
    let pod = json!({
        // Long enough that a busy machine evicts twice before the first replacement is ready.
        "metadata": {"labels": labels, "annotations": {"pod-ready.stage.kwok.x-k8s.io/delay": "5s"}},
        "spec": {"nodeSelector": {"only": format!("i-{name}")}, "containers": [{"name": "c", "image": "registry.example.com/c"}]},
    });
    let spec = json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": pod});
    stage.create(&format!("/apis/apps/v1/namespaces/{name}/deployments"), json!({"metadata": {"name": name}, "spec": spec})).await;
    eventually("ready pods", async || {
        let facts = client.observe().await.unwrap();
        let ready: Vec<_> = facts.pods.iter().filter(|pod| pod.namespace == name && pod.ready).map(PodFacts::reference).collect();
        (ready.len() == replicas).then_some(ready)
    })
    .await
}

async fn budget(stage: &Stage, namespace: &str, name: &str, least: usize) {
    let spec = json!({"minAvailable": least, "selector": {"matchLabels": {"app": namespace}}});
    stage
        .create(&format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"), json!({"metadata": {"name": name}, "spec": spec}))
        .await;
}

async fn one_disruption_allowed(client: &KubeClient, namespace: &str) {
    eventually("an allowed disruption", async || {
        let facts = client.observe().await.unwrap();
        facts.budgets.iter().any(|budget| budget.namespace == namespace && budget.disruptions_allowed == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_budget_blocks_evictions_until_the_replacement_is_ready() {
    let Some(plane) = plane() else { return };
    let (stage, client) = (plane.stage().await, plane.admin());
    let pods = deployment(&stage, &client, "web", 3).await;
    budget(&stage, "web", "web", 2).await;
    one_disruption_allowed(&client, "web").await;

    client.evict(&pods[0]).await.unwrap();
    let error = client.evict(&pods[1]).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Blocked);
    assert!(error.to_string().contains("web needs 2 healthy pods and has 2 currently"), "{error}");
    // The first goes on being evicted, whoever asks again.
    client.evict(&pods[0]).await.unwrap();

    one_disruption_allowed(&client, "web").await;
    client.evict(&pods[1]).await.unwrap();
    eventually("both to be gone", async || {
        let facts = client.observe().await.unwrap();
        (!facts.pods.iter().any(|pod| pod.uid == pods[0].uid || pod.uid == pods[1].uid)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn several_budgets_of_one_pod_block_it() {
    let Some(plane) = plane() else { return };
    let (stage, client) = (plane.stage().await, plane.admin());
    let pods = deployment(&stage, &client, "twice", 1).await;
    for name in ["one", "two"] {
        budget(&stage, "twice", name, 0).await;
    }
    let error = eventually("both budgets", async || client.evict(&pods[0]).await.err()).await;
    assert_eq!(error.refusal(), Refusal::Blocked, "{error}");
    assert!(error.to_string().contains("more than one PodDisruptionBudget"), "{error}");
    client.delete_pod(&pods[0]).await.unwrap();
    eventually("the deletion", async || {
        let facts = client.observe().await.unwrap();
        let found = facts.pods.iter().find(|pod| pod.uid == pods[0].uid);
        found.is_none_or(|pod| pod.deleting.is_some()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_pod_of_the_same_name_is_left_alone() {
    let Some(plane) = plane() else { return };
    let (stage, client) = (plane.stage().await, plane.admin());
    let pods = deployment(&stage, &client, "twin", 1).await;
    let earlier = PodRef { uid: "00000000-0000-0000-0000-000000000000".to_owned(), ..pods[0].clone() };
    client.evict(&earlier).await.unwrap();
    client.delete_pod(&earlier).await.unwrap();
    let facts = client.observe().await.unwrap();
    let found = facts.pods.iter().find(|pod| pod.uid == pods[0].uid).unwrap();
    assert_eq!(found.deleting, None);
    let controller = found.controller.as_ref().unwrap();
    assert_eq!((controller.kind.as_str(), found.node.as_str(), found.phase.as_str()), ("ReplicaSet", "i-twin", "Running"));
}

#[tokio::test]
async fn more_pods_than_a_page_holds_are_all_seen_once() {
    const PODS: usize = 1100;
    let Some(plane) = plane() else { return };
    let (stage, client) = (plane.stage().await, plane.admin());
    stage.namespace("many").await;
    // Nobody schedules them, so they are only there.
    let create = |n: usize| {
        let spec = json!({"schedulerName": "nobody", "containers": [{"name": "c", "image": "registry.example.com/c"}], "volumes": [{"name": "v", "emptyDir": {}}]});
        stage.send(
            "POST",
            "/api/v1/namespaces/many/pods",
            json!({"metadata": {"name": format!("p{n}"), "labels": {"n": n.to_string()}}, "spec": spec}),
        )
    };
    stream::iter(0..PODS).map(create).buffer_unordered(16).try_collect::<Vec<_>>().await.unwrap();
    let facts = client.observe().await.unwrap();
    let many: Vec<_> = facts.pods.iter().filter(|pod| pod.namespace == "many").collect();
    let names: BTreeSet<_> = many.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!((many.len(), names.len()), (PODS, PODS));
    assert!(many.iter().all(|pod| pod.phase == "Pending" && pod.local_storage && pod.node.is_empty() && pod.labels.len() == 1));
    stage.send("DELETE", "/api/v1/namespaces/many/pods?gracePeriodSeconds=0", Value::Null).await.unwrap();
}

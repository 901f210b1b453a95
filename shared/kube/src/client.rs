//! The adapter to the Kubernetes API.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::OptionFuture;
use http::{Method, Request};
use kopsline_rolling::{ApiName, ClusterFacts, NodeFacts, PodFacts, PodRef};
use kopsline_state::backoff;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::debug;
use url::form_urlencoded;

use crate::connect::{Connection, Credentials};
use crate::decode::{Budget, Node, Page, Pod};
use crate::error::Fault;
use crate::{KubeError, Kubernetes, api_name, taints};

/// One attempt of a call about one object.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// One attempt of one page of a list: some megabytes.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A whole look at the cluster.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(100);
/// A call is tried this often; its waits have jitter and grow.
const ATTEMPTS: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(4);
/// How many objects a page has; as kubectl takes them.
const PAGE_SIZE: u32 = 500;
/// How often a list is begun anew when its snapshot has been compacted before its last page.
const LIST_RESTARTS: u32 = 2;
/// How often a node's taints are read again because somebody else changed the node.
const TAINT_ATTEMPTS: u32 = 6;

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/pods";
const BUDGETS: &str = "/apis/policy/v1/poddisruptionbudgets";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

const UNAUTHORIZED: u16 = 401;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
const GONE: u16 = 410;

/// The Kubernetes API of one cluster.
pub struct KubeClient {
    way: Way,
    /// The host whose DNS entry may be kOps' placeholder.
    dns_host: Option<String>,
}

enum Way {
    Connection(Connection),
    #[cfg(test)]
    Fixed(kube::Client),
}

/// What a call is about, for messages.
#[derive(Clone, Copy)]
struct Call<'a> {
    operation: &'static str,
    target: &'a str,
    timeout: Duration,
}

impl<'a> Call<'a> {
    fn new(operation: &'static str, target: &'a str) -> Self {
        Self { operation, target, timeout: CALL_TIMEOUT }
    }
}

/// A request that can be sent several times.
struct Message {
    method: Method,
    path: String,
    body: Option<(&'static str, Value)>,
}

impl KubeClient {
    /// Connects when it is first used. `dns_host` is the API's host where the cluster publishes it in DNS
    /// ([`crate::ApiSpec::publishes_dns`]): it is looked up with every observation.
    pub fn new(credentials: Credentials, dns_host: Option<String>) -> Self {
        Self { way: Way::Connection(Connection::new(credentials)), dns_host }
    }

    #[cfg(test)]
    pub(crate) fn fixed(client: kube::Client, dns_host: Option<String>) -> Self {
        Self { way: Way::Fixed(client), dns_host }
    }

    async fn client(&self) -> Result<kube::Client, Fault> {
        match &self.way {
            Way::Connection(connection) => connection.client().await.map_err(Fault::Connect),
            #[cfg(test)]
            Way::Fixed(client) => Ok(client.clone()),
        }
    }

    /// Whether another attempt makes sense after the API refused the credentials.
    async fn renew(&self) -> bool {
        match &self.way {
            Way::Connection(connection) => connection.forget().await,
            #[cfg(test)]
            Way::Fixed(_) => false,
        }
    }

    /// One attempt. The body is text here and is read by the caller: the client would log what it cannot read, and pods
    /// may have passwords in them.
    async fn attempt(&self, call: Call<'_>, message: &Message) -> Result<String, Fault> {
        let client = self.client().await?;
        let request = message.request().map_err(|error| Fault::Silence(error.to_string()))?;
        match tokio::time::timeout(call.timeout, client.request_text(request)).await {
            Ok(answer) => answer.map_err(Fault::of),
            Err(_) => Err(Fault::Silence(format!("no answer within {} s", call.timeout.as_secs()))),
        }
    }

    /// Sends a message that may be sent again, until it is answered or the attempts are used up. A 404 is `None`.
    async fn send(&self, call: Call<'_>, message: &Message) -> Result<Option<String>, KubeError> {
        match self.send_strictly(call, message).await {
            Ok(text) => Ok(Some(text)),
            Err((fault, _)) if fault.status() == NOT_FOUND => {
                debug!(operation = call.operation, target = call.target, "already gone");
                Ok(None)
            }
            Err((fault, attempts)) => Err(fault.into_error(call.operation, call.target, attempts)),
        }
    }

    /// The fault of the last attempt, and which attempt it was. A conflict is the caller's to solve.
    async fn send_strictly(&self, call: Call<'_>, message: &Message) -> Result<String, (Fault, u32)> {
        let mut attempts = 0;
        let mut renewed = false;
        loop {
            attempts += 1;
            let fault = match self.attempt(call, message).await {
                Ok(text) => return Ok(text),
                Err(fault) => fault,
            };
            if fault.status() == UNAUTHORIZED && !renewed && self.renew().await {
                renewed = true;
                continue;
            }
            if attempts >= ATTEMPTS || fault.status() == CONFLICT || !fault.may_pass() {
                return Err((fault, attempts));
            }
            debug!(operation = call.operation, target = call.target, attempts, ?fault, "trying again");
            let asked = Duration::from_secs(fault.retry_after_seconds().into()).min(LONGEST_BACKOFF);
            tokio::time::sleep(asked.max(backoff::delay(attempts - 1, FIRST_BACKOFF, LONGEST_BACKOFF))).await;
        }
    }

    /// All objects of a kind, page by page.
    ///
    /// Pages are of one consistent snapshot. `resourceVersion=0` would be answered from a cache that may lag behind, and
    /// in one piece: 100,000 pods are half a gigabyte.
    async fn list<T: DeserializeOwned, F>(&self, path: &str, fact: impl Fn(T) -> Option<F>) -> Result<Vec<F>, KubeError> {
        let call = Call { timeout: PAGE_TIMEOUT, ..Call::new("listing", path) };
        let (mut facts, mut next, mut restarts) = (Vec::new(), None::<String>, 0);
        loop {
            let page = next.as_deref().map(|next| format!("&continue={}", escaped(next))).unwrap_or_default();
            let text = match self.send_strictly(call, &Message::get(format!("{path}?limit={PAGE_SIZE}{page}"))).await {
                Ok(text) => text,
                // The snapshot was compacted away: the whole list is read anew.
                Err((fault, _)) if fault.status() == GONE && next.is_some() && restarts < LIST_RESTARTS => {
                    debug!(path, "the list has expired and is begun anew");
                    (facts, next, restarts) = (Vec::new(), None, restarts + 1);
                    continue;
                }
                Err((fault, attempts)) => return Err(fault.into_error(call.operation, path, attempts)),
            };
            let page: Page<T> = decode(call, &text)?;
            next = page.next();
            facts.extend(page.items.into_iter().filter_map(&fact));
            if next.is_none() {
                return Ok(facts);
            }
        }
    }

    /// All budgets, which are few: from the API server's cache, because only the API itself judges by them.
    async fn budgets(&self) -> Result<Vec<kopsline_rolling::BudgetFacts>, KubeError> {
        let call = Call { timeout: PAGE_TIMEOUT, ..Call::new("listing", BUDGETS) };
        let Some(text) = self.send(call, &Message::get(format!("{BUDGETS}?resourceVersion=0"))).await? else { return Ok(Vec::new()) };
        let page: Page<Budget> = decode(call, &text)?;
        Ok(page.items.into_iter().filter_map(Budget::facts).collect())
    }

    async fn patch_node(&self, operation: &'static str, node: &str, patch: Value) -> Result<(), KubeError> {
        let call = Call::new(operation, node);
        self.send(call, &Message::patch(node_path(node), patch)).await.map(|_| ())
    }

    /// Reads, changes and writes under the condition that nobody else has written, as often as it takes.
    async fn set_taint(&self, operation: &'static str, node: &str, wanted: bool) -> Result<(), KubeError> {
        let call = Call::new(operation, node);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let Some(text) = self.send(call, &Message::get(node_path(node))).await? else { return Ok(()) };
            let Some(patch) = taints::patch(&decode(call, &text)?, wanted) else { return Ok(()) };
            match self.send_strictly(call, &Message::patch(node_path(node), patch)).await {
                Ok(_) => return Ok(()),
                Err((fault, _)) if fault.status() == NOT_FOUND => return Ok(()),
                Err((fault, _)) if fault.status() == CONFLICT && attempts < TAINT_ATTEMPTS => {
                    tokio::time::sleep(backoff::delay(attempts - 1, FIRST_BACKOFF, LONGEST_BACKOFF)).await;
                }
                Err((fault, tried)) => return Err(fault.into_error(operation, node, attempts.max(tried))),
            }
        }
    }

    /// Sends what is for one pod only. After a conflict the pod is looked at: it may be another one of the same name.
    async fn for_pod(&self, operation: &'static str, pod: &PodRef, message: &Message) -> Result<(), KubeError> {
        let target = format!("pod {pod}");
        let call = Call::new(operation, &target);
        match self.send_strictly(call, message).await {
            Ok(_) => Ok(()),
            Err((fault, _)) if fault.status() == NOT_FOUND => Ok(()),
            Err((fault, attempts)) if fault.status() == CONFLICT => {
                let found = self.send(call, &Message::get(pod_path(pod))).await?;
                let found: Option<Named> = found.map(|text| decode(call, &text)).transpose()?;
                if found.is_some_and(|found| found.metadata.uid == pod.uid) {
                    return Err(fault.into_error(operation, &target, attempts));
                }
                debug!(target, "another pod has its name");
                Ok(())
            }
            Err((fault, attempts)) => Err(fault.into_error(operation, &target, attempts)),
        }
    }
}

#[async_trait]
impl Kubernetes for KubeClient {
    async fn observe(&self) -> Result<ClusterFacts, KubeError> {
        let nodes = self.list(NODES, |node: Node| Some(NodeFacts::from(node)));
        let pods = self.list(PODS, |pod: Pod| Some(PodFacts::from(pod)));
        let name = async { Ok(OptionFuture::from(self.dns_host.as_deref().map(api_name)).await.unwrap_or(ApiName::Fine)) };
        let all = async { futures::try_join!(nodes, pods, self.budgets(), name) };
        let in_time = tokio::time::timeout(OBSERVE_TIMEOUT, all).await.unwrap_or_else(|_| {
            let reason = format!("not all of it within {} s", OBSERVE_TIMEOUT.as_secs());
            Err(KubeError::Unanswered { operation: "listing", target: "all nodes, pods and budgets".to_owned(), attempts: 1, reason })
        });
        let (nodes, pods, budgets, api_name) = in_time?;
        Ok(ClusterFacts { nodes, pods, budgets, api_name })
    }

    async fn taint(&self, node: &str) -> Result<(), KubeError> {
        self.set_taint("tainting", node, true).await
    }

    async fn untaint(&self, node: &str) -> Result<(), KubeError> {
        self.set_taint("untainting", node, false).await
    }

    async fn cordon(&self, node: &str) -> Result<(), KubeError> {
        self.patch_node("cordoning", node, json!({"spec": {"unschedulable": true}})).await
    }

    async fn uncordon(&self, node: &str) -> Result<(), KubeError> {
        self.patch_node("uncordoning", node, json!({"spec": {"unschedulable": null}})).await
    }

    async fn exclude_from_load_balancers(&self, node: &str) -> Result<(), KubeError> {
        self.patch_node("labelling", node, json!({"metadata": {"labels": {EXCLUDED: ""}}})).await
    }

    async fn include_in_load_balancers(&self, node: &str) -> Result<(), KubeError> {
        self.patch_node("unlabelling", node, json!({"metadata": {"labels": {EXCLUDED: null}}})).await
    }

    async fn evict(&self, pod: &PodRef) -> Result<(), KubeError> {
        let body = json!({
            "apiVersion": "policy/v1",
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
        });
        let message = Message { method: Method::POST, path: format!("{}/eviction", pod_path(pod)), body: Some((JSON, body)) };
        self.for_pod("evicting", pod, &message).await
    }

    async fn delete_pod(&self, pod: &PodRef) -> Result<(), KubeError> {
        let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod.uid}});
        let message = Message { method: Method::DELETE, path: pod_path(pod), body: Some((JSON, body)) };
        self.for_pod("deleting", pod, &message).await
    }
}

impl Message {
    fn get(path: String) -> Self {
        Self { method: Method::GET, path, body: None }
    }

    fn patch(path: String, patch: Value) -> Self {
        Self { method: Method::PATCH, path, body: Some((MERGE, patch)) }
    }

    fn request(&self) -> Result<Request<Vec<u8>>, http::Error> {
        let request = Request::builder().method(self.method.clone()).uri(&self.path).header(http::header::ACCEPT, JSON);
        match &self.body {
            Some((form, body)) => request.header(http::header::CONTENT_TYPE, *form).body(body.to_string().into_bytes()),
            None => request.body(Vec::new()),
        }
    }
}

#[derive(Deserialize)]
struct Named {
    metadata: Identity,
}

#[derive(Deserialize)]
struct Identity {
    uid: String,
}

fn decode<T: DeserializeOwned>(call: Call<'_>, text: &str) -> Result<T, KubeError> {
    serde_json::from_str(text).map_err(|error| KubeError::Unreadable {
        operation: call.operation,
        target: call.target.to_owned(),
        // Its message names a field or a type; never more than a character of the answer.
        reason: format!("{:?} error in line {}, column {}", error.classify(), error.line(), error.column()),
    })
}

fn node_path(node: &str) -> String {
    format!("{NODES}/{}", escaped(node))
}

fn pod_path(pod: &PodRef) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", escaped(&pod.namespace), escaped(&pod.name))
}

/// Names of Kubernetes need no escaping; what is no name must not become another path.
fn escaped(name: &str) -> String {
    form_urlencoded::byte_serialize(name.as_bytes()).collect()
}

#[cfg(test)]
mod tests;

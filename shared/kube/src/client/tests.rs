//! The adapter on a Kubernetes API that is a script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use http::Response;
use kopsline_rolling::Refusal;
use kube::client::Body;
use tower::service_fn;

use super::*;

/// What the API does with the next request.
#[derive(Debug, Clone)]
enum Answer {
    Status(u16, Value),
    Silence,
    BrokenOff,
}

fn ok(value: Value) -> Answer {
    Answer::Status(200, value)
}

fn refused(code: u16, reason: &str, details: &Value) -> Answer {
    Answer::Status(
        code,
        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "words", "details": details}),
    )
}

fn plain(code: u16) -> Answer {
    refused(code, "Some", &Value::Null)
}

fn budget() -> Answer {
    refused(
        429,
        "TooManyRequests",
        &json!({"causes": [{"reason": "DisruptionBudget", "message": "web needs 5 healthy pods and has 5 currently"}]}),
    )
}

#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Script {
    /// `METHOD path body` of the requests so far.
    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn client(answers: impl IntoIterator<Item = Answer>) -> (Self, KubeClient) {
        let script = Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), requests: Arc::default() };
        let served = script.clone();
        let service = service_fn(move |request: Request<Body>| {
            let script = served.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = String::from_utf8(body.collect_bytes().await?.to_vec())?;
                script.requests.lock().unwrap().push(format!("{} {} {body}", head.method, head.uri).trim().to_owned());
                let answer = script.answers.lock().unwrap().pop_front();
                match answer {
                    Some(Answer::Status(status, value)) => {
                        Ok::<_, tower::BoxError>(Response::builder().status(status).body(Body::from(value.to_string().into_bytes()))?)
                    }
                    Some(Answer::Silence) => std::future::pending().await,
                    Some(Answer::BrokenOff) => Err("connection reset by peer".into()),
                    None => Err("nothing more was expected".into()),
                }
            }
        });
        (script, KubeClient::fixed(kube::Client::new(service, "default"), None))
    }
}

fn pod() -> PodRef {
    PodRef { namespace: "shop".to_owned(), name: "web-1".to_owned(), uid: "u1".to_owned() }
}

const EVICTION: &str = r#"POST /api/v1/namespaces/shop/pods/web-1/eviction {"apiVersion":"policy/v1","deleteOptions":{"preconditions":{"uid":"u1"}},"kind":"Eviction","metadata":{"name":"web-1","namespace":"shop"}}"#;

#[tokio::test(start_paused = true)]
async fn evictions() {
    for (answers, expected, requests) in [
        (vec![Answer::Status(201, json!({"kind": "Status"}))], None, 1),
        (vec![plain(404)], None, 1),
        (vec![budget()], Some(Refusal::Blocked), 1),
        (vec![plain(503), Answer::BrokenOff, Answer::Silence, Answer::Status(201, json!({}))], None, 4),
        (vec![plain(500), plain(500), plain(500), plain(500)], Some(Refusal::Transient), 4),
        (vec![Answer::Silence, Answer::Silence, Answer::Silence, Answer::Silence], Some(Refusal::Transient), 4),
        (vec![plain(403)], Some(Refusal::Permanent), 1),
        (vec![refused(429, "TooManyRequests", &json!({"retryAfterSeconds": 1})), budget()], Some(Refusal::Blocked), 2),
        // A conflict: gone, replaced by another pod, or a change at the same moment.
        (vec![plain(409), plain(404)], None, 2),
        (vec![plain(409), ok(json!({"metadata": {"uid": "u2"}}))], None, 2),
        (vec![plain(409), ok(json!({"metadata": {"uid": "u1"}}))], Some(Refusal::Transient), 2),
    ] {
        let text = format!("{answers:?}");
        let (script, client) = Script::client(answers);
        let result = client.evict(&pod()).await;
        assert_eq!(result.as_ref().err().map(KubeError::refusal), expected, "{text}");
        let seen = script.requests();
        assert_eq!((seen.len(), seen[0].as_str()), (requests, EVICTION), "{text}");
        assert!(seen[1..].iter().all(|request| request == EVICTION || request == "GET /api/v1/namespaces/shop/pods/web-1"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_was_tried() {
    for (answers, message) in [
        (vec![budget()], "evicting of pod shop/web-1 is not allowed now: web needs 5 healthy pods and has 5 currently"),
        (vec![plain(403)], "evicting of pod shop/web-1 was refused, attempt 1: 403 Some: words"),
        (vec![Answer::BrokenOff; 4], "evicting of pod shop/web-1 was not answered in 4 attempts: connection reset by peer"),
        (vec![Answer::Silence; 4], "evicting of pod shop/web-1 was not answered in 4 attempts: no answer within 15 s"),
    ] {
        let (_, client) = Script::client(answers);
        let error = client.evict(&pod()).await.unwrap_err();
        assert_eq!(kopsline_rolling::CommandError::from(&error).message, message);
    }
}

#[tokio::test(start_paused = true)]
async fn deletions_are_of_one_pod_only() {
    for (answers, done) in [
        (vec![ok(json!({}))], true),
        (vec![plain(404)], true),
        (vec![plain(409), ok(json!({"metadata": {"uid": "u2"}}))], true),
        (vec![plain(500), ok(json!({}))], true),
        (vec![plain(403)], false),
    ] {
        let (script, client) = Script::client(answers);
        assert_eq!(client.delete_pod(&pod()).await.is_ok(), done);
        let expected =
            r#"DELETE /api/v1/namespaces/shop/pods/web-1 {"apiVersion":"v1","kind":"DeleteOptions","preconditions":{"uid":"u1"}}"#;
        assert_eq!(script.requests()[0], expected);
    }
}

fn tainted(version: &str, keys: &[&str]) -> Answer {
    let taints: Vec<Value> = keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    ok(json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}))
}

#[tokio::test(start_paused = true)]
async fn a_taint_never_loses_another_one() {
    // Somebody else taints the node between our reading and our writing.
    let (script, client) = Script::client([tainted("1", &["a"]), plain(409), tainted("2", &["a", "b"]), ok(json!({}))]);
    client.taint("i-1").await.unwrap();
    let requests = script.requests();
    assert_eq!((requests.len(), requests[0].as_str()), (4, "GET /api/v1/nodes/i-1"));
    let patch: Value = serde_json::from_str(requests[3].strip_prefix("PATCH /api/v1/nodes/i-1 ").unwrap()).unwrap();
    let keys: Vec<_> = patch["spec"]["taints"].as_array().unwrap().iter().map(|taint| taint["key"].as_str().unwrap()).collect();
    assert_eq!((patch["metadata"]["resourceVersion"].as_str(), keys), (Some("2"), vec!["a", "b", "kops.k8s.io/scheduled-for-update"]));
}

#[tokio::test(start_paused = true)]
async fn taints_are_written_only_where_they_change_something() {
    let ours = "kops.k8s.io/scheduled-for-update";
    for (wanted, answers, requests, done) in [
        (true, vec![tainted("1", &[ours])], 1, true),
        (false, vec![tainted("1", &["a"])], 1, true),
        (false, vec![tainted("1", &[ours]), ok(json!({}))], 2, true),
        (true, vec![plain(404)], 1, true),
        (true, vec![tainted("1", &[]), plain(404)], 2, true),
        // The write was done, its answer lost.
        (true, vec![tainted("1", &[]), Answer::BrokenOff, plain(409), tainted("2", &[ours])], 4, true),
        (true, vec![tainted("1", &[]), plain(403)], 2, false),
    ] {
        let text = format!("{wanted} {answers:?}");
        let (script, client) = Script::client(answers);
        let result = if wanted { client.taint("i-1").await } else { client.untaint("i-1").await };
        assert_eq!((result.is_ok(), script.requests().len()), (done, requests), "{text}");
    }
    let (script, client) = Script::client((0..20).map(|n| if n % 2 == 0 { tainted("1", &[]) } else { plain(409) }));
    let error = client.taint("i-1").await.unwrap_err();
    assert_eq!((error.refusal(), script.requests().len()), (Refusal::Transient, 12), "it gives up for now");
}

#[tokio::test(start_paused = true)]
async fn nodes_are_patched_by_merges() {
    let excluded = "node.kubernetes.io/exclude-from-external-load-balancers";
    let (script, client) = Script::client((0..4).map(|_| ok(json!({}))).chain([plain(404), plain(503), ok(json!({}))]));
    client.cordon("i-1").await.unwrap();
    client.uncordon("i-1").await.unwrap();
    client.exclude_from_load_balancers("i-1").await.unwrap();
    client.include_in_load_balancers("i-1").await.unwrap();
    client.cordon("i-1").await.unwrap();
    client.cordon("../pods").await.unwrap();
    let patch = |body: String| format!("PATCH /api/v1/nodes/i-1 {body}");
    let cordon = r#"{"spec":{"unschedulable":true}}"#;
    let expected = [
        patch(cordon.to_owned()),
        patch(r#"{"spec":{"unschedulable":null}}"#.to_owned()),
        patch(format!(r#"{{"metadata":{{"labels":{{"{excluded}":""}}}}}}"#)),
        patch(format!(r#"{{"metadata":{{"labels":{{"{excluded}":null}}}}}}"#)),
        patch(cordon.to_owned()),
        format!("PATCH /api/v1/nodes/..%2Fpods {cordon}"),
        format!("PATCH /api/v1/nodes/..%2Fpods {cordon}"),
    ];
    assert_eq!(script.requests(), expected);
}

/// An API that answers by path, because lists are read side by side.
fn lists(pages: fn(&str) -> Answer) -> (Script, KubeClient) {
    let script = Script::default();
    let served = script.clone();
    let service = service_fn(move |request: Request<Body>| {
        let script = served.clone();
        async move {
            let uri = request.uri().to_string();
            script.requests.lock().unwrap().push(uri.clone());
            let answer = pages(&uri);
            let Answer::Status(status, value) = answer else { return std::future::pending().await };
            Ok::<_, tower::BoxError>(Response::builder().status(status).body(Body::from(value.to_string().into_bytes()))?)
        }
    });
    (script, KubeClient::fixed(kube::Client::new(service, "default"), Some("203.0.113.123".to_owned())))
}

fn some_pod(name: &str) -> Value {
    json!({"metadata": {"namespace": "a", "name": name, "uid": name}, "status": {"phase": "Running"}})
}

#[tokio::test(start_paused = true)]
async fn observing_reads_all_pages() {
    let (script, client) = lists(|uri| match uri {
        "/api/v1/nodes?limit=500" => ok(json!({"metadata": {}, "items": [{"metadata": {"name": "i-1"}}]})),
        "/api/v1/pods?limit=500" => ok(json!({"metadata": {"continue": "a+b=="}, "items": [some_pod("p1")]})),
        "/api/v1/pods?limit=500&continue=a%2Bb%3D%3D" => ok(json!({"metadata": {"continue": ""}, "items": [some_pod("p2")]})),
        "/apis/policy/v1/poddisruptionbudgets?resourceVersion=0" => ok(
            json!({"metadata": {}, "items": [{"metadata": {"namespace": "a", "name": "b"}, "spec": {"selector": {}}}, {"metadata": {"namespace": "a", "name": "c"}}]}),
        ),
        _ => plain(400),
    });
    let facts = client.observe().await.unwrap();
    let names: Vec<_> = facts.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!((facts.nodes.len(), names, facts.budgets.len(), facts.api_name), (1, vec!["p1", "p2"], 1, ApiName::Placeholder));
    assert_eq!(script.requests().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_has_expired_is_begun_anew() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static BEGUN: AtomicU32 = AtomicU32::new(0);
    let (_, client) = lists(|uri| match uri {
        "/api/v1/pods?limit=500" => {
            let begun = BEGUN.fetch_add(1, Ordering::Relaxed);
            ok(json!({"metadata": {"continue": format!("c{begun}")}, "items": [some_pod("p1")]}))
        }
        "/api/v1/pods?limit=500&continue=c0" => refused(410, "Expired", &Value::Null),
        "/api/v1/pods?limit=500&continue=c1" => ok(json!({"items": [some_pod("p2")]})),
        _ => ok(json!({"items": []})),
    });
    let names: Vec<_> = client.observe().await.unwrap().pods.into_iter().map(|pod| pod.name).collect();
    assert_eq!(names, ["p1", "p2"], "nothing of the expired list is left");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_always_expires_ends() {
    let (script, client) = lists(|uri| match uri {
        "/api/v1/pods?limit=500" => ok(json!({"metadata": {"continue": "c"}, "items": []})),
        "/api/v1/pods?limit=500&continue=c" => refused(410, "Expired", &Value::Null),
        _ => ok(json!({"items": []})),
    });
    assert_eq!(client.observe().await.unwrap_err().to_string(), "listing of /api/v1/pods was refused, attempt 1: 410 Expired: words");
    assert_eq!(script.requests().iter().filter(|uri| uri.ends_with("continue=c")).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_look_ends_in_time_and_quotes_nothing() {
    let (_, client) = lists(|_| Answer::Silence);
    let error = client.observe().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let (_, client) = lists(|_| ok(json!({"items": [{"metadata": {"name": ["password"]}}]})));
    let error = client.observe().await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("password") && shown.contains("cannot be read"), "{shown}");
    assert!(!error.is_transient());
}

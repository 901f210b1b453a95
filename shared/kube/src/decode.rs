//! Lists of the API, cut down to what a rolling update needs while they are read: of 100,000 pods, everything else is
//! several hundred megabytes.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kopsline_rolling::{BudgetFacts, NodeFacts, Owner, PodFacts, Requirement, Selector};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::taints::SCHEDULED_FOR_UPDATE;

/// One page of a list.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(crate) struct Page<T> {
    #[serde(default, deserialize_with = "or_default")]
    metadata: PageMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) items: Vec<T>,
}

#[derive(Deserialize, Default)]
struct PageMeta {
    #[serde(default, rename = "continue", deserialize_with = "or_default")]
    next: String,
}

impl<T> Page<T> {
    /// Where the next page begins, unless this is the last.
    pub(crate) fn next(&self) -> Option<String> {
        Some(self.metadata.next.clone()).filter(|next| !next.is_empty())
    }
}

/// Go writes an empty list or map as `null` where it has none.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
pub(crate) struct Node {
    metadata: NodeMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize)]
struct NodeMeta {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: NodeAnnotations,
    #[serde(default, deserialize_with = "or_default")]
    labels: NodeLabels,
}

#[derive(Deserialize, Default)]
struct NodeAnnotations {
    #[serde(default, rename = "kops.k8s.io/needs-update")]
    needs_update: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
struct NodeLabels {
    #[serde(default, rename = "node.kubernetes.io/exclude-from-external-load-balancers")]
    excluded: Option<IgnoredAny>,
    #[serde(default, rename = "node-role.kubernetes.io/control-plane")]
    control_plane: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeSpec {
    #[serde(rename = "providerID")]
    provider_id: String,
    unschedulable: bool,
    #[serde(deserialize_with = "or_default")]
    taints: Vec<Taint>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize)]
struct Address {
    address: String,
}

impl From<Node> for NodeFacts {
    fn from(node: Node) -> Self {
        let holds = |kind: &str| node.status.conditions.iter().any(|condition| condition.kind == kind && condition.status == "True");
        Self {
            ready: holds("Ready") && !holds("NetworkUnavailable"),
            name: node.metadata.name,
            provider_id: node.spec.provider_id,
            needs_update: node.metadata.annotations.needs_update.is_some(),
            unschedulable: node.spec.unschedulable,
            scheduled_for_update: node.spec.taints.iter().any(|taint| taint.key == SCHEDULED_FOR_UPDATE),
            excluded_from_load_balancers: node.metadata.labels.excluded.is_some(),
            control_plane: node.metadata.labels.control_plane.is_some(),
            addresses: node.status.addresses.into_iter().map(|address| address.address).collect(),
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Pod {
    metadata: PodMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMeta {
    namespace: String,
    name: String,
    uid: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: PodAnnotations,
    #[serde(default, deserialize_with = "or_default")]
    owner_references: Vec<OwnerReference>,
    #[serde(default)]
    creation_timestamp: Option<Timestamp>,
    #[serde(default)]
    deletion_timestamp: Option<Timestamp>,
    #[serde(default)]
    deletion_grace_period_seconds: Option<i64>,
}

#[derive(Deserialize, Default)]
struct PodAnnotations {
    #[serde(default, rename = "kubernetes.io/config.mirror")]
    mirror: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct OwnerReference {
    kind: String,
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    controller: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    priority_class_name: String,
    #[serde(deserialize_with = "or_default")]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    #[serde(default)]
    empty_dir: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    name: String,
    #[serde(default)]
    ready: bool,
}

impl From<Pod> for PodFacts {
    fn from(pod: Pod) -> Self {
        let Pod { metadata, spec, status } = pod;
        // The API adds the grace period to the moment at which it was asked.
        let grace = SignedDuration::from_secs(metadata.deletion_grace_period_seconds.unwrap_or(0));
        let controller = metadata.owner_references.into_iter().find(|owner| owner.controller);
        Self {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            node: spec.node_name,
            host_ip: status.host_ip,
            labels: metadata.labels,
            priority_class: spec.priority_class_name,
            phase: status.phase,
            unready_containers: status.container_statuses.into_iter().filter(|status| !status.ready).map(|status| status.name).collect(),
            ready: status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True"),
            created: metadata.creation_timestamp,
            deleting: metadata.deletion_timestamp.map(|at| at.checked_sub(grace).unwrap_or(at)),
            controller: controller.map(|owner| Owner { kind: owner.kind, name: owner.name }),
            mirror: metadata.annotations.mirror.is_some(),
            local_storage: spec.volumes.iter().any(|volume| volume.empty_dir.is_some()),
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Budget {
    metadata: BudgetMeta,
    #[serde(default)]
    spec: BudgetSpec,
    #[serde(default)]
    status: BudgetStatus,
}

#[derive(Deserialize)]
struct BudgetMeta {
    namespace: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BudgetSpec {
    selector: Option<LabelSelector>,
    max_unavailable: Option<Limit>,
    min_available: Option<Limit>,
}

/// A number or a percentage.
#[derive(Deserialize)]
#[serde(untagged)]
enum Limit {
    Number(i64),
    Text(String),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LabelSelector {
    #[serde(deserialize_with = "or_default")]
    match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    key: String,
    operator: String,
    #[serde(default, deserialize_with = "or_default")]
    values: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BudgetStatus {
    disruptions_allowed: i32,
    current_healthy: i32,
    desired_healthy: i32,
    expected_pods: i32,
}

impl Limit {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl Budget {
    /// `None` for a budget without a selector, which covers no pod (`policy/v1`); an empty one covers all.
    pub(crate) fn facts(self) -> Option<BudgetFacts> {
        let selector = self.spec.selector?;
        let requirement =
            |expression: Expression| Requirement { key: expression.key, operator: expression.operator, values: expression.values };
        Some(BudgetFacts {
            namespace: self.metadata.namespace,
            name: self.metadata.name,
            selector: Selector {
                match_labels: selector.match_labels,
                match_expressions: selector.match_expressions.into_iter().map(requirement).collect(),
            },
            max_unavailable: self.spec.max_unavailable.map(Limit::into_text),
            min_available: self.spec.min_available.map(Limit::into_text),
            disruptions_allowed: self.status.disruptions_allowed,
            current_healthy: self.status.current_healthy,
            desired_healthy: self.status.desired_healthy,
            expected_pods: self.status.expected_pods,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(json: Value) -> NodeFacts {
        NodeFacts::from(serde_json::from_value::<Node>(json).unwrap())
    }

    fn pod(json: Value) -> PodFacts {
        PodFacts::from(serde_json::from_value::<Pod>(json).unwrap())
    }

    #[test]
    fn a_node_with_everything() {
        let facts = node(json!({
            "metadata": {
                "name": "i-1",
                "annotations": {"kops.k8s.io/needs-update": "", "other": "x"},
                "labels": {"node.kubernetes.io/exclude-from-external-load-balancers": "", "node-role.kubernetes.io/control-plane": ""},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {
                "providerID": "aws:///eu-central-1a/i-1",
                "unschedulable": true,
                "taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "kops.k8s.io/scheduled-for-update", "effect": "PreferNoSchedule"}],
            },
            "status": {
                "addresses": [{"type": "InternalIP", "address": "172.20.1.2"}, {"type": "Hostname", "address": "i-1"}],
                "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
                "images": [{"names": ["a"], "sizeBytes": 1}],
            },
        }));
        let expected = NodeFacts {
            name: "i-1".to_owned(),
            provider_id: "aws:///eu-central-1a/i-1".to_owned(),
            needs_update: true,
            ready: true,
            unschedulable: true,
            scheduled_for_update: true,
            excluded_from_load_balancers: true,
            control_plane: true,
            addresses: vec!["172.20.1.2".to_owned(), "i-1".to_owned()],
        };
        assert_eq!(facts, expected);
    }

    #[test]
    fn a_node_with_nothing() {
        for empty in [
            json!({"metadata": {"name": "n"}}),
            json!({"metadata": {"name": "n", "labels": null, "annotations": null}, "spec": {"taints": null}, "status": {"addresses": null, "conditions": null}}),
        ] {
            assert_eq!(node(empty), NodeFacts { name: "n".to_owned(), ..NodeFacts::default() });
        }
    }

    #[test]
    fn a_node_is_ready_when_its_network_is_too() {
        for (ready, network, expected) in [
            ("True", None, true),
            ("True", Some("False"), true),
            ("True", Some("Unknown"), true),
            ("True", Some("True"), false),
            ("False", None, false),
            ("Unknown", None, false),
        ] {
            let mut conditions = vec![json!({"type": "Ready", "status": ready})];
            conditions.extend(network.map(|status| json!({"type": "NetworkUnavailable", "status": status})));
            let facts = node(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}}));
            assert_eq!(facts.ready, expected, "{ready} {network:?}");
        }
    }

    #[test]
    fn a_pod_with_everything() {
        let facts = pod(json!({
            "metadata": {
                "namespace": "kube-system", "name": "p", "uid": "u", "labels": {"k8s-app": "p"},
                "annotations": {"kubernetes.io/config.mirror": "abc"},
                "ownerReferences": [{"kind": "Lease", "name": "l"}, {"kind": "DaemonSet", "name": "d", "controller": true}],
                "creationTimestamp": "2026-11-20T08:00:00Z",
                "deletionTimestamp": "2026-11-25T12:00:30Z", "deletionGracePeriodSeconds": 30,
            },
            "spec": {
                "nodeName": "i-1", "priorityClassName": "system-node-critical",
                "volumes": [{"name": "a", "configMap": {}}, {"name": "b", "emptyDir": {}}],
                "containers": [{"name": "c", "env": [{"name": "PASSWORD", "value": "x"}]}],
            },
            "status": {
                "phase": "Running", "hostIP": "172.20.1.2",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "ready": false}, {"name": "d", "ready": true}],
                "initContainerStatuses": [{"name": "i", "ready": false}],
            },
        }));
        let expected = PodFacts {
            created: Some("2026-11-20T08:00:00Z".parse().unwrap()),
            namespace: "kube-system".to_owned(),
            name: "p".to_owned(),
            uid: "u".to_owned(),
            node: "i-1".to_owned(),
            host_ip: "172.20.1.2".to_owned(),
            labels: [("k8s-app".to_owned(), "p".to_owned())].into(),
            priority_class: "system-node-critical".to_owned(),
            phase: "Running".to_owned(),
            unready_containers: vec!["c".to_owned()],
            ready: true,
            deleting: Some("2026-11-25T12:00:00Z".parse().unwrap()),
            controller: Some(Owner { kind: "DaemonSet".to_owned(), name: "d".to_owned() }),
            mirror: true,
            local_storage: true,
        };
        assert_eq!(facts, expected);
    }

    #[test]
    fn a_pod_that_has_just_been_made() {
        let facts = pod(
            json!({"metadata": {"namespace": "a", "name": "p", "uid": "u"}, "spec": {"volumes": null}, "status": {"phase": "Pending"}}),
        );
        let expected = PodFacts {
            namespace: "a".to_owned(),
            name: "p".to_owned(),
            uid: "u".to_owned(),
            phase: "Pending".to_owned(),
            ..PodFacts::default()
        };
        assert_eq!(facts, expected);
    }

    #[test]
    fn budgets_are_kept_as_written() {
        let budget = |spec: Value| {
            serde_json::from_value::<Budget>(json!({"metadata": {"namespace": "a", "name": "b"}, "spec": spec})).unwrap().facts()
        };
        let facts = budget(json!({
            "maxUnavailable": "30%",
            "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]},
        }))
        .unwrap();
        assert_eq!((facts.max_unavailable.as_deref(), facts.min_available), (Some("30%"), None));
        let requirement = Requirement { key: "tier".to_owned(), operator: "Exists".to_owned(), values: Vec::new() };
        assert_eq!(
            facts.selector,
            Selector { match_labels: [("app".to_owned(), "web".to_owned())].into(), match_expressions: vec![requirement] }
        );
        assert_eq!(budget(json!({"minAvailable": 2, "selector": {}})).unwrap().min_available.as_deref(), Some("2"));
        assert_eq!(budget(json!({"minAvailable": 2})), None, "without a selector it covers nothing");
    }

    #[test]
    fn the_last_page_has_no_next() {
        let next = |json: &str| serde_json::from_str::<Page<IgnoredAny>>(json).unwrap().next();
        assert_eq!(next(r#"{"metadata": {"continue": "abc"}, "items": []}"#).as_deref(), Some("abc"));
        assert_eq!(next(r#"{"metadata": {"continue": ""}, "items": null}"#), None);
        assert_eq!(next(r#"{"metadata": {}}"#), None);
    }
}

//! What the Kubernetes API says about a cluster, as far as a rolling update needs it. An adapter fills these types;
//! they judge nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The API's answers of one look.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterFacts {
    /// All nodes.
    pub nodes: Vec<NodeFacts>,
    /// All pods of all namespaces.
    pub pods: Vec<PodFacts>,
    /// All `PodDisruptionBudget` objects.
    pub budgets: Vec<BudgetFacts>,
    /// The API's host name as DNS has it.
    pub api_name: ApiName,
}

/// The API's host name as DNS has it (kOps 1.36 `pkg/validation/validate_cluster.go`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "dns", rename_all = "snake_case")]
pub enum ApiName {
    /// The cluster publishes no DNS name, or it resolves to something real.
    #[default]
    Fine,
    /// It still resolves to the placeholder that kOps puts there (`203.0.113.123` or `fd00:dead:add::`).
    Placeholder,
    /// The look-up failed.
    Unresolved {
        /// What the resolver said.
        message: String,
    },
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// `spec.providerID`; its last path element is the instance's id.
    pub provider_id: String,
    /// Whether the annotation `kops.k8s.io/needs-update` is present, whatever its value.
    pub needs_update: bool,
    /// Whether the condition `Ready` is `True` and `NetworkUnavailable` is not `True`.
    pub ready: bool,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// Whether it has the taint `kops.k8s.io/scheduled-for-update`.
    pub scheduled_for_update: bool,
    /// Whether it has the label `node.kubernetes.io/exclude-from-external-load-balancers`.
    pub excluded_from_load_balancers: bool,
    /// Whether it has the label `node-role.kubernetes.io/control-plane`.
    pub control_plane: bool,
    /// `status.addresses`, without their types.
    pub addresses: Vec<String>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a pod of the same name with another one is another pod.
    pub uid: String,
    /// The name of its node; empty while it has none.
    pub node: String,
    /// `status.hostIP`.
    pub host_ip: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `spec.priorityClassName`.
    pub priority_class: String,
    /// `status.phase`: `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Names of the containers whose status is not ready.
    pub unready_containers: Vec<String>,
    /// Whether its condition `Ready` is `True`.
    pub ready: bool,
    /// `metadata.creationTimestamp`.
    #[serde(default)]
    pub created: Option<Timestamp>,
    /// When the API was asked to delete it.
    pub deleting: Option<Timestamp>,
    /// Kind and name of its controlling owner, such as a `ReplicaSet`.
    pub controller: Option<Owner>,
    /// Whether it is the image of a static pod (annotation `kubernetes.io/config.mirror`); such pods cannot be evicted.
    pub mirror: bool,
    /// Whether it has an `emptyDir`, which an eviction deletes.
    pub local_storage: bool,
}

/// What controls a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// Its kind, such as `DaemonSet`.
    pub kind: String,
    /// Its name, in the pod's namespace.
    pub name: String,
}

/// A `PodDisruptionBudget`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BudgetFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which pods of its namespace it covers; an empty selector covers all (policy/v1).
    pub selector: Selector,
    /// `spec.maxUnavailable` as written, if that is what it limits by.
    pub max_unavailable: Option<String>,
    /// `spec.minAvailable` as written, if that is what it limits by.
    pub min_available: Option<String>,
    /// `status.disruptionsAllowed`.
    pub disruptions_allowed: i32,
    /// `status.currentHealthy`.
    pub current_healthy: i32,
    /// `status.desiredHealthy`.
    pub desired_healthy: i32,
    /// `status.expectedPods`.
    pub expected_pods: i32,
}

/// A label selector.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selector {
    /// Labels with the values they must have.
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    pub match_expressions: Vec<Requirement>,
}

/// One requirement of a [`Selector`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// The values of `In` and `NotIn`.
    pub values: Vec<String>,
}

/// A pod as a command names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Selector {
    /// Whether it covers a pod with these labels. An unknown operator covers nothing.
    pub fn covers(&self, labels: &BTreeMap<String, String>) -> bool {
        let exactly = self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        exactly && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator.as_str() {
            "In" => value.is_some_and(|value| self.values.contains(value)),
            "NotIn" => value.is_none_or(|value| !self.values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}

impl NodeFacts {
    /// The id of its instance.
    pub fn instance(&self) -> &str {
        self.provider_id.rsplit('/').next().unwrap_or_default()
    }
}

impl BudgetFacts {
    /// Why it can never allow an eviction of a healthy pod as long as it and the pods it covers stay as they are; `None`
    /// if it can. `status.desiredHealthy` is the controller's own reading of `minAvailable` or `maxUnavailable`.
    pub fn hopeless(&self) -> Option<String> {
        if self.expected_pods <= 0 || self.desired_healthy < self.expected_pods {
            return None;
        }
        let limit = match (&self.max_unavailable, &self.min_available) {
            (Some(value), _) => format!("maxUnavailable {value}"),
            (None, Some(value)) => format!("minAvailable {value}"),
            (None, None) => format!("{} must be healthy", self.desired_healthy),
        };
        let pods = if self.expected_pods == 1 { "its only pod".to_owned() } else { format!("its {} pods", self.expected_pods) };
        Some(format!("{limit} leaves no room with {pods}"))
    }
}

impl PodFacts {
    /// Whether a drain has to move it away: neither the image of a static pod, nor a `DaemonSet`'s, nor finished.
    pub fn is_evictable(&self) -> bool {
        !self.mirror && !self.is_daemon() && !self.is_finished()
    }

    /// Whether it belongs to a `DaemonSet`.
    pub fn is_daemon(&self) -> bool {
        self.controller.as_ref().is_some_and(|owner| owner.kind == "DaemonSet")
    }

    /// Whether it has ended and will not run again.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The pod as a command names it.
    pub fn reference(&self) -> PodRef {
        PodRef { namespace: self.namespace.clone(), name: self.name.clone(), uid: self.uid.clone() }
    }
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn selectors_cover_as_kubernetes_says() {
        let requirement = |operator: &str, values: &[&str]| Selector {
            match_labels: labels(&[("app", "db")]),
            match_expressions: vec![Requirement {
                key: "tier".to_owned(),
                operator: operator.to_owned(),
                values: values.iter().map(|&value| value.to_owned()).collect(),
            }],
        };
        let (plain, tiered) = (labels(&[("app", "db")]), labels(&[("app", "db"), ("tier", "a")]));
        assert!(Selector::default().covers(&plain), "an empty selector covers all");
        for (operator, values, without, with) in [
            ("In", &["a", "b"][..], false, true),
            ("NotIn", &["a"][..], true, false),
            ("Exists", &[][..], false, true),
            ("DoesNotExist", &[][..], true, false),
            ("Gt", &["0"][..], false, false),
        ] {
            let selector = requirement(operator, values);
            assert_eq!((selector.covers(&plain), selector.covers(&tiered)), (without, with), "{operator}");
            assert!(!selector.covers(&labels(&[("app", "web"), ("tier", "c")])), "{operator}");
        }
    }
}
